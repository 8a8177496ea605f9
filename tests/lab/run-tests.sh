#!/usr/bin/env bash
# Runs all tests and ends with the runner's summary. Arguments are the runner's, such as a filter:
#
#   tests/lab/run-tests.sh [-p CRATE] [NAME…]
#
# The runner is cargo-nextest, each test a process of its own. Where it is missing it is installed
# into the cache, once (KRING_NO_INSTALL=1: not installed); where that fails, cargo's own runner
# takes its place. Without arguments what touches the database is run on PostgreSQL and RabbitMQ
# first, on servers that this script starts, and then everything on SQLite and the bus in process.
set -euo pipefail
LAB=$(cd "$(dirname "$0")" && pwd)
. "$LAB/lib.sh"
cd "$LAB/../.."
command -v cargo >/dev/null || PATH=$PATH:${HOME:-}/.cargo/bin
command -v cargo >/dev/null || die "there is no Rust toolchain: see https://rustup.rs"
find_cache
# Unit tests of the database layer and of what is written in terms of it, and the integration tests but
# those that start servers of their own.
DATABASE_TESTS='(package(kring-controller) and test(/db|workflow|services|reconcile|bootstrap|api/)) or (package(kring-tests) and kind(test) and not test(/^(fleet|bench::(bus|takeover|queues))/))'

# Built now, so that no test spends its time on it.
"$LAB/guest/build.sh" >/dev/null
"$LAB/guest/build.sh" --uefi >/dev/null

PATH=$PATH:$CACHE/tools/bin
if ! cargo nextest --version >/dev/null 2>&1 && [ -z "${KRING_NO_INSTALL:-}" ]; then
    say "installing cargo-nextest into $CACHE/tools (once, some minutes)"
    lock "$CACHE/tools.lock" 1800
    cargo nextest --version >/dev/null 2>&1 ||
        CARGO_TARGET_DIR=$CACHE/tools/target cargo install cargo-nextest --locked --debug --root "$CACHE/tools" ||
        warn "cargo-nextest could not be installed"
    rm -rf "$CACHE/tools/target"
    exec 9>&-
fi

postgres=/var/tmp/kring-test-postgres.$$
rabbitmq=/var/tmp/kring-test-rabbitmq.$$
results=$(mktemp)
trap 'rm -f "$results"; "$LAB/postgres.sh" stop "$postgres"; "$LAB/rabbitmq.sh" stop "$rabbitmq"' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP
code=0

# Tests that kill a controller, or freeze one, start the built program. Together with the tests, since
# alone it would be built with other features, and all that it uses once more.
cargo build --locked --workspace --bins --tests

if cargo nextest --version >/dev/null 2>&1; then
    if [ $# -eq 0 ]; then
        "$LAB/postgres.sh" sweep
        url=$("$LAB/postgres.sh" start "$postgres")
        "$LAB/rabbitmq.sh" sweep
        broker=$("$LAB/rabbitmq.sh" start "$rabbitmq")
        say "=== on PostgreSQL and RabbitMQ: what touches the database"
        KRING_TEST_POSTGRES=$url KRING_TEST_RABBIT=$broker \
            cargo nextest run --locked --workspace --no-fail-fast -E "$DATABASE_TESTS" || code=$?
        "$LAB/postgres.sh" stop "$postgres"
        "$LAB/rabbitmq.sh" stop "$rabbitmq"
        [ $code -eq 0 ] || say "FAILED on PostgreSQL and RabbitMQ: see above"
        say "=== on SQLite: everything"
    fi
    cargo nextest run --locked --workspace --no-fail-fast "$@" || code=$?
    exit $code
fi
warn "using cargo test: tests share processes, and limits of .config/nextest.toml do not hold"
cargo test --locked --workspace --no-fail-fast --tests --bins --lib "$@" 2>&1 | tee "$results" || code=$?
# cargo prints a summary for each binary; this is their sum.
awk '/^test result:/ { for (i = 1; i < NF; i++) { if ($(i+1) ~ /^passed/) p += $i; if ($(i+1) ~ /^failed/) f += $i; if ($(i+1) ~ /^ignored/) s += $i } }
    END { printf "\nSummary: %d tests run: %d passed, %d failed, %d skipped\n", p + f, p, f, s }' "$results"
exit $code
