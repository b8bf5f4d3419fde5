#!/bin/sh
# /init of tests/boot/power-tests: listens to the power button, as logind would.
export PATH=/bin HOME=/root TERM=linux
mount -t devtmpfs none /dev
exec >/dev/console 2>&1 </dev/console
mount -t proc none /proc
mount -t sysfs none /sys
grep -q doppel_deaf /proc/cmdline || { insmod /lib/evdev.ko && insmod /lib/button.ko; }
for event in /dev/input/event*; do
    { head -c 24 "$event" >/dev/null && echo "pressed" && poweroff -f; } &
done
echo "up $(cat /proc/sys/kernel/random/boot_id)"
while read -r line; do
    echo "got $line"
done
wait
