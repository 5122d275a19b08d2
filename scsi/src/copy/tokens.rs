//! The ROD tokens that a logical unit has given out, at its owner.
//!
//! Invariants: a token is revoked before a block that it represents is written, so whoever reads by it gets the data that
//! were there when it was made, or an error; a token is known by all of its bytes only; there are at most
//! [`limits::TOKENS_MAX`], and one that was not used for its inactivity timeout is expired.

use alloc::{collections::VecDeque, vec::Vec};

use super::token::RodToken;
use crate::{
    geometry::{Extent, Geometry},
    limits,
    sense::{Sense, asc},
    time::Instant,
};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Valid,
    /// What it represents has changed.
    Revoked,
    Deleted,
    Expired,
}

#[derive(Clone, Debug)]
struct Entry {
    token: RodToken,
    extents: Vec<Extent>,
    inactivity_ms: u64,
    used: Instant,
    state: State,
}

/// See the module.
#[derive(Clone, Debug, Default)]
pub struct Tokens {
    entries: VecDeque<Entry>,
}

impl Tokens {
    /// A token that was made now.
    pub fn insert(&mut self, now: Instant, token: RodToken, extents: Vec<Extent>, inactivity_s: u32) {
        if self.entries.len() >= limits::TOKENS_MAX {
            self.entries.pop_front();
        }
        let inactivity_ms = u64::from(inactivity_s).saturating_mul(1000);
        self.entries.push_back(Entry { token, extents, inactivity_ms, used: now, state: State::Valid });
    }

    /// These blocks are about to be written.
    pub fn revoke(&mut self, written: &[Extent]) {
        for entry in self.entries.iter_mut().filter(|entry| entry.state == State::Valid) {
            if entry.extents.iter().any(|of| written.iter().any(|extent| of.overlaps(extent))) {
                entry.state = State::Revoked;
            }
        }
    }

    /// Everything may be about to be written.
    pub fn revoke_all(&mut self) {
        for entry in self.entries.iter_mut().filter(|entry| entry.state == State::Valid) {
            entry.state = State::Revoked;
        }
    }

    /// Nothing is known any more of what was written meanwhile.
    pub fn forget_all(&mut self) {
        self.entries.clear();
    }

    /// Makes the token unusable.
    pub fn delete(&mut self, token: &RodToken) {
        for entry in self.entries.iter_mut().filter(|entry| entry.token.is(token)) {
            entry.state = State::Deleted;
            entry.extents.clear();
        }
    }

    /// Checks a token and counts it as used now.
    ///
    /// # Errors
    /// TOKEN UNKNOWN, TOKEN CORRUPT (a known identifier with other bytes), TOKEN REVOKED, EXPIRED or DELETED.
    pub fn check(&mut self, now: Instant, token: &RodToken) -> Result<(), Sense> {
        self.find(now, token).map(|_| ())
    }

    /// The blocks from `offset` blocks into the token's data on, as many of `blocks` as lie together. `None` behind the end.
    ///
    /// # Errors
    /// As [`Tokens::check`].
    pub fn part(
        &mut self,
        now: Instant,
        token: &RodToken,
        offset: u64,
        blocks: u32,
        geometry: &Geometry,
    ) -> Result<Option<Extent>, Sense> {
        let entry = self.find(now, token)?;
        let mut before = 0_u64;
        for extent in &entry.extents {
            let end = before.saturating_add(u64::from(extent.blocks));
            if offset < end {
                let inside = offset.saturating_sub(before);
                let left = u64::from(extent.blocks).saturating_sub(inside);
                let blocks = u32::try_from(left).unwrap_or(u32::MAX).min(blocks);
                return Ok(geometry.extent(extent.lba.saturating_add(inside), blocks));
            }
            before = end;
        }
        Ok(None)
    }

    /// The tokens that may be used now, oldest first.
    pub fn valid(&self, now: Instant) -> impl Iterator<Item = &RodToken> {
        let usable = move |entry: &&Entry| {
            entry.state == State::Valid && now.millis_since(entry.used) <= entry.inactivity_ms
        };
        self.entries.iter().filter(usable).map(|entry| &entry.token)
    }

    /// True if nothing is known of any token.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    fn find(&mut self, now: Instant, token: &RodToken) -> Result<&Entry, Sense> {
        let unknown = Sense::illegal(asc::TOKEN_UNKNOWN);
        let id = token.identifier();
        let found = self.entries.iter_mut().find(|entry| entry.token.identifier() == id).ok_or(unknown)?;
        if !found.token.is(token) {
            return Err(Sense::illegal(asc::TOKEN_CORRUPT));
        }
        if found.state == State::Valid && now.millis_since(found.used) > found.inactivity_ms {
            found.state = State::Expired;
            found.extents.clear();
        }
        let refused = match found.state {
            State::Valid => {
                found.used = now;
                return Ok(found);
            }
            State::Revoked => asc::TOKEN_REVOKED,
            State::Deleted => asc::TOKEN_DELETED,
            State::Expired => asc::TOKEN_EXPIRED,
        };
        Err(Sense::illegal(refused))
    }
}
