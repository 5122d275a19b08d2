//! Traces of a whole cluster, as a collector gets them over OTLP/gRPC.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
};

use anyhow::{Context as _, ensure};
use holdfast_tests::{
    cdb,
    cluster::{Cluster, INITIATOR_A},
    initiator::Initiator,
};
use opentelemetry_proto::tonic::{
    collector::trace::v1::{
        ExportTraceServiceRequest, ExportTraceServiceResponse,
        trace_service_server::{TraceService, TraceServiceServer},
    },
    common::v1::{KeyValue, any_value::Value},
    trace::v1::Span,
};
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Response, Status};

/// One span, and whose it is.
#[derive(Debug, Clone)]
struct Seen {
    service: String,
    instance: String,
    span: Span,
}

/// A collector that keeps everything.
#[derive(Debug, Clone, Default)]
struct Collector(Arc<Mutex<Vec<Seen>>>);

fn text(attributes: &[KeyValue], key: &str) -> String {
    let found = attributes.iter().find(|attribute| attribute.key == key);
    match found.and_then(|attribute| attribute.value.as_ref()?.value.as_ref()) {
        Some(Value::StringValue(text)) => text.clone(),
        _ => String::new(),
    }
}

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        let mut seen = self.0.lock().map_err(|_| Status::internal("a test failed"))?;
        for resource in request.into_inner().resource_spans {
            let attributes = resource.resource.unwrap_or_default().attributes;
            let (service, instance) =
                (text(&attributes, "service.name"), text(&attributes, "service.instance.id"));
            for span in resource.scope_spans.into_iter().flat_map(|scope| scope.spans) {
                seen.push(Seen { service: service.clone(), instance: instance.clone(), span });
            }
        }
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

impl Collector {
    /// The traces so far that have a span of this service and name, each as (service, name) to its span.
    fn traces_with(&self, service: &str, name: &str) -> Vec<HashMap<(String, String), Seen>> {
        let seen = self.0.lock().unwrap().clone();
        let of = |id: &[u8]| {
            let own = seen.iter().filter(|seen| seen.span.trace_id == id);
            own.map(|seen| ((seen.service.clone(), seen.span.name.clone()), seen.clone())).collect()
        };
        let roots = seen.iter().filter(|seen| seen.service == service && seen.span.name == name);
        roots.map(|root| of(&root.span.trace_id)).collect()
    }
}

fn span<'a>(
    trace: &'a HashMap<(String, String), Seen>,
    service: &str,
    name: &str,
) -> anyhow::Result<&'a Seen> {
    let found = trace.get(&(service.to_owned(), name.to_owned()));
    found.with_context(|| format!("no {name} of {service} in {:?}", trace.keys()))
}

#[test]
fn a_reservation_and_a_command_are_followed_to_the_leader() -> anyhow::Result<()> {
    let runtime = tokio::runtime::Runtime::new()?;
    let collector = Collector::default();
    let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0"))?;
    let endpoint = format!("http://{}", listener.local_addr()?);
    runtime.spawn(
        tonic::transport::Server::builder()
            .add_service(TraceServiceServer::new(collector.clone()))
            .serve_with_incoming(TcpListenerStream::new(listener)),
    );
    let mut cluster = Cluster::start_in(&[("OTEL_EXPORTER_OTLP_ENDPOINT", &endpoint)])?;
    cluster.volume_for_both("disk", "16MiB", "node-1", 0)?;
    let mut a = Initiator::login(&cluster.portals[0], &cluster.target, INITIATOR_A, 1, None)?;
    a.become_ready(0)?;
    a.reserve_out(0, cdb::REGISTER, 0, 0, 0xa)?.good()?;
    let proposal = "holdfast.node.v1.NodeAgent/ProposeReservation";
    cluster.wait_for("the reservation's trace", || {
        let traces = collector.traces_with("holdfast-datanode", "PERSISTENT RESERVE OUT");
        ensure!(traces.len() == 1, "{} traces", traces.len());
        let asked = span(&traces[0], "holdfast-datanode", "PERSISTENT RESERVE OUT")?;
        let called = span(&traces[0], "holdfast-controller", proposal)?;
        ensure!(asked.instance == "node-1" && asked.span.parent_span_id.is_empty());
        ensure!(called.span.parent_span_id == asked.span.span_id);
        for step in ["commit", "barrier"] {
            let step = span(&traces[0], "holdfast-controller", step)?;
            ensure!(step.span.parent_span_id == called.span.span_id && step.instance == called.instance);
        }
        let installed = span(&traces[0], "holdfast-datanode", "install")?;
        ensure!(installed.span.parent_span_id == asked.span.span_id);
        Ok(())
    })?;

    // A command through a controller that does not lead: through that one to the leader.
    let leader = cluster.leader()?;
    let at = cluster.controllers.iter().enumerate().find(|(at, _)| format!("ctl-{}", at + 1) != leader);
    let follower = at.context("a follower")?.1.clone();
    let admin = cluster.folder().join("tls").join("admin");
    let tls = admin.to_str().context("the folder's name")?;
    let command =
        ["--endpoints", &follower, "--tls", tls, "--otlp-endpoint", &endpoint, "host", "create", "c"];
    let command = [&command[..], &["--initiator", "iqn.2026-11.example:c"]].concat();
    let done = holdfast_tests::cluster::holdfast(&command).output()?;
    ensure!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    let call = "holdfast.v1.HostService/CreateHost";
    cluster.wait_for("the command's trace", || {
        let traces = collector.traces_with("holdfast", "holdfast");
        ensure!(traces.len() == 1, "{} traces", traces.len());
        let asked = span(&traces[0], "holdfast", "holdfast")?;
        ensure!(text(&asked.span.attributes, "command") == "host create");
        let commit = span(&traces[0], "holdfast-controller", "commit")?;
        ensure!(commit.instance == leader);
        let seen = collector.0.lock().unwrap().clone();
        let calls = seen.iter().filter(|s| s.span.trace_id == asked.span.trace_id && s.span.name == call);
        let calls: Vec<_> = calls.collect();
        ensure!(calls.len() == 2, "{calls:?}");
        let first = calls.iter().find(|s| s.span.parent_span_id == asked.span.span_id).context("first")?;
        let second = calls.iter().find(|s| s.span.parent_span_id == first.span.span_id).context("second")?;
        ensure!(first.instance != leader && second.instance == leader);
        ensure!(commit.span.parent_span_id == second.span.span_id);
        Ok(())
    })?;
    drop(a);
    cluster.stop()
}
