#!/bin/bash
# A whiteout, an opaque directory, and a file that this layer replaces.
set -euo pipefail
rm data/removed
rm -r data/opaque
mkdir data/opaque
printf 'new\n' > data/opaque/new
printf 'second\n' > data/changed
