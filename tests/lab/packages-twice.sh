#!/usr/bin/env bash
# Makes the packages of the last commit twice, in two clones at different places, with another umask, time zone
# and language, and compares them byte by byte.
#
#   tests/lab/packages-twice.sh [--unoptimised]    as packaging/build.sh takes it; without it, an hour on two cores
#
# Nothing is shared between the two but cargo's registry.
set -euo pipefail
LAB=$(cd "$(dirname "$0")" && pwd)
ROOT=$(cd "$LAB/../.." && pwd)
. "$LAB/lib.sh"
COMMIT=$(git -C "$ROOT" rev-parse HEAD)
WORK=$(mktemp -d -p "${TMPDIR:-/var/tmp}")
trap 'rm -rf "$WORK"' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

build() {
    local place=$1 out=$WORK/$2
    shift 2
    mkdir -p "$place"
    git clone -q --no-hardlinks "$ROOT" "$place/kring"
    git -C "$place/kring" checkout -q --detach "$COMMIT"
    CARGO_TARGET_DIR=$place/target "$place/kring/packaging/build.sh" "$@" "$out" >"$WORK/log" 2>&1 ||
        { tail -n 30 "$WORK/log"; die "the packages could not be made in $place"; }
    rm -rf "$place"
}

say "--- once"
(umask 022 && TZ=UTC LANG=C.UTF-8 build "$WORK/a" one "$@")
say "--- and again, elsewhere"
(umask 027 && TZ=Asia/Kathmandu LANG=de_DE.UTF-8 build "$WORK/another-place/deeper" two "$@")
if diff "$WORK/one/SHA256SUMS" "$WORK/two/SHA256SUMS"; then
    say "=== $(wc -l <"$WORK/one/SHA256SUMS") packages, the same both times"
else
    die "these packages differ between two builds of one commit"
fi
