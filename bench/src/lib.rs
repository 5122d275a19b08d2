//! Measurements of Holdfast beside other targets and the bare network, on one machine, in one run.
//!
//! | Looking for | Module |
//! |---|---|
//! | what is measured: sizes, depths, sessions, mixes | [`case`] |
//! | the lean client: raw iSCSI PDUs, many in one write, one thread | [`lean`] |
//! | the client on libiscsi | [`libiscsi`] |
//! | the bare TCP exchange: the floor | [`floor`] |
//! | starting and stopping the targets | [`target`] |
//! | processor time, context switches, system calls of a process | [`cost`] |
//! | percentiles | [`histogram`] |
//! | the control plane | [`control`] |
//! | how long hosts stand still at a failover | [`failover`] |
//! | what copies cost | [`replication`] |
//! | rounds, medians, tables, plots | [`run`], [`report`], [`plot`] |
//!
//! Invariants: targets take turns within a round, so that what disturbs the machine disturbs all alike; a figure is the
//! median over rounds; a command that did not end with GOOD fails the run; the same client, sizes and addresses are used
//! against every target; nothing here asserts a time.

pub mod case;
pub mod control;
pub mod cost;
pub mod failover;
pub mod floor;
pub mod histogram;
pub mod lean;
pub mod libiscsi;
pub mod plot;
pub mod replication;
pub mod report;
pub mod run;
pub mod target;
