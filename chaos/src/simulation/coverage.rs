//! What a long run must have met: every kind of fault, and every branch that is rarely taken.
//!
//! A simulation that never goes somewhere proves nothing of it.

/// Kinds of faults.
pub const FAULTS: &[&str] = &[
    "a node crashes",
    "a node is cut off and what it has sent is late",
    "a node is cut off from controllers",
    "a node is not heard and hears late",
    "a node is stopped for a while",
    "a node loses power",
    "a node's session with the leader breaks",
    "a node's threads are slow and its sessions break",
    "a replica is added",
    "a replica is given up",
    "a replica is moved",
    "a session of a host ends",
    "a volume grows",
    "all nodes lose power",
    "an owner is asked to hand over",
    "one direction between a node and a controller is cut",
    "one direction between two nodes is cut",
    "the leader changes",
    "two nodes are cut apart",
    "what controllers are told is late",
    "what controllers say is late",
    "what one node tells another is late",
];

/// Branches that are marked where they are taken.
pub const BRANCHES: &[&str] = &[
    "a command was forwarded",
    "a deposed leader was not confirmed",
    "a forwarded command was not answered in time",
    "a host gave a command up",
    "a host was told BUSY",
    "a node dropped its sessions with its lease",
    "a node ended its session",
    "a port held a command",
    "a renewal was not granted",
    "a replica has caught up",
    "a replica has grown",
    "a replica refused an old epoch",
    "a replica was removed",
    "a request of unknown outcome was asked for again",
    "a session resumed",
    "a session took the place of another one",
    "a thread was busy when a view came",
    "an answer waited for the lease of its owner",
    "an answer waited for the lease of its port",
    "an entry died with its leader",
    "an entry outlived its leader",
    "an owner went on without a replica",
    "every copy of a volume had lost power",
];

/// So many seeds meet all of them.
pub const SEEDS_MIN: u64 = 2_000;
