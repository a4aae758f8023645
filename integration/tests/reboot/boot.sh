# The first process of a machine: gives it /run, /var/lib and /etc of its own, and takes orphans.
# DISK is what stays from boot to boot, BIN has the binaries under test.
set -e
mount --make-rprivate /
mount --make-rshared /
mount --bind "$BIN" "$DISK/bin"
for dir in etc var/lib; do mount --bind "$DISK/$dir" "/$dir"; done
for dir in run dev/shm; do mount -t tmpfs -o mode=0755 tmpfs "/$dir"; done
mkdir /run/lock
mount --bind "$DISK/boot_id" /proc/sys/kernel/random/boot_id
ip link set lo up
echo booted
# bash reaps whatever ends here.
while :; do sleep 1000 & wait $!; done
