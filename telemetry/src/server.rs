//! A gRPC server's spans: one for each call, below the caller's.
//!
//! Invariants: without a collector the layer passes everything through. Calls that go on all the time (Raft, health) begin no
//! trace; they continue one. A span ends with the answer's head, so a stream's span is its opening.

use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll},
};

use http::{HeaderMap, Request, Response};
use tower::{Layer, Service};
use tracing::{Instrument as _, Span, field::Empty};
use tracing_opentelemetry::OpenTelemetrySpanExt as _;

use crate::propagation::{extract, is_on};

/// Packages whose calls begin no trace of their own.
const ONGOING: [&str; 2] = ["/holdfast.raft.", "/grpc."];

/// Gives each call of a server its span.
#[derive(Debug, Clone, Copy, Default)]
pub struct TraceLayer;

impl<S> Layer<S> for TraceLayer {
    type Service = Traced<S>;

    fn layer(&self, inner: S) -> Traced<S> {
        Traced { inner }
    }
}

/// See [`TraceLayer`].
#[derive(Debug, Clone)]
pub struct Traced<S> {
    inner: S,
}

fn span_of(path: &str, headers: &HeaderMap) -> Option<Span> {
    let parent = extract(headers);
    if parent.is_none() && ONGOING.iter().any(|package| path.starts_with(package)) {
        return None;
    }
    let span = tracing::info_span!(
        "grpc",
        otel.name = path.trim_start_matches('/'),
        otel.kind = "server",
        rpc.system = "grpc",
        otel.status_code = Empty,
    );
    if let Some(parent) = parent {
        // The only failures are those of a span that is not exported.
        let _ = span.set_parent(parent);
    }
    Some(span)
}

type Answer<A, E> = Pin<Box<dyn Future<Output = Result<A, E>> + Send>>;

impl<S, B, A> Service<Request<B>> for Traced<S>
where
    S: Service<Request<B>, Response = Response<A>>,
    S::Future: Send + 'static,
    S::Error: 'static,
    A: 'static,
{
    type Response = Response<A>;
    type Error = S::Error;
    type Future = Answer<Response<A>, S::Error>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let span = if is_on() { span_of(request.uri().path(), request.headers()) } else { None };
        match span {
            None => Box::pin(self.inner.call(request)),
            Some(span) => {
                let answer = span.in_scope(|| self.inner.call(request));
                Box::pin(
                    async move {
                        let answer = answer.await;
                        // A refusal's status is in the head of its answer.
                        let refused = answer.as_ref().is_ok_and(|answer| {
                            answer.headers().get("grpc-status").is_some_and(|status| status != "0")
                        });
                        if refused {
                            Span::current().record("otel.status_code", "ERROR");
                        }
                        answer
                    }
                    .instrument(span),
                )
            }
        }
    }
}
