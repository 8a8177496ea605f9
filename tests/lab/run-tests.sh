#!/usr/bin/env bash
# Runs all tests and ends with the runner's summary. Arguments are the runner's, such as a filter:
#
#   tests/lab/run-tests.sh [-p CRATE] [NAME…]
#
# The runner is cargo-nextest, each test a process of its own. Where it is missing it is installed
# into the cache, once (KRING_NO_INSTALL=1: not installed); where that fails, cargo's own runner
# takes its place. Tests find the lab by KRING_LAB_SCRIPTS and the test guest by KRING_GUEST_IMAGE
# and KRING_GUEST_IMAGE_UEFI.
set -euo pipefail
LAB=$(cd "$(dirname "$0")" && pwd)
. "$LAB/lib.sh"
cd "$LAB/../.."
command -v cargo >/dev/null || PATH=$PATH:${HOME:-}/.cargo/bin
command -v cargo >/dev/null || die "there is no Rust toolchain: see https://rustup.rs"
find_cache

export KRING_LAB_SCRIPTS=$LAB
KRING_GUEST_IMAGE=$("$LAB/guest/build.sh")
KRING_GUEST_IMAGE_UEFI=$("$LAB/guest/build.sh" --uefi)
export KRING_GUEST_IMAGE KRING_GUEST_IMAGE_UEFI
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

if cargo nextest --version >/dev/null 2>&1; then
    exec cargo nextest run --locked --workspace --no-fail-fast "$@"
fi
warn "using cargo test: tests share processes, and limits of .config/nextest.toml do not hold"
results=$(mktemp)
trap 'rm -f "$results"' EXIT
code=0
cargo test --locked --workspace --no-fail-fast --tests --bins --lib "$@" 2>&1 | tee "$results" || code=$?
# cargo prints a summary for each binary; this is their sum.
awk '/^test result:/ { for (i = 1; i < NF; i++) { if ($(i+1) ~ /^passed/) p += $i; if ($(i+1) ~ /^failed/) f += $i; if ($(i+1) ~ /^ignored/) s += $i } }
    END { printf "\nSummary: %d tests run: %d passed, %d failed, %d skipped\n", p + f, p, f, s }' "$results"
exit $code
