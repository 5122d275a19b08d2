//! Logs and traces of the three programs, set up in one place.
//!
//! | Looking for | Module |
//! |---|---|
//! | the set-up, the flag | here ([`Arguments`], [`start`]) |
//! | a trace's context in gRPC metadata, both ways | [`propagation`] |
//! | a server's spans | [`server`] |
//! | a span of one's own | [`span!`] |
//!
//! Invariants
//! * Without a collector nothing is exported, carried or read: spans cost what a disabled callsite costs.
//! * Exporting holds nothing up. What does not fit into a bounded queue is dropped; a collector that is away is told of in the log.
//! * Only this project's own spans are exported, never those of the libraries that export them.

pub mod propagation;
pub mod server;

pub use tracing;

use std::{sync::atomic::AtomicBool, time::Duration};

use opentelemetry::{KeyValue, trace::TracerProvider as _};
use opentelemetry_otlp::{SpanExporter, WithExportConfig as _};
use opentelemetry_sdk::{
    Resource,
    trace::{BatchConfigBuilder, BatchSpanProcessor, SdkTracerProvider},
};
use tokio::runtime::Runtime;
use tracing::{Level, Metadata};
use tracing_subscriber::{
    EnvFilter, Layer as _,
    filter::{FilterFn, filter_fn},
    layer::SubscriberExt as _,
    util::SubscriberInitExt as _,
};

/// Spans that wait for export at most; more are dropped.
const QUEUE_SPANS: usize = 4096;
/// How often what waits is exported.
const EXPORT_EVERY: Duration = Duration::from_millis(500);
/// One export; also the longest that a program waits for the last one when it ends.
const EXPORT_TIMEOUT: Duration = Duration::from_secs(2);

/// Set once a collector is exported to; then never unset.
pub(crate) static EXPORTING: AtomicBool = AtomicBool::new(false);

/// What a command line says of traces.
#[derive(Debug, Clone, Default, clap::Args)]
#[group(id = "telemetry")]
pub struct Arguments {
    /// Send traces by OTLP/gRPC to the collector at this URL, such as http://127.0.0.1:4317 [default: no traces]
    #[arg(long, global = true, env = "OTEL_EXPORTER_OTLP_ENDPOINT", value_name = "URL")]
    pub otlp_endpoint: Option<String>,
}

/// Where logs go.
#[derive(Debug, Clone, Copy)]
pub enum Logs {
    /// To standard error; by `RUST_LOG` or, without it, this filter.
    Stderr(&'static str),
    /// Nowhere: the program's output is its answer.
    None,
}

/// Why traces cannot be exported; each message is one line.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    /// The URL.
    #[error("--otlp-endpoint: '{url}' {reason}")]
    Endpoint {
        /// As given.
        url: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The thread that exports.
    #[error("the export of traces does not start: {0}")]
    Thread(#[from] std::io::Error),
}

/// Keeps the export alive; dropped at the end of the program, it sends what still waits (bounded).
#[must_use = "traces are exported as long as this lives"]
#[derive(Default)]
pub struct Telemetry {
    exporting: Option<(SdkTracerProvider, Runtime)>,
}

impl Drop for Telemetry {
    fn drop(&mut self) {
        if let Some((provider, runtime)) = self.exporting.take() {
            // A collector that is away was told of in the log already.
            let _ = provider.shutdown_with_timeout(EXPORT_TIMEOUT);
            runtime.shutdown_background();
        }
    }
}

/// Sets up logs and, when a collector is named, traces; once in a process. `service` is the program's name, `instance` tells apart
/// several of it.
///
/// # Errors
/// [`TelemetryError`].
pub fn start(
    service: &'static str,
    instance: &str,
    logs: Logs,
    arguments: &Arguments,
) -> Result<Telemetry, TelemetryError> {
    let log = match logs {
        Logs::Stderr(filter) => {
            let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(filter));
            Some(tracing_subscriber::fmt::layer().with_writer(std::io::stderr).with_filter(filter))
        }
        Logs::None => None,
    };
    let Some(url) = arguments.otlp_endpoint.as_deref().filter(|url| !url.is_empty()) else {
        if log.is_some() {
            tracing_subscriber::registry().with(log).init();
        }
        return Ok(Telemetry::default());
    };
    let (provider, runtime) = exporter(service, instance, url)?;
    let tracer = provider.tracer("holdfast");
    let traces = tracing_opentelemetry::layer()
        .with_tracer(tracer)
        .with_location(false)
        .with_threads(false)
        .with_filter(own_spans());
    tracing_subscriber::registry().with(log).with(traces).init();
    EXPORTING.store(true, std::sync::atomic::Ordering::Release);
    Ok(Telemetry { exporting: Some((provider, runtime)) })
}

fn exporter(
    service: &'static str,
    instance: &str,
    url: &str,
) -> Result<(SdkTracerProvider, Runtime), TelemetryError> {
    let wrong = |reason: String| TelemetryError::Endpoint { url: url.to_owned(), reason };
    match url.parse::<http::Uri>() {
        Ok(uri) if uri.scheme_str() == Some("http") && uri.host().is_some() => {}
        Ok(uri) if uri.scheme_str() == Some("https") => {
            return Err(wrong(
                "is https: give a collector on this machine or a trusted network, http://HOST:PORT".into(),
            ));
        }
        _ => return Err(wrong("is not http://HOST:PORT".into())),
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .thread_name("otlp")
        .enable_all()
        .build()?;
    // The exporter's connection lives on this runtime, whatever the program does with its own.
    let _inside = runtime.enter();
    let exporter = SpanExporter::builder()
        .with_tonic()
        .with_endpoint(url)
        .with_timeout(EXPORT_TIMEOUT)
        .build()
        .map_err(|error| wrong(error.to_string()))?;
    let batches = BatchConfigBuilder::default()
        .with_max_queue_size(QUEUE_SPANS)
        .with_scheduled_delay(EXPORT_EVERY)
        .build();
    let resource = Resource::builder()
        .with_service_name(service)
        .with_attributes([
            KeyValue::new("service.instance.id", instance.to_owned()),
            KeyValue::new("service.version", env!("CARGO_PKG_VERSION")),
        ])
        .build();
    let provider = SdkTracerProvider::builder()
        .with_span_processor(BatchSpanProcessor::builder(exporter).with_batch_config(batches).build())
        .with_resource(resource)
        .build();
    drop(_inside);
    Ok((provider, runtime))
}

/// A span that is made only while traces are exported: on a path that everyone takes, it costs one load otherwise. Arguments as of
/// `tracing::info_span!`.
#[macro_export]
macro_rules! span {
    ($($arguments:tt)*) => {
        if $crate::propagation::is_on() {
            $crate::tracing::info_span!($($arguments)*)
        } else {
            $crate::tracing::Span::none()
        }
    };
}

fn own_spans() -> FilterFn<fn(&Metadata<'_>) -> bool> {
    filter_fn(|metadata| metadata.target().starts_with("holdfast") && *metadata.level() <= Level::INFO)
}
