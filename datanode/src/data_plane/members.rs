//! Connections that join a session (MC/S, RFC 7143 4.2.2): they move to the thread that has it, and one engine speaks for all.
//!
//! Invariants: a session is on one thread, whichever accepted its connections, so commands are numbered and reach owners in one
//! stream; a connection joins only the session of its own nexus, by its TSIH; an older connection of the same number has ended
//! with its tasks before the newer one is in.

use std::num::NonZeroU16;

use holdfast_iscsi::{Connection, Join, LinkId, LoginStatus, SessionStart};
use holdfast_scsi::nexus::Nexus;
use holdfast_scsi::time::Instant;
use mio::net::TcpStream;

use super::limits::REINSTATEMENT_MS_MAX;
use super::mailbox::Message;
use super::portal::{CLOSING_MS_MAX, Home, Joining, Portal, Stage};
use super::router::Bytes;
use super::worker::{Worker, iscsi};

/// A connection on its way to the thread that has the session.
pub(crate) struct Visitor {
    socket: std::net::TcpStream,
    engine: Box<Connection<Bytes>>,
    portal: usize,
    joining: Joining,
}

impl Worker {
    /// A connection has logged in to join the session with this TSIH.
    pub(super) fn joining(
        &mut self,
        now: Instant,
        connection: u64,
        nexus: &Nexus,
        tsih: NonZeroU16,
        cid: u16,
    ) {
        let Some(address) = self.sessions.find(nexus, tsih) else {
            let refusal = SessionStart::Refuse(LoginStatus::SessionDoesNotExist);
            return self.answer_start(now, connection, refusal);
        };
        let by_ms = now.0.saturating_add(REINSTATEMENT_MS_MAX);
        let joining = Joining { cid, tsih, leading: address.connection, by_ms };
        if address.worker == self.index {
            if let Some(portal) = self.connections.get_mut(&connection) {
                portal.stage = Stage::Joining(Box::new(joining));
            }
            return self.try_join(now, connection);
        }
        // Nothing of it is left here but its number, which is not used again.
        if let Some(timer) = self.connections.get_mut(&connection).and_then(|portal| portal.timer.take()) {
            self.timers.remove(&(timer, connection));
        }
        self.dirty.remove(&connection);
        self.ready.remove(&connection);
        let Some(portal) = self.connections.remove(&connection) else { return };
        let Portal { wire: Some(mut wire), home: Home::Own(engine, _), portal, .. } = portal else { return };
        let _ = self.poll.registry().deregister(&mut wire.socket);
        self.services.mailboxes.connection_moves(self.index, address.worker);
        let visitor = Visitor { socket: wire.socket.into(), engine, portal, joining };
        self.services.mailboxes.post(address.worker, Message::Join(Box::new(visitor)));
    }

    /// A connection has come from another thread.
    pub(super) fn receive_joining(&mut self, now: Instant, visitor: Visitor) {
        let Visitor { socket, engine, portal, joining } = visitor;
        let stage = Stage::Joining(Box::new(joining));
        if let Some(connection) = self.settle_in(TcpStream::from_std(socket), *engine, portal, stage) {
            self.try_join(now, connection);
            self.pump(now, connection);
        }
    }

    /// Has the session take the connection in, unless an older one of its number has to end first.
    fn try_join(&mut self, now: Instant, connection: u64) {
        let Some(Portal { stage: Stage::Joining(joining), .. }) = self.connections.get(&connection) else {
            return;
        };
        let (cid, tsih, leading) = (joining.cid, joining.tsih, joining.leading);
        let answer = match self.connections.get_mut(&leading) {
            Some(Portal { stage: Stage::Session(_), home: Home::Own(engine, _), .. }) => engine.join(cid),
            _ => Join::Ended,
        };
        let status = match answer {
            Join::Go { exp_cmd_sn, max_cmd_sn } => {
                let start = SessionStart::Join { tsih, exp_cmd_sn, max_cmd_sn };
                self.take_in(now, connection, leading, start);
                return self.pump(now, leading);
            }
            // Its end is told by an event; the aborts that it takes come first.
            Join::Wait(_) => return self.pump(now, leading),
            Join::TooMany => LoginStatus::TooManyConnections,
            Join::Ended => LoginStatus::SessionDoesNotExist,
        };
        if let Some(portal) = self.connections.get_mut(&connection) {
            portal.stage = Stage::NoSession;
        }
        self.answer_start(now, connection, SessionStart::Refuse(status));
    }

    fn take_in(&mut self, now: Instant, connection: u64, leading: u64, start: SessionStart) {
        let Some(portal) = self.connections.get_mut(&connection) else { return };
        portal.stage = Stage::NoSession;
        let member = Home::Member(leading, LinkId::LEADING);
        let Home::Own(mut engine, _) = std::mem::replace(&mut portal.home, member) else { return };
        engine.start_session(iscsi(now), start);
        let link = self.engine(leading).and_then(|leading| leading.take_in(*engine));
        let Some(link) = link else {
            // The engine is gone with its session.
            return self.drop_connection(now, connection);
        };
        if let Some(portal) = self.connections.get_mut(&connection) {
            portal.home = Home::Member(leading, link);
        }
        if let Some(Portal { home: Home::Own(_, members), .. }) = self.connections.get_mut(&leading) {
            members.insert(link, connection);
        }
        tracing::info!(connection, leading, "connection joined its session");
    }

    /// A connection has left a session that goes on: its socket is closed once all is sent, and who waits for its number is in.
    pub(super) fn link_ended(&mut self, now: Instant, leading: u64, link: LinkId) {
        let member = match self.connections.get(&leading) {
            Some(Portal { home: Home::Own(_, members), .. }) => members.get(&link).copied(),
            _ => None,
        };
        let connection = member.unwrap_or(leading);
        if let Some(portal) = self.connections.get_mut(&connection) {
            portal.closing_by = Some(now.0.saturating_add(CLOSING_MS_MAX));
        }
        self.touch(connection);
        let waits = |portal: &Portal| matches!(&portal.stage, Stage::Joining(it) if it.leading == leading);
        let waiting: Vec<u64> =
            self.connections.iter().filter(|(_, portal)| waits(portal)).map(|(number, _)| *number).collect();
        for connection in waiting {
            self.try_join(now, connection);
            self.pump(now, connection);
        }
    }
}
