#!/usr/bin/env bash
# Plays the demo as a user would and worse: twice in a row, killed at several moments, stopped
# twice; and compares what is on the machine before and after. Run it on a machine where nothing
# else comes and goes meanwhile.
#
#   tests/lab/demo-check.sh [SECONDS…]    moments of killing, after its start (default: 6 12 18)
set -euo pipefail
LAB=$(cd "$(dirname "$0")" && pwd)
. "$LAB/lib.sh"
DEMO=${KRING_DEMO_DIR:-/var/tmp/kring-demo}
need_privileges

# All that a run could leave behind, one thing per line.
inventory() {
    ps -eo ppid=,args= | awk '$1 != 2 && $2 !~ /^\[/ { $1 = ""; print "process" $0 }' |
        grep -vE 'demo-check|ps -eo|awk |grep -v|sort|sleep |/bin/sh -c|make|cargo|rustc|rust-analyzer' || true
    ip -o link | awk -F': ' '{ print "link " $2 }'
    find /run/netns /var/run/netns -mindepth 1 2>/dev/null | sed 's/^/namespace /' || true
    "${SUDO[@]}" nft list ruleset | sed 's/^/nft /'
    find /var/tmp /tmp /run /etc /var/lib /var/log/libvirt /etc/libvirt /var/lib/libvirt -maxdepth 3 -iname '*kring*' ! -path '*/kring-lab*' \
        2>/dev/null | sed 's/^/file /' || true
    grep -E 'kring|netns' /proc/mounts | sed 's/^/mount /' || true
    echo "ip_forward $(cat /proc/sys/net/ipv4/ip_forward)"
}
compare() {
    inventory | sort >"$work/after"
    if ! diff "$work/before" "$work/after" >"$work/diff"; then
        cat "$work/diff"
        die "$1 left something behind, or took something away"
    fi
    say "nothing is left: $1"
}

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"$LAB/demo.sh" stop
inventory | sort >"$work/before"

"$LAB/demo.sh" up
"$DEMO/kring" vm list
"$LAB/demo.sh" up
"$DEMO/kring" vm list
"$LAB/demo.sh" stop
"$LAB/demo.sh" stop
compare "two runs and two stops"

for seconds in "${@:-6 12 18}"; do
    for moment in $seconds; do
        setsid "$LAB/demo.sh" up >"$work/out" 2>&1 9>&- &
        victim=$!
        sleep "$moment"
        # The group: the script with its spinner and the command that it is in; not its daemons.
        "${SUDO[@]}" kill -KILL -- "-$victim" 2>/dev/null || true
        wait "$victim" 2>/dev/null || true
        say "killed after $moment s: $(tail -n 1 "$work/out")"
        "$LAB/demo.sh" stop
        compare "a run that was killed after $moment s"
    done
done
setsid "$LAB/demo.sh" up >"$work/out" 2>&1 &
victim=$!
sleep 10
"${SUDO[@]}" kill -KILL -- "-$victim" 2>/dev/null || true
wait "$victim" 2>/dev/null || true
"$LAB/demo.sh" up
"$LAB/demo.sh" stop
compare "a run after one that was killed"
