#!/usr/bin/env bash
# Runs all tests of the workspace: by cargo-nextest where it is installed (a process and a time limit for each test),
# else by cargo itself, so that a newcomer need not build a tool first. Arguments go to cargo.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

if cargo nextest --version >/dev/null 2>&1; then
    # nextest leaves out the examples in the documentation. They go first, so that its summary comes last.
    status=0
    cargo test -q --workspace --doc "$@" || status=$?
    cargo nextest run --workspace --profile ci "$@"
    exit "$status"
else
    # cargo has no time limit of its own: a test that hangs must not hold the machine for ever.
    # Every failing test of every crate is worth seeing at once.
    timeout --foreground -k 30 1800 cargo test --workspace --no-fail-fast "$@" || {
        status=$?
        [ "$status" != 124 ] || echo "test: stopped after half an hour: the test named last hangs" >&2
        exit "$status"
    }
fi
