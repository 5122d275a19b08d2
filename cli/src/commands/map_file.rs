//! The file of `holdfast map apply` and `map export`.
//!
//! ```yaml
//! mappings:
//! - volume: db1
//!   group: win-cluster
//!   lun: 3
//! - volume: db2
//!   host: win1
//!   read_only: true
//! remove:
//! - volume: old
//!   host: win1
//! ```
//!
//! Invariant: each edit keeps the line that it came from, so that every refusal names it.

use anyhow::{Context, bail};
use holdfast_proto::v1::{Mapping, MappingEdit};
use serde::{Deserialize, Serialize};
use serde_saphyr::Spanned;
use tonic::Status;
use tonic_types::StatusExt as _;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    mappings: Vec<Spanned<Entry>>,
    #[serde(default)]
    remove: Vec<Spanned<Removal>>,
}

#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    volume: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    host: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    group: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    lun: Option<u32>,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    read_only: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Removal {
    volume: String,
    host: Option<String>,
    group: Option<String>,
}

#[derive(Serialize)]
struct Export {
    mappings: Vec<Entry>,
}

/// What a file asks for, and the line of each edit.
#[derive(Debug)]
pub(crate) struct Edits {
    pub(crate) edits: Vec<MappingEdit>,
    lines: Vec<u64>,
    name: String,
}

impl Edits {
    /// Reads a file called `name`.
    pub(crate) fn read(name: &str, text: &str) -> anyhow::Result<Edits> {
        let file: File =
            serde_saphyr::from_str(text).with_context(|| format!("{name} is no file of mappings"))?;
        let mut read = Edits { edits: Vec::new(), lines: Vec::new(), name: name.to_owned() };
        for entry in file.mappings {
            read.lines.push(entry.referenced.line());
            let Entry { volume, host, group, lun, read_only } = entry.value;
            let (host, group) = (host.unwrap_or_default(), group.unwrap_or_default());
            read.edits.push(MappingEdit { volume, host, group, lun, read_only, remove: false });
        }
        for entry in file.remove {
            read.lines.push(entry.referenced.line());
            let Removal { volume, host, group } = entry.value;
            let (host, group) = (host.unwrap_or_default(), group.unwrap_or_default());
            read.edits.push(MappingEdit { volume, host, group, remove: true, ..Default::default() });
        }
        if read.edits.is_empty() {
            bail!("{name} asks for nothing: it needs 'mappings:' or 'remove:' with entries");
        }
        Ok(read)
    }

    /// The controller's refusal with the lines of the file, one line for each fault.
    pub(crate) fn refusal(&self, status: &Status) -> anyhow::Error {
        let violations =
            status.get_details_bad_request().map(|details| details.field_violations).unwrap_or_default();
        if violations.is_empty() {
            return anyhow::anyhow!("{}", status.message());
        }
        let faults: Vec<String> = violations
            .iter()
            .map(|fault| match self.place(&fault.field) {
                Some((line, field)) => format!("{}:{line}: {field}: {}", self.name, fault.description),
                None => format!("{}: {}", fault.field, fault.description),
            })
            .collect();
        anyhow::anyhow!("nothing was changed\n{}", faults.join("\n"))
    }

    /// Line and field of "edits[3].lun".
    fn place<'a>(&self, field: &'a str) -> Option<(u64, &'a str)> {
        let (at, field) = field.strip_prefix("edits[")?.split_once("].")?;
        Some((*self.lines.get(at.parse::<usize>().ok()?)?, field))
    }
}

/// The file that makes these mappings.
pub(crate) fn export(mappings: &[Mapping]) -> anyhow::Result<String> {
    let some = |text: &String| (!text.is_empty()).then(|| text.clone());
    let entry = |m: &Mapping| Entry {
        volume: m.volume.clone(),
        host: some(&m.host),
        group: some(&m.group),
        lun: Some(m.lun),
        read_only: m.read_only,
    };
    Ok(serde_saphyr::to_string(&Export { mappings: mappings.iter().map(entry).collect() })?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tonic::Code;
    use tonic_types::{ErrorDetails, FieldViolation};

    const FILE: &str = "mappings:\n- volume: db1\n  group: g\n  lun: 3\n- {volume: db2, host: h, read_only: true}\nremove:\n- volume: old\n  host: h\n";

    #[test]
    fn a_file_is_read_with_its_lines() {
        let read = Edits::read("f", FILE).unwrap();
        assert_eq!(read.lines, [2, 5, 7]);
        assert_eq!((read.edits[0].group.as_str(), read.edits[0].lun), ("g", Some(3)));
        assert!(read.edits[1].read_only && read.edits[1].lun.is_none() && read.edits[2].remove);
        let json = r#"{"mappings": [{"volume": "db1", "host": "h"}]}"#;
        assert_eq!(Edits::read("f", json).unwrap().edits.len(), 1);
    }

    #[test]
    fn nonsense_is_refused_with_its_place() {
        for (text, expected) in [
            ("mappings:\n- volume: db1\n  hots: h\n", "hots"),
            ("mappings:\n- host: h\n", "volume"),
            ("mappings: []\n", "asks for nothing"),
            ("mappings:\n- {volume: a, host: h, lun: -1}\n", "f is no file"),
        ] {
            let error = format!("{:#}", Edits::read("f", text).unwrap_err());
            assert!(error.contains(expected), "{error}");
        }
    }

    #[test]
    fn refusals_name_line_and_field() {
        let read = Edits::read("f", FILE).unwrap();
        let fault = FieldViolation::new("edits[1].lun", "is taken");
        let details = ErrorDetails::with_bad_request(vec![fault]);
        let status = Status::with_error_details(Code::FailedPrecondition, "x", details);
        assert_eq!(read.refusal(&status).to_string(), "nothing was changed\nf:5: lun: is taken");
    }

    #[test]
    fn what_is_exported_reads_back() {
        let mapping = Mapping {
            volume: "db1".into(),
            group: "g".into(),
            lun: 300,
            read_only: true,
            ..Default::default()
        };
        let text = export(&[mapping]).unwrap();
        let read = Edits::read("f", &text).unwrap();
        let edit = &read.edits[0];
        assert_eq!((edit.group.as_str(), edit.lun, edit.read_only), ("g", Some(300), true));
    }
}
