#!/usr/bin/env bash
# Installs what a purpose needs on Debian 12 (or a relative of it), and says nothing when it is all there.
#
# Usage: build/setup.sh build|demo|test|conformance|kmod|bench
#   build  compilers and libclang
#   demo   the same, and initiators: libiscsi's tools, and qemu-img with its iSCSI driver
#   test   the same, what partitions between network namespaces need, and rustfmt and clippy
#   conformance  as demo, and the targets that Holdfast is compared with
#   kmod   what the kernel module and its tests need: headers and images of Debian's kernels, Rust with its library's
#          sources, QEMU, busybox, the initiators' SCSI tools
#   bench  as for demo, and the targets that Holdfast is measured beside
#
# It looks for programs rather than for package names, so it is content with tools that were installed in another way.
# It needs root or sudo only when something is missing.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
purpose=${1:-}
case $purpose in
    build | demo | test | conformance | kmod | bench) ;;
    *)
        echo "usage: build/setup.sh build|demo|test|conformance|kmod|bench" >&2
        exit 2
        ;;
esac

die() { printf 'setup: %s\n' "$*" >&2; exit 1; }
have() { command -v "$1" >/dev/null 2>&1; }

# qemu-img loads its drivers from files, and has many words for one that is absent. Nothing listens on port 1: an error
# about the connection shows that the driver is there.
qemu_speaks_iscsi() {
    have qemu-img || return 1
    # qemu-img fails either way: only its words count.
    { LC_ALL=C qemu-img info iscsi://127.0.0.1:1/x/0 2>&1 </dev/null || true; } | grep -qi 'failed to connect'
}

missing_for_kmod() {
    have gcc || echo gcc
    have make || echo make
    # The release's kernel, and the newer one that its security suite carries.
    local flavour
    for flavour in amd64 6.12-amd64; do
        dpkg-query -W "linux-image-$flavour" >/dev/null 2>&1 || echo "linux-image-$flavour"
        dpkg-query -W "linux-headers-$flavour" >/dev/null 2>&1 || echo "linux-headers-$flavour"
    done
    ls /usr/src/rustc-*/library/core/src/lib.rs >/dev/null 2>&1 ||
        printf '%s\n' rustc-web rust-web-src
    have qemu-system-x86_64 || echo qemu-system-x86
    have busybox && ! ldd "$(command -v busybox)" >/dev/null 2>&1 || echo busybox-static
    have depmod || echo kmod
    have python3 || echo python3
    have sg_persist || echo sg3-utils
}

missing() {
    if [ "$purpose" = kmod ]; then
        missing_for_kmod
        return
    fi
    have cc || echo gcc
    have c++ || echo g++
    { have ar && have ld; } || echo binutils
    { cc -E -include stdio.h -x c /dev/null || ! have cc; } >/dev/null 2>&1 || echo libc6-dev
    have make || echo make
    have flock || echo util-linux
    have awk || echo mawk
    "$root/build/libclang.sh" >/dev/null || echo libclang-dev
    [ "$purpose" != build ] || return 0
    { have iscsi-ls && have iscsi-inq; } || echo libiscsi-bin
    # The scripted initiator of the demo and of the tests is compiled against it.
    { cc -E -include iscsi/iscsi.h -x c /dev/null; } >/dev/null 2>&1 || echo libiscsi-dev
    qemu_speaks_iscsi || printf '%s\n' qemu-utils qemu-block-extra
    if [ "$purpose" = conformance ] || [ "$purpose" = bench ]; then
        # Root's programs: they may be out of a user's path.
        (PATH=$PATH:/usr/sbin:/sbin; have tgtd) || echo tgt
        (PATH=$PATH:/usr/sbin:/sbin; have istgt) || echo istgt
    fi
    [ "$purpose" = test ] || return 0
    # Network namespaces and cuts between them. They live in sbin, which not every user's path has.
    (PATH=$PATH:/usr/sbin:/sbin; have ip) || echo iproute2
    (PATH=$PATH:/usr/sbin:/sbin; have nft) || echo nftables
}

apt() {
    local tool=$1
    shift
    # No questions and no waiting for a keyboard; but wait for another apt that is at work.
    "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive "$tool" -q -o DPkg::Lock::Timeout=300 "$@" </dev/null
}

install() {
    local log=$1
    shift
    apt apt-get install -y --no-install-recommends "$@" >>"$log" 2>&1 && return 0
    # An image may carry a newer qemu-utils from backports. The iSCSI driver has to match it exactly, and is only to
    # be had from the release itself: then qemu-utils goes back to the release's version too.
    local release
    release=$(sed -n 's/^VERSION_CODENAME=//p' /etc/os-release)
    [ -n "$release" ] || return 1
    local package packages=()
    for package; do
        case $package in qemu-*) package=$package/$release ;; esac
        packages+=("$package")
    done
    apt apt-get install -y --no-install-recommends --allow-downgrades "${packages[@]}" >>"$log" 2>&1
}

mapfile -t packages < <(missing)
if [ "${#packages[@]}" -gt 0 ]; then
    hint="install these packages: ${packages[*]}"
    have apt-get || die "this is not a Debian; $hint (or what your system calls them)"
    as_root=()
    if [ "$(id -u)" != 0 ]; then
        have sudo || die "neither root nor sudo; $hint"
        as_root=(sudo)
        # Without a keyboard sudo must not ask for a password.
        if [ ! -t 0 ] || [ ! -t 2 ]; then as_root=(sudo -n); fi
        "${as_root[@]}" true 2>/dev/null || die "sudo refuses; $hint"
    fi
    # One set-up at a time; the next one finds the work done.
    exec 9>"${TMPDIR:-/tmp}/holdfast-setup.$(id -u).lock"
    flock 9
    mapfile -t packages < <(missing)
    if [ "${#packages[@]}" -gt 0 ]; then
        echo "setup: installing ${packages[*]}"
        log=$(mktemp)
        trap 'rm -f "$log"' EXIT
        # A source of the image that does not answer is no reason to stop: what matters is whether the packages come.
        apt apt-get update >>"$log" 2>&1 9>&- || true
        install "$log" "${packages[@]}" 9>&- || {
            tail -n 20 "$log" >&2
            die "apt-get failed; install these packages: ${packages[*]}"
        }
        mapfile -t packages < <(missing)
        [ "${#packages[@]}" = 0 ] || die "still missing after the installation: ${packages[*]}"
    fi
    exec 9>&-
fi

have cargo || die "cargo is missing: install Rust with rustup (the version is in Cargo.toml, rust-version)"
if [ "$purpose" = test ]; then
    components=()
    cargo fmt --version >/dev/null 2>&1 || components+=(rustfmt)
    cargo clippy --version >/dev/null 2>&1 || components+=(clippy)
    if [ "${#components[@]}" -gt 0 ]; then
        have rustup || die "missing parts of the Rust toolchain: ${components[*]}"
        rustup component add "${components[@]}" >&2
    fi
fi
