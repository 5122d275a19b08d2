//! The controller's process: arguments, logging, signals; everything else is in the library.
//!
//! Exit status: 0 after a clean stop (SIGTERM, SIGINT), 1 with one line on standard error when it does not start or Raft
//! fails, 2 for wrong arguments.

use std::{process::ExitCode, sync::Arc};

use clap::Parser as _;
use holdfast_controller::{
    api,
    config::{Arguments, Config, Recovery},
    lease::{Manager, manager::unix_ms},
    raft::{RunningMember, alone, member::MemberConfig},
    server,
};
use holdfast_telemetry::Logs;
use tokio::signal::unix::{SignalKind, signal};
use tonic::service::RoutesBuilder;

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if let Err(error) = arguments.follow_parent() {
        eprintln!("holdfast-controller: --die-with-parent: {error}");
        return ExitCode::FAILURE;
    }
    let logs = Logs::Stderr("info,openraft=warn");
    let telemetry =
        match holdfast_telemetry::start("holdfast-controller", arguments.name(), logs, arguments.telemetry())
        {
            Ok(telemetry) => telemetry,
            Err(error) => {
                eprintln!("holdfast-controller: {error}");
                return ExitCode::FAILURE;
            }
        };
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
    drop(telemetry);
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("holdfast-controller: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Shows what going on alone means, or makes it so.
async fn recover_alone(recovery: Recovery, member: &MemberConfig) -> anyhow::Result<()> {
    let (directory, cluster) = (&member.directory, member.identity.own().cluster.0);
    match recovery {
        Recovery::Show => {
            let found = alone::assess(directory, cluster, member.id).await?;
            let (term, index) = found.last;
            println!(
                "This controller goes on as the only one; given up: {}.\nEverything up to log index {} is kept; entries {} to {index} are \
                 kept too, though a quorum may never have agreed to them. Changes that only the\nothers had are lost: look at every \
                 volume afterwards.\nThe others must never run again: destroy their folders first, and add new ones later.\nTo agree, run \
                 the same with --accept-data-loss {term}.{index}",
                found.given_up.join(", "),
                found.applied,
                found.applied + 1,
            );
        }
        Recovery::Agreed(term, index) => {
            let found = alone::go_on(directory, cluster, member.id, (term, index), unix_ms()).await?;
            println!(
                "This controller is the only one now; given up: {}. Start it as usual.",
                found.given_up.join(", ")
            );
        }
    }
    Ok(())
}

async fn run(arguments: Arguments) -> anyhow::Result<()> {
    let Config { recovery, listen, identity, member } = arguments.check()?;
    if let Some(recovery) = recovery {
        return recover_alone(recovery, &member).await;
    }
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
