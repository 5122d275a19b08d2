//! `holdfast`: management of a cluster (`holdfast <noun> <verb>`), its certificates (`holdfast pki`), and a whole cluster on
//! one machine (`holdfast dev up`).
//!
//! Invariants: a failure is one line on standard error that says what to do (`map apply`: one for each fault), and exit status 1 (2 for a command line that
//! cannot be understood); standard output carries only what was asked for.

mod arguments;
mod commands;
mod connection;
mod dev;
mod failover;
mod output;
mod pki;
mod size;

use std::process::ExitCode;

use arguments::{Arguments, Noun};
use clap::{ArgMatches, CommandFactory as _, FromArgMatches as _};
use holdfast_telemetry::{Logs, tracing::Instrument as _};

fn main() -> ExitCode {
    holdfast_pki::install_crypto_provider();
    let matches = Arguments::command().get_matches();
    let arguments = match Arguments::from_arg_matches(&matches) {
        Ok(arguments) => arguments,
        Err(error) => error.exit(),
    };
    // One thread: the parent-death signal of child processes is tied to the thread that made them.
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return fail(&anyhow::anyhow!("no event loop from the system: {error}")),
    };
    let telemetry = match holdfast_telemetry::start("holdfast", "cli", Logs::None, &arguments.telemetry) {
        Ok(telemetry) => telemetry,
        Err(error) => return fail(&error.into()),
    };
    let span = holdfast_telemetry::span!("holdfast", command = command_of(&matches));
    let outcome = runtime.block_on(run(arguments).instrument(span));
    drop(telemetry);
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(&error),
    }
}

/// Noun and verb.
fn command_of(matches: &ArgMatches) -> String {
    let Some((noun, below)) = matches.subcommand() else { return String::new() };
    format!("{noun} {}", below.subcommand_name().unwrap_or_default())
}

fn fail(error: &anyhow::Error) -> ExitCode {
    eprintln!("holdfast: {error:#}");
    ExitCode::FAILURE
}

async fn run(arguments: Arguments) -> anyhow::Result<()> {
    let Arguments { client, noun, .. } = arguments;
    match noun {
        Noun::Dev(verb) => dev::run(client.dir, verb).await,
        Noun::Pki(verb) => pki::run(verb),
        Noun::Cluster(verb) => commands::cluster::run(&client, verb).await,
        Noun::Controller(verb) => commands::controller::run(&client, verb).await,
        Noun::Node(verb) => commands::node::run(&client, verb).await,
        Noun::Pool(verb) => commands::pool::run(&client, verb).await,
        Noun::Snapshot(verb) => commands::snapshot::run(&client, verb).await,
        Noun::Volume(verb) => commands::volume::run(&client, verb).await,
        Noun::Host(verb) => commands::host::run(&client, verb).await,
        Noun::HostGroup(verb) => commands::group::run(&client, verb).await,
        Noun::Map(verb) => commands::map::run(&client, verb).await,
        Noun::Reservation(verb) => commands::reservation::run(&client, verb).await,
        Noun::Session(verb) => commands::session::run(&client, verb).await,
        Noun::UnitAttention(verb) => commands::session::unit_attentions(&client, verb).await,
        Noun::Completions { shell } => {
            let mut grammar = <Arguments as clap::CommandFactory>::command();
            clap_complete::generate(shell, &mut grammar, "holdfast", &mut std::io::stdout());
            Ok(())
        }
        Noun::Audit(verb) => commands::audit::run(&client, verb).await,
        Noun::Job(verb) => commands::job::run(&client, verb).await,
        Noun::Event(verb) => commands::event::run(&client, verb).await,
        Noun::Watch(verb) => commands::watch::run(&client, verb).await,
    }
}
