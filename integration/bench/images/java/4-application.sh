#!/bin/bash
# One source file, which java compiles and then runs.
set -euo pipefail
mkdir app
cat > app/Hello.java <<'S'
public class Hello { public static void main(String[] a) { System.out.println("READY java " + System.getProperty("java.version")); } }
S
cat > app/start.sh <<'S'
#!/bin/sh
java /app/Hello.java
[ "${1:-}" != hold ] || exec sleep infinity
S
chmod 755 app/start.sh
