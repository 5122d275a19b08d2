//! HostService.

use holdfast_proto::{
    state as records,
    v1::{
        CreateHostRequest, DeleteHostRequest, DeleteHostResponse, GetHostPolicyRequest, GetHostRequest, Host,
        HostChange, HostPolicy, HostSpec, HostStatus, ListHostsRequest, ListHostsResponse,
        SetHostPolicyRequest, UpdateHostRequest, WatchHostsRequest, host_change::Change,
        host_service_server::HostService,
    },
};
use holdfast_scsi::initiator::Initiator;
use tonic::{Request, Response, Status};

use super::{
    Api, called,
    mapping::mapping_of_host,
    nouns::Hosts,
    page::page,
    request::client_request,
    status, unexpected,
    watch::{Step, Watch},
};
use crate::state::{
    Body, Kind, Outcome, Refusal, StateMachine,
    host::check_chap_user,
    names::{check_name, printable},
};

/// Length of a CHAP secret, in bytes (RFC 7143 12.1.3 asks for 96 bits at least).
const CHAP_SECRET_BYTES: std::ops::RangeInclusive<usize> = 12..=64;

pub(super) fn view(state: &StateMachine, host: &records::Host) -> Host {
    let chap = host.chap.clone().unwrap_or_default();
    Host {
        name: host.name.clone(),
        spec: Some(HostSpec {
            initiators: host.initiators.clone(),
            chap_user: chap.user,
            chap_target_user: chap.target_user,
        }),
        status: Some(HostStatus {
            mappings: state
                .mappings_of_host(&host.name)
                .map(|(lun, mapped)| mapping_of_host(state, &host.name, lun, mapped))
                .collect(),
            groups: state.groups_of(&host.name).map(str::to_owned).collect(),
        }),
    }
}

fn policy(state: &StateMachine) -> HostPolicy {
    HostPolicy { wildcard_initiators: state.cluster().is_some_and(|cluster| cluster.wildcard_initiators) }
}

fn change(revision: u64, step: Step<Host>) -> HostChange {
    let change = match step {
        Step::Changed(host) => Change::Changed(host),
        Step::Removed(name) => Change::Removed(name),
        Step::Synced => Change::Synced(true),
    };
    HostChange { change: Some(change), revision }
}

/// CHAP as asked for: nothing, one way, or mutual. Fields are named as in the request.
#[derive(Debug, PartialEq, Eq)]
enum Chap<'a> {
    None,
    OneWay { user: &'a str, secret: &'a str },
    Mutual { user: &'a str, secret: &'a str, target_user: &'a str, target_secret: &'a str },
}

fn chap<'a>(spec: &'a HostSpec, secret: &'a str, target_secret: &'a str) -> Result<Chap<'a>, Status> {
    let bad = |text: &str| Err(Status::invalid_argument(text.to_owned()));
    let (user, target_user) = (spec.chap_user.as_str(), spec.chap_target_user.as_str());
    let check = |field: &'static str, user: &str, secret_field: &str, secret: &str| {
        check_chap_user(field, user).map_err(|refusal| status::refused(&refusal))?;
        if CHAP_SECRET_BYTES.contains(&secret.len()) {
            return Ok(());
        }
        let (least, most) = (CHAP_SECRET_BYTES.start(), CHAP_SECRET_BYTES.end());
        let reason = format!("{} bytes; a CHAP secret has {least} to {most}", secret.len());
        Err(status::invalid(secret_field, reason))
    };
    if user.is_empty() {
        if !secret.is_empty() {
            return bad("spec.chap_user: is missing; a CHAP secret needs a user");
        }
        if !target_user.is_empty() || !target_secret.is_empty() {
            return bad("spec.chap_user: is missing; mutual CHAP needs CHAP of the host too");
        }
        return Ok(Chap::None);
    }
    check("spec.chap_user", user, "chap_secret", secret)?;
    if target_user.is_empty() {
        if !target_secret.is_empty() {
            return bad("spec.chap_target_user: is missing; a target's secret needs a name");
        }
        return Ok(Chap::OneWay { user, secret });
    }
    check("spec.chap_target_user", target_user, "chap_target_secret", target_secret)?;
    if secret == target_secret {
        return bad("chap_target_secret: must differ from chap_secret (RFC 7143 12.1.3)");
    }
    Ok(Chap::Mutual { user, secret, target_user, target_secret })
}

impl Api {
    fn seal(&self, context: &str, secret: &str) -> Result<Vec<u8>, Status> {
        let key = self.identity.sealing_key().ok_or_else(|| {
            Status::failed_precondition(
                "this controller has no cluster key (secret.key), so it cannot keep CHAP secrets",
            )
        })?;
        key.seal(context, secret.as_bytes()).map_err(|error| Status::internal(error.to_string()))
    }

    fn seal_chap(&self, host: &str, chap: &Chap<'_>) -> Result<Option<records::Chap>, Status> {
        let own = format!("host/{host}/chap");
        match chap {
            Chap::None => Ok(None),
            Chap::OneWay { user, secret } => Ok(Some(records::Chap {
                user: (*user).to_owned(),
                sealed_secret: self.seal(&own, secret)?,
                ..Default::default()
            })),
            Chap::Mutual { user, secret, target_user, target_secret } => Ok(Some(records::Chap {
                user: (*user).to_owned(),
                sealed_secret: self.seal(&own, secret)?,
                target_user: (*target_user).to_owned(),
                sealed_target_secret: self.seal(&format!("host/{host}/chap-target"), target_secret)?,
            })),
        }
    }
}

#[tonic::async_trait]
impl HostService for Api {
    async fn create_host(&self, request: Request<CreateHostRequest>) -> Result<Response<Host>, Status> {
        let (call, mut request) = called(request)?;
        let id = std::mem::take(&mut request.request_id);
        let secret = std::mem::take(&mut request.chap_secret);
        let target_secret = std::mem::take(&mut request.chap_target_secret);
        let client = client_request(id, "CreateHost", &request);
        let spec = request.spec.ok_or_else(|| status::invalid("spec", "is missing"))?;
        check_name("name", &request.name).map_err(|refusal| status::refused(&refusal))?;
        let chap = self.seal_chap(&request.name, &chap(&spec, &secret, &target_secret)?)?;
        let host = records::Host { name: request.name, initiators: spec.initiators, chap };
        match self
            .write(&call, Body::CreateHost(records::CreateHost { request: client, host: Some(host) }))
            .await?
        {
            Outcome::Host(host) => Ok(Response::new(self.raft.read(|state| view(state, &host)))),
            other => Err(unexpected(&other)),
        }
    }

    async fn get_host(&self, request: Request<GetHostRequest>) -> Result<Response<Host>, Status> {
        let name = request.into_inner().name;
        let found = self.read(|state| state.host(&name).map(|host| view(state, host))).await?;
        let missing = || Refusal::NotFound { kind: Kind::Host, name: printable(&name) };
        found.map(Response::new).ok_or_else(|| status::refused(&missing()))
    }

    async fn list_hosts(
        &self,
        request: Request<ListHostsRequest>,
    ) -> Result<Response<ListHostsResponse>, Status> {
        let request = request.into_inner();
        let wanted =
            match request.initiator.as_str() {
                "" => None,
                text => Some(Initiator::parse(text).map_err(|error| {
                    status::invalid("initiator", format!("'{}' {error}", printable(text)))
                })?),
            };
        let rows = self
            .read(|state| {
                let only = wanted.as_ref().map(|initiator| state.host_given(initiator));
                let hosts = state.hosts().filter(|h| only.is_none_or(|only| only == Some(h.name.as_str())));
                hosts.map(|h| (h.name.clone(), view(state, h))).collect::<Vec<_>>()
            })
            .await?;
        let (hosts, next_page_token) = page(rows, request.page_size, &request.page_token)?;
        Ok(Response::new(ListHostsResponse { hosts, next_page_token }))
    }

    type WatchHostsStream = Watch<HostChange>;

    async fn watch_hosts(
        &self,
        request: Request<WatchHostsRequest>,
    ) -> Result<Response<Self::WatchHostsStream>, Status> {
        self.watch(Hosts, request.into_inner().after_revision, change).await.map(Response::new)
    }

    async fn update_host(&self, request: Request<UpdateHostRequest>) -> Result<Response<Host>, Status> {
        let (call, mut request) = called(request)?;
        let id = std::mem::take(&mut request.request_id);
        let secrets = request
            .chap
            .as_mut()
            .map(|chap| (std::mem::take(&mut chap.secret), std::mem::take(&mut chap.target_secret)));
        let client = client_request(id, "UpdateHost", &request);
        let (mut sealed, mut clear_chap) = (None, false);
        if let (Some(asked), Some((secret, target_secret))) = (request.chap, secrets) {
            let spec =
                HostSpec { chap_user: asked.user, chap_target_user: asked.target_user, ..Default::default() };
            sealed = self.seal_chap(&request.name, &chap(&spec, &secret, &target_secret)?)?;
            clear_chap = sealed.is_none();
        }
        let body = Body::UpdateHost(records::UpdateHost {
            request: client,
            name: request.name,
            add_initiators: request.add_initiators,
            remove_initiators: request.remove_initiators,
            chap: sealed,
            clear_chap,
        });
        match self.write_access(&call, body).await? {
            Outcome::Host(host) => Ok(Response::new(self.raft.read(|state| view(state, &host)))),
            other => Err(unexpected(&other)),
        }
    }

    async fn get_host_policy(
        &self,
        _: Request<GetHostPolicyRequest>,
    ) -> Result<Response<HostPolicy>, Status> {
        self.read(policy).await.map(Response::new)
    }

    async fn set_host_policy(
        &self,
        request: Request<SetHostPolicyRequest>,
    ) -> Result<Response<HostPolicy>, Status> {
        let (call, mut request) = called(request)?;
        let id = std::mem::take(&mut request.request_id);
        let client = client_request(id, "SetHostPolicy", &request);
        let asked = request.policy.ok_or_else(|| status::invalid("policy", "is missing"))?;
        let body = Body::SetWildcardInitiators(records::SetWildcardInitiators {
            request: client,
            allowed: asked.wildcard_initiators,
        });
        self.write_access(&call, body).await?;
        Ok(Response::new(self.raft.read(policy)))
    }

    async fn delete_host(
        &self,
        request: Request<DeleteHostRequest>,
    ) -> Result<Response<DeleteHostResponse>, Status> {
        let (call, mut request) = called(request)?;
        let id = std::mem::take(&mut request.request_id);
        let client = client_request(id, "DeleteHost", &request);
        self.write_access(
            &call,
            Body::DeleteHost(records::DeleteHost { request: client, name: request.name }),
        )
        .await?;
        Ok(Response::new(DeleteHostResponse {}))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(user: &str, target_user: &str) -> HostSpec {
        HostSpec {
            initiators: Vec::new(),
            chap_user: user.to_owned(),
            chap_target_user: target_user.to_owned(),
        }
    }

    #[test]
    fn chap_is_nothing_one_way_or_mutual() {
        let (a, b) = ("secret-of-12b", "another-of-12");
        assert_eq!(chap(&spec("", ""), "", "").unwrap(), Chap::None);
        assert!(matches!(chap(&spec("u", ""), a, "").unwrap(), Chap::OneWay { .. }));
        assert!(matches!(chap(&spec("u", "t"), a, b).unwrap(), Chap::Mutual { .. }));
        for (user, target, secret, target_secret, field) in [
            ("", "", a, "", "spec.chap_user"),
            ("", "t", "", b, "spec.chap_user"),
            ("u", "", "short", "", "chap_secret: 5 bytes"),
            ("u", "", "", "", "chap_secret: 0 bytes"),
            ("u u", "", a, "", "spec.chap_user"),
            ("u", "", a, b, "spec.chap_target_user"),
            ("u", "t", a, "", "chap_target_secret: 0 bytes"),
            ("u", "t", a, a, "chap_target_secret: must differ"),
        ] {
            let status = chap(&spec(user, target), secret, target_secret).unwrap_err();
            assert!(status.message().starts_with(field), "{}", status.message());
        }
    }
}
