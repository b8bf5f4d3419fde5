# From the tar archive of a system on standard input to the file system that begins at byte
# $DOPPEL_ROOT_OFFSET of the disk image, which is descriptor 3; the boot loader goes to standard
# output. As root, or as the root of a user namespace.
set -eu
work=$(mktemp -d "${TMPDIR:-/var/tmp}/doppel-image.XXXXXX")
trap 'rm -rf "$work"' EXIT
trap 'exit 1' HUP INT TERM
mkdir "$work/root"
tar --extract --directory "$work/root" --numeric-owner --preserve-permissions \
    --xattrs --xattrs-include='*' --exclude='./dev/*' --exclude='./proc/*' --exclude='./sys/*'
# mmdebstrap put the host's there, for itself.
rm -f "$work/root/etc/resolv.conf"
ln -s ../run/systemd/resolve/stub-resolv.conf "$work/root/etc/resolv.conf"
cat "$work/root/boot/efi/EFI/BOOT/BOOTX64.EFI"
rm -rf "$work/root/boot/efi/EFI"
# Features that the boot loaders of Debian's stable releases read, whatever this host's defaults.
mke2fs -q -F -t ext4 -d "$work/root" -U "$DOPPEL_ROOT_UUID" -m 1 \
    -O '^metadata_csum_seed,^orphan_file' -J size=64 \
    -E "offset=$DOPPEL_ROOT_OFFSET,hash_seed=$DOPPEL_ROOT_UUID,lazy_itable_init=0" \
    /proc/self/fd/3 "$DOPPEL_ROOT_KIB"k
