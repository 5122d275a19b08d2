//! Watches of resources: everything that is there, a mark, then every change; or, from a revision on, what has changed since.
//!
//! Invariants
//! * What is sent is the state at some log index, and indexes only grow; a resource that changed twice within
//!   [`PAUSE`] is sent once, as it is last.
//! * Whoever has applied what a watch sent, in order, has the list that the member had. A step carries a revision only when all
//!   that belongs to it has been sent, so that whoever goes on from the last revision that it saw misses nothing; what it had
//!   already may come again.
//! * What a watch costs grows with what changes, not with what there is: the commits tell which resources to look at.
//! * The watch ends, with UNAVAILABLE, when this member ceases to lead: a follower may lag without knowing it.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use holdfast_proto::state::{Change, change::Change as Kind};
use holdfast_replica::ids::VolumeId;
use tokio::{
    sync::mpsc,
    time::{Duration, sleep, timeout},
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use super::{Api, leader_changed};
use crate::raft::Commits;

/// Steps between the state and a connection.
const CHANNEL_STEPS: usize = 64;
/// Shortest time between two looks at the state: what a watch costs does not grow with the rate of changes.
const PAUSE: Duration = Duration::from_millis(100);
/// How often resources are looked at that move without a commit (progress).
const MOVING_PAUSE: Duration = Duration::from_secs(1);
/// A watch that sent nothing says so after this many log indexes, so that its revision does not fall out of what is kept.
const MARK_EVERY: u64 = 1024;

/// How long commits may lag behind the state that they made.
const COMMITS_TIMEOUT: Duration = Duration::from_secs(2);

/// One step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Step<T> {
    /// A resource is like this now.
    Changed(T),
    /// The resource of this name is not there any more.
    Removed(String),
    /// All up to the revision of this step has been sent.
    Synced,
}

/// Which resources of a kind a commit is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Touch {
    Nothing,
    /// The one of this name.
    One(String),
    /// Any of them.
    All,
}

/// Names a volume by its id, also one that is gone where that can be told.
pub(super) type VolumeNames<'a> = &'a dyn Fn(&[u8]) -> Option<String>;

/// A kind of resource that is watched, with what the caller asked to see of it.
pub(super) trait Noun: Clone + Send + Sync + 'static {
    type Row: Clone + PartialEq + Send + Sync + 'static;

    /// What a change of the state may mean to them; `None` where only the name of a volume that is gone would tell.
    fn touched(&self, change: &Kind, volume: VolumeNames<'_>) -> Option<Touch>;

    /// All that are there, by name.
    fn rows(&self, api: &Api) -> BTreeMap<String, Self::Row>;

    /// The one of this name.
    fn row(&self, api: &Api, name: &str) -> Option<Self::Row>;

    /// True while it may change without a commit.
    fn is_moving(_: &Self::Row) -> bool {
        false
    }
}

/// All that some commits are about.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Touched {
    Names(BTreeSet<String>),
    All,
}

impl Touched {
    fn none() -> Touched {
        Touched::Names(BTreeSet::new())
    }

    fn add(&mut self, touch: Touch) {
        match (&mut *self, touch) {
            (Touched::Names(names), Touch::One(name)) => drop(names.insert(name)),
            (_, Touch::All) => *self = Touched::All,
            (Touched::All, _) | (_, Touch::Nothing) => {}
        }
    }
}

/// What goes from `shown` to `now`: removals first, so that names can be taken anew.
fn steps<T: Clone + PartialEq>(shown: &BTreeMap<String, T>, now: &BTreeMap<String, T>) -> Vec<Step<T>> {
    let gone = shown.keys().filter(|name| !now.contains_key(*name)).cloned().map(Step::Removed);
    let changed = now.iter().filter(|(name, row)| shown.get(*name) != Some(row));
    gone.chain(changed.map(|(_, row)| Step::Changed(row.clone()))).collect()
}

/// What someone is told who has seen everything before these commits: what they are about, as it is now.
fn since<T: Clone>(touched: &Touched, named: &BTreeSet<String>, now: &BTreeMap<String, T>) -> Vec<Step<T>> {
    let gone = named.iter().filter(|name| !now.contains_key(*name)).cloned().map(Step::Removed);
    let wanted = |name: &String| match touched {
        Touched::All => true,
        Touched::Names(names) => names.contains(name),
    };
    gone.chain(now.iter().filter(|(name, _)| wanted(name)).map(|(_, row)| Step::Changed(row.clone())))
        .collect()
}

/// What a watch sends first, and what its receiver has then.
type Begin<T> = (Vec<Step<T>>, BTreeMap<String, T>);

/// The stream that a watch answers with.
pub(super) type Watch<C> = ReceiverStream<Result<C, Status>>;

fn not_kept(after: u64) -> Status {
    Status::out_of_range(format!(
        "after_revision: what changed since revision {after} is not kept (any more) by the leading controller; begin anew with 0"
    ))
}

impl Api {
    /// Watches resources from now on, or from a revision on. `step` makes a message of a revision and a step.
    ///
    /// # Errors
    /// OUT_OF_RANGE: the revision is too old, or none of this cluster's. UNAVAILABLE: leadership was not confirmed.
    pub(super) async fn watch<N: Noun, C: Send + 'static>(
        &self,
        noun: N,
        after: u64,
        step: fn(u64, Step<N::Row>) -> C,
    ) -> Result<Watch<C>, Status> {
        self.read(|_| ()).await?;
        let commits = self.raft.subscribe_commits();
        let first = if after == 0 {
            let rows = noun.rows(self);
            (rows.values().cloned().map(Step::Changed).collect(), rows)
        } else {
            self.changed_since(&noun, after).await?
        };
        let (sender, stream) = mpsc::channel(CHANNEL_STEPS);
        let follower = Follower { api: self.clone(), noun, step, sender, told: after };
        tokio::spawn(follower.follow(first, commits));
        Ok(ReceiverStream::new(stream))
    }

    /// What was changed above `after`, as it is now, and all rows as they are now.
    async fn changed_since<N: Noun>(&self, noun: &N, after: u64) -> Result<Begin<N::Row>, Status> {
        let mut past = self.raft.follow_after(after).ok_or_else(|| not_kept(after))?;
        let rows = noun.rows(self);
        // The state is readable a moment before its commits are: none that the rows show may be missed.
        let (seen, mut applied) = (self.raft.applied_index(), self.raft.watch_applied());
        let known = applied.wait_for(|applied| *applied >= seen);
        if !matches!(timeout(COMMITS_TIMEOUT, known).await, Ok(Ok(_))) {
            return Err(Status::unavailable("the controller is behind its own log; ask again"));
        }
        let mut all = Vec::new();
        while let Some(commit) = past.try_next().map_err(|_| not_kept(after))? {
            all.push(commit);
        }
        // A volume that is gone has no name in the state any more; the event of its end has.
        let mut gone: HashMap<Vec<u8>, String> = HashMap::new();
        for commit in &all {
            let ids = commit.changes.iter().filter_map(|change| match &change.change {
                Some(Kind::RemovedVolume(id)) => Some(id.clone()),
                _ => None,
            });
            let ids: Vec<Vec<u8>> = ids.collect();
            if ids.is_empty() {
                continue;
            }
            let (events, _) = self
                .raft
                .events_after(commit.index.saturating_sub(1), 1)
                .map_err(|error| Status::data_loss(error.to_string()))?;
            let names =
                events.iter().filter(|event| event.index == commit.index && event.kind == "volume.deleted");
            let names: Vec<String> =
                names.filter_map(|event| event.subject.strip_prefix("volume/").map(str::to_owned)).collect();
            if names.len() != ids.len() {
                return Err(not_kept(after));
            }
            gone.extend(ids.into_iter().zip(names));
        }
        let mut touched = Touched::none();
        let mut named = BTreeSet::new();
        for change in all.iter().flat_map(|commit| &commit.changes) {
            let touch = self.touch(noun, change, &gone).ok_or_else(|| not_kept(after))?;
            if let Touch::One(name) = &touch {
                named.insert(name.clone());
            }
            touched.add(touch);
        }
        if let Touched::Names(names) = &mut touched {
            names.extend(rows.iter().filter(|(_, row)| N::is_moving(row)).map(|(name, _)| name.clone()));
        }
        Ok((since(&touched, &named, &rows), rows))
    }

    /// `None` if it is about a volume that has no name any more.
    fn touch<N: Noun>(&self, noun: &N, change: &Change, gone: &HashMap<Vec<u8>, String>) -> Option<Touch> {
        let name = |id: &[u8]| {
            let known = VolumeId::from_slice(id)
                .and_then(|id| self.raft.read(|state| state.volume(id).map(|volume| volume.name.clone())));
            known.or_else(|| gone.get(id).cloned())
        };
        change.change.as_ref().map_or(Some(Touch::Nothing), |kind| noun.touched(kind, &name))
    }
}

/// One watch.
struct Follower<N: Noun, C> {
    api: Api,
    noun: N,
    step: fn(u64, Step<N::Row>) -> C,
    sender: mpsc::Sender<Result<C, Status>>,
    /// All up to here has been sent.
    told: u64,
}

impl<N: Noun, C: Send + 'static> Follower<N, C> {
    /// Sends what belongs to `revision`. False when nobody listens any more.
    async fn send(&mut self, mut all: Vec<Step<N::Row>>, revision: u64, mark: bool) -> bool {
        if mark {
            all.push(Step::Synced);
        }
        let last = all.len().saturating_sub(1);
        for (at, one) in all.into_iter().enumerate() {
            if at == last {
                self.told = revision;
            }
            if self.sender.send(Ok((self.step)(self.told, one))).await.is_err() {
                return false;
            }
        }
        true
    }

    async fn follow(mut self, (first, mut shown): Begin<N::Row>, mut commits: Commits) {
        let mut applied = self.api.raft.watch_applied();
        let mut leadership = self.api.raft.leadership();
        let term = leadership.borrow().term;
        if !self.send(first, commits.after(), true).await {
            return;
        }
        loop {
            tokio::select! {
                () = self.sender.closed() => return,
                () = sleep(PAUSE) => {}
            }
            let moving: BTreeSet<String> =
                shown.iter().filter(|(_, row)| N::is_moving(row)).map(|(name, _)| name.clone()).collect();
            tokio::select! {
                changed = applied.changed() => if changed.is_err() { return },
                changed = leadership.changed() => if changed.is_err() { return },
                () = sleep(MOVING_PAUSE), if !moving.is_empty() => {}
                () = self.sender.closed() => return,
            }
            applied.borrow_and_update();
            let leads = *leadership.borrow_and_update();
            if !leads.am_leader || leads.term != term {
                let _ = self.sender.send(Err(leader_changed())).await;
                return;
            }
            let mut touched = Touched::Names(moving);
            loop {
                match commits.try_next() {
                    Ok(Some(commit)) => {
                        for change in &commit.changes {
                            let touch = self.api.touch(&self.noun, change, &HashMap::new());
                            touched.add(touch.unwrap_or(Touch::All));
                        }
                    }
                    Ok(None) => break,
                    // Too slow for what is kept: everything is looked at.
                    Err(_) => {
                        touched = Touched::All;
                        commits = self.api.raft.read_and_follow(|_, _| ()).1;
                    }
                }
            }
            let told = match touched {
                Touched::All => {
                    let now = self.noun.rows(&self.api);
                    let told = steps(&shown, &now);
                    shown = now;
                    told
                }
                Touched::Names(names) => {
                    let mut told = Vec::new();
                    for name in names {
                        match self.noun.row(&self.api, &name) {
                            Some(row) if shown.get(&name) != Some(&row) => {
                                shown.insert(name, row.clone());
                                told.push(Step::Changed(row));
                            }
                            Some(_) => {}
                            None if shown.remove(&name).is_some() => told.push(Step::Removed(name)),
                            None => {}
                        }
                    }
                    told
                }
            };
            let mark = told.is_empty() && commits.after().saturating_sub(self.told) >= MARK_EVERY;
            if !self.send(told, commits.after(), mark).await {
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(rows: &[(&str, u8)]) -> BTreeMap<String, u8> {
        rows.iter().map(|(name, row)| ((*name).to_owned(), *row)).collect()
    }

    fn names(names: &[&str]) -> BTreeSet<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn steps_lead_from_one_list_to_the_next() {
        let (before, after) = (list(&[("a", 1), ("b", 2), ("c", 3)]), list(&[("a", 1), ("b", 9), ("d", 4)]));
        let told = steps(&before, &after);
        assert_eq!(told, [Step::Removed("c".to_owned()), Step::Changed(9), Step::Changed(4)]);
        assert!(steps(&after, &after).is_empty());
    }

    #[test]
    fn who_goes_on_is_told_what_the_commits_are_about_as_it_is_now() {
        let now = list(&[("a", 1), ("b", 2), ("d", 4)]);
        let touched = Touched::Names(names(&["b", "c"]));
        let told = since(&touched, &names(&["b", "c"]), &now);
        assert_eq!(told, [Step::Removed("c".to_owned()), Step::Changed(2)]);
        // Where a commit may be about any of them all come again, and what was named and is gone is told still.
        let told = since(&Touched::All, &names(&["c"]), &now);
        assert_eq!(told.len(), 4);
        assert_eq!(told[0], Step::Removed("c".to_owned()));
    }

    #[test]
    fn one_that_may_mean_all_means_all() {
        let mut touched = Touched::none();
        touched.add(Touch::Nothing);
        touched.add(Touch::One("a".to_owned()));
        assert_eq!(touched, Touched::Names(names(&["a"])));
        touched.add(Touch::All);
        touched.add(Touch::One("b".to_owned()));
        assert_eq!(touched, Touched::All);
    }
}
