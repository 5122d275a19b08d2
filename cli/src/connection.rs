//! Finds the cluster that a command is meant for, and connects to one of its controllers.

use std::{path::PathBuf, time::Duration};

use anyhow::{Context, bail};
use holdfast_pki::Identity;
use holdfast_telemetry::propagation::Propagate;
use tonic::{Status, service::interceptor::InterceptedService};

use crate::{
    arguments::Client,
    dev::layout::{self, Layout},
    failover::{Calls, Failover},
};

/// A call that takes longer has lost its cluster.
const CALL_TIMEOUT: Duration = Duration::from_secs(30);

/// Where a cluster is, and as whom to speak to it.
pub(crate) struct Access {
    pub(crate) endpoints: Vec<String>,
    pub(crate) tls: PathBuf,
}

/// A connection whose calls carry the trace that they belong to.
pub(crate) type Connection = InterceptedService<Failover, Propagate>;

impl Access {
    /// `--endpoints` and `--tls`, else `--dir`, else the one development cluster that runs.
    pub(crate) fn find(client: &Client) -> anyhow::Result<Self> {
        if let (false, Some(tls)) = (client.endpoints.is_empty(), &client.tls) {
            return Ok(Self { endpoints: client.endpoints.clone(), tls: tls.clone() });
        }
        let directory = match &client.dir {
            Some(directory) => directory.clone(),
            None => match layout::running()?.as_slice() {
                [] => bail!(
                    "no cluster to talk to: start one with 'holdfast dev up', or name one with --dir or with --endpoints and --tls"
                ),
                [only] => only.clone(),
                several => bail!(
                    "several clusters run here; choose one with --dir: {}",
                    several.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(", ")
                ),
            },
        };
        let layout = Layout::load(&directory)?.with_context(|| {
            format!("{} holds no cluster: start one with 'holdfast dev up --dir'", directory.display())
        })?;
        let tls = client.tls.clone().unwrap_or_else(|| layout::admin_tls(&directory));
        Ok(Self { endpoints: layout.controllers.iter().map(|c| c.address()).collect(), tls })
    }

    /// Connects to the first controller that answers. Calls go on at another one where that helps.
    pub(crate) async fn connect(&self) -> anyhow::Result<Connection> {
        self.connect_with(Calls::One(Some(CALL_TIMEOUT))).await
    }

    /// The same for calls that take as long as they take.
    pub(crate) async fn connect_for_long(&self) -> anyhow::Result<Connection> {
        self.connect_with(Calls::One(None)).await
    }

    /// The same for streams, which last as long as the caller wishes.
    pub(crate) async fn connect_for_stream(&self) -> anyhow::Result<Connection> {
        self.connect_with(Calls::Stream).await
    }

    async fn connect_with(&self, calls: Calls) -> anyhow::Result<Connection> {
        let identity = Identity::load(&self.tls)?;
        let connected = Failover::connect(identity, self.endpoints.clone(), calls).await;
        Ok(InterceptedService::new(connected.map_err(anyhow::Error::msg)?, Propagate))
    }
}

/// A channel to the cluster that the command line names.
pub(crate) async fn connect(client: &Client) -> anyhow::Result<Connection> {
    Access::find(client)?.connect().await
}

/// The innermost reason: the outer ones say only "transport error".
pub(crate) fn root_cause(error: &(dyn std::error::Error + 'static)) -> String {
    let mut cause = error;
    while let Some(inner) = cause.source() {
        cause = inner;
    }
    cause.to_string()
}

/// The server's reason as one line.
pub(crate) fn refusal(status: Status) -> anyhow::Error {
    match status.message() {
        "" => anyhow::anyhow!("{}", status.code()),
        message => anyhow::anyhow!("{message}"),
    }
}

/// A fresh request id, so that a repeated call is carried out once.
pub(crate) fn request_id() -> String {
    uuid::Uuid::new_v4().to_string()
}
