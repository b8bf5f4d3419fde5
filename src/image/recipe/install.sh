# Runs mmdebstrap, whose command is "$@" and makes $DOPPEL_WORK/root, and then the script
# $DOPPEL_FILL with that; leaves nothing of $DOPPEL_WORK.
set -eu
as_owner() {
    if [ "$DOPPEL_AS_ROOT" = yes ]; then
        "$@"
    else
        mmdebstrap --unshare-helper "$@"
    fi
}
child=
clean() {
    trap - EXIT
    trap '' HUP INT TERM
    if [ -n "$child" ]; then # it would go on for minutes
        kill "$child" 2>/dev/null || true
        wait "$child" || true
    fi
    # The namespace's root empties the folder, but it lies in one of ours.
    [ ! -e "$DOPPEL_WORK/root" ] || as_owner rm -rf "$DOPPEL_WORK/root" 2>/dev/null || true
    [ ! -e "$DOPPEL_WORK/root" ] || rmdir "$DOPPEL_WORK/root"
    rmdir "$DOPPEL_WORK"
}
trap clean EXIT
trap 'exit 1' HUP INT TERM
"$@" >&2 &
child=$!
wait "$child"
child=
as_owner sh -c "$DOPPEL_FILL"
