#!/bin/bash
# `make bench-containerd`: time from the command to the workload's first useful output (`READY ...`) through containerd with towlined's
# snapshotter and our shim, beside `towline run`, over the same link.
#
# usage: bench.sh BIN_DIR TOWLINE_OCI IMAGE...      (needs root, containerd, and the forms that `make bench-lazy` leaves in its registry)
#   RATE=100   megabits a second      RTT=10   milliseconds      RUNS=5      EAGER=1   0 leaves out what pulls everything first
#
# containerd as a kubelet uses it: the pod is there, then PullImage, CreateContainer and StartContainer; the first output is what the log has.
# In each run, one after the other, each in a file system of its own:
#   eager     containerd as it comes (overlayfs, its own shim, runc), the gzip image
#   cached    the same once more in another pod's container, when the image is there
#   lazy      containerd with towlined and our shim, everything empty
#   local     the same where the store has all of the image already: what containerd itself takes, with its own questions to the registry
#   towline   towline run, from an empty store; and once more when all is local
set -uo pipefail
# shellcheck source=integration/bench/common.sh
source "$(dirname "$(realpath "$0")")/../common.sh"
begin_bench "$0" "$@"

bin=$1 oci=$2
shift 2
RATE=${RATE:-100} RTT=${RTT:-10} RUNS=${RUNS:-5} EAGER=${EAGER:-1}
cp "$bin"/{towline,towlined,link-proxy,bench-cri} "$oci" "$(dirname "$oci")/containerd-shim-towline-v2" "$bench/bin/"
export PATH=$bench/bin:$PATH TOWLINE_LOG=${TOWLINE_LOG:-info}
report=$work/reports/containerd-$RATE.txt

leave() {
    [ -z "${pod:-}" ] || stop_containerd
    find /sys/fs/cgroup -depth -type d -path '*/towline-bench*' -exec rmdir {} + 2> "$bench/rmdir.log"
}

# A pod needs an image of its own; any program that stays does.
make_pause() {
    local dir=$bench/pause
    mkdir -p "$dir/root/bin"
    cp /bin/busybox "$dir/root/bin/sleep"
    tar -C "$dir/root" -cf "$dir/layer.tar" .
    printf '{"architecture":"%s","os":"linux","config":{"Cmd":["/bin/sleep","1000000"]},"rootfs":{"type":"layers","diff_ids":["sha256:%s"]}}' \
        "$(dpkg --print-architecture)" "$(sha256sum < "$dir/layer.tar" | cut -d' ' -f1)" > "$dir/config.json"
    echo '[{"Config":"config.json","RepoTags":["localhost/pause:1"],"Layers":["layer.tar"]}]' > "$dir/manifest.json"
    tar -C "$dir" -cf "$bench/pause.tar" config.json manifest.json layer.tar
}

start_containerd() { # overlayfs|towline: in the store that is in use, with a pod
    local c=$store config=$store/config.toml snapshotter=$1 runtime='runtime_type = "io.containerd.runc.v2"' proxy=
    rm -rf "$bench/c" && mkdir -p "$bench/c" "$c/logs" # sockets have short paths
    socket=$bench/c/sock
    if [ "$snapshotter" = towline ]; then
        runtime='runtime_type = "io.containerd.towline.v2"'
        proxy="[proxy_plugins.towline]
type = \"snapshot\"
address = \"$bench/c/snap\""
        towlined serve --snapshotter "$bench/c/snap" --containerd "$socket" > "$c/towlined.log" 2>&1 &
        daemons=($!)
        await test -S "$bench/c/snap"
    else
        daemons=()
    fi
    cat > "$config" << C
version = 2
root = "$c/containerd"
state = "$bench/c/state"
temp = "$c/temp"
disabled_plugins = ["io.containerd.internal.v1.opt", "io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.zfs", "io.containerd.snapshotter.v1.aufs"]
[grpc]
address = "$socket"
$proxy
[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "localhost/pause:1"
stream_server_address = "127.0.0.1"
stream_server_port = "0"
[plugins."io.containerd.grpc.v1.cri".cni]
conf_dir = "$c/cni"
[plugins."io.containerd.grpc.v1.cri".containerd]
snapshotter = "$snapshotter"
disable_snapshot_annotations = false
default_runtime_name = "bench"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.bench]
$runtime
C
    containerd --config "$config" > "$c/containerd.log" 2>&1 &
    daemons+=($!)
    await ctr --address "$socket" version
    ctr --address "$socket" -n k8s.io images import --snapshotter "$snapshotter" "$bench/pause.tar" > "$c/import.log" 2>&1 ||
        die "importing an image for pods: $(tail -n 1 "$c/import.log")"
    pod=
    for _ in $(seq 100); do # the CRI hears of an image a moment later
        pod=$(bench-cri "$socket" "$c/logs" pod 2> "$c/pod.log") && break
        sleep 0.1
    done
    [ -n "$pod" ] || die "no pod: $(tail -n 3 "$c/pod.log") $(tail -n 3 "$c/containerd.log")"
    sleep 1 # until what that has begun is over
}

await() { # COMMAND...
    for _ in $(seq 200); do
        "$@" > "$bench/await.log" 2>&1 && return
        sleep 0.05
    done
    die "waited in vain: $*: $(tail -n 3 "$store"/*.log)"
}

stop_containerd() {
    bench-cri "$socket" "$store/logs" end "$pod" > "$bench/end.log" 2>&1 || echo "    the pod did not end: $(tail -n 1 "$bench/end.log")" >&2
    pod=
    [ -z "${KEEP_LOGS:-}" ] || { mkdir -p "$KEEP_LOGS/$(basename "$store")"; cp "$store"/*.log "$KEEP_LOGS/$(basename "$store")/"; }
    kill "${daemons[@]}"
    wait "${daemons[@]}" 2> "$bench/kill.log"
    unmount_below "$bench/c"
}

new_store() { # NAME
    store=$bench/stores/$1
    file_system "$1"
    use_store "$1"
}

no_store() {
    end_programs
    no_file_system "$(basename "$store")"
}

sample() { # NAME COMMAND...
    local name=$1
    shift
    if measure "$@"; then
        echo "$seconds" >> "$figures/$name"
        echo "    $image $name: $seconds s, $(mb "$got") MB   $(grep '^pulled' "$bench/stderr")" >&2
        sed -n 's/^pulled \([0-9.]*\) .*/\1/p' "$bench/stderr" >> "$figures/$name.pulled"
    else
        echo "    $image $name: not measured: $why" >&2
    fi
}

by_containerd() { # NAME FORM
    sample "$1" bench-cri "$socket" "$store/logs" start "$pod" "$link/$image:$2"
}

whole() { # until all of the image is in the store
    towline images pull --plain-http "$link/$image:$form" > "$bench/pull.log" 2>&1 || die "pulling $image: $(tail -n 1 "$bench/pull.log")"
}

one_run() {
    if [ "$EAGER" != 0 ]; then
        new_store eager
        start_containerd overlayfs
        by_containerd eager gzip
        by_containerd cached gzip
        stop_containerd
        no_store
    fi
    new_store lazy
    start_containerd towline
    by_containerd lazy "$form"
    stop_containerd
    no_store

    new_store towline
    sample towline towline run --rm --plain-http "$link/$image:$form"
    whole
    sample towline-local towline run --rm --plain-http "$link/$image:$form"
    end_programs
    start_containerd towline
    by_containerd local "$form"
    stop_containerd
    no_store
}

bench_image() {
    local image=$1 figures=$bench/figures/$1 name
    mkdir -p "$figures"
    optimized "$image"
    for _ in $(seq "$RUNS"); do one_run; done
    local -A s
    for name in eager cached lazy lazy.pulled local local.pulled towline towline-local; do
        s[$name]=''
        [ ! -e "$figures/$name" ] || s[$name]=$(median < "$figures/$name" 2> "$bench/median.log")
    done
    [ -n "${s[lazy]}" ] && [ -n "${s[local]}" ] && [ -n "${s[towline]}" ] && [ -n "${s[towline-local]}" ] ||
        { echo "$image: not measured"; return; }
    echo "$image: seconds to the first output"
    [ -z "${s[eager]}" ] || echo "  containerd, overlayfs and runc     ${s[eager]}; with the image there ${s[cached]}"
    printf '%s\n' \
        "  containerd, towlined and our shim  ${s[lazy]}, of which PullImage ${s[lazy.pulled]}   $(calc "${s[lazy]} / ${s[towline]}") x towline run" \
        "  towline run                        ${s[towline]}" \
        "  all local: containerd ${s[local]}, of which PullImage ${s[local.pulled]}; towline run ${s[towline-local]}" ""
}

command -v containerd > "$bench/command.log" || die "there is no containerd"
make_pause
start_registry
start_link "$RATE" "$RTT"
{
    echo "First output, $RATE Mbit/s, $RTT ms round trip, medians of $RUNS ($(date -u +%F), $(nproc) cores, load $(cut -d' ' -f1-3 /proc/loadavg))"
    containerd --version
    echo
    for image in "$@"; do bench_image "$image"; done
} | tee "$report"
echo "the report is $report"
