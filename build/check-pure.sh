#!/usr/bin/env bash
# Proves that the cores scsi/, iscsi/ and replica/ stay pure: no std, and so no threads, clocks, random numbers or I/O;
# no calls out of Rust; no dependency that has any of these; and of scsi, the part that the kernel links, no allocation.
# The simulator and the kernel module rest on this.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

cores=(scsi iscsi replica)
# All that a core may link, indirect dependencies included. Every name is a crate without std, whose only input is its
# arguments: hashes for CHAP, and comparison in constant time.
allowed="holdfast-scsi holdfast-iscsi holdfast-replica
    subtle md-5 sha1 sha2 sha3 keccak digest block-buffer crypto-common hybrid-array typenum const-oid sponge-cursor cpufeatures cfg-if"

failed=0
complain() { printf 'check-pure: %s\n' "$*" >&2; failed=1; }

# Prints the lines of a source file that are not test code, as "line number: text", without comments and strings.
program_text() {
    awk '
        {
            line = $0
            gsub(/\\\\/, "", line); gsub(/\\"/, "", line)
            gsub(/"[^"]*"/, "\"\"", line)
            gsub(/\047[{}";]\047/, "", line)
            sub(/\/\/.*/, "", line)
            text = line
        }
        !skip && line ~ /#\[cfg\((all\()?test[,)]/ { skip = 1; depth = 0; sub(/^.*#\[cfg\([^]]*\)\]/, "", text) }
        skip {
            # A test item ends at its first semicolon outside braces, or where its braces close.
            n = length(text)
            for (i = 1; i <= n; i++) {
                c = substr(text, i, 1)
                if (c == "{") depth++
                else if (c == "}") { if (--depth <= 0) { skip = 0; break } }
                else if (c == ";" && depth == 0) { skip = 0; break }
            }
            next
        }
        { print FNR ": " line }
    ' "$1"
}

# The names of modules in files of their own that exist for tests only.
test_modules() {
    awk '
        /^[[:space:]]*#\[cfg\((all\()?test[,)]/ { test = 1; sub(/^[[:space:]]*#\[cfg\([^]]*\)\]/, "") }
        test && /^[[:space:]]*(pub(\([a-z]+\))?[[:space:]]+)?mod[[:space:]]+[a-z0-9_]+;/ {
            sub(/^.*mod[[:space:]]+/, ""); sub(/;.*/, ""); print; test = 0; next
        }
        test && !/^[[:space:]]*(#\[|\/\/|$)/ { test = 0 }
    ' "$@"
}

# Words that have no place in a core even where no build of ours would compile them (behind a feature, say).
words='(^|[^A-Za-z0-9_:])(std::|extern[[:space:]]+crate[[:space:]]+std|extern[[:space:]]+""|(global_|naked_)?asm!|Instant::now|SystemTime|thread::|thread_local!|getrandom|include!)'

for core in "${cores[@]}"; do
    grep -qx '#!\[no_std\]' "$core/src/lib.rs" || complain "$core/src/lib.rs has no #![no_std]"
    [ ! -e "$core/build.rs" ] || complain "$core/build.rs: a core is the same everywhere and needs no build script"

    mapfile -t files < <(find "$core/src" -name '*.rs' | sort)
    mapfile -t skipped < <(test_modules "${files[@]}" | sort -u)
    for file in "${files[@]}"; do
        for module in "${skipped[@]}"; do
            case $file in */"$module".rs | */"$module"/*) continue 2 ;; esac
        done
        found=$(program_text "$file" | grep -E "$words" || true)
        [ -z "$found" ] || complain "$file:"$'\n'"$found"
    done

    # Macros that run at build time (no-proc-macro) are not linked.
    while read -r name; do
        case " ${allowed//$'\n'/ } " in
            *" $name "*) ;;
            *) complain "$core depends on $name, which is not among the allowed dependencies" ;;
        esac
    done < <(cargo tree -q -p "holdfast-$core" -e normal,no-proc-macro --all-features --prefix none --format '{p}' |
        awk 'NF { print $1 }' | sort -u)
done

# The compiler's own word. A target without an operating system is best, where the toolchain has one; on the host the
# probe clashes with std as soon as anything links it.
target=()
for name in x86_64-unknown-none aarch64-unknown-none; do
    if [ -d "$(rustc --print target-libdir --target "$name" 2>/dev/null || true)" ]; then
        target=(--target "$name")
        break
    fi
done
probe() {
    local what=$1
    shift
    cargo build -q --manifest-path build/pure-probe/Cargo.toml --target-dir "${CARGO_TARGET_DIR:-target}/pure-probe" \
        "${target[@]}" "$@" || complain "$what"
}
# The same versions as in the workspace; cargo drops what the probe does not need.
cp Cargo.lock build/pure-probe/Cargo.lock
probe "scsi without its feature alloc does not build without std and without the alloc crate (see the error above)"
probe "the cores do not build without std (see the error above)" --features alloc

[ "$failed" = 0 ] || exit 1
echo "check-pure: scsi, iscsi and replica are pure (${target[1]:-host target, clash with std})"
