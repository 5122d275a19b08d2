//! Arguments of the controller, checked into values that are right.
//!
//! Invariant: a [`Config`] exists only if its parts fit together; every refusal is one line that says what would be right.

use std::{collections::BTreeMap, net::SocketAddr, path::PathBuf, sync::Arc};

use clap::Parser;
use holdfast_pki::{Identity, PkiError, Role};

use crate::raft::{Member, member::MemberConfig, options::Compaction};

/// Members of one cluster at most.
const MEMBERS_MAX: usize = 9;

/// A member of the controllers of a Holdfast cluster.
#[derive(Debug, Parser)]
#[command(name = "holdfast-controller", version)]
pub struct Arguments {
    /// This member's id, 1 or more; never given to another member
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..))]
    id: u64,
    /// This member's name, as in its certificate
    #[arg(long)]
    name: String,
    /// Directory of its state; made when it is not there
    #[arg(long)]
    dir: PathBuf,
    /// Address and port to listen on
    #[arg(long)]
    listen: SocketAddr,
    /// Directory of its certificate: ca.pem, cert.pem, key.pem, secret.key
    #[arg(long)]
    tls: PathBuf,
    /// All members of a new cluster: 1=ctl-1=192.0.2.1:7700,2=ctl-2=... The same for each member; of no effect once the cluster
    /// exists
    #[arg(long, value_parser = parse_bootstrap, required_unless_present = "join")]
    bootstrap: Option<Bootstrap>,
    /// Wait to be added to a cluster that exists ('holdfast controller add'), instead of --bootstrap; of no effect once this
    /// controller is a member
    #[arg(long, conflicts_with = "bootstrap")]
    join: bool,
    /// iSCSI name of the cluster's target; of no effect once the cluster exists [default: made of the cluster's id]
    #[arg(long)]
    target_iqn: Option<String>,
    /// The other controllers are lost for good: go on with this one alone. Shows what that means and what to agree to with
    /// --accept-data-loss; changes nothing without it. Start it as usual afterwards
    #[arg(long)]
    recover_alone: bool,
    /// With --recover-alone: agree to the loss of what only the others had, by naming the last entry that was shown
    #[arg(long, value_name = "TERM.INDEX", requires = "recover_alone", value_parser = parse_entry)]
    accept_data_loss: Option<(u64, u64)>,
    #[command(flatten)]
    telemetry: holdfast_telemetry::Arguments,
    /// Stop when the process that started this one ends, however it ends (for supervisors such as `holdfast dev up`)
    #[arg(long)]
    die_with_parent: bool,
}

/// The members of a new cluster.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Bootstrap(Vec<(u64, Member)>);

/// Why the arguments do not make a configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The certificate's folder.
    #[error("--tls: {0}")]
    Pki(#[from] PkiError),
    /// The certificate is for something else.
    #[error(
        "--tls: the certificate is of {role} '{name}'; a certificate of controller '{expected}' is needed"
    )]
    Certificate {
        /// Its role.
        role: Role,
        /// Its name.
        name: String,
        /// The name given.
        expected: String,
    },
    /// The list of members contradicts the other arguments.
    #[error("--bootstrap: {0}")]
    Bootstrap(String),
    /// Not an iSCSI name.
    #[error("--target-iqn: {0}")]
    TargetIqn(String),
}

/// A recovery that was asked for instead of a start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Recovery {
    /// Show what it means.
    Show,
    /// Do it: this term and index were agreed to.
    Agreed(u64, u64),
}

/// What a controller runs with.
#[derive(Debug)]
pub struct Config {
    /// Go on alone, instead of a start.
    pub recovery: Option<Recovery>,
    /// Where it listens.
    pub listen: SocketAddr,
    /// Who it is.
    pub identity: Arc<Identity>,
    /// Its part in Raft.
    pub member: MemberConfig,
}

impl Arguments {
    /// This member's name, as given.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What was said of traces.
    pub fn telemetry(&self) -> &holdfast_telemetry::Arguments {
        &self.telemetry
    }

    /// Ties the life of this process to its parent's, when that was asked for.
    ///
    /// # Errors
    /// What the system said.
    pub fn follow_parent(&self) -> std::io::Result<()> {
        if self.die_with_parent {
            rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::TERM))?;
        }
        Ok(())
    }

    /// Reads the certificate and checks everything against it.
    ///
    /// # Errors
    /// [`ConfigError`], one line each.
    pub fn check(self) -> Result<Config, ConfigError> {
        let identity = Arc::new(Identity::load(&self.tls)?);
        let own = identity.own();
        if own.role != Role::Controller || own.name != self.name {
            return Err(ConfigError::Certificate {
                role: own.role,
                name: own.name.clone(),
                expected: self.name,
            });
        }
        let bootstrap = self.bootstrap.unwrap_or_default();
        check_own(&bootstrap.0, self.id, &self.name).map_err(ConfigError::Bootstrap)?;
        let target_iqn = match self.target_iqn {
            Some(given) => crate::state::names::iscsi_name("--target-iqn", &given)
                .map_err(|refusal| ConfigError::TargetIqn(refusal.to_string()))?,
            None => default_target_iqn(&own.cluster.to_string()),
        };
        let member = MemberConfig {
            id: self.id,
            directory: self.dir,
            identity: Arc::clone(&identity),
            bootstrap: bootstrap.0,
            target_iqn,
            compaction: Compaction::default(),
        };
        let recovery = self.recover_alone.then(|| {
            self.accept_data_loss.map_or(Recovery::Show, |(term, index)| Recovery::Agreed(term, index))
        });
        Ok(Config { recovery, listen: self.listen, identity, member })
    }
}

fn parse_entry(text: &str) -> Result<(u64, u64), String> {
    let parts =
        text.split_once('.').and_then(|(term, index)| Some((term.parse().ok()?, index.parse().ok()?)));
    parts.ok_or_else(|| "an entry is TERM.INDEX, as shown".to_owned())
}

/// The target's name when none is given: unique to the cluster.
fn default_target_iqn(cluster: &str) -> String {
    format!("iqn.2026-11.internal.holdfast:{cluster}")
}

fn parse_bootstrap(text: &str) -> Result<Bootstrap, String> {
    if text.is_empty() {
        return Ok(Bootstrap::default());
    }
    let mut members = BTreeMap::new();
    for item in text.split(',') {
        let wrong = || format!("'{item}' is not ID=NAME=ADDRESS:PORT");
        let mut parts = item.splitn(3, '=');
        let (Some(id), Some(name), Some(address)) = (parts.next(), parts.next(), parts.next()) else {
            return Err(wrong());
        };
        let id: u64 = id.parse().ok().filter(|id| *id > 0).ok_or_else(wrong)?;
        let (host, port) = address.rsplit_once(':').ok_or_else(wrong)?;
        if name.is_empty()
            || host.is_empty()
            || port.parse::<u16>().is_ok_and(|port| port == 0)
            || port.parse::<u16>().is_err()
        {
            return Err(wrong());
        }
        let member = Member::new(name, address);
        if members.values().any(|other: &Member| other.name == member.name || other.address == member.address)
        {
            return Err(format!("'{item}' repeats a name or an address"));
        }
        if members.insert(id, member).is_some() {
            return Err(format!("'{item}' repeats an id"));
        }
    }
    if members.len() > MEMBERS_MAX {
        return Err(format!("{} members; at most {MEMBERS_MAX} are possible", members.len()));
    }
    Ok(Bootstrap(members.into_iter().collect()))
}

fn check_own(members: &[(u64, Member)], id: u64, name: &str) -> Result<(), String> {
    if members.is_empty() {
        return Ok(());
    }
    match members.iter().find(|(other, _)| *other == id) {
        None => Err(format!("it does not name this member, {id}={name}")),
        Some((_, member)) if member.name != name => {
            Err(format!("it calls member {id} '{}', and this member is '{name}'", member.name))
        }
        Some(_) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        <Arguments as clap::CommandFactory>::command().debug_assert();
    }

    #[test]
    fn bootstrap_is_read() {
        let read = parse_bootstrap("2=b=h:2,1=a=127.0.0.1:1").unwrap();
        let member = |name: &str, address: &str| Member::new(name, address);
        assert_eq!(read.0, [(1, member("a", "127.0.0.1:1")), (2, member("b", "h:2"))]);
        assert_eq!(parse_bootstrap("").unwrap(), Bootstrap::default());
    }

    #[test]
    fn bootstrap_that_makes_no_sense_is_refused() {
        for bad in [
            "1",
            "1=a",
            "1=a=h",
            "0=a=h:1",
            "x=a=h:1",
            "1==h:1",
            "1=a=:1",
            "1=a=h:0",
            "1=a=h:70000",
            "1=a=h:1,",
            "1=a=h:1,1=b=h:2",
            "1=a=h:1,2=a=h:2",
            "1=a=h:1,2=b=h:1",
        ] {
            assert!(parse_bootstrap(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_list_has_to_name_this_member() {
        let members = parse_bootstrap("1=a=h:1,2=b=h:2").unwrap().0;
        assert!(check_own(&members, 1, "a").is_ok());
        assert!(check_own(&members, 1, "b").is_err());
        assert!(check_own(&members, 3, "c").is_err());
        assert!(check_own(&[], 3, "c").is_ok());
    }

    #[test]
    fn the_default_target_name_is_an_iscsi_name() {
        let name = default_target_iqn(&"ab".repeat(16));
        assert_eq!(crate::state::names::iscsi_name("x", &name).as_ref(), Ok(&name));
    }
}
