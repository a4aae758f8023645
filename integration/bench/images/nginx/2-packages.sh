#!/bin/bash
. "$(dirname "$0")/install.sh"
packages nginx
