//! What happened when: a readable log of a run, and its counts.

use std::{
    collections::BTreeMap,
    fs::File,
    io::Write,
    path::Path,
    sync::{Mutex, PoisonError},
};

use anyhow::Context;
use holdfast_tests::clock::boottime_ns;

/// The log. Every line begins with seconds since the start of the run.
#[derive(Debug)]
pub struct Chronicle {
    started_ns: u64,
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    file: File,
    faults: BTreeMap<&'static str, u64>,
    errors: BTreeMap<String, u64>,
    violations: Vec<String>,
}

impl Chronicle {
    /// Opens `events.log` in a folder.
    ///
    /// # Errors
    /// When the file cannot be made.
    pub fn open(folder: &Path) -> anyhow::Result<Self> {
        let path = folder.join("events.log");
        let file = File::create(&path).with_context(|| path.display().to_string())?;
        let (faults, errors, violations) = (BTreeMap::new(), BTreeMap::new(), Vec::new());
        Ok(Self { started_ns: boottime_ns(), inner: Mutex::new(Inner { file, faults, errors, violations }) })
    }

    /// Seconds of the run at a moment of the boot-time clock.
    pub fn seconds(&self, at_ns: u64) -> f64 {
        at_ns.saturating_sub(self.started_ns) as f64 / 1e9
    }

    fn with<T>(&self, work: impl FnOnce(&mut Inner) -> T) -> T {
        work(&mut self.inner.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// A line.
    pub fn say(&self, text: &str) {
        let at = self.seconds(boottime_ns());
        self.with(|inner| {
            // The log is for reading afterwards; the verdict does not depend on it.
            let _ = writeln!(inner.file, "{at:10.3}  {text}");
        });
    }

    /// A fault was injected.
    pub fn fault(&self, kind: &'static str, detail: &str) {
        self.with(|inner| *inner.faults.entry(kind).or_default() += 1);
        self.say(&format!("fault  {kind}: {detail}"));
    }

    /// A host saw an error that no change of path hid.
    pub fn host_error(&self, what: &str, detail: &str) {
        self.with(|inner| *inner.errors.entry(what.to_owned()).or_default() += 1);
        self.say(&format!("HOST ERROR  {what}: {detail}"));
    }

    /// An oracle found a violation.
    pub fn violation(&self, text: String) {
        self.say(&format!("VIOLATION  {text}"));
        self.with(|inner| inner.violations.push(text));
    }

    /// Faults by kind, errors by kind, violations.
    pub fn counts(&self) -> (BTreeMap<&'static str, u64>, BTreeMap<String, u64>, Vec<String>) {
        self.with(|inner| (inner.faults.clone(), inner.errors.clone(), inner.violations.clone()))
    }
}
