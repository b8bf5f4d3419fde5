#!/bin/sh
# /init of the disk tests; doppel_disk=WHAT on the kernel's command line chooses what is done.
export PATH=/bin
mount -t devtmpfs none /dev
exec >/dev/console 2>&1 </dev/console
mount -t proc none /proc
mount -t sysfs none /sys
mount -t tmpfs none /tmp

# In no particular order: again until nothing more goes in.
for round in 1 2 3 4; do
    for module in /modules/*.ko; do
        [ -e "$module" ] && insmod "$module" 2>/dev/null
    done
done

part() { # NAME STATUS
    if [ "$2" -eq 0 ]; then echo "part $1: ok"; else echo "part $1: FAILED"; fi
}

case $(sed -n 's/.*doppel_disk=\([a-z]*\).*/\1/p' /proc/cmdline) in
write)
    /root/mke2fs -q -t ext4 /dev/vda && mount -t ext4 /dev/vda /mnt
    part made $?
    dd if=/dev/urandom of=/tmp/seed bs=1M count=8 2>/dev/null
    i=0
    while [ $i -lt 62 ]; do
        echo "block $i"
        cat /tmp/seed
        i=$((i + 1))
    done >/mnt/big
    part written $?
    (cd /mnt && md5sum big >sums)
    part summed $?
    sync && umount /mnt
    part synced $?
    ;;
verify)
    mount -t ext4 -o ro /dev/vda /mnt
    part mounted $?
    [ "$(wc -c </mnt/big)" -gt 520000000 ]
    part size $?
    (cd /mnt && md5sum -c sums)
    part checksum $?
    dd if=/dev/zero of=/dev/vda bs=4096 count=1 2>/dev/null && [ "$(cat /sys/block/vda/ro)" = 1 ] &&
        echo "part readonly: FAILED"
    [ "$(cat /sys/block/vda/ro)" = 1 ]
    part readonly $?
    ;;
limit)
    # The image may not grow behind 300 MiB, or there is no room beyond the first 4 MiB of data.
    dd if=/dev/urandom of=/dev/vda bs=1M seek=10 count=4 conv=fsync 2>/dev/null
    part below $?
    ! dd if=/dev/urandom of=/dev/vda bs=1M seek=400 count=4 conv=fsync 2>/dev/null
    part beyond $?
    dd if=/dev/urandom of=/dev/vda bs=1M seek=10 count=4 conv=fsync 2>/dev/null
    part alive $?
    ;;
esac
echo "part end: ok"
poweroff -f
