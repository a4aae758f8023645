#!/bin/busybox sh
# First process of the test machine (README.md here): puts the host's root, read-only, under a tmpfs, switches into it, runs
# /job/command there, reports its status, and powers off. With /job/systemd the command is run by systemd as process 1.
# /job comes with each start as a second archive behind the initrd: command, directory, environment, [systemd], [release].
b=/bin/busybox
export PATH=/bin
$b --install -s /bin
say() { echo "testbed: $*" >/dev/kmsg; }
die() { say "$*"; reboot -f; }

mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
while read -r module; do insmod "/modules/$module" || die "insmod $module failed"; done </modules/order

mount -t virtiofs -o ro shared /shared || die "mounting the host's root failed"
mount -t tmpfs -o size=75% over /over
mkdir /over/upper /over/work
lower=/shared
if [ -e /job/systemd ]; then
    mount -t erofs -o ro "/shared$(cat /job/systemd)" /units || die "mounting systemd.erofs failed"
    lower=/units:/shared
fi
mount -t overlay -o "lowerdir=$lower,upperdir=/over/upper,workdir=/over/work" root /root || die "mounting the overlay failed"

for name in proc sys dev; do mount --move "/$name" "/root/$name"; done
cd /root || die "no root"
mkdir -p run dev/shm dev/pts dev/mqueue lib/modules/"$(uname -r)"
mount -t tmpfs -o mode=755 run run
mount -t tmpfs -o mode=1777 shm dev/shm
mount -t tmpfs -o mode=1777 tmp tmp
mount -t devpts -o gid=5,mode=620,ptmxmode=666 devpts dev/pts
mount -t mqueue mqueue dev/mqueue
mount --bind "/shared$(cat /job/modules)" "lib/modules/$(uname -r)" || say "no modules"
ip link set lo up
hostname testbed

# The ports by name: out for the command's output, status for its exit status.
port() {
    for entry in sys/class/virtio-ports/*; do
        [ "$(cat "$entry/name")" = "$1" ] && echo "/dev/${entry##*/}"
    done
}
out=$(port testbed.out) status=$(port testbed.status)
[ -n "$out" ] && [ -n "$status" ] || die "no virtio ports"

mkdir -p run/testbed
cp /job/command /job/environment run/testbed/
cp $b run/testbed/busybox
cat >run/testbed/main <<END
#!/run/testbed/busybox sh
. /run/testbed/environment
export TESTBED=1
cd '$(cat /job/directory)' 2>/dev/null || cd /
/bin/bash /run/testbed/command </dev/null >$out 2>&1
echo \$? >$status
/run/testbed/busybox reboot -f
END
chmod 755 run/testbed/main

if [ ! -e /job/systemd ]; then
    mkdir -p sys/fs/cgroup
    mount -t cgroup2 cgroup2 sys/fs/cgroup
    for controller in $(cat sys/fs/cgroup/cgroup.controllers); do echo "+$controller" >sys/fs/cgroup/cgroup.subtree_control; done
    # switch_root and not chroot: a process in a chroot may not make user namespaces.
    exec switch_root /root /run/testbed/main
fi

# The mark of a host that is a container itself: systemd would take itself for one in it, and not read the kernel's arguments.
rm -f .dockerenv
# What the packages' maintainer scripts would have made.
grep -q '^messagebus:' etc/passwd || echo 'messagebus:x:990:990::/nonexistent:/usr/sbin/nologin' >>etc/passwd
grep -q '^messagebus:' etc/group || echo 'messagebus:x:990:' >>etc/group
grep -q '^systemd-journal:' etc/group || echo 'systemd-journal:x:991:' >>etc/group
echo 0123456789abcdef0123456789abcdef >etc/machine-id
# The host's own services have no business here: only what is named below is started.
mkdir -p /over/none
mount --bind /over/none etc/systemd/system 2>/dev/null
mkdir -p run/systemd/system
cat >run/systemd/system/testbed.target <<END
[Unit]
Description=The test machine's command
Requires=dbus.socket testbed.service
END
cat >run/systemd/system/testbed.service <<END
[Unit]
Description=The test machine's command
Requires=dbus.socket
After=dbus.socket systemd-logind.service
[Service]
Type=exec
ExecStart=/run/testbed/main
Delegate=yes
KillMode=process
StandardOutput=null
TasksMax=infinity
END
for unit in systemd-udevd.service systemd-journald.service systemd-journald.socket systemd-journald-dev-log.socket \
    systemd-journal-flush.service systemd-random-seed.service systemd-hwdb-update.service systemd-firstboot.service \
    systemd-sysusers.service systemd-tmpfiles-setup.service systemd-tmpfiles-setup-dev.service systemd-update-utmp.service \
    systemd-binfmt.service systemd-modules-load.service systemd-sysctl.service systemd-remount-fs.service \
    systemd-machine-id-commit.service systemd-timesyncd.service modprobe@.service local-fs.target swap.target \
    dev-hugepages.mount sys-kernel-debug.mount sys-kernel-tracing.mount timers.target paths.target; do
    ln -sf /dev/null "run/systemd/system/$unit"
done
exec switch_root /root /lib/systemd/systemd --unit=testbed.target
