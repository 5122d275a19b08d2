#!/usr/bin/env bash
# Plants one fault after the other (chaos/mutants/*.patch) into a copy of the tree, and lets the simulation look for it. Ends with a table:
# in how many of so many seeds it was found, and by which first. A fault that is not found makes it fail: that is work on the simulation.
#
# Usage: chaos/mutants.sh [NAME ...]     default: all but those in chaos/mutants/open, which nothing finds yet.     SEEDS: looked at for each one, 100 [more, up to 500, until one finds it]
#        chaos/mutants.sh --fast         the few of continuous integration, each found by its first seeds
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
work=${CARGO_TARGET_DIR:-$root/target}/mutants
seeds=${SEEDS:-100}
seeds_max=500
# One in each of the parts that a rule may break in: leases and barriers, the session with the controllers, the device server, replication.
fast=(skip-the-barrier drop-unit-attentions not-proposed-is-good evict-without-commit)
if [ "${1:-}" = --fast ]; then
    seeds=20
    seeds_max=100
    set -- "${fast[@]}"
    built=${CARGO_TARGET_DIR:-$root/target}
fi
tree=$work/tree
rm -rf "$tree"
mkdir -p "$tree"
# Times are kept, so that only what a fault touches is built anew.
(cd "$root" && git ls-files -z | tar --create --null --files-from - | tar --extract --directory "$tree")
[ ! -f "$root/.cargo/config.toml" ] || { mkdir -p "$tree/.cargo"; cp "$root/.cargo/config.toml" "$tree/.cargo/"; }
# What others have built of the dependencies serves here too, where it has been built for the whole workspace.
export CARGO_TARGET_DIR=${built:-$work/build} CARGO_INCREMENTAL=1
build() { (cd "$tree" && cargo build --quiet --workspace --bin holdfast-sim 2>"$work/build.log") || { cat "$work/build.log" >&2; exit 1; }; }
simulate() { RUST_BACKTRACE=0 "$CARGO_TARGET_DIR/debug/holdfast-sim" --count "$@" 2>/dev/null | tail -1; }

echo "mutants: the tree as it is"
build
sound=$(simulate --seeds "$seeds")
case $sound in
    "0 of "*) ;;
    *) echo "mutants: without any fault planted: $sound" >&2; exit 1 ;;
esac

missed=0
table=$(mktemp)
trap 'rm -f "$table"' EXIT
names=("$@")
[ ${#names[@]} -gt 0 ] || for patch in "$root"/chaos/mutants/*.patch; do names+=("$(basename "$patch" .patch)"); done
for name in "${names[@]}"; do
    patch=$root/chaos/mutants/$name.patch
    rule=$(head -1 "$patch")
    patch --quiet --strip=1 --directory "$tree" <"$patch" || { echo "mutants: $name does not fit the code any more" >&2; exit 1; }
    build
    found=$(simulate --seeds "$seeds")
    case $found in "0 of "*) found=$(simulate --seeds "$seeds_max") ;; esac
    case $found in "0 of "*) missed=$((missed + 1)); found="NOT FOUND: $found" ;; esac
    printf '| %s | %s | %s |\n' "$name" "$rule" "$found" | tee -a "$table"
    patch --quiet --strip=1 --reverse --directory "$tree" <"$patch"
done
echo
echo "| Planted | Rule that it breaks | Found in |"
echo "|---|---|---|"
cat "$table"
echo "${#names[@]} planted, $missed not found"
[ "$missed" = 0 ]
