#!/bin/bash
. "$(dirname "$0")/install.sh"
. "$(dirname "$0")/compile.sh"
packages python3 python3-pip
compile_python /usr/lib/python3 /usr/lib/python3.11
