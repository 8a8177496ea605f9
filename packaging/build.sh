#!/usr/bin/env bash
# Makes the packages: kring-controller, kring-agent, kring and kring-sim, each as .deb and .rpm, with the
# debug symbols in packages of their own.
#
#   packaging/build.sh [--quick | --unoptimised] [--deb | --rpm] [--no-symbols] [--built] [--revision N] [FOLDER]
#
# They are put into FOLDER (packages in cargo's target folder), which is emptied of packages first.
#   --quick       of the programs that tests are built with: large, and ready at once where they are built
#   --unoptimised as they are shipped but for the optimisation, to compare two builds sooner
#   --deb, --rpm  no .rpm, no .deb
#   --no-symbols  no packages of debug symbols
#   --built       the programs are built already, with this profile
#   --revision N  of the package, in 0.1.0-N (1)
#
# Two builds of one commit on one toolchain are the same to the byte: times are that of the commit, and
# paths of this machine are taken out.
set -euo pipefail
ROOT=$(cd "$(dirname "$0")/.." && pwd)
. "$ROOT/tests/lab/lib.sh"
cd "$ROOT"
command -v cargo >/dev/null || PATH=$PATH:${HOME:-}/.cargo/bin
find_cache
PATH=$CACHE/tools/bin:$PATH

PROFILE=packages BUILT=packages BUILD=yes DEB=yes RPM=yes VARIANTS=('' dbgsym) REVISION=1 OUT='' OPTIMISED=yes DEB_OPTIONS=()
while [ $# -gt 0 ]; do
    case $1 in
    --quick) PROFILE=dev BUILT=debug DEB_OPTIONS=(--fast) ;;
    --unoptimised) OPTIMISED=no DEB_OPTIONS=(--fast) ;;
    --deb) RPM=no ;;
    --rpm) DEB=no ;;
    --no-symbols) VARIANTS=('') ;;
    --built) BUILD=no ;;
    --revision) REVISION=$2; shift ;;
    -*) sed -n '2,/^set /{/^#/s/^# \{0,1\}//p}' "$0"; exit 2 ;;
    *) OUT=$1 ;;
    esac
    shift
done
TARGET=$(cargo metadata --locked --no-deps --format-version 1 | jq -r .target_directory)
export CARGO_TARGET_DIR=$TARGET LC_ALL=C TZ=UTC
OUT=${OUT:-$TARGET/packages-out}
STAGE=$TARGET/$BUILT/stage
EPOCH=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct 2>/dev/null || date -d "$(sed -n 's/^ -- .*>  //p' packaging/common/changelog | head -n 1)" +%s)}
# C libraries have the time in them at which they were built (mimalloc has). It is the same for all commits, and none
# with --quick, because build scripts run again when it changes.
unset SOURCE_DATE_EPOCH
[ "$PROFILE" != packages ] || export SOURCE_DATE_EPOCH=0
CARGO_FOLDER=${CARGO_HOME:-$HOME/.cargo}
MAX_AGENT=$((15 << 20))

compile() {
    if [ "$PROFILE" = packages ]; then
        export RUSTFLAGS="--remap-path-prefix=$CARGO_FOLDER=/cargo --remap-path-prefix=$ROOT=/kring --remap-path-prefix=$TARGET=/target"
        export CFLAGS="-ffile-prefix-map=$CARGO_FOLDER=/cargo -ffile-prefix-map=$TARGET=/target"
    fi
    if [ "$OPTIMISED" = no ]; then
        CARGO_PROFILE_PACKAGES_OPT_LEVEL=0 CARGO_PROFILE_PACKAGES_LTO=off CARGO_PROFILE_PACKAGES_CODEGEN_UNITS=16 \
            cargo build --locked --profile packages --bin kring --bin kring-controller --bin kring-agent --bin kring-sim
    elif [ "$PROFILE" = packages ]; then
        cargo build --locked --profile packages --bin kring --bin kring-controller --bin kring-sim
        # Built for size. It is packed from beside the others.
        cargo build --locked --profile agent --bin kring-agent
        cp "$TARGET/agent/kring-agent" "$TARGET/packages/kring-agent"
    else
        cargo build --locked --profile "$PROFILE" --bin kring --bin kring-controller --bin kring-agent --bin kring-sim
    fi
}

# What a package has beside its files in packaging/: program, symbols, manual, licences, examples.
stage() {
    local name=$1 dir=$STAGE/$1 program=$TARGET/$BUILT/$1 path
    mkdir -p "$dir/man"
    if [ "$PROFILE" = packages ]; then
        for path in "$ROOT/" "$TARGET/" "$CARGO_FOLDER/"; do
            if grep -qaF "$path" "$program"; then die "$name has the path $path in it, so that builds elsewhere differ"; fi
        done
    fi
    objcopy --only-keep-debug --compress-debug-sections "$program" "$dir/$name.debug"
    # No program needs the symbol table at run time; what a backtrace needs is in the symbols apart.
    strip --strip-all --remove-section=.comment -o "$dir/$name" "$program"
    objcopy --add-gnu-debuglink="$dir/$name.debug" "$dir/$name"
    "$program" manual "$dir/man"
    gzip -9n "$dir"/man/*
    {
        printf 'What %s is linked with, and under which licences (SPDX):\n\n' "$name"
        cargo tree --locked -p "$name" -e normal,no-proc-macro --prefix none --no-dedupe --format '{p} {l}' |
            sed -e 's/ (\*)//' -e 's/ (proc-macro)//' -e "s, ($ROOT[^)]*),," | sort -u
    } >"$dir/licences.txt"
    sed "s/PACKAGE/$name/" packaging/common/copyright >"$dir/copyright"
    case $name in
    kring)
        "$program" completion bash >"$dir/kring.bash"
        "$program" completion zsh >"$dir/_kring"
        "$program" completion fish >"$dir/kring.fish" ;;
    kring-controller) cp controller/config.default.toml "$dir/controller.toml.example" ;;
    kring-agent) cp agent/config.default.toml "$dir/agent.toml.example" ;;
    esac
    find "$dir" -exec touch -d "@$SOURCE_DATE_EPOCH" {} +
}

pack() {
    local name=$1 crate=$2
    for variant in "${VARIANTS[@]}"; do
        [ "$DEB" = no ] || cargo deb --locked --no-build --no-strip --no-dbgsym --profile "$PROFILE" -p "$name" --deb-revision "$REVISION" -q \
            ${variant:+--variant "$variant"} "${DEB_OPTIONS[@]}" -o "$OUT/"
        [ "$RPM" = no ] ||
            cargo generate-rpm -p "$crate" --profile "$PROFILE" --target-dir "$TARGET" -s "release = \"$REVISION\"" \
                ${variant:+--variant "$variant"} -o "$OUT/"
    done
}

[ "$BUILD" = no ] || compile
export SOURCE_DATE_EPOCH=$EPOCH
rm -rf "$STAGE"
mkdir -p "$OUT"
find "$OUT" -maxdepth 1 \( -name '*.deb' -o -name '*.rpm' \) -delete
for name in kring kring-controller kring-agent kring-sim; do stage "$name"; done
if [ "$PROFILE" = packages ] && [ "$OPTIMISED" = yes ]; then
    size=$(stat -c %s "$STAGE/kring-agent/kring-agent")
    [ "$size" -le $MAX_AGENT ] || die "kring-agent has $size bytes; more than 15 MiB are not wanted on every host"
fi
pack kring controller/cli
pack kring-controller controller
pack kring-agent agent
pack kring-sim tests/sim
(cd "$OUT" && shopt -s nullglob && sha256sum -- *.deb *.rpm >SHA256SUMS)
say "$OUT"
