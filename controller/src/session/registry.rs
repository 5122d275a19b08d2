//! The newest session of each data node, and questions to it.
//!
//! Invariants: a node has one session; a newer one ends the older. A question is answered by the session that it was put to, or not
//! at all: an answer that comes too late, or from another node, is dropped.

use std::{collections::HashMap, sync::Arc};

use holdfast_proto::{
    node::{Inspect, Inspection, ScrubQuestion},
    state as records,
};
use parking_lot::Mutex;
use tokio::{
    sync::{mpsc, oneshot},
    time::{Duration, timeout},
};

/// How long a node may take to answer.
const PATIENCE: Duration = Duration::from_secs(2);
/// Questions to one node that may wait.
const QUESTIONS_MAX: usize = 16;

/// Why it is not known what a node has to tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum NoAnswer {
    /// It has no session with this controller.
    #[error("it is not connected to the leading controller")]
    NotConnected,
    /// Too many questions wait.
    #[error("it is being asked too much; try again")]
    Busy,
    /// It did not answer in time, or its session ended.
    #[error("it did not answer within 2 s")]
    Silent,
}

struct Entry {
    // Dropping it tells the session that it is over.
    _ended: oneshot::Sender<()>,
    questions: mpsc::Sender<Inspect>,
}

#[derive(Default)]
struct Inner {
    sessions: HashMap<u32, Entry>,
    waiting: HashMap<u64, (u32, oneshot::Sender<Inspection>)>,
    last_id: u64,
}

/// Sessions by node number.
#[derive(Clone, Default)]
pub(crate) struct Registry {
    inner: Arc<Mutex<Inner>>,
}

impl Registry {
    /// Begins a session of the node. The one before is told, and so is this one when the next begins: its receiver completes.
    /// Questions to the node come by the other receiver.
    pub(super) fn begin(&self, node: u32) -> (oneshot::Receiver<()>, mpsc::Receiver<Inspect>) {
        let (ended, receiver) = oneshot::channel();
        let (questions, asked) = mpsc::channel(QUESTIONS_MAX);
        self.inner.lock().sessions.insert(node, Entry { _ended: ended, questions });
        (receiver, asked)
    }

    /// Asks a node for its sessions, or to end one, once by this request id.
    ///
    /// # Errors
    /// [`NoAnswer`].
    pub(crate) async fn ask(
        &self,
        node: u32,
        end: Option<(records::NexusName, String)>,
    ) -> Result<Inspection, NoAnswer> {
        let (end, request_id) = end.unzip();
        let request_id = request_id.unwrap_or_default();
        self.put(node, Inspect { end, request_id, ..Inspect::default() }).await
    }

    /// Asks a node for the scrub of its copy of a volume, or to begin one, once by this request id.
    ///
    /// # Errors
    /// [`NoAnswer`].
    pub(crate) async fn ask_scrub(
        &self,
        node: u32,
        question: ScrubQuestion,
        request_id: String,
    ) -> Result<Inspection, NoAnswer> {
        self.put(node, Inspect { scrub: Some(question), request_id, ..Inspect::default() }).await
    }

    async fn put(&self, node: u32, question: Inspect) -> Result<Inspection, NoAnswer> {
        let (sender, receiver) = oneshot::channel();
        let id = {
            let mut inner = self.inner.lock();
            inner.last_id += 1;
            let id = inner.last_id;
            let entry = inner.sessions.get(&node).ok_or(NoAnswer::NotConnected)?;
            entry.questions.try_send(Inspect { id, ..question }).map_err(|error| match error {
                mpsc::error::TrySendError::Full(_) => NoAnswer::Busy,
                mpsc::error::TrySendError::Closed(_) => NoAnswer::NotConnected,
            })?;
            inner.waiting.insert(id, (node, sender));
            id
        };
        let answer = timeout(PATIENCE, receiver).await;
        self.inner.lock().waiting.remove(&id);
        match answer {
            Ok(Ok(inspection)) => Ok(inspection),
            Ok(Err(_)) | Err(_) => Err(NoAnswer::Silent),
        }
    }

    /// A node has answered.
    pub(super) fn answered(&self, node: u32, inspection: Inspection) {
        let mut inner = self.inner.lock();
        if inner.waiting.get(&inspection.id).is_some_and(|(asked, _)| *asked == node)
            && let Some((_, sender)) = inner.waiting.remove(&inspection.id)
        {
            // Whoever asked may have gone.
            let _ = sender.send(inspection);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn newer_session_ends_the_older_of_the_same_node_only() {
        let registry = Registry::default();
        let (first, _) = registry.begin(1);
        let (mut other, _other_questions) = registry.begin(2);
        let (mut second, _second_questions) = registry.begin(1);
        assert!(first.await.is_err());
        assert!(other.try_recv() == Err(oneshot::error::TryRecvError::Empty));
        assert!(second.try_recv() == Err(oneshot::error::TryRecvError::Empty));
    }

    #[tokio::test]
    async fn only_the_node_that_was_asked_answers_and_silence_is_told() {
        let registry = Registry::default();
        assert_eq!(registry.ask(1, None).await, Err(NoAnswer::NotConnected));
        let (_over, mut questions) = registry.begin(1);
        let answering = registry.clone();
        let node = tokio::spawn(async move {
            let question = questions.recv().await.unwrap();
            answering.answered(2, Inspection { id: question.id, truncated: true, ..Default::default() });
            answering.answered(1, Inspection { id: question.id, applied_index: 7, ..Default::default() });
            questions
        });
        assert_eq!(registry.ask(1, None).await.unwrap().applied_index, 7);
        let questions = node.await.unwrap();
        assert_eq!(registry.ask(1, None).await, Err(NoAnswer::Silent));
        drop(questions);
        assert_eq!(registry.ask(1, None).await, Err(NoAnswer::NotConnected));
        assert!(registry.inner.lock().waiting.is_empty());
    }
}
