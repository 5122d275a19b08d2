//! Calls that go on at another controller when the one that was asked dies, stops, or cannot answer now.
//!
//! Invariants
//! * The same bytes are sent again, so that a change carries the same request id and is carried out once.
//! * A connection comes up within [`CONNECT_TIMEOUT`] or is given up, and a silent one is noticed by HTTP/2 pings: a stopped
//!   controller is told from a slow call, which may take its time.
//! * What another try cannot mend is answered at once; the last answer is told when tries are used up.

use std::{
    collections::VecDeque,
    convert::Infallible,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
    time::Duration,
};

use holdfast_pki::{Identity, Role};
use http::{HeaderMap, Request, Response, request::Parts};
use http_body_util::{BodyExt as _, Full};
use prost::bytes::Bytes;
use tokio::{
    task::JoinSet,
    time::{Instant, sleep, timeout},
};
use tonic::{Code, Status, body::Body, transport::Channel};
use tower::{Service, ServiceExt as _};

/// Until a connection stands, TLS included: the kernel of a stopped process still takes connections.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// How long a controller may take to connect before the next one is tried beside it.
const HEAD_START: Duration = Duration::from_millis(300);
/// A peer that answers no ping is gone after interval and time-out.
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(1);
/// See [`KEEP_ALIVE_INTERVAL`].
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(2);
/// No new try begins after this time, except for a second one.
const TRIES_TIME: Duration = Duration::from_secs(10);
/// Pause before the next try, at first and at most.
const PAUSE: [Duration; 2] = [Duration::from_millis(50), Duration::from_millis(500)];

/// What sort of calls go through a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Calls {
    /// One answer, within this time, tries included; `None`: it takes as long as it takes.
    One(Option<Duration>),
    /// A stream of answers: tried again only until it begins.
    Stream,
}

/// A connection to whichever controller answers.
#[derive(Clone)]
pub(crate) struct Failover {
    inner: Arc<Inner>,
}

struct Inner {
    identity: Identity,
    addresses: Vec<String>,
    calls: Calls,
    /// The connection in use, and the number of its controller.
    current: Mutex<Option<(usize, Channel)>>,
}

/// One try.
enum Tried {
    Answered(Response<Body>),
    /// It may be otherwise at another controller, or later.
    Again(Again),
}

enum Again {
    /// The controller said so.
    Told(Response<Body>),
    /// The connection broke.
    Broken(String),
}

impl Failover {
    /// Connects to the first controller that answers.
    ///
    /// # Errors
    /// What each of them said, in one line.
    pub(crate) async fn connect(
        identity: Identity,
        addresses: Vec<String>,
        calls: Calls,
    ) -> Result<Failover, String> {
        let inner = Inner { identity, addresses, calls, current: Mutex::new(None) };
        inner.channel(0).await?;
        Ok(Failover { inner: Arc::new(inner) })
    }
}

impl Inner {
    fn current(&self) -> std::sync::MutexGuard<'_, Option<(usize, Channel)>> {
        self.current.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The connection in use, or a new one to the first controller from number `from` on that connects.
    async fn channel(&self, from: usize) -> Result<(usize, Channel), String> {
        if let Some(current) = self.current().clone() {
            return Ok(current);
        }
        let count = self.addresses.len();
        let mut waiting: VecDeque<usize> = (0..count).map(|n| from.wrapping_add(n) % count.max(1)).collect();
        let mut connecting = JoinSet::new();
        let mut failures = Vec::new();
        loop {
            if let Some(number) = waiting.pop_front() {
                let address = self.addresses.get(number).cloned().unwrap_or_default();
                connecting.spawn(connect(self.identity.clone(), number, address));
            }
            let patience = if waiting.is_empty() { CONNECT_TIMEOUT * 2 } else { HEAD_START };
            match timeout(patience, connecting.join_next()).await {
                Ok(Some(Ok(Ok(connected)))) => {
                    *self.current() = Some(connected.clone());
                    return Ok(connected);
                }
                Ok(Some(Ok(Err(failure)))) => failures.push(failure),
                Ok(Some(Err(panicked))) => failures.push(panicked.to_string()),
                Ok(None) if waiting.is_empty() => {
                    return Err(format!(
                        "no controller answers ({}); is the cluster up?",
                        failures.join("; ")
                    ));
                }
                Ok(None) | Err(_) => {}
            }
        }
    }

    /// The connection is not used any more.
    fn leave(&self, number: usize) {
        self.current().take_if(|(current, _)| *current == number);
    }

    async fn call(&self, request: Request<Body>) -> Result<Response<Body>, Status> {
        let (parts, body) = request.into_parts();
        let body = body.collect().await?.to_bytes();
        match self.calls {
            Calls::One(Some(limit)) => match timeout(limit, self.tries(&parts, &body)).await {
                Ok(answer) => answer,
                Err(_) => Err(Status::deadline_exceeded(format!(
                    "no controller has answered within {} s; what was asked for may have been done",
                    limit.as_secs()
                ))),
            },
            Calls::One(None) | Calls::Stream => self.tries(&parts, &body).await,
        }
    }

    async fn tries(&self, parts: &Parts, body: &Bytes) -> Result<Response<Body>, Status> {
        let begun = Instant::now();
        let mut pause = PAUSE[0];
        let mut from = 0;
        let mut last = None;
        for count in 1_u32.. {
            let tried = match self.channel(from).await {
                Ok((number, channel)) => {
                    from = number.wrapping_add(1);
                    let tried = self.attempt(channel, parts, body).await;
                    if let Tried::Again(_) = tried {
                        self.leave(number);
                    }
                    tried
                }
                Err(nobody) => Tried::Again(Again::Broken(nobody)),
            };
            let again = match tried {
                Tried::Answered(response) => return Ok(response),
                Tried::Again(again) => again,
            };
            // A controller's own words say more than that the others do not answer.
            if matches!(again, Again::Told(_)) || !matches!(last, Some(Again::Told(_))) {
                last = Some(again);
            }
            if count > 1 && begun.elapsed() >= TRIES_TIME {
                break;
            }
            sleep(pause).await;
            pause = (pause * 2).min(PAUSE[1]);
        }
        match last {
            Some(Again::Told(response)) => Ok(response),
            Some(Again::Broken(reason)) => Err(Status::unavailable(reason)),
            None => Err(Status::unavailable("no controller was asked")),
        }
    }

    async fn attempt(&self, mut channel: Channel, parts: &Parts, body: &Bytes) -> Tried {
        let mut request = Request::new(Body::new(Full::new(body.clone())));
        (*request.method_mut(), *request.uri_mut()) = (parts.method.clone(), parts.uri.clone());
        (*request.version_mut(), *request.headers_mut()) = (parts.version, parts.headers.clone());
        let broken = |error: &(dyn std::error::Error + 'static)| {
            let reason = crate::connection::root_cause(error);
            Tried::Again(Again::Broken(format!("the connection to the controller broke: {reason}")))
        };
        let answered = match channel.ready().await {
            Ok(ready) => ready.call(request).await,
            Err(error) => return broken(&error),
        };
        let response = match answered {
            Ok(response) => response,
            Err(error) => return broken(&error),
        };
        let (head, answer) = response.into_parts();
        if self.calls == Calls::Stream || is_again(&head.headers) {
            let again = is_again(&head.headers);
            let response = Response::from_parts(head, answer);
            return if again { Tried::Again(Again::Told(response)) } else { Tried::Answered(response) };
        }
        let answer = match answer.collect().await {
            Ok(answer) => answer,
            Err(error) => return broken(&error),
        };
        let trailers = answer.trailers().cloned();
        let again = trailers.as_ref().is_some_and(is_again);
        let data = Full::new(answer.to_bytes()).map_err(|never: Infallible| match never {});
        let body = Body::new(data.with_trailers(async move { trailers.map(Ok) }));
        let response = Response::from_parts(head, body);
        if again { Tried::Again(Again::Told(response)) } else { Tried::Answered(response) }
    }
}

/// True for a status that another try may mend: nobody could do it now (UNAVAILABLE), or what became of it is not known
/// (DEADLINE_EXCEEDED), which the same request id tells.
fn is_again(headers: &HeaderMap) -> bool {
    let status = Status::from_header_map(headers);
    status.is_some_and(|status| matches!(status.code(), Code::Unavailable | Code::DeadlineExceeded))
}

async fn connect(identity: Identity, number: usize, address: String) -> Result<(usize, Channel), String> {
    let failed = |reason: String| format!("{address}: {reason}");
    let (endpoint, connector) =
        identity.endpoint(&address, Role::Controller, None).map_err(|error| failed(error.to_string()))?;
    let endpoint = endpoint
        .http2_keep_alive_interval(KEEP_ALIVE_INTERVAL)
        .keep_alive_timeout(KEEP_ALIVE_TIMEOUT)
        .keep_alive_while_idle(true);
    match timeout(CONNECT_TIMEOUT, endpoint.connect_with_connector(connector)).await {
        Ok(Ok(channel)) => Ok((number, channel)),
        Ok(Err(error)) => Err(failed(crate::connection::root_cause(&error))),
        Err(_) => Err(failed(format!("no answer within {} s", CONNECT_TIMEOUT.as_secs()))),
    }
}

impl Service<Request<Body>> for Failover {
    type Response = Response<Body>;
    type Error = Status;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Status>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Status>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let inner = Arc::clone(&self.inner);
        Box::pin(async move { inner.call(request).await })
    }
}
