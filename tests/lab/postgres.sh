#!/usr/bin/env bash
# A PostgreSQL server of a test run's own: its own folder, a free port of 127.0.0.1, no password.
#
#   postgres.sh start DIR [--durable]  make and start it; prints its URL
#   postgres.sh kill DIR     end it as a crash does, without a checkpoint; what is in DIR stays
#   postgres.sh restart DIR  end it in order, when it runs, and start it again on the same port
#   postgres.sh stop DIR     end it and remove DIR
#   postgres.sh sweep        remove servers of runs that were killed (DIR is NAME.PID of the run)
#
# A commit survives the end of the server, however it ends, but not that of the machine; with --durable it does.
set -euo pipefail
. "$(dirname "$0")/lib.sh"

# PostgreSQL refuses to run as root.
AS=()
[ "$(id -u)" -ne 0 ] || AS=(runuser -u postgres --)
PROGRAMS=$(find /usr/lib/postgresql -maxdepth 2 -name bin -type d 2>/dev/null | sort -V | tail -n 1)

start() {
    local dir=$1 port tries=0 durable=off
    [ -z "${2:-}" ] || durable=on
    [ -n "$PROGRAMS" ] || die "PostgreSQL is not installed: tests/lab/install-deps.sh test"
    mkdir -p "$dir"
    chmod 755 "$dir"
    [ "$(id -u)" -ne 0 ] || chown postgres "$dir"
    cd "$dir"
    "${AS[@]}" "$PROGRAMS/initdb" -D "$dir/data" -U kring -A trust -E UTF8 --locale=C --no-sync >"$dir/initdb.log" 2>&1 ||
        { cat "$dir/initdb.log" >&2; die "initdb failed"; }
    printf 'fsync = %s\nfull_page_writes = %s\n' $durable $durable >>"$dir/data/postgresql.conf"
    # Somebody may take the port between the look and the start: another one is tried then.
    until port=$((20000 + RANDOM % 12000)) && [ -z "$(ss -Hltn "sport = :$port")" ] && serve "$dir" "$port"; do
        tries=$((tries + 1))
        [ $tries -lt 10 ] || { cat "$dir/data/server.log" >&2; die "PostgreSQL does not start"; }
    done
    echo "$port" >"$dir/port"
    say "postgres://kring@127.0.0.1:$port/postgres"
}

serve() {
    "${AS[@]}" "$PROGRAMS/pg_ctl" -D "$1/data" -l "$1/data/server.log" -w -t 60 start >/dev/null \
        -o "-p $2 -k $1/data -c listen_addresses=127.0.0.1 -c max_connections=500" 9>&-
}

crash() {
    cd "$1"
    "${AS[@]}" "$PROGRAMS/pg_ctl" -D "$1/data" -m immediate -w -t 20 stop >/dev/null 2>&1 || true
}

restart() {
    cd "$1"
    "${AS[@]}" "$PROGRAMS/pg_ctl" -D "$1/data" -m fast -w -t 20 stop >/dev/null 2>&1 || crash "$1"
    serve "$1" "$(<"$1/port")" || { tail -n 30 "$1/data/server.log" >&2; die "PostgreSQL does not start again"; }
}

stop() {
    local dir=$1
    [ -d "$dir/data" ] || { rm -rf "$dir"; return 0; }
    crash "$dir"
    cd /
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
start) [ $# -eq 2 ] || [ "$#${3:-}" = 3--durable ] || die "usage: $0 start DIR [--durable]"; start "${@:2}" ;;
restart|stop) [ $# -eq 2 ] || die "usage: $0 $1 DIR"; "$1" "$2" ;;
kill)  [ $# -eq 2 ] || die "usage: $0 kill DIR"; crash "$2" ;;
sweep) sweep ;;
*)     sed -n '2,/^set /{/^#/s/^# \{0,1\}//p}' "$0"; exit 2 ;;
esac
