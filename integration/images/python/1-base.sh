#!/bin/bash
# Debian minbase, suite and mirror as this host's apt has them.
set -euo pipefail

# The first release archive (not security, not updates) that apt on this host uses.
archive=$(apt-get indextargets --format '$(REPO_URI) $(CODENAME) $(ORIGIN)' 'Created-By: Packages' |
    awk '($3 == "Debian" || $3 == "Ubuntu") && $2 !~ /-/ { print $2, $1; exit }')
[ -n "$archive" ] || { echo "apt on this host knows no Debian archive: run 'apt-get update'" >&2; exit 1; }
read -r suite mirror <<< "$archive"

proxy=$(apt-config dump --format '%v' Acquire::http::Proxy)
[ -z "$proxy" ] || export http_proxy=$proxy
debootstrap --variant=minbase "$suite" . "$mirror"
rm -rf var/cache/apt/*.bin var/cache/apt/archives/*.deb var/lib/apt/lists/?* var/log/* etc/{resolv.conf,hostname}
: > etc/machine-id
