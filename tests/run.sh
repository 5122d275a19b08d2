#!/usr/bin/env bash
# A cluster to play with: comes up with a volume that one host sees, prints what to try, and stays until Ctrl-C.
#
# It needs HOLDFAST_BIN_DIR (`make run` sets it). The cluster lives in .run/ and keeps its data from one run to the next.
set -euo pipefail

: "${HOLDFAST_BIN_DIR:?run me by 'make run'}"
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
dir=$root/.run
holdfast() { "$HOLDFAST_BIN_DIR/holdfast" --dir "$dir" "$@"; }

mkdir -p "$dir"
mkfifo "$dir/ready.$$"
trap 'rm -f "$dir/ready.$$"' EXIT
# Ctrl-C reaches the supervisor too; this script only waits for its end.
trap '' INT
"$HOLDFAST_BIN_DIR/holdfast" --dir "$dir" dev up >"$dir/ready.$$" &
supervisor=$!
trap 'kill -INT "$supervisor" 2>/dev/null || true' TERM
read -r ready <"$dir/ready.$$" || true
case $ready in
    ready:*) ;;
    *) wait "$supervisor"; exit 1 ;;
esac
target=$(sed -n 's/.* target=\([^ ]*\).*/\1/p' <<<"$ready")
portals=$(sed -n 's/.* portals=\([^ ]*\).*/\1/p' <<<"$ready")

holdfast volume show first >/dev/null 2>&1 || holdfast volume create first --size 1GiB >/dev/null
holdfast host show me >/dev/null 2>&1 || holdfast host create me --initiator iqn.2026-11.example:me >/dev/null
holdfast map list --host me -o json | grep -q '"first"' || holdfast map create first me --lun 0 >/dev/null

cat <<EOT

Try, in another terminal:

  export HOLDFAST_DIR=$dir PATH=$HOLDFAST_BIN_DIR:\$PATH
  holdfast node list
  holdfast volume list
  holdfast cluster show
  holdfast event watch --after 1
  iscsi-ls -s -i iqn.2026-11.example:me iscsi://${portals%%,*}
  iscsi-inq -i iqn.2026-11.example:me iscsi://${portals##*,}/$target/0
  qemu-img info --image-opts driver=raw,file.driver=iscsi,file.transport=tcp,file.portal=${portals%%,*},file.target=$target,file.lun=0,file.initiator-name=iqn.2026-11.example:me
  holdfast volume create db1 --size 10GiB
  holdfast reservation show first

EOT
while kill -0 "$supervisor" 2>/dev/null; do wait "$supervisor" || true; done
