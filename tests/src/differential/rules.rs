//! Differences that have an explanation: `tests/differential-rules.txt`, read and matched.
//!
//! Invariants: a rule names the command, what is special about it and both answers; a rule that matches nothing is
//! stale, and the run says so.

use std::{collections::BTreeMap, fs, path::Path};

use anyhow::{Context, ensure};

/// What a difference looks like: four words to match, and how often it was seen.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Difference {
    /// "28", "9e/10".
    pub command: String,
    /// The case's twist.
    pub twist: String,
    /// Our answer: "good", "data" (both good, other data), "conflict", "2/3a/00", "status-28".
    pub ours: String,
    /// The peer's.
    pub theirs: String,
}

/// One line of the list.
#[derive(Debug)]
struct Rule {
    line: usize,
    fields: [Vec<String>; 4],
}

/// The list.
#[derive(Debug)]
pub struct Rules {
    rules: Vec<Rule>,
    used: BTreeMap<usize, usize>,
}

impl Rules {
    /// Reads the list.
    ///
    /// # Errors
    /// Names a line that is not a rule.
    pub fn read() -> anyhow::Result<Self> {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("differential-rules.txt");
        Self::parse(&fs::read_to_string(&path).with_context(|| path.display().to_string())?)
    }

    fn parse(text: &str) -> anyhow::Result<Self> {
        let mut rules = Vec::new();
        for (line, text) in text.lines().enumerate() {
            if text.trim().is_empty() || text.starts_with('#') {
                continue;
            }
            let fields: Vec<&str> = text.split('|').map(str::trim).collect();
            ensure!(fields.len() == 6, "line {}: six fields expected", line + 1);
            ensure!(!fields[4].is_empty() && !fields[5].is_empty(), "line {}: no rule or source", line + 1);
            let words = |field: &str| field.split_whitespace().map(str::to_owned).collect();
            let fields = [words(fields[0]), words(fields[1]), words(fields[2]), words(fields[3])];
            rules.push(Rule { line: line + 1, fields });
        }
        Ok(Self { rules, used: BTreeMap::new() })
    }

    /// Whether a rule explains it.
    pub fn explain(&mut self, difference: &Difference) -> bool {
        let Difference { command, twist, ours, theirs } = difference;
        let found = self.rules.iter().find(|rule| {
            rule.fields
                .iter()
                .zip([command, twist, ours, theirs])
                .all(|(allowed, word)| allowed.iter().any(|it| it == "*" || it == word))
        });
        if let Some(rule) = found {
            *self.used.entry(rule.line).or_default() += 1;
        }
        found.is_some()
    }

    /// Lines of rules with how often each was used, 0 for those that explained nothing.
    pub fn uses(&self) -> Vec<(usize, usize)> {
        self.rules.iter().map(|rule| (rule.line, self.used.get(&rule.line).copied().unwrap_or(0))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rule_matches_its_words_only() {
        let mut rules = Rules::parse("# head\n28 2a | plain | good | 5/24/00 | why | SAM-5\n").unwrap();
        let difference = |command: &str, theirs: &str| Difference {
            command: command.into(),
            twist: "plain".into(),
            ours: "good".into(),
            theirs: theirs.into(),
        };
        assert!(rules.explain(&difference("28", "5/24/00")));
        assert!(!rules.explain(&difference("28", "5/20/00")));
        assert!(!rules.explain(&difference("88", "5/24/00")));
        assert_eq!(rules.uses(), [(2, 1)]);
        assert!(Rules::parse("28 | plain | good | 5/24/00 | | SAM-5").is_err());
    }
}
