#!/bin/bash
# `make bench-lazy`: time from the command to the workload's first useful output (`READY ...`), from an empty store over a link.
#
# usage: bench.sh BIN_DIR TOWLINE_OCI IMAGE...      (needs root; images: make bench-images)
#   RATE=100   megabits a second      RTT=10   milliseconds      RUNS=3      CROWD=50  containers at once, 0 leaves that out
#
# For each image, once: a start is recorded (`run --record-profile`), the image is written again as `images optimize` and
# `images convert --compression estargz` make it, and a seek index of the gzip image is pushed. They stay in the bench's registry.
# Then in each run, one after the other: containerd (pull, run), podman (run), and towline on each form of the image.
#
# - needed: what no lazy puller can do without: the pages that the program touches, compressed by zlib (touched.py, on a plain file system
#   without readahead). warm: the start by runc with everything local. limit: needed / rate + 3 round trips + warm.
# - Every start has a file system of its own for its store: in one where files were just removed, ext4 searches long for inodes that it may
#   take again.
# - The link is link-proxy: one line for all connections with the rate, and the delay; it has no slow start, for anybody. `line` is
#   what one plain download got of the rate: where that is far below 1 the figures say something about this machine only.
# - A row that cannot be measured says why. Nothing is asserted: this reports.
set -uo pipefail

# shellcheck source=integration/bench/common.sh
source "$(dirname "$(realpath "$0")")/../common.sh"
begin_bench "$0" "$@"

bin=$1 oci=$2 here=$(dirname "$(realpath "$0")")
shift 2
images=("$@")
RATE=${RATE:-100} RTT=${RTT:-10} RUNS=${RUNS:-3} CROWD=${CROWD:-50}
mkdir -p "$work/profiles"
cp "$bin"/{towline,towlined,link-proxy} "$oci" "$bench/bin/"
export PATH=$bench/bin:$PATH TOWLINE_LOG=${TOWLINE_LOG:-info}
report=$work/reports/lazy-$RATE.txt

leave() {
    local id store
    for store in "$bench"/stores/*/root; do
        use_store "$(basename "$(dirname "$store")")"
        for id in $(timeout 10 towline ps -a --format json 2> "$bench/ps.log" | jq -r '.[].id // empty'); do
            timeout 20 towline rm -f "$id" > "$bench/rm.log" 2>&1
        done
    done
}

drop_store() { # NAME: ends what uses it, and makes another
    use_store "$1"
    end_programs
    no_file_system "$1"
    file_system "$1"
    use_store "$1"
}

towline_start() { # FORM: cold
    local repository=$image tag=$1
    case $1 in opt) tag=$opt ;; esgz) tag=$esgz ;; indexed) repository=$image-indexed tag=$indexed ;; esac
    drop_store lazy
    [ "$1" = opt ] || import_profile "$repository" "$tag"
    measure towline run --rm --plain-http "$link/$repository:$tag"
}

# Another node has the profile from the registry; for forms that were pushed without one it is put there by hand.
import_profile() { # REPOSITORY TAG
    local digest
    [ "${WITH_PROFILE:-1}" = 1 ] && [ -f "$work/profiles/$image.json" ] || return 0
    digest=$(curl -sSfI -H 'Accept: application/vnd.oci.image.manifest.v1+json' "http://$registry/v2/$1/manifests/$2" |
        tr -d '\r' | awk 'tolower($1) == "docker-content-digest:" { print $2 }')
    [ -z "$digest" ] || towline images profile --import "$work/profiles/$image.json" "$digest" || die "importing a profile failed"
}

# What podman and towline give where an image says nothing; ctr does not, and python3 finds its libraries by it.
PATH_IN_IMAGE=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin

containerd_start() { # cold: pull, then run; a daemon of its own, so that nothing of it is left of the time before
    local c=$bench/stores/containerd pid
    file_system containerd
    printf 'version = 2\nroot = "%s/root"\nstate = "%s/state"\ndisabled_plugins = ["io.containerd.grpc.v1.cri"]\n[grpc]\naddress = "%s/sock"\n' "$c" "$c" "$c" > "$c/config.toml"
    containerd -c "$c/config.toml" > "$c/log" 2>&1 &
    pid=$!
    for _ in $(seq 100); do [ ! -S "$c/sock" ] || break; sleep 0.1; done
    measure bash -c "ctr -a $c/sock image pull --plain-http $link/$image:gzip >$c/pull.log 2>&1 && exec ctr -a $c/sock run --rm --env PATH=$PATH_IN_IMAGE $link/$image:gzip bench$RANDOM$RANDOM"
    local status=$?
    kill "$pid"
    wait "$pid" 2> "$bench/kill.log"
    no_file_system containerd
    return $status
}

podman_start() {
    local status
    file_system podman
    rm -rf /var/lib/containers/cache
    measure podman --runtime runc --root "$bench/stores/podman/root" --runroot "$bench/stores/podman/run" --storage-driver overlay \
        --cgroup-manager cgroupfs run --rm --net none --tls-verify=false "$link/$image:gzip"
    status=$?
    no_file_system podman
    return $status
}

# --- preparation, once for each image

# Forms that are made here: named after what they are made of, so that an image that was built anew gets new ones.
prepare() {
    local built profile
    has_tag zstd "$image" || return 1
    built=$(sha256sum < "$bench/tag" | cut -c1-12)
    profile=$work/profiles/$image.$built.json opt=packed1-$built esgz=esgz-$built
    if [ ! -s "$profile" ]; then
        drop_store prepare
        towline run --rm --plain-http --record-profile="$profile" "$registry/$image:zstd" > "$bench/record.log" 2>&1 ||
            { tail -n 3 "$bench/record.log" >&2; return 1; }
    fi
    ln -sfn "$profile" "$work/profiles/$image.json"
    drop_store prepare
    has_tag "$opt" "$image" || towline images optimize --plain-http --profile "$profile" "$registry/$image:zstd" "$registry/$image:$opt" > "$bench/optimize.log" 2>&1 ||
        tail -n 3 "$bench/optimize.log" >&2
    has_tag "$esgz" "$image" || towline images optimize --plain-http --compression estargz --profile "$profile" "$registry/$image:gzip" "$registry/$image:$esgz" > "$bench/estargz.log" 2>&1 ||
        tail -n 3 "$bench/estargz.log" >&2
    # The seek index of the gzip image is pushed as a referrer; `gzip` itself stays what nobody has seen.
    indexed=indexed2-$built # the version of the index
    has_tag "$indexed" "$image-indexed" || {
        towline images copy --plain-http "$registry/$image:gzip" "$registry/$image-indexed:$indexed" > "$bench/index.log" 2>&1 &&
            towline images index --push --plain-http "$registry/$image-indexed:$indexed" > "$bench/index.log" 2>&1
    } || tail -n 3 "$bench/index.log" >&2
    drop_store prepare
}

layers() { # FORM: files of the layers of the image as it was built
    jq -r --arg form "$1" '.manifests[] | select(.annotations["org.opencontainers.image.ref.name"] == $form).digest' "$work/oci/$image/index.json" |
        sed 's/sha256://' | xargs -I{} jq -r '.layers[].digest' "$work/oci/$image/blobs/sha256/{}" | sed "s|sha256:|$work/oci/$image/blobs/sha256/|"
}

# Sets needed (bytes) and warm (seconds).
physical_limit() {
    local root=$bench/stores/touched/root layer run
    file_system touched 0
    mkdir -p "$root"
    for layer in $(layers gzip); do tar -xzf "$layer" --exclude='.wh.*' -C "$root" 2> "$bench/tar.log"; done
    mkdir -p "$root"/{proc,dev,tmp}
    # The program begins with nothing in the page cache.
    mount -o remount,ro "$bench/stores/touched" && mount -o remount,rw "$bench/stores/touched"
    sync
    echo 1 > /proc/sys/vm/drop_caches
    in_root "$root" > "$bench/touched.log" 2>&1
    needed=$(python3 "$here/touched.py" "$root" | cut -d' ' -f3)
    in_root "$root" > "$bench/touched.log" 2>&1
    mkdir -p "$bench/bundle"
    (
        cd "$bench/bundle" || exit
        rm -f config.json
        runc spec
        # What servers need to become another user, as containers have it anywhere.
        jq --arg root "$bench/pristine/root" '["CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FOWNER", "CAP_SETGID", "CAP_SETUID", "CAP_KILL"] as $caps |
            .root = {path: $root, readonly: false} | .process.terminal = false | .process.args = ["/app/start.sh"] |
            .process.env += ["LC_ALL=C.UTF-8"] | .process.rlimits = [] | .process.capabilities[] = $caps' config.json > new.json &&
            mv new.json config.json
    )
    for run in 1 2 3 4; do
        # Each start finds the image as it was.
        mkdir -p "$bench/pristine" && mount -t tmpfs pristine "$bench/pristine" && mkdir "$bench/pristine"/{upper,work,root} &&
            mount -t overlay pristine -o "lowerdir=$root,upperdir=$bench/pristine/upper,workdir=$bench/pristine/work" "$bench/pristine/root"
        measure runc --root "$bench/runc" run --bundle "$bench/bundle" "warm$run" && [ "$run" = 1 ] || echo "$seconds"
        umount -l "$bench/pristine/root" "$bench/pristine"
    done > "$bench/warm"
    warm=$(median < "$bench/warm")
    no_file_system touched
}

in_root() { # ROOT: the image's program; whatever it leaves running ends with it
    unshare --mount --pid --fork --kill-child bash -c 'mount -t proc proc "$1/proc" && mount -t tmpfs tmp "$1/tmp" && mount --rbind /dev "$1/dev" &&
        chroot "$1" env -i PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin LC_ALL=C.UTF-8 /app/start.sh' in_root "$1"
}

# --- the table

row() { # NAME SECONDS_FILE BYTES_FILE PEER_RATIO
    local s b
    s=$(median < "$2") b=$(median < "$3")
    if [ -z "$s" ]; then
        printf '  %-34s not measured: %s\n' "$1" "$(cat "$2.why" 2> "$bench/why.log")"
        return
    fi
    printf '  %-34s %7.2f s  %6.1f MB  %5.2f x limit  %5s x containerd  %6s x needed\n' "$1" "$s" "$(mb "$b")" \
        "$(calc "$s / $limit")" "${eager:+$(calc "$s / $eager")}" "$(calc "$b / $needed")"
}

sample() { # NAME COMMAND...
    local name=$1 f=$bench/figures/$image
    shift
    mkdir -p "$f"
    touch "$f/$name.s" "$f/$name.b"
    if "$@"; then
        echo "$seconds" >> "$f/$name.s"
        echo "$got" >> "$f/$name.b"
        printf '    %s %s: %.2f s, %s MB\n' "$image" "$name" "$seconds" "$(mb "$got")" >&2
    else
        echo "$why" > "$f/$name.s.why"
        printf '    %s %s: %s\n' "$image" "$name" "$why" >&2
    fi
}

daemon_costs() { # waits for the background fetch of the store `lazy`; peak memory and CPU time of its daemon
    local pid line rss=0 ticks=0
    for _ in $(seq 3000); do
        pid=$(cat /proc/[0-9]*/comm 2> "$bench/comm.log" | grep -c '^towlined$')
        [ "$pid" != 0 ] || break
        for pid in /proc/[0-9]*; do
            [ "$(cat "$pid/comm" 2> "$bench/comm.log")" = towlined ] || continue
            line=$(awk '/^VmHWM/ { print $2 }' "$pid/status" 2> "$bench/comm.log")
            [ "${line:-0}" -le "$rss" ] || rss=$line
            line=$(awk '{ print $14 + $15 }' "$pid/stat" 2> "$bench/comm.log")
            [ "${line:-0}" -le "$ticks" ] || ticks=$line
        done
        sleep 0.1
    done
    echo "towlined until complete: $(calc "$rss / 1000" 1) MB resident at most, $(calc "$ticks / $(getconf CLK_TCK)") s of CPU"
}

crowd() { # many containers of the optimized image at once
    local before begin n
    drop_store lazy
    before=$(received) begin=$(now)
    for n in $(seq "$CROWD"); do
        { timeout 300 towline run --rm --plain-http "$link/$image:$base" 2> "$bench/crowd.$n" | grep -m1 -q '^READY' && now > "$bench/crowd.$n.ready"; } &
        crowd_pids[n]=$!
    done
    wait "${crowd_pids[@]}"
    local last=0 ready=0
    for n in $(seq "$CROWD"); do
        [ -s "$bench/crowd.$n.ready" ] || continue
        ready=$((ready + 1))
        last=$(calc "($(cat "$bench/crowd.$n.ready") > $last) ? $(cat "$bench/crowd.$n.ready") : $last" 6)
    done
    echo "$CROWD at once: $ready ready, the last after $(calc "$last - $begin") s, $(mb $(($(received) - before))) MB"
    rm -f "$bench"/crowd.*
}

inside() { # ROOT COMMAND: seconds, best of 3, of a command in a root
    local begin best=
    for _ in 1 2 3; do
        begin=$(now)
        chroot "$1" /bin/sh -c "$2" > "$bench/inside.log" 2>&1
        best=$(calc "(\"$best\" == \"\" || $(now) - $begin < ${best:-0}) ? $(now) - $begin : ${best:-0}" 4)
    done
    echo "$best"
}

steady() { # all local: towline's root against plain overlayfs on extracted layers
    local id ours plain root=$bench/stores/plain n=0 lowers= layer a b
    id=$(towline run -d --plain-http --name steady "$link/$image:$base" /app/start.sh hold 2> "$bench/steady.log") || { tail -n 1 "$bench/steady.log"; return; }
    ours=$TOWLINE_STATE/containers/$id/rootfs
    [ -d "$ours/usr" ] || ours=$(findmnt -rno TARGET | grep -F "$id" | head -n 1)
    file_system plain
    for layer in $(layers gzip); do
        mkdir -p "$root/$n"
        tar -xzf "$layer" --exclude='.wh.*' -C "$root/$n" 2> "$bench/tar.log"
        lowers=$root/$n${lowers:+:$lowers}
        n=$((n + 1))
    done
    mkdir -p "$root/merged" "$root/upper" "$root/work"
    mount -t overlay plain -o "lowerdir=$lowers,upperdir=$root/upper,workdir=$root/work" "$root/merged" || return
    plain=$root/merged
    while IFS='|' read -r name command; do
        inside "$ours" "$command" > "$bench/first.log"
        b=$(inside "$plain" "$command") a=$(inside "$ours" "$command")
        echo "steady, $name: $a s, plain overlayfs $b s, $(calc "$a / $b") x"
    done << 'C'
stat walk|find / -xdev -printf '%s\n' | tail -n 1
small reads|find /usr -xdev -type f -size -64k | head -n 4000 | tr '\n' '\0' | xargs -0 cat > /dev/null
sequential, 10 x the largest file|f=$(find /usr -xdev -type f -printf '%s %p\n' | sort -rn | head -n 1 | cut -d' ' -f2); for i in 1 2 3 4 5 6 7 8 9 10; do cat "$f" > /dev/null; done
C
    towline rm -f steady > "$bench/steady.log" 2>&1
    no_file_system plain
}

bench_image() {
    image=$1
    prepare || { echo "$image: not measured: its start could not be recorded"; return; }
    local run form limit needed warm eager f=$bench/figures/$image base=$opt
    start_link 0 0
    physical_limit
    drop_store lazy
    towline images pull --plain-http "$link/$image:$base" > "$bench/pull.log" 2>&1
    local steadiness
    steadiness=$(steady)
    start_link "$RATE" "$RTT"
    limit=$(calc "$needed * 8 / ($RATE * 1e6) + 3 * $RTT / 1000 + $warm" 3)
    for run in $(seq "$RUNS"); do
        sample containerd containerd_start
        sample podman podman_start
        for form in opt esgz gzip zstd indexed; do sample "$form" towline_start "$form"; done
    done
    local costs crowded=
    sample costs towline_start opt
    costs=$(daemon_costs)
    [ "$CROWD" = 0 ] || crowded=$(crowd)
    eager=$(median < "$f/containerd.s")
    {
        printf '%s: needed %s MB, warm start %.2f s, limit %.2f s\n' "$image" "$(mb "$needed")" "$warm" "$limit"
        row 'containerd, pull and run (gzip)' "$f/containerd.s" "$f/containerd.b"
        row 'podman run (gzip)' "$f/podman.s" "$f/podman.b"
        row 'towline, optimized' "$f/opt.s" "$f/opt.b"
        row 'towline, eStargz' "$f/esgz.s" "$f/esgz.b"
        row 'towline, plain gzip' "$f/gzip.s" "$f/gzip.b"
        row 'towline, zstd:chunked as built' "$f/zstd.s" "$f/zstd.b"
        row 'towline, gzip with a pushed index' "$f/indexed.s" "$f/indexed.b"
        peers
        printf '  %s\n' "$costs"
        [ -z "$crowded" ] || printf '  %s\n' "$crowded"
        sed 's/^/  /' <<< "$steadiness"
        echo
    } | tee -a "$report"
}

# Published by nobody, measured once on such images: seconds at 100 Mbit/s of containerd, the best lazy puller, stargz.
peers() {
    local best
    case $image in
        redis) best='1.21 6.8' ;; nginx) best='1.31 6.9' ;; node) best='4.3 16.8' ;;
        python) best='5.2 17.9' ;; java) best='4.6 22.4' ;; postgres) best='4.4 19.1' ;; *) return ;;
    esac
    read -r best full <<< "$best"
    [ "$RATE" = 100 ] && [ -n "$eager" ] || return 0
    printf '  best lazy peer is %s x containerd: %.2f s here; towline optimized is %s x that\n' "$(calc "$best / $full")" \
        "$(calc "$best / $full * ${eager:-0}")" "$(calc "$(median < "$bench/figures/$image/opt.s") / ($best / $full * ${eager:-1})")"
}

line() { # what a plain download gets of the rate
    local begin digest
    image=${images[0]}
    has_tag gzip "$image" || die "image $image is not in $work/registry: make bench-images-$image"
    digest=$(jq -r '.layers | max_by(.size).digest' "$bench/tag")
    begin=$(now)
    local size
    size=$(curl -sSf -o "$bench/blob" -w '%{size_download}' "http://$link/v2/$image/blobs/$digest")
    calc "$size * 8 / ($(now) - $begin) / ($RATE * 1e6)"
    rm -f "$bench/blob"
}

start_registry
start_link "$RATE" "$RTT"
{
    echo "First useful output from an empty store, $RATE Mbit/s, $RTT ms round trip, medians of $RUNS ($(date -u +%F), $(nproc) cores, Linux $(uname -r))"
    echo "line: $(line) of the rate for one download; load $(cut -d' ' -f1-3 /proc/loadavg)"
    echo
} | tee "$report"
for image in "${images[@]}"; do bench_image "$image"; done
echo "the report is $report"
