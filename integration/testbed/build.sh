#!/bin/bash
# Makes what the test machine (README.md here) needs, below $TOWLINE_WORK/testbed; what is there already is kept.
#
#   vmlinux        Debian's cloud kernel as ELF, which QEMU starts without firmware
#   modules/       its lib/modules tree, seen in the machine as /lib/modules/VERSION
#   initrd.cpio    busybox, init.sh, and the modules needed before the shared root is there
#   systemd.erofs  Debian's systemd and D-Bus and what they need beyond this host's packages (`--systemd`)
#
# Nothing is installed: the packages are downloaded and unpacked.
set -euo pipefail
here=$(dirname "$(readlink -f "$0")")
out=${TOWLINE_WORK:?the directory that keeps images and machines between runs}/testbed
early=(overlay erofs loop) # modules in Debian's kernel; virtio over PCI and virtiofs are built in
units=(systemd systemd-sysv dbus dbus-user-session libpam-systemd)

fail() { echo "testbed: $*" >&2; exit 1; }
[ "$(uname -m)" = x86_64 ] || fail "the machine is emulated x86_64 with this host's programs in it; this host is $(uname -m)"
command -v apt-get >/dev/null || fail "the kernel comes from a Debian package, and this host has no apt-get"

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
install -d "$out"

# Downloads packages into $scratch/$1 and unpacks them into $scratch/$1/root.
unpack() {
    local name=$1 archive
    shift
    install -d -m 0755 "$scratch/$name/root"
    # apt's own sandbox user may not write here; there is nothing to protect in a download that apt verifies.
    (cd "$scratch/$name" && apt-get -q -o APT::Sandbox::User=root download "$@" >"$scratch/$name/log" 2>&1) ||
        { cat "$scratch/$name/log" >&2; fail "downloading $* failed: apt-get update may help"; }
    for archive in "$scratch/$name"/*.deb; do dpkg-deb -x "$archive" "$scratch/$name/root"; done
}

kernel_package() {
    local meta image
    for meta in linux-image-6.12-cloud-amd64 linux-image-cloud-amd64; do
        image=$(apt-cache depends "$meta" 2>/dev/null | awk '$1 == "Depends:" && $2 ~ /^linux-image-/ { print $2; exit }')
        [ -z "$image" ] || { echo "$image"; return; }
    done
    apt-get -q update >&2
    image=$(apt-cache depends linux-image-6.12-cloud-amd64 | awk '$1 == "Depends:" && $2 ~ /^linux-image-/ { print $2; exit }')
    [ -n "$image" ] || fail "apt knows neither linux-image-6.12-cloud-amd64 nor linux-image-cloud-amd64"
    echo "$image"
}

# The kernel image is a compressed ELF behind a loader; $1 to $2.
elf_of() {
    local offset format magic
    for format in zstd xz; do
        case $format in
            zstd) magic='\x28\xb5\x2f\xfd' ;;
            xz) magic='\xfd7zXZ\x00' ;;
        esac
        for offset in $(LC_ALL=C grep -obUaP "$magic" "$1" | LC_ALL=C cut -d: -f1 -s | grep -x '[0-9]*'); do
            # What follows the ELF makes every tool complain: its head tells whether this was it.
            tail -c "+$((offset + 1))" "$1" | $format -dc >"$2" 2>/dev/null || true
            [ "$(head -c 4 "$2" | tail -c 3)" != ELF ] || return 0
        done
    done
    fail "no compressed ELF kernel found in $1"
}

build_kernel() {
    unpack kernel "$(kernel_package)"
    local root=$scratch/kernel/root version
    version=$(ls "$root/lib/modules")
    depmod -b "$root" "$version"
    elf_of "$root/boot/vmlinuz-$version" "$scratch/vmlinux"
    rm -rf "$out/modules"
    mv "$root/lib/modules" "$out/modules"
    mv "$scratch/vmlinux" "$out/vmlinux"
}

build_initrd() {
    local tree=$scratch/initrd version module file
    version=$(ls "$out/modules")
    install -d "$tree"/{bin,modules,proc,sys,dev,shared,units,over,root}
    install -m 0755 "$(command -v busybox)" "$tree/bin/busybox"
    install -m 0755 "$here/init.sh" "$tree/init"
    install -d "$scratch/depends/lib"
    ln -sfn "$out/modules" "$scratch/depends/lib/modules"
    for module in "${early[@]}"; do
        modprobe -d "$scratch/depends" -S "$version" --show-depends "$module" | awk '$1 == "insmod" { print $2 }'
    done | awk '!seen[$0]++' | while read -r file; do
        case $file in
            *.xz) xz -dc "$file" >"$tree/modules/$(basename "${file%.xz}")" ;;
            *) cp "$file" "$tree/modules/" ;;
        esac
        basename "${file%.xz}" >>"$tree/modules/order"
    done
    (cd "$tree" && find . | LC_ALL=C sort | cpio -o -H newc --quiet -R 0:0) >"$scratch/initrd.cpio"
    mv "$scratch/initrd.cpio" "$out/initrd.cpio"
}

build_systemd() {
    local missing root name
    missing=$(apt-get install -s -q --no-install-recommends "${units[@]}" | awk '$1 == "Inst" { print $2 }')
    [ -n "$missing" ] || { mkdir "$scratch/empty"; mkfs.erofs --quiet "$scratch/systemd.erofs" "$scratch/empty"; }
    if [ -n "$missing" ]; then
        # shellcheck disable=SC2086 # one package a word
        unpack systemd $missing
        root=$scratch/systemd/root
        # The host's /lib is a link to usr/lib: a directory of that name laid over it would hide all of it.
        for name in bin sbin lib lib64; do
            [ -d "$root/$name" ] || continue
            install -d "$root/usr/$name"
            cp -a "$root/$name/." "$root/usr/$name/"
            rm -rf "${root:?}/$name"
        done
        rm -rf "$root"/usr/share/{doc,man,locale,lintian}
        mkfs.erofs "$scratch/systemd.erofs" "$root" >/dev/null
    fi
    mv "$scratch/systemd.erofs" "$out/systemd.erofs"
}

exec 9>"$out/lock"
flock -w 600 9 || fail "another build holds $out/lock for ten minutes"
[ -e "$out/vmlinux" ] || build_kernel
[ "$out/initrd.cpio" -nt "$here/init.sh" ] && [ "$out/initrd.cpio" -nt "$here/build.sh" ] && [ "$out/initrd.cpio" -nt "$out/vmlinux" ] || build_initrd
[ "$out/systemd.erofs" -nt "$here/build.sh" ] || build_systemd
