#!/usr/bin/env bash
# Fuzzes every target for a while, from the kept corpus.
#
# Usage: fuzz/run.sh SECONDS_FOR_EACH [TARGET ...]
#        fuzz/run.sh minimise [TARGET ...]     puts what was reached by runs so far into the kept corpus, as few and small inputs
#
# It needs no nightly toolchain and no cargo-fuzz: coverage is asked of LLVM by plain compiler flags, and libFuzzer comes with the
# crate libfuzzer-sys. There is no address sanitizer, which stable Rust does not offer; the fuzzed crates hold no unsafe code, so that
# what can go wrong is a panic, an overflow, a hang or memory, and all four are caught.
#
# What is found lies in target/fuzz/artifacts/TARGET; run the target's program with that file to see it again, and put it into the kept
# corpus once it is mended.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
what=${1:?seconds for each target, or "minimise"}
shift
targets=("$@")
if [ "${#targets[@]}" = 0 ]; then
    for file in fuzz/fuzz_targets/*.rs; do targets+=("$(basename "$file" .rs)"); done
fi

host=$(rustc -vV | sed -n 's/^host: //p')
out=${CARGO_TARGET_DIR:-$PWD/target}/fuzz
coverage="-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 -Cllvm-args=-sanitizer-coverage-inline-8bit-counters"
coverage+=" -Cllvm-args=-sanitizer-coverage-pc-table -Cllvm-args=-sanitizer-coverage-trace-compares"
# With --target the flags are not for build scripts.
RUSTFLAGS="--cfg fuzzing -Ccodegen-units=1 $coverage" CARGO_TARGET_DIR=$out \
    cargo build -q ${CI:+--locked} --profile fuzz --target "$host" -p holdfast-fuzz --features libfuzzer --bins

program() { echo "$out/$host/fuzz/$1"; }

# An input may take 10 seconds and allocate 64 MiB at a time, the whole run 1 GiB.
limits=(-timeout=10 -malloc_limit_mb=64 -rss_limit_mb=1024 -max_len=4096)

if [ "$what" = minimise ]; then
    for target in "${targets[@]}"; do
        mkdir -p "$out/corpus/$target" "$out/minimal"
        rm -rf "$out/minimal/$target"
        mkdir "$out/minimal/$target"
        # Of the inputs that reach a place libFuzzer keeps the smallest.
        "$(program "$target")" -set_cover_merge=1 "${limits[@]}" "$out/minimal/$target" "fuzz/corpus/$target" "$out/corpus/$target" >"$out/$target.log" 2>&1
        rm -rf "fuzz/corpus/$target"
        mv "$out/minimal/$target" "fuzz/corpus/$target"
        echo "fuzz: $target: $(find "fuzz/corpus/$target" -type f | wc -l) inputs are kept"
    done
    exit 0
fi

status=0
for target in "${targets[@]}"; do
    mkdir -p "$out/artifacts/$target" "$out/corpus/$target" "fuzz/corpus/$target"
    log=$out/$target.log
    if "$(program "$target")" -max_total_time="$what" "${limits[@]}" -print_final_stats=1 -artifact_prefix="$out/artifacts/$target/" \
        "$out/corpus/$target" "fuzz/corpus/$target" >"$log" 2>&1; then
        runs=$(sed -n 's/^stat::number_of_executed_units: *//p' "$log")
        peak=$(sed -n 's/^stat::peak_rss_mb: *//p' "$log")
        cover=$(grep -o 'cov: [0-9]*' "$log" | tail -n 1)
        echo "fuzz: $target: $runs inputs, $cover edges, $peak MiB at most: nothing found"
    else
        status=1
        echo "fuzz: $target: FOUND SOMETHING; the log ends:" >&2
        tail -n 40 "$log" >&2
    fi
done
exit "$status"
