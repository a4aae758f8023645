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

[ "$(id -u)" = 0 ] || { echo "towline: the bench mounts and starts containers: run it as root" >&2; exit 1; }
if [ $$ != 1 ]; then
    exec unshare --mount --pid --fork --mount-proc --propagation private --kill-child bash "$0" "$@"
fi
bin=$1 oci=$2
shift 2
RATE=${RATE:-100} RTT=${RTT:-10} RUNS=${RUNS:-5}
work=${TOWLINE_WORK:-/var/tmp/towline-demo}/bench
bench=$work/run
mkdir -p "$work/reports"
exec 9> "$work/bench.lock"
flock -n 9 || { echo "towline: another bench runs in $work" >&2; exit 1; }
umask 022
rm -rf "$bench"
mkdir -p "$bench/bin" "$bench/stores" "$bench/figures"
cp "$bin"/{towline,towlined,link-proxy} "$oci" "$bench/bin/"
export PATH=$bench/bin:$PATH
report=$work/reports/podman-$RATE.txt
# podman's cleanup process refuses a runroot of more than 50 characters.
runroot=/run/towline-bench
export CONTAINERS_CONF=$bench/containers.conf CONTAINERS_REGISTRIES_CONF=$bench/registries.conf
printf '%s\n' '[containers]' 'default_ulimits = ["nofile=1024:1024", "nproc=1024:1024"]' 'log_driver = "k8s-file"' \
    '[engine]' 'cgroup_manager = "cgroupfs"' 'events_logger = "file"' > "$CONTAINERS_CONF"

clean_up() {
    trap '' INT TERM
    disown -a
    kill -KILL -1 2> "$bench/kill.log"
    while read -r mount; do umount -l "$mount"; done < <(findmnt -rno TARGET | grep -F -e "$bench/" -e "$runroot" | tac)
    rm -rf "$bench" "$runroot"
}
trap clean_up EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

die() { echo "towline: bench: $*" >&2; exit 1; }
now() { echo "${EPOCHREALTIME/,/.}"; }
calc() { awk "BEGIN { printf \"%.${2:-2}f\", $1 }"; }
median() { sort -n | awk '{ v[NR] = $1 } END { if (NR) print v[int((NR + 1) / 2)] }'; }

# --- registry and link

start_registry() {
    printf '%s\n' 'version: 0.1' 'log: {level: info, accesslog: {disabled: true}}' \
        "storage: {filesystem: {rootdirectory: $work/registry}}" 'http: {addr: "127.0.0.1:0"}' > "$bench/registry.yml"
    docker-registry serve "$bench/registry.yml" > "$bench/registry.log" 2>&1 &
    for _ in $(seq 200); do
        registry=$(grep -oE 'listening on 127.0.0.1:[0-9]+' "$bench/registry.log" | grep -oE '[0-9.]+:[0-9]+')
        [ -z "$registry" ] || return 0
        sleep 0.05
    done
    die "docker-registry did not start: $(tail -n 5 "$bench/registry.log")"
}

start_link() { # $link is its address
    mkfifo "$bench/link.in" "$bench/link.out"
    link-proxy 127.0.0.1:0 "$registry" "$RATE" "$RTT" < "$bench/link.in" > "$bench/link.out" &
    exec 6> "$bench/link.in" 5< "$bench/link.out"
    read -r -t 10 link <&5 || die "link-proxy did not start"
    printf '[[registry]]\nlocation = "%s"\ninsecure = true\n' "$link" > "$CONTAINERS_REGISTRIES_CONF"
}
received() { echo >&6; read -r -t 10 bytes <&5 && echo "$bytes"; }

# --- one start

measure() { # NAME COMMAND...: seconds to READY, and bytes by then
    local name=$1 line seconds='' begin before
    shift
    sync
    before=$(received) begin=$(now)
    while IFS= read -r -t 300 line; do
        case $line in READY*) [ -n "$seconds" ] || { seconds=$(calc "$(now) - $begin" 3); got=$(($(received) - before)); } ;; esac
    done < <(timeout 300 "$@" 2> "$bench/stderr")
    if [ -z "$seconds" ]; then
        echo "    $image $name: not measured: $(tail -n 1 "$bench/stderr" | cut -c1-160)" >&2
        return 1
    fi
    echo "$seconds" >> "$figures/$name"
    echo "    $image $name: $seconds s, $(calc "$got / 1e6" 1) MB" >&2
}

new_store() { # NAME [LAYER STORE]: a file system of its own, and podman's configuration
    store=$bench/stores/$1
    truncate -s 16G "$store.ext4"
    mkfs.ext4 -q -F -E lazy_itable_init=1,lazy_journal_init=1 "$store.ext4"
    mkdir -p "$store" "$runroot"
    mount -o loop "$store.ext4" "$store"
    mount -t tmpfs runroot "$runroot"
    export TOWLINE_ROOT=$store/root TOWLINE_STATE=$store/state CONTAINERS_STORAGE_CONF=$store/storage.conf
    mkdir "$TOWLINE_ROOT" "$TOWLINE_STATE"
    printf '[storage]\ndriver = "overlay"\ngraphroot = "%s/graph"\nrunroot = "%s/run"\n' "$store" "$runroot" > "$CONTAINERS_STORAGE_CONF"
    [ -z "${2:-}" ] || printf '[storage.options]\nadditionallayerstores = ["%s/layers:ref"]\n' "$TOWLINE_ROOT" >> "$CONTAINERS_STORAGE_CONF"
}

no_store() { # ends what uses it
    local pid
    for pid in $(grep -lz "TOWLINE_ROOT=$TOWLINE_ROOT" /proc/[0-9]*/environ 2> "$bench/grep.log" | cut -d/ -f3); do
        [ "$pid" = $$ ] || case $(cat "/proc/$pid/comm" 2> "$bench/comm.log") in towline*) kill -KILL "$pid" ;; esac
    done
    sleep 0.2
    while read -r mount; do umount -l "$mount"; done < <(findmnt -rno TARGET | grep -F -e "$store" -e "$runroot" | tac)
    rm -f "$store.ext4"
}

run_podman() { # NAME FORM
    measure "$1" podman --runtime "$bench/bin/towline-oci" --tmpdir "$runroot/tmp" run --rm --network none "$link/$image:$2"
}

whole() { # until all of the image is local
    towline images pull --plain-http "$link/$image:$form" > "$bench/pull.log" 2>&1 || die "pulling $image: $(tail -n 1 "$bench/pull.log")"
}

bench_image() {
    local image=$1 figures=$bench/figures/$1 form built name
    mkdir -p "$figures"
    built=$(curl -sSf -H 'Accept: application/vnd.oci.image.manifest.v1+json' "http://$registry/v2/$image/manifests/zstd" | sha256sum | cut -c1-12)
    form=packed1-$built
    curl -sSf -o "$bench/manifest" -H 'Accept: application/vnd.oci.image.manifest.v1+json' "http://$registry/v2/$image/manifests/$form" ||
        die "there is no $image:$form in $work/registry: make bench-lazy IMAGES=$image"
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
        measure towline towline run --rm --plain-http "$link/$image:$form"
        whole
        measure local towline run --rm --plain-http "$link/$image:$form"
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
# What podman remembers of registries is not for this.
mkdir -p /var/lib/containers
mount -t tmpfs containers /var/lib/containers
start_registry
start_link
{
    echo "First output, $RATE Mbit/s, $RTT ms round trip, medians of $RUNS ($(date -u +%F), $(nproc) cores, load $(cut -d' ' -f1-3 /proc/loadavg))"
    podman --version
    echo
    for image in "$@"; do bench_image "$image"; done
} | tee "$report"
echo "the report is $report"
