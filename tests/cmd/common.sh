# What the tests of this folder share: a copy of the program and a place for its files, the counting of
# what passed, and guests of a few instructions. Sourced, with the test's own arguments.
set -u
cd "$(dirname "$0")/../.." || exit 1
out=${1:-build/gcc}
work=$(mktemp -d)
doppel=$work/doppel
cp "$out/doppel" "$doppel" || exit 1
[ ! -x "$out/doppel-net" ] || cp "$out/doppel-net" "$work/" || exit 1
trap 'rm -rf "$work"' EXIT
passed=0 failed=0
export XDG_DATA_HOME="$work/data"

# NAME STATUS STDERR-PATTERN COMMAND...: the pattern is a grep; '' wants an empty standard error.
expect() {
    name=$1 status=$2 pattern=$3
    shift 3
    timeout 120 "$@" >"$work/out" 2>"$work/err" </dev/null
    found=$?
    if [ $found -ne "$status" ]; then
        result="status $found instead of $status"
    elif [ -z "$pattern" ] && [ -s "$work/err" ]; then
        result="standard error is not empty"
    elif [ -n "$pattern" ] && ! grep -q -e "$pattern" "$work/err"; then
        result="standard error lacks '$pattern'"
    else
        passed=$((passed + 1))
        return
    fi
    failed=$((failed + 1))
    echo "FAILED $name: $result"
    head -n 5 "$work/err"
}

# Guests of a few instructions: 32-bit Multiboot kernels by the a.out kludge, at 1 MiB.
multiboot() { # FILE CODE-AS-OCTAL-ESCAPES
    {
        # magic, flags (kludge), checksum, header, load, load end, bss end, entry
        printf '\002\260\255\033\000\000\001\000\376\117\121\344'
        printf '\000\000\020\000\000\000\020\000\000\000\000\000\000\000\000\000\040\000\020\000'
        # shellcheck disable=SC2059
        printf "$2"
    } >"$1"
}
