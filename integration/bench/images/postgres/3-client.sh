#!/bin/bash
. "$(dirname "$0")/install.sh"
packages postgresql-client-15 locales
