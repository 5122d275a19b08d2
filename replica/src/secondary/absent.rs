//! What a promise says of those who are not in the in-sync set: bitmaps for them, and the log that names the set.
//!
//! Invariant: the bitmaps are durable before the log names the new set.

use alloc::vec::Vec;

use super::{Part, Secondary};
use crate::{
    bitmap::Bitmap,
    epoch::Epoch,
    ids::NodeNumber,
    limits::BITMAPS_MAX,
    replication::{Promise, ToReplica},
};

impl<B> Secondary<B> {
    /// Bitmaps for those that are not in the new in-sync set.
    pub(super) fn note_absent(&mut self, asked: &ToReplica<()>, promise: &Promise, next_batch: u64) {
        let me = self.opened.me;
        // An operator has decided that this one counts, whatever it lacks.
        if asked.epoch.generation > self.opened.promised.generation && promise.in_sync == [me] {
            self.opened.log.set_trusted();
        }
        if promise.term != self.term {
            // What the last owner has settled needs no copying by the next one.
            self.opened.log.sweep();
            self.opened.log.carry(asked.number);
        }
        // Made as one of the first copies, but too late: an owner that has given numbers had such a copy before.
        if self.opened.promised == Epoch::ZERO && asked.number > 0 {
            self.opened.log.set_untrusted();
        }
        let same_stream = asked.session == self.session && promise.term == self.term;
        if !promise.in_sync.contains(&me) && !same_stream {
            // A learner begins anew: what it knew of the others is not complete. The owner will say.
            let dropped = core::mem::take(&mut self.bitmaps);
            self.parts.extend(dropped.into_keys().map(Part::DropBitmap));
            return;
        }
        let shape = self.opened.shape;
        let before: Vec<NodeNumber> = self.opened.log.in_sync().to_vec();
        let absent = before.iter().chain(&promise.learners).filter(|n| !promise.in_sync.contains(n));
        for node in absent.filter(|n| **n != me) {
            let left = before.contains(node);
            let bitmap =
                self.bitmaps.entry(*node).or_insert_with(|| Bitmap::new(*node, shape, !left, next_batch));
            if left {
                for span in self.opened.log.entries().filter_map(|e| shape.extent_span(e.extent)) {
                    bitmap.mark(span, next_batch);
                }
            }
        }
    }

    pub(super) fn note_promise(&mut self, epoch: Epoch, promise: &Promise) {
        let in_sync = &promise.in_sync;
        let mut gone: Vec<NodeNumber> =
            self.bitmaps.keys().filter(|n| in_sync.contains(n)).copied().collect();
        let kept = self.bitmaps.keys().filter(|n| !in_sync.contains(n) && !promise.learners.contains(n));
        gone.extend(kept.skip(BITMAPS_MAX));
        for node in gone {
            self.bitmaps.remove(&node);
            self.parts.push(Part::DropBitmap(node));
        }
        self.opened.log.set_in_sync(in_sync.clone());
        self.parts.push(Part::Promise(epoch));
    }
}
