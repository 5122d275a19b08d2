//! Damage that the scrub, or a read, has found on the own replica, told to the machine that can do something about it.

use std::sync::Arc;

use holdfast_replica::ids::NodeNumber;
use holdfast_replica::span::Span;

use super::{BUSY_MS, Engine};
use crate::clock;

impl Engine {
    /// Blocks of the own replica were found damaged: gets them from another one, by way of the owner. Told again until they are well.
    pub(crate) fn damaged(self: &Arc<Self>, spans: impl IntoIterator<Item = Span>) {
        let now = clock::scsi_now();
        let mut inner = self.lock();
        for span in spans {
            match &mut inner.owned {
                Some(owned) => owned.primary.damaged(now, span),
                None => inner.secondary.damaged(span),
            }
        }
        self.run(inner, None, &mut None);
    }

    /// What was healed on the own replica since the last call, and whose blocks those are. `None` where another node is the owner.
    pub(crate) fn take_healed(&self) -> Option<Vec<(Span, NodeNumber)>> {
        self.lock().owned.as_mut().map(|owned| owned.primary.take_healed().collect())
    }

    /// True if hosts have asked for something lately.
    pub(crate) fn is_busy(&self) -> bool {
        self.look(|inner| clock::scsi_now().millis_since(inner.last_asked) < BUSY_MS)
    }
}
