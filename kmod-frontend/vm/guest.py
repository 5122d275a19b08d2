#!/usr/bin/env python3
"""Makes an initramfs for a test: busybox, kernel modules with all they depend on, programs with their libraries, a script.

No root and no mount is needed: the archive (newc) is written here, as of one moment, so the same inputs give the same bytes.
"""
import argparse
import lzma
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

INIT = """#!/bin/busybox sh
/bin/busybox --install -s /bin
export PATH=/usr/sbin:/usr/bin:/sbin:/bin
mount -t proc p /proc; mount -t sysfs s /sys; mount -t devtmpfs d /dev; mount -t tmpfs r /run; mount -t tmpfs t /tmp
dmesg -n 4
echo "guest: up after $(cut -d' ' -f1 /proc/uptime) s"
sh /test.sh
echo "guest: status $?"
poweroff -f
"""


class Archive:
    """A newc archive."""

    def __init__(self):
        self.entries = {}

    def add(self, name, mode, data=b"", device=(0, 0)):
        parent = os.path.dirname(name)
        if parent and parent not in self.entries:
            self.add(parent, 0o040755)
        self.entries[name] = (mode, data, device)

    def write(self, path):
        with open(path, "wb") as out:
            entries = sorted(self.entries.items()) + [("TRAILER!!!", (0, b"", (0, 0)))]
            for inode, (name, (mode, data, device)) in enumerate(entries, 1):
                encoded = name.encode() + b"\0"
                fields = (inode, mode, 0, 0, 1, 0, len(data), 0, 0, *device, len(encoded), 0)
                head = b"070701" + b"".join(b"%08X" % field for field in fields) + encoded
                out.write(head + b"\0" * (-len(head) % 4) + data + b"\0" * (-len(data) % 4))


def modules(archive, kernel, names):
    """The modules and what they depend on, with depmod's files for them."""
    base = Path("/lib/modules") / kernel
    places, needs = {}, {}
    for line in (base / "modules.dep").read_text().splitlines():
        path, _, rest = line.partition(":")
        name = re.sub(r"\.ko(\.xz)?$", "", os.path.basename(path)).replace("-", "_")
        places[name], needs[path] = path, rest.split()
    builtin = {re.sub(r"\.ko$", "", os.path.basename(line)).replace("-", "_")
               for line in (base / "modules.builtin").read_text().split()}
    with tempfile.TemporaryDirectory() as root:
        tree = Path(root) / "lib/modules" / kernel
        for name in names:
            name = name.replace("-", "_")
            if name in builtin:
                continue
            if name not in places:
                sys.exit(f"guest: kernel {kernel} has no module {name}")
            for path in [places[name], *needs[places[name]]]:
                raw = (base / path).read_bytes()
                if path.endswith(".xz"):
                    raw, path = lzma.decompress(raw), path[:-3]
                (tree / path).parent.mkdir(parents=True, exist_ok=True)
                (tree / path).write_bytes(raw)
        for name in ("modules.builtin", "modules.order", "modules.builtin.modinfo"):
            shutil.copy(base / name, tree)
        subprocess.run(["/sbin/depmod", "-b", root, kernel], check=True)
        for path in tree.rglob("*"):
            if path.is_file():
                archive.add(str(path.relative_to(root)), 0o100644, path.read_bytes())


def program(archive, name, at=None):
    """A program and the libraries that it loads."""
    path = shutil.which(name) or name
    archive.add((at or path).lstrip("/"), 0o100755, Path(path).read_bytes())
    listed = subprocess.run(["ldd", path], capture_output=True, text=True).stdout
    for library in re.findall(r"(/\S+\.so\S*)", listed):
        archive.add(library.lstrip("/"), 0o100755, Path(library).read_bytes())


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kernel", required=True)
    parser.add_argument("--module", action="append", default=[], help="of the kernel")
    parser.add_argument("--extra-module", action="append", default=[], help="a .ko file, put into /")
    parser.add_argument("--program", action="append", default=[], help="PATH or PATH:WHERE")
    parser.add_argument("--script", required=True, help="runs in the guest")
    parser.add_argument("--out", required=True)
    given = parser.parse_args()
    archive = Archive()
    for name in ("proc", "sys", "dev", "run", "tmp", "etc", "sbin"):
        archive.add(name, 0o040755)
    archive.add("dev/console", 0o020600, device=(5, 1))
    archive.add("bin/busybox", 0o100755, Path(shutil.which("busybox") or "/bin/busybox").read_bytes())
    archive.add("init", 0o100755, INIT.encode())
    archive.add("test.sh", 0o100755, Path(given.script).read_bytes())
    modules(archive, given.kernel, given.module)
    for path in given.extra_module:
        archive.add(os.path.basename(path), 0o100644, Path(path).read_bytes())
    for each in given.program:
        name, _, at = each.partition(":")
        program(archive, name, at)
    archive.write(given.out)


if __name__ == "__main__":
    main()
