//! Finds the cluster that a command is meant for, and connects to one of its controllers.

use std::{path::PathBuf, time::Duration};

use anyhow::{Context, bail};
use holdfast_pki::{Identity, Role};
use holdfast_proto::v1::{GetClusterRequest, cluster_service_client::ClusterServiceClient};
use holdfast_telemetry::propagation::Propagate;
use tonic::{
    Status,
    service::interceptor::InterceptedService,
    transport::{Channel, Endpoint},
};

use crate::{
    arguments::Client,
    dev::layout::{self, Layout},
};

/// A call that takes longer has lost its cluster.
const CALL_TIMEOUT: Duration = Duration::from_secs(30);
/// A controller that is none answers at once.
const PROBE_TIMEOUT: Duration = Duration::from_secs(1);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);

/// Where a cluster is, and as whom to speak to it.
pub(crate) struct Access {
    pub(crate) endpoints: Vec<String>,
    pub(crate) tls: PathBuf,
}

/// A connection whose calls carry the trace that they belong to.
pub(crate) type Connection = InterceptedService<Channel, Propagate>;

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

    /// Connects to the first controller that answers.
    pub(crate) async fn connect(&self) -> anyhow::Result<Connection> {
        self.connect_with(Some(CALL_TIMEOUT)).await
    }

    /// The same for a call that lasts as long as the caller wishes.
    pub(crate) async fn connect_for_stream(&self) -> anyhow::Result<Connection> {
        self.connect_with(None).await
    }

    async fn connect_with(&self, call_timeout: Option<Duration>) -> anyhow::Result<Connection> {
        let identity = Identity::load(&self.tls)?;
        let tls = identity.tonic_client(Role::Controller, None)?;
        let mut failures = Vec::new();
        for address in &self.endpoints {
            let mut endpoint = Endpoint::from_shared(format!("https://{address}"))
                .with_context(|| format!("'{address}' is not ADDRESS:PORT"))?
                .tls_config(tls.clone())?
                .connect_timeout(CONNECT_TIMEOUT);
            if let Some(timeout) = call_timeout {
                endpoint = endpoint.timeout(timeout);
            }
            match endpoint.connect().await {
                Ok(channel) if self.endpoints.len() > 1 && is_outside(&channel).await => {
                    failures.push(format!("{address}: it is not a member of the cluster"));
                }
                Ok(channel) => return Ok(InterceptedService::new(channel, Propagate)),
                Err(error) => failures.push(format!("{address}: {}", root_cause(&error))),
            }
        }
        bail!("no controller answers ({}); is the cluster up?", failures.join("; "))
    }
}

/// True if the controller says that it was removed or waits to be added. What cannot be told in a moment is taken for a member:
/// the call itself then tells more.
async fn is_outside(channel: &Channel) -> bool {
    let mut service = ClusterServiceClient::new(channel.clone());
    let answer = tokio::time::timeout(PROBE_TIMEOUT, service.get_cluster(GetClusterRequest {})).await;
    matches!(answer, Ok(Err(status)) if status.message().contains("is not a member of the cluster"))
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
