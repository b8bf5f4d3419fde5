#!/bin/sh
# /init of the tests of shared folders; doppel_share=WHAT on the kernel's command line chooses what
# is done.
export PATH=/bin
mount -t devtmpfs none /dev
exec >/dev/console 2>&1 </dev/console
mount -t proc none /proc
mount -t sysfs none /sys
mount -t tmpfs none /tmp
for round in 1 2 3 4; do
    for module in /modules/*.ko; do
        insmod "$module" 2>/dev/null
    done
done

part() { # NAME STATUS
    if [ "$2" -eq 0 ]; then echo "part $1: ok"; else echo "part $1: FAILED"; fi
}

what=$(sed -n 's/.*doppel_share=\([a-z]*\).*/\1/p' /proc/cmdline)
mount -t 9p -o trans=virtio,version=9p2000.L,msize=262144 work /mnt
part mounted $?
case $what in
write)
    [ "$(cat /mnt/hello)" = "from the host" ]
    part hello $?
    (cd /mnt && sha256sum -c sums >/dev/null)
    part checksum $?
    [ "$(ls /mnt/many | wc -l)" = 2000 ]
    part listed $?
    mkdir -p /mnt/made/deep && cp /mnt/data /mnt/made/deep/copy &&
        mv /mnt/made/deep /mnt/made/moved && cmp /mnt/data /mnt/made/moved/copy
    part moved $?
    i=0
    while [ $i -lt 300 ]; do
        echo "file $i" >"/mnt/made/f$i" || break
        i=$((i + 1))
    done
    [ "$(cat /mnt/made/f299)" = "file 299" ] && [ "$(ls /mnt/made | wc -l)" = 301 ]
    part small $?
    echo one >/mnt/made/appended && echo two >>/mnt/made/appended &&
        [ "$(cat /mnt/made/appended)" = "one
two" ] && truncate -s 4 /mnt/made/appended && [ "$(cat /mnt/made/appended)" = one ]
    part appended $?
    ln -s moved/copy /mnt/made/link && cmp /mnt/data /mnt/made/link &&
        [ "$(readlink /mnt/made/link)" = moved/copy ] && ln /mnt/made/f0 /mnt/made/hard &&
        [ "$(stat -c %h /mnt/made/hard)" = 2 ]
    part linked $?
    chmod 640 /mnt/made/f1 && [ "$(stat -c %a /mnt/made/f1)" = 640 ] &&
        touch -d '2001-02-03 04:05:06' /mnt/made/f1 &&
        [ "$(stat -c %Y /mnt/made/f1)" = "$(date -d '2001-02-03 04:05:06' +%s)" ]
    part attributes $?
    chmod 4755 /mnt/made/f2 && [ "$(stat -c %a /mnt/made/f2)" = 755 ]
    part noset $?
    # A file that has lost its name can still be used.
    exec 5<>/mnt/made/f3 && rm /mnt/made/f3 && [ "$(cat <&5)" = "file 3" ] && echo more >&5
    part unlinked $?
    exec 5>&-
    rm /mnt/made/f[4-9]* && [ ! -e /mnt/made/f42 ] && mkdir /mnt/made/empty && rmdir /mnt/made/empty &&
        ! rmdir /mnt/made/moved 2>/dev/null
    part removed $?
    # Links that the host made lead nowhere but within the guest.
    ! cat /mnt/outside 2>/dev/null && [ "$(cat /mnt/absolute 2>/dev/null)" != "the host's secret" ]
    part outside $?
    mkfifo /mnt/made/pipe && (echo through >/mnt/made/pipe &) && [ "$(cat /mnt/made/pipe)" = through ]
    part pipe $?
    (cd /mnt/made && tar -cf /tmp/t.tar . && mkdir /mnt/untarred && cd /mnt/untarred &&
        tar -xf /tmp/t.tar && cmp moved/copy /mnt/data)
    part archive $?
    # Many at once.
    for i in 1 2 3 4 5 6; do
        cp /mnt/data "/mnt/made/p$i" &
    done
    wait
    ! for i in 1 2 3 4 5 6; do
        cmp /mnt/data "/mnt/made/p$i" || echo differs
    done | grep -q .
    part parallel $?
    begun=$(cut -d ' ' -f 1 /proc/uptime)
    dd if=/dev/zero of=/mnt/made/speed bs=256k count=256 conv=fsync 2>/dev/null
    part speed $?
    now=$(cut -d ' ' -f 1 /proc/uptime)
    echo "64 MiB written in $(echo "$begun $now" | awk '{ print $2 - $1 }') s"
    df /mnt >/dev/null && sync && umount /mnt
    part unmounted $?
    ;;
readonly)
    [ "$(cat /mnt/hello)" = "from the host" ]
    part hello $?
    ! echo x >/mnt/new 2>/dev/null && ! rm /mnt/hello 2>/dev/null && ! mkdir /mnt/d 2>/dev/null &&
        ! echo x 2>/dev/null >>/mnt/hello && ! chmod 600 /mnt/hello 2>/dev/null &&
        ! mv /mnt/hello /mnt/bye 2>/dev/null && ! touch /mnt/hello 2>/dev/null
    part refused $?
    ;;
esac
dmesg | grep -i '9p.*\(error\|bad\)'
[ $? -eq 1 ]
part quiet $?
echo "part end: ok"
poweroff -f
