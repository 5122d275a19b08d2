//! Files in pages, with what each page held when it was last brought to the medium.
//!
//! Invariants: reads see every write at once; a loss of power leaves each sector as it was at the last flush of its file or, where
//! tearing is asked for, as it was written since; names are on the medium at once, as a journal would have them.

use std::{
    collections::BTreeMap,
    ffi::{OsStr, OsString},
    time::Duration,
};

/// Bytes of a page.
pub const PAGE: usize = 4096;
const SECTOR: usize = 512;
/// Number of the root directory.
pub const ROOT: u64 = 1;
/// The file of a replica that holds the blocks of its volume.
const DATA: &str = "data";

type Page = Box<[u8; PAGE]>;

/// What an operation meets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trouble {
    /// EIO.
    Io,
    /// ENOSPC.
    NoSpace,
    /// ENOENT.
    Missing,
    /// EEXIST.
    Exists,
    /// ENOTEMPTY.
    NotEmpty,
    /// EINVAL.
    Misuse,
}

/// Faults that are switched on.
#[derive(Debug, Default)]
pub struct Faults {
    /// Every operation fails: the disk has been pulled out.
    pub gone: bool,
    /// Reads of files fail.
    pub read: bool,
    /// Writes to files fail.
    pub write: Option<Trouble>,
    /// Flushes fail; what they were to bring to the medium is forgotten as if they had, as Linux does it.
    pub flush: bool,
    /// The next flush fails, and only that one.
    pub flush_once: bool,
    /// Writes of blocks are answered and not done.
    pub lose: bool,
    /// Each flush takes so long.
    pub flush_delay: Duration,
}

/// A file or a directory.
#[derive(Debug)]
pub enum Node {
    /// Names in it.
    Directory(BTreeMap<OsString, u64>),
    /// A file.
    File(File),
}

/// A file.
#[derive(Debug, Default)]
pub struct File {
    /// Its length in bytes.
    pub size: u64,
    pages: BTreeMap<u64, Page>,
    /// Pages that were changed since the last flush, as they were then.
    before: BTreeMap<u64, Option<Page>>,
    /// Pages that a failed flush was to bring to the medium, as the medium has them. They count as clean.
    doomed: BTreeMap<u64, Option<Page>>,
    size_before: Option<u64>,
    /// Holds the blocks of a volume.
    is_data: bool,
    opened: u32,
    named: bool,
}

/// The disk.
#[derive(Debug)]
pub struct Platter {
    nodes: BTreeMap<u64, Node>,
    last: u64,
    capacity_pages: u64,
    used_pages: u64,
    /// What goes wrong just now.
    pub faults: Faults,
    flushes_failed: u64,
}

impl Platter {
    /// An empty disk of so many bytes.
    pub fn new(size: u64) -> Self {
        Self {
            nodes: BTreeMap::from([(ROOT, Node::Directory(BTreeMap::new()))]),
            last: ROOT,
            capacity_pages: size / PAGE as u64,
            used_pages: 0,
            faults: Faults::default(),
            flushes_failed: 0,
        }
    }

    /// Does what a line says: `gone|read|flush|flush-once|lose on|off`, `write ok|eio|enospc`, `flush-delay MS`, `power-loss [tear SEED]`, `rot SEED`
    /// (one bit of every eighth page of blocks), `failed` (how many flushes have).
    ///
    /// # Errors
    /// What is wrong with the line.
    pub fn command(&mut self, line: &str) -> Result<u64, String> {
        let words: Vec<&str> = line.split_whitespace().collect();
        let switch = |word: &str| match word {
            "on" => Ok(true),
            "off" => Ok(false),
            _ => Err(format!("on or off, not {word}")),
        };
        let number = |word: &str| word.parse::<u64>().map_err(|error| error.to_string());
        match words.as_slice() {
            ["gone", word] => self.faults.gone = switch(word)?,
            ["read", word] => self.faults.read = switch(word)?,
            ["flush", word] => self.faults.flush = switch(word)?,
            ["flush-once", word] => self.faults.flush_once = switch(word)?,
            ["lose", word] => self.faults.lose = switch(word)?,
            ["write", "ok"] => self.faults.write = None,
            ["write", "eio"] => self.faults.write = Some(Trouble::Io),
            ["write", "enospc"] => self.faults.write = Some(Trouble::NoSpace),
            ["flush-delay", ms] => self.faults.flush_delay = Duration::from_millis(number(ms)?),
            ["power-loss"] => return Ok(self.lose_power(None)),
            ["power-loss", "tear", seed] => return Ok(self.lose_power(Some(number(seed)?))),
            ["rot", seed] => return Ok(self.rot(number(seed)?)),
            ["failed"] => return Ok(self.flushes_failed),
            _ => return Err("no such command".to_owned()),
        }
        Ok(0)
    }

    /// Bytes in all and bytes free.
    pub fn space(&self) -> (u64, u64) {
        (self.capacity_pages, self.capacity_pages.saturating_sub(self.used_pages))
    }

    /// A node.
    ///
    /// # Errors
    /// There is none, or the disk is gone.
    pub fn node(&self, number: u64) -> Result<&Node, Trouble> {
        if self.faults.gone {
            return Err(Trouble::Io);
        }
        self.nodes.get(&number).ok_or(Trouble::Missing)
    }

    /// Pages of a file that have room.
    pub fn pages_of(&self, number: u64) -> u64 {
        match self.nodes.get(&number) {
            Some(Node::File(file)) => file.pages.len() as u64,
            _ => 0,
        }
    }

    fn directory(&mut self, number: u64) -> Result<&mut BTreeMap<OsString, u64>, Trouble> {
        self.node(number)?;
        match self.nodes.get_mut(&number) {
            Some(Node::Directory(names)) => Ok(names),
            _ => Err(Trouble::Misuse),
        }
    }

    fn file(&mut self, number: u64) -> Result<&mut File, Trouble> {
        self.node(number)?;
        match self.nodes.get_mut(&number) {
            Some(Node::File(file)) => Ok(file),
            _ => Err(Trouble::Misuse),
        }
    }

    /// The number behind a name.
    ///
    /// # Errors
    /// There is none.
    pub fn find(&self, parent: u64, name: &OsStr) -> Result<u64, Trouble> {
        match self.node(parent)? {
            Node::Directory(names) => names.get(name).copied().ok_or(Trouble::Missing),
            Node::File(_) => Err(Trouble::Misuse),
        }
    }

    /// Makes an empty file or directory.
    ///
    /// # Errors
    /// The name is taken, or writes fail.
    pub fn make(&mut self, parent: u64, name: &OsStr, directory: bool) -> Result<u64, Trouble> {
        if let Some(trouble) = self.faults.write {
            return Err(trouble);
        }
        let number = self.last + 1;
        let names = self.directory(parent)?;
        if names.contains_key(name) {
            return Err(Trouble::Exists);
        }
        names.insert(name.to_owned(), number);
        self.last = number;
        let file = File { named: true, is_data: name == DATA, ..File::default() };
        let node = if directory { Node::Directory(BTreeMap::new()) } else { Node::File(file) };
        self.nodes.insert(number, node);
        Ok(number)
    }

    /// Takes a name away; the file goes with its last user.
    ///
    /// # Errors
    /// There is no such name, or a directory is not empty.
    pub fn remove(&mut self, parent: u64, name: &OsStr) -> Result<(), Trouble> {
        let number = self.find(parent, name)?;
        if matches!(self.node(number)?, Node::Directory(names) if !names.is_empty()) {
            return Err(Trouble::NotEmpty);
        }
        self.directory(parent)?.remove(name);
        match self.nodes.get_mut(&number) {
            Some(Node::File(file)) => file.named = false,
            _ => {
                self.nodes.remove(&number);
            }
        }
        self.forget(number);
        Ok(())
    }

    /// Gives a node another name; what had that name goes.
    ///
    /// # Errors
    /// There is no such name.
    pub fn rename(&mut self, from: (u64, &OsStr), to: (u64, &OsStr)) -> Result<(), Trouble> {
        let number = self.find(from.0, from.1)?;
        if self.find(to.0, to.1).is_ok() {
            self.remove(to.0, to.1)?;
        }
        self.directory(from.0)?.remove(from.1);
        self.directory(to.0)?.insert(to.1.to_owned(), number);
        Ok(())
    }

    /// A file is opened (`true`) or closed.
    ///
    /// # Errors
    /// There is none.
    pub fn open(&mut self, number: u64, open: bool) -> Result<(), Trouble> {
        if open {
            self.node(number)?;
        }
        if let Some(Node::File(file)) = self.nodes.get_mut(&number) {
            file.opened = if open { file.opened + 1 } else { file.opened.saturating_sub(1) };
        }
        self.forget(number);
        Ok(())
    }

    fn forget(&mut self, number: u64) {
        if let Some(Node::File(file)) = self.nodes.get(&number)
            && !file.named
            && file.opened == 0
        {
            self.used_pages -= file.pages.len() as u64;
            self.nodes.remove(&number);
        }
    }

    /// Reads.
    ///
    /// # Errors
    /// As switched on.
    pub fn read(&mut self, number: u64, offset: u64, len: usize) -> Result<Vec<u8>, Trouble> {
        if self.faults.read {
            return Err(Trouble::Io);
        }
        let file = self.file(number)?;
        let len = file.size.saturating_sub(offset).min(len as u64) as usize;
        let mut bytes = vec![0; len];
        file.each_page(offset, len as u64, |page, at, range| {
            if let Some(page) = page {
                bytes[at..at + range.len()].copy_from_slice(&page[range]);
            }
        });
        Ok(bytes)
    }

    /// Writes.
    ///
    /// # Errors
    /// As switched on, or no room.
    pub fn write(&mut self, number: u64, offset: u64, data: &[u8]) -> Result<(), Trouble> {
        if let Some(trouble) = self.faults.write {
            return Err(trouble);
        }
        let (free, lose) = (self.space().1, self.faults.lose);
        let file = self.file(number)?;
        if lose && file.is_data {
            return Ok(());
        }
        let end = offset + data.len() as u64;
        let (first, last) = (offset / PAGE as u64, end.div_ceil(PAGE as u64));
        let fresh = (last - first) - file.pages.range(first..last).count() as u64;
        if fresh > free {
            return Err(Trouble::NoSpace);
        }
        file.touch(first..last);
        let mut at = 0;
        for number in first..last {
            let page = file.pages.entry(number).or_insert_with(|| Box::new([0; PAGE]));
            let from = (offset + at as u64 - number * PAGE as u64) as usize;
            let len = (PAGE - from).min(data.len() - at);
            page[from..from + len].copy_from_slice(&data[at..at + len]);
            at += len;
        }
        if end > file.size {
            file.resize(end);
        }
        self.used_pages += fresh;
        Ok(())
    }

    /// Makes zeroes of a range; whole pages lose their room.
    ///
    /// # Errors
    /// As switched on.
    pub fn punch(&mut self, number: u64, offset: u64, len: u64) -> Result<(), Trouble> {
        if let Some(trouble) = self.faults.write {
            return Err(trouble);
        }
        let lose = self.faults.lose;
        let file = self.file(number)?;
        if lose && file.is_data {
            return Ok(());
        }
        let freed = file.punch(offset, len);
        self.used_pages -= freed;
        Ok(())
    }

    /// Makes the file longer or shorter.
    ///
    /// # Errors
    /// As switched on.
    pub fn resize(&mut self, number: u64, size: u64) -> Result<(), Trouble> {
        if let Some(trouble) = self.faults.write {
            return Err(trouble);
        }
        let file = self.file(number)?;
        let cut = file.size.saturating_sub(size);
        let freed = file.punch(size, cut);
        file.resize(size);
        self.used_pages -= freed;
        Ok(())
    }

    /// Brings a file to the medium.
    ///
    /// # Errors
    /// As switched on.
    pub fn flush(&mut self, number: u64) -> Result<(), Trouble> {
        self.flush_part(number, 0, u64::MAX)
    }

    /// The same for the pages of a range, and the file's length.
    ///
    /// # Errors
    /// As switched on.
    pub fn flush_part(&mut self, number: u64, offset: u64, len: u64) -> Result<(), Trouble> {
        let fails = self.faults.flush || std::mem::take(&mut self.faults.flush_once);
        self.flushes_failed += u64::from(fails);
        let pages = offset / PAGE as u64..offset.saturating_add(len).div_ceil(PAGE as u64);
        let file = self.file(number)?;
        for (page, before) in file.before.extract_if(pages, |_, _| true) {
            if fails {
                // It counts as clean although the medium does not have it: the next flush says that all is well, and it is not.
                file.doomed.entry(page).or_insert(before);
            } else {
                file.doomed.remove(&page);
            }
        }
        if fails {
            return Err(Trouble::Io);
        }
        file.size_before = None;
        Ok(())
    }

    /// Where the next page with room (`true`) or without begins, from `offset` on.
    ///
    /// # Errors
    /// There is none before the end.
    pub fn seek(&mut self, number: u64, offset: u64, data: bool) -> Result<Option<u64>, Trouble> {
        let file = self.file(number)?;
        if offset >= file.size {
            return Ok(None);
        }
        let mut page = offset / PAGE as u64;
        if data {
            let found = file.pages.range(page..).next().map(|(number, _)| *number * PAGE as u64);
            return Ok(found.map(|at| at.max(offset)).filter(|at| *at < file.size));
        }
        while file.pages.contains_key(&page) {
            page += 1;
        }
        Ok(Some((page * PAGE as u64).max(offset).min(file.size)))
    }

    fn lose_power(&mut self, tear: Option<u64>) -> u64 {
        let mut random = tear.unwrap_or(0).wrapping_mul(2).wrapping_add(1);
        let mut lost = 0;
        let mut used = 0;
        self.nodes.retain(|_, node| !matches!(node, Node::File(file) if !file.named));
        for node in self.nodes.values_mut() {
            let Node::File(file) = node else { continue };
            file.opened = 0;
            let mut lost_pages = std::mem::take(&mut file.before);
            lost_pages.append(&mut file.doomed);
            for (number, before) in lost_pages {
                lost += 1;
                let mut page = before;
                if tear.is_some()
                    && let Some(now) = file.pages.get(&number)
                {
                    let mut torn = page.take().unwrap_or_else(|| Box::new([0; PAGE]));
                    for (old, new) in torn.chunks_mut(SECTOR).zip(now.chunks(SECTOR)) {
                        if next(&mut random).is_multiple_of(2) {
                            old.copy_from_slice(new);
                        }
                    }
                    page = Some(torn);
                }
                match page {
                    Some(page) => file.pages.insert(number, page),
                    None => file.pages.remove(&number),
                };
            }
            if let Some(size) = file.size_before.take() {
                file.size = size;
                let behind = file.pages.split_off(&size.div_ceil(PAGE as u64));
                lost += behind.len() as u64;
            }
            used += file.pages.len() as u64;
        }
        self.used_pages = used;
        lost
    }

    fn rot(&mut self, seed: u64) -> u64 {
        let mut random = seed.wrapping_mul(2).wrapping_add(1);
        let mut rotten = 0;
        for node in self.nodes.values_mut() {
            let Node::File(file) = node else { continue };
            for page in file.pages.values_mut().filter(|_| file.is_data) {
                let at = next(&mut random);
                if at.is_multiple_of(8)
                    && let Some(byte) = page.get_mut((at / 8) as usize % PAGE)
                {
                    *byte ^= 1 << (at / 8 / PAGE as u64 % 8);
                    rotten += 1;
                }
            }
        }
        rotten
    }
}

fn next(random: &mut u64) -> u64 {
    *random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    *random >> 33
}

impl File {
    fn each_page(
        &self,
        offset: u64,
        len: u64,
        mut with: impl FnMut(Option<&Page>, usize, std::ops::Range<usize>),
    ) {
        let mut at = 0;
        while at < len {
            let (number, from) = ((offset + at) / PAGE as u64, ((offset + at) % PAGE as u64) as usize);
            let part = ((PAGE - from) as u64).min(len - at);
            with(self.pages.get(&number), at as usize, from..from + part as usize);
            at += part;
        }
    }

    fn touch(&mut self, pages: std::ops::Range<u64>) {
        for number in pages {
            self.before.entry(number).or_insert_with(|| self.pages.get(&number).cloned());
        }
    }

    fn resize(&mut self, size: u64) {
        self.size_before.get_or_insert(self.size);
        self.size = size;
    }

    /// How many pages lost their room.
    fn punch(&mut self, offset: u64, len: u64) -> u64 {
        let end = offset + len;
        let (first, last) = (offset / PAGE as u64, end.div_ceil(PAGE as u64));
        let there: Vec<u64> = self.pages.range(first..last).map(|(number, _)| *number).collect();
        let mut freed = 0;
        for number in there {
            self.touch(number..number + 1);
            let begin = number * PAGE as u64;
            let from = offset.saturating_sub(begin).min(PAGE as u64) as usize;
            let to = end.saturating_sub(begin).min(PAGE as u64) as usize;
            if (from, to) == (0, PAGE) {
                self.pages.remove(&number);
                freed += 1;
            } else if let Some(part) = self.pages.get_mut(&number).and_then(|page| page.get_mut(from..to)) {
                part.fill(0);
            }
        }
        freed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn disk() -> (Platter, u64) {
        let mut disk = Platter::new(64 * PAGE as u64);
        let file = disk.make(ROOT, OsStr::new(DATA), false).unwrap();
        disk.resize(file, 32 * PAGE as u64).unwrap();
        disk.flush(file).unwrap();
        (disk, file)
    }

    #[test]
    fn power_loss_takes_what_was_not_flushed_and_nothing_else() {
        let (mut disk, file) = disk();
        disk.write(file, 100, &[1; 5000]).unwrap();
        disk.flush(file).unwrap();
        disk.write(file, 0, &[2; 200]).unwrap();
        disk.punch(file, PAGE as u64, PAGE as u64).unwrap();
        disk.write(file, 40 * PAGE as u64, &[3]).unwrap();
        assert_eq!(disk.read(file, 0, 200).unwrap(), [2; 200]);
        assert!(disk.command("power-loss").unwrap() >= 3);
        let read = disk.read(file, 0, 6000).unwrap();
        assert_eq!((read[..100].to_vec(), read[100..5100].to_vec()), (vec![0; 100], vec![1; 5000]));
        assert!(matches!(disk.node(file).unwrap(), Node::File(file) if file.size == 32 * PAGE as u64));
        assert_eq!(disk.space().1, 62);
    }

    #[test]
    fn torn_page_has_old_and_new_sectors() {
        let (mut disk, file) = disk();
        disk.write(file, 0, &[1; 8 * PAGE]).unwrap();
        disk.flush(file).unwrap();
        disk.write(file, 0, &[2; 8 * PAGE]).unwrap();
        disk.command("power-loss tear 7").unwrap();
        let read = disk.read(file, 0, 8 * PAGE).unwrap();
        assert!(read.chunks(SECTOR).all(|sector| sector.iter().all(|byte| *byte == sector[0])));
        assert!(read.contains(&1) && read.contains(&2));
    }

    #[test]
    fn next_flush_after_a_failed_one_lies() {
        let (mut disk, file) = disk();
        disk.write(file, 0, &[1; 2 * PAGE]).unwrap();
        disk.command("flush-once on").unwrap();
        assert_eq!(disk.flush(file), Err(Trouble::Io));
        assert_eq!(disk.command("failed"), Ok(1));
        disk.write(file, PAGE as u64, &[2; PAGE]).unwrap();
        disk.flush(file).unwrap();
        disk.command("power-loss").unwrap();
        let read = disk.read(file, 0, 2 * PAGE).unwrap();
        assert_eq!((&read[..PAGE], &read[PAGE..]), (&[0; PAGE][..], &[2; PAGE][..]));
    }

    #[test]
    fn flush_of_a_part_keeps_that_part() {
        let (mut disk, file) = disk();
        disk.write(file, 0, &[1; 3 * PAGE]).unwrap();
        disk.flush_part(file, PAGE as u64 + 5, 10).unwrap();
        disk.command("power-loss").unwrap();
        let read = disk.read(file, 0, 3 * PAGE).unwrap();
        assert_eq!((read[0], read[PAGE], read[2 * PAGE - 1], read[2 * PAGE]), (0, 1, 1, 0));
    }

    #[test]
    fn room_is_counted_and_ends() {
        let (mut disk, file) = disk();
        assert_eq!(disk.write(file, 0, &vec![1; 65 * PAGE]), Err(Trouble::NoSpace));
        disk.write(file, 0, &vec![1; 64 * PAGE]).unwrap();
        disk.punch(file, 0, 2 * PAGE as u64).unwrap();
        assert_eq!(disk.space(), (64, 2));
        assert_eq!(disk.seek(file, 0, true), Ok(Some(2 * PAGE as u64)));
        assert_eq!(disk.seek(file, 0, false), Ok(Some(0)));
        disk.remove(ROOT, OsStr::new(DATA)).unwrap();
        assert_eq!(disk.space(), (64, 64));
    }

    #[test]
    fn faults_come_and_go_by_command() {
        let (mut disk, file) = disk();
        disk.command("gone on").unwrap();
        assert_eq!(disk.read(file, 0, 1), Err(Trouble::Io));
        disk.command("gone off").unwrap();
        disk.command("write enospc").unwrap();
        assert_eq!(disk.write(file, 0, &[1]), Err(Trouble::NoSpace));
        disk.command("write ok").unwrap();
        disk.command("lose on").unwrap();
        disk.write(file, 0, &[1]).unwrap();
        assert_eq!(disk.read(file, 0, 1).unwrap(), [0]);
        disk.command("lose off").unwrap();
        disk.write(file, 0, &[1; 16 * PAGE]).unwrap();
        assert!(disk.command("rot 3").unwrap() > 0);
        assert!(disk.read(file, 0, 16 * PAGE).unwrap().iter().any(|byte| *byte != 1));
        assert!(disk.command("melt").is_err());
    }
}
