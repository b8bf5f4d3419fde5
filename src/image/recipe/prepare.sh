# Hook of mmdebstrap, before any package is installed that depends on these files: "$1" is the new
# system's root. The initial RAM disk has drivers for the disks of virtual machines, and no others.
set -eu
mkdir -p "$1/etc/initramfs-tools/conf.d" "$1/usr/share/initramfs-tools/modules.d"
echo MODULES=list >"$1/etc/initramfs-tools/conf.d/doppel"
cat >"$1/usr/share/initramfs-tools/modules.d/doppel" <<'END'
virtio_pci
virtio_mmio
virtio_blk
virtio_scsi
nvme
ahci
ata_piix
mptspi
vmw_pvscsi
hv_storvsc
xen_blkfront
sd_mod
sr_mod
ext4
END
cat >"$1/etc/fstab" <<END
# The disk that this system was built on: found by name, whatever device it is.
UUID=$DOPPEL_ROOT_UUID / ext4 errors=remount-ro 0 1
PARTUUID=$DOPPEL_EFI_PARTUUID /boot/efi vfat noauto,umask=0077 0 0
END
