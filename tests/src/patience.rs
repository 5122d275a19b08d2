//! Waiting for a condition, with an end.

use std::{
    thread,
    time::{Duration, Instant},
};

use anyhow::Context;

/// Longest wait for any condition of a test. A machine under load is slow; a hang is not a pass.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// A condition that is asked for over and over costs the machine something: this often is enough.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// Waits until `condition` gives a value, for `limit` at most. `more`: what else to say when it does not.
///
/// # Errors
/// The condition's last word, when patience ends.
pub fn wait_for<T>(
    what: &str,
    limit: Duration,
    mut condition: impl FnMut() -> anyhow::Result<T>,
    more: impl FnOnce() -> String,
) -> anyhow::Result<T> {
    let begun = Instant::now();
    loop {
        match condition() {
            Ok(value) => return Ok(value),
            Err(error) if begun.elapsed() > limit => {
                return Err(error).with_context(|| format!("waited for {what}; {}", more()));
            }
            Err(_) => thread::sleep(LOOK_EVERY),
        }
    }
}
