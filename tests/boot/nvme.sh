#!/bin/sh
# The first program on the root file system of the NVMe test, which the kernel itself has mounted.
export PATH=/bin
mount -t devtmpfs none /dev 2>/dev/null # if the kernel has not done it
exec >/dev/console 2>&1 </dev/console
mount -t proc none /proc
mount -t sysfs none /sys

part() { # NAME STATUS
    if [ "$2" -eq 0 ]; then echo "part $1: ok"; else echo "part $1: FAILED"; fi
}

grep -q '^/dev/root / ext4 rw\|^/dev/nvme0n1 / ext4 rw' /proc/mounts
part root $?
[ "$(grep -c 'nvme0q[1-9]' /proc/interrupts)" = "$(nproc)" ]
part queues $?
if [ ! -e /sums ]; then
    dd if=/dev/urandom of=/seed bs=1M count=4 2>/dev/null
    i=0
    while [ $i -lt 24 ]; do
        echo "block $i"
        cat /seed
        i=$((i + 1))
    done >/big
    part written $?
    md5sum /big /seed >/sums
    sync
    part synced $?
    dd if=/dev/zero of=/gone bs=1M count=32 2>/dev/null && rm /gone && sync && fstrim /
    part trimmed $?
else
    md5sum -c /sums
    part checksum $?
    # All queues at once, past the page cache.
    for i in 0 1 2 3; do
        dd if=/dev/nvme0n1 of=/dev/null bs=64k skip=$((i * 100)) count=100 iflag=direct 2>/dev/null &
    done
    wait
    part direct $?
fi
mount -o remount,ro /
part readonly $?
dmesg | grep -i 'nvme.*\(error\|timeout\|abort\|reset\)'
[ $? -eq 1 ]
part quiet $?
echo "part end: ok"
poweroff -f
