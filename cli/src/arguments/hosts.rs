//! The grammar of hosts, host groups and mappings.

use std::path::PathBuf;

use clap::{ArgGroup, Args, Subcommand};

#[derive(Subcommand)]
pub(crate) enum Host {
    /// Create a host.
    Create(HostCreate),
    /// List the hosts.
    List {
        /// Only the host that this initiator belongs to.
        #[arg(long, value_name = "NAME", conflicts_with = "watch")]
        initiator: Option<String>,
        /// Go on printing changes, until interrupted.
        #[arg(long, short)]
        watch: bool,
    },
    /// Show one with what is mapped to it.
    Show {
        /// The host.
        name: String,
    },
    /// Add or remove initiators, change CHAP. Sessions of removed initiators end; other CHAP counts from the next login on.
    Update(HostUpdate),
    /// Show, allow or forbid wildcards among initiators ("iqn.1991-05.com.microsoft:*").
    Wildcards {
        /// "allow" or "forbid"; without it, what is so now.
        #[arg(value_parser = ["allow", "forbid"])]
        choice: Option<String>,
    },
    /// Delete it (it must have no mappings).
    Delete {
        /// The host.
        name: String,
    },
}

/// CHAP of a host.
#[derive(Args)]
pub(crate) struct Chap {
    /// Ask for CHAP with this user name.
    #[arg(long, requires = "chap_secret_file")]
    pub(crate) chap_user: Option<String>,
    /// File with the CHAP secret, 12 to 64 bytes (a line end at its end is ignored).
    #[arg(long, requires = "chap_user", value_name = "FILE")]
    pub(crate) chap_secret_file: Option<PathBuf>,
    /// Mutual CHAP: the user name that the target answers with.
    #[arg(long, requires_all = ["chap_user", "chap_target_secret_file"])]
    pub(crate) chap_target_user: Option<String>,
    /// File with the target's secret; must differ from the host's.
    #[arg(long, requires = "chap_target_user", value_name = "FILE")]
    pub(crate) chap_target_secret_file: Option<PathBuf>,
}

#[derive(Args)]
pub(crate) struct HostCreate {
    /// Name: letters, digits, '.', '_', '-'.
    pub(crate) name: String,
    /// Its initiators: iSCSI names (iqn., eui., naa.), WWPNs ("50:01:..."), SRP ports ("srp:...") or GUIDs ("srp-guid:...").
    #[arg(long, required = true, num_args = 1.., value_name = "NAME")]
    pub(crate) initiator: Vec<String>,
    #[command(flatten)]
    pub(crate) chap: Chap,
}

#[derive(Args)]
#[command(group(ArgGroup::new("change").required(true).multiple(true)
    .args(["add_initiator", "remove_initiator", "no_chap", "chap_user"])))]
pub(crate) struct HostUpdate {
    /// The host.
    pub(crate) name: String,
    /// Initiators to add.
    #[arg(long, num_args = 1.., value_name = "NAME")]
    pub(crate) add_initiator: Vec<String>,
    /// Initiators to remove.
    #[arg(long, num_args = 1.., value_name = "NAME")]
    pub(crate) remove_initiator: Vec<String>,
    /// Ask for no CHAP any more.
    #[arg(long, conflicts_with = "chap_user")]
    pub(crate) no_chap: bool,
    #[command(flatten)]
    pub(crate) chap: Chap,
}

#[derive(Subcommand)]
pub(crate) enum HostGroup {
    /// Create a group.
    Create {
        /// Name: letters, digits, '.', '_', '-'.
        name: String,
        /// Its hosts.
        #[arg(long, num_args = 1.., value_name = "HOST")]
        host: Vec<String>,
    },
    /// List the groups.
    List,
    /// Show one with what is mapped to it.
    Show {
        /// The group.
        name: String,
    },
    /// Add or remove hosts; the group's volumes come and go with them.
    #[command(group(ArgGroup::new("change").required(true).multiple(true).args(["add_host", "remove_host"])))]
    Update {
        /// The group.
        name: String,
        /// Hosts to add.
        #[arg(long, num_args = 1.., value_name = "HOST")]
        add_host: Vec<String>,
        /// Hosts to remove.
        #[arg(long, num_args = 1.., value_name = "HOST")]
        remove_host: Vec<String>,
    },
    /// Delete it (it must have no mappings).
    Delete {
        /// The group.
        name: String,
    },
}

/// A host, or a group.
#[derive(Args)]
#[command(group(ArgGroup::new("target").required(true).args(["host", "group"])))]
pub(crate) struct MapTarget {
    /// The host.
    pub(crate) host: Option<String>,
    /// A host group instead of a host.
    #[arg(long)]
    pub(crate) group: Option<String>,
}

#[derive(Subcommand)]
pub(crate) enum Map {
    /// Let a host, or each host of a group, see a volume.
    Create {
        /// The volume.
        volume: String,
        #[command(flatten)]
        target: MapTarget,
        /// LUN, 0 to 16383 (default: the lowest free one).
        #[arg(long, value_parser = clap::value_parser!(u32).range(0..=16383))]
        lun: Option<u32>,
        /// Writes are refused with WRITE PROTECTED.
        #[arg(long)]
        read_only: bool,
    },
    /// List what hosts see.
    List {
        /// Only of this volume.
        #[arg(long)]
        volume: Option<String>,
        /// Only of this host.
        #[arg(long)]
        host: Option<String>,
    },
    /// Take a volume away from a host, or from a group.
    Delete {
        /// The volume.
        volume: String,
        #[command(flatten)]
        target: MapTarget,
    },
    /// Make many mappings what a file says, all or none (see `map export` for its form; "remove:" takes the same entries).
    Apply(MapApply),
    /// Print all mappings as a file for `map apply`.
    Export {
        /// Only of this host and the groups that it is in.
        #[arg(long)]
        host: Option<String>,
    },
}

#[derive(Args)]
pub(crate) struct MapApply {
    /// YAML or JSON; "-" = standard input.
    #[arg(long, short, value_name = "FILE")]
    pub(crate) file: PathBuf,
    /// Take away what the file does not name from the hosts and groups that it names.
    #[arg(long)]
    pub(crate) prune: bool,
    /// Only show what would change.
    #[arg(long)]
    pub(crate) dry_run: bool,
}
