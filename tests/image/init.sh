#!/bin/sh
# /init of tests/image/disk-tests: says what this machine is, writes to its disk, and is off.
export PATH=/bin
mount -t devtmpfs none /dev
exec >/dev/console 2>&1 </dev/console
mount -t proc none /proc
# In no particular order: again until nothing more goes in.
for round in 1 2 3 4; do
    for module in /modules/*.ko; do
        [ -e "$module" ] && insmod "$module" 2>/dev/null
    done
done
echo "booted with: $(cat /proc/cmdline)"
echo "initrd: $(cat /which)"
read -r first </dev/vdb && echo "seed: $first"
while read -r word value; do
    [ "$word" != end ] || break
    echo "told: $word $value"
done </dev/vdb
dd if=/dev/vda of=/count bs=512 skip=8 count=1 2>/dev/null
echo "count: $(tr -d '\0' </count)"
{ tr -d '\0' </count; printf x; } >/more
dd if=/more of=/dev/vda bs=512 seek=8 conv=fsync 2>/dev/null
echo "end: ok"
poweroff -f
