#!/bin/bash
# busybox, our probe, and one of everything that a merged tree has to get right: hard links, what the next layer whites
# out, xattrs, a device, a fifo, setuid, odd names, an empty and a large file. Made without any network.
set -euo pipefail
mkdir -p bin etc tmp root proc sys dev data/{many,opaque,dir/sub}
chmod 1777 tmp

cp /bin/busybox bin/busybox
for applet in $(bin/busybox --list); do
    [ "$applet" = busybox ] || ln -s busybox "bin/$applet"
done
cp "$PROBE" bin/probe
printf 'root:x:0:0:root:/root:/bin/sh\nuser:x:1000:1000:user:/tmp:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/sh\n' > etc/passwd
printf 'root:x:0:\nuser:x:1000:\nextra:x:2000:user\nnogroup:x:65534:\n' > etc/group
printf 'ID=towline-small\n' > etc/os-release

cd data
printf 'linked\n' > link-a
ln link-a link-b
ln link-a dir/sub/link-c
ln -s link-a symlink
printf 'removed by the next layer\n' > removed
printf 'old\n' > opaque/old
printf 'first\n' > changed
: > empty
printf 'noted\n' > noted
setfattr -n user.note -v kept noted
printf 'capable\n' > capable
setfattr -n security.capability -v 0sAQAAAgAgAAAAAAAAAAAAAAAAAAA= capable # cap_net_raw=ep
mknod null c 1 3
mkfifo fifo
cp "$PROBE" setuid
chmod 4755 setuid
printf 'owned\n' > owned
chown 1000:2000 owned
chmod 0640 owned
printf 'odd\n' > "$(printf 'café \n name')"
"$PROBE" noise 1 $((8 << 20)) > large
for i in $(seq 200); do "$PROBE" noise $((i + 10)) $((8000 + i)) > many/$i; done
for i in $(seq 40); do "$PROBE" noise $((i + 500)) 300000 > dir/$i; done
