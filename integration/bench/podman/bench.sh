#!/bin/bash
# `make bench-podman`: time from the command to the workload's first useful output (`READY ...`) of podman with the layer store, beside
# `towline run` and podman without it, over the same link.
#
# usage: bench.sh BIN_DIR TOWLINE_OCI IMAGE...      (needs root, podman, and the forms that `make bench-lazy` leaves in its registry)
#   RATE=100   megabits a second      RTT=10   milliseconds      RUNS=5
#
# In each run, one after the other, each in a file system of its own:
#   eager     podman run, pulls all of the gzip image first
#   plain     the same once more, with the image in podman's own storage
#   podman    podman run with the layer store, from an empty storage and an empty store
#   complete  the same once more, when all of the image is local: what podman itself takes
#   towline   towline run, from an empty store; and once more when all is local
# podman's own share is what `complete` takes longer than the same of towline. Nothing is asserted: this reports.
set -uo pipefail

# shellcheck source=integration/bench/common.sh
source "$(dirname "$(realpath "$0")")/../common.sh"
begin_bench "$0" "$@"

bin=$1 oci=$2
shift 2
RATE=${RATE:-100} RTT=${RTT:-10} RUNS=${RUNS:-5}
cp "$bin"/{towline,towlined,link-proxy} "$oci" "$bench/bin/"
export PATH=$bench/bin:$PATH
report=$work/reports/podman-$RATE.txt
# podman's cleanup process refuses a runroot of more than 50 characters.
runroot=/run/towline-bench
export CONTAINERS_CONF=$bench/containers.conf CONTAINERS_REGISTRIES_CONF=$bench/registries.conf
printf '%s\n' '[containers]' 'default_ulimits = ["nofile=1024:1024", "nproc=1024:1024"]' 'log_driver = "k8s-file"' \
    '[engine]' 'cgroup_manager = "cgroupfs"' 'events_logger = "file"' > "$CONTAINERS_CONF"

leave() {
    unmount_below "$runroot"
    rm -rf "$runroot"
}

# --- one start

sample() { # NAME COMMAND...
    local name=$1
    shift
    measure "$@" || { echo "    $image $name: not measured: $why" >&2; return; }
    echo "$seconds" >> "$figures/$name"
    echo "    $image $name: $seconds s, $(mb "$got") MB" >&2
}

new_store() { # NAME [LAYER STORE]: a file system of its own, and podman's configuration
    store=$bench/stores/$1
    file_system "$1"
    mkdir -p "$runroot"
    mount -t tmpfs runroot "$runroot"
    use_store "$1"
    export CONTAINERS_STORAGE_CONF=$store/storage.conf
    printf '[storage]\ndriver = "overlay"\ngraphroot = "%s/graph"\nrunroot = "%s/run"\n' "$store" "$runroot" > "$CONTAINERS_STORAGE_CONF"
    [ -z "${2:-}" ] || printf '[storage.options]\nadditionallayerstores = ["%s/layers:ref"]\n' "$TOWLINE_ROOT" >> "$CONTAINERS_STORAGE_CONF"
}

no_store() { # ends what uses it
    end_programs
    unmount_below "$runroot"
    no_file_system "$(basename "$store")"
}

run_podman() { # NAME FORM
    sample "$1" podman --runtime "$bench/bin/towline-oci" --tmpdir "$runroot/tmp" run --rm --network none "$link/$image:$2"
}

whole() { # until all of the image is local
    towline images pull --plain-http "$link/$image:$form" > "$bench/pull.log" 2>&1 || die "pulling $image: $(tail -n 1 "$bench/pull.log")"
}

bench_image() {
    local image=$1 figures=$bench/figures/$1 name
    mkdir -p "$figures"
    optimized "$image"
    for _ in $(seq "$RUNS"); do
        new_store eager
        run_podman eager gzip
        run_podman plain gzip
        no_store
        new_store podman with
        towline system layers --background > "$bench/layers.log" 2>&1 || die "no layer store: $(tail -n 1 "$bench/layers.log")"
        run_podman podman "$form"
        whole
        run_podman complete "$form"
        no_store
        new_store towline
        sample towline towline run --rm --plain-http "$link/$image:$form"
        whole
        sample local towline run --rm --plain-http "$link/$image:$form"
        no_store
    done
    for name in eager plain podman complete towline local; do
        printf -v "$name" %s "$(median < "$figures/$name" 2> "$bench/median.log")"
        [ -n "${!name}" ] || { echo "$image: not measured: no start of '$name' said READY"; return; }
    done
    printf '%s\n' "$image: seconds to the first output" \
        "  podman, all pulled first   $eager" \
        "  podman, layer store        $podman   $(calc "$podman / $eager") x all pulled first, $(calc "$podman / $towline") x towline run" \
        "  towline run                $towline   $(calc "$towline / $eager") x podman, all pulled first" \
        "  complete: podman $complete (its own storage $plain), towline $local; podman's own share $(calc "$complete - $local" 3)" \
        "  podman with the layer store, without its own share: $(calc "($podman - ($complete - $local)) / $towline") x towline run" ""
}

command -v podman > "$bench/command.log" || die "there is no podman"
start_registry
start_link "$RATE" "$RTT"
printf '[[registry]]\nlocation = "%s"\ninsecure = true\n' "$link" > "$CONTAINERS_REGISTRIES_CONF"
{
    echo "First output, $RATE Mbit/s, $RTT ms round trip, medians of $RUNS ($(date -u +%F), $(nproc) cores, load $(cut -d' ' -f1-3 /proc/loadavg))"
    podman --version
    echo
    for image in "$@"; do bench_image "$image"; done
} | tee "$report"
echo "the report is $report"
