# Sourced by benches of lazy starts, with their arguments: what they share.
#
#   begin_bench SCRIPT ARGUMENTS...   a mount and process namespace of its own, $work, $bench (empty), one bench at a time
#   start_registry, start_link        $registry, and $link: the same at $RATE megabits a second and $RTT milliseconds
#   measure COMMAND...                $seconds until `READY ...` came, $got bytes over the link by then; $why where it did not come
#   file_system, no_file_system NAME  a new one in a file, mounted at $bench/stores/NAME; ends what is mounted below
#   optimized IMAGE                   $form: the tag of what `make bench-lazy` has made of it by `images optimize`
# shellcheck shell=bash

die() { echo "towline: bench: $*" >&2; exit 1; }
now() { echo "${EPOCHREALTIME/,/.}"; }
calc() { awk "BEGIN { printf \"%.${2:-2}f\", $1 }"; }
median() { sort -n | awk '{ v[NR] = $1 } END { if (NR) print v[int((NR + 1) / 2)] }'; }
mb() { calc "$1 / 1e6" 1; }

begin_bench() {
    [ "$(id -u)" = 0 ] || die "it mounts and starts containers: run it as root"
    [ $$ = 1 ] || exec unshare --mount --pid --fork --mount-proc --propagation private --kill-child bash "$@"
    work=${TOWLINE_WORK:-/var/tmp/towline-demo}/bench
    bench=$work/run
    mkdir -p "$work/reports"
    exec 9> "$work/bench.lock"
    flock -n 9 || die "another one runs in $work"
    umask 022
    rm -rf "$bench"
    mkdir -p "$bench/bin" "$bench/stores" "$bench/figures"
    trap clean_up EXIT
    trap 'exit 130' INT
    trap 'exit 143' TERM
    # What peers remember of registries is not for these.
    mkdir -p /var/lib/containers
    mount -t tmpfs containers /var/lib/containers
}

# A bench says itself what has to go before that.
leave() { :; }

clean_up() {
    trap '' INT TERM
    leave
    disown -a
    [ $$ != 1 ] || kill -KILL -1 2> "$bench/kill.log"
    unmount_below "$bench/"
    rm -rf "$bench"
}

unmount_below() { # PATH...: what begins with one of them
    local mount path
    for path in "$@"; do
        while read -r mount; do umount -l "$mount"; done < <(findmnt -rno TARGET | awk -v p="$path" 'index($0, p) == 1' | tac)
    done
}

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

start_link() { # RATE RTT
    [ -z "${link_pid:-}" ] || { kill "$link_pid"; wait "$link_pid" 2> "$bench/kill.log"; exec 6>&- 5<&-; }
    rm -f "$bench"/link.{in,out}
    mkfifo "$bench/link.in" "$bench/link.out"
    link-proxy 127.0.0.1:0 "$registry" "$1" "$2" < "$bench/link.in" > "$bench/link.out" &
    link_pid=$!
    exec 6> "$bench/link.in" 5< "$bench/link.out"
    read -r -t 10 link <&5 || die "link-proxy did not start"
}
received() { echo >&6; read -r -t 10 bytes <&5 && echo "$bytes"; }

MANIFEST_TYPE='Accept: application/vnd.oci.image.manifest.v1+json'

has_tag() { # TAG REPOSITORY: its manifest, in $bench/tag
    curl -sSf -o "$bench/tag" -H "$MANIFEST_TYPE" "http://$registry/v2/$2/manifests/$1" 2> "$bench/curl.log"
}

# Forms that `make bench-lazy` makes are named after what they are made of, so that an image that was built anew gets new ones.
optimized() { # IMAGE
    has_tag zstd "$1" || die "there is no $1:zstd in $work/registry: make bench-images-$1"
    form=packed1-$(sha256sum < "$bench/tag" | cut -c1-12)
    has_tag "$form" "$1" || die "there is no $1:$form in $work/registry: make bench-lazy IMAGES=$1"
}

# --- one start

measure() { # COMMAND...
    local begin before line
    sync
    before=$(received) begin=$(now) seconds=
    while IFS= read -r -t 300 line; do
        case $line in READY*) [ -n "$seconds" ] || { seconds=$(calc "$(now) - $begin" 3); got=$(($(received) - before)); } ;; esac
    done < <(timeout 300 "$@" 2> "$bench/stderr")
    [ -n "$seconds" ] || { why=$(tail -n 1 "$bench/stderr" | cut -c1-160); return 1; }
}

# --- a file system of its own for each store: in one where files were just removed, ext4 searches long for inodes that it may take again

use_store() { # NAME
    export TOWLINE_ROOT=$bench/stores/$1/root TOWLINE_STATE=$bench/stores/$1/state
    mkdir -p "$TOWLINE_ROOT" "$TOWLINE_STATE"
}

file_system() { # NAME [READAHEAD]
    local file=$bench/$1.ext4 device
    rm -f "$file"
    truncate -s 16G "$file"
    mkfs.ext4 -q -F -E lazy_itable_init=1,lazy_journal_init=1 "$file"
    device=$(losetup --find --show --direct-io=on "$file")
    [ -z "${2:-}" ] || blockdev --setra "$2" "$device"
    mkdir -p "$bench/stores/$1"
    mount "$device" "$bench/stores/$1"
    losetup -d "$device" # when it is unmounted
}

no_file_system() { # NAME
    unmount_below "$bench/stores/$1"
    rm -f "$bench/$1.ext4"
}

end_programs() { # ends towline's of the store in use
    local pid
    for pid in $(grep -lz "TOWLINE_ROOT=$TOWLINE_ROOT" /proc/[0-9]*/environ 2> "$bench/grep.log" | cut -d/ -f3); do
        [ "$pid" = $$ ] || case $(cat "/proc/$pid/comm" 2> "$bench/comm.log") in towline*) kill -KILL "$pid" ;; esac
    done
    sleep 0.2
}
