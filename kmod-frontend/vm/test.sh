#!/usr/bin/env bash
# Boots a Debian kernel in QEMU (emulated, no KVM) with the module built for it, and runs the tests in vm/tests there.
#
# Usage: kmod-frontend/vm/test.sh [KERNEL VERSION]     default: every kernel whose headers and image are there
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
root=$(dirname "$here")
target=${CARGO_TARGET_DIR:-$root/target}
cargo build -q --manifest-path "$root/Cargo.toml" -p holdfast-kernel-peer
kernels=("$@")
if [ ${#kernels[@]} = 0 ]; then
    for image in /boot/vmlinuz-*-amd64; do
        version=${image#/boot/vmlinuz-}
        [ ! -e "/lib/modules/$version/build/Makefile" ] || kernels+=("$version")
    done
fi
[ ${#kernels[@]} -gt 0 ] || { echo "vm: no kernel with its headers; run make kmod first" >&2; exit 1; }

failed=0
for kernel in "${kernels[@]}"; do
    module=$("$here/build.sh" "$kernel" | tail -1)
    for script in "$here"/vm/tests/*.sh; do
        name=$(basename "$script" .sh)
        work=$here/target/vm-$kernel-$name
        mkdir -p "$work"
        programs=()
        for program in sg_inq sg_vpd sg_luns sg_persist sg_raw sg_turs sg_reset sg_rtpg; do programs+=(--program "$program"); done
        "$here/vm/guest.py" --kernel "$kernel" --out "$work/initramfs" --script "$script" --extra-module "$module" \
            --program "$target/debug/holdfast-kernel-peer:/bin/kernel-peer" "${programs[@]}" \
            --module configfs --module target_core_mod --module tcm_loop --module sd_mod --module sg --module crct10dif_pclmul
        printf '== kernel %s: %s\n' "$kernel" "$name"
        timeout ${HOLDFAST_VM_SECONDS_MAX:-300} qemu-system-x86_64 -accel tcg,thread=multi -cpu max -smp 2 -m 1024 -nographic -no-reboot \
            -kernel "/boot/vmlinuz-$kernel" -initrd "$work/initramfs" \
            -append "console=ttyS0 quiet panic=-1 oops=panic" </dev/null 2>&1 |
            tr -d '\r' | tee "$work/console" | grep -E '^(\[[0-9.]+\] |FAIL|fuzz|guest)' || true
        if ! grep -q '^guest: status 0' "$work/console" || grep -q '^FAIL' "$work/console" ||
            ! grep -q '\] done$' "$work/console"; then
            echo "== kernel $kernel: $name FAILED (console: $work/console)"
            failed=1
        fi
    done
done
exit $failed
