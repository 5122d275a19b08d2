#!/usr/bin/env bash
# Prints the folder that holds libclang, which bindgen loads to read RocksDB's C header. Fails when there is none.
set -euo pipefail

if [ -n "${LIBCLANG_PATH:-}" ]; then
    printf '%s\n' "$LIBCLANG_PATH"
    exit 0
fi
shopt -s nullglob
# Debian keeps every version under its own folder; a version's folder is preferred to the common one, because clang's
# own headers (stddef.h and the like) are found relative to it. The newest comes first.
mapfile -t homes < <(printf '%s\n' /usr/lib/llvm-*/lib | sort -rV)
for folder in "${homes[@]}" "/usr/lib/$(uname -m)-linux-gnu" /usr/lib64 /usr/lib /usr/local/lib; do
    for file in "$folder"/libclang.so "$folder"/libclang.so.* "$folder"/libclang-*.so*; do
        # libclang-cpp is another library.
        case ${file##*/} in libclang-cpp*) continue ;; esac
        # Runtime packages alone lack the headers; bindgen then fails on <stddef.h>.
        case $folder in
            /usr/lib/llvm-*)
                headers=("$folder"/clang/*/include/stddef.h)
                [ "${#headers[@]}" -gt 0 ] || continue ;;
        esac
        printf '%s\n' "$folder"
        exit 0
    done
done
exit 1
