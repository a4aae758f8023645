# Sourced by a layer's script, in the layer's root: programs of the image run with this host's view of the network, and none of
# that stays in the image.
set -euo pipefail
# Nothing else of this host's environment: it names files that the image does not have, or has with other content.
in_image() {
    chroot . env -i PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root DEBIAN_FRONTEND=noninteractive LC_ALL=C.UTF-8 \
        ${http_proxy:+http_proxy="$http_proxy"} ${https_proxy:+https_proxy="$https_proxy"} "$@"
}

network_off() {
    umount proc
    rm -rf var/cache/apt/*.bin var/cache/apt/archives/*.deb var/lib/apt/lists/?* var/cache/debconf/*-old var/log/*.log var/log/apt \
        root/.cache root/.npm etc/resolv.conf etc/apt/apt.conf.d/99build build-ca.crt
}

cp /etc/resolv.conf etc/resolv.conf
apt-config dump | grep -E '^Acquire::(https?::Proxy|Check-)' > etc/apt/apt.conf.d/99build || true
cp /etc/ssl/certs/ca-certificates.crt build-ca.crt
mount -t proc proc proc
trap network_off EXIT

packages() { # NAME...
    in_image apt-get update -q
    in_image apt-get install -y -q --no-install-recommends "$@"
}
