//! Whether members may be added or removed: a function of what the leader knows of them.
//!
//! Invariant: a change that would leave fewer answering voters than a quorum is refused.

use super::{
    MembershipError::{self, Exists, Refused},
    VOTERS_MAX,
};
use crate::raft::{Member, handle::MemberMetrics};

/// What an addition finds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Addition {
    /// Nothing of it is known.
    New,
    /// It is a learner already: whoever began did not finish.
    Resumed,
}

/// May a controller of this name, id and address be added, or its addition be finished that an earlier leader began?
///
/// # Errors
/// [`MembershipError`]: something of it belongs to a member, there are too many, or too few would answer.
pub(super) fn check_addition(
    members: &[MemberMetrics],
    id: u64,
    new: &Member,
) -> Result<Addition, MembershipError> {
    let resumed = members.iter().find(|known| {
        !known.voter && known.id == id && known.member.name == new.name && known.member.address == new.address
    });
    for known in members.iter().filter(|known| resumed.is_none_or(|resumed| resumed.id != known.id)) {
        let at = format!("{} (id {}, {})", known.member.name, known.id, known.member.address);
        if known.member.name == new.name && known.id == id {
            return Err(Exists(format!("controller {} is a member already", new.name)));
        }
        for (same, what) in [
            (known.id == id, format!("id {id}")),
            (known.member.name == new.name, format!("name {}", new.name)),
            (known.member.address == new.address, format!("address {}", new.address)),
        ] {
            if same {
                return Err(Exists(format!("{what} belongs to controller {at}; give the new one its own")));
            }
        }
    }
    if members.iter().filter(|known| known.voter).count() >= VOTERS_MAX {
        return Err(Refused(format!(
            "the cluster has {VOTERS_MAX} controllers, and more are not possible; remove one first"
        )));
    }
    // The new one counts as answering: it was asked. One more member may mean that one more is needed.
    let voters: Vec<_> = members.iter().filter(|known| known.voter).collect();
    let silent: Vec<_> = voters.iter().filter(|m| !m.live).map(|m| m.member.name.as_str()).collect();
    let (after, answering) = (voters.len() + 1, voters.len() + 1 - silent.len());
    if answering < after / 2 + 1 {
        return Err(Refused(format!(
            "with {} there would be {after} controllers, of which only {answering} answer (silent: {}); {} are needed: \
             bring one back first",
            new.name,
            silent.join(", "),
            after / 2 + 1
        )));
    }
    Ok(if resumed.is_some() { Addition::Resumed } else { Addition::New })
}

/// May the controller of this name be removed? Gives its id.
///
/// # Errors
/// [`MembershipError`]: it is unknown, the last one, or needed for a quorum.
pub(super) fn check_removal(members: &[MemberMetrics], name: &str) -> Result<u64, MembershipError> {
    let gone = members
        .iter()
        .find(|known| known.member.name == name)
        .ok_or_else(|| MembershipError::Unknown(crate::state::names::printable(name)))?;
    let rest: Vec<_> = members.iter().filter(|known| known.voter && known.id != gone.id).collect();
    if !gone.voter {
        return Ok(gone.id);
    }
    if rest.is_empty() {
        return Err(Refused(format!("controller {name} is the last one; a cluster cannot be without")));
    }
    let silent: Vec<_> = rest.iter().filter(|m| !m.live).map(|m| m.member.name.as_str()).collect();
    let (answering, needed) = (rest.len() - silent.len(), rest.len() / 2 + 1);
    if answering < needed {
        return Err(Refused(format!(
            "removing {name} would lose the quorum: of the {} others only {answering} answer (silent: {}), and {needed} are \
             needed; bring one back first, or remove a silent one",
            rest.len(),
            silent.join(", ")
        )));
    }
    Ok(gone.id)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn members(list: &[(u64, bool)]) -> Vec<MemberMetrics> {
        list.iter()
            .map(|(id, live)| MemberMetrics {
                id: *id,
                member: Member::new(format!("ctl-{id}"), format!("127.0.0.1:{id}")),
                voter: true,
                matched_index: None,
                live: *live,
            })
            .collect()
    }

    fn removal(list: &[(u64, bool)], name: &str) -> Result<u64, String> {
        check_removal(&members(list), name).map_err(|error| error.to_string())
    }

    #[test]
    fn the_last_one_and_an_unknown_one_stay() {
        assert_eq!(
            removal(&[(1, true)], "ctl-1").unwrap_err(),
            "controller ctl-1 is the last one; a cluster cannot be without"
        );
        assert_eq!(removal(&[(1, true)], "ctl-9").unwrap_err(), "controller ctl-9 is not a member");
    }

    #[test]
    fn a_removal_keeps_a_quorum_of_those_that_answer() {
        assert_eq!(removal(&[(1, true), (2, true), (3, false)], "ctl-3"), Ok(3));
        assert_eq!(removal(&[(1, true), (2, true), (3, true)], "ctl-2"), Ok(2));
        assert_eq!(
            removal(&[(1, true), (2, true), (3, false)], "ctl-2").unwrap_err(),
            "removing ctl-2 would lose the quorum: of the 2 others only 1 answer (silent: ctl-3), and 2 are needed; bring one \
             back first, or remove a silent one"
        );
        assert_eq!(removal(&[(1, true), (2, true), (3, true), (4, false), (5, false)], "ctl-4"), Ok(4));
    }

    #[test]
    fn names_ids_and_addresses_belong_to_one() {
        let three = members(&[(1, true), (2, true), (3, true)]);
        let add = |id, name: &str, address: &str| {
            check_addition(&three, id, &Member::new(name, address)).map_err(|error| error.to_string())
        };
        assert_eq!(add(4, "ctl-4", "127.0.0.1:4"), Ok(Addition::New));
        assert_eq!(add(3, "ctl-3", "127.0.0.1:3").unwrap_err(), "controller ctl-3 is a member already");
        assert!(add(3, "ctl-4", "127.0.0.1:4").unwrap_err().starts_with("id 3 belongs to controller ctl-3"));
        assert!(add(4, "ctl-3", "127.0.0.1:4").unwrap_err().starts_with("name ctl-3 belongs"));
        assert!(add(4, "ctl-4", "127.0.0.1:3").unwrap_err().starts_with("address 127.0.0.1:3 belongs"));
    }

    #[test]
    fn an_addition_keeps_a_quorum_and_there_are_five_at_most() {
        let add =
            |list: &[(u64, bool)]| check_addition(&members(list), 9, &Member::new("ctl-9", "127.0.0.1:9"));
        assert_eq!(add(&[(1, true)]), Ok(Addition::New));
        assert_eq!(add(&[(1, true), (2, true), (3, false)]), Ok(Addition::New));
        assert_eq!(add(&[(1, true), (2, false)]), Ok(Addition::New));
        let refused = add(&[(1, true), (2, false), (3, false)]).unwrap_err().to_string();
        assert!(refused.contains("only 2 answer (silent: ctl-2, ctl-3); 3 are needed"), "{refused}");
        let five: Vec<_> = (1..=5).map(|id| (id, true)).collect();
        assert!(add(&five).unwrap_err().to_string().contains("more are not possible"));
    }

    #[test]
    fn an_addition_that_stopped_at_a_learner_can_be_asked_for_again() {
        let mut known = members(&[(1, true), (2, true), (3, true), (4, false)]);
        known[3].voter = false;
        let add = |name: &str, address: &str| {
            check_addition(&known, 4, &Member::new(name, address)).map_err(|error| error.to_string())
        };
        assert_eq!(add("ctl-4", "127.0.0.1:4"), Ok(Addition::Resumed));
        // Another one under the same id is none.
        assert_eq!(add("ctl-4", "127.0.0.1:5").unwrap_err(), "controller ctl-4 is a member already");
        assert!(add("ctl-5", "127.0.0.1:4").unwrap_err().starts_with("id 4 belongs to controller ctl-4"));
    }
}
