#!/bin/sh
# /init of the test of errors=stop: writes more to the disk than the host has room for at first.
export PATH=/bin
mount -t devtmpfs none /dev
exec >/dev/console 2>&1 </dev/console
mount -t proc none /proc
mount -t sysfs none /sys
mount -t tmpfs none /tmp
for round in 1 2 3 4; do
    for module in /modules/*.ko; do
        [ -e "$module" ] && insmod "$module" 2>/dev/null
    done
done

part() { # NAME STATUS
    if [ "$2" -eq 0 ]; then echo "part $1: ok"; else echo "part $1: FAILED"; fi
}

disk=$(ls /dev/vda /dev/nvme0n1 2>/dev/null)
dd if=/dev/urandom of=/tmp/data bs=1M count=8 2>/dev/null
dd if=/tmp/data of="$disk" bs=64k conv=fsync 2>/dev/null
part written $?
echo 3 >/proc/sys/vm/drop_caches
dd if="$disk" bs=64k count=128 2>/dev/null | cmp - /tmp/data
part read $?
! dmesg | grep -i 'i/o error\|timeout\|abort'
part quiet $?
echo "part end: ok"
poweroff -f
