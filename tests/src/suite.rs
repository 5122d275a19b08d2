//! libiscsi's conformance suite (`iscsi-test-cu`) against any target: runs all of it, reads what it prints, counts.
//!
//! Invariants: every test that the suite lists ends with a verdict, also when the suite or its target hangs or dies in the
//! middle; a failure counts as the suite's own only if `known-failures.txt` says why, for every target alike.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    io::Read,
    path::Path,
    process::{Command, Stdio},
    sync::mpsc::{self, RecvTimeoutError},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, ensure};

use crate::cluster::{INITIATOR_A, INITIATOR_B};

/// A suite that prints nothing for so long hangs: its longest pause of its own is a few seconds.
const SILENCE_MAX: Duration = Duration::from_secs(20);
/// The same for a target that has hung before.
const SILENCE_AGAIN_MAX: Duration = Duration::from_secs(6);

/// Tests of one family in which a target may fall silent; after that the others of the family are taken to fail alike.
const SILENT_TESTS_MAX: usize = 2;

/// How long a target that falls silent is run against, with all restarts.
const SILENT_TARGET_MAX: Duration = Duration::from_secs(15 * 60);

/// What became of one test.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// The target did what the suite expects.
    Passed,
    /// It did not.
    Failed,
    /// The suite did not look, or looked wrongly; the outcome says why.
    Skipped,
}

/// One test's verdict and all that it printed.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// What became of it.
    pub verdict: Verdict,
    /// What it printed.
    pub detail: String,
    /// Why it was skipped or failed, in one line.
    pub reason: String,
}

impl Outcome {
    fn no_answer(words: &str) -> Self {
        Self { verdict: Verdict::Failed, detail: String::new(), reason: words.to_owned() }
    }
}

/// Outcomes by "Family.Test".
pub type Outcomes = BTreeMap<String, Outcome>;

/// Names of all tests, "Family.Test".
///
/// # Errors
/// When the suite is not installed.
pub fn all_tests() -> anyhow::Result<Vec<String>> {
    let list = Command::new("iscsi-test-cu").arg("--list").output().context(MISSING)?;
    let text = String::from_utf8_lossy(&list.stdout).into_owned();
    let names: Vec<_> = text
        .lines()
        .filter_map(|line| line.trim().strip_prefix("ALL."))
        .filter(|name| name.contains('.'))
        .map(str::to_owned)
        .collect();
    ensure!(names.len() > 100, "the suite lists {} tests only", names.len());
    Ok(names)
}

/// What is said of a test in which the target fell silent.
const NO_ANSWER: &str = "no answer";

const MISSING: &str = "iscsi-test-cu (package libiscsi-bin)";

/// How tests follow each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// As the suite runs them: what one leaves behind the next one finds.
    Together,
    /// The target is made ready anew for each.
    Alone,
}

/// Runs `tests` ("Family.Test") through `urls`: one, or two for the tests that want two paths. After a hang or an early
/// end `again` makes the target ready, and the tests that were not reached are run on their own.
///
/// # Errors
/// When the suite is not installed, or what `again` said.
pub fn run(
    tests: &[String],
    urls: &[String],
    order: Order,
    mut again: impl FnMut() -> anyhow::Result<()>,
) -> anyhow::Result<Outcomes> {
    let mut outcomes = Outcomes::new();
    let family = |name: &str| name.split('.').next().unwrap_or_default().to_owned();
    let mut silences = BTreeMap::<String, usize>::new();
    let begun = Instant::now();
    loop {
        let missing: Vec<&String> = tests.iter().filter(|name| !outcomes.contains_key(*name)).collect();
        let Some(first) = missing.first() else { return Ok(outcomes) };
        let silent = silences.get(&family(first)).is_some_and(|count| *count >= SILENT_TESTS_MAX);
        if silent || (!silences.is_empty() && begun.elapsed() > SILENT_TARGET_MAX) {
            let words = if silent {
                "no answer to others of this family"
            } else {
                "no answer to others, and no time left"
            };
            outcomes.insert((*first).clone(), Outcome::no_answer(words));
            continue;
        }
        // All at once; after a hang the rest family by family, the family that hung test by test.
        let alone = order == Order::Alone;
        let expression = if outcomes.is_empty() && missing.len() > 1 && !alone {
            "ALL".to_owned()
        } else if alone || outcomes.keys().any(|done| family(done) == family(first)) || tests.len() == 1 {
            format!("ALL.{first}")
        } else {
            format!("ALL.{}", family(first))
        };
        let wanted: BTreeSet<&String> = tests.iter().collect();
        let patient = silences.is_empty() && (alone || outcomes.is_empty());
        let silence_max = if patient { SILENCE_MAX } else { SILENCE_AGAIN_MAX };
        let Ran { text, whole, hung } = run_once(&expression, urls, silence_max)?;
        let mut found = outcomes_of(&text);
        found.retain(|name, _| wanted.contains(name));
        if hung {
            let last = found.keys().find(|name| found[*name].detail.contains(NO_ANSWER));
            *silences.entry(family(last.unwrap_or(first))).or_default() += 1;
        }
        let progress = found.keys().any(|name| !outcomes.contains_key(name));
        for (name, outcome) in found {
            outcomes.entry(name).or_insert(outcome);
        }
        if !progress {
            let reason = if hung { NO_ANSWER } else { "the suite ended before it came to this test" };
            let outcome = Outcome { verdict: Verdict::Failed, detail: text, reason: reason.to_owned() };
            outcomes.insert((*first).clone(), outcome);
        }
        if !whole || alone {
            again()?;
        }
    }
}

/// One run of the suite.
struct Ran {
    /// What it printed.
    text: String,
    /// It came to its end.
    whole: bool,
    /// It was ended, because the target did not answer any more.
    hung: bool,
}

fn run_once(expression: &str, urls: &[String], silence_max: Duration) -> anyhow::Result<Ran> {
    // Unbuffered, so that a hang shows in which test it is.
    let mut child = Command::new("stdbuf")
        .args(["-o0", "iscsi-test-cu", "--initiator-name", INITIATOR_A, "--initiator-name-2", INITIATOR_B])
        .args(["--dataloss", "--allow-sanitize", "--Verbose-scsi", "--test", expression])
        .args(urls)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .context(MISSING)?;
    let mut stdout = child.stdout.take().context("no standard output")?;
    let (sender, pieces) = mpsc::channel();
    let reader = thread::spawn(move || {
        let mut buffer = [0; 4096];
        while let Ok(n @ 1..) = stdout.read(&mut buffer) {
            if sender.send(buffer[..n].to_vec()).is_err() {
                return;
            }
        }
    });
    let mut text = Vec::new();
    let hung = loop {
        match pieces.recv_timeout(silence_max) {
            Ok(piece) => text.extend_from_slice(&piece),
            Err(RecvTimeoutError::Timeout) => break true,
            Err(RecvTimeoutError::Disconnected) => break false,
        }
    };
    if hung {
        child.kill()?;
        text.extend_from_slice(format!("\n    [FAILED] {NO_ANSWER}\n").as_bytes());
    }
    child.wait()?;
    let _ = reader.join();
    let text = String::from_utf8_lossy(&text).into_owned();
    let whole = !hung && text.contains("Run Summary");
    Ok(Ran { text, whole, hung })
}

/// Reads what the suite prints: CUnit's verdict begins a line or follows the test's name. A test without one (the suite
/// ended in it) failed, and the suite calls a skipped test passed.
pub fn outcomes_of(text: &str) -> Outcomes {
    let mut outcomes = Outcomes::new();
    let (mut suite, mut current) = (String::new(), None::<String>);
    for line in text.lines() {
        let mut rest = line.trim_start();
        if let Some(name) = line.strip_prefix("Suite: ") {
            (suite, current) = (name.trim().to_owned(), None);
        } else if line.starts_with("Run Summary") {
            current = None;
        } else if let Some((name, behind)) = rest.strip_prefix("Test: ").and_then(|it| it.split_once(" ..."))
        {
            let name = format!("{suite}.{name}");
            let outcome = Outcome { verdict: Verdict::Failed, detail: String::new(), reason: String::new() };
            outcomes.insert(name.clone(), outcome);
            current = Some(name);
            rest = behind.trim_start();
        }
        let Some(outcome) = current.as_ref().and_then(|name| outcomes.get_mut(name)) else { continue };
        outcome.detail.push_str(line);
        outcome.detail.push('\n');
        if rest.starts_with("passed") {
            let skipped = outcome.detail.contains("[SKIPPED]");
            outcome.verdict = if skipped { Verdict::Skipped } else { Verdict::Passed };
        }
    }
    for outcome in outcomes.values_mut() {
        let mark = if outcome.verdict == Verdict::Failed { "[FAILED] " } else { "[SKIPPED] " };
        let said = |mark| outcome.detail.lines().find_map(|line| line.split_once(mark)).map(|it| it.1);
        if outcome.verdict != Verdict::Passed {
            outcome.reason = said(mark).unwrap_or("no reason given").trim().to_owned();
        }
    }
    outcomes
}

/// Tests that fail by a fault of the suite's own, with the reason; see the head of `known-failures.txt`.
#[derive(Debug)]
pub struct Faults(BTreeMap<String, String>);

impl Faults {
    /// Reads the list.
    ///
    /// # Errors
    /// When a line has no reason.
    pub fn read() -> anyhow::Result<Self> {
        let text = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("known-failures.txt"))?;
        let mut faults = BTreeMap::<String, String>::new();
        for line in text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')) {
            let (name, reason) = line.split_once(char::is_whitespace).context("a fault without a reason")?;
            let whole = faults.entry(name.to_owned()).or_default();
            *whole = format!("{whole} {}", reason.trim()).trim().to_owned();
        }
        Ok(Self(faults))
    }

    /// Why this test fails with blocks of this size by a fault of the suite's own: the line's name and its reason.
    pub fn of(&self, test: &str, block_size: u32) -> Option<(&str, &str)> {
        let sized = format!("{test}@{block_size}");
        let found = self.0.get_key_value(&sized).or_else(|| self.0.get_key_value(test))?;
        Some((found.0, found.1))
    }

    /// Turns failures by the suite's own fault into skipped tests with that reason; gives the lines that were used.
    pub fn excuse(&self, outcomes: &mut Outcomes, block_size: u32) -> BTreeSet<String> {
        let mut used = BTreeSet::new();
        for (name, outcome) in outcomes.iter_mut().filter(|(_, it)| it.verdict == Verdict::Failed) {
            if let Some((line, reason)) = self.of(name, block_size) {
                used.insert(line.to_owned());
                outcome.verdict = Verdict::Skipped;
                outcome.reason = format!("fault of the suite: {reason}");
            }
        }
        used
    }

    /// The lines of the list.
    pub fn lines(&self) -> impl Iterator<Item = &String> {
        self.0.keys()
    }
}

/// How many tests passed, failed and were skipped.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Counts {
    /// Passed.
    pub passed: usize,
    /// Failed.
    pub failed: usize,
    /// Skipped.
    pub skipped: usize,
}

impl Counts {
    /// All of them.
    pub fn all(self) -> usize {
        self.passed + self.failed + self.skipped
    }

    /// Those in which the suite looked.
    pub fn run(self) -> usize {
        self.passed + self.failed
    }

    fn add(&mut self, verdict: Verdict) {
        match verdict {
            Verdict::Passed => self.passed += 1,
            Verdict::Failed => self.failed += 1,
            Verdict::Skipped => self.skipped += 1,
        }
    }
}

/// Counts by family.
pub fn families(outcomes: &Outcomes) -> BTreeMap<String, Counts> {
    let mut families = BTreeMap::<String, Counts>::new();
    for (name, outcome) in outcomes {
        let family = name.split('.').next().unwrap_or(name);
        families.entry(family.to_owned()).or_default().add(outcome.verdict);
    }
    families
}

/// Counts of all.
pub fn total(outcomes: &Outcomes) -> Counts {
    let mut counts = Counts::default();
    outcomes.values().for_each(|outcome| counts.add(outcome.verdict));
    counts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn verdicts_are_read_as_cunit_prints_them() {
        let text = "Suite: A\n  Test: One ...passed\n  Test: Two ...\n    [FAILED] RESERVE6: unit attention\n    passed    Send\n  \
                    Test: Three ...\n    [SKIPPED] not there\npassed\n  Test: Four ...\nFAILED\n    1. x.c:1\nSuite: B\n  \
                    Test: Five ...\n    Send WRITE10\n";
        let found = outcomes_of(text);
        let verdicts: Vec<_> = found.iter().map(|(name, it)| (name.as_str(), it.verdict)).collect();
        let expected = [
            ("A.Four", Verdict::Failed),
            ("A.One", Verdict::Passed),
            ("A.Three", Verdict::Skipped),
            ("A.Two", Verdict::Passed),
            ("B.Five", Verdict::Failed),
        ];
        assert_eq!(verdicts, expected);
        assert_eq!(found["A.Three"].reason, "not there");
        assert_eq!(total(&found), Counts { passed: 2, failed: 2, skipped: 1 });
    }

    #[test]
    fn a_fault_of_the_suite_excuses_its_own_block_size_only() {
        let faults = Faults(BTreeMap::from([("A.One@4096".to_owned(), "why".to_owned())]));
        let failed = || outcomes_of("Suite: A\n  Test: One ...\nFAILED\n");
        let mut small = failed();
        assert!(faults.excuse(&mut small, 512).is_empty());
        assert_eq!(total(&small).failed, 1);
        let mut large = failed();
        assert_eq!(faults.excuse(&mut large, 4096).len(), 1);
        assert_eq!((total(&large).failed, large["A.One"].reason.as_str()), (0, "fault of the suite: why"));
    }
}
