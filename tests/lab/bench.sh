#!/usr/bin/env bash
# Builds what is shipped and prints its figures, of one benchmark or of all:
#
#   tests/lab/bench.sh [NAME [ARGUMENT…]]     (NAME --help tells its arguments)
#
# With DATABASE=postgres controllers use a server of this run's own, whose commits are as durable as those of the
# embedded database.
set -euo pipefail
LAB=$(cd "$(dirname "$0")" && pwd)
. "$LAB/lib.sh"
cd "$LAB/../.."
DATABASE=${DATABASE:-sqlite}
case $DATABASE in
sqlite|postgres) ;;
*) die "DATABASE is sqlite or postgres, not $DATABASE" ;;
esac
cargo build --locked --profile packages --bin kring-controller --bin kring-bench
cargo build --locked --profile agent --bin kring-agent
target=$(realpath "${CARGO_TARGET_DIR:-target}")
bench=
told_to_end() {
    if [ -n "$bench" ]; then
        kill -TERM "$bench" 2>/dev/null || true
        wait "$bench" || true
    fi
    exit "$1"
}
trap 'told_to_end 130' INT
trap 'told_to_end 143' TERM HUP
if [ "$DATABASE" = postgres ]; then
    postgres=/var/tmp/kring-test-postgres.$$
    trap '"$LAB/postgres.sh" stop "$postgres"' EXIT
    "$LAB/postgres.sh" sweep
    KRING_TEST_POSTGRES=$("$LAB/postgres.sh" start "$postgres" --durable)
    export KRING_TEST_POSTGRES
fi
# A release's sources have no repository.
KRING_COMMIT=$(git describe --always --dirty 2>/dev/null || echo unknown)
export KRING_COMMIT KRING_AGENT=$target/agent/kring-agent

# Beside this script, which hears a signal at once only while it waits.
run() {
    "$target/packages/kring-bench" "$@" &
    bench=$!
    wait "$bench"
    bench=
}

if [ $# -gt 0 ]; then
    run "$@"
    exit
fi
# Each in a process of its own, whose memory is then its own too. Without `soak`, which takes half an hour, and
# `restart`, which is a part of `query`.
for name in ring bus idle start api create placement query hosts takeover queues; do
    run "$name"
done
