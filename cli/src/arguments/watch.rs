//! Grammar of `holdfast watch`.

use clap::ValueEnum;

#[derive(clap::Args)]
pub(crate) struct Watch {
    /// Of what.
    #[arg(value_enum)]
    pub(crate) noun: Watched,
    /// Only what has changed since this revision, as an earlier watch has shown it (0: everything, then every change).
    #[arg(long, default_value_t = 0, value_name = "REVISION")]
    pub(crate) after: u64,
    /// Only mappings of this host.
    #[arg(long, value_name = "NAME")]
    pub(crate) host: Option<String>,
    /// Only mappings or reservations of this volume.
    #[arg(long, value_name = "NAME")]
    pub(crate) volume: Option<String>,
}

/// Kinds of resources that can be watched.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Watched {
    Nodes,
    Volumes,
    Hosts,
    HostGroups,
    Mappings,
    Reservations,
    Jobs,
    Events,
    Audit,
}
