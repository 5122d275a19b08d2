//! A [`NetCluster`] as its administrator and its hosts use it.
//!
//! Invariant: nothing here looks into a process; everything goes over the network.

use std::{
    net::TcpStream,
    process::{Command, Output, Stdio},
    time::Duration,
};

use anyhow::{Context as _, ensure};
use serde_json::Value;

use super::NetCluster;
use crate::{
    cluster::{INITIATOR_A, INITIATOR_B, binaries},
    initiator::Initiator,
    patience,
    patience::PATIENCE,
};

impl NetCluster {
    /// `holdfast ...` as the administrator; its exit status is the caller's to judge.
    ///
    /// # Errors
    /// When the program is not there.
    pub fn try_cli(&self, arguments: &[&str]) -> anyhow::Result<Output> {
        let holdfast = binaries().join("holdfast").display().to_string();
        let (endpoints, tls) = (self.endpoints()?, self.path(&["tls", "admin"]));
        let mut command = Command::new(holdfast);
        for variable in ["HOLDFAST_DIR", "HOLDFAST_ENDPOINTS", "HOLDFAST_TLS"] {
            command.env_remove(variable);
        }
        command.args(["--endpoints", &endpoints, "--tls", &tls]).args(arguments);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        Ok(self.network.spawn("admin", command)?.wait_with_output()?)
    }

    /// The same, where only success will do.
    ///
    /// # Errors
    /// What the command said.
    pub fn cli(&self, arguments: &[&str]) -> anyhow::Result<String> {
        let output = self.try_cli(arguments)?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "holdfast {}: {said}", arguments.join(" "));
        Ok(String::from_utf8(output.stdout)?)
    }

    /// The same as JSON.
    ///
    /// # Errors
    /// What the command said.
    pub fn json(&self, arguments: &[&str]) -> anyhow::Result<Value> {
        Ok(serde_json::from_str(&self.cli(&[arguments, &["-o", "json"]].concat())?)?)
    }

    /// Name of the controller that leads.
    ///
    /// # Errors
    /// When none is known.
    pub fn leader(&self) -> anyhow::Result<String> {
        let cluster = self.json(&["cluster", "show"])?;
        let members = cluster["members"].as_array().context("members")?;
        let leader =
            members.iter().find(|member| member["id"] == cluster["leader_id"]).context("no leader")?;
        Ok(leader["name"].as_str().context("name")?.to_owned())
    }

    /// Name of the node that owns a volume.
    ///
    /// # Errors
    /// When the volume or its owner is unknown.
    pub fn owner(&self, volume: &str) -> anyhow::Result<String> {
        let shown = self.json(&["volume", "show", volume])?;
        let owner = shown["status"]["owner"].as_str();
        Ok(owner.with_context(|| format!("no owner in {shown}"))?.to_owned())
    }

    /// Waits until every process that runs serves.
    ///
    /// # Errors
    /// The last reason why not.
    pub fn wait_until_serving(&mut self) -> anyhow::Result<()> {
        // A process that has ended never serves: no reason to wait.
        let ended = |cluster: &mut Self| {
            let fallen = cluster.fallen();
            ensure!(fallen.is_empty(), "ended by themselves: {fallen:?}; logs: {}", cluster.tails());
            Ok(())
        };
        let mut failed = None;
        let served = patience::wait_for(
            "all to serve",
            PATIENCE,
            || {
                failed = ended(self).err();
                if failed.is_some() { Ok(()) } else { self.serves() }
            },
            String::new,
        );
        match failed {
            Some(error) => Err(error),
            None => served.with_context(|| format!("not up; logs: {}", self.tails())),
        }
    }

    pub(super) fn serves(&self) -> anyhow::Result<()> {
        let shown = self.json(&["node", "list"])?;
        let nodes = shown["nodes"].as_array().context("nodes")?;
        for name in self.datanodes().iter().filter(|name| self.runs(name)) {
            let status =
                &nodes.iter().find(|node| node["name"] == **name).context("not known yet")?["status"];
            let left = &status["lease_ms_left"];
            let leased =
                left.as_u64().is_some_and(|left| left > 0) || left.as_str().is_some_and(|left| left != "0");
            ensure!(status["live"] == true && leased, "{name} holds no lease: {status}");
            let portal = self.portal(name)?;
            let admin = &self.network.member("admin")?.namespace;
            self.network
                .spawner
                .inside(admin, move || TcpStream::connect_timeout(&portal, Duration::from_secs(2)))?
                .with_context(|| format!("portal of {name}"))?;
        }
        Ok(())
    }

    /// Waits until `condition` gives a value.
    ///
    /// # Errors
    /// The condition's last word, when patience ends.
    pub fn wait_for<T>(&self, what: &str, condition: impl FnMut() -> anyhow::Result<T>) -> anyhow::Result<T> {
        patience::wait_for(what, PATIENCE, condition, || format!("logs: {}", self.tails()))
    }

    /// A volume mapped as LUN `lun` to the hosts A and B, which are made when they are not there; `more` goes to `volume create`.
    ///
    /// # Errors
    /// What a command said.
    pub fn volume_for_both(&self, name: &str, lun: u16, more: &[&str]) -> anyhow::Result<()> {
        let hosts = self.json(&["host", "list"])?;
        for (host, initiator) in [("a", INITIATOR_A), ("b", INITIATOR_B)] {
            let known =
                hosts["hosts"].as_array().is_some_and(|all| all.iter().any(|known| known["name"] == host));
            if !known {
                self.cli(&["host", "create", host, "--initiator", initiator])?;
            }
        }
        self.cli(&[&["volume", "create", name], more].concat())?;
        for host in ["a", "b"] {
            self.cli(&["map", "create", name, host, "--lun", &lun.to_string()])?;
        }
        Ok(())
    }

    /// Logs an initiator of machine `host` in through `node`.
    ///
    /// # Errors
    /// The login's failure as libiscsi words it.
    pub fn login(&self, host: &str, node: &str, name: &str, isid: u16) -> anyhow::Result<Initiator> {
        let portal = self.portal(node)?.to_string();
        Initiator::login_with(
            |command| self.network.spawn(host, command),
            &portal,
            &self.target,
            name,
            isid,
            None,
        )
    }

    /// A TCP connection from machine `host` to a node's portal.
    ///
    /// # Errors
    /// When there is none within two seconds.
    pub fn connect(&self, host: &str, node: &str) -> anyhow::Result<TcpStream> {
        let (portal, host) = (self.portal(node)?, &self.network.member(host)?.namespace);
        Ok(self
            .network
            .spawner
            .inside(host, move || TcpStream::connect_timeout(&portal, Duration::from_secs(2)))??)
    }
}
