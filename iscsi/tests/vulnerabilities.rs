//! The classes of faults that iSCSI targets have had, each as a test that our target must pass: first what anyone can send
//! before login, then what a logged-in initiator can.

#![allow(unreachable_pub)]

mod support;

#[path = "vulnerabilities/before_login.rs"]
mod before_login;
#[path = "vulnerabilities/data_out.rs"]
mod data_out;
#[path = "vulnerabilities/pdus.rs"]
mod pdus;
