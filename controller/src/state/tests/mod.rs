//! Tests of the state machine: rules by name, scenarios as text, and random commands against the invariants.

mod build;
mod random;
mod rules;
mod scenario;
