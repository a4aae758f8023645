#!/bin/sh
# Puts towline on the node whose root is mounted on /host, or takes it away (TOWLINE_MODE=uninstall); then stays, as a DaemonSet's pod
# has to. With "once" as its argument it ends instead. Doing it again changes nothing and restarts nothing.
set -eu

source=${TOWLINE_SOURCE:-/installer/bin}
host=${TOWLINE_HOST:-/host}
mode=${TOWLINE_MODE:-install}
bin=/usr/local/bin
record=/var/lib/towline/installed-containerd.json
ready=${TOWLINE_READY:-/tmp/done}
# Files of hosts.toml by registry (HOST or HOST_PORT_), where the chart has some.
hosts=${TOWLINE_HOSTS:-/installer/hosts}
certs=$host/etc/containerd/certs.d
listed=$host/var/lib/towline/installed-hosts

# In the node's own namespaces, by its first process.
on_node() { nsenter --target 1 --mount --uts --ipc --net --pid -- "$@"; }

# What containerd and systemd have to read again when it changes.
state() {
    for file in "$host"/etc/containerd/config.toml "$host"/etc/containerd/conf.d/towline.toml \
        "$host"/etc/systemd/system/towlined.service "$host$bin"/towlined; do
        [ ! -e "$file" ] || sha256sum "$file"
    done
}

remove_hosts() {
    [ -e "$listed" ] || return 0
    while read -r name; do
        rm -f "$certs/$name/hosts.toml"
        # Certificates of the node's own may be beside it.
        rmdir "$certs/$name" 2>/dev/null || :
    done < "$listed"
    rm "$listed"
}

# containerd and towlined read them anew for each pull. What the node has already is its own.
write_hosts() {
    remove_hosts
    mkdir -p "${listed%/*}"
    for file in "$hosts"/*; do
        [ -f "$file" ] || continue
        name=${file##*/}
        if [ -e "$certs/$name/hosts.toml" ]; then
            echo "towline: /etc/containerd/certs.d/$name/hosts.toml is the node's own and stays" >&2
            continue
        fi
        echo "$name" >> "$listed"
        mkdir -p "$certs/$name"
        cp "$file" "$certs/$name/.hosts.toml.new"
        mv "$certs/$name/.hosts.toml.new" "$certs/$name/hosts.toml"
    done
}

install() {
    mkdir -p "$host$bin"
    for binary in towline towlined towline-oci containerd-shim-towline-v2; do
        [ -e "$source/$binary" ] || { echo "towline: $source/$binary is missing in the installer's image: see contrib/k8s/README.md" >&2; exit 1; }
        cmp -s "$source/$binary" "$host$bin/$binary" && continue
        # A running program cannot be written to, but its name can be given to another file.
        cp "$source/$binary" "$host$bin/.$binary.new"
        chmod 0755 "$host$bin/.$binary.new"
        mv "$host$bin/.$binary.new" "$host$bin/$binary"
    done
    # The configuration follows what config.toml has by now.
    [ ! -e "$host$record" ] || on_node "$bin/towline" system install containerd --undo
    on_node "$bin/towline" system install containerd
    write_hosts
}

uninstall() {
    remove_hosts
    [ ! -e "$host$record" ] || on_node "$bin/towline" system install containerd --undo
}

before=$(state)
case $mode in
    install) install ;;
    uninstall) uninstall ;;
    *) echo "towline: TOWLINE_MODE=$mode: install or uninstall" >&2; exit 1 ;;
esac
if [ "$before" != "$(state)" ]; then
    on_node systemctl daemon-reload
    if [ "$mode" = install ]; then
        on_node systemctl enable towlined
        on_node systemctl restart towlined
    else
        on_node systemctl stop towlined
    fi
    on_node systemctl restart containerd
fi
# Last: containers that still run need them until here.
if [ "$mode" = uninstall ]; then
    for binary in towline towlined towline-oci containerd-shim-towline-v2; do rm -f "$host$bin/$binary"; done
fi
: > "$ready"
echo "towline: $mode is done"
[ "${1:-}" = once ] || exec sleep infinity
