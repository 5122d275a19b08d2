//! One thing to measure: how large, how deep, how many sessions, reads or writes, in which order.

use serde::Serialize;

/// Reads, writes or both.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mix {
    /// Reads only.
    Read,
    /// Writes only.
    Write,
    /// 70 % reads, 30 % writes.
    Mixed,
}

/// The order of addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Pattern {
    /// Anywhere in the volume.
    Random,
    /// One after the other, each session in its own part.
    Sequential,
}

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct Case {
    /// Bytes of one command, a multiple of 512.
    pub size: u32,
    /// Commands in flight per session.
    pub depth: u32,
    /// Sessions.
    pub sessions: u32,
    /// What they do.
    pub mix: Mix,
    /// Where.
    pub pattern: Pattern,
}

impl Case {
    /// `4k random read, 1 x 32`.
    pub fn name(&self) -> String {
        let pattern = match self.pattern {
            Pattern::Random => "random",
            Pattern::Sequential => "sequential",
        };
        let mix = match self.mix {
            Mix::Read => "read",
            Mix::Write => "write",
            Mix::Mixed => "mixed 70/30",
        };
        format!("{} {pattern} {mix}, {} x {}", size_name(self.size), self.sessions, self.depth)
    }
}

/// `512`, `4k`, `1m`.
pub fn size_name(bytes: u32) -> String {
    match bytes {
        n if n % (1 << 20) == 0 => format!("{}m", n >> 20),
        n if n % 1024 == 0 => format!("{}k", n >> 10),
        n => n.to_string(),
    }
}

/// Which cases a run takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Set {
    /// The ones that README and docs quote.
    Headline,
    /// Every combination.
    Full,
    /// A few of each kind, for a run that only shows that all of it works.
    Smoke,
}

impl Set {
    /// Its cases.
    pub fn cases(self) -> Vec<Case> {
        use {Mix::*, Pattern::*};
        let case = |size, depth, sessions, mix, pattern| Case { size, depth, sessions, mix, pattern };
        match self {
            Set::Headline => vec![
                case(4096, 1, 1, Read, Random),
                case(4096, 1, 1, Write, Random),
                case(4096, 32, 1, Read, Random),
                case(4096, 32, 1, Write, Random),
                case(4096, 32, 1, Mixed, Random),
                case(512, 32, 1, Read, Random),
                case(65536, 1, 1, Read, Sequential),
                case(65536, 1, 1, Write, Sequential),
                case(65536, 8, 1, Read, Sequential),
                case(65536, 8, 1, Write, Sequential),
                case(1 << 20, 1, 1, Read, Sequential),
                case(1 << 20, 1, 1, Write, Sequential),
                case(1 << 20, 8, 1, Read, Sequential),
                case(1 << 20, 8, 1, Write, Sequential),
                case(4096, 8, 4, Read, Random),
                case(4096, 8, 4, Write, Random),
                case(4096, 8, 16, Read, Random),
                case(4096, 8, 16, Write, Random),
                case(4096, 1, 16, Read, Random),
                case(4096, 1, 16, Write, Random),
            ],
            Set::Full => {
                let mut all = Vec::new();
                for size in [512, 4096, 65536, 1 << 20] {
                    for sessions in [1, 4, 16] {
                        for depth in [1, 8, 32] {
                            for mix in [Read, Write, Mixed] {
                                for pattern in [Random, Sequential] {
                                    all.push(case(size, depth, sessions, mix, pattern));
                                }
                            }
                        }
                    }
                }
                all
            }
            Set::Smoke => vec![
                case(512, 1, 1, Read, Random),
                case(4096, 32, 1, Mixed, Random),
                case(65536, 8, 4, Write, Sequential),
                case(1 << 20, 8, 1, Read, Sequential),
                case(1 << 20, 8, 1, Write, Random),
                case(4096, 8, 16, Read, Random),
            ],
        }
    }
}
