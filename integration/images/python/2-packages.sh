#!/bin/bash
# python3 with libraries that real programs import, and git: some 300 MB. apt runs in the image with this host's view of the
# network; none of that stays in the image.
set -euo pipefail
cp /etc/resolv.conf etc/resolv.conf
apt-config dump | grep -E '^Acquire::(https?::Proxy|Check-)' > etc/apt/apt.conf.d/99build || true
mount -t proc proc proc
trap 'umount proc' EXIT
in_image() { chroot . env DEBIAN_FRONTEND=noninteractive LC_ALL=C.UTF-8 "$@"; }
in_image apt-get update -q
in_image apt-get install -y -q --no-install-recommends \
    python3 python3-numpy python3-pandas python3-lxml python3-cryptography python3-pil python3-django python3-sqlalchemy git
rm -rf var/cache/apt/*.bin var/cache/apt/archives/*.deb var/lib/apt/lists/?* var/log/* var/cache/debconf/*-old \
    root/.cache etc/resolv.conf etc/apt/apt.conf.d/99build
