#!/bin/bash
. "$(dirname "$0")/install.sh"
. "$(dirname "$0")/compile.sh"
in_image env PIP_CERT=/build-ca.crt pip install --no-cache-dir --break-system-packages pandas
# What the layer below has stays in that.
compile_python /usr/local/lib/python3.11/dist-packages/{pandas,dateutil,six.py}
