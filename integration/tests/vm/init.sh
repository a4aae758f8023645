#!/bin/busybox sh
# Says what a guest has, one fact a line, and powers off; with "panic-now" on the command line its kernel panics instead,
# and with "echo-now" it echoes what comes to port 1024.
export PATH=/bin
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
while read -r module; do
    insmod "/modules/$module" || echo "insmod $module failed"
done </modules/order
case $(cat /proc/cmdline) in
*panic-now*) echo c >/proc/sysrq-trigger ;;
esac
case $(cat /proc/cmdline) in
*echo-now*) echo-vsock 1024 && poweroff -f ;;
esac
echo "vcpus $(nproc)"
echo "memory $(awk '/MemTotal/ { print int($2 / 1024) }' /proc/meminfo)"
for device in /sys/bus/pci/devices/*; do
    echo "pci $(cat "$device/vendor") $(cat "$device/device")"
done
for disk in vda vdb; do
    echo "$disk $(md5sum </dev/$disk | cut -d' ' -f1)"
done
# One disk may be written, the other not.
for disk in vda vdb; do
    dd if=/modules/order of=/dev/$disk bs=512 seek=1 count=1 conv=fsync 2>/dev/null && echo "$disk written" || echo "$disk refused"
done
mount -t erofs -o ro,dax=always /dev/pmem0 /mnt && echo "pmem $(md5sum </mnt/file | cut -d' ' -f1)"
# What is written behind the file system's back goes nowhere, whatever the guest believes.
dd if=/dev/zero of=/dev/pmem0 bs=4096 count=1 conv=fsync 2>/dev/null
echo "random $(dd if=/dev/hwrng bs=32 count=1 2>/dev/null | md5sum | cut -d' ' -f1)"
poweroff -f
