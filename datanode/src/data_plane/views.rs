//! A new view on one worker: LUN maps, Unit Attentions, sessions that may no longer be.
//!
//! Invariants: views are applied in order, whole, and without waiting for I/O; each Unit Attention is raised once for each
//! nexus that existed before, none is dropped: where events are lost, 29/00 stands for all of them; the index is
//! confirmed only after all of it.

use std::sync::Arc;

use holdfast_scsi::sense::asc;
use holdfast_scsi::time::Instant;

use super::installation::Installation;
use super::login::lun_map;
use super::portal::Session;
use super::worker::Worker;
use crate::view::{ClusterView, UnitAttentionEvent};

impl Worker {
    pub(super) fn install(&mut self, now: Instant, installation: &Installation) {
        let install = &installation.install;
        let view = &install.view;
        let last = self.view.clone();
        let hosts_changed = self
            .view
            .as_ref()
            .is_none_or(|last| !Arc::ptr_eq(&last.host_by_initiator, &view.host_by_initiator));
        let mut unwelcome = Vec::new();
        for (connection, portal) in &mut self.connections {
            let Some(session) = portal.session() else { continue };
            if hosts_changed && view.host_of(&session.initiator).is_none_or(|host| host.name != session.host)
            {
                unwelcome.push(*connection);
                continue;
            }
            if last.as_ref().is_none_or(|last| !view.has_same_map(last, &session.host)) {
                session.port.install_map(lun_map(view, &session.host));
            }
            if install.events_lost {
                session.port.raise_everywhere(asc::POWER_ON_OR_RESET);
            }
            for event in &install.unit_attentions {
                raise(session, event);
            }
        }
        self.view = Some(Arc::<ClusterView>::clone(view));
        for connection in unwelcome {
            tracing::info!("session dropped: its initiator belongs to no host, or to another one, now");
            self.close(now, connection);
        }
        self.retry = true;
        installation.applied();
    }
}

fn raise(session: &mut Session, event: &UnitAttentionEvent) {
    let nexus = session.nexus();
    let meant = event.only.is_none_or(|only| only == nexus)
        && event.except != Some(nexus)
        && event.host.as_ref().is_none_or(|host| *host == session.host);
    if !meant {
        return;
    }
    match &event.volume {
        Some(volume) => session.port.raise(volume, event.additional),
        None => session.port.raise_everywhere(event.additional),
    }
}
