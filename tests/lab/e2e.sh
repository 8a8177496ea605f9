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
need_privileges
BEGAN=$SECONDS
WORK=$(mktemp -d)
MACHINES=(sv c1 c2 h1 h2)
declare -A ADDRESS

machine() { "$LAB/machine.sh" "$1" "$2-$$" "${@:3}"; }
on() { "$LAB/machine.sh" exec "$1-$$" "${@:2}"; }
# The command line on a controller, as the playbook gives it to root: it knows both controllers.
kring() { on c1 env KRING_CONFIG=/etc/kring/cli.toml kring "$@"; }
part() { say "--- $1 ($((SECONDS - BEGAN)) s)"; }
await() {
    local deadline=$((SECONDS + $1)); shift
    until "$@" >"$WORK/await" 2>&1; do
        [ $SECONDS -lt $deadline ] || { cat "$WORK/await"; die "did not come to be: $*"; }
        sleep 0.5
    done
}
guests() { on "$1" pgrep -x qemu-system-x86 | tr '\n' ' '; }

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
        for name in "${MACHINES[@]}"; do machine down "$name" || true; done
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

inventory() {
    local name
    {
        printf 'all:\n  vars:\n    ansible_user: root\n    kring_database_password: database-%s\n    kring_broker_password: broker-%s\n  children:\n' $$ $$
        for name in database broker balancer; do printf '    %s: {hosts: {sv: {}}}\n' "$name"; done
        printf '    controllers: {hosts: {c1: {}, c2: {}}}\n    kvm_hosts: {hosts: {h1: {}, h2: {}}}\n  hosts:\n'
        for name in "${MACHINES[@]}"; do printf '    %s: {ansible_host: %s}\n' "$name" "${ADDRESS[$name]}"; done
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
for name in "${MACHINES[@]}"; do
    machine up "$name" >"$WORK/machine"
    ADDRESS[$name]=$(sed -n 's/^address=//p' "$WORK/machine")
    KEY=$(sed -n 's/^ssh_key=//p' "$WORK/machine")
    # As images of Debian and Ubuntu have it; without it a playbook cannot even check.
    on "$name" apt-get -qq -o Dpkg::Use-Pty=0 install -y --no-install-recommends python3-apt >/dev/null 2>&1
done
inventory

part 'the playbook, only checking, on bare machines'
play site.yml --check
part 'the playbook'
play site.yml
part 'the playbook again'
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
host_of() { kring vm show "$1" -o json | jq -r .host_id; }
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
