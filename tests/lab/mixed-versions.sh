#!/usr/bin/env bash
# Controllers of an older version beside those of this checkout, on one bus and one database:
#
#   mixed-versions.sh [REV] [--forward-only]
#
# REV is a tag or commit; by default the newest tag that HEAD descends from and, while there is none, the
# oldest commit of this branch that has today's migrations. Its controller is built from its own sources into the cache, once for each commit. Then
# kring-mixed-versions has a fleet of it upgraded to this checkout's controller and taken back, under load.
set -euo pipefail
LAB=$(cd "$(dirname "$0")" && pwd)
. "$LAB/lib.sh"
cd "$LAB/../.."
command -v cargo >/dev/null || PATH=$PATH:${HOME:-}/.cargo/bin
find_cache

oldest_with_these_migrations() {
    local commit oldest= schema
    schema=$(git rev-parse HEAD:controller/migrations)
    for commit in $(git rev-list --first-parent HEAD); do
        [ "$(git rev-parse "$commit:controller/migrations")" = "$schema" ] || break
        oldest=$commit
    done
    printf '%s' "$oldest"
}

rev=
case ${1:-} in '' | --*) ;; *) rev=$1; shift ;; esac
[ -n "$rev" ] || rev=$(git describe --tags --abbrev=0 2>/dev/null || oldest_with_these_migrations)
[ -n "$rev" ] || die "there is neither a tag nor a history here: name a revision"
commit=$(git rev-parse --verify --quiet "$rev^{commit}") || die "there is no revision $rev here"

place=$CACHE/mixed-versions
old=$place/$commit/kring-controller
mkdir -p "$place"
lock "$place/lock" 3600
if [ ! -x "$old" ]; then
    say "building the controller of $rev ($commit) once, in $place: some minutes"
    rm -rf "$place/source"
    mkdir -p "$place/source" "$place/$commit"
    # Not with the times of the commit: cargo would take a file that has changed for one that has not.
    git archive "$commit" | tar -xm -C "$place/source"
    (cd "$place/source" && CARGO_TARGET_DIR=$place/target cargo build --locked --workspace --bin kring-controller)
    cp "$place/target/debug/kring-controller" "$old.new"
    mv "$old.new" "$old"
    rm -rf "$place/source"
fi
exec 9>&-

cargo build --locked --workspace --bin kring-controller --bin kring-mixed-versions
say "beside $rev ($(git log -1 --format=%s "$commit"))"
exec "${CARGO_TARGET_DIR:-target}/debug/kring-mixed-versions" --old "$old" "$@"
