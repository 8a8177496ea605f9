#!/usr/bin/env bash
# A RabbitMQ broker of a test run's own: its own folder, node name, name server (epmd) and free ports
# of 127.0.0.1; user and password are "guest".
#
#   rabbitmq.sh start DIR      make and start it; prints its URL. With DIR/tls/{ca,cert,key}.pem it
#                              also listens with TLS; then the second line is that URL
#   rabbitmq.sh kill DIR       end it as a crash does (kill -9); what is in DIR stays
#   rabbitmq.sh restart DIR    end it in order, when it runs, and start it again on the same ports
#   rabbitmq.sh ctl DIR ARG…   rabbitmqctl
#   rabbitmq.sh freeze DIR     stop it as a debugger does (SIGSTOP); thaw DIR lets it go on
#   rabbitmq.sh stop DIR       end it and remove DIR
#   rabbitmq.sh sweep          remove brokers of runs that were killed (DIR is NAME.PID of the run)
set -euo pipefail
. "$(dirname "$0")/lib.sh"

PROGRAMS=/usr/lib/rabbitmq/bin

# Two free ports beside each other and one for the name server; a fourth for TLS. They are below those that the kernel
# gives to connections, which could take one while the broker is away.
free_ports() {
    local base tries=0 port
    while [ $tries -lt 50 ]; do
        base=$((20000 + RANDOM % 12000)) tries=$((tries + 1))
        for port in $base $((base + 1)) $((base + 2)) $((base + 3)); do
            [ -z "$(ss -Hltn "sport = :$port")" ] || continue 2
        done
        printf '%s' "$base"
        return 0
    done
    return 1
}

# What the broker and its tools must know. The machine's own configuration of RabbitMQ is not read.
environment() {
    local dir=$1 base
    base=$(<"$dir/ports")
    export HOME=$dir LC_ALL=C.UTF-8
    export RABBITMQ_NODENAME=kring-$base@localhost RABBITMQ_NODE_IP_ADDRESS=127.0.0.1
    export RABBITMQ_NODE_PORT=$base RABBITMQ_DIST_PORT=$((base + 1)) ERL_EPMD_PORT=$((base + 2))
    export ERL_EPMD_ADDRESS=127.0.0.1
    export RABBITMQ_CONF_ENV_FILE=$dir/env.conf RABBITMQ_CONFIG_FILE=$dir/rabbitmq.conf
    export RABBITMQ_ADVANCED_CONFIG_FILE=$dir/advanced.config RABBITMQ_CONFIG_FILES=$dir/conf.d
    export RABBITMQ_ENABLED_PLUGINS_FILE=$dir/plugins RABBITMQ_PID_FILE=$dir/broker.pid
    export RABBITMQ_MNESIA_BASE=$dir/mnesia RABBITMQ_LOG_BASE=$dir/log RABBITMQ_LOGS=$dir/log/broker.log
    export RABBITMQ_GENERATED_CONFIG_DIR=$dir/generated
    # Schedulers that have nothing to do do not spin: the machine is shared with the test.
    export RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS='+sbwt none +sbwtdcpu none +sbwtdio none -kernel inet_dist_use_interface {127,0,0,1}'
    # Several tools may run at a time; they need no distribution port of the broker's.
    unset RABBITMQ_CTL_DIST_PORT_MIN RABBITMQ_CTL_DIST_PORT_MAX
}

configure() {
    local dir=$1 base
    base=$(<"$dir/ports")
    mkdir -p "$dir/log" "$dir/mnesia" "$dir/conf.d" "$dir/generated"
    : >"$dir/env.conf"
    echo '[].' >"$dir/advanced.config"
    echo '[].' >"$dir/plugins"
    {
        echo 'log.console = false'
        echo 'loopback_users.guest = true'
        # The disk of a test machine may be small; how full it is is no test of ours.
        echo 'disk_free_limit.absolute = 1MB'
        if [ -f "$dir/tls/key.pem" ]; then
            echo "listeners.ssl.default = 127.0.0.1:$((base + 3))"
            echo "ssl_options.cacertfile = $dir/tls/ca.pem"
            echo "ssl_options.certfile = $dir/tls/cert.pem"
            echo "ssl_options.keyfile = $dir/tls/key.pem"
            echo 'ssl_options.verify = verify_none'
        fi
    } >"$dir/rabbitmq.conf"
}

# Starts the broker of DIR and waits until it serves. Fails when it ends instead.
run() {
    local dir=$1 pid left=1200
    rm -f "$dir/broker.pid" "$dir/log/broker.log"
    # A session of its own, so that an interrupted test run does not take it along half-way.
    ( environment "$dir"; cd "$dir"; exec setsid "$PROGRAMS/rabbitmq-server" ) >"$dir/log/start.log" 2>&1 </dev/null 9>&- &
    pid=$!
    disown
    printf '%s %s' "$pid" "$(start_time "$pid")" >"$dir/session"
    while [ $left -gt 0 ]; do
        if grep -qs 'Server startup complete' "$dir/log/broker.log" && [ -s "$dir/broker.pid" ]; then
            pid=$(tr -dc 0-9 <"$dir/broker.pid")
            printf '%s %s' "$pid" "$(start_time "$pid")" >"$dir/process"
            return 0
        fi
        kill -0 "$pid" 2>/dev/null || return 1
        sleep 0.1
        left=$((left - 1))
    done
    kill -KILL "$pid" 2>/dev/null || true
    return 1
}

urls() {
    local base
    base=$(<"$1/ports")
    say "amqp://guest:guest@127.0.0.1:$base"
    [ ! -f "$1/tls/key.pem" ] || say "amqps://guest:guest@localhost:$((base + 3))"
}

start() {
    local dir=$1 tries=0
    [ -x "$PROGRAMS/rabbitmq-server" ] || die "RabbitMQ is not installed: tests/lab/install-deps.sh test"
    mkdir -p "$dir"
    dir=$(cd "$dir" && pwd)
    # Somebody may take a port between the look and the start: others are tried then.
    while :; do
        free_ports >"$dir/ports" || die "there are no free ports"
        configure "$dir"
        run "$dir" && break
        tries=$((tries + 1))
        name_server "$dir"
        [ $tries -lt 3 ] || { tail -n 30 "$dir"/log/*.log >&2; die "RabbitMQ does not start"; }
    done
    urls "$dir"
}

process() { [ -s "$1/process" ] && printf '%s' "$(<"$1/process")"; }

crash() {
    local record
    record=$(process "$1") || return 0
    ! alive "$record" || kill -KILL "${record% *}" 2>/dev/null || true
    end_process "$record" 0
}

# Ends one that is still starting, of which no more is known than its session.
end_session() {
    local record
    [ -s "$1/session" ] || return 0
    record=$(<"$1/session")
    alive "$record" || return 0
    kill -KILL -- "-${record% *}" 2>/dev/null || true
    end_process "$record" 0
}

signal() {
    local record
    record=$(process "$2") && alive "$record" || die "the broker does not run"
    kill "-$1" "${record% *}"
}

# Stops it and waits until all its threads have stopped: a signal that was sent has not been taken yet.
freeze() {
    local record
    signal STOP "$1"
    record=$(process "$1")
    # Counted: a grep that stops reading at the first line makes the whole pipe fail.
    while [ "$(cat "/proc/${record% *}"/task/*/stat | sed 's/.*) //' | grep -cv '^[Tt]')" != 0 ]; do sleep 0.02; done
}

# Ends the name server that the broker started.
name_server() {
    ( environment "$1"; timeout 10 epmd -kill ) >/dev/null 2>&1 || true
}

restart() {
    local record
    if record=$(process "$1") && alive "$record"; then
        kill -CONT "${record% *}" 2>/dev/null || true
        end_process "$record" 20
    fi
    run "$1" || { tail -n 30 "$1"/log/*.log >&2; die "RabbitMQ does not start again"; }
}

ctl() {
    local dir=$1
    shift
    environment "$dir"
    exec "$PROGRAMS/rabbitmqctl" --quiet "$@"
}

stop() {
    local dir=$1
    [ -f "$dir/ports" ] || { rm -rf "$dir"; return 0; }
    crash "$dir"
    end_session "$dir"
    name_server "$dir"
    rm -rf "$dir"
}

sweep() {
    local dir
    for dir in /var/tmp/kring-test-rabbitmq.*; do
        [ -d "$dir" ] && [ ! -e "/proc/${dir##*.}" ] || continue
        stop "$dir"
    done
}

case ${1:-} in
start|stop|restart) [ $# -eq 2 ] || die "usage: $0 $1 DIR"; "$1" "$2" ;;
kill)  [ $# -eq 2 ] || die "usage: $0 kill DIR"; crash "$2" ;;
freeze) [ $# -eq 2 ] || die "usage: $0 freeze DIR"; freeze "$2" ;;
thaw)  [ $# -eq 2 ] || die "usage: $0 thaw DIR"; signal CONT "$2" ;;
ctl)   [ $# -ge 3 ] || die "usage: $0 ctl DIR ARG…"; shift; ctl "$@" ;;
sweep) sweep ;;
*)     sed -n '2,/^set /{/^#/s/^# \{0,1\}//p}' "$0"; exit 2 ;;
esac
