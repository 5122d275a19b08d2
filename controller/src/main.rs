//! The controller's process: arguments, logging, signals; everything else is in the library.
//!
//! Exit status: 0 after a clean stop (SIGTERM, SIGINT), 1 with one line on standard error when it does not start or Raft
//! fails, 2 for wrong arguments.

use std::{process::ExitCode, sync::Arc};

use clap::Parser as _;
use holdfast_controller::{
    api,
    config::{Arguments, Config},
    lease::Manager,
    raft::RunningMember,
    server,
};
use tokio::signal::unix::{SignalKind, signal};
use tonic::service::RoutesBuilder;
use tracing_subscriber::EnvFilter;

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if let Err(error) = arguments.follow_parent() {
        eprintln!("holdfast-controller: --die-with-parent: {error}");
        return ExitCode::FAILURE;
    }
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info,openraft=warn"));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    holdfast_pki::install_crypto_provider();
    let outcome = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(anyhow::Error::from)
        .and_then(|runtime| {
            let outcome = runtime.block_on(run(arguments));
            // Connections that are still open end with the process.
            runtime.shutdown_background();
            outcome
        });
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("holdfast-controller: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(arguments: Arguments) -> anyhow::Result<()> {
    let Config { listen, identity, member } = arguments.check()?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let listener = server::bind(listen).await?;
    let (id, name) = (member.id, identity.own().name.clone());
    let member = RunningMember::start(member).await?;
    tracing::info!(id, name, %listen, cluster = %identity.own().cluster, "serving");
    let stop = async {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        tracing::info!("stopping");
    };
    let leases = Manager::new(member.handle());
    let led = tokio::spawn(leases.clone().run());
    let (handle, sealing) = (member.handle(), Arc::clone(&identity));
    let services = |routes: &mut RoutesBuilder| api::install(routes, handle, leases, sealing);
    let outcome = server::serve(listener, identity, member, services, stop).await;
    led.abort();
    outcome?;
    tracing::info!("stopped");
    Ok(())
}
