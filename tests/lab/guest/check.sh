#!/usr/bin/env bash
# Boots a built image with QEMU and fails unless the guest does all that tests rely on: address by
# DHCP with classless routes and MTU, metadata and user data, status page, ready report, ticks,
# hot-plugged disk, clean power-off by the power button.
#
#   tests/lab/guest/check.sh [--uefi] IMAGE.qcow2
#
# It runs in network, process and mount namespaces of its own, so that nothing is left behind
# however it ends. It needs root (or sudo), QEMU, dnsmasq and python3.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
. "$here/../lib.sh"

if [ "${KRING_CHECK_INSIDE:-}" != yes ]; then
    need_privileges
    exec "${SUDO[@]}" env KRING_CHECK_INSIDE=yes unshare --net --pid --mount --fork --kill-child --mount-proc "$0" "$@"
fi
UEFI=no
[ "$1" = --uefi ] && { UEFI=yes; shift; }
IMAGE=$(realpath "$1")
# UEFI needs room for itself beside the guest.
[ "$UEFI" = yes ] && memory=${MEMORY:-192} || memory=${MEMORY:-128}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"

ip link set lo up
ip link add br0 type bridge
ip addr add 10.77.0.1/24 dev br0
ip addr add 169.254.169.254/32 dev br0
ip link set br0 up
ip tuntap add tap0 mode tap
ip link set tap0 master br0 up
dnsmasq --keep-in-foreground --conf-file=/dev/null --interface=br0 --bind-interfaces --port=0 \
    --dhcp-range=10.77.0.10,10.77.0.10,60s --dhcp-leasefile="$work/leases" --no-ping \
    --dhcp-option=121,0.0.0.0/0,10.77.0.1,169.254.169.254/32,10.77.0.1 --dhcp-option=26,1400 \
    --dhcp-option=6,10.77.0.1 >dnsmasq.log 2>&1 &

printf '#!/bin/sh\necho user-data-speaks\n' >user-data
cat >metadata.py <<'PY'
import http.server
ANSWERS = {"/latest/meta-data/instance-id": b"i-check", "/latest/meta-data/local-hostname": b"guest-one",
           "/latest/meta-data/public-keys/0/openssh-key": b"ssh-ed25519 AAAA check",
           "/latest/user-data": open("user-data", "rb").read()}
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = ANSWERS.get(self.path)
        self.send_response(404 if body is None else 200)
        self.end_headers()
        self.wfile.write(body or b"")
    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        open("ready", "wb").write(self.path.encode() + b" " + body)
        self.send_response(204)
        self.end_headers()
    def log_message(self, *_): pass
http.server.HTTPServer(("169.254.169.254", 80), Handler).serve_forever()
PY
python3 metadata.py &

qemu-img create -q -f qcow2 -b "$IMAGE" -F qcow2 root.qcow2
qemu-img create -q -f qcow2 data.qcow2 16M
firmware=()
if [ "$UEFI" = yes ]; then
    cp /usr/share/OVMF/OVMF_VARS_4M.fd vars.fd
    firmware=(-drive if=pflash,format=raw,readonly=on,file=/usr/share/OVMF/OVMF_CODE_4M.fd
        -drive if=pflash,format=raw,file=vars.fd)
fi
touch serial.log
begun=$(date +%s%N)
mkfifo monitor.in
qemu-system-x86_64 -machine q35 -accel "${ACCEL:-tcg}" -cpu "${CPU:-qemu64}" -m "$memory" -smp 1 -display none \
    -nodefaults "${firmware[@]}" -no-reboot \
    -drive if=none,id=root,file=root.qcow2,format=qcow2 -device pcie-root-port,id=rp1,slot=1 -device pcie-root-port,id=rp2,slot=2 \
    -device virtio-blk-pci,drive=root,bus=rp1 -netdev tap,id=n0,ifname=tap0,script=no,downscript=no \
    -device virtio-net-pci,netdev=n0,mac=52:54:00:00:00:01 -device virtio-rng-pci -device virtio-balloon-pci \
    -serial file:serial.log -monitor stdio <monitor.in >monitor.out 2>qemu.err &
qemu=$!
exec 8>monitor.in

since() { awk -v b="$begun" -v n="$(date +%s%N)" 'BEGIN { printf "%.1f s", (n - b) / 1e9 }'; }
# Waits until the serial output has a line that matches.
expect() {
    local deadline=$((SECONDS + ${2:-30}))
    until grep -qE "$1" serial.log; do
        kill -0 $qemu 2>/dev/null || { cat qemu.err serial.log; die "QEMU ended before: $1"; }
        [ $SECONDS -lt $deadline ] || { cat serial.log; die "the guest did not say: $1"; }
        sleep 0.05
    done
    say "$(since)  $(grep -m 1 -oE "$1.*" serial.log | tr -d '\r')"
}
sha=$(sha256sum <user-data | cut -d' ' -f1)
expect 'KRING-GUEST boot count=1' 120
expect 'KRING-GUEST ip=10.77.0.10 .*mtu=1400 gateway=10.77.0.1'
expect "KRING-GUEST instance-id=i-check hostname=guest-one user-data-sha256=$sha"
expect 'user-data-speaks'
expect 'KRING-GUEST ready instance-id=i-check hostname=guest-one posted=yes'
expect 'KRING-GUEST tick 1'
[ "$(cat ready)" = '/kring/ready instance_id=i-check' ] || die "the ready report was: $(cat ready)"
curl -fsS --max-time 5 http://10.77.0.10/ >status.json
jq -e '.hostname == "guest-one" and .instance_id == "i-check" and .ip == "10.77.0.10" and .ready' status.json >/dev/null || die "status page: $(cat status.json)"
say "$(since)  $(cat status.json)"
ping -c 1 -W 2 10.77.0.10 >/dev/null || die "no answer to ping"
echo 'drive_add 0 if=none,id=data,file=data.qcow2,format=qcow2' >&8
echo 'device_add virtio-blk-pci,drive=data,id=datadev,bus=rp2' >&8
expect 'KRING-GUEST disk vdb size=16777216' 30
echo 'device_del datadev' >&8
expect 'KRING-GUEST disk vdb gone' 30
echo system_powerdown >&8
expect 'KRING-GUEST power-button' 20
wait $qemu || die "QEMU ended with $?"
say "$(since)  powered off"
say "the guest does all that it should"
