//! The platter as the kernel sees it, over FUSE, without the page cache: every read and write reaches the platter.

use std::{
    ffi::OsStr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, SystemTime},
};

use fuser::{
    Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo, LockOwner, OpenFlags,
    RenameFlags, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory, ReplyEmpty, ReplyEntry, ReplyLseek,
    ReplyOpen, ReplyStatfs, ReplyWrite, Request, TimeOrNow, WriteFlags,
};

use super::platter::{Node, PAGE, Platter, Trouble};

/// The kernel remembers nothing.
const NOT_AT_ALL: Duration = Duration::ZERO;
const PUNCH_HOLE: i32 = 2;
const ZERO_RANGE: i32 = 16;
const KEEP_SIZE: i32 = 1;
/// O_DSYNC; O_SYNC has this bit too.
const DATA_SYNC: i32 = 0o10000;
const SEEK_DATA: i32 = 3;
const SEEK_HOLE: i32 = 4;
const NAME_LEN_MAX: u32 = 255;

/// See the module. Clones are the same disk.
#[derive(Debug, Clone)]
pub struct Face {
    platter: Arc<Mutex<Platter>>,
}

impl Face {
    /// Of a disk of so many bytes.
    pub fn new(size: u64) -> Self {
        Self { platter: Arc::new(Mutex::new(Platter::new(size))) }
    }

    /// The platter.
    pub fn platter(&self) -> MutexGuard<'_, Platter> {
        self.platter.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Does something late; others do not wait for it.
    fn after(&self, delay: Duration, work: impl FnOnce(&Self) + Send + 'static) {
        if delay.is_zero() {
            return work(self);
        }
        let disk = self.clone();
        thread::spawn(move || {
            thread::sleep(delay);
            work(&disk);
        });
    }

    fn attributes(&self, number: u64) -> Result<FileAttr, Errno> {
        let platter = self.platter();
        let (kind, size, perm) = match platter.node(number).map_err(errno)? {
            Node::Directory(_) => (FileType::Directory, 0, 0o700),
            Node::File(file) => (FileType::RegularFile, file.size, 0o600),
        };
        Ok(FileAttr {
            ino: INodeNo(number),
            size,
            blocks: platter.pages_of(number) * (PAGE as u64 / 512),
            atime: SystemTime::UNIX_EPOCH,
            mtime: SystemTime::UNIX_EPOCH,
            ctime: SystemTime::UNIX_EPOCH,
            crtime: SystemTime::UNIX_EPOCH,
            kind,
            perm,
            nlink: 1,
            uid: 0,
            gid: 0,
            rdev: 0,
            blksize: PAGE as u32,
            flags: 0,
        })
    }
}

fn errno(trouble: Trouble) -> Errno {
    match trouble {
        Trouble::Io => Errno::EIO,
        Trouble::NoSpace => Errno::ENOSPC,
        Trouble::Missing => Errno::ENOENT,
        Trouble::Exists => Errno::EEXIST,
        Trouble::NotEmpty => Errno::ENOTEMPTY,
        Trouble::Misuse => Errno::EINVAL,
    }
}

fn end(reply: ReplyEmpty, done: Result<(), Trouble>) {
    match done {
        Ok(()) => reply.ok(),
        Err(trouble) => reply.error(errno(trouble)),
    }
}

impl Filesystem for Face {
    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let found = self.platter().find(parent.0, name).map_err(errno);
        match found.and_then(|number| self.attributes(number)) {
            Ok(attributes) => reply.entry(&NOT_AT_ALL, &attributes, Generation(0)),
            Err(error) => reply.error(error),
        }
    }

    fn getattr(&self, _: &Request, number: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        match self.attributes(number.0) {
            Ok(attributes) => reply.attr(&NOT_AT_ALL, &attributes),
            Err(error) => reply.error(error),
        }
    }

    fn setattr(
        &self,
        _: &Request,
        number: INodeNo,
        _: Option<u32>,
        _: Option<u32>,
        _: Option<u32>,
        size: Option<u64>,
        _: Option<TimeOrNow>,
        _: Option<TimeOrNow>,
        _: Option<SystemTime>,
        _: Option<FileHandle>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<fuser::BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let done = size.map_or(Ok(()), |size| self.platter().resize(number.0, size)).map_err(errno);
        match done.and_then(|()| self.attributes(number.0)) {
            Ok(attributes) => reply.attr(&NOT_AT_ALL, &attributes),
            Err(error) => reply.error(error),
        }
    }

    fn mkdir(&self, _: &Request, parent: INodeNo, name: &OsStr, _: u32, _: u32, reply: ReplyEntry) {
        let made = self.platter().make(parent.0, name, true).map_err(errno);
        match made.and_then(|number| self.attributes(number)) {
            Ok(attributes) => reply.entry(&NOT_AT_ALL, &attributes, Generation(0)),
            Err(error) => reply.error(error),
        }
    }

    fn create(&self, _: &Request, parent: INodeNo, name: &OsStr, _: u32, _: u32, _: i32, reply: ReplyCreate) {
        let made = {
            let mut platter = self.platter();
            platter.make(parent.0, name, false).and_then(|number| {
                platter.open(number, true)?;
                Ok(number)
            })
        };
        match made.map_err(errno).and_then(|number| self.attributes(number)) {
            Ok(attributes) => reply.created(
                &NOT_AT_ALL,
                &attributes,
                Generation(0),
                FileHandle(0),
                FopenFlags::FOPEN_DIRECT_IO,
            ),
            Err(error) => reply.error(error),
        }
    }

    fn unlink(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        end(reply, self.platter().remove(parent.0, name));
    }

    fn rmdir(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        end(reply, self.platter().remove(parent.0, name));
    }

    fn rename(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        to: INodeNo,
        new_name: &OsStr,
        _: RenameFlags,
        reply: ReplyEmpty,
    ) {
        end(reply, self.platter().rename((parent.0, name), (to.0, new_name)));
    }

    fn open(&self, _: &Request, number: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        match self.platter().open(number.0, true) {
            Ok(()) => reply.opened(FileHandle(0), FopenFlags::FOPEN_DIRECT_IO),
            Err(trouble) => reply.error(errno(trouble)),
        }
    }

    fn release(
        &self,
        _: &Request,
        number: INodeNo,
        _: FileHandle,
        _: OpenFlags,
        _: Option<LockOwner>,
        _: bool,
        reply: ReplyEmpty,
    ) {
        end(reply, self.platter().open(number.0, false));
    }

    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        reply.ok();
    }

    fn read(
        &self,
        _: &Request,
        number: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        match self.platter().read(number.0, offset, size as usize) {
            Ok(bytes) => reply.data(&bytes),
            Err(trouble) => reply.error(errno(trouble)),
        }
    }

    fn write(
        &self,
        _: &Request,
        number: INodeNo,
        _: FileHandle,
        offset: u64,
        data: &[u8],
        _: WriteFlags,
        flags: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let len = data.len();
        let (written, delay) = {
            let mut platter = self.platter();
            (platter.write(number.0, offset, data), platter.faults.flush_delay)
        };
        let end = move |done: Result<(), Trouble>| match done {
            Ok(()) => reply.written(len as u32),
            Err(trouble) => reply.error(errno(trouble)),
        };
        // Without the page cache the kernel leaves a synchronous write to us.
        if flags.0 & DATA_SYNC == 0 || written.is_err() {
            return end(written);
        }
        let flush = move |disk: &Self| disk.platter().flush_part(number.0, offset, len as u64);
        self.after(delay, move |disk| end(flush(disk)));
    }

    fn fsync(&self, _: &Request, number: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        let delay = self.platter().faults.flush_delay;
        self.after(delay, move |disk| end(reply, disk.platter().flush(number.0)));
    }

    fn fsyncdir(&self, _: &Request, number: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        end(reply, self.platter().node(number.0).map(|_| ()));
    }

    fn readdir(&self, _: &Request, number: INodeNo, _: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        let platter = self.platter();
        match platter.node(number.0) {
            Ok(Node::Directory(names)) => {
                for ((name, node), place) in names.iter().zip(1..).skip(offset as usize) {
                    let kind = match platter.node(*node) {
                        Ok(Node::File(_)) => FileType::RegularFile,
                        _ => FileType::Directory,
                    };
                    if reply.add(INodeNo(*node), place, kind, name) {
                        break;
                    }
                }
                reply.ok();
            }
            Ok(Node::File(_)) => reply.error(Errno::ENOTDIR),
            Err(trouble) => reply.error(errno(trouble)),
        }
    }

    fn statfs(&self, _: &Request, _: INodeNo, reply: ReplyStatfs) {
        let platter = self.platter();
        let (all, free) = platter.space();
        match platter.node(super::platter::ROOT) {
            Ok(_) => reply.statfs(all, free, free, 1 << 20, 1 << 20, PAGE as u32, NAME_LEN_MAX, PAGE as u32),
            Err(trouble) => reply.error(errno(trouble)),
        }
    }

    fn fallocate(
        &self,
        _: &Request,
        number: INodeNo,
        _: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        let mut platter = self.platter();
        let done = match mode & !KEEP_SIZE {
            PUNCH_HOLE => platter.punch(number.0, offset, length),
            ZERO_RANGE => platter.punch(number.0, offset, length),
            _ => return reply.error(Errno::EOPNOTSUPP),
        };
        end(reply, done);
    }

    fn lseek(
        &self,
        _: &Request,
        number: INodeNo,
        _: FileHandle,
        offset: i64,
        whence: i32,
        reply: ReplyLseek,
    ) {
        let data = match whence {
            SEEK_DATA => true,
            SEEK_HOLE => false,
            _ => return reply.error(Errno::EINVAL),
        };
        match self.platter().seek(number.0, offset.unsigned_abs(), data) {
            Ok(Some(at)) => reply.offset(at as i64),
            Ok(None) => reply.error(Errno::ENXIO),
            Err(trouble) => reply.error(errno(trouble)),
        }
    }
}
