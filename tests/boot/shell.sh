#!/bin/sh
# /init of `./dev run`: a shell on the console.
export PATH=/bin HOME=/root TERM=linux
mount -t devtmpfs none /dev
exec >/dev/console 2>&1 </dev/console
mount -t proc none /proc
mount -t sysfs none /sys
hostname doppel
echo
echo "This is $(uname -sr) with $(grep -c ^processor /proc/cpuinfo) CPU(s), up after" \
    "$(cut -d ' ' -f 1 /proc/uptime) s. 'poweroff -f' ends it, and so does Ctrl-a x."
cd /root || exit 1
while :; do
    setsid cttyhack sh -l
done
