//! A network of namespaces: every member has an address of its own on one bridge, and the way from any member to any other
//! can be cut and healed, each direction by itself.
//!
//! Invariants: a cut drops packets at the receiver and tells nobody, as a broken wire does; nothing outlives the program
//! ([`spawner`]).

pub mod spawner;

use std::{collections::BTreeMap, net::Ipv4Addr, process::Command};

use anyhow::{Context, ensure};

use spawner::{Namespace, Spawner};

/// Rules of each member: packets from the addresses of a set are dropped.
const RULES: &str = "\
add table inet cuts
add set inet cuts from { type ipv4_addr; }
add chain inet cuts input { type filter hook input priority 0; policy accept; }
add rule inet cuts input ip saddr @from drop
";

/// A member of the network.
#[derive(Debug, Clone)]
pub struct Member {
    /// Where its processes run.
    pub namespace: Namespace,
    /// Its address.
    pub address: Ipv4Addr,
}

/// The network. Clones are the same network; it ends with the last of them.
#[derive(Debug, Clone)]
pub struct Network {
    /// Starts processes in it.
    pub spawner: Spawner,
    members: BTreeMap<String, Member>,
    // The bridge lives here; it ends with this file.
    _switch: Namespace,
}

impl Network {
    /// A network of the named members.
    ///
    /// # Errors
    /// When namespaces, `ip` or `nft` are not to be had; it says which.
    pub fn new(members: &[(&str, Ipv4Addr)]) -> anyhow::Result<Self> {
        let spawner = Spawner::start()?;
        let switch = spawner.new_network()?;
        let tool = |namespace: &Namespace, command: &[&str]| {
            let output = spawner.output(Some(namespace), command)?;
            ensure!(
                output.status.success(),
                "{}: {}",
                command.join(" "),
                String::from_utf8_lossy(&output.stderr).trim()
            );
            Ok(())
        };
        tool(&switch, &["ip", "link", "add", "bridge", "type", "bridge"])?;
        tool(&switch, &["ip", "link", "set", "bridge", "up"])?;
        let mut all = BTreeMap::new();
        for (number, (name, address)) in members.iter().enumerate() {
            let namespace = spawner.new_network()?;
            let (port, path) = (format!("port{number}"), namespace.path());
            tool(
                &switch,
                &["ip", "link", "add", &port, "type", "veth", "peer", "name", "eth0", "netns", &path],
            )?;
            tool(&switch, &["ip", "link", "set", &port, "master", "bridge", "up"])?;
            tool(&namespace, &["ip", "link", "set", "lo", "up"])?;
            tool(&namespace, &["ip", "address", "add", &format!("{address}/16"), "dev", "eth0"])?;
            tool(&namespace, &["ip", "link", "set", "eth0", "up"])?;
            for rule in RULES.lines() {
                tool(&namespace, &["nft", rule])?;
            }
            let known = all.insert((*name).to_owned(), Member { namespace, address: *address });
            ensure!(known.is_none(), "{name} is named twice");
        }
        Ok(Self { spawner, members: all, _switch: switch })
    }

    /// A member.
    ///
    /// # Errors
    /// When there is none of that name.
    pub fn member(&self, name: &str) -> anyhow::Result<&Member> {
        self.members.get(name).with_context(|| format!("no member {name}"))
    }

    /// Names of all members.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.members.keys().map(String::as_str)
    }

    fn change(&self, verb: &str, from: &str, to: &str) -> anyhow::Result<()> {
        let (from, to) = (self.member(from)?, self.member(to)?);
        let rule = format!("{verb} element inet cuts from {{ {} }}", from.address);
        let output = self.spawner.output(Some(&to.namespace), &["nft", &rule])?;
        ensure!(output.status.success(), "nft {rule}: {}", String::from_utf8_lossy(&output.stderr).trim());
        Ok(())
    }

    /// Drops every packet from `from` to `to`; the other way stays open. Cutting what is cut changes nothing.
    ///
    /// # Errors
    /// When a member is unknown or the rule is refused.
    pub fn cut_one_way(&self, from: &str, to: &str) -> anyhow::Result<()> {
        self.change("add", from, to)
    }

    /// Drops every packet between the two.
    ///
    /// # Errors
    /// As [`Self::cut_one_way`].
    pub fn cut(&self, one: &str, other: &str) -> anyhow::Result<()> {
        self.cut_one_way(one, other)?;
        self.cut_one_way(other, one)
    }

    /// Cuts a member off from each of `others`.
    ///
    /// # Errors
    /// As [`Self::cut_one_way`].
    pub fn isolate<'a>(&self, one: &str, others: impl IntoIterator<Item = &'a str>) -> anyhow::Result<()> {
        others.into_iter().filter(|other| *other != one).try_for_each(|other| self.cut(one, other))
    }

    /// Heals every cut of every member.
    ///
    /// # Errors
    /// When a rule is refused.
    pub fn heal(&self) -> anyhow::Result<()> {
        for (name, member) in &self.members {
            let output = self
                .spawner
                .output(Some(&member.namespace), &["nft", "flush", "set", "inet", "cuts", "from"])?;
            ensure!(output.status.success(), "{name}: {}", String::from_utf8_lossy(&output.stderr).trim());
        }
        Ok(())
    }

    /// Starts a process as a member.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn spawn(&self, name: &str, command: Command) -> anyhow::Result<std::process::Child> {
        self.spawner.spawn(&self.member(name)?.namespace, command)
    }
}
