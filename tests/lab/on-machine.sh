# What the checks of packages on one booted machine have in common. Sourced after lib.sh, with NAME, that of the
# machine; the script that sources it has `inside`, which runs a script in the machine. At the end, however it
# comes, the machine is gone, and after a failure the end of its journal has been shown.

BEGAN=$SECONDS
WORK=$(mktemp -d)

on() { "$LAB/machine.sh" exec "$NAME" "$@"; }
# For scripts inside: `COMMAND | none` fails where there is a line.
# shellcheck disable=SC2034 # used by those who source this
NONE='none() { local lines; lines=$(cat); [ -z "$lines" ] || { echo "there is: $lines" >&2; return 1; }; }
'
part() { say "--- $1 ($((SECONDS - BEGAN)) s)"; }
# Waits until a script inside succeeds, at most $1 seconds.
await() {
    local deadline=$((SECONDS + $1))
    until inside "$2" >"$WORK/await" 2>&1; do
        [ $SECONDS -lt $deadline ] || { cat "$WORK/await"; die "not so after $1 s: $2"; }
        sleep 0.5
    done
}
same() { [ "$1" = "$2" ] || die "$3: '$1' has become '$2'"; }

finish() {
    local code=$?
    if [ $code -ne 0 ]; then
        say "=== the machine's journal, its end"
        on journalctl --no-pager -n 60 -o short-monotonic 2>/dev/null || true
    fi
    "$LAB/machine.sh" down "$NAME" || true
    rm -rf "$WORK"
    exit $code
}
trap finish EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP
