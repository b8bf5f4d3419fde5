#!/bin/sh
# /init of the boot tests: uses the system as programs do, prints one line for each part, and
# switches the machine off. The test compares the lines.
export PATH=/bin HOME=/root
mount -t devtmpfs none /dev
exec >/dev/console 2>&1 </dev/console
mount -t proc none /proc
mount -t sysfs none /sys
mount -t tmpfs none /tmp

expect() { # NAME WANTED FOUND
    if [ "$2" = "$3" ]; then
        echo "part $1: ok"
    else
        echo "part $1: FAILED: wanted '$2', found '$3'"
    fi
}

argument() { # NAME: what the kernel's command line says
    sed -n "s/.*$1=\([0-9]*\).*/\1/p" /proc/cmdline
}

expect processors "$(argument doppel_cpus)" \
    "$(grep -c ^processor /proc/cpuinfo)"

sum=0
for i in $(seq 1 20); do
    sum=$((sum + $(sh -c "echo $i")))
done
expect processes 210 $sum

expect pipes "$(seq 1 5000 | sort -rn | head -n 1)" 5000
expect checksum 72d4ff27a28afbc066d5804999d5a504 "$(seq 1 10000 | md5sum | cut -d ' ' -f 1)"

got=none
trap 'got=usr1' USR1
kill -USR1 $$
expect signals usr1 $got
sleep 100 &
kill -TERM $!
wait $!
expect killed 143 $?

mkfifo /tmp/fifo
(echo through >/tmp/fifo) &
read -r line </tmp/fifo
expect fifo through "$line"

dd if=/dev/urandom of=/tmp/random bs=64k count=16 2>/dev/null
cp /tmp/random /tmp/copy
expect files "$(md5sum </tmp/random)" "$(md5sum </tmp/copy)"

expect proc init "$(sed -n 's/^Name:[^a-z]*//p' /proc/1/status)"
expect clocksource yes "$(grep -q -e kvm-clock -e tsc \
    /sys/devices/system/clocksource/clocksource0/current_clocksource && echo yes)"

before=$(cut -d . -f 1 /proc/uptime)
sleep 1
after=$(cut -d . -f 1 /proc/uptime)
took=$((after - before)) # with two programs started, which takes a slow engine seconds
expect sleep yes "$([ $took -ge 1 ] && [ $took -le "$(argument doppel_sleep)" ] && echo yes)"

exercise # threads, floating point, signals with context, shared memory: one line each

echo "part end: ok"
poweroff -f
