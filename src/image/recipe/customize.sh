# Hook of mmdebstrap, when all packages are installed: "$1" is the new system's root. What makes a
# Debian one that boots from a disk of its own, on any machine, and takes what is particular to one
# machine (name, keys, user) from the volume `cidata`.
set -eu
root=$1

# ---- the system ----
echo debian >"$root/etc/hostname"
printf '127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n' >"$root/etc/hosts"
echo LANG=C.UTF-8 >"$root/etc/default/locale"
printf '%s\n' "$DOPPEL_SOURCES" >"$root/etc/apt/sources.list"
rm -f "$root/etc/apt/sources.list.d"/* "$root/etc/apt/apt.conf.d/99mmdebstrap" \
    "$root/etc/dpkg/dpkg.cfg.d/99mmdebstrap"
# Keys and identities are made when a machine starts for the first time.
rm -f "$root"/etc/ssh/ssh_host_*
chroot "$root" useradd --create-home --shell /bin/bash --groups sudo,adm debian
echo 'debian ALL=(ALL) NOPASSWD:ALL' >"$root/etc/sudoers.d/debian"
chmod 440 "$root/etc/sudoers.d/debian"
cat >"$root/etc/systemd/network/80-wired.network" <<'END'
[Match]
Type=ether

[Network]
DHCP=yes
IPv6AcceptRA=yes
END
chroot "$root" systemctl enable --quiet systemd-networkd.service
# It looks for file systems to check on volumes that no machine of ours has, seconds at each start.
[ ! -e "$root/lib/systemd/system/e2scrub_reap.service" ] ||
    chroot "$root" systemctl disable --quiet e2scrub_reap.service

# ---- what is particular to one machine ----
mkdir -p "$root/usr/lib/doppel" "$root/etc/systemd/system/serial-getty@.service.d"
cat >"$root/usr/lib/doppel/seed" <<'END'
#!/bin/sh
# What this machine is told by the volume `cidata`, in its first sector: lines of a word and its
# value, from "doppel 1" to "end": instance, hostname, user, autologin (a user), key (an ssh key for
# the user). A new instance gets a new name and new host keys. cloud-init reads the same volume, if
# it is on. Written with as few processes as can be: each costs at the start of a machine.
set -u
umask 022
device=
for block in /sys/block/*; do # small and read-only: nothing else is read
    read -r readonly <"$block/ro" && [ "$readonly" = 1 ] || continue
    read -r sectors <"$block/size" && [ "$sectors" -ge 64 ] && [ "$sectors" -le 65536 ] || continue
    read -r first <"/dev/${block##*/}" || continue
    [ "$first" != 'doppel 1' ] || device=/dev/${block##*/}
done
[ -n "$device" ] || exit 0

instance='' hostname='' user='' autologin='' last=''
while read -r word value; do
    case $word in
    instance) instance=$value ;;
    hostname) hostname=$value ;;
    user) user=$value ;;
    autologin) autologin=$value ;;
    end) break ;;
    esac
done <"$device"

[ -d /run/doppel ] || mkdir /run/doppel
[ -z "$autologin" ] || echo "$autologin" >/run/doppel/autologin
[ ! -f /var/lib/doppel/instance ] || read -r last </var/lib/doppel/instance
[ "$instance" != "$last" ] || exit 0
for file in /etc/ssh/ssh_host_*; do
    [ ! -e "$file" ] || rm -f "$file"
done
if [ -n "$hostname" ]; then
    echo "$hostname" >/etc/hostname
    echo "$hostname" >/proc/sys/kernel/hostname
    printf '127.0.1.1\t%s\n' "$hostname" >>/etc/hosts
fi
if [ -n "$user" ]; then
    if [ ! -d "/home/$user" ]; then
        useradd --create-home --shell /bin/bash --groups sudo,adm "$user"
        echo "$user ALL=(ALL) NOPASSWD:ALL" >"/etc/sudoers.d/$user"
        chmod 440 "/etc/sudoers.d/$user"
    fi
    umask 077
    [ -d "/home/$user/.ssh" ] || mkdir "/home/$user/.ssh"
    while read -r word value; do
        [ "$word" != key ] || echo "$value"
        [ "$word" != end ] || break
    done <"$device" >"/home/$user/.ssh/authorized_keys"
    chown -R "$user:" "/home/$user/.ssh"
    umask 022
fi
[ -d /var/lib/doppel ] || mkdir /var/lib/doppel
echo "$instance" >/var/lib/doppel/instance
END
cat >"$root/usr/lib/doppel/getty" <<'END'
#!/bin/sh
# A login on a serial console: of the user that the volume `cidata` names, without a password.
user=''
[ ! -f /run/doppel/autologin ] || read -r user </run/doppel/autologin
exec /sbin/agetty ${user:+--autologin "$user"} --noclear --keep-baud \
    115200,57600,38400,9600 "$1" "$2"
END
chmod 755 "$root/usr/lib/doppel/seed" "$root/usr/lib/doppel/getty"
cat >"$root/etc/systemd/system/serial-getty@.service.d/doppel.conf" <<'END'
[Service]
ExecStart=
ExecStart=-/usr/lib/doppel/getty %I $TERM
END
cat >"$root/etc/systemd/system/doppel-seed.service" <<'END'
[Unit]
Description=Name, keys and user of this machine
DefaultDependencies=no
After=systemd-remount-fs.service systemd-tmpfiles-setup.service
Before=sysinit.target shutdown.target
Conflicts=shutdown.target

[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/usr/lib/doppel/seed

[Install]
WantedBy=sysinit.target
END
# Of the one kind that each client knows and that is made in no time; others are the user's to make.
echo 'HostKey /etc/ssh/ssh_host_ed25519_key' >"$root/etc/ssh/sshd_config.d/doppel.conf"
cat >"$root/etc/systemd/system/doppel-host-keys.service" <<'END'
[Unit]
Description=Host keys of this machine
ConditionPathExists=!/etc/ssh/ssh_host_ed25519_key
Before=ssh.service

[Service]
Type=oneshot
ExecStart=/usr/bin/ssh-keygen -q -t ed25519 -N "" -f /etc/ssh/ssh_host_ed25519_key

[Install]
WantedBy=multi-user.target
END
chroot "$root" systemctl enable --quiet doppel-seed.service doppel-host-keys.service

# ---- booting ----
kernel=$(cd "$root/boot" && ls vmlinuz-* | sort -V | tail -n 1)
version=${kernel#vmlinuz-}
chroot "$root" update-initramfs -u -k "$version"
mkdir -p "$root/etc/default/grub.d" "$root/boot/grub" "$root/boot/efi/EFI/BOOT"
cat >"$root/etc/default/grub.d/doppel.cfg" <<'END'
GRUB_TIMEOUT=1
GRUB_CMDLINE_LINUX_DEFAULT="console=tty0 console=ttyS0,115200"
GRUB_TERMINAL="console serial"
GRUB_SERIAL_COMMAND="serial --speed=115200"
GRUB_DISABLE_OS_PROBER=true
END
# As update-grub would write it, if the disk existed already.
cat >"$root/boot/grub/grub.cfg" <<END
set timeout=1
serial --speed=115200
terminal_input console serial
terminal_output console serial
menuentry 'Debian GNU/Linux, with Linux $version' {
    search --no-floppy --fs-uuid --set=root $DOPPEL_ROOT_UUID
    linux /boot/vmlinuz-$version root=UUID=$DOPPEL_ROOT_UUID ro console=tty0 console=ttyS0,115200
    initrd /boot/initrd.img-$version
}
END
cat >"$root/tmp/grub.cfg" <<END
search --no-floppy --fs-uuid --set=root $DOPPEL_ROOT_UUID
set prefix=(\$root)/boot/grub
END
chroot "$root" grub-mkimage -O x86_64-efi -o /boot/efi/EFI/BOOT/BOOTX64.EFI -p /boot/grub \
    -c /tmp/grub.cfg part_gpt part_msdos fat ext2 search search_fs_uuid search_fs_file \
    search_label normal configfile linux gzio all_video efi_gop gfxterm serial terminal echo test \
    true minicmd ls cat halt reboot sleep loadenv regexp probe
rm "$root/tmp/grub.cfg"
