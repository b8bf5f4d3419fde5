# From the system in $DOPPEL_WORK/root to the file system that begins at byte $DOPPEL_ROOT_OFFSET of
# the disk image, which is descriptor 3; the boot loader goes to standard output. As root, or as the
# root of a user namespace.
set -eu
echo 'I: filling the disk' >&2
root=$DOPPEL_WORK/root
rm -rf "$root"/dev/*
# mmdebstrap put the host's there, for itself.
rm -f "$root/etc/resolv.conf"
ln -s ../run/systemd/resolve/stub-resolv.conf "$root/etc/resolv.conf"
cat "$root/boot/efi/EFI/BOOT/BOOTX64.EFI"
rm -rf "$root/boot/efi/EFI"
# Features that the boot loaders of Debian's stable releases read, whatever this host's defaults.
mke2fs -q -F -t ext4 -d "$root" -U "$DOPPEL_ROOT_UUID" -m 1 \
    -O '^metadata_csum_seed,^orphan_file' -J size=64 \
    -E "offset=$DOPPEL_ROOT_OFFSET,hash_seed=$DOPPEL_ROOT_UUID,lazy_itable_init=0" \
    /proc/self/fd/3 "$DOPPEL_ROOT_KIB"k
