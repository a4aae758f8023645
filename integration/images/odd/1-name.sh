#!/bin/bash
# A file name that is not UTF-8. The table of contents of zstd:chunked is JSON and has lost the name: such a layer cannot start
# before it was streamed once.
set -euo pipefail
mkdir -p bin tmp proc sys dev data
cp /bin/busybox bin/busybox
for applet in sh cat ls true; do ln -s busybox bin/$applet; done
printf 'odd\n' > "data/$(printf 'caf\351')"
