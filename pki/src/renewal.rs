//! Renewal of a running process's certificate, key and trust: looked for now and then, and at SIGHUP.
//!
//! Invariants: files that are just being written are not judged before they have kept still for [`LOOK_EVERY`] (SIGHUP says that
//! they are ready); what does not work is refused once, with the reason, and what was in use stays.

use std::{os::unix::fs::MetadataExt as _, path::Path, time::Duration};

use tokio::signal::unix::{SignalKind, signal};

use crate::{Identity, identity::RENEWED};

/// How often the files are looked at.
pub const LOOK_EVERY: Duration = Duration::from_secs(5);

/// Tells a file from one that was put in its place, or written anew.
type Stamp = Option<(u64, u64, i64, i64)>;

fn stamps(directory: &Path) -> [Stamp; 3] {
    RENEWED.map(|name| {
        let meta = std::fs::metadata(directory.join(name)).ok()?;
        Some((meta.ino(), meta.len(), meta.mtime(), meta.mtime_nsec()))
    })
}

/// Keeps `identity` current, for as long as the process runs. It never ends.
pub async fn keep_current(identity: &Identity) {
    let mut hangup = signal(SignalKind::hangup())
        .inspect_err(
            |error| tracing::warn!(%error, "SIGHUP is not listened to; renewed files are found anyway"),
        )
        .ok();
    let asked = async |hangup: &mut Option<tokio::signal::unix::Signal>| match hangup {
        Some(hangup) => drop(hangup.recv().await),
        None => std::future::pending().await,
    };
    let mut judged = stamps(identity.directory());
    let mut seen = judged;
    loop {
        let asked = tokio::select! {
            () = asked(&mut hangup) => true,
            () = tokio::time::sleep(LOOK_EVERY) => false,
        };
        let now = stamps(identity.directory());
        let still = now == seen;
        seen = now;
        if !asked && (now == judged || !still) {
            continue;
        }
        judged = now;
        match identity.reload() {
            Ok(true) => tracing::info!(
                folder = %identity.directory().display(),
                "certificate, key and trust renewed; new connections use them"
            ),
            Ok(false) if asked => tracing::info!("SIGHUP: certificate, key and trust are those in use"),
            Ok(false) => {}
            Err(error) => tracing::error!(
                folder = %identity.directory().display(),
                %error,
                "the new certificate, key or trust is refused; those in use stay in use"
            ),
        }
    }
}
