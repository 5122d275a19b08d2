//! Watches of resources: everything that is there, a mark, then every change.
//!
//! Invariants
//! * What is sent is the state at some log index, and indexes only grow; a resource that changed twice within
//!   [`PAUSE`] is sent once, as it is last.
//! * Whoever has applied what a watch sent, in order, has the list that the member had.
//! * The watch ends, with UNAVAILABLE, when this member ceases to lead: a follower may lag without knowing it.

use std::collections::BTreeMap;

use tokio::{
    sync::mpsc,
    time::{Duration, sleep},
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use super::{Api, leader_changed};

/// Steps between the state and a connection.
const CHANNEL_STEPS: usize = 64;
/// Shortest time between two looks at the state: what a watch costs does not grow with the rate of changes.
const PAUSE: Duration = Duration::from_millis(100);

/// One step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Step<T> {
    /// A resource is like this now.
    Changed(T),
    /// The resource of this name is not there any more.
    Removed(String),
    /// All that was there has been sent.
    Synced,
}

/// What goes from `shown` to `now`: removals first, so that names can be taken anew.
fn steps<T: Clone + PartialEq>(shown: &BTreeMap<String, T>, now: &BTreeMap<String, T>) -> Vec<Step<T>> {
    let gone = shown.keys().filter(|name| !now.contains_key(*name)).cloned().map(Step::Removed);
    let changed = now.iter().filter(|(name, row)| shown.get(*name) != Some(row));
    gone.chain(changed.map(|(_, row)| Step::Changed(row.clone()))).collect()
}

/// The stream that a watch answers with.
pub(super) type Watch<C> = ReceiverStream<Result<C, Status>>;

impl Api {
    /// Watches what `look` makes of the state, by name.
    ///
    /// # Errors
    /// Leadership was not confirmed.
    pub(super) async fn watch<T, C>(
        &self,
        look: impl Fn(&Api) -> BTreeMap<String, T> + Send + Sync + 'static,
        step: fn(Step<T>) -> C,
    ) -> Result<Watch<C>, Status>
    where
        T: Clone + PartialEq + Send + Sync + 'static,
        C: Send + 'static,
    {
        self.read(|_| ()).await?;
        let (sender, stream) = mpsc::channel(CHANNEL_STEPS);
        tokio::spawn(self.clone().follow(look, step, sender));
        Ok(ReceiverStream::new(stream))
    }

    async fn follow<T, C>(
        self,
        look: impl Fn(&Api) -> BTreeMap<String, T>,
        step: fn(Step<T>) -> C,
        sender: mpsc::Sender<Result<C, Status>>,
    ) where
        T: Clone + PartialEq,
    {
        let mut applied = self.raft.watch_applied();
        let mut leadership = self.raft.leadership();
        let term = leadership.borrow().term;
        let mut shown = BTreeMap::new();
        let mut synced = false;
        loop {
            applied.borrow_and_update();
            let leads = *leadership.borrow_and_update();
            if !leads.am_leader || leads.term != term {
                let _ = sender.send(Err(leader_changed())).await;
                return;
            }
            let now = look(&self);
            let mut all = steps(&shown, &now);
            if !synced {
                all.push(Step::Synced);
                synced = true;
            }
            for one in all {
                if sender.send(Ok(step(one))).await.is_err() {
                    return;
                }
            }
            shown = now;
            tokio::select! {
                () = sender.closed() => return,
                () = sleep(PAUSE) => {}
            }
            tokio::select! {
                changed = applied.changed() => if changed.is_err() { return },
                changed = leadership.changed() => if changed.is_err() { return },
                () = sender.closed() => return,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_lead_from_one_list_to_the_next() {
        let list = |rows: &[(&str, u8)]| -> BTreeMap<String, u8> {
            rows.iter().map(|(name, row)| ((*name).to_owned(), *row)).collect()
        };
        let (before, after) = (list(&[("a", 1), ("b", 2), ("c", 3)]), list(&[("a", 1), ("b", 9), ("d", 4)]));
        let told = steps(&before, &after);
        assert_eq!(told, [Step::Removed("c".to_owned()), Step::Changed(9), Step::Changed(4)]);
        assert!(steps(&after, &after).is_empty());
    }
}
