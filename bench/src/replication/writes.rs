//! Writes of some sizes and depths, to volumes of 1, 2 and 3 copies and to the bare exchange, turn by turn.

use std::time::Duration;

use anyhow::Context as _;

use super::{COPIES_MAX, Stage, floor::Server, report::Write, say};
use crate::{
    case::{Case, Mix, Pattern},
    lean::{Client, Login},
    run::median,
    target::INITIATOR,
};

/// What is written.
const CASES: [Case; 3] = [
    Case { size: 4096, depth: 1, sessions: 1, mix: Mix::Write, pattern: Pattern::Random },
    Case { size: 4096, depth: 32, sessions: 1, mix: Mix::Write, pattern: Pattern::Random },
    Case { size: 1 << 20, depth: 4, sessions: 1, mix: Mix::Write, pattern: Pattern::Sequential },
];

/// One place to write to.
struct Place {
    copies: u32,
    write_cache: bool,
    bare: bool,
    client: Client,
    /// By case: p50 and p99 in microseconds, commands in a second; of each round.
    samples: Vec<Vec<[f64; 3]>>,
}

/// Measures all of it.
pub(super) fn measure(
    stage: &Stage,
    bytes: u64,
    rounds: u32,
    length: Duration,
) -> anyhow::Result<Vec<Write>> {
    let folder = tempfile::Builder::new().prefix("bench-floor-").tempdir()?;
    let mut servers = Vec::new();
    let mut places = Vec::new();
    for write_cache in [true, false] {
        let cache = if write_cache { "on" } else { "off" };
        let mut peers = Vec::new();
        for copies in 1..=COPIES_MAX {
            let login = stage.volume(&format!("writes-{cache}-{copies}"), bytes, copies, write_cache)?;
            places.push(place(copies, write_cache, false, login, bytes)?);
            let start = |role: &str, peers: &[_]| {
                let file = folder.path().join(format!("{role}-{cache}-{copies}"));
                Server::start(file, bytes, !write_cache, peers)
            };
            let front = start("front", &peers)?;
            let portal = front.address;
            let login = Login { portal, target: None, initiator: INITIATOR.to_owned(), lun: 0 };
            places.push(place(copies, write_cache, true, login, bytes)?);
            // The next one has it as a peer.
            let back = start("back", &[])?;
            peers.push(back.address);
            servers.extend([front, back]);
            say(&format!("{copies} copies, write cache {cache}: filled"));
        }
    }
    for round in 0..rounds {
        for (number, case) in CASES.iter().enumerate() {
            for place in &mut places {
                let done = place.client.run(case, (length / 5, length), || Ok(()), || Ok(()));
                let done = done.with_context(|| {
                    format!("{}, {} copies, bare: {}", case.name(), place.copies, place.bare)
                })?;
                let us = |part| done.latencies.percentile(part) as f64 / 1000.0;
                let rate = done.commands as f64 / done.elapsed.as_secs_f64().max(1e-9);
                place.samples[number].push([us(0.5), us(0.99), rate]);
            }
            // Those that waited answer the target's pings.
            for place in &mut places {
                place.client.serve_idle()?;
            }
        }
        say(&format!("round {} of {rounds} done", round + 1));
    }
    Ok(rows(&places))
}

fn place(copies: u32, write_cache: bool, bare: bool, login: Login, bytes: u64) -> anyhow::Result<Place> {
    let mut client = Client::new(bytes / 512)?;
    client.connect(&login, 1)?;
    if !bare {
        client.fill_and_check()?;
    }
    Ok(Place { copies, write_cache, bare, client, samples: vec![Vec::new(); CASES.len()] })
}

fn rows(places: &[Place]) -> Vec<Write> {
    let mut rows = Vec::new();
    for (number, case) in CASES.iter().enumerate() {
        for write_cache in [true, false] {
            for copies in 1..=COPIES_MAX {
                let of = |bare: bool| {
                    let place = places
                        .iter()
                        .find(|p| (p.copies, p.write_cache, p.bare) == (copies, write_cache, bare));
                    let samples = place.map_or(&[][..], |place| &place.samples[number]);
                    [0, 1, 2].map(|n| median(samples.iter().map(|sample| sample[n]).collect()))
                };
                let (holdfast, bare) = (of(false), of(true));
                rows.push(Write {
                    case: *case,
                    write_cache,
                    copies,
                    p50_us: [holdfast[0], bare[0]],
                    p99_us: [holdfast[1], bare[1]],
                    per_second: [holdfast[2], bare[2]],
                });
            }
        }
    }
    rows
}
