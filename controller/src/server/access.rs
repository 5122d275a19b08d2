//! Who may call what: decided by the certificate and the method's path, before any service sees the call.
//!
//! Invariants
//! * A path without a rule is refused; so is a caller without a certificate of this cluster.
//! * The role and name that a call carries in metadata count only when a controller passes it on.

use std::{
    convert::Infallible,
    sync::Arc,
    task::{Context, Poll},
};

use futures::future::BoxFuture;
use holdfast_pki::{ClusterId, PeerIdentity, Role};
use holdfast_proto::state as records;
use http::{HeaderMap, HeaderValue, Request, Response};
use tonic::{
    Code, Status,
    body::Body,
    transport::server::{TcpConnectInfo, TlsConnectInfo},
};
use tower::{Layer, Service};

use super::{
    forward::Forwarder,
    refusals::{Proposed, Refusals},
};

/// Set by a member that passes a call on: the role of the first caller.
pub(super) const CALLER_ROLE: &str = "holdfast-caller-role";
/// Set by a member that passes a call on: the name of the first caller.
pub(super) const CALLER_NAME: &str = "holdfast-caller-name";

/// What a controller says that was removed, or not added yet.
const NOT_A_MEMBER: &str = "this controller is not a member of the cluster (it was removed, or waits to be added with 'holdfast \
                            controller add'); nothing was changed, ask another one";

/// Who a call comes from first of all; in the extensions of every request that reaches a service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caller {
    /// What it may be.
    pub role: Role,
    /// Its name within the role; a data node's is its node name.
    pub name: String,
}

impl Caller {
    /// For the log.
    pub fn record(&self) -> records::Caller {
        records::Caller { role: self.role.as_str().to_owned(), name: self.name.clone() }
    }
}

/// One admitted call, as a service that changes something needs it.
#[derive(Debug, Clone)]
pub struct Call {
    /// Who calls.
    pub caller: Caller,
    /// To be set when the call's command is proposed.
    pub(crate) proposed: Proposed,
}

impl Call {
    /// The call that a request is; `None` for one that did not come through the access check.
    pub fn of<T>(request: &tonic::Request<T>) -> Option<Call> {
        let caller = request.extensions().get::<Caller>()?.clone();
        let proposed = request.extensions().get::<Proposed>()?.clone();
        Some(Call { caller, proposed })
    }
}

/// What a path asks of its caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Rule {
    Members,
    Nodes,
    ManagementRead,
    ManagementWrite,
    Anyone,
}

impl Rule {
    fn of(path: &str) -> Option<Self> {
        let (service, method) = path.strip_prefix('/')?.split_once('/')?;
        match service {
            "holdfast.raft.v1.Raft" | "holdfast.raft.v1.Members" => Some(Self::Members),
            "holdfast.node.v1.NodeAgent" => Some(Self::Nodes),
            "grpc.health.v1.Health" => Some(Self::Anyone),
            "grpc.reflection.v1.ServerReflection" | "grpc.reflection.v1alpha.ServerReflection" => {
                Some(Self::Anyone)
            }
            _ if service.starts_with("holdfast.v1.") => {
                let reads =
                    ["Get", "List", "Watch", "Explain"].iter().any(|prefix| method.starts_with(prefix));
                Some(if reads { Self::ManagementRead } else { Self::ManagementWrite })
            }
            _ => None,
        }
    }

    fn admits(self, role: Role) -> bool {
        match self {
            Self::Members => role == Role::Controller,
            Self::Nodes => role == Role::Node,
            Self::ManagementRead => {
                matches!(role, Role::Admin | Role::Operator | Role::Viewer | Role::Controller)
            }
            Self::ManagementWrite => matches!(role, Role::Admin | Role::Operator),
            Self::Anyone => true,
        }
    }

    const fn wants(self) -> &'static str {
        match self {
            Self::Members => "controller",
            Self::Nodes => "node",
            Self::ManagementRead => "admin, operator or viewer",
            Self::ManagementWrite => "admin or operator",
            Self::Anyone => "any",
        }
    }

    const fn is_management(self) -> bool {
        matches!(self, Self::ManagementRead | Self::ManagementWrite)
    }
}

/// A call that was let in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Admitted {
    pub(super) caller: Caller,
    /// The controller that has passed it on, by the name in its certificate; it is not passed on again.
    pub(super) forwarded_by: Option<String>,
    pub(super) management: bool,
    pub(super) writes: bool,
    /// Only a member of the cluster answers.
    member_only: bool,
    /// A refusal by the service itself belongs into the audit too.
    audited: bool,
}

/// Lets the call of `peer` in, or says why not.
fn admit(
    cluster: ClusterId,
    peer: &PeerIdentity,
    path: &str,
    headers: &HeaderMap,
) -> Result<Admitted, Status> {
    if peer.cluster != cluster {
        return Err(Status::permission_denied("the certificate is of another cluster"));
    }
    let Some(rule) = Rule::of(path) else {
        return Err(Status::unimplemented(format!("there is no method {path}")));
    };
    let own = || Caller { role: peer.role, name: peer.name.clone() };
    let passed_on =
        if peer.role == Role::Controller && rule.is_management() { passed_on(headers)? } else { None };
    let forwarded_by = passed_on.is_some().then(|| peer.name.clone());
    let caller = passed_on.unwrap_or_else(own);
    if !rule.admits(caller.role) {
        return Err(Status::permission_denied(format!(
            "{path} is for the role {}; this certificate is of {} {}",
            rule.wants(),
            caller.role,
            caller.name
        )));
    }
    Ok(Admitted {
        caller,
        forwarded_by,
        management: rule.is_management(),
        writes: rule == Rule::ManagementWrite,
        member_only: rule.is_management() || rule == Rule::Nodes,
        audited: matches!(rule, Rule::ManagementWrite | Rule::Nodes),
    })
}

/// The first caller as a controller tells it.
fn passed_on(headers: &HeaderMap) -> Result<Option<Caller>, Status> {
    let bad = |name: &str| Status::invalid_argument(format!("metadata {name} cannot be read"));
    let text = |name: &str| headers.get(name).map(|value| value.to_str().map_err(|_| bad(name))).transpose();
    match (text(CALLER_ROLE)?, text(CALLER_NAME)?) {
        (None, None) => Ok(None),
        (Some(role), Some(name)) => {
            let role = role.parse().map_err(|_| bad(CALLER_ROLE))?;
            Ok(Some(Caller { role, name: name.to_owned() }))
        }
        (Some(_), None) => Err(bad(CALLER_NAME)),
        (None, Some(_)) => Err(bad(CALLER_ROLE)),
    }
}

/// Replaces whatever a caller claimed by what is known.
pub(super) fn stamp(headers: &mut HeaderMap, caller: &Caller) -> Result<(), Status> {
    let name = HeaderValue::from_str(&caller.name)
        .map_err(|_| Status::permission_denied("the name in the certificate is not text"))?;
    headers.insert(CALLER_ROLE, HeaderValue::from_static(caller.role.as_str()));
    headers.insert(CALLER_NAME, name);
    Ok(())
}

/// Says in a call of this member's own for whom it is made.
pub(crate) fn stamp_metadata(
    metadata: &mut tonic::metadata::MetadataMap,
    caller: &Caller,
) -> Result<(), Status> {
    let mut headers = std::mem::take(metadata).into_headers();
    stamp(&mut headers, caller)?;
    *metadata = tonic::metadata::MetadataMap::from_headers(headers);
    Ok(())
}

fn peer<B>(request: &Request<B>) -> Result<PeerIdentity, Status> {
    let unknown = || Status::unauthenticated("a certificate of this cluster is needed");
    let info = request.extensions().get::<TlsConnectInfo<TcpConnectInfo>>().ok_or_else(unknown)?;
    let certificates = info.peer_certs().ok_or_else(unknown)?;
    let own = certificates.first().ok_or_else(unknown)?;
    PeerIdentity::from_certificate(own).map_err(|error| Status::unauthenticated(error.to_string()))
}

/// Puts the check before all services.
#[derive(Clone)]
pub(super) struct AccessLayer {
    pub(super) cluster: ClusterId,
    pub(super) forwarder: Arc<Forwarder>,
    pub(super) refusals: Refusals,
}

impl<S> Layer<S> for AccessLayer {
    type Service = Access<S>;

    fn layer(&self, inner: S) -> Access<S> {
        Access { inner, layer: self.clone() }
    }
}

/// The check before one service stack.
#[derive(Clone)]
pub(super) struct Access<S> {
    inner: S,
    layer: AccessLayer,
}

impl<S> Service<Request<Body>> for Access<S>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible> + Clone + Send + 'static,
    S::Future: Send + 'static,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Response<Body>, Infallible>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        let path = request.uri().path();
        let known = peer(&request);
        let admitted = known
            .as_ref()
            .map_err(Clone::clone)
            .and_then(|peer| admit(self.layer.cluster, peer, path, request.headers()));
        let admitted = match admitted {
            Ok(admitted) => admitted,
            Err(status) => {
                tracing::debug!(%status, path, "a call was refused");
                match &known {
                    // Whom a member speaks for is part of the reason.
                    Ok(peer) => {
                        let caller = Caller { role: peer.role, name: peer.name.clone() };
                        self.layer.refusals.refused(&caller, path, status.message());
                    }
                    Err(_) => self.layer.refusals.refused_stranger(path, status.message()),
                }
                return Box::pin(async move { Ok(status.into_http()) });
            }
        };
        let forwarder = Arc::clone(&self.layer.forwarder);
        let refusals = self.layer.refusals.clone();
        // The instance that was polled ready is the one to call.
        let ready = self.inner.clone();
        let mut inner = std::mem::replace(&mut self.inner, ready);
        Box::pin(async move {
            if let Err(status) = stamp(request.headers_mut(), &admitted.caller) {
                return Ok(status.into_http());
            }
            if admitted.member_only && !forwarder.is_member() {
                return Ok(Status::unavailable(NOT_A_MEMBER).into_http());
            }
            if admitted.management {
                match forwarder.destination(&admitted).await {
                    Ok(None) => {}
                    Ok(Some(leader)) => return Ok(forwarder.pass_on(leader, request, admitted.writes).await),
                    Err(status) => {
                        if status.code() == Code::PermissionDenied {
                            refusals.refused(&admitted.caller, request.uri().path(), status.message());
                        }
                        return Ok(status.into_http());
                    }
                }
            }
            let (path, proposed) = (request.uri().path().to_owned(), Proposed::default());
            request.extensions_mut().insert(admitted.caller.clone());
            request.extensions_mut().insert(proposed.clone());
            let answer = inner.call(request).await;
            if admitted.audited
                && let Ok(answer) = &answer
            {
                refusals.answered(&admitted.caller, &path, &proposed, answer.headers());
            }
            answer
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLUSTER: ClusterId = ClusterId([1; 16]);
    const CREATE: &str = "/holdfast.v1.VolumeService/CreateVolume";
    const LIST: &str = "/holdfast.v1.VolumeService/ListVolumes";

    fn peer(role: Role) -> PeerIdentity {
        PeerIdentity { cluster: CLUSTER, role, name: "x".to_owned() }
    }

    fn may(role: Role, path: &str) -> bool {
        admit(CLUSTER, &peer(role), path, &HeaderMap::new()).is_ok()
    }

    #[test]
    fn each_service_has_its_roles() {
        let allowed = |path: &str| -> Vec<&str> {
            Role::ALL.into_iter().filter(|role| may(*role, path)).map(Role::as_str).collect()
        };
        assert_eq!(allowed("/holdfast.raft.v1.Raft/Append"), ["controller"]);
        assert_eq!(allowed("/holdfast.node.v1.NodeAgent/Session"), ["node"]);
        assert_eq!(allowed(CREATE), ["admin", "operator"]);
        assert_eq!(allowed(LIST), ["controller", "admin", "operator", "viewer"]);
        assert_eq!(allowed("/grpc.health.v1.Health/Check").len(), Role::ALL.len());
    }

    #[test]
    fn a_path_without_a_rule_is_refused() {
        for path in ["", "/", "/x", "/holdfast.v2.VolumeService/GetVolume", "/holdfast.raft.v1.Raft2/Append"]
        {
            assert!(!may(Role::Admin, path), "{path}");
            assert!(!may(Role::Controller, path), "{path}");
        }
    }

    #[test]
    fn every_method_of_the_contracts_has_a_rule() {
        use prost::Message as _;
        let set = prost_types::FileDescriptorSet::decode(holdfast_proto::FILE_DESCRIPTOR_SET).unwrap();
        let mut methods = 0;
        for file in &set.file {
            for service in &file.service {
                for method in &service.method {
                    let path = format!("/{}.{}/{}", file.package(), service.name(), method.name());
                    assert!(Rule::of(&path).is_some(), "{path}");
                    methods += 1;
                }
            }
        }
        assert!(methods > 20);
    }

    #[test]
    fn another_cluster_is_refused() {
        let stranger = PeerIdentity { cluster: ClusterId([2; 16]), ..peer(Role::Admin) };
        assert!(admit(CLUSTER, &stranger, LIST, &HeaderMap::new()).is_err());
    }

    #[test]
    fn only_a_controller_speaks_for_others() {
        let mut headers = HeaderMap::new();
        stamp(&mut headers, &Caller { role: Role::Admin, name: "root".to_owned() }).unwrap();
        // A viewer that claims to be an admin stays a viewer.
        assert!(admit(CLUSTER, &peer(Role::Viewer), CREATE, &headers).is_err());
        let seen = admit(CLUSTER, &peer(Role::Viewer), LIST, &headers).unwrap();
        assert_eq!((seen.caller.role, seen.forwarded_by), (Role::Viewer, None));
        let seen = admit(CLUSTER, &peer(Role::Controller), CREATE, &headers).unwrap();
        assert_eq!(
            (seen.caller.role, seen.caller.name.as_str(), seen.forwarded_by.as_deref()),
            (Role::Admin, "root", Some("x"))
        );
        // A viewer's call that is passed on is still a viewer's.
        stamp(&mut headers, &Caller { role: Role::Viewer, name: "eve".to_owned() }).unwrap();
        assert!(admit(CLUSTER, &peer(Role::Controller), CREATE, &headers).is_err());
        // Speaking for others opens no other service.
        assert!(admit(CLUSTER, &peer(Role::Node), "/holdfast.raft.v1.Raft/Vote", &headers).is_err());
        headers.remove(CALLER_NAME);
        assert!(admit(CLUSTER, &peer(Role::Controller), LIST, &headers).is_err());
    }
}
