#!/bin/bash
. "$(dirname "$0")/install.sh"
in_image env PIP_CERT=/build-ca.crt pip install --no-cache-dir --break-system-packages numpy
