#!/usr/bin/env bash
# A PostgreSQL server of a test run's own: its own folder, a free port of 127.0.0.1, no password.
#
#   postgres.sh start DIR    make and start it; prints its URL
#   postgres.sh stop DIR     end it and remove DIR
#   postgres.sh sweep        remove servers of runs that were killed (DIR is NAME.PID of the run)
set -euo pipefail
. "$(dirname "$0")/lib.sh"

# PostgreSQL refuses to run as root.
AS=()
[ "$(id -u)" -ne 0 ] || AS=(runuser -u postgres --)
PROGRAMS=$(find /usr/lib/postgresql -maxdepth 2 -name bin -type d 2>/dev/null | sort -V | tail -n 1)

start() {
    local dir=$1 port tries=0
    [ -n "$PROGRAMS" ] || die "PostgreSQL is not installed: tests/lab/install-deps.sh test"
    mkdir -p "$dir"
    chmod 755 "$dir"
    [ "$(id -u)" -ne 0 ] || chown postgres "$dir"
    cd "$dir"
    "${AS[@]}" "$PROGRAMS/initdb" -D "$dir/data" -U kring -A trust -E UTF8 --locale=C --no-sync >"$dir/initdb.log" 2>&1 ||
        { cat "$dir/initdb.log" >&2; die "initdb failed"; }
    # Somebody may take the port between the look and the start: another one is tried then.
    until port=$((20000 + RANDOM % 20000)) && [ -z "$(ss -Hltn "sport = :$port")" ] &&
        "${AS[@]}" "$PROGRAMS/pg_ctl" -D "$dir/data" -l "$dir/data/server.log" -w -t 30 start >/dev/null \
            -o "-p $port -k $dir/data -c listen_addresses=127.0.0.1 -c max_connections=500 -c fsync=off -c synchronous_commit=off -c full_page_writes=off" 9>&-; do
        tries=$((tries + 1))
        [ $tries -lt 10 ] || { cat "$dir/data/server.log" >&2; die "PostgreSQL does not start"; }
    done
    say "postgres://kring@127.0.0.1:$port/postgres"
}

stop() {
    local dir=$1
    [ -d "$dir/data" ] || { rm -rf "$dir"; return 0; }
    cd /
    "${AS[@]}" "$PROGRAMS/pg_ctl" -D "$dir/data" -m immediate -w -t 20 stop >/dev/null 2>&1 || true
    rm -rf "$dir"
}

sweep() {
    local dir
    for dir in /var/tmp/kring-test-postgres.*; do
        [ -d "$dir" ] && [ ! -e "/proc/${dir##*.}" ] || continue
        stop "$dir"
    done
}

case ${1:-} in
start|stop) [ $# -eq 2 ] || die "usage: $0 $1 DIR"; "$1" "$2" ;;
sweep)      sweep ;;
*)          sed -n '2,/^set /{/^#/s/^# \{0,1\}//p}' "$0"; exit 2 ;;
esac
