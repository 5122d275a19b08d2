#!/usr/bin/env bash
# The main job, shown: a cluster on this machine, a volume that two hosts see, a real image through both nodes, a reservation
# that holds on every path, through the death of the controllers' leader and a restart of everything.
#
# It needs HOLDFAST_BIN_DIR (the folder of the binaries; `make demo` sets it), libiscsi's and QEMU's tools, and cc. Exit status
# 0 only when every step did what it should. It leaves nothing running and no file behind.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
: "${HOLDFAST_BIN_DIR:?run me by 'make demo'}"
work=$(mktemp -d "${TMPDIR:-/tmp}/holdfast-demo-XXXXXX")
dir=$work/cluster
supervisor=
failures=0
rows=()

host_a=iqn.2026-11.example:host-a
host_b=iqn.2026-11.example:host-b

say() { printf '\n\033[1m%s\033[0m\n' "$*"; }

holdfast() { "$HOLDFAST_BIN_DIR/holdfast" --dir "$dir" "$@"; }

# Notes what a step showed: row WHAT EXPECTED SEEN
row() {
    local verdict=ok
    if [ "$2" != "$3" ]; then
        verdict=DIFFERS
        failures=$((failures + 1))
    fi
    rows+=("$(printf '%-62s | %-24s | %-24s | %s' "$1" "$2" "$3" "$verdict")")
    printf '   %s: %s\n' "$1" "$3"
}

start_cluster() {
    # Before the start: the ready line of an earlier run must not be taken for this one's.
    : >"$work/ready"
    "$HOLDFAST_BIN_DIR/holdfast" dev up --dir "$dir" >"$work/ready" 2>"$work/up.log" &
    supervisor=$!
    # The ready line is the condition; the supervisor ends by itself when it cannot come.
    while ! grep -q '^ready:' "$work/ready"; do
        if ! kill -0 "$supervisor" 2>/dev/null; then
            supervisor=
            cat "$work/up.log" >&2
            return 1
        fi
        sleep 0.1
    done
    target=$(sed -n 's/.* target=\([^ ]*\).*/\1/p' "$work/ready")
    portals=$(sed -n 's/.* portals=\([^ ]*\).*/\1/p' "$work/ready")
    portal_1=${portals%%,*}
    portal_2=${portals##*,}
}

stop_cluster() {
    [ -n "$supervisor" ] || return 0
    local pid=$supervisor status=0
    supervisor=
    kill -INT "$pid" 2>/dev/null || true
    wait "$pid" || status=$?
    return "$status"
}

end() {
    status=$?
    exec 3>&- 4>&- 2>/dev/null || true
    stop_cluster || true
    if [ "$status" != 0 ] && [ -d "$dir/log" ]; then
        echo "last words of the processes:" >&2
        tail -n 5 "$dir"/log/*.log >&2 || true
    fi
    rm -rf "$work"
}
trap end EXIT
trap 'exit 130' INT TERM

# One initiator port, driven through a pair of pipes: the commands go to descriptor $1.
open_initiator() { # DESCRIPTOR PORTAL NAME ISID
    local in=$work/in-$1 out=$work/out-$1
    rm -f "$in" "$out"
    mkfifo "$in" "$out"
    "$work/initiator" "$2" "$target" "$3" "$4" <"$in" >"$out" &
    eval "exec $1>\"\$in\" $((${1} + 2))<\"\$out\""
    local line
    read -r line <&$(($1 + 2))
    [ "$line" = ok ] || { echo "login of $3 at $2: $line" >&2; return 1; }
}
close_initiator() { eval "exec $1>&- $(($1 + 2))<&-"; }

# Sends a command and prints the status in words.
scsi() { # DESCRIPTOR REQUEST...
    local descriptor=$1 line
    shift
    echo "$*" >&"$descriptor"
    read -r line <&$((descriptor + 2)) || line=failed
    case $line in
        status=00*) echo GOOD ;;
        status=18*) echo 'RESERVATION CONFLICT' ;;
        status=02*) line=${line#*sense=}; echo "CHECK CONDITION ${line%% *}" ;;
        *) echo "$line" ;;
    esac
}
# A new nexus finds Unit Attentions first.
become_ready() {
    local answer
    for _ in 1 2 3 4 5 6; do
        answer=$(scsi "$1" cdb 0 000000000000)
        [ "$answer" != GOOD ] || return 0
    done
    echo "not ready: $answer" >&2
    return 1
}
# PERSISTENT RESERVE OUT: DESCRIPTOR SERVICE_ACTION TYPE KEY SERVICE_ACTION_KEY
reserve_out() {
    scsi "$1" "$(printf 'cdb 0 5f%02x%02x00000000001800 out %016x%016x0000000001000000' "$2" "$3" "$4" "$5")"
}
write_block() { scsi "$1" "$(printf 'cdb 0 2a00%08x00000100 fill %d 512' "$2" "$3")"; }
read_block() { scsi "$1" "$(printf 'cdb 0 2800%08x00000100 in 512' "$2")"; }

image_options() { # PORTAL
    echo "driver=raw,file.driver=iscsi,file.transport=tcp,file.portal=$1,file.target=$target,file.lun=0,file.initiator-name=$host_a"
}
same() { if "$@" >"$work/compare" 2>&1; then echo identical; else cat "$work/compare" >&2; echo different; fi; }

cc -O2 -o "$work/initiator" "$here/initiator/initiator.c" -liscsi

say "1. A cluster: three controllers, two data nodes"
start_cluster
holdfast node list
row "data nodes that hold a lease" 2 "$(holdfast node list -o json | grep -c '"live": true')"

say "2. A volume on node 1, mapped to two hosts"
holdfast volume create demo --size 64MiB --node node-1 >/dev/null
holdfast host create a --initiator "$host_a" >/dev/null
holdfast host create b --initiator "$host_b" >/dev/null
holdfast map create demo a --lun 0 >/dev/null
holdfast map create demo b --lun 0 >/dev/null
holdfast volume show demo
row "portals that discovery shows" 2 "$(iscsi-ls -i "$host_a" "iscsi://$portal_2" | grep -c "$target")"

say "3. A real image in through node 1's portal, out through node 2's"
head -c 48M /dev/urandom >"$work/image.raw"
truncate -s 64M "$work/image.raw"
qemu-img convert -n -f raw "$work/image.raw" --target-image-opts "$(image_options "$portal_1")"
row "image read back through node 2" identical \
    "$(same qemu-img compare --image-opts "$(image_options "$portal_2")" "driver=raw,file.driver=file,file.filename=$work/image.raw")"

say "4. Host A (node 1) registers and reserves; host B (node 2) is refused"
open_initiator 3 "$portal_1" "$host_a" 1
open_initiator 4 "$portal_2" "$host_b" 2
become_ready 3
become_ready 4
row "A: REGISTER" GOOD "$(reserve_out 3 0 0 0 0xa)"
row "A: RESERVE, Write Exclusive" GOOD "$(reserve_out 3 1 1 0xa 0)"
row "A: WRITE through node 1" GOOD "$(write_block 3 0 65)"
row "B: WRITE through node 2" 'RESERVATION CONFLICT' "$(write_block 4 0 66)"
row "B: READ through node 2" GOOD "$(read_block 4 0)"
holdfast reservation show demo

say "5. The controllers' leader is killed"
leader_of() { holdfast cluster show 2>/dev/null | awk '/ leader/ { print $1 }'; }
leader=$(leader_of)
kill -KILL "$(awk -v name="$leader" '$1 == name { print $2 }' "$dir/pids")"
echo "   $leader is dead"
row "A: WRITE, at once" GOOD "$(write_block 3 1 67)"
row "B: WRITE, at once" 'RESERVATION CONFLICT' "$(write_block 4 1 68)"
new=
for _ in $(seq 200); do
    new=$(leader_of || true)
    [ -z "$new" ] || [ "$new" = "$leader" ] || break
    new=
done
row "another controller leads" yes "$([ -n "$new" ] && echo yes || echo no)"
row "A: RELEASE, agreed by the two that are left" GOOD "$(reserve_out 3 2 1 0xa 0)"
row "A: RESERVE again" GOOD "$(reserve_out 3 1 1 0xa 0)"
close_initiator 3
close_initiator 4

say "6. Everything is stopped, and started again"
stop_status=0
stop_cluster || stop_status=$?
row "exit status of the clean stop" 0 "$stop_status"
start_cluster
open_initiator 3 "$portal_1" "$host_a" 1
open_initiator 4 "$portal_2" "$host_b" 2
become_ready 3
# The conflict is reported whatever other Unit Attention waits; a reset-class one comes first.
answer=$(write_block 4 2 69)
case $answer in 'CHECK CONDITION 6/29/'*) answer=$(write_block 4 2 69) ;; esac
row "B: WRITE after the restart" 'RESERVATION CONFLICT' "$answer"
row "A: WRITE after the restart" GOOD "$(write_block 3 2 70)"
close_initiator 3
close_initiator 4
for block in 0:65 1:67 2:70; do
    head -c 512 /dev/zero | tr '\0' "\\$(printf '%03o' "${block#*:}")" |
        dd of="$work/image.raw" bs=512 seek="${block%%:*}" conv=notrunc status=none
done
row "image with A's three blocks, through node 2" identical \
    "$(same qemu-img compare --image-opts "$(image_options "$portal_2")" "driver=raw,file.driver=file,file.filename=$work/image.raw")"
stop_status=0
stop_cluster || stop_status=$?
row "exit status of the clean stop" 0 "$stop_status"

say "What was seen"
printf '%-62s | %-24s | %-24s |\n' step expected seen
printf -- '-%.0s' $(seq 126)
printf '\n'
printf '%s\n' "${rows[@]}"
printf '\n%d steps, %d different\n' "${#rows[@]}" "$failures"
[ "$failures" = 0 ]
