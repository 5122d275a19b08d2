#!/bin/sh
# Shows that the kernel tier of the scsi crate (everything without the feature `alloc`) neither allocates nor panics: compiles
# it optimised and looks at what its object code refers to. Run from anywhere; takes seconds.
set -eu
cd "$(dirname "$0")/../scsi"
dir=${CARGO_TARGET_DIR:-../target}/kernel-tier
# No checks that the compiler adds for debugging: the kernel build has none either. The arithmetic is saturating or
# checked where input can reach it.
RUSTFLAGS="-Copt-level=3 -Cdebug-assertions=off -Coverflow-checks=off -Ccodegen-units=1 -Cpanic=abort" \
    CARGO_TARGET_DIR="$dir" cargo build --quiet --lib --no-default-features
lib="$dir/debug/libholdfast_scsi.rlib"
defined=$(nm "$lib" 2>/dev/null | grep -c ' [Tt] ' || true)
if [ "$defined" -lt 50 ]; then
    echo "kernel tier: $lib holds $defined functions; nothing was checked" >&2
    exit 1
fi
forbidden=$(nm -C "$lib" 2>/dev/null | grep -E ' U .*(panic|unwrap_failed|expect_failed|_fail\b|fail_fmt|__rust_alloc|__rg_alloc|slice_.*index|index_len)' || true)
if [ -n "$forbidden" ]; then
    echo "kernel tier: the object code can panic or allocate:" >&2
    echo "$forbidden" >&2
    exit 1
fi
echo "kernel tier: $defined functions, none can panic or allocate"
