#!/usr/bin/env bash
# Compiles the Rust core for one kernel into a relocatable object that Kbuild links, and refuses an object that would not be
# safe there. `core` is compiled from source with the very flags of that kernel, read from its configuration.
#
# Usage: kmod-frontend/build-core.sh OUT.o        Environment:
#   KDIR          the kernel's build folder (/lib/modules/VERSION/build)
#   RUSTC         a compiler, 1.93 or later (default: Debian's /usr/bin/rustc, else rustc)
#   RUST_LIB_SRC  its library sources (Debian: rust-web-src)
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(dirname "$here")
out=$(realpath -m "${1:?usage: build-core.sh OUT.o}")
kdir=${KDIR:?KDIR: the build folder of a kernel}
conf=$kdir/include/config/auto.conf
[ -r "$conf" ] || { echo "build-core: $conf is not there; install the kernel's headers" >&2; exit 1; }
rustc=${RUSTC:-}
if [ -z "$rustc" ]; then
    for rustc in /usr/bin/rustc rustc; do
        sources=$("$rustc" --print sysroot 2>/dev/null)/lib/rustlib/src/rust/library
        [ ! -e "$sources/core/src/lib.rs" ] || break
        sources=$(ls -d /usr/src/rustc-*/library 2>/dev/null | tail -1)
        [ ! -e "$sources/core/src/lib.rs" ] || break
    done
fi
sources=${RUST_LIB_SRC:-$("$rustc" --print sysroot)/lib/rustlib/src/rust/library}
[ -e "$sources/core/src/lib.rs" ] || sources=$(ls -d /usr/src/rustc-"$("$rustc" -V | cut -d' ' -f2)"/library 2>/dev/null || true)
[ -e "$sources/core/src/lib.rs" ] || {
    echo "build-core: no library sources for $("$rustc" -V); install rustc-web and rust-web-src" >&2
    exit 1
}
minor=$("$rustc" -V | sed -E 's/rustc 1\.([0-9]+).*/\1/')
[ "$minor" -ge 93 ] || { echo "build-core: $("$rustc" -V) is too old, 1.93 is needed" >&2; exit 1; }
# `core` is built from source and the target is our own: both are unstable outside the compiler's own build.
export RUSTC_BOOTSTRAP=1

work=$here/target/$(basename "$(dirname "$(realpath "$kdir")")")-$(sha256sum "$conf" | cut -c1-12)
mkdir -p "$work" "$(dirname "$out")"

# 6.9 renamed some options to MITIGATION_*.
configured() { grep -qxE "CONFIG_(MITIGATION_)?$1=y" "$conf"; }
value() { sed -n "s/^CONFIG_$1=//p" "$conf"; }

features="-mmx,-sse,-sse2,-sse3,-ssse3,-sse4.1,-sse4.2,-avx,-avx2,+soft-float"
if configured RETPOLINE; then
    features+=",+retpoline-external-thunk,+retpoline-indirect-branches,+retpoline-indirect-calls"
fi
if configured SLS; then features+=",+harden-sls-ijmp,+harden-sls-ret"; fi
cat >"$work/target.json" <<J
{ "arch": "x86_64", "llvm-target": "x86_64-linux-gnu", "target-pointer-width": 64, "rustc-abi": "x86-softfloat",
  "data-layout": "e-m:e-p270:32:32-p271:32:32-p272:64:64-i64:64-i128:128-f80:128-n8:16:32:64-S128",
  "features": "$features", "disable-redzone": true, "code-model": "kernel", "relocation-model": "static",
  "panic-strategy": "abort", "crt-static-respected": true, "max-atomic-width": 64, "emit-debug-gdb-scripts": false,
  "frame-pointer": "may-omit", "stack-probes": { "kind": "none" } }
J
flags=(--target="$work/target.json" -Zunstable-options -Copt-level=2 -Cpanic=abort -Ccode-model=kernel -Crelocation-model=static
    -Cno-redzone=y -Ccodegen-units=1 -Cforce-unwind-tables=n -Cdebug-assertions=n -Coverflow-checks=n -Cembed-bitcode=yes
    -Cdebuginfo=0 -Cjump-tables=n --sysroot=/dev/null -L "$work"
    --remap-path-prefix="$root"=holdfast --remap-path-prefix="$sources"=rust --remap-path-prefix="$work"=build)
if configured RETHUNK; then flags+=(-Zfunction-return=thunk-extern); fi
if configured X86_KERNEL_IBT; then flags+=(-Zcf-protection=branch); fi
if configured CALL_PADDING; then
    padding=$(value FUNCTION_PADDING_BYTES)
    flags+=(-Zpatchable-function-entry="$padding,$padding")
fi

# `core` changes only with the compiler and the flags.
key=$({ "$rustc" -vV; cat "$work/target.json"; printf '%s\n' "${flags[@]}"; } | sha256sum | cut -c1-32)
if [ "$(cat "$work/key" 2>/dev/null)" != "$key" ]; then
    rm -f "$work/key"
    "$rustc" "${flags[@]}" --edition=2024 --cap-lints allow --cfg no_fp_fmt_parse --crate-type rlib --crate-name core \
        --emit=link="$work/libcore.rlib" "$sources/core/src/lib.rs"
    # Every crate asks for it; the kernel has memcpy and the like itself.
    printf '%s\n' '#![feature(compiler_builtins)]' '#![compiler_builtins]' '#![no_builtins]' '#![no_std]' >"$work/builtins.rs"
    "$rustc" "${flags[@]}" --edition=2021 --cap-lints allow --crate-type rlib --crate-name compiler_builtins \
        --emit=link="$work/libcompiler_builtins.rlib" "$work/builtins.rs"
    echo "$key" >"$work/key"
fi
"$rustc" "${flags[@]}" --edition=2024 --crate-type rlib --crate-name holdfast_scsi \
    --emit=link="$work/libholdfast_scsi.rlib" "$root/scsi/src/lib.rs"
"$rustc" "${flags[@]}" --edition=2024 --crate-type rlib --crate-name holdfast_kernel_core \
    --extern holdfast_scsi="$work/libholdfast_scsi.rlib" \
    --emit=link="$work/libholdfast_kernel_core.rlib" "$here/core/src/lib.rs"
"$rustc" "${flags[@]}" --edition=2024 --crate-type staticlib --crate-name hf_core -Clto=fat \
    --extern holdfast_kernel_core="$work/libholdfast_kernel_core.rlib" \
    --emit=link="$work/libhf_core.a" "$here/core/kernel.rs"

object=$work/hf_core.o
ld -r --whole-archive -o "$object" "$work/libhf_core.a"
# .llvmbc first: binutils take an object that has it for bitcode, without symbols.
objcopy --remove-section .comment --remove-section .llvmbc --remove-section .llvmcmd "$object"

refuse() { echo "build-core: $1" >&2; exit 1; }
disassembly=$(objdump -d --no-show-raw-insn "$object")
grep -qE '<hf_core_execute>:' <<<"$disassembly" || refuse "the object holds no code: nothing was checked"
! grep -qE '%[xyz]mm|%mm[0-7]|%st[( ]' <<<"$disassembly" || refuse "floating point or vector instructions"
! readelf -rW "$object" | grep -qE 'GOTPCREL|R_X86_64_GOT|TPOFF|TLS' || refuse "GOT or TLS relocations"
if configured RETHUNK; then
    ! grep -qE '\sret' <<<"$disassembly" || refuse "a return that does not go through the thunk"
fi
if configured RETPOLINE; then
    ! grep -qE '(call|jmp) +\*' <<<"$disassembly" || refuse "an indirect jump that does not go through a thunk"
fi
undefined=$(nm -u "$object" | awk '{ print $2 }' |
    grep -vxE '__x86_return_thunk|__x86_indirect_thunk_.*|memcpy|memmove|memset|memcmp|bcmp' || true)
[ -z "$undefined" ] || refuse "it needs what the kernel must not be asked for: $(tr '\n' ' ' <<<"$undefined")"
cp "$object" "$out"
echo "core: $(size "$object" | awk 'NR == 2 { print $1 }') bytes of code, $(nm "$object" | grep -c ' T ') entry points: $out"
