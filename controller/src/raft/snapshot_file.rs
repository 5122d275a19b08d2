//! A snapshot as a file: `HFSNAP01`, then records of length (u32), CRC-32C (u32) and payload, little-endian. The payload's
//! first byte is its kind: meta (first), change (one record of the state), event, audit record, end (last; numbers of changes and
//! events, highest index of dropped events; then, unless there is no audit, the number of its records and its highest dropped
//! indexes by part).
//!
//! Invariant: a file without its end, with a wrong checksum or with anything after its end is refused as a whole.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, BufReader, BufWriter, Read, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
};

use holdfast_proto::state::Change;
#[cfg(test)]
use prost::Message as _;

use super::{
    audit_log::KeptAudit,
    events::KeptEvents,
    options::SNAPSHOT_RECORD_BYTES_MAX,
    records::corrupt,
    store::{decode, encode},
    types::SnapshotMeta,
};

const MAGIC: &[u8; 8] = b"HFSNAP01";
const META: u8 = 1;
const CHANGE: u8 = 2;
const END: u8 = 3;
const EVENT: u8 = 4;
const AUDIT: u8 = 5;

/// All that a snapshot holds.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Content {
    pub(super) meta: SnapshotMeta,
    pub(super) changes: Vec<Change>,
    pub(super) events: KeptEvents,
    pub(super) audit: KeptAudit,
}

/// An open snapshot file.
#[derive(Debug)]
pub(super) struct SnapshotFile {
    pub(super) file: File,
    pub(super) path: PathBuf,
    /// Removed when dropped: it was not (or not yet) made the current one.
    pub(super) temporary: bool,
}

impl SnapshotFile {
    /// A new file that nobody else has.
    pub(super) fn create(path: PathBuf) -> io::Result<Self> {
        let file = OpenOptions::new().read(true).write(true).create_new(true).open(&path)?;
        #[cfg(test)]
        super::crash_steps::reached(&path, "a snapshot is begun");
        Ok(Self { file, path, temporary: true })
    }

    pub(super) fn open(path: PathBuf) -> io::Result<Self> {
        Ok(Self { file: File::open(&path)?, path, temporary: false })
    }

    /// Gives it its final name, durably.
    pub(super) fn rename_to(&mut self, path: PathBuf) -> io::Result<()> {
        self.file.sync_all()?;
        #[cfg(test)]
        super::crash_steps::reached(&path, "a snapshot is whole and has no name");
        fs::rename(&self.path, &path)?;
        #[cfg(test)]
        super::crash_steps::reached(&path, "a snapshot has its name");
        if let Some(directory) = path.parent() {
            File::open(directory)?.sync_all()?;
        }
        self.path = path;
        self.temporary = false;
        Ok(())
    }

    /// Begins the file; records follow, in any order, then [`Writer::finish`].
    pub(super) fn writer(&mut self, meta: &SnapshotMeta) -> io::Result<Writer<'_>> {
        let mut out = BufWriter::new(&mut self.file);
        out.write_all(MAGIC)?;
        write_record(&mut out, META, &encode(meta)?)?;
        Ok(Writer { out, end: End::default() })
    }

    /// Writes the whole content.
    #[cfg(test)]
    pub(super) fn write(&mut self, content: &Content) -> io::Result<()> {
        let mut out = self.writer(&content.meta)?;
        for change in &content.changes {
            out.change(&change.encode_to_vec())?;
        }
        for event in &content.events.events {
            out.event(&event.encode_to_vec())?;
        }
        for record in &content.audit.records {
            out.audit(&record.encode_to_vec())?;
        }
        out.finish(content.events.dropped, content.audit.dropped)
    }

    /// Reads and checks the whole content.
    pub(super) fn read(&mut self) -> io::Result<Content> {
        self.file.seek(SeekFrom::Start(0))?;
        let mut from = BufReader::new(&mut self.file);
        let mut content = Content { meta: read_meta(&mut from)?, ..Content::default() };
        loop {
            let (kind, payload) = read_record(&mut from)?;
            match kind {
                CHANGE => content.changes.push(message(&payload)?),
                EVENT => content.events.events.push(message(&payload)?),
                AUDIT => content.audit.records.push(message(&payload)?),
                END => {
                    let mut numbers =
                        payload.as_chunks::<8>().0.iter().map(|number| u64::from_le_bytes(*number));
                    content.events.dropped = numbers.nth(2).unwrap_or_default();
                    let dropped = content.audit.dropped.iter_mut().zip(numbers.skip(1));
                    dropped.for_each(|(place, number)| *place = number);
                    if payload == End::of(&content).encode() {
                        break;
                    }
                    return Err(corrupt("snapshot: its number of records is another one".to_owned()));
                }
                other => return Err(corrupt(format!("snapshot: a record of kind {other}"))),
            }
        }
        if from.read(&mut [0])? != 0 {
            return Err(corrupt("snapshot: bytes after its end".to_owned()));
        }
        Ok(content)
    }

    /// Reads what the snapshot stands for.
    pub(super) fn read_meta(&mut self) -> io::Result<SnapshotMeta> {
        self.file.seek(SeekFrom::Start(0))?;
        read_meta(&mut BufReader::new(&mut self.file))
    }
}

/// Writes one file, record by record: the state need not be in memory a second time for it.
pub(super) struct Writer<'a> {
    out: BufWriter<&'a mut File>,
    end: End,
}

impl Writer<'_> {
    /// One record of the state, encoded.
    pub(super) fn change(&mut self, encoded: &[u8]) -> io::Result<()> {
        self.end.changes += 1;
        write_record(&mut self.out, CHANGE, encoded)
    }

    /// One event, encoded.
    pub(super) fn event(&mut self, encoded: &[u8]) -> io::Result<()> {
        self.end.events += 1;
        write_record(&mut self.out, EVENT, encoded)
    }

    /// One record of the audit, encoded.
    pub(super) fn audit(&mut self, encoded: &[u8]) -> io::Result<()> {
        self.end.audit += 1;
        write_record(&mut self.out, AUDIT, encoded)
    }

    /// Writes the end. Without it the file is none.
    pub(super) fn finish(mut self, events_dropped: u64, audit_dropped: [u64; 3]) -> io::Result<()> {
        self.end.events_dropped = events_dropped;
        self.end.audit_dropped = audit_dropped;
        write_record(&mut self.out, END, &self.end.encode())?;
        self.out.flush()
    }
}

/// What the last record says of those before it.
#[derive(Default)]
struct End {
    changes: u64,
    events: u64,
    events_dropped: u64,
    audit: u64,
    audit_dropped: [u64; 3],
}

impl End {
    fn of(content: &Content) -> End {
        End {
            changes: content.changes.len() as u64,
            events: content.events.events.len() as u64,
            events_dropped: content.events.dropped,
            audit: content.audit.records.len() as u64,
            audit_dropped: content.audit.dropped,
        }
    }

    fn encode(&self) -> Vec<u8> {
        let mut numbers = vec![self.changes, self.events, self.events_dropped];
        if self.audit != 0 || self.audit_dropped != [0; 3] {
            numbers.push(self.audit);
            numbers.extend(self.audit_dropped);
        }
        numbers.iter().flat_map(|number| number.to_le_bytes()).collect()
    }
}

impl Drop for SnapshotFile {
    fn drop(&mut self) {
        if self.temporary {
            // What stays is removed at the next start.
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// True if the file at `path` is a whole snapshot.
pub(super) fn verify(path: &Path) -> io::Result<SnapshotMeta> {
    SnapshotFile::open(path.to_owned())?.read().map(|content| content.meta)
}

fn message<M: prost::Message + Default>(payload: &[u8]) -> io::Result<M> {
    M::decode(payload).map_err(|error| corrupt(format!("snapshot: {error}")))
}

fn write_record(out: &mut impl Write, kind: u8, payload: &[u8]) -> io::Result<()> {
    let length = u32::try_from(payload.len() + 1)
        .ok()
        .filter(|length| *length <= SNAPSHOT_RECORD_BYTES_MAX)
        .ok_or_else(|| io::Error::other("a record is too large for a snapshot"))?;
    let checksum = crc32c::crc32c_append(crc32c::crc32c(&[kind]), payload);
    out.write_all(&length.to_le_bytes())?;
    out.write_all(&checksum.to_le_bytes())?;
    out.write_all(&[kind])?;
    out.write_all(payload)
}

fn read_record(from: &mut impl Read) -> io::Result<(u8, Vec<u8>)> {
    let torn = |error: io::Error| match error.kind() {
        io::ErrorKind::UnexpectedEof => corrupt("snapshot: it ends early".to_owned()),
        _ => error,
    };
    let (mut length, mut checksum) = ([0; 4], [0; 4]);
    from.read_exact(&mut length).map_err(torn)?;
    from.read_exact(&mut checksum).map_err(torn)?;
    let length = u32::from_le_bytes(length);
    if length == 0 || length > SNAPSHOT_RECORD_BYTES_MAX {
        return Err(corrupt(format!("snapshot: a record of {length} bytes")));
    }
    let mut payload = vec![0; length as usize];
    from.read_exact(&mut payload).map_err(torn)?;
    if crc32c::crc32c(&payload) != u32::from_le_bytes(checksum) {
        return Err(corrupt("snapshot: a checksum is wrong".to_owned()));
    }
    Ok((payload.remove(0), payload))
}

fn read_meta(from: &mut impl Read) -> io::Result<SnapshotMeta> {
    let mut magic = [0; MAGIC.len()];
    from.read_exact(&mut magic).map_err(|_| corrupt("snapshot: it ends early".to_owned()))?;
    if &magic != MAGIC {
        return Err(corrupt("snapshot: not a snapshot of this version".to_owned()));
    }
    match read_record(from)? {
        (META, payload) => decode(&payload),
        (other, _) => Err(corrupt(format!("snapshot: a record of kind {other} first"))),
    }
}

#[cfg(test)]
mod tests {
    use holdfast_proto::{
        state::{Host, change},
        v1::{AuditRecord, Event},
    };

    use super::*;

    fn sample() -> (tempfile::TempDir, PathBuf, Content) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("sample");
        let host = |name: &str| Change {
            change: Some(change::Change::Host(Host { name: name.to_owned(), ..Default::default() })),
        };
        let event = Event { index: 3, kind: "host.created".to_owned(), ..Default::default() };
        let content = Content {
            meta: SnapshotMeta::default(),
            changes: vec![host("alpha"), host("beta")],
            events: KeptEvents { events: vec![event], dropped: 2 },
            audit: KeptAudit {
                records: vec![AuditRecord { index: 3, ..Default::default() }],
                dropped: [1, 0, 2],
            },
        };
        let mut file = SnapshotFile::create(directory.path().join("tmp")).unwrap();
        file.write(&content).unwrap();
        file.rename_to(path.clone()).unwrap();
        (directory, path, content)
    }

    #[test]
    fn a_snapshot_reads_back() {
        let (_directory, path, content) = sample();
        let mut file = SnapshotFile::open(path).unwrap();
        assert_eq!(file.read().unwrap(), content);
    }

    #[test]
    fn one_without_an_audit_reads_back_too() {
        let (directory, _, mut content) = sample();
        content.audit = KeptAudit::default();
        let mut file = SnapshotFile::create(directory.path().join("tmp")).unwrap();
        file.write(&content).unwrap();
        assert_eq!(file.read().unwrap(), content);
    }

    #[test]
    fn every_flipped_bit_and_every_early_end_is_refused() {
        let (_directory, path, _) = sample();
        let good = fs::read(&path).unwrap();
        for position in 0..good.len() {
            for bit in 0..8 {
                let mut bad = good.clone();
                bad[position] ^= 1 << bit;
                fs::write(&path, bad).unwrap();
                assert!(verify(&path).is_err(), "byte {position} bit {bit}");
            }
            fs::write(&path, &good[..position]).unwrap();
            assert!(verify(&path).is_err(), "cut at {position}");
        }
        let mut longer = good.clone();
        longer.push(0);
        fs::write(&path, longer).unwrap();
        assert!(verify(&path).is_err());
    }

    #[test]
    fn what_was_not_made_current_goes_away() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("tmp");
        drop(SnapshotFile::create(path.clone()).unwrap());
        assert!(!path.exists());
    }
}
