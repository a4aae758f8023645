#!/bin/bash
# A server without persistence, and the first answer that a client gets.
set -euo pipefail
mkdir app
cat > app/start.sh <<'S'
#!/bin/sh
redis-server --port 0 --unixsocket /tmp/r.sock --save '' --daemonize yes >/dev/null
until redis-cli -s /tmp/r.sock ping 2>/dev/null | grep -q PONG; do sleep 0.01; done
echo "READY redis PONG"
[ "${1:-}" != hold ] || exec sleep infinity
S
chmod 755 app/start.sh
