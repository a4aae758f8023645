#!/bin/bash
# `make demo`: a python image of several hundred MB from a registry behind a 100 Mbit/s, 10 ms link, started lazily
# on an empty store; then the same on another empty store, pulling everything first. Leaves nothing behind but the images.
#
# usage: demo.sh BIN_DIR TOWLINE_OCI      (BIN_DIR has towline, towlined and link-proxy; needs root)
#
# All of it runs in mount and pid namespaces of its own: whatever ends this script ends the daemon, the containers, the
# registry and the mounts.
set -euo pipefail

[ "$(id -u)" = 0 ] || { echo "towline: the demo mounts and starts containers: run 'make demo' as root" >&2; exit 1; }
if [ $$ != 1 ]; then
    exec unshare --mount --pid --fork --mount-proc --propagation private --kill-child bash "$0" "$@"
fi

bin=$1 oci=$2
work=${TOWLINE_WORK:-/var/tmp/towline-demo}
megabits=100 round_trip_ms=10
exec 9> "$work/demo.lock"
flock -n 9 || { echo "towline: another demo runs in $work: wait for it, or set TOWLINE_WORK" >&2; exit 1; }
demo=$work/demo
rm -rf "$demo"
mkdir -p "$demo/bin"
cp "$bin"/{towline,towlined,link-proxy} "$oci" "$demo/bin/"
export PATH=$demo/bin:$PATH

use_store() { # NAME
    export TOWLINE_ROOT=$demo/$1/root TOWLINE_STATE=$demo/$1/state
    mkdir -p "$TOWLINE_ROOT" "$TOWLINE_STATE"
}

clean_up() {
    trap '' INT TERM
    local store container
    for store in lazy full; do # containers first: their cgroups are the only thing that outlives our namespaces
        use_store $store
        for container in $(timeout 10 towline ps -a --format json 2> "$demo/ps.log" | jq -r '.[].id // empty' 2>> "$demo/ps.log"); do
            timeout 20 towline rm -f "$container" > "$demo/rm.log" 2>&1 || cat "$demo/rm.log" >&2
        done
    done
    # Everything else in our pid namespace: the daemon must not write any more when its store is removed.
    disown -a # else bash tells of each
    [ $$ != 1 ] || kill -KILL -1 2> "$demo/kill.log" || true
    # Nothing below the store may be mounted when it is removed.
    while read -r mount; do umount -l "$mount" || true; done < <(findmnt -rno TARGET | grep -F "$demo/" | tac)
    rm -rf "$demo"
}
trap clean_up EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

wait_for_line() { # FILE PATTERN: the first match
    local found
    for _ in $(seq 200); do
        found=$(grep -oE -m1 "$2" "$1" || true)
        [ -z "$found" ] || { echo "$found"; return; }
        sleep 0.05
    done
    echo "demo: no line '$2' within 10 s in:" >&2
    cat "$1" >&2
    return 1
}

start_registry() { # a registry on a free port, and the link before it on port 5000; sets $registry
    printf '%s\n' 'version: 0.1' 'log: {level: info, accesslog: {disabled: true}}' 'http: {addr: "127.0.0.1:0", secret: demo}' \
        "storage: {filesystem: {rootdirectory: $work/registry}, maintenance: {readonly: {enabled: true}}}" > "$demo/registry.yml"
    docker-registry serve "$demo/registry.yml" > "$demo/registry.log" 2>&1 9>&- &
    local upstream port=5000
    upstream=$(wait_for_line "$demo/registry.log" 'listening on [0-9.:]+')
    if [ -n "$(ss -Hltn "sport = :$port")" ]; then
        port=0
        echo "port 5000 is taken: the registry gets a free one"
    fi
    link-proxy "127.0.0.1:$port" "${upstream#listening on }" $megabits $round_trip_ms > "$demo/link.log" 2>&1 9>&- &
    registry=localhost:$(wait_for_line "$demo/link.log" '^127.0.0.1:[0-9]+$' | cut -d: -f2)
}

since() { # START: seconds
    awk -v a="$1" -v b="$EPOCHREALTIME" 'BEGIN { printf "%.2f", b - a }'
}

# In the background, since bash handles Ctrl-C at once only while it waits.
interruptible() {
    "$@" &
    wait $!
}

with_first_output() { # START TOWLINE_RUN_OPTIONS...
    local start=$1
    shift
    towline run --rm "$@" "$image" python3 -c 'import sqlite3, json, ssl; print("hello")' |
        { IFS= read -r line && since "$start" > "$demo/first" && echo "$line" && cat; }
}

# Runs the program, shows its output, and leaves the seconds from START to its first line in $first_output.
run_program() { # START TOWLINE_RUN_OPTIONS...
    interruptible with_first_output "$@"
    first_output=$(cat "$demo/first")
}

start_registry
image=$registry/python:zstd
size=$(curl -sSf -H 'Accept: application/vnd.oci.image.manifest.v1+json' "http://$registry/v2/python/manifests/zstd" |
    jq '[.layers[].size] | add / 1e6 | floor')
echo
echo "Image $image: $size MB compressed, behind a link of $megabits Mbit/s with a round trip of $round_trip_ms ms."

echo
echo "--- towline run, on an empty store"
use_store lazy
run_program "$EPOCHREALTIME" --timeline
lazy=$first_output

echo
echo "--- towline images pull, then run, on another empty store"
use_store full
start=$EPOCHREALTIME
interruptible towline images pull "$image"
pulled=$(since "$start")
run_program "$start"
full=$first_output

echo
echo "Time to the first output of the program:"
printf '  %-28s %8s s\n' 'started while pulling' "$lazy" 'everything pulled first' "$full"
awk -v lazy="$lazy" -v full="$full" -v pulled="$pulled" \
    'BEGIN { printf "  %.1f times sooner (the pull alone took %s s)\n\n", full / lazy, pulled }'
