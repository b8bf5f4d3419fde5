#!/bin/sh
# /init of the idle test: tells the time, does nothing for a while, tells the time again. Several
# times each, because a line may wait for its turn on a busy host.
export PATH=/bin
mount -t devtmpfs none /dev
exec >/dev/console 2>&1 </dev/console
mount -t proc none /proc
tell() {
    for i in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20; do
        echo "$1 $(cut -d ' ' -f 1 /proc/uptime)"
        sleep 0.1
    done
}
sleep 1
tell begin
sleep 1
echo "idle 0"
sleep 20
echo "busy 0"
tell end
poweroff -f
