#!/bin/bash
# Builds the images of the demo and the tests into the work directory (TOWLINE_WORK, default /var/tmp/towline-demo):
#
#   registry/            storage of a docker-registry: {small,odd,python}:{gzip,zstd}
#   oci/<image>/         the same as OCI layouts; blobs are hard links, so never write to one in place
#   stamps/<image>       recipe hash of what is complete: the next run has nothing to do
#
# usage: [TOWLINE_RECIPES=DIR] build.sh [IMAGE...]      (default: small odd python; needs root)
#
# An image's recipe is the directory of its name beside this file, or in TOWLINE_RECIPES: `N-<layer>.sh` runs with the layer's root as its
# working directory, `config` has words for `buildah config`. A killed run leaves no mount and no process (all of it is in
# namespaces of its own) and no stamp, so the next run does it again.
set -euo pipefail
here=$(dirname "$(readlink -f "$0")")
export TOWLINE_WORK=${TOWLINE_WORK:-/var/tmp/towline-demo}
recipes=$(readlink -f "${TOWLINE_RECIPES:-$here}")
images=("$@")
[ ${#images[@]} != 0 ] || images=(small odd python)

recipe_hash() { # IMAGE
    cat "$here"/{push.sh,probe.c} "$recipes/$1"/* | sha256sum | cut -d' ' -f1
}

for image in "${images[@]}"; do
    [ -f "$recipes/$image/config" ] || { echo "towline: no recipe for image '$image' in $recipes" >&2; exit 1; }
done

missing() {
    local image
    for image in "${images[@]}"; do
        [ "$(cat "$TOWLINE_WORK/stamps/$image" 2>/dev/null)" = "$(recipe_hash "$image")" ] || echo "$image"
    done
}

build() { # IMAGE; runs inside the namespaces
    local log=$TOWLINE_WORK/$1.log
    echo "building image $1 in $TOWLINE_WORK"
    rm -f "$TOWLINE_WORK/stamps/$1"
    bash "$here/push.sh" "$recipes/$1" > "$log" 2>&1 || {
        tail -n 20 "$log" >&2
        echo "towline: building image $1 failed: the whole log is $log" >&2
        exit 1
    }
    recipe_hash "$1" > "$TOWLINE_WORK/tmp/stamp"
    mv "$TOWLINE_WORK/tmp/stamp" "$TOWLINE_WORK/stamps/$1"
}

if [ "${TOWLINE_IMAGES_INSIDE:-}" = 1 ]; then
    trap 'exit 130' INT TERM # as pid 1 of the namespace we get no default action
    mkdir -p /var/lib/containers
    mount -t tmpfs containers /var/lib/containers # buildah's memory of registries is not for these
    rm -rf "$TOWLINE_WORK/tmp"
    mkdir -p "$TOWLINE_WORK"/{tmp,stamps,registry,oci}
    export TMPDIR=$TOWLINE_WORK/tmp PROBE=$TOWLINE_WORK/tmp/probe
    cc -static -O1 -Wall -Werror -o "$PROBE" "$here/probe.c"
    for image in $(missing); do build "$image"; done
    rm -rf "$TOWLINE_WORK/tmp"
    exit 0
fi

[ "$(id -u)" = 0 ] || { echo "towline: building images needs root (debootstrap, device nodes): run it as root" >&2; exit 1; }
case $TOWLINE_WORK in *[[:space:]]*) echo "towline: TOWLINE_WORK must not contain white space: '$TOWLINE_WORK'" >&2; exit 1 ;; esac
mkdir -p "$TOWLINE_WORK"
[ -n "$(missing)" ] || exit 0
exec 9> "$TOWLINE_WORK/lock"
flock -n 9 || { echo "waiting for another image build in $TOWLINE_WORK"; flock -w 3000 9; }
TOWLINE_IMAGES_INSIDE=1 unshare --mount --pid --fork --mount-proc --propagation private --kill-child \
    bash "$here/build.sh" "${images[@]}"
