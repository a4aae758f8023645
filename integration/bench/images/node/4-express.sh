#!/bin/bash
. "$(dirname "$0")/install.sh"
mkdir -p opt/app
in_image sh -c "cd /opt/app && npm init -y >/dev/null && npm_config_cafile=/build-ca.crt npm install --no-audit --no-fund express@4"
