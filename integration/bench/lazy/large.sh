#!/bin/bash
# `make bench-large`: one file of 1 GiB in an image, all local, against the same file below plain overlayfs: read(2) and mmap(2), with the
# page cache warm and cold. Ratios of times, medians of RUNS, one after the other.
#
# usage: large.sh BIN_DIR TOWLINE_OCI      (needs root, fio, and 6 GB below TOWLINE_WORK)      RUNS=5
set -euo pipefail

command -v fio > /dev/null || { echo "towline: the bench reads with fio: apt-get install fio" >&2; exit 1; }
[ "$(id -u)" = 0 ] || { echo "towline: the bench mounts and starts containers: run it as root" >&2; exit 1; }
if [ $$ != 1 ]; then
    exec unshare --mount --pid --fork --mount-proc --propagation private --kill-child bash "$0" "$@"
fi
RUNS=${RUNS:-5} SIZE=$((1 << 30))
work=${TOWLINE_WORK:-/var/tmp/towline-demo}/bench
mkdir -p "$work"
dir=$(mktemp -d "$work/large.XXXXXX")
clean_up() {
    towline rm -f large > "$dir/rm.log" 2>&1 || true
    for process in /proc/[0-9]*; do # of this process namespace only
        [ "$(cat "$process/comm" 2> /dev/null)" != towlined ] || kill -9 "${process#/proc/}" || true
    done
    while read -r mount; do umount -l "$mount"; done < <(findmnt -rno TARGET | grep -F "$dir" | tac)
    rm -rf "$dir"
}
trap clean_up EXIT
trap 'echo "towline: bench: line $LINENO failed; the ends of its logs:" >&2; tail -n 3 "$dir"/*.log >&2' ERR
mkdir "$dir/bin"
cp "$1"/{towline,towlined} "$2" "$dir/bin/"
export PATH=$dir/bin:$PATH TOWLINE_ROOT=$dir/root TOWLINE_STATE=$dir/state
mkdir -p "$TOWLINE_ROOT" "$TOWLINE_STATE"

# As programs and data are: part of it compresses, part does not.
mkdir -p "$dir/image/bin" "$dir/image/data"
cp /bin/busybox "$dir/image/bin/busybox"
ln -s busybox "$dir/image/bin/sh"
ln -s busybox "$dir/image/bin/sleep"
python3 - "$dir/image/data/large" "$SIZE" << 'P'
import random
import sys
random.seed(1)
block = 1 << 20
with open(sys.argv[1], "wb") as file:
    for n in range(int(sys.argv[2]) // block):
        half = block // 2
        file.write(random.randbytes(half) + (b"%08d" % n) * (half // 8))
P
tar -C "$dir/image" -cf "$dir/image.tar" .
mkdir -p "$dir/plain"/{lower,upper,work,merged}
cp -a "$dir/image/." "$dir/plain/lower/"
rm -rf "$dir/image"
mount -t overlay plain -o "lowerdir=$dir/plain/lower,upperdir=$dir/plain/upper,workdir=$dir/plain/work" "$dir/plain/merged"
towline images import "$dir/image.tar" large:1 > "$dir/import.log" 2>&1
rm "$dir/image.tar"
towline run -d --net none --name large large:1 /bin/sleep 100000 > "$dir/id" 2> "$dir/run.log" || { cat "$dir/run.log" >&2; exit 1; }
id=$(cat "$dir/id")
ours=$(findmnt -rno TARGET | grep -F "$id" | head -n 1)/data/large plain=$dir/plain/merged/data/large
sleep 5 # The first start of an image is recorded, without the kernel's readahead, until nothing new is opened for 3 s.
cmp "$ours" "$plain" || { echo "towline: the file is not what it should be" >&2; exit 1; }

seconds() { # FILE ENGINE warm|cold
    [ "$3" = warm ] || { sync; echo 1 > /proc/sys/vm/drop_caches; }
    fio --name=large --filename="$1" --rw=read --bs=1M --ioengine="$2" --readonly --invalidate=0 --size="$SIZE" --loops=1 \
        --output-format=json | jq '.jobs[0].read.runtime / 1000'
}
median() { sort -n | awk '{ v[NR] = $1 } END { print v[int((NR + 1) / 2)] }'; }

echo "one file of 1 GiB, seconds, medians of $RUNS; $(findmnt -no FSTYPE -T "$dir"), $(nproc) cores, Linux $(uname -r), load $(cut -d' ' -f1-3 /proc/loadavg)"
for how in 'psync warm' 'mmap warm' 'psync cold' 'mmap cold'; do
    read -r engine cache <<< "$how"
    : > "$dir/ours.s"
    : > "$dir/plain.s"
    for run in $(seq 0 "$RUNS"); do # the first one counts for nothing
        a=$(seconds "$ours" "$engine" "$cache") b=$(seconds "$plain" "$engine" "$cache")
        [ "$run" = 0 ] || { echo "$a" >> "$dir/ours.s"; echo "$b" >> "$dir/plain.s"; }
    done
    a=$(median < "$dir/ours.s") b=$(median < "$dir/plain.s")
    awk -v name="${engine/psync/read}, $cache" -v a="$a" -v b="$b" 'BEGIN { printf "%-12s towline %.3f  overlayfs %.3f  %.2f x\n", name, a, b, a / b }'
done
