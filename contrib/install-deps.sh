#!/bin/bash
# Installs the Debian packages that building, testing and the demo need; says nothing and takes no
# network when all of them are there. Needs root, or sudo.
set -euo pipefail

packages=(
    # build: C toolchain for bundled SQLite and zstd, static libseccomp for towline-oci
    build-essential pkg-config libseccomp-dev
    # images and their registry
    buildah debootstrap docker-registry busybox-static zstd jq curl
    # peers and tools that tests compare with or look through
    openssl skopeo podman conmon netavark slirp4netns fuse-overlayfs catatonit uidmap passt iptables
    containerd containernetworking-plugins
    runc crun criu erofs-utils attr e2fsprogs iproute2 util-linux fuse3
    # the test machine (integration/testbed)
    qemu-system-x86 cpio kmod xz-utils
    # a clock that jumps, for one program
    faketime
    # make bench-lazy, reading manifests
    python3 python3-yaml
    # make bench-runtime
    hyperfine strace time
)

# QEMU's own until 8.0, a package of its own since.
if apt-cache show virtiofsd >/dev/null 2>&1; then packages+=(virtiofsd); fi

command -v dpkg-query >/dev/null || { echo "towline: $0 installs Debian packages, and this host has no dpkg: install by hand: ${packages[*]}" >&2; exit 1; }

missing=()
for package in "${packages[@]}"; do
    status=$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null || true)
    [ "$status" = installed ] || missing+=("$package")
done

if [ ${#missing[@]} != 0 ]; then
    sudo=()
    [ "$(id -u)" = 0 ] || sudo=(sudo)
    echo "installing with apt-get: ${missing[*]}"
    # Debian's docker-registry, podman and containerd are for our own short-lived processes: no service must start.
    policy=/usr/sbin/policy-rc.d
    if [ ! -e "$policy" ]; then
        printf '#!/bin/sh\nexit 101\n' | "${sudo[@]}" tee "$policy" >/dev/null
        "${sudo[@]}" chmod 755 "$policy"
        trap '"${sudo[@]}" rm -f "$policy"' EXIT
    fi
    export DEBIAN_FRONTEND=noninteractive
    if ! "${sudo[@]}" apt-get install -y -q --no-install-recommends "${missing[@]}"; then
        # Most often the package lists are missing or out of date.
        "${sudo[@]}" apt-get update -q
        "${sudo[@]}" apt-get install -y -q --no-install-recommends "${missing[@]}"
    fi
fi

if ! command -v cargo >/dev/null && [ ! -x "${HOME:-/root}/.cargo/bin/cargo" ]; then
    echo "towline: no Rust toolchain: install Rust 1.90 or newer, so that 'cargo' is in PATH" >&2
    exit 1
fi
