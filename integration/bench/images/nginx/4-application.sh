#!/bin/bash
# A web server with Debian's page, and the first answer that a client gets.
set -euo pipefail
mkdir app
cat > app/site.conf <<'S'
events {}
http { access_log off; server { listen unix:/tmp/n.sock; root /var/www/html; index index.nginx-debian.html; } }
S
cat > app/start.sh <<'S'
#!/bin/sh
nginx -c /app/site.conf 2>/dev/null
until [ "$(curl -s -o /dev/null -w '%{http_code}' --unix-socket /tmp/n.sock http://x/)" = 200 ]; do sleep 0.01; done
echo "READY nginx 200"
[ "${1:-}" != hold ] || exec sleep infinity
S
chmod 755 app/start.sh
