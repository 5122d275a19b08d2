//! Request ids: the same id with the same content is one request.
//!
//! Invariant: no secret goes into the digest, because the digest is stored.

use holdfast_proto::state::ClientRequest;
use prost::Message;
use sha2::{Digest as _, Sha256};

/// The id with a digest of the request. `content` is the request without its id and without secrets; `method` keeps
/// requests of different kinds apart.
pub(super) fn client_request(id: String, method: &str, content: &impl Message) -> Option<ClientRequest> {
    if id.is_empty() {
        return None;
    }
    let mut digest = Sha256::new();
    digest.update(method.as_bytes());
    digest.update([0]);
    digest.update(content.encode_to_vec());
    Some(ClientRequest { id, digest: digest.finalize().to_vec() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use holdfast_proto::v1::DeleteHostRequest;

    #[test]
    fn digest_tells_content_and_method_apart() {
        let ask = |method, name: &str| {
            let content = DeleteHostRequest { request_id: String::new(), name: name.to_owned() };
            client_request("r".to_owned(), method, &content)
        };
        assert_eq!(ask("DeleteHost", "a"), ask("DeleteHost", "a"));
        assert_ne!(ask("DeleteHost", "a"), ask("DeleteHost", "b"));
        assert_ne!(ask("DeleteHost", "a"), ask("DeleteVolume", "a"));
        assert_eq!(client_request(String::new(), "DeleteHost", &DeleteHostRequest::default()), None);
    }
}
