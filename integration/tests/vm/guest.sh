#!/bin/bash
# Makes a guest's first root file system: guest.sh MODULES INIT OUT [PROGRAM...]
#   MODULES  a lib/modules tree with the one version that the kernel has
#   INIT     what the guest runs, a script of busybox's shell
#   OUT      the cpio archive
#   PROGRAM  what it has in /bin beside busybox
set -euo pipefail
modules=$1 init=$2 out=$3
shift 3
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
install -d "$scratch"/tree/{bin,modules,proc,sys,dev,mnt} "$scratch/lib"
ln -s "$(readlink -f "$modules")" "$scratch/lib/modules"
install -m 0755 "$(command -v busybox)" "$scratch/tree/bin/busybox"
install -m 0755 "$init" "$scratch/tree/init"
[ $# = 0 ] || install -m 0755 "$@" "$scratch/tree/bin/"
# In the order in which they are loaded; the transport, ext4 and the console are built into Debian's cloud kernel.
for module in virtio_blk vmw_vsock_virtio_transport virtio-rng virtio_pmem nd_pmem erofs; do
    modprobe -d "$scratch" -S "$(ls "$modules")" --show-depends "$module"
done | awk '$1 == "insmod" && !seen[$2]++ { print $2 }' | while read -r file; do
    name=$(basename "$file" .xz)
    case $file in
        *.xz) xz -dc "$file" >"$scratch/tree/modules/$name" ;;
        *) cp "$file" "$scratch/tree/modules/$name" ;;
    esac
    echo "$name"
done >"$scratch/order"
mv "$scratch/order" "$scratch/tree/modules/order"
(cd "$scratch/tree" && find . | cpio -o -H newc --quiet -R 0:0) >"$out"
