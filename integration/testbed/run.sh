#!/bin/bash
# Runs one command in the test machine (README.md here): run.sh [option...] -- command [argument...]
#   --systemd          with systemd as process 1 and D-Bus; without: the command is all there is
#   --deadline SECONDS default 120
#   --memory MIB       default 2048
#   --cpus COUNT       default 2
#   --kernel ARGUMENTS more kernel arguments, such as systemd.unified_cgroup_hierarchy=0
#   --console          show the kernel's messages too
# The command sees this host's files at their places, and the caller's directory and PATH. Its writes are thrown away. Its output
# comes on standard output when it has ended, and its exit status is this script's; 124: deadline, 125: the machine failed three times.
set -euo pipefail
here=$(dirname "$(readlink -f "$0")")
made=${TOWLINE_WORK:=/var/tmp/towline-demo}/testbed
systemd='' deadline=120 memory=2048 cpus=2 kernel='' console=''
fail() { echo "testbed: $*" >&2; exit 125; }

while [ $# -gt 0 ]; do
    case $1 in
        --systemd) systemd=1; shift ;;
        --console) console=1; shift ;;
        --deadline) deadline=$2; shift 2 ;;
        --memory) memory=$2; shift 2 ;;
        --cpus) cpus=$2; shift 2 ;;
        --kernel) kernel=$2; shift 2 ;;
        --) shift; break ;;
        *) fail "unknown option $1; usage is in the head of $0" ;;
    esac
done
[ $# -gt 0 ] || fail "no command given; usage is in the head of $0"
for file in vmlinux initrd.cpio systemd.erofs; do
    [ -e "$made/$file" ] || fail "$made/$file is missing: make testbed"
done
[ "$(id -u)" = 0 ] || fail "sharing / with the machine needs root"
command -v qemu-system-x86_64 >/dev/null || fail "qemu-system-x86_64 is missing: make deps"

scratch=$(mktemp -d)
share='' machine='' ended='' status=''
cleanup() {
    local pid
    for pid in $machine $share; do kill "$pid" 2>/dev/null || true; done
    wait
    rm -rf "$scratch"
}
trap cleanup EXIT
trap 'exit 130' INT TERM

install -d "$scratch/job"
printf '%q ' "$@" >"$scratch/job/command"
printf 'export PATH=%q HOME=/root TERM=dumb TOWLINE_WORK=%q\n' "$PATH" "$TOWLINE_WORK" >"$scratch/job/environment"
pwd >"$scratch/job/directory"
echo "$made/modules/$(ls "$made/modules")" >"$scratch/job/modules"
[ -z "$systemd" ] || echo "$made/systemd.erofs" >"$scratch/job/systemd"
(cd "$scratch" && find job | cpio -o -H newc --quiet -R 0:0) >"$scratch/job.cpio"
cat "$made/initrd.cpio" "$scratch/job.cpio" >"$scratch/initrd"

socket=$scratch/share.sock
# Two programs of one name: QEMU's own until 8.0, and the one in Rust.
if [ -x /usr/libexec/virtiofsd ]; then
    virtiofsd=(/usr/libexec/virtiofsd "--socket-path=$socket" --shared-dir=/ --cache=always --sandbox=chroot)
elif [ -x /usr/lib/qemu/virtiofsd ]; then
    virtiofsd=(/usr/lib/qemu/virtiofsd "--socket-path=$socket" -o source=/ -o cache=always -o sandbox=chroot)
else
    fail "virtiofsd is missing: make deps"
fi

# Emulated timers are too slow to calibrate against on a busy host, and a 6.12 kernel can hang in it: tell it the clock.
clock=$(awk '/^bogomips/ { printf "tsc_early_khz=%d lpj=%d", $3 * 500, $3 * 2000; exit }' /proc/cpuinfo)
arguments="console=ttyS0 reboot=t panic=-1 tsc=reliable no_timer_check $clock ${console:+loglevel=7} ${console:-quiet} $kernel"
qemu=(qemu-system-x86_64 -M microvm,pcie=on,rtc=on -accel tcg,thread=multi,tb-size=512 -cpu max,la57=off
    -smp "$cpus" -m "$memory" -object "memory-backend-memfd,id=memory,size=${memory}M,share=on" -machine memory-backend=memory
    -kernel "$made/vmlinux" -initrd "$scratch/initrd" -append "$arguments"
    -nodefaults -no-user-config -display none -no-reboot -serial "file:$scratch/console"
    -chardev "socket,id=share,path=$socket" -device vhost-user-fs-pci,chardev=share,tag=shared,queue-size=1024
    -device virtio-serial-pci
    -chardev "file,id=out,path=$scratch/out" -device virtserialport,chardev=out,name=testbed.out
    -chardev "file,id=status,path=$scratch/status" -device virtserialport,chardev=status,name=testbed.status)

# Runs the machine until it ends; sets ended, and status if the command has ended.
boot() {
    rm -f "$socket" "$scratch/out" "$scratch/status" "$scratch/console"
    # The death signal, so that nothing is left when this script is killed.
    setpriv --pdeathsig KILL "${virtiofsd[@]}" >"$scratch/share.log" 2>&1 &
    share=$!
    for _ in $(seq 500); do [ ! -S "$socket" ] || break; sleep 0.02; done
    [ -S "$socket" ] || { cat "$scratch/share.log" >&2; fail "virtiofsd made no socket within 10 s"; }
    ended=0
    setpriv --pdeathsig TERM timeout --kill-after 2 "$deadline" "${qemu[@]}" 2>"$scratch/qemu.log" &
    machine=$!
    wait "$machine" || ended=$?
    machine=
    kill "$share" 2>/dev/null || true
    wait "$share" || true
    share=
    status=$(cat "$scratch/status" 2>/dev/null || true)
}

# QEMU's emulation of several processors loses a race with a kernel that patches its own code (static keys, as the first limit of
# processor time flips one): seldom, the kernel panics. That says nothing about the command, which starts afresh.
for try in 1 2 3; do
    boot
    [ -z "$status" ] && [ "$ended" != 124 ] && [ "$try" != 3 ] || break
    echo "testbed: the machine ended (status $ended) before the command did; once more" >&2
    tail -n 30 "$scratch/console" >&2 || true
done
[ ! -e "$scratch/out" ] || cat "$scratch/out"
[ -z "$console" ] || cat "$scratch/console" >&2
[ -z "$status" ] || exit "$status"
cat "$scratch/qemu.log" >&2
tail -n 30 "$scratch/console" >&2 || true
[ "$ended" != 124 ] || { echo "testbed: the command did not end within $deadline s" >&2; exit 124; }
fail "the machine ended (status $ended) before the command did; above is the end of its console"
