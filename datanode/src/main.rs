//! The data node's process: arguments, logging, signals; everything else is in the library.
//!
//! Exit status: 0 after a clean stop (SIGTERM, SIGINT), 1 with one line on standard error when it does not start or cannot
//! go on, 2 for wrong arguments.

use std::{process::ExitCode, sync::mpsc};

use clap::Parser as _;
use holdfast_datanode::{
    config::Arguments,
    process::{self, Stop},
};
use holdfast_pki::Identity;
use holdfast_telemetry::Logs;
use tokio::signal::unix::{SignalKind, signal};

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if let Err(error) = arguments.follow_parent() {
        eprintln!("holdfast-datanode: --die-with-parent: {error}");
        return ExitCode::FAILURE;
    }
    let telemetry = holdfast_telemetry::start(
        "holdfast-datanode",
        arguments.name(),
        Logs::Stderr("info"),
        arguments.telemetry(),
    );
    let _telemetry = match telemetry {
        Ok(telemetry) => telemetry,
        Err(error) => {
            eprintln!("holdfast-datanode: {error}");
            return ExitCode::FAILURE;
        }
    };
    holdfast_pki::install_crypto_provider();
    match run(arguments) {
        Ok(()) => {
            tracing::info!("stopped");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("holdfast-datanode: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: Arguments) -> anyhow::Result<()> {
    let config = arguments.check()?;
    let (stop, stopped) = mpsc::channel();
    watch_signals(stop.clone(), config.identity.clone())?;
    process::run(config, stop, &stopped)?;
    Ok(())
}

/// Turns SIGTERM and SIGINT into a clean stop, and keeps the certificate current (SIGHUP), from a thread of its own.
fn watch_signals(stop: mpsc::Sender<Stop>, identity: Identity) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (mut terminate, mut interrupt) = {
        let _inside = runtime.enter();
        (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?)
    };
    std::thread::Builder::new().name("signals".into()).spawn(move || {
        runtime.block_on(async {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
                () = holdfast_pki::keep_current(&identity) => {}
            }
        });
        // An error means that the process is ending already.
        let _ = stop.send(Stop::Asked);
    })?;
    Ok(())
}
