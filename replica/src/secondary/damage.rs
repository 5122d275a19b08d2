//! Blocks for an owner that has lost them, and blocks that are lost here.
//!
//! Invariant: a replica that cannot read some blocks serves on.

use alloc::vec::Vec;

use super::{Secondary, Work};
use crate::{
    replication::{Answer, Failure},
    span::Span,
};

impl<B> Secondary<B> {
    /// Blocks have been read, or cannot be.
    pub fn read_done(&mut self, id: u64, result: Result<Vec<u8>, Failure>) {
        let Some(job) = self.jobs.remove(&id) else { return };
        if let Work::Read { ticket, .. } = job.work {
            self.release(ticket);
        }
        let answer = result.map_or_else(Answer::Failed, Answer::Blocks);
        self.answer_job(job.term, job.session, job.number, answer);
        self.after_job();
    }

    /// Blocks here were found damaged: tells the owner, if there is one. It may be told again at any time.
    pub fn damaged(&mut self, span: Span) {
        if self.promising.is_none() && self.session != 0 && !self.broken {
            self.answer(self.session, 0, Answer::Damaged(span));
        }
    }
}
