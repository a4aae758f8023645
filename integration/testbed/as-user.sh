#!/bin/bash
# In the test machine (README.md here): as-user.sh command [argument...] runs the command as an unprivileged user (tester, 1000,
# with 65536 subordinate ids) in a cgroup that is delegated to that user, as on a host where that user has logged in.
# With systemd (`run.sh --systemd`): a service of the user's own systemd, whose sockets are in XDG_RUNTIME_DIR=/run/user/1000.
# Without: /sys/fs/cgroup/tester belongs to the user, with all controllers, and the command is in the leaf below it.
set -euo pipefail
[ -n "${TESTBED:-}" ] || { echo "as-user.sh changes users and cgroups: it runs only in the test machine (run.sh)" >&2; exit 125; }
[ $# -gt 0 ] || { echo "usage: as-user.sh command [argument...]" >&2; exit 125; }

# Whoever has these ids on the host is not in the machine.
sed -i -e '/^tester:/d' -e '/^[^:]*:[^:]*:1000:/d' /etc/passwd /etc/group
sed -i '/^tester:/d' /etc/shadow
echo 'tester:x:1000:1000::/home/tester:/bin/bash' >>/etc/passwd
echo 'tester:x:1000:' >>/etc/group
echo 'tester:*:20000:0:99999:7:::' >>/etc/shadow # without it PAM refuses the session
for file in /etc/subuid /etc/subgid; do echo 'tester:200000:65536' >"$file"; done
install -d -m 0700 -o 1000 -g 1000 /home/tester
install -d -m 0755 /run/user

be_tester=(setpriv --reuid 1000 --regid 1000 --clear-groups env -i "PATH=$PATH" TESTBED=1 TERM=dumb HOME=/home/tester USER=tester
    XDG_RUNTIME_DIR=/run/user/1000)
if [ -e /run/systemd/system ]; then
    # All controllers: Debian delegates cpu, memory and pids alone.
    install -d /run/systemd/system/user@.service.d
    printf '[Service]\nDelegate=yes\n' >/run/systemd/system/user@.service.d/delegate.conf
    systemctl daemon-reload
    systemctl start user@1000.service || { systemctl status --no-pager --lines 50 user@1000.service user-runtime-dir@1000.service >&2; exit 125; }
    exec "${be_tester[@]}" DBUS_SESSION_BUS_ADDRESS=unix:path=/run/user/1000/bus \
        systemd-run --user --quiet --wait --pipe --collect --same-dir --property=Delegate=yes --setenv=PATH --setenv=TESTBED "$@"
fi
install -d -m 0700 -o 1000 -g 1000 /run/user/1000
cgroup=/sys/fs/cgroup/tester
mkdir "$cgroup" "$cgroup/session"
for controller in $(cat "$cgroup/cgroup.controllers"); do echo "+$controller" >"$cgroup/cgroup.subtree_control"; done
for dir in "$cgroup" "$cgroup/session"; do chown 1000:1000 "$dir" "$dir"/cgroup.{procs,threads,subtree_control}; done
echo $$ >"$cgroup/session/cgroup.procs"
exec "${be_tester[@]}" "$@"
