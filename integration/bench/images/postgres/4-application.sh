#!/bin/bash
# A new data base cluster, a server on it, and the first answer that a client gets.
set -euo pipefail
mkdir app
cat > app/start.sh <<'S'
#!/bin/sh
export PATH=/usr/lib/postgresql/15/bin:$PATH
mkdir -p /tmp/pg && chown postgres /tmp/pg
as_postgres="setpriv --reuid=postgres --regid=postgres --clear-groups"
$as_postgres initdb -D /tmp/pg/d -A trust >/dev/null 2>&1
$as_postgres postgres -D /tmp/pg/d -k /tmp/pg -c listen_addresses= >/tmp/pg/log 2>&1 </dev/null &
until [ "$($as_postgres psql -h /tmp/pg -Atc 'select 1' postgres 2>/dev/null)" = 1 ]; do sleep 0.02; done
echo "READY postgres 1"
[ "${1:-}" != hold ] || exec sleep infinity
S
chmod 755 app/start.sh
