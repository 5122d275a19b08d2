//! A trace's context in gRPC metadata (W3C Trace Context: `traceparent`, `tracestate`).
//!
//! Invariant: without a collector nothing is written and nothing is read. What cannot be read begins a new trace; it never
//! refuses a call.

use std::sync::atomic::Ordering;

use http::{HeaderMap, HeaderName, HeaderValue};
use opentelemetry::{
    Context,
    propagation::{Extractor, Injector, TextMapPropagator as _},
    trace::TraceContextExt as _,
};
use opentelemetry_sdk::propagation::TraceContextPropagator;
use tonic::{Request, Status, metadata::MetadataMap, service::Interceptor};
use tracing::Span;
use tracing_opentelemetry::OpenTelemetrySpanExt as _;

use crate::EXPORTING;

/// Whether traces are exported.
pub fn is_on() -> bool {
    EXPORTING.load(Ordering::Acquire)
}

struct Headers<'a>(&'a mut HeaderMap);

impl Injector for Headers<'_> {
    fn set(&mut self, key: &str, value: String) {
        if let (Ok(key), Ok(value)) = (HeaderName::try_from(key), HeaderValue::try_from(value)) {
            self.0.insert(key, value);
        }
    }
}

struct Read<'a>(&'a HeaderMap);

impl Extractor for Read<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key)?.to_str().ok()
    }

    fn keys(&self) -> Vec<&str> {
        self.0.keys().map(HeaderName::as_str).collect()
    }
}

/// Puts the context of the present span into the headers of a call that is about to be made, in place of another one.
pub fn inject(headers: &mut HeaderMap) {
    if is_on() {
        let context = Span::current().context();
        if context.span().span_context().is_valid() {
            TraceContextPropagator::new().inject_context(&context, &mut Headers(headers));
        }
    }
}

/// The context that a call came with, if it came with one.
pub(crate) fn extract(headers: &HeaderMap) -> Option<Context> {
    let context = TraceContextPropagator::new().extract(&Read(headers));
    context.span().span_context().is_valid().then_some(context)
}

/// A client's interceptor: each call carries the context of the span that it is made in.
#[derive(Debug, Clone, Copy, Default)]
pub struct Propagate;

impl Interceptor for Propagate {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if is_on() {
            let mut headers = std::mem::take(request.metadata_mut()).into_headers();
            inject(&mut headers);
            *request.metadata_mut() = MetadataMap::from_headers(headers);
        }
        Ok(request)
    }
}
