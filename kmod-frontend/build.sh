#!/usr/bin/env bash
# Builds the kernel module for one kernel: the Rust core, then the module round it.
#
# Usage: kmod-frontend/build.sh [KERNEL VERSION]     default: the newest kernel whose headers are there
# Prints the module's path last.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
version=${1:-$(ls -d /lib/modules/*/build 2>/dev/null | cut -d/ -f4 | sort -V | tail -1)}
kdir=/lib/modules/$version/build
[ -n "$version" ] && [ -e "$kdir/Makefile" ] || { echo "kmod: no kernel headers; install linux-headers-amd64" >&2; exit 1; }
work=$here/target/module-$version
mkdir -p "$work"
# Kbuild writes beside its sources: give it a copy for each kernel.
cp -p "$here"/module/* "$work/"
KDIR=$kdir "$here/build-core.sh" "$work/hf_core_rust.o_shipped" >&2
make -s -C "$kdir" M="$work" modules >&2
echo "$work/target_core_holdfast.ko"
