//! Calling other members: gRPC over mutual TLS, where the called member's name is verified.
//!
//! Invariants
//! * Append streams, heartbeats and snapshots have a connection each, so that none waits behind another's bytes.
//! * Failures to connect are `Unreachable`, which backs off; a stream connects only once there is something to send, since
//!   the back-off sleeps inside it. Otherwise a dead member would cost a core.
//! * A lost answer is an error, never a grant.
//! * A connection that is coming up outlives the call that began it: those of an election may wait for a tenth of a second only, and
//!   on a machine under load a handshake takes longer than that. Given up with its call, it would begin anew with each.

use std::{
    future::Future,
    io::{self, Read as _, Seek as _, SeekFrom},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use futures::{Stream, StreamExt as _, stream};
use holdfast_pki::{Identity, Role};
use holdfast_proto::raft::{
    DescribeRequest, Frame, SnapshotFrame, members_client::MembersClient, raft_client::RaftClient,
};
use openraft::{
    OptionalSend, RaftNetworkFactory,
    base::{BoxFuture, BoxStream},
    errors::{NetworkError, RPCError, ReplicationClosed, StreamingError, Unreachable},
    network::{Backoff, NetBackoff, NetSnapshot, NetStreamAppend, NetTransferLeader, NetVote, RPCOption},
    raft::{
        AppendEntriesRequest, SnapshotResponse, StreamAppendResult, TransferLeaderRequest,
        TransferLeaderResponse, VoteRequest, VoteResponse,
    },
};
use serde::{Serialize, de::DeserializeOwned};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{
    Code, Request,
    metadata::MetadataValue,
    transport::{Channel, Endpoint},
};

use super::{
    frame::{FORMAT, FrameError, pack, pack_bytes, unpack},
    options,
    snapshot_file::SnapshotFile,
    types::{Member, Snapshot, StoreId, TypeConfig, Vote},
};

type Rpc = RPCError<TypeConfig>;

/// Why a member cannot be called; shown to people in logs.
#[derive(Debug, Clone, thiserror::Error)]
pub(crate) enum CallError {
    #[error("{0}")]
    Address(String),
    #[error("{} ({:?})", .0.message(), .0.code())]
    Status(Box<tonic::Status>),
    #[error("no answer within {0:?}")]
    Silent(Duration),
    #[error(transparent)]
    Frame(#[from] FrameError),
}

impl From<tonic::Status> for CallError {
    fn from(status: tonic::Status) -> Self {
        Self::Status(Box::new(status))
    }
}

impl CallError {
    fn rpc(&self) -> Rpc {
        match self {
            // The peer answered, or was about to: trying again at once is right.
            Self::Frame(_) => RPCError::Network(NetworkError::new(self)),
            _ => RPCError::Unreachable(Unreachable::new(self)),
        }
    }
}

/// A connection to a member, made at first use and again when it broke.
///
/// # Errors
/// [`CallError::Address`] for an address or a name that cannot be used.
pub(crate) fn channel(identity: &Identity, member: &Member) -> Result<Channel, CallError> {
    let unusable = |error: &dyn std::fmt::Display| {
        CallError::Address(format!("member {} at {}: {error}", member.name, member.address))
    };
    let shaped = |endpoint: Endpoint| {
        endpoint
            .connect_timeout(options::CONNECT_TIMEOUT)
            .http2_keep_alive_interval(options::KEEP_ALIVE_INTERVAL)
            .keep_alive_timeout(options::KEEP_ALIVE_TIMEOUT)
            .keep_alive_while_idle(true)
    };
    identity
        .channel(&member.address, Role::Controller, Some(&member.name), shaped)
        .map_err(|error| unusable(&error))
}

/// Makes the callers.
pub(super) struct Network {
    identity: Arc<Identity>,
}

impl Network {
    pub(super) fn new(identity: Arc<Identity>) -> Self {
        Self { identity }
    }
}

impl RaftNetworkFactory<TypeConfig> for Network {
    type Network = Caller;

    async fn new_client(&mut self, _target: u64, node: &Member) -> Caller {
        Caller::new(&self.identity, node)
    }
}

/// Calls one member.
pub(super) struct Caller {
    channel: Result<Channel, CallError>,
    /// The store that the membership knows the member by.
    store: StoreId,
    /// The connection's state.
    line: Arc<Line>,
}

/// Whether a connection is up, as far as its calls have shown.
#[derive(Default)]
struct Line {
    is_up: AtomicBool,
    is_coming_up: AtomicBool,
}

impl Line {
    /// Sees to it that the connection comes up whatever becomes of the call that is about to be made.
    fn bring_up(self: &Arc<Self>, channel: &Channel) {
        if self.is_up.load(Ordering::Acquire) || self.is_coming_up.swap(true, Ordering::AcqRel) {
            return;
        }
        let (line, mut client) = (Arc::clone(self), MembersClient::new(channel.clone()));
        tokio::spawn(async move {
            let answer = client.describe(DescribeRequest {});
            if let Ok(answer) = tokio::time::timeout(options::CONNECT_TIMEOUT, answer).await {
                line.has_answered(answer.as_ref().err());
            }
            line.is_coming_up.store(false, Ordering::Release);
        });
    }

    /// A call was answered, or failed with this.
    fn has_answered(&self, failed: Option<&tonic::Status>) {
        // These are the member's own words; others may be of a connection that is not there.
        let answered = failed.is_none_or(|status| {
            matches!(
                status.code(),
                Code::FailedPrecondition | Code::InvalidArgument | Code::PermissionDenied | Code::Internal
            )
        });
        self.is_up.store(answered, Ordering::Release);
    }
}

/// Metadata key of the store that the called member is expected to have, hex.
pub(super) const EXPECTED_STORE: &str = "holdfast-store";

impl Caller {
    pub(super) fn new(identity: &Identity, member: &Member) -> Self {
        let channel = channel(identity, member);
        if let Err(error) = &channel {
            tracing::error!(%error, "a member cannot be called");
        }
        Self { channel, store: member.store, line: Arc::default() }
    }

    fn client(&self) -> Result<RaftClient<Channel>, CallError> {
        let channel = self.channel.clone()?;
        self.line.bring_up(&channel);
        Ok(RaftClient::new(channel)
            .max_decoding_message_size(options::FRAME_BYTES_MAX)
            .max_encoding_message_size(options::FRAME_BYTES_MAX))
    }

    /// What a call was answered, seen to.
    fn seen<T>(&self, answer: Result<tonic::Response<T>, tonic::Status>) -> Result<T, CallError> {
        self.line.has_answered(answer.as_ref().err());
        Ok(answer?.into_inner())
    }

    /// A request to the member, by the store that it must have.
    fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        if let Ok(store) = MetadataValue::try_from(self.store.to_string()) {
            request.metadata_mut().insert(EXPECTED_STORE, store);
        }
        request
    }

    async fn call<A: DeserializeOwned>(
        &mut self,
        call: Call,
        message: &impl Serialize,
        limit: Duration,
    ) -> Result<A, CallError> {
        let mut client = self.client()?;
        let mut request = self.request(pack(message)?);
        request.set_timeout(limit);
        let answer = async {
            match call {
                Call::Vote => client.vote(request).await,
                Call::PreVote => client.pre_vote(request).await,
                Call::TransferLeader => client.transfer_leader(request).await,
            }
        };
        let answer = tokio::time::timeout(limit, answer).await.map_err(|_| CallError::Silent(limit))?;
        Ok(unpack(&self.seen(answer)?)?)
    }
}

#[derive(Clone, Copy)]
enum Call {
    Vote,
    PreVote,
    TransferLeader,
}

impl NetBackoff<TypeConfig> for Caller {
    fn backoff(&self) -> Option<Backoff> {
        // Quick at first, since a member that restarts is soon back; then a few tries a second.
        let steps = [10, 20, 50, 100, 200].map(Duration::from_millis);
        Some(Backoff::new(steps.into_iter().chain(std::iter::repeat(Duration::from_millis(300)))))
    }
}

impl NetVote<TypeConfig> for Caller {
    async fn vote(
        &mut self,
        rpc: VoteRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, Rpc> {
        self.call(Call::Vote, &rpc, option.hard_ttl()).await.map_err(|error| error.rpc())
    }

    async fn pre_vote(
        &mut self,
        rpc: VoteRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, Rpc> {
        self.call(Call::PreVote, &rpc, option.hard_ttl()).await.map_err(|error| error.rpc())
    }
}

impl NetTransferLeader<TypeConfig> for Caller {
    async fn transfer_leader(
        &mut self,
        req: TransferLeaderRequest<TypeConfig>,
        _option: RPCOption,
    ) -> Result<TransferLeaderResponse<TypeConfig>, Rpc> {
        self.call(Call::TransferLeader, &req, options::TRANSFER_TIMEOUT).await.map_err(|error| error.rpc())
    }
}

impl NetStreamAppend<TypeConfig> for Caller {
    fn stream_append<'s, S>(
        &'s mut self,
        mut input: S,
        _option: RPCOption,
    ) -> BoxFuture<'s, Result<BoxStream<'s, Result<StreamAppendResult<TypeConfig>, Rpc>>, Rpc>>
    where
        S: Stream<Item = AppendEntriesRequest<TypeConfig>> + OptionalSend + Unpin + 'static,
    {
        Box::pin(async move {
            // The first request comes only after the back-off.
            let Some(first) = input.next().await else {
                return Ok(Box::pin(stream::empty()) as BoxStream<'s, _>);
            };
            let mut client = self.client().map_err(|error| error.rpc())?;
            // A request that cannot be packed ends the stream: the rest must not be taken for consecutive.
            let requests = stream::once(async { first }).chain(input);
            let frames = tokio_stream::StreamExt::map_while(requests, |request| {
                pack(&request).inspect_err(|error| tracing::error!(%error, "an append cannot be sent")).ok()
            });
            let opening = tokio::time::timeout(options::CONNECT_TIMEOUT, client.append(self.request(frames)));
            let answers = match opening.await {
                Err(_) => return Err(CallError::Silent(options::CONNECT_TIMEOUT).rpc()),
                Ok(answer) => self.seen(answer).map_err(|error| error.rpc())?,
            };
            let results = stream::unfold(Some(answers), |answers| async move {
                let mut answers = answers?;
                let result = match answers.message().await {
                    Ok(None) => return None,
                    Ok(Some(frame)) => unpack(&frame).map_err(CallError::from),
                    Err(status) => Err(CallError::from(status)),
                };
                match result {
                    Ok(answer) => Some((Ok(answer), Some(answers))),
                    Err(error) => Some((Err(error.rpc()), None)),
                }
            });
            Ok(Box::pin(results) as BoxStream<'s, _>)
        })
    }
}

impl NetSnapshot<TypeConfig> for Caller {
    type SnapshotData = SnapshotFile;

    async fn full_snapshot(
        &mut self,
        vote: Vote,
        snapshot: Snapshot,
        cancel: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
        option: RPCOption,
    ) -> Result<SnapshotResponse<TypeConfig>, StreamingError<TypeConfig>> {
        let send = async {
            let mut client = self.client()?;
            let meta = pack_bytes(&(vote, &snapshot.meta))?;
            let first = SnapshotFrame { format: FORMAT, meta, chunk: Vec::new() };
            let chunks =
                tokio_stream::StreamExt::map_while(ReceiverStream::new(chunks(snapshot.snapshot)), |chunk| {
                    chunk.inspect_err(|error| tracing::error!(%error, "a snapshot cannot be sent")).ok()
                });
            let frames = stream::once(async { first }).chain(chunks.map(|chunk| SnapshotFrame {
                format: FORMAT,
                meta: Vec::new(),
                chunk,
            }));
            let limit = option.hard_ttl();
            let frame: Frame = tokio::time::timeout(limit, client.install_snapshot(self.request(frames)))
                .await
                .map_err(|_| CallError::Silent(limit))??
                .into_inner();
            Ok::<_, CallError>(unpack(&frame)?)
        };
        tokio::select! {
            closed = cancel => Err(StreamingError::Closed(closed)),
            sent = send => sent.map_err(|error| error.rpc().into()),
        }
    }
}

/// Reads the file in bounded pieces; a receiver that is slow holds the reading back.
fn chunks(mut snapshot: SnapshotFile) -> mpsc::Receiver<io::Result<Vec<u8>>> {
    let (sender, receiver) = mpsc::channel(2);
    tokio::task::spawn_blocking(move || {
        let mut next = move |from: u64| -> io::Result<Vec<u8>> {
            let mut chunk = Vec::new();
            snapshot.file.seek(SeekFrom::Start(from))?;
            (&mut snapshot.file).take(options::SNAPSHOT_CHUNK_BYTES as u64).read_to_end(&mut chunk)?;
            Ok(chunk)
        };
        let mut position = 0;
        loop {
            let chunk = next(position);
            let length = chunk.as_ref().map_or(0, Vec::len);
            let end = chunk.as_ref().is_ok_and(Vec::is_empty);
            if end || sender.blocking_send(chunk).is_err() || length == 0 {
                return;
            }
            position += length as u64;
        }
    });
    receiver
}

#[cfg(test)]
mod tests {
    use holdfast_pki::Authority;
    use tokio::net::TcpListener;

    use super::*;

    const LIMIT: Duration = Duration::from_secs(60);

    #[tokio::test]
    async fn a_handshake_outlives_the_call_that_began_it() {
        holdfast_pki::install_crypto_provider();
        let directory = tempfile::tempdir().unwrap();
        let authority = Authority::create(&directory.path().join("ca")).unwrap();
        let identity = |name: &str| {
            authority.issue((Role::Controller, name), &directory.path().join(name)).unwrap();
            Identity::load(&directory.path().join(name)).unwrap()
        };
        let (own, slow) = (identity("ctl-1"), identity("ctl-2"));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let member = Member::new("ctl-2", listener.local_addr().unwrap().to_string());
        let mut caller = Caller::new(&own, &member);
        // Nobody shakes hands before the call was given up, and no call comes after it.
        let impatient = RPCOption::new(Duration::from_millis(40));
        let vote = VoteRequest::new(Vote::new(1, 1), None);
        caller.pre_vote(vote, impatient).await.unwrap_err();
        let (connection, _) = listener.accept().await.unwrap();
        let acceptor = tokio_rustls::TlsAcceptor::from(slow.rustls_server());
        let shaken = tokio::time::timeout(LIMIT, acceptor.accept(connection)).await.unwrap();
        assert!(shaken.is_ok(), "{shaken:?}");
    }
}
