#!/bin/bash
. "$(dirname "$0")/install.sh"
packages python3 python3-pip
