//! Tests of the state machine: rules by name, scenarios as text, and random commands against the invariants.

mod build;
mod clear;
mod configuration;
mod hosts;
mod job;
mod lu_state;
mod making;
mod pools;
mod power_loss;
mod random;
mod removal;
mod replicas;
mod requests;
mod restoring;
mod rules;
mod scenario;
mod transition;
