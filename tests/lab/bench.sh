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
if [ "$DATABASE" = postgres ]; then
    postgres=/var/tmp/kring-test-postgres.$$
    trap '"$LAB/postgres.sh" stop "$postgres"' EXIT
    trap 'exit 130' INT
    trap 'exit 143' TERM HUP
    "$LAB/postgres.sh" sweep
    KRING_TEST_POSTGRES=$("$LAB/postgres.sh" start "$postgres" --durable)
    export KRING_TEST_POSTGRES
fi
# A release's sources have no repository.
KRING_COMMIT=$(git describe --always --dirty 2>/dev/null || echo unknown)
export KRING_COMMIT
KRING_AGENT=$target/agent/kring-agent "$target/packages/kring-bench" "$@"
