//! What must not happen, from what hosts saw and what the log established: it knows nothing of the code that it judges.
//!
//! * Reads and writes of each block are linearizable.
//! * PERSISTENT RESERVE OUT and IN, and the access of every read and write, are linearizable by SPC's rules.
//! * A Unit Attention that an entry established reaches every session that was there, once it asks; and no command of such a session is
//!   answered GOOD first, if it was sent after the change that caused it was answered GOOD.

use std::collections::BTreeMap;

use holdfast_proto::state as records;

use super::{NODES, Simulation, host, unit};
use crate::oracle::{
    block,
    linearizable::{NotLinearizable, Timed},
    reservations,
};

/// Unit Attentions that a queue tells apart; more become one `29/00`.
const TOLD_APART: usize = 6;
const RESET: u16 = 0x2900;
/// POWER ON OCCURRED: what was cached only may be gone.
const POWER_ON: u32 = 0x2901;

/// A change of the reservations was answered GOOD.
#[derive(Debug)]
pub(super) struct Told {
    pub(super) volume: usize,
    pub(super) nexus: u8,
    pub(super) now: u64,
}

/// A read or a write that a reservation let through or stopped.
#[derive(Debug)]
pub(super) struct Accessed {
    pub(super) volume: usize,
    pub(super) nexus: u8,
    pub(super) writes: bool,
    pub(super) good: bool,
    pub(super) sent: u64,
    pub(super) answered: u64,
}

#[derive(Debug)]
struct Due {
    index: u64,
    additional: u16,
    /// Nothing that is sent after this moment may be answered GOOD first.
    binding: Option<u64>,
}

#[derive(Debug, Default)]
struct SessionDues {
    session: u64,
    /// By LUN.
    dues: BTreeMap<u16, Vec<Due>>,
    /// Events were lost on the way: `29/00` stands for all of them.
    lost: bool,
}

#[derive(Debug, Default)]
pub(super) struct Judge {
    blocks: BTreeMap<(usize, u64), Vec<Timed<block::Operation>>>,
    reservations: BTreeMap<usize, Vec<Timed<reservations::Operation>>>,
    sessions: BTreeMap<(usize, usize), SessionDues>,
    /// Log index of the last change of a volume's reservations, by who asked for it.
    changes: BTreeMap<(usize, u8), u64>,
}

impl Judge {
    pub(super) fn session_began(&mut self, host: usize, node: usize, session: u64) {
        self.sessions.insert((host, node), SessionDues { session, ..SessionDues::default() });
    }

    pub(super) fn session_ended(&mut self, host: usize, node: usize, session: u64) {
        if self.sessions.get(&(host, node)).is_some_and(|s| s.session == session) {
            self.sessions.remove(&(host, node));
        }
    }

    pub(super) fn events_lost(&mut self, host: usize, node: usize, session: u64) {
        if let Some(own) = self.sessions.get_mut(&(host, node)).filter(|s| s.session == session) {
            own.lost = true;
        }
    }

    pub(super) fn changed(&mut self, volume: usize, nexus: u8, index: u64) {
        self.changes.insert((volume, nexus), index);
    }

    fn due(&mut self, host: usize, node: usize, session: u64, lun: u16, due: Due) {
        if let Some(own) = self.sessions.get_mut(&(host, node)).filter(|s| s.session == session) {
            own.dues.entry(lun).or_default().push(due);
        }
    }

    /// A host was told.
    pub(super) fn told(&mut self, host: usize, node: usize, session: u64, lun: u16, additional: u16) {
        let Some(own) = self.sessions.get_mut(&(host, node)).filter(|s| s.session == session) else { return };
        let lost = own.lost;
        let Some(dues) = own.dues.get_mut(&lun) else { return };
        if additional == RESET && (lost || dues.len() >= TOLD_APART) {
            dues.clear();
        }
        dues.retain(|due| due.additional != additional);
    }

    /// The barrier of the change has passed: whom it concerns must be told before anything else.
    pub(super) fn change_was_good(&mut self, told: &Told) {
        let Some(index) = self.changes.get(&(told.volume, told.nexus)).copied() else { return };
        for own in self.sessions.values_mut() {
            for due in own.dues.values_mut().flatten().filter(|due| due.index <= index) {
                due.binding.get_or_insert(told.now);
            }
        }
    }

    /// A command was answered GOOD.
    pub(super) fn served(
        &mut self,
        host: usize,
        node: usize,
        session: u64,
        lun: u16,
        sent: u64,
    ) -> Result<(), String> {
        let own = self.sessions.get(&(host, node)).filter(|s| s.session == session && !s.lost);
        let dues = own.and_then(|own| own.dues.get(&lun)).filter(|dues| dues.len() < TOLD_APART);
        match dues.and_then(|dues| dues.iter().find(|due| due.binding.is_some_and(|good| sent > good))) {
            Some(due) => Err(format!(
                "host {host} via node {node}: GOOD on LUN {lun} before it was told {:04x} of log index {}, whose cause was \
                 answered GOOD before the command was sent",
                due.additional, due.index
            )),
            None => Ok(()),
        }
    }

    pub(super) fn wrote(&mut self, volume: usize, lba: u64, value: u64, sent: u64, answered: Option<u64>) {
        let operation = block::Operation::Write(value);
        self.blocks.entry((volume, lba)).or_default().push(Timed { sent, answered, operation });
    }

    pub(super) fn read(&mut self, volume: usize, lba: u64, value: u64, sent: u64, answered: u64) {
        let operation = block::Operation::Read(value);
        self.blocks.entry((volume, lba)).or_default().push(Timed {
            sent,
            answered: Some(answered),
            operation,
        });
    }

    /// A flush of a volume was answered GOOD.
    pub(super) fn flushed(&mut self, volume: usize, sent: u64, answered: u64) {
        let operation = block::Operation::Flush;
        for (_, history) in self.blocks.iter_mut().filter(|((of, _), _)| *of == volume) {
            history.push(Timed { sent, answered: Some(answered), operation });
        }
    }

    /// Every copy of a volume had lost its power when another owner came.
    fn power_lost(&mut self, volume: usize, now: u64) {
        let operation = block::Operation::PowerLoss;
        for (_, history) in self.blocks.iter_mut().filter(|((of, _), _)| *of == volume) {
            history.push(Timed { sent: now, answered: Some(now), operation });
        }
    }

    pub(super) fn reserved(
        &mut self,
        volume: usize,
        sent: u64,
        answered: Option<u64>,
        operation: reservations::Operation,
    ) {
        self.reservations.entry(volume).or_default().push(Timed { sent, answered, operation });
    }

    pub(super) fn accessed(&mut self, a: Accessed) {
        let operation = reservations::Operation::Access { nexus: a.nexus, writes: a.writes, allowed: a.good };
        self.reserved(a.volume, a.sent, Some(a.answered), operation);
    }

    /// At the end.
    pub(super) fn finish(&self) -> Result<(), String> {
        for ((volume, lba), history) in &self.blocks {
            block::check(history, None)
                .map_err(|found| told(&format!("block {lba} of volume {volume}"), history, &found))?;
        }
        for (volume, history) in &self.reservations {
            reservations::check(history, None)
                .map_err(|found| told(&format!("reservations of volume {volume}"), history, &found))?;
        }
        for ((host, node), own) in &self.sessions {
            for (lun, dues) in own.dues.iter().filter(|(_, dues)| !own.lost && dues.len() < TOLD_APART) {
                if let Some(due) = dues.first() {
                    return Err(format!(
                        "host {host} via node {node} was never told {:04x} on LUN {lun} (log index {})",
                        due.additional, due.index
                    ));
                }
            }
        }
        Ok(())
    }
}

fn told<O: std::fmt::Debug>(of: &str, history: &[Timed<O>], found: &NotLinearizable) -> String {
    let mut text =
        format!("{of} are not linearizable{}", if found.undecided { " (search given up)" } else { "" });
    for number in found.explained.iter().chain([&found.stuck]) {
        text += &format!("\n    {:?}", history[*number]);
    }
    text
}

impl Simulation {
    /// An entry established a Unit Attention: who is there has to be told.
    pub(super) fn attention_due(&mut self, event: &records::UnitAttentionEvent) {
        if event.additional == POWER_ON {
            let now = self.now;
            self.mark("every copy of a volume had lost power");
            self.judge.power_lost(usize::from(event.volume_id.first().copied().unwrap_or(1)) - 1, now);
        }
        let mut found = Vec::new();
        for (at, node) in self.nodes.iter().enumerate() {
            for (host, port) in node.ports() {
                let own = unit::name_of(port.nexus.nexus());
                let meant = event.only.as_ref().is_none_or(|only| *only == own)
                    && event.except.as_ref() != Some(&own)
                    && (event.host.is_empty() || event.host == format!("host-{host}"));
                if !meant {
                    continue;
                }
                for (lun, mapped) in port.nexus.map() {
                    if event.volume_id.is_empty() || event.volume_id[..] == mapped.volume.0[..] {
                        found.push((host, at, port.session, lun));
                    }
                }
            }
        }
        for (host, node, session, lun) in found {
            let due = Due { index: event.index, additional: event.additional as u16, binding: None };
            self.judge.due(host, node, session, lun, due);
        }
    }

    /// An entry changed the reservations of a volume.
    pub(super) fn change_committed(&mut self, proposal: &records::ProposeReservation, index: u64) {
        let Some(name) = &proposal.nexus else { return };
        let volume = usize::from(proposal.volume_id.first().copied().unwrap_or(1)) - 1;
        for (at, node) in self.nodes.iter().enumerate().take(NODES) {
            let port = node.ports().find(|(_, port)| unit::name_of(port.nexus.nexus()) == *name);
            if let Some((host, _)) = port {
                self.judge.changed(volume, host::nexus_of(host, at), index);
            }
        }
    }
}
