#!/usr/bin/env bash
# A fleet of booted machines, from nothing: PostgreSQL, RabbitMQ, HAProxy, two controllers and two KVM hosts,
# all of it installed from our packages by our playbook over ssh. Then what operators do with it.
#
#   tests/lab/e2e.sh [FOLDER]    packages that are there already; otherwise quick ones are made
#
# KRING_PACKAGES_BUILT=1 says that the programs are built. KRING_E2E_KEEP=1 keeps the machines when a part
# fails, for a look; `machine.sh down --all` removes them.
set -euo pipefail
LAB=$(cd "$(dirname "$0")" && pwd)
ROOT=$(cd "$LAB/../.." && pwd)
. "$LAB/lib.sh"
. "$LAB/e2e-migration.sh"
need_privileges
BEGAN=$SECONDS
WORK=$(mktemp -d)
MACHINES=(sv c1 c2 h1 h2)
declare -A ADDRESS
# A segment that both hosts are plugged into with a card of their own, and a folder that both see as a mount.
SEGMENT=ks$$
SHARE=/var/tmp/kring-share-$$

machine() { "$LAB/machine.sh" "$1" "$2-$$" "${@:3}"; }
on() { "$LAB/machine.sh" exec "$1-$$" "${@:2}"; }
# The command line on a controller, as the playbook gives it to root: it knows both controllers.
kring() { on c1 env KRING_CONFIG=/etc/kring/cli.toml kring "$@"; }
part() { say "--- $1 ($((SECONDS - BEGAN)) s)"; }
# A figure that is told again at the end.
figure() { say "    $*"; printf '    %s\n' "$*" >>"$WORK/figures"; }
await() {
    local deadline=$((SECONDS + $1)); shift
    until "$@" >"$WORK/await" 2>&1; do
        [ $SECONDS -lt $deadline ] || { cat "$WORK/await"; die "did not come to be: $*"; }
        sleep 0.5
    done
}
guests() { on "$1" pgrep -f '[-]name guest=' | tr '\n' ' '; }

finish() {
    local code=$? name
    [ -z "${load:-}" ] || touch "$WORK/stop"
    if [ $code -ne 0 ]; then
        for name in c1 c2 h1 h2; do
            say "=== the journal of $name, its end"
            on "$name" journalctl --no-pager -n 25 -o cat -u 'kring-*' 2>/dev/null || true
        done
    fi
    wait
    if [ $code -eq 0 ] || [ -z "${KRING_E2E_KEEP:-}" ]; then
        for name in "${MACHINES[@]}"; do
            machine down "$name" || true
            # What was plugged in goes with the machine, but not before its last connection has.
            "${SUDO[@]}" ip link del "$SEGMENT-$name" 2>/dev/null || true
        done
        "${SUDO[@]}" ip link del "$SEGMENT" 2>/dev/null || true
        "${SUDO[@]}" rm -rf "$SHARE"
    fi
    rm -rf "$WORK"
    exit $code
}
trap finish EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

# Plays a playbook; its output is shown when it fails. Leaves the recap in $WORK/recap.
play() {
    local code=0
    (cd "$ROOT/ansible" && ANSIBLE_NOCOLOR=1 ANSIBLE_HOST_KEY_CHECKING=0 \
        ansible-playbook -i "$WORK/inventory.yml" --private-key "$KEY" -e kring_packages="$WORK/packages" "$@") >"$WORK/play" 2>&1 || code=$?
    sed -n '/^PLAY RECAP/,$p' "$WORK/play" >"$WORK/recap"
    [ $code -eq 0 ] || { tail -n 60 "$WORK/play"; die "the play failed: $*"; }
}
nothing_changed() {
    if grep -v 'changed=0 ' "$WORK/recap" | grep changed=; then
        grep -B3 '^changed:' "$WORK/play" || true
        die "$1 changed something"
    fi
}

# The fleet as the playbook is told of it, with the KVM hosts that are given.
inventory() {
    local name hosts=''
    for name in "$@"; do hosts+=${hosts:+, }"$name: {}"; done
    {
        printf 'all:\n  vars:\n    ansible_user: root\n    kring_database_password: database-%s\n    kring_broker_password: broker-%s\n  children:\n' $$ $$
        for name in database broker balancer; do printf '    %s: {hosts: {sv: {}}}\n' "$name"; done
        printf '    controllers: {hosts: {c1: {}, c2: {}}}\n    kvm_hosts: {hosts: {%s}}\n  hosts:\n' "$hosts"
        for name in sv c1 c2 "$@"; do printf '    %s: {ansible_host: %s}\n' "$name" "${ADDRESS[$name]}"; done
    } >"$WORK/inventory.yml"
}

# Calls without an end: each must succeed, whatever is killed or upgraded meanwhile.
calls() {
    local n=0
    while [ ! -e "$WORK/stop" ]; do
        kring vm pause v1 >"$WORK/call" 2>&1 && kring vm resume v1 >"$WORK/call" 2>&1 && kring vm list >"$WORK/call" 2>&1 ||
            { cp "$WORK/call" "$WORK/failed"; return 1; }
        n=$((n + 3))
        printf '%s' "$n" >"$WORK/calls"
    done
}
begin_load() { rm -f "$WORK/stop" "$WORK/failed"; printf 0 >"$WORK/calls"; calls & load=$!; }
end_load() {
    touch "$WORK/stop"
    wait "$load" || { cat "$WORK/failed"; die "a call failed while $1"; }
    load=
    say "    $(<"$WORK/calls") calls, none failed, while $1"
}

# Plugs a card eth1 into a host; a host that has restarted has lost it.
plug() {
    local pid link
    pid=$(machine show "$1" | sed -n 's/^pid=//p')
    link=$SEGMENT-$1
    "${SUDO[@]}" ip link del "$link" 2>/dev/null || true
    "${SUDO[@]}" ip link add "$link" type veth peer name eth1 netns "$pid"
    "${SUDO[@]}" ip link set "$link" master "$SEGMENT" up
    on "$1" ip link set eth1 up
}
newer() {
    local package
    mkdir -p "$WORK/next"
    for package in "$WORK"/packages/*.deb; do
        dpkg-deb -R "$package" "$WORK/unpacked"
        sed -i 's/^Version: .*/&.next/' "$WORK/unpacked/DEBIAN/control"
        dpkg-deb --root-owner-group -Zgzip -z1 -b "$WORK/unpacked" "$WORK/next" >/dev/null
        rm -rf "$WORK/unpacked"
    done
    rm -rf "$WORK/packages"
    mv "$WORK/next" "$WORK/packages"
}

# ------------------------------------------------------------------------------------------------

part 'packages'
FOLDER=${1:-}
if [ -z "$FOLDER" ]; then
    "$ROOT/packaging/build.sh" --quick --deb ${KRING_PACKAGES_BUILT:+--built} "$WORK/made" >"$WORK/log" 2>&1 ||
        { tail -n 30 "$WORK/log"; die "the packages could not be made"; }
    FOLDER=$WORK/made
fi
mkdir "$WORK/packages"
for name in kring kring-controller kring-agent; do cp "$FOLDER/${name}"_*_amd64.deb "$WORK/packages"; done
GUEST=$("$LAB/guest/build.sh")

part 'machines boot'
"${SUDO[@]}" mkdir -p "$SHARE"
"${SUDO[@]}" ip link add "$SEGMENT" type bridge
"${SUDO[@]}" ip link set "$SEGMENT" up
for name in "${MACHINES[@]}"; do
    case $name in h*) shared=(--share "$SHARE") ;; *) shared=() ;; esac
    machine up "$name" "${shared[@]}" >"$WORK/machine"
    ADDRESS[$name]=$(sed -n 's/^address=//p' "$WORK/machine")
    KEY=$(sed -n 's/^ssh_key=//p' "$WORK/machine")
    # As images of Debian and Ubuntu have it; without it a playbook cannot even check.
    on "$name" apt-get -qq -o Dpkg::Use-Pty=0 install -y --no-install-recommends python3-apt >/dev/null 2>&1
done
inventory h1

part 'the playbook, only checking, on bare machines'
play site.yml --check
part 'the playbook'
play site.yml
part 'one more bare machine becomes a host'
inventory h1 h2
began=$SECONDS
play site.yml --limit h2
figure "from a bare booted machine to a joined host $((SECONDS - began)) s, its packages downloaded before (wanted: at most 60)"
part 'the playbook again, on all'
play site.yml
nothing_changed 'a second run'
play site.yml --check
nothing_changed 'a second run that only checks'

part 'VMs on both hosts'
"${SUDO[@]}" cp "$GUEST" "/proc/$(machine show c1 | sed -n 's/^pid=//p')/root/root/guest.qcow2"
kring image create guest --file /root/guest.qcow2
kring network create lan --cidr 10.77.0.0/24
for name in v1 v2; do kring vm create "$name" --image guest --vcpus 1 --memory 128MiB --network lan; done
[ "$(guests h1 | wc -w)" = 1 ] && [ "$(guests h2 | wc -w)" = 1 ] || die "the VMs are not on both hosts"
ready() { kring vm log "$1" | grep -q 'KRING-GUEST ready'; }
await 180 ready v1
await 180 ready v2
# By way of the balancer, whose name is in the certificates.
on c1 sh -c 'KRING_TOKEN=$(sed -n "s/^token = \"\(.*\)\"/\1/p" /etc/kring/cli.toml) KRING_CA=/var/lib/kring/pki/ca.pem KRING_URL=$1 kring vm list' \
    sh "https://${ADDRESS[sv]}:8443"

part 'guests of both hosts on one segment'
listen
for name in h1 h2; do plug "$name"; kring host reconnect "$name"; done
kring storage create nas --cluster default --path /mnt/nas --kind shared
kring network create segment --cidr 10.88.0.0/24 --kind bridged --uplink eth1
usable() { [ "$(kring storage show nas -o json | jq '[.hosts[] | select(.error == null)] | length')" = 2 ]; }
await 60 usable
on c1 sh -c 'printf "#!/bin/sh\nfor n in 1 2 3 4 5 6 7 8 9; do ping -c 1 -W 2 10.88.0.11 && echo NEIGHBOUR-REACHED && break; done\n" >/root/ping'
on c1 sh -c 'printf "#!/bin/sh\nping -q -i 0.02 %s >/dev/null 2>&1 &\n" "$1" >/root/count' sh "$LISTENER"
kring vm create b1 --image guest --vcpus 1 --memory 128MiB --network segment,ip=10.88.0.11 --host h1 --storage nas --user-data /root/count
await 180 ready b1
kring vm create b2 --image guest --vcpus 1 --memory 128MiB --network segment --host h2 --storage nas --user-data /root/ping
reached() { kring vm log b2 | grep -q NEIGHBOUR-REACHED; }
await 180 reached

part 'live migration there and back'
moves b1 h2
moves b1 h1
name=v1
[ "$(host_of v1)" = "$(id_of h1)" ] && there=h2 || there=h1
moves v1 "$there"
if kring vm migrate b1 --host h1 >"$WORK/refusal" 2>&1; then die "a VM moved to where it is"; fi

part 'live migration, measured'
compare b1

part 'maintenance of a host'
kring host maintain h1
[ "$(guests h1 | wc -w)" = 0 ] || die "guests still run on a host in maintenance"
[ "$(guests h2 | wc -w)" = 4 ] || die "the guests did not arrive"
kring host enable h1
moves b1 h1
moves v1 h1
for name in b1 b2; do kring vm delete "$name"; kring vm expunge "$name"; done

part 'a host restarts'
on h1 systemctl reboot || true
await 120 ticks_on v1 0
away() { [ "$(kring host show h1 -o json | jq -r .connection)" = connected ] && [ "$(kring vm show v1 -o json | jq -r .state)" = running ] && [ "$(guests h1 | wc -w)" = 1 ]; }
await 240 away
await 180 ready v1

part 'a controller is killed under load'
begin_load
sleep 3
on c2 sh -c 'kill -KILL "$(systemctl show -P MainPID kring-controller)"'
sleep 10
end_load 'a controller was killed'
both() { [ "$(kring controller list -q 'state = active' --count)" = 2 ] || [ "$(kring controller list -o json | grep -c '"active"')" = 2 ]; }
await 60 both

part 'upgrade, with VMs running and calls under way'
newer
h1=$(guests h1) h2=$(guests h2)
begin_load
play upgrade.yml
end_load 'everything was upgraded'
[ "$(guests h1) $(guests h2)" = "$h1 $h2" ] || die "the upgrade touched guests"
for name in c1 c2; do on "$name" dpkg-query -W -f '${Version}' kring-controller | grep -q next; done
for name in h1 h2; do on "$name" dpkg-query -W -f '${Version}' kring-agent | grep -q next; done

part 'a host is removed'
if (play remove-host.yml -e kring_remove=h2) >"$WORK/refusal" 2>&1; then die "a host with a VM was removed"; fi
grep -q 'holds 1 VMs' "$WORK/refusal" || { cat "$WORK/refusal"; die "the refusal does not say why"; }
h2=$(kring host show h2 -o json | jq -r .id)
for name in v1 v2; do
    [ "$(host_of "$name")" = "$h2" ] || continue
    kring vm delete "$name"
    kring vm expunge "$name"
done
play remove-host.yml -e kring_remove=h2
play remove-host.yml -e kring_remove=h2
[ "$(kring host list -o name | grep -c h2)" = 0 ] || die "the host is still there"
on h2 test ! -e /var/lib/kring-agent
on h2 test ! -e /usr/bin/kring-agent
say "=== the fleet is as it should be ($((SECONDS - BEGAN)) s)"
cat "$WORK/figures"
