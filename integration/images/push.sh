#!/bin/bash
# Builds one image from its recipe and pushes it to the registry storage in the work directory, once with gzip layers and
# once as zstd:chunked; and proves that what arrived is what was meant. Part of build.sh, which prepares the namespaces, TMPDIR
# and PROBE.
#
# usage: push.sh RECIPE_DIR
set -euo pipefail

if [ "${TOWLINE_PUSH_INSIDE:-}" != 1 ]; then
    # The registry gets a network namespace of its own: port 5000 is free in it, whatever runs on the host.
    : > "$TMPDIR/netns"
    unshare --net="$TMPDIR/netns" ip link set lo up
    TOWLINE_PUSH_INSIDE=1 exec bash "$0" "$@"
fi

recipe=$1
name=$(basename "$recipe")
storage=$TMPDIR/buildah-$name
epoch=1700000000
buildah=(buildah --root "$storage/root" --runroot "$storage/run" --storage-driver overlay)
in_net=(nsenter --net="$TMPDIR/netns")
registry=http://localhost:5000/v2
oci_manifest='Accept: application/vnd.oci.image.manifest.v1+json'
get() { "${in_net[@]}" curl -sSf "$@"; }

start_registry() {
    printf '%s\n' 'version: 0.1' 'log: {level: warn}' "storage: {filesystem: {rootdirectory: $TOWLINE_WORK/registry}}" \
        'http: {addr: "localhost:5000"}' > "$TMPDIR/registry.yml"
    "${in_net[@]}" docker-registry serve "$TMPDIR/registry.yml" > "$TMPDIR/registry.log" 2>&1 &
    registry_pid=$!
    trap 'kill $registry_pid; umount "$TMPDIR/netns"' EXIT
    for _ in $(seq 100); do
        ! get -o "$TMPDIR/ping" $registry/ 2> "$TMPDIR/ping.log" || return 0
        sleep 0.1
    done
    echo "docker-registry did not answer within 10 s:" >&2
    cat "$TMPDIR/registry.log" >&2
    return 1
}

build_layers() { # one image layer a script; whiteouts and opaque directories are those that overlayfs makes
    local container from=scratch layer config
    read -ra config < "$recipe/config"
    for layer in "$recipe"/[0-9]-*.sh; do
        echo "--- $layer"
        container=$("${buildah[@]}" from --pull-never "$from")
        (cd "$("${buildah[@]}" mount "$container")" && bash "$layer")
        "${buildah[@]}" umount "$container"
        "${buildah[@]}" config "${config[@]}" "$container"
        "${buildah[@]}" commit --quiet --rm --timestamp $epoch --format oci "$container" "localhost/$name"
        from=localhost/$name
    done
}

push() { # TAG COMPRESSION; prints the manifest
    rm -rf /var/lib/containers/cache # else buildah takes the registry's blobs of the other compression for these
    "${in_net[@]}" "${buildah[@]}" push --quiet --tls-verify=false --format oci --compression-format "$2" \
        "localhost/$name" "docker://localhost:5000/$name:$1"
    get -H "$oci_manifest" "$registry/$name/manifests/$1"
}

# Each layer must have the media type and, unpacked, the diffID that the configuration names; zstd:chunked also needs its
# table of contents. (Debian 12's buildah calls the annotations io.containers.*, later ones io.github.containers.*.)
verify() { # MANIFEST MEDIA_TYPE UNPACKER...
    local manifest=$1 type=$2 digest diff_id actual i=0
    shift 2
    jq -e --arg type "$type" 'all(.layers[]; .mediaType == $type)' <<< "$manifest" > "$TMPDIR/ok" ||
        { echo "$name: not every layer is $type: $manifest" >&2; return 1; }
    [[ $type != *zstd ]] || jq -e 'all(.layers[]; .annotations // {} | keys | any(endswith(".zstd-chunked.manifest-position")))' \
        <<< "$manifest" > "$TMPDIR/ok" || { echo "$name: a layer has no zstd:chunked annotations: $manifest" >&2; return 1; }
    get "$registry/$name/blobs/$(jq -r .config.digest <<< "$manifest")" > "$TMPDIR/config.json"
    while read -r digest; do
        diff_id=$(jq -r ".rootfs.diff_ids[$i]" "$TMPDIR/config.json")
        actual=sha256:$(get "$registry/$name/blobs/$digest" | "$@" | sha256sum | cut -d' ' -f1)
        [ "$actual" = "$diff_id" ] || { echo "$name: layer $digest unpacks to $actual, its diffID is $diff_id" >&2; return 1; }
        i=$((i + 1))
    done < <(jq -r '.layers[].digest' <<< "$manifest")
}

# The image of both manifests as an OCI layout, blobs hard-linked with the registry's.
write_layout() { # GZIP_MANIFEST ZSTD_MANIFEST
    local layout=$TMPDIR/layout tag manifest digest index='[]'
    mkdir -p "$layout/blobs/sha256"
    printf '{"imageLayoutVersion":"1.0.0"}\n' > "$layout/oci-layout"
    for tag in gzip zstd; do
        manifest=$1
        shift
        printf '%s' "$manifest" > "$layout/manifest"
        digest=$(sha256sum "$layout/manifest" | cut -d' ' -f1)
        mv "$layout/manifest" "$layout/blobs/sha256/$digest"
        index=$(jq -c --arg tag $tag --arg digest "sha256:$digest" --argjson size "$(stat -c %s "$layout/blobs/sha256/$digest")" \
            '. + [{mediaType: "application/vnd.oci.image.manifest.v1+json", digest: $digest, size: $size,
                   annotations: {"org.opencontainers.image.ref.name": $tag}}]' <<< "$index")
        for digest in $(jq -r '.config.digest, .layers[].digest | ltrimstr("sha256:")' <<< "$manifest"); do
            ln -f "$TOWLINE_WORK/registry/docker/registry/v2/blobs/sha256/${digest:0:2}/$digest/data" "$layout/blobs/sha256/$digest"
        done
    done
    jq -n --argjson manifests "$index" '{schemaVersion: 2, manifests: $manifests}' > "$layout/index.json"
    rm -rf "$TOWLINE_WORK/oci/$name"
    mv "$layout" "$TOWLINE_WORK/oci/$name"
}

start_registry
build_layers
zstd=$(push zstd zstd:chunked)
verify "$zstd" application/vnd.oci.image.layer.v1.tar+zstd zstd -dcq
gzip=$(push gzip gzip)
verify "$gzip" application/vnd.oci.image.layer.v1.tar+gzip gzip -dcq
write_layout "$gzip" "$zstd"
"${buildah[@]}" rmi --all --force > "$TMPDIR/rmi.log"
