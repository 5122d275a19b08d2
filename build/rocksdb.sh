#!/usr/bin/env bash
# Builds RocksDB once for all profiles, and tells cargo where it is.
#
# The crate librocksdb-sys compiles some 340 C++ files, once for each profile: about a quarter of an hour on two cores,
# most of it spent on parsing the same headers again. This script compiles the same files of the same crate version
# with the same defines, joined into a few large units, and keeps the library in a cache that outlives `cargo clean`.
# It then writes .cargo/config.toml (ignored by git), so that a plain `cargo build` links it too. Without that file
# cargo still works: it compiles the bundled source itself.
#
# Usage: build/rocksdb.sh [path to a Cargo.toml]
#   HOLDFAST_CACHE   where the library is kept, instead of ~/.cache/holdfast
#   ROCKSDB_LIB_DIR  already set: a library of your own; the script does nothing
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
manifest=${1:-$root/Cargo.toml}
config=$root/.cargo/config.toml
mark="# Written by build/rocksdb.sh. Delete it to let cargo compile the bundled RocksDB."
chunks=8

say() { printf 'rocksdb %s\n' "$*"; }
die() { printf 'rocksdb: %s\n' "$*" >&2; exit 1; }

if [ -n "${ROCKSDB_LIB_DIR:-}" ]; then
    say "taken from ROCKSDB_LIB_DIR ($ROCKSDB_LIB_DIR)"
    exit 0
fi
if [ "$(uname -s)" != Linux ]; then
    say "left to cargo: this script knows Linux only"
    exit 0
fi
cxx=${CXX:-c++}
for tool in cargo "$cxx" ar flock sha256sum awk; do
    command -v "$tool" >/dev/null || die "$tool is missing; run build/setup.sh build"
done

# The crate's source, in the version that Cargo.lock pins. cargo metadata fetches what is not there yet.
metadata=$(cargo metadata --format-version 1 ${CI:+--locked} --manifest-path "$manifest" \
    --filter-platform "$(rustc -vV | sed -n 's/^host: //p')")
source_of() {
    grep -o "\"manifest_path\":\"[^\"]*/$1-[0-9][^\"/]*/Cargo.toml\"" <<<"$metadata" |
        sed 's/^"manifest_path":"//; s/\/Cargo.toml"$//' | sort -u
}
src=$(source_of librocksdb-sys || true)
lz4=$(source_of lz4-sys || true)
if [ -z "$src" ]; then
    say "is not among the dependencies: nothing to do"
    exit 0
fi
[ "$(wc -l <<<"$src")" = 1 ] || die "two versions of librocksdb-sys in Cargo.lock"
[ -f "$lz4/liblz4/lib/lz4.h" ] || die "the lz4 feature of the rocksdb crate is off: this script expects it on"
version=${src##*/librocksdb-sys-}

# What follows repeats build_rocksdb() of the crate's build.rs for Linux. lz4 itself comes from the crate lz4-sys.
case $(uname -m) in
    # RocksDB's checksum needs SSE 4.2, which every 64-bit server since 2009 has; v3 would shut out older ones.
    x86_64) arch=(-march=x86-64-v2) ;;
    aarch64) arch=(-march=armv8-a+crc+aes+crypto) ;;
    *) arch=() ;;
esac
flags=(-std=c++20 -O2 "${arch[@]}" -fPIC -ffunction-sections -fdata-sections -w -include cstdint)
defines=(-DLZ4=1 -DNDEBUG=1 -DHAVE_ALIGNED_NEW -DHAVE_UINT128_EXTENSION -DOS_LINUX -DROCKSDB_PLATFORM_POSIX
    -DROCKSDB_LIB_IO_POSIX -DROCKSDB_SCHED_GETCPU_PRESENT -DROCKSDB_AUXV_GETAUXVAL_PRESENT
    -DROCKSDB_FALLOCATE_PRESENT -DROCKSDB_RANGESYNC_PRESENT)
includes=("-I$src/rocksdb/include" "-I$src/rocksdb" "-I$src/rocksdb/third-party/gtest-1.8.1/fused-src" "-I$src"
    "-I$lz4/liblz4/lib")

recipe="${flags[*]} ${defines[*]} chunks=$chunks lz4=${lz4##*/} $("$cxx" -dumpmachine) $("$cxx" -dumpfullversion -dumpversion)"
key=$version-$(sha256sum <<<"$recipe" | cut -c1-12)

# A folder that outlives the clone is best; where the home directory cannot be written, target/ has to do.
cache=${HOLDFAST_CACHE:-${XDG_CACHE_HOME:-${HOME:-/nonexistent}/.cache}/holdfast}
if ! { mkdir -p "$cache" && [ -w "$cache" ]; } 2>/dev/null; then
    cache=${CARGO_TARGET_DIR:-$root/target}
    mkdir -p "$cache"
fi
cache=$(cd "$cache" && pwd)
lib=$cache/rocksdb-$key

write_config() {
    local text llvm=
    # bindgen loads libclang at run time. It looks in the usual places by itself, but not for every version's name.
    if [ -z "${LIBCLANG_PATH:-}" ]; then
        llvm=$("$root/build/libclang.sh") || die "libclang is missing; run build/setup.sh build"
    fi
    text=$mark$'\n'"[env]"$'\n'"ROCKSDB_LIB_DIR = \"$lib\""$'\n'"ROCKSDB_STATIC = \"1\""
    [ -z "$llvm" ] || text+=$'\n'"LIBCLANG_PATH = \"$llvm\""
    if [ -f "$config" ]; then
        [ "$text" != "$(cat "$config")" ] || return 0
        if ! grep -qF "$mark" "$config"; then
            say "is in $lib; $config is yours and was left alone: add to it"
            printf '%s\n' "$text"
            return 0
        fi
    fi
    mkdir -p "${config%/*}"
    # By rename, so that a cargo that starts meanwhile reads the whole file or none.
    printf '%s\n' "$text" >"$config.$$"
    mv "$config.$$" "$config"
}

if [ -f "$lib/librocksdb.a" ]; then
    write_config
    exit 0
fi

exec 9>"$cache/rocksdb-$key.lock"
if ! flock -n 9; then
    say "is being built by another process: waiting"
    flock 9
fi
if [ -f "$lib/librocksdb.a" ]; then
    write_config
    exit 0
fi

# Compiles the given source files as one unit. Names that clash in one unit (a newer RocksDB may bring some) make the
# compiler fail: then the unit is halved, down to single files.
compile() {
    local name=$1 file
    shift
    for file; do printf '#include "%s"\n' "$file"; done >"$work/$name.cc"
    if "$cxx" "${flags[@]}" "${defines[@]}" "${includes[@]}" -c "$work/$name.cc" -o "$work/$name.o" 9>&- \
        2>"$work/$name.log"; then
        return 0
    fi
    rm -f "$work/$name.o"
    if [ $# = 1 ]; then
        cat "$work/$name.log" >&2
        return 1
    fi
    local half=$(($# / 2))
    compile "${name}a" "${@:1:half}" && compile "${name}b" "${@:half+1}"
}

work=$lib.tmp
rm -rf "$work"
mkdir -p "$work"
finish() {
    local pid
    for pid in $(jobs -p); do kill "$pid" 2>/dev/null || true; done
    wait
    rm -rf "$work"
}
trap finish EXIT
trap 'exit 130' INT TERM HUP

# The large units need some 2 GiB each.
jobs=$(nproc)
memory=$(awk '/^MemAvailable:/ { print int($2 / 2097152) }' /proc/meminfo)
if [ "${memory:-1}" -lt "$jobs" ]; then jobs=$((memory > 1 ? memory : 1)); fi
say "$version: building once for all profiles, a few minutes ($jobs at a time)"
start=$SECONDS

# The units are cut by size, in the list's order, so that files of one folder share a unit and their headers.
# util/build_version.cc is left out: the crate brings its own.
mapfile -t sources < <(sed 's/[[:space:]]//g' "$src/rocksdb_lib_sources.txt" | grep -v '^$' | grep -vx 'util/build_version.cc')
[ "${#sources[@]}" -gt 100 ] || die "the crate's list of sources is not where it was expected"
total=$(cd "$src/rocksdb" && cat "${sources[@]}" | wc -c)
sofar=0
unit=()
number=0
units=()
for file in "${sources[@]}" end; do
    if [ "$file" = end ] || [ $((sofar * chunks / total)) -gt "$number" ]; then
        units+=("${unit[*]@Q}")
        unit=()
        number=$((number + 1))
    fi
    [ "$file" != end ] || break
    unit+=("$src/rocksdb/$file")
    sofar=$((sofar + $(wc -c <"$src/rocksdb/$file")))
done

done_units=0
running=0
reap() {
    wait -n || die "the build failed"
    running=$((running - 1))
    done_units=$((done_units + 1))
    say "$done_units/${#units[@]} ($((SECONDS - start)) s)"
}
for number in "${!units[@]}"; do
    [ "$running" -lt "$jobs" ] || reap
    eval "unit=(${units[number]})"
    if [ "$number" = 0 ]; then unit+=("$src/build_version.cc"); fi
    compile "unit$number" "${unit[@]}" &
    running=$((running + 1))
done
while [ "$running" -gt 0 ]; do reap; done

ar crs "$work/librocksdb.a" "$work"/*.o
rm -f "$work"/*.o "$work"/*.cc "$work"/*.log
printf '%s\n' "$recipe" >"$work/recipe"
# A whole library or none: the rename is the last step.
rm -rf "$lib"
mv "$work" "$lib"
write_config
say "done in $((SECONDS - start)) s: $lib"
