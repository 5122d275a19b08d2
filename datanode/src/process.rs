//! The data node as a whole: starts its parts in order, and stops them in the reverse one.
//!
//! Invariants: whatever can fail is tried before anything is served; on a clean stop the data plane ends first, while the
//! agent still keeps the lease and carries proposals, so that what is in flight is answered.

use std::{
    io,
    sync::{Arc, mpsc},
    time::Duration,
};

use holdfast_iscsi::PortalOptions;
use holdfast_proto::state;

use crate::{
    agent::{self, Agent, AgentEnd, Heartbeats},
    config::Config,
    data_plane::{self, DataPlane, Setup},
    interconnect::{self, Interconnects},
    store::pool::{Gauge, Pool, PoolError, Space},
    view::{ClusterId, Shared},
};

/// How often the space of the pools is looked at.
const SPACE_INTERVAL: Duration = Duration::from_secs(5);
/// A change of free space below this part of the capacity is no news.
const SPACE_NEWS_DIVISOR: u64 = 100;

/// Why a data node did not start, or stopped by itself.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// A pool.
    #[error(transparent)]
    Pool(#[from] PoolError),
    /// The data plane.
    #[error(transparent)]
    DataPlane(#[from] data_plane::StartError),
    /// The interconnect.
    #[error(transparent)]
    Interconnect(#[from] interconnect::StartError),
    /// The agent.
    #[error(transparent)]
    Agent(#[from] AgentEnd),
    /// The system.
    #[error("{0}")]
    Io(#[from] io::Error),
}

/// What ends the process.
#[derive(Debug)]
pub enum Stop {
    /// It was asked to.
    Asked,
    /// The agent cannot go on.
    Agent(AgentEnd),
}

/// Runs a data node until `stopped` tells it to end; `stop` is the other end, for the agent.
///
/// # Errors
/// [`RunError`] before serving, or when the agent ended by itself.
pub fn run(config: Config, stop: mpsc::Sender<Stop>, stopped: &mpsc::Receiver<Stop>) -> Result<(), RunError> {
    let cluster = ClusterId(config.identity.own().cluster.0);
    let interconnects = Interconnects::bind(config.interconnect, &config.identity)?;
    let interconnect = interconnects.address();
    let pools = config
        .pools
        .iter()
        .map(|pool| Pool::open(&pool.name, &pool.place, cluster, &config.name, &config.directory.path))
        .collect::<Result<Vec<_>, _>>()?;
    let mut process_id = [0; 16];
    getrandom::fill(&mut process_id).map_err(io::Error::other)?;
    let shared = Arc::new(Shared::default());
    let heartbeats = Heartbeats::new(config.threads);
    let (handle, requests) = Agent::channel();
    let gauges: Vec<Gauge> = pools.iter().map(Pool::gauge).collect();
    let space = gauges.iter().map(pool_record).collect::<io::Result<Vec<_>>>()?;
    let portal_options = PortalOptions {
        target_alias: config.name.clone(),
        crc32c: |so_far, bytes| crc32c::crc32c_append(so_far, bytes),
        ..PortalOptions::default()
    };
    let plane = Arc::new(DataPlane::start(Setup {
        portals: config.portals.clone(),
        workers: config.threads,
        pools,
        scrub: config.scrub,
        portal_options,
        shared: Arc::clone(&shared),
        agent: handle.clone(),
        heartbeats: heartbeats.clone(),
        interconnect: interconnects.into_parts(Arc::clone(&shared)),
    })?);
    let options = agent::Options {
        name: config.name.clone(),
        boot: config.boot,
        process_id,
        controllers: config.controllers.clone(),
        portals: plane.portals().to_vec(),
        interconnect,
        pools: space.clone(),
    };
    let installer = Arc::clone(&plane) as Arc<dyn agent::Installer>;
    let ended = move |end| {
        // An error means that the process is ending already.
        let _ = stop.send(Stop::Agent(end));
    };
    let agent = Agent::start(options, &config.identity, requests, shared, heartbeats, installer, ended)?;
    tracing::info!(
        node = %config.name,
        portals = ?plane.portals(),
        %interconnect,
        threads = config.threads,
        "running"
    );
    let end = watch_space(&gauges, space, &handle, stopped);
    tracing::info!("stopping");
    plane.stop();
    agent.stop();
    match end {
        Stop::Asked => Ok(()),
        Stop::Agent(end) => Err(end.into()),
    }
}

/// Reports the space of the pools until the end.
fn watch_space(
    gauges: &[Gauge],
    mut told: Vec<state::Pool>,
    handle: &agent::Handle,
    stopped: &mpsc::Receiver<Stop>,
) -> Stop {
    loop {
        match stopped.recv_timeout(SPACE_INTERVAL) {
            Ok(end) => return end,
            // Every sender is gone: nobody is left to ask us to go on.
            Err(mpsc::RecvTimeoutError::Disconnected) => return Stop::Asked,
            Err(mpsc::RecvTimeoutError::Timeout) => {}
        }
        let now: Vec<state::Pool> = gauges
            .iter()
            .zip(&told)
            .map(|(pool, told)| {
                pool_record(pool).unwrap_or_else(|error| {
                    tracing::warn!(pool = pool.name(), %error, "the pool's space is not known");
                    told.clone()
                })
            })
            .collect();
        if now.iter().zip(&told).any(|(now, told)| is_news(now, told)) {
            handle.report_pools(now.clone());
            told = now;
        }
    }
}

fn is_news(now: &state::Pool, told: &state::Pool) -> bool {
    now.capacity_bytes != told.capacity_bytes
        || now.free_bytes.abs_diff(told.free_bytes) > now.capacity_bytes / SPACE_NEWS_DIVISOR
}

fn pool_record(pool: &Gauge) -> io::Result<state::Pool> {
    let Space { capacity_bytes, free_bytes } = pool.space()?;
    Ok(state::Pool { name: pool.name().to_owned(), capacity_bytes, free_bytes, kind: pool.kind().into() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_changes_of_space_are_no_news() {
        let pool = |free_bytes| state::Pool { name: "p".into(), capacity_bytes: 1000, free_bytes, kind: 0 };
        assert!(!is_news(&pool(500), &pool(509)));
        assert!(is_news(&pool(500), &pool(511)));
        assert!(is_news(&state::Pool { capacity_bytes: 2000, ..pool(500) }, &pool(500)));
    }
}
