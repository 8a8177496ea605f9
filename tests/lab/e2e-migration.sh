# Live migration in the fleet of e2e.sh, which sources this: that guests go on counting, how long they stand
# still, and how long it takes, beside `virsh migrate` of the same guest between the same hosts.

# Rounds of there and back. One way is a sample, so medians are of twice as many.
ROUNDS=4

host_of() { kring vm show "$1" -o json | jq -r .host_id; }
id_of() { kring host show "$1" -o json | jq -r .id; }
last_tick() { kring vm log "$1" | sed -n 's/^KRING-GUEST tick //p' | tail -n 1 | tr -d '\r'; }
ticks_on() { local now; now=$(last_tick "$1"); [ -n "$now" ] && [ "$now" -gt "$2" ]; }
root_of() { printf '/proc/%s/root' "$(machine show "$1" | sed -n 's/^pid=//p')"; }

# Moves a VM to a host; its guest must go on counting where it was.
moves() {
    local before after began
    await 60 ticks_on "$1" 0
    began=$SECONDS
    before=$(last_tick "$1")
    kring vm migrate "$1" --host "$2"
    [ "$(host_of "$1")" = "$(id_of "$2")" ] || die "$1 is not on $2"
    await 60 ticks_on "$1" "$((before + 1))"
    after=$(kring vm log "$1" | sed -n 's/^KRING-GUEST tick //p' | head -n 1 | tr -d '\r')
    # It counts seconds, also while it is moved, which takes as long as the machine lets it; a new one would begin at 1.
    [ "$after" -ge "$before" ] && [ "$after" -le $((before + SECONDS - began + 2)) ] || die "$1 counted to $before and went on with $after"
    if kring vm log "$1" | grep -q 'KRING-GUEST boot'; then die "$1 was started anew"; fi
}

# The machine `sv` listens on the hosts' segment to a guest that sends it echo requests.
LISTENER=10.88.0.250
listen() {
    plug sv
    on sv ip addr add "$LISTENER/24" dev eth1
    "${SUDO[@]}" cp "$LAB/pause.py" "$(root_of sv)/root/pause.py"
    on sv systemd-run --quiet --unit=pause python3 /root/pause.py watch eth1 /root/arrivals
}
heard() { "${SUDO[@]}" python3 "$LAB/pause.py" "$1" "$(root_of sv)/root/arrivals" "${@:2}"; }
heard_after() { [ "$(heard last)" -gt "$1" ]; }
median() { sort -n "$1" | awk '{ v[NR] = $1 } END { print (v[int((NR + 1) / 2)] + v[int(NR / 2) + 1]) / 2 }'; }
most() { sort -n "$1" | tail -n 1; }

# Runs a command that moves the guest, and notes in $WORK/$1.total and $WORK/$1.pause how long it took and how
# long the guest stood still, in milliseconds.
measured() {
    local name=$1 began ended
    shift
    began=$(date +%s%N)
    "$@" >"$WORK/moved" 2>&1 || { cat "$WORK/moved"; die "did not move: $*"; }
    ended=$(date +%s%N)
    # What comes from the other side belongs to it.
    await 30 heard_after "$((ended + 500000000))"
    printf '%s\n' "$(((ended - began) / 1000000))" >>"$WORK/$name.total"
    heard longest "$((began - 100000000))" "$((ended + 500000000))" >>"$WORK/$name.pause"
}

# By libvirt's own command: the two libvirts are reached by their sockets, memory goes by plain TCP.
virsh_of() { printf 'qemu+unix:///system?socket=%s/run/libvirt/libvirt-sock' "$(root_of "$1")"; }
virsh_move() {
    "${SUDO[@]}" virsh -q -c "$(virsh_of "$2")" migrate --live --persistent --undefinesource --auto-converge --unsafe \
        --migrateuri "tcp://${ADDRESS[$3]}" "$1" "$(virsh_of "$3")"
}

# Moves the running VM $1, which is on h1, there and back: by Kring, and then by libvirt's own command while the
# agents are away. It stays the same guest, and both are measured in the same way.
compare() {
    local vm=$1 id=kring-$(kring vm show "$1" -o json | jq -r .id) round calm dir
    calm=$(date +%s%N)
    await 30 heard_after "$((calm + 5000000000))"
    calm=$(heard longest "$calm" "$((calm + 5000000000))")
    for ((round = 0; round < ROUNDS; round++)); do
        measured kring kring vm migrate "$vm" --host h2
        measured kring kring vm migrate "$vm" --host h1
    done
    for name in h1 h2; do on "$name" systemctl stop kring-agent; done
    # What Kring's agent would have made ready: seed and serial log, which are the hosts' own.
    dir=/var/lib/kring-agent/vms/${id#kring-}
    on h2 mkdir -p "$dir"
    "${SUDO[@]}" cp -a "$(root_of h1)$dir/." "$(root_of h2)$dir"
    for ((round = 0; round < ROUNDS; round++)); do
        measured virsh virsh_move "$id" h1 h2
        measured virsh virsh_move "$id" h2 h1
    done
    on h2 rm -r "$dir"
    for name in h1 h2; do on "$name" systemctl start kring-agent; done
    await 60 connected h1
    await 60 connected h2
    await 60 runs "$vm"
    figure "live migration, $((2 * ROUNDS)) times each: total (median) $(median "$WORK/kring.total") ms, virsh migrate $(median "$WORK/virsh.total") ms:" \
        "$(awk -v a="$(median "$WORK/kring.total")" -v b="$(median "$WORK/virsh.total")" 'BEGIN { printf "%.2f", a / b }') times (wanted: at most 1.20)"
    figure "the guest stood still (median; most) $(median "$WORK/kring.pause"); $(most "$WORK/kring.pause") ms," \
        "by virsh migrate $(median "$WORK/virsh.pause"); $(most "$WORK/virsh.pause") ms; at rest $calm ms (wanted: at most 300)"
}
connected() { [ "$(kring host show "$1" -o json | jq -r .connection)" = connected ]; }
runs() { [ "$(kring vm show "$1" -o json | jq -r .state)" = running ]; }
