#!/bin/bash
# Debian minbase, the first layer of each of the bench images: made once, so that all of them share it. Suite and mirror are
# those that this host's apt has.
set -euo pipefail
if [ ! -f "$TOWLINE_WORK/base.tar" ]; then
    archive=$(apt-get indextargets --format '$(REPO_URI) $(CODENAME) $(ORIGIN)' 'Created-By: Packages' |
        awk '$3 == "Debian" && $2 !~ /-/ { print $2, $1; exit }')
    [ -n "$archive" ] || { echo "apt on this host knows no Debian archive: run 'apt-get update'" >&2; exit 1; }
    read -r suite mirror <<< "$archive"
    proxy=$(apt-config dump --format '%v' Acquire::http::Proxy)
    [ -z "$proxy" ] || export http_proxy=$proxy
    debootstrap --variant=minbase "$suite" "$TMPDIR/base" "$mirror"
    (
        cd "$TMPDIR/base"
        rm -rf var/cache/apt/*.bin var/cache/apt/archives/*.deb var/lib/apt/lists/?* var/log/* etc/{resolv.conf,hostname}
        : > etc/machine-id
    )
    tar --sort=name --numeric-owner --xattrs --mtime=@1700000000 -C "$TMPDIR/base" -cf "$TMPDIR/base.tar" .
    mv "$TMPDIR/base.tar" "$TOWLINE_WORK/base.tar"
    rm -rf "$TMPDIR/base"
fi
tar --xattrs -xpf "$TOWLINE_WORK/base.tar"
