//! The scrub: every replica that keeps checksums is read from its first block to its last one, again and again, so that what a disk has lost is
//! found while another copy still has it.
//!
//! Invariants: one piece is read at a time, at a bounded rate, slower while hosts use the volume; where it is is on the disk now and
//! then, so that a restart goes on there; whatever is bad is told to the owner until it is well.

mod record;

use std::collections::HashMap;
use std::ops::Range;
use std::sync::{Arc, PoisonError, mpsc};
use std::time::Duration;

use holdfast_proto::node::{ScrubQuestion, ScrubState};
use holdfast_replica::span::Span;

pub(super) use self::record::Records;
use self::record::Source;
use super::engine::Engine;
use super::hosting::Hosting;
use crate::clock;
use crate::store::checked::{BLOCK, CheckedStore, ScrubMark};
use crate::store::{Store, StoreError};
use crate::view::VolumeId;

/// Bytes that are read at a time; a multiple of what a checksum covers.
const PIECE: u64 = 256 * 1024;
const TICK: Duration = Duration::from_millis(100);
const TICKS_PER_SECOND: u64 = 10;
/// While hosts use the volume it is read so much slower.
const BUSY_DIVISOR: u64 = 4;
/// Where it is is written down after so many bytes.
const MARK_EVERY: u64 = 256 * 1024 * 1024;
/// Bad blocks are told again after this time, in milliseconds.
const TELL_AGAIN_MS: u64 = 2_000;
/// Bad blocks that are told at a time.
const TOLD_MAX: usize = 32;
/// Extents that nothing was written to for so long are settled, in milliseconds.
const SETTLE_MS: u64 = 10_000;

/// How fast, and how often.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ScrubPace {
    /// Bytes read per second, of all replicas together, at most; 0: nothing is looked for.
    pub bytes_per_second_max: u64,
    /// From the end of a pass over a replica to the beginning of the next one, in seconds.
    pub period_s: u64,
}

impl Default for ScrubPace {
    /// 32 MiB a second, once a week.
    fn default() -> ScrubPace {
        ScrubPace { bytes_per_second_max: 32 * 1024 * 1024, period_s: 7 * 24 * 3600 }
    }
}

/// What this process remembers of a replica.
#[derive(Debug, Default)]
struct Pass {
    /// Since the mark was written down.
    unmarked: u64,
    blocks: u64,
    found: u64,
    next: Option<u64>,
    told_at_ms: u64,
    settled_at_ms: u64,
}

/// Runs until `stopped` ends.
pub(super) fn run(hosting: &Hosting, pace: ScrubPace, stopped: &mpsc::Receiver<()>) {
    let records = &hosting.scrubs;
    let mut passes: HashMap<VolumeId, Pass> = HashMap::new();
    let mut debt = 0;
    while stopped.recv_timeout(TICK) == Err(mpsc::RecvTimeoutError::Timeout) {
        let ids = hosting.hosted();
        passes.retain(|id, _| ids.contains(id));
        records.retain(&ids);
        let mut budget = pace.bytes_per_second_max / TICKS_PER_SECOND;
        let paid = budget.min(debt);
        budget -= paid;
        debt -= paid;
        for id in ids {
            let pass = passes.entry(id).or_default();
            // Held so that the replica is not closed and opened anew meanwhile; whoever opens it goes first.
            let Some(slot) = hosting.slot(id) else { continue };
            let Ok(hosted) = slot.try_lock() else { continue };
            let Some(checked) = hosted.replica.as_ref().and_then(|replica| replica.checked()) else {
                records.closed(id);
                continue;
            };
            let engine = hosted.engine.as_ref();
            let source = source(hosting, id, engine);
            records.look(
                id,
                checked.size(),
                checked.scrub_mark().finished_unix_ms,
                &checked.bad_blocks(),
                &source,
            );
            look_after(id, checked, engine, pass);
            let mut share =
                if engine.is_some_and(|engine| engine.is_busy()) { budget / BUSY_DIVISOR } else { budget };
            while share > 0 {
                match step(id, checked, pace, pass, records) {
                    Ok(Some(read)) => {
                        debt += read.saturating_sub(share.min(read));
                        budget = budget.saturating_sub(read);
                        share = share.saturating_sub(read);
                    }
                    Ok(None) => break,
                    Err(error) => {
                        tracing::warn!(volume = %id, %error, "the scrub cannot read on");
                        pass.next = None;
                        records.end(id, Err(error.to_string()));
                        break;
                    }
                }
            }
        }
    }
}

/// Where the content of blocks came from that are well again. Asked before the blocks are looked at that are not.
fn source(hosting: &Hosting, id: VolumeId, engine: Option<&Arc<Engine>>) -> Source {
    let Some(engine) = engine else { return Source::Hosts };
    if let Some(healed) = engine.take_healed() {
        let bytes = |blocks: u64| blocks.saturating_mul(u64::from(engine.block_size));
        let blocks =
            |span: Span| -> Range<u64> { bytes(span.lba()) / BLOCK..bytes(span.end()).div_ceil(BLOCK) };
        return Source::Own(healed.into_iter().map(|(span, node)| (blocks(span), node)).collect());
    }
    let owner = hosting.lock().wanted.get(&id).and_then(|wanted| wanted.config.owner());
    owner.map_or(Source::Hosts, |owner| Source::Owner(owner.node))
}

/// Tells of bad blocks, and settles what is quiet.
fn look_after(id: VolumeId, checked: &CheckedStore, engine: Option<&Arc<Engine>>, pass: &mut Pass) {
    let now_ms = clock::now_ms();
    if now_ms >= pass.told_at_ms {
        pass.told_at_ms = now_ms.saturating_add(TELL_AGAIN_MS);
        if let Some(engine) = engine {
            let block_size = u64::from(engine.block_size).max(1);
            let per_block = (BLOCK / block_size).max(1);
            let bad = checked.bad_blocks();
            let spans = bad.iter().take(TOLD_MAX).filter_map(|block| {
                let lba = block.saturating_mul(BLOCK) / block_size;
                let end = (checked.size() / block_size).min(lba.saturating_add(per_block));
                Span::new(lba, end.saturating_sub(lba))
            });
            let spans: Vec<Span> = spans.collect();
            if !spans.is_empty() {
                engine.damaged(spans);
            }
        }
    }
    if now_ms >= pass.settled_at_ms {
        pass.settled_at_ms = now_ms.saturating_add(SETTLE_MS);
        if let Err(error) = checked.settle()
            && !matches!(error, StoreError::OutOfService)
        {
            tracing::warn!(volume = %id, %error, "the record of unsettled extents cannot be written");
        }
    }
}

/// Reads the next piece; how many bytes that were. `None`: nothing is due.
fn step(
    id: VolumeId,
    checked: &CheckedStore,
    pace: ScrubPace,
    pass: &mut Pass,
    records: &Records,
) -> Result<Option<u64>, StoreError> {
    let mut mark = checked.scrub_mark();
    let asked = records.take_asked(id);
    if asked {
        pass.next = None;
        mark.next_block = 0;
        // A restart must not go on where an older pass was.
        checked.set_scrub_mark(mark)?;
    }
    let due =
        mark.finished_unix_ms.saturating_add(pace.period_s.saturating_mul(1_000)) <= clock::unix_millis().0;
    let next = match pass.next {
        Some(next) => next,
        None if mark.next_block > 0 || due || asked => {
            tracing::info!(volume = %id, block = mark.next_block, asked, "scrub begins");
            (pass.blocks, pass.found, pass.unmarked) = (0, 0, 0);
            records.begin(id, mark.next_block.saturating_mul(BLOCK));
            mark.next_block
        }
        None => return Ok(None),
    };
    let offset = next.saturating_mul(BLOCK);
    if offset >= checked.size() {
        pass.next = None;
        pass.unmarked = 0;
        let finished_unix_ms = clock::unix_millis().0;
        checked.set_scrub_mark(ScrubMark { next_block: 0, finished_unix_ms, ..mark })?;
        records.end(id, Ok(finished_unix_ms));
        tracing::info!(volume = %id, blocks = pass.blocks, bad = pass.found, "scrub has ended");
        return Ok(None);
    }
    let nothing = checked.nothing_at(offset)? / PIECE * PIECE;
    let len = if nothing > 0 { nothing } else { PIECE.min(checked.size() - offset) };
    let mut read = 0;
    if nothing == 0 {
        let bad = checked.verify(offset, len)?;
        for block in &bad {
            tracing::error!(volume = %id, block, "the scrub has found a damaged block of 4096 bytes");
        }
        pass.found += bad.len() as u64;
        pass.blocks += len.div_ceil(BLOCK);
        pass.unmarked += len;
        read = len;
        if !bad.is_empty() {
            records.found(id, &bad, &checked.bad_blocks(), checked.forgets_bad());
            // Not when it suits: the sooner it is told the better.
            pass.told_at_ms = 0;
        }
    }
    let next = next.saturating_add(len.div_ceil(BLOCK));
    pass.next = Some(next);
    records.go_on(id, next.saturating_mul(BLOCK), read);
    if pass.unmarked >= MARK_EVERY {
        pass.unmarked = 0;
        checked.set_scrub_mark(ScrubMark { next_block: next, ..mark })?;
    }
    Ok(Some(read))
}

impl Hosting {
    /// How the replica of a volume is scrubbed; begins a pass where that is asked for. Never waits for a disk.
    pub(crate) fn scrub(&self, question: &ScrubQuestion, request_id: &str) -> ScrubState {
        self.scrubs.answer(question, request_id)
    }
}

/// The thread of it.
#[derive(Debug)]
pub(super) struct Scrub {
    thread: std::sync::Mutex<Option<(mpsc::Sender<()>, std::thread::JoinHandle<()>)>>,
}

impl Scrub {
    /// No thread.
    pub(super) fn none() -> Scrub {
        Scrub { thread: std::sync::Mutex::new(None) }
    }

    /// Starts it. A system that gives no thread costs the scrub, and nothing else.
    pub(super) fn start(hosting: Hosting, pace: ScrubPace) -> Scrub {
        let (stop, stopped) = mpsc::channel();
        let job = move || run(&hosting, pace, &stopped);
        match std::thread::Builder::new().name("scrub".into()).spawn(job) {
            Ok(thread) => Scrub { thread: std::sync::Mutex::new(Some((stop, thread))) },
            Err(error) => {
                tracing::error!(%error, "the system gives no thread for the scrub: there is none");
                Scrub::none()
            }
        }
    }

    /// Ends it.
    pub(super) fn stop(&self) {
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some((stop, thread)) = thread {
            drop(stop);
            let _ = thread.join();
        }
    }
}

impl Drop for Scrub {
    fn drop(&mut self) {
        self.stop();
    }
}
