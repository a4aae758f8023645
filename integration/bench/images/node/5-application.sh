#!/bin/bash
# A web service, and the first answer that a client gets.
set -euo pipefail
mkdir app
cat > app/server.js <<'S'
const http = require('http'), express = require('/opt/app/node_modules/express');
const app = express(); app.get('/', (q, r) => r.send('hello'));
app.listen('/tmp/n.sock', () => http.get({ socketPath: '/tmp/n.sock', path: '/' }, r => {
  r.on('data', d => { console.log('READY node ' + r.statusCode + ' ' + d); if (process.argv[2] !== 'hold') process.exit(0); }); }));
S
printf '#!/bin/sh\nexec node /app/server.js "$@"\n' > app/start.sh
chmod 755 app/start.sh
