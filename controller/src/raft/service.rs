//! Answering other members. The role check stands before this service (see `server`).
//!
//! Invariant: what cannot be read ends the stream with an error; nothing after it is taken as consecutive.

use std::{
    io::Write as _,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use futures::{Stream, StreamExt as _};
use holdfast_proto::raft::{Frame, SnapshotFrame, raft_server};
use openraft::{async_runtime::WatchReceiver as _, raft::AppendEntriesRequest};
use parking_lot::Mutex;
use serde::{Serialize, de::DeserializeOwned};
use tonic::{Request, Response, Status, Streaming};

use super::{
    frame::{FrameError, pack, unpack, unpack_bytes},
    network::EXPECTED_STORE,
    options,
    snapshot::SnapshotFolder,
    types::{Raft, Snapshot, SnapshotMeta, StoreId, TypeConfig, Vote},
};

/// The Raft service of this member.
#[derive(Clone)]
pub struct RaftService {
    pub(super) raft: Raft,
    pub(super) folder: Arc<SnapshotFolder>,
    pub(super) newcomer: Arc<Newcomer>,
    pub(super) store: StoreGuard,
}

/// Keeps a member whose store is not the one that the membership knows out of votes and log: what it promised with the other
/// store is forgotten.
#[derive(Clone)]
pub(super) struct StoreGuard {
    own: String,
    told: Arc<AtomicBool>,
}

impl StoreGuard {
    pub(super) fn new(own: StoreId) -> Self {
        Self { own: own.to_string(), told: Arc::default() }
    }

    fn check<T>(&self, request: &Request<T>) -> Result<(), Status> {
        let expected = request.metadata().get(EXPECTED_STORE).map(|value| value.as_bytes());
        if expected == Some(self.own.as_bytes()) {
            return Ok(());
        }
        if !self.told.swap(true, Ordering::AcqRel) {
            tracing::error!(
                own = self.own,
                "the cluster knows this controller by another store: its disk was lost or replaced. It takes no part until it \
                 is removed and added again (holdfast controller remove, holdfast controller add)"
            );
        }
        Err(Status::failed_precondition(
            "this member's store is another one than the membership says; remove the member and add it again",
        ))
    }
}

/// Keeps a member that started without a log apart from a leader that knows a log of it.
///
/// Such a member lost its disk. The leader would take the missing log for a breach of the protocol and stop. Heartbeats carry
/// what the leader knows to match (nothing, for a member that is really new), so nothing else is accepted before one of those.
pub(super) struct Newcomer {
    settled: AtomicBool,
    told: AtomicBool,
}

impl Newcomer {
    /// `has_log`: it started with a log.
    pub(super) fn new(has_log: bool) -> Arc<Self> {
        Arc::new(Self { settled: AtomicBool::new(has_log), told: AtomicBool::new(false) })
    }

    fn check(&self, raft: &Raft, request: &AppendEntriesRequest<TypeConfig>) -> Result<(), Status> {
        if self.settled.load(Ordering::Acquire) {
            return Ok(());
        }
        let has_log_now = raft.metrics().borrow_watched().last_log_index.is_some();
        let Some(known) = request.prev_log_id.filter(|_| !has_log_now) else {
            self.settled.store(true, Ordering::Release);
            return Ok(());
        };
        if request.entries.is_empty() && !self.told.swap(true, Ordering::AcqRel) {
            tracing::error!(
                "this member's store is empty, but the leader knows its log up to {}: its disk was lost. It stays out until \
                 another member leads",
                known.index
            );
        }
        Err(Status::failed_precondition("this member has no log; waiting for a leader that knows of none"))
    }
}

impl RaftService {
    /// With the bounds of [`options`].
    pub fn into_server(self) -> raft_server::RaftServer<Self> {
        raft_server::RaftServer::new(self)
            .max_decoding_message_size(options::FRAME_BYTES_MAX)
            .max_encoding_message_size(options::FRAME_BYTES_MAX)
    }
}

fn unreadable(error: FrameError) -> Status {
    Status::invalid_argument(error.to_string())
}

fn stopped(error: impl std::fmt::Display) -> Status {
    Status::unavailable(format!("this member has stopped: {error}"))
}

fn read<T: DeserializeOwned>(request: Request<Frame>) -> Result<T, Status> {
    unpack(request.get_ref()).map_err(unreadable)
}

fn answer(message: &impl Serialize) -> Result<Response<Frame>, Status> {
    pack(message).map(Response::new).map_err(|error| Status::internal(error.to_string()))
}

#[tonic::async_trait]
impl raft_server::Raft for RaftService {
    type AppendStream = Pin<Box<dyn Stream<Item = Result<Frame, Status>> + Send>>;

    async fn append(
        &self,
        request: Request<Streaming<Frame>>,
    ) -> Result<Response<Self::AppendStream>, Status> {
        self.store.check(&request)?;
        let broken = Arc::new(Mutex::new(None));
        let reason = Arc::clone(&broken);
        let (newcomer, raft) = (Arc::clone(&self.newcomer), self.raft.clone());
        let accept = move |frame: Frame| {
            let request = unpack(&frame).map_err(unreadable)?;
            newcomer.check(&raft, &request).map(|()| request)
        };
        let read = move |frame: Result<Frame, Status>| match frame.and_then(&accept) {
            Ok(request) => Some(request),
            Err(status) => {
                *reason.lock() = Some(status);
                None
            }
        };
        let requests = tokio_stream::StreamExt::map_while(request.into_inner(), read);
        let answers = self.raft.stream_append(requests).map(|result| match result {
            Ok(result) => pack(&result).map_err(|error| Status::internal(error.to_string())),
            Err(fatal) => Err(stopped(fatal)),
        });
        // After the answers to what could be read, say why there are no more.
        let end = futures::stream::once(async move { broken.lock().take() })
            .filter_map(|status| async move { status.map(Err) });
        Ok(Response::new(Box::pin(answers.chain(end))))
    }

    async fn vote(&self, request: Request<Frame>) -> Result<Response<Frame>, Status> {
        self.store.check(&request)?;
        answer(&self.raft.vote(read(request)?).await.map_err(stopped)?)
    }

    async fn pre_vote(&self, request: Request<Frame>) -> Result<Response<Frame>, Status> {
        self.store.check(&request)?;
        answer(&self.raft.pre_vote(read(request)?).await.map_err(stopped)?)
    }

    async fn install_snapshot(
        &self,
        request: Request<Streaming<SnapshotFrame>>,
    ) -> Result<Response<Frame>, Status> {
        self.store.check(&request)?;
        let mut frames = request.into_inner();
        let first = frames
            .message()
            .await?
            .ok_or_else(|| Status::invalid_argument("a snapshot without a first frame"))?;
        let (vote, meta): (Vote, SnapshotMeta) =
            unpack_bytes(first.format, &first.meta).map_err(unreadable)?;
        let failed =
            |error: std::io::Error| Status::internal(format!("a snapshot cannot be stored: {error}"));
        let mut file = self.folder.create().map_err(failed)?;
        let mut chunk = Some(first.chunk);
        let mut bytes = 0;
        while let Some(part) = chunk {
            bytes += part.len() as u64;
            if bytes > options::SNAPSHOT_BYTES_MAX {
                return Err(Status::resource_exhausted("the snapshot is larger than any may be"));
            }
            file.file.write_all(&part).map_err(failed)?;
            chunk = match frames.message().await? {
                Some(frame) if frame.meta.is_empty() => Some(frame.chunk),
                Some(_) => return Err(Status::invalid_argument("a second snapshot in one stream")),
                None => None,
            };
        }
        // A stream that was cut looks like one that ended; the file's own end and checksums tell. Raft takes a snapshot that
        // cannot be read for a broken disk, so it is checked before Raft sees it.
        let (file, written_for) = tokio::task::spawn_blocking(move || {
            let read = file.read().map(|content| content.meta);
            (file, read)
        })
        .await
        .map_err(|error| Status::internal(error.to_string()))?;
        match written_for {
            Ok(written_for) if written_for == meta => {}
            Ok(_) => return Err(Status::data_loss("the snapshot stands for another index than announced")),
            Err(error) => return Err(Status::data_loss(error.to_string())),
        }
        let snapshot = Snapshot { meta, snapshot: file };
        answer(&self.raft.install_full_snapshot(vote, snapshot).await.map_err(stopped)?)
    }

    async fn transfer_leader(&self, request: Request<Frame>) -> Result<Response<Frame>, Status> {
        self.store.check(&request)?;
        let request: openraft::raft::TransferLeaderRequest<TypeConfig> = read(request)?;
        answer(&self.raft.handle_transfer_leader(request).await.map_err(stopped)?)
    }
}
