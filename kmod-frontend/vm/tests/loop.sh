# One logical unit behind two initiator ports of the kernel's loopback fabric: data, reservations, Unit Attentions, the gate, the
# data node that hangs, dies and lies. Runs in the guest; each line that begins with "FAIL" is one.
T=/sys/kernel/config/target
U=11111111-2222-4333-8444-555555555555
say() { echo "[$(cut -d' ' -f1 /proc/uptime)] $*"; }
fail() { echo "FAIL: $*"; }
# peer LINE: one line to the data node's script, and its answer.
peer() {
    echo "$*" >&3
    n=0
    until grep -qF ": $*" /tmp/peer.new; do
        n=$((n + 1)); [ $n -lt 200 ] || { fail "no answer to: $*"; return 1; }
        usleep 50000; tail -n +$((seen + 1)) /tmp/peer.out >/tmp/peer.new
    done
    seen=$(wc -l </tmp/peer.out); cat /tmp/peer.new; : >/tmp/peer.new
}
start_peer() {
    rm -f /tmp/to; mkfifo /tmp/to; : >/tmp/peer.out; : >/tmp/peer.new; seen=0
    kernel-peer </tmp/to >/tmp/peer.out 2>&1 & PEER=$!
    exec 3>/tmp/to
}
ready() {
    peer port loopback naa.60014050000000a1 1 1
    peer port loopback naa.60014050000000b1 1 2
    peer unit $U 65536 512 $*
    peer lease ${LEASE:-50000}
    peer serve $U 1
}
sense() { sg_turs -vv $1 2>&1 | sed -n 's/.*\(Additional sense: .*\)/\1/p;s/.*\(Unit attention\).*/\1/p' | sort -u | tr '\n' ' '; }
expect() { # expect WORDS... -- COMMAND...: the output holds the words
    words=""; while [ "$1" != -- ]; do words="$words $1"; shift; done; shift
    out=$("$@" 2>&1)
    case "$out" in *"${words# }"*) say "ok: ${words# }" ;; *) fail "expected '${words# }' of $*, got: $out" ;; esac
}
# conflict DISK: a write there ends with RESERVATION CONFLICT.
conflict() {
    dmesg -c >/dev/null
    dd if=/tmp/x of=$1 bs=4k count=1 oflag=direct 2>/dev/null && fail "written in spite of the reservation"
    dmesg | grep -q "reservation conflict" && say "ok: reservation conflict" || fail "no conflict"
}
splat() { dmesg | grep -E 'BUG:|WARNING:|Oops|general protection|possible|leak' && fail "splat"; }

modprobe configfs; mount -t configfs c /sys/kernel/config
modprobe target_core_mod; modprobe sd_mod; modprobe sg; modprobe tcm_loop
insmod /target_core_holdfast.ko || { fail "module"; exit 1; }
truncate -s 32M /tmp/disk
mkdir -p $T/core/holdfast_0/lu0
echo "volume=$U,file=/tmp/disk" >$T/core/holdfast_0/lu0/control || fail "control"
echo 1 >$T/core/holdfast_0/lu0/enable || fail "enable"
start_peer
ready
i=0
for w in naa.60014050000000a1 naa.60014050000000b1; do
    mkdir -p $T/loopback/$w/tpgt_1/lun/lun_0
    echo naa.6001405000000${i}ff >$T/loopback/$w/tpgt_1/nexus
    ln -s $T/core/holdfast_0/lu0 $T/loopback/$w/tpgt_1/lun/lun_0/hf
    i=$((i + 1))
done
n=0; until [ -e /dev/sdb ] || [ $n = 100 ]; do usleep 100000; n=$((n + 1)); done
[ -e /dev/sdb ] || { fail "no disks"; dmesg | tail -30; cat /tmp/peer.out; exit 1; }
cat $T/core/holdfast_0/lu0/info

say "--- identity"
expect HOLDFAST -- sg_inq /dev/sg0
expect 11111111222243338444555555555555 -- sg_vpd -p sn /dev/sg1
sg_vpd -p di -HHHH /dev/sg0 >/tmp/a; sg_vpd -p di -HHHH /dev/sg1 >/tmp/b
[ -s /tmp/a ] || fail "no designators"
sg_rtpg -H /dev/sg0 >/tmp/a 2>&1; sg_rtpg -H /dev/sg1 >/tmp/b 2>&1
cmp /tmp/a /tmp/b && say "ok: target port groups the same on both ports" || fail "target port groups differ"

say "--- data"
dd if=/dev/urandom of=/tmp/x bs=64k count=16 2>/dev/null
dd if=/tmp/x of=/dev/sda bs=64k oflag=direct 2>/dev/null || fail "write"
dd if=/dev/sdb of=/tmp/y bs=64k count=16 iflag=direct 2>/dev/null || fail "read"
cmp /tmp/x /tmp/y && say "ok: what one port wrote the other reads" || fail "data differ"
head -c 1048576 /tmp/disk >/tmp/y; cmp /tmp/x /tmp/y && say "ok: it is in the file" || fail "file differs"

say "--- reservations, agreed by the data node"
sg_persist -n --out --register --param-sark=0xaaa1 /dev/sg0 || fail "register a"
sg_persist -n --out --register --param-sark=0xbbb1 /dev/sg1 || fail "register b"
expect 0xaaa1 -- sg_persist -n -k /dev/sg1
sg_persist -n --out --reserve --param-rk=0xaaa1 --prout-type=1 /dev/sg0 || fail "reserve"
expect "Write Exclusive" -- sg_persist -n -r /dev/sg1
dd if=/tmp/x of=/dev/sda bs=4k count=1 oflag=direct 2>/dev/null && say "ok: the holder writes" || fail "holder's write"
conflict /dev/sdb
dd if=/dev/sdb of=/dev/null bs=4k count=1 iflag=direct 2>/dev/null && say "ok: others read" || fail "others' read"
sg_persist -n --out --preempt --param-rk=0xbbb1 --param-sark=0xaaa1 --prout-type=1 /dev/sg1 || fail "preempt"
expect "Registrations preempted" -- sg_turs -vv /dev/sg0
conflict /dev/sda
sg_persist -n --out --clear --param-rk=0xbbb1 /dev/sg1 || fail "clear"

say "--- Unit Attentions from the cluster"
sg_turs /dev/sg0; sg_turs /dev/sg1
peer attention $U 2a09
expect "Capacity data has changed" -- sg_turs -vv /dev/sg0
expect "Capacity data has changed" -- sg_turs -vv /dev/sg1
sg_turs /dev/sg0 && say "ok: told once" || fail "told twice"

say "--- the data node hangs: reads go on, the question ends in an error, not in GOOD"
echo 1000 >/sys/module/target_core_holdfast/parameters/ask_timeout_ms
peer answer hang
dd if=/dev/sda of=/dev/null bs=4k count=64 iflag=direct 2>/dev/null && say "ok: reads go on" || fail "reads stopped"
sg_raw -t 20 -s 24 -i /dev/zero /dev/sg0 5f 06 00 00 00 00 00 00 18 00 >/tmp/out 2>&1 && fail "GOOD without an answer"
grep -q "Aborted Command" /tmp/out && say "ok: aborted command" || { fail "not aborted"; cat /tmp/out; }
peer answer well

say "--- the data node dies: the lease carries on, then nothing is served"
peer lease 4000
kill -9 $PEER; wait $PEER 2>/dev/null; exec 3>&-
dd if=/dev/sda of=/dev/null bs=4k count=64 iflag=direct 2>/dev/null && say "ok: served under the lease" || fail "lease not honoured"
sg_raw -t 20 -s 24 -i /dev/zero /dev/sg0 5f 06 00 00 00 00 00 00 18 00 >/tmp/out 2>&1
grep -q Busy /tmp/out && say "ok: unread question is BUSY" || { fail "not BUSY"; cat /tmp/out; }
# The lease has 4 s at most.
n=0; until sg_raw -r 512 /dev/sg0 28 00 00 00 00 00 00 00 01 00 >/tmp/out 2>&1; grep -q Busy /tmp/out || [ $n = 100 ]; do
    usleep 100000; n=$((n + 1))
done
grep -q Busy /tmp/out && say "ok: nothing without a lease" || { fail "served without a lease"; cat /tmp/out; }

say "--- the next data node takes over; a stale one is refused"
start_peer; ready epoch=5
sg_turs /dev/sg0 || sg_turs /dev/sg0 || fail "not served again"
peer unit $U 65536 512 epoch=4 | grep -q "refused" && say "ok: older epoch refused" || fail "older epoch taken"
peer unit $U 99999999 512 epoch=6 | grep -q "refused" && say "ok: larger than its store refused" || fail "too large"
peer lease 90000 | grep -q "refused" && say "ok: lease too long refused" || fail "endless lease"
kernel-peer </dev/null 2>&1 | grep -qi busy && say "ok: one data node at a time" || fail "two data nodes"

say "--- messages that are nearly right"
peer fuzz 20000 7
sg_turs /dev/sg1 >/dev/null 2>&1; splat
kill -9 $PEER; wait $PEER 2>/dev/null; exec 3>&-

say "--- removal under I/O"
start_peer; ready epoch=9000000
dd if=/dev/sda of=/dev/null bs=4k count=4000 iflag=direct 2>/dev/null & DD=$!
rmmod target_core_holdfast 2>/dev/null && fail "removed in use"
for w in naa.60014050000000a1 naa.60014050000000b1; do
    rm $T/loopback/$w/tpgt_1/lun/lun_0/hf; rmdir $T/loopback/$w/tpgt_1/lun/lun_0
    echo NULL >$T/loopback/$w/tpgt_1/nexus; rmdir $T/loopback/$w/tpgt_1 $T/loopback/$w
done
wait $DD
rmdir $T/core/holdfast_0/lu0 $T/core/holdfast_0 || fail "unit not removed"
kill -9 $PEER; wait $PEER 2>/dev/null; exec 3>&-
rmmod target_core_holdfast && say "ok: unloaded" || fail "not unloaded"
splat
say "done"
