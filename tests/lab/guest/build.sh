#!/usr/bin/env bash
# Builds the test guest's disk image: a partitioned disk with a boot loader, the distribution's
# kernel for virtual machines and an initramfs of static busybox (rootfs/). It needs no privileges,
# no loop device and no mount.
#
#   tests/lab/guest/build.sh [--uefi] [OUT.qcow2]
#
# The image is kept in the cache and made anew only when these scripts change; its path there is
# printed, and it is copied to OUT when one is given. With --uefi the disk boots by UEFI (a unified
# kernel image on an EFI system partition) in place of BIOS (syslinux).
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
. "$here/../lib.sh"

FIRMWARE=bios
[ "${1:-}" = --uefi ] && { FIRMWARE=uefi; shift; }
OUT=${1:-}
# Everything in the image gets this date, so that equal inputs give equal bytes.
export SOURCE_DATE_EPOCH=1767225600 TZ=UTC LC_ALL=C
# Emulated processors are slow to calibrate and to harden, and a test guest needs neither.
CMDLINE='console=tty0 console=ttyS0,115200n8 quiet loglevel=4 panic=5 mitigations=off nokaslr no_timer_check tsc=reliable net.ifnames=0 random.trust_cpu=on'
# Drivers, in any order: what they depend on is found and put before them.
MODULES='virtio_pci virtio_blk virtio_net virtio_console virtio_balloon virtio_rng button evdev vfat nls_cp437 nls_ascii nls_utf8 nls_iso8859_1 isofs'

[ "$(dpkg --print-architecture)" = amd64 ] || die "the test guest is built on amd64 only"
find_cache
STORE=$CACHE/guest
mkdir -p "$STORE"
key=$( (cd "$here" && find build.sh rootfs -type f -print0 | sort -z | xargs -0 sha256sum) | sha256sum | cut -c1-16)
IMAGE=$STORE/test-guest-$FIRMWARE-$key.qcow2

deliver() {
    if [ -n "$OUT" ]; then
        mkdir -p "$(dirname "$OUT")"
        cp --reflink=auto "$IMAGE" "$OUT.part"
        mv "$OUT.part" "$OUT"
    fi
    say "${OUT:-$IMAGE}"
    exit 0
}
[ -f "$IMAGE" ] && deliver
lock "$STORE/lock"
[ -f "$IMAGE" ] && deliver

# We hold the lock: a folder of this name is of a build that was killed.
rm -rf "$STORE"/build.*
work=$STORE/build.$$
trap 'rm -rf "$work"' EXIT
mkdir "$work"

# Unpacks the newest package of a name into $work/root without installing it.
unpack() {
    mkdir -p "$work/deb"
    (cd "$work/deb" && apt-get -q -o APT::Sandbox::User=root -o Acquire::Retries=3 download "$1" >/dev/null 2>&1) || return 1
    dpkg -x "$work"/deb/"$1"_*.deb "$work/root"
}

# Debian has a kernel made for virtual machines; Ubuntu splits its own into image and modules.
unpack_kernel() {
    local meta image
    for meta in linux-image-cloud-amd64 linux-image-virtual; do
        image=$(apt-cache depends --no-recommends --no-suggests "$meta" 2>/dev/null |
            sed -n 's/^ *Depends: \(linux-image-[0-9][^ ]*\).*/\1/p' | head -n 1)
        [ -n "$image" ] && break
    done
    [ -n "$image" ] || return 1
    unpack "$image" || return 1
    if apt-cache show "linux-modules-${image#linux-image-}" >/dev/null 2>&1; then
        unpack "linux-modules-${image#linux-image-}" || return 1
    fi
}
if ! unpack_kernel; then
    say "  the package lists are old: updating them" >&2
    need_privileges
    "${SUDO[@]}" apt-get -qq -o DPkg::Lock::Timeout=600 update >/dev/null
    unpack_kernel || die "apt found no kernel for the test guest (linux-image-cloud-amd64 or linux-image-virtual)"
fi
kernel=$(echo "$work"/root/boot/vmlinuz-*)
tree=$(echo "$work"/root/lib/modules/* "$work"/root/usr/lib/modules/* | tr ' ' '\n' | grep -v '[*]')
[ -f "$kernel" ] && [ -d "$tree" ] || die "the kernel package has not the expected files"

root=$work/initramfs
mkdir -p "$root"/{bin,dev,proc,sys,run,tmp,www,modules,etc}
cp -R "$here/rootfs/." "$root/"
cp /bin/busybox "$root/bin/busybox"
"$root/bin/busybox" true || die "busybox-static is not installed"
for applet in $("$root/bin/busybox" --list); do
    [ "$applet" = busybox ] || ln -sf busybox "$root/bin/$applet"
done
ln -s bin "$root/sbin"

declare -A file_of=() placed=()
while read -r path; do
    name=${path##*/}; name=${name%%.ko*}; file_of[${name//-/_}]=$path
done < <(find "$tree" -name '*.ko*')
# Puts a module and, before it, what it depends on into the initramfs. One that is not a file is
# built into the kernel, or not made for it; the boot shows which.
place() {
    local name=${1//-/_} path depends
    [ -n "${placed[$name]:-}" ] && return 0
    placed[$name]=1
    path=${file_of[$name]:-}
    [ -n "$path" ] || return 0
    case $path in
    *.zst) zstd -qdc "$path" >"$root/modules/$name.ko" ;;
    *.xz)  xz -dc "$path" >"$root/modules/$name.ko" ;;
    *.gz)  gzip -dc "$path" >"$root/modules/$name.ko" ;;
    *)     cp "$path" "$root/modules/$name.ko" ;;
    esac
    depends=$(tr '\0' '\n' <"$root/modules/$name.ko" | sed -n 's/^depends=//p' | tr ',' ' ')
    for name in $depends; do place "$name"; done
    printf '%s\n' "${1//-/_}.ko" >>"$root/modules/order"
}
: >"$root/modules/order"
for module in $MODULES; do place "$module"; done

find "$root" -exec touch -h -d "@$SOURCE_DATE_EPOCH" {} +
(cd "$root" && find . -print0 | sort -z |
    cpio --null --create --format=newc --reproducible --owner=0:0 --quiet) | gzip -n -9 >"$work/initrd"

# One FAT partition after the first MiB, as large as its contents ask for and 4 MiB to write in.
disk=$work/disk.raw
part=1048576
mib=$(( ($(stat -c %s "$kernel") + $(stat -c %s "$work/initrd")) / 1048576 + 6 ))
sectors=$((mib * 2048))
truncate -s $(( (mib + 1) * 1048576 )) "$disk"
mformat -i "$disk@@$part" -T "$sectors" -h 64 -s 32 -H 2048 -c 4 -N 4b52494e -v KRING ::
copy_in() { mcopy -i "$disk@@$part" -m "$1" "::$2"; }

if [ "$FIRMWARE" = uefi ]; then
    # The firmware starts EFI/BOOT/BOOTX64.EFI of a disk that it knows nothing else about. The
    # addresses must keep the sections apart and be low: the firmware sets aside memory up to the last.
    printf '%s\0' "$CMDLINE" >"$work/cmdline"
    linux_at=$((0x100000))
    initrd_at=$(( (linux_at + $(stat -c %s "$kernel") + 0xfffff) & ~0xfffff ))
    objcopy --enable-deterministic-archives \
        --add-section .cmdline="$work/cmdline" --change-section-vma .cmdline=0x30000 \
        --add-section .linux="$kernel" --change-section-vma .linux=$linux_at \
        --add-section .initrd="$work/initrd" --change-section-vma .initrd=$initrd_at \
        /usr/lib/systemd/boot/efi/linuxx64.efi.stub "$work/BOOTX64.EFI"
    touch -d "@$SOURCE_DATE_EPOCH" "$work/BOOTX64.EFI"
    mmd -i "$disk@@$part" ::EFI ::EFI/BOOT
    copy_in "$work/BOOTX64.EFI" EFI/BOOT/BOOTX64.EFI
    kind='\xef'
else
    printf 'SERIAL 0 115200\nDEFAULT kring\nPROMPT 0\nTIMEOUT 0\nLABEL kring\n  LINUX /vmlinuz\n  INITRD /initrd\n  APPEND %s\n' \
        "$CMDLINE" >"$work/syslinux.cfg"
    cp "$kernel" "$work/vmlinuz"
    touch -d "@$SOURCE_DATE_EPOCH" "$work/syslinux.cfg" "$work/vmlinuz" "$work/initrd"
    copy_in "$work/vmlinuz" vmlinuz
    copy_in "$work/initrd" initrd
    copy_in "$work/syslinux.cfg" syslinux.cfg
    syslinux --install --offset "$part" "$disk"
    dd if=/usr/lib/syslinux/mbr/mbr.bin of="$disk" bs=440 count=1 conv=notrunc status=none
    kind='\x0e'
fi

# The partition table: a disk signature, one active entry from sector 2048, the end mark.
le32() { printf '\\x%02x\\x%02x\\x%02x\\x%02x' $(($1 & 255)) $(($1 >> 8 & 255)) $(($1 >> 16 & 255)) $(($1 >> 24 & 255)); }
poke() { printf "$2" | dd of="$disk" bs=1 seek="$1" conv=notrunc status=none; }
poke 440 'KRNG'
poke 446 "\\x80\\xfe\\xff\\xff$kind\\xfe\\xff\\xff$(le32 2048)$(le32 "$sectors")"
poke 510 '\x55\xaa'

qemu-img convert -f raw -O qcow2 "$disk" "$work/disk.qcow2"
mv "$work/disk.qcow2" "$IMAGE"
# What older scripts built is not needed any more.
find "$STORE" -maxdepth 1 -name "test-guest-$FIRMWARE-*.qcow2" ! -path "$IMAGE" -delete
deliver
