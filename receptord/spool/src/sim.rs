//! A disk in memory that does everything a disk may do, from a seed.
//!
//! Nothing is durable before it is synced. A crash keeps any part of what was not: some of the
//! writes, each torn at any byte, some of the new names, in no order. A sync that fails keeps some
//! of what it was to make durable and lets the rest look written without ever becoming so. It
//! never changes what was made durable, except through [`SimDisk::damage`].

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::rc::Rc;

use fastrand::Rng;

use crate::disk::{Access, Disk, DiskFile};

/// What goes wrong. All rates are chances per call.
#[derive(Debug, Clone, Copy, Default)]
pub struct Faults {
    /// A read fails.
    pub read: f64,
    /// A write fails, perhaps in the middle.
    pub write: f64,
    /// A write takes less than it was given.
    pub short: f64,
    /// A sync of a file or a directory fails.
    pub sync: f64,
    /// Anything else fails: opening, renaming, removing, listing.
    pub other: f64,
    /// Bytes that fit on the disk; 0: any number.
    pub capacity: u64,
    /// After this many calls that change something, nothing works any more; 0: never.
    pub stop_after: u64,
}

/// See the module. Clones are the same disk.
#[derive(Debug, Clone)]
pub struct SimDisk(Rc<RefCell<State>>);

/// An open file of a [`SimDisk`].
#[derive(Debug, Clone)]
pub struct SimFile {
    disk: Rc<RefCell<State>>,
    inode: u64,
}

/// Held while a spool is open on a [`SimDisk`].
#[derive(Debug)]
pub struct SimLock {
    disk: Rc<RefCell<State>>,
    exclusive: bool,
    boot: u64,
}

#[derive(Debug)]
struct State {
    rng: Rng,
    faults: Faults,
    files: BTreeMap<u64, Inode>,
    /// Path to inode, as the running process sees it.
    names: BTreeMap<String, u64>,
    /// As a crash leaves it if it keeps nothing else.
    durable_names: BTreeMap<String, u64>,
    /// Changes of names that no sync covered, with the directory each is in.
    unsynced_names: Vec<(String, NameChange)>,
    next_inode: u64,
    changes: u64,
    syncs: u64,
    forgotten: u64,
    readers: u64,
    writer: bool,
    boot: u64,
}

#[derive(Debug, Clone)]
enum NameChange {
    Set(String, u64),
    Move(String, String, u64),
    Remove(String),
}

#[derive(Debug, Default)]
struct Inode {
    durable: Vec<u8>,
    current: Vec<u8>,
    unsynced: Vec<FileChange>,
}

#[derive(Debug, Clone)]
enum FileChange {
    Write(usize, Vec<u8>),
    Length(usize),
}

impl SimDisk {
    /// An empty disk.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self(Rc::new(RefCell::new(State {
            rng: Rng::with_seed(seed),
            faults: Faults::default(),
            files: BTreeMap::new(),
            names: BTreeMap::new(),
            durable_names: BTreeMap::new(),
            unsynced_names: Vec::new(),
            next_inode: 1,
            changes: 0,
            syncs: 0,
            forgotten: 0,
            readers: 0,
            writer: false,
            boot: 0,
        })))
    }

    /// What goes wrong from here on.
    pub fn set_faults(&self, faults: Faults) {
        let mut state = self.0.borrow_mut();
        state.faults = faults;
        state.changes = 0;
    }

    /// Calls since [`Self::set_faults`] that changed something or tried to.
    #[must_use]
    pub fn changes(&self) -> u64 {
        self.0.borrow().changes
    }

    /// Syncs of files so far.
    #[must_use]
    pub fn syncs(&self) -> u64 {
        self.0.borrow().syncs
    }

    /// Bytes that were said to be read by nobody soon, so far.
    #[must_use]
    pub fn forgotten(&self) -> u64 {
        self.0.borrow().forgotten
    }

    /// The power goes and comes back: only what is durable is left, and any part of the rest.
    /// Faults end. Files and locks from before must not be used any more.
    pub fn crash(&self) {
        let mut state = self.0.borrow_mut();
        let state = &mut *state;
        let rng = &mut state.rng;
        for (_, change) in std::mem::take(&mut state.unsynced_names) {
            if rng.bool() {
                apply_name(&mut state.durable_names, change);
            }
        }
        state.names = state.durable_names.clone();
        // Most often all goes at once, or nothing is left behind.
        let mood = rng.u8(0..4);
        for file in state.files.values_mut() {
            for change in std::mem::take(&mut file.unsynced) {
                match mood {
                    0 => {}
                    1 => apply(&mut file.durable, &change),
                    _ => tear(&mut file.durable, change, rng),
                }
            }
            file.current = file.durable.clone();
        }
        let names: Vec<u64> = state.names.values().copied().collect();
        state.files.retain(|inode, _| names.contains(inode));
        state.faults = Faults::default();
        state.changes = 0;
        state.readers = 0;
        state.writer = false;
        state.boot += 1;
    }

    /// The process is killed and nothing else happens: what it wrote is there to be read.
    /// Faults end. Files and locks from before must not be used any more.
    pub fn kill(&self) {
        let mut state = self.0.borrow_mut();
        state.faults = Faults::default();
        state.changes = 0;
        state.readers = 0;
        state.writer = false;
        state.boot += 1;
    }

    /// Overwrites bytes of a file, as a dying medium does. Nothing when there is no such file
    /// or it is shorter.
    pub fn damage(&self, path: &str, offset: usize, bytes: &[u8]) {
        let mut state = self.0.borrow_mut();
        let Some(inode) = state.names.get(path).copied() else {
            return;
        };
        let Some(file) = state.files.get_mut(&inode) else {
            return;
        };
        for content in [&mut file.durable, &mut file.current] {
            for (at, byte) in bytes.iter().enumerate() {
                if let Some(place) = content.get_mut(offset + at) {
                    *place = *byte;
                }
            }
        }
    }

    /// All files with their contents, as the running process sees them.
    #[must_use]
    pub fn files(&self) -> BTreeMap<String, Vec<u8>> {
        let state = self.0.borrow();
        let content = |inode: &u64| state.files.get(inode).map(|file| file.current.clone());
        let files = state.names.iter();
        files
            .filter_map(|(path, inode)| Some((path.clone(), content(inode)?)))
            .collect()
    }

    /// Puts a file there, durably.
    pub fn put(&self, path: &str, content: &[u8]) {
        let mut state = self.0.borrow_mut();
        let inode = state.next_inode;
        state.next_inode += 1;
        let file = Inode {
            durable: content.to_vec(),
            current: content.to_vec(),
            unsynced: Vec::new(),
        };
        state.files.insert(inode, file);
        state.names.insert(path.to_owned(), inode);
        state.durable_names.insert(path.to_owned(), inode);
    }
}

impl State {
    /// A call that changes something: whether it still may.
    fn change(&mut self) -> io::Result<()> {
        self.changes += 1;
        if self.faults.stop_after != 0 && self.changes > self.faults.stop_after {
            return Err(broken("stopped"));
        }
        Ok(())
    }

    fn fail(&mut self, rate: f64, what: &str) -> io::Result<()> {
        if rate > 0.0 && self.rng.f64() < rate {
            return Err(broken(what));
        }
        Ok(())
    }

    fn file(&mut self, inode: u64) -> io::Result<&mut Inode> {
        let gone = || broken("a file from before the crash");
        self.files.get_mut(&inode).ok_or_else(gone)
    }

    fn has_room(&self, more: usize) -> io::Result<()> {
        let used: usize = self.files.values().map(|file| file.current.len()).sum();
        if self.faults.capacity != 0 && (used + more) as u64 > self.faults.capacity {
            return Err(io::ErrorKind::StorageFull.into());
        }
        Ok(())
    }

    fn rename_now(&mut self, change: NameChange, path: &str) {
        let dir = path.rsplit_once('/').map_or("", |(dir, _)| dir);
        apply_name(&mut self.names, change.clone());
        self.unsynced_names.push((dir.to_owned(), change));
        let (names, durable) = (&self.names, &self.durable_names);
        let unsynced = &self.unsynced_names;
        let kept = |inode: &u64| {
            names.values().chain(durable.values()).any(|n| n == inode)
                || unsynced.iter().any(|(_, change)| match change {
                    NameChange::Set(_, n) | NameChange::Move(_, _, n) => n == inode,
                    NameChange::Remove(_) => false,
                })
        };
        self.files.retain(|inode, _| kept(inode));
    }
}

fn broken(what: &str) -> io::Error {
    io::Error::other(format!("simulated: {what}"))
}

fn apply_name(names: &mut BTreeMap<String, u64>, change: NameChange) {
    match change {
        NameChange::Set(path, inode) => {
            names.insert(path, inode);
        }
        NameChange::Move(from, to, inode) => {
            if names.get(&from) == Some(&inode) {
                names.remove(&from);
            }
            names.insert(to, inode);
        }
        NameChange::Remove(path) => {
            names.remove(&path);
        }
    }
}

fn apply(content: &mut Vec<u8>, change: &FileChange) {
    match change {
        FileChange::Write(offset, bytes) => {
            let end = offset + bytes.len();
            if content.len() < end {
                content.resize(end, 0);
            }
            content[*offset..end].copy_from_slice(bytes);
        }
        FileChange::Length(length) => content.resize(*length, 0),
    }
}

/// Applies what a crash leaves of a change.
fn tear(content: &mut Vec<u8>, change: FileChange, rng: &mut Rng) {
    match change {
        FileChange::Length(_) => {
            if rng.bool() {
                apply(content, &change);
            }
        }
        FileChange::Write(offset, bytes) => match rng.u8(0..4) {
            0 => {}
            1 => apply(content, &FileChange::Write(offset, bytes)),
            // Up to some byte.
            2 => {
                let end = rng.usize(0..=bytes.len());
                apply(content, &FileChange::Write(offset, bytes[..end].to_vec()));
            }
            // Some sectors of it.
            _ => {
                for (at, sector) in bytes.chunks(512).enumerate() {
                    if rng.bool() {
                        let write = FileChange::Write(offset + 512 * at, sector.to_vec());
                        apply(content, &write);
                    }
                }
            }
        },
    }
}

impl Disk for SimDisk {
    type File = SimFile;
    type Lock = SimLock;

    fn prepare(&self, _dirs: &[&str]) -> io::Result<()> {
        let mut state = self.0.borrow_mut();
        let rate = state.faults.other;
        state.fail(rate, "making a directory")
    }

    fn lock(&self, exclusive: bool) -> io::Result<SimLock> {
        let mut state = self.0.borrow_mut();
        if state.writer || exclusive && state.readers > 0 {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        if exclusive {
            state.writer = true;
        } else {
            state.readers += 1;
        }
        Ok(SimLock {
            disk: Rc::clone(&self.0),
            exclusive,
            boot: state.boot,
        })
    }

    fn list(&self, dir: &str) -> io::Result<Vec<String>> {
        let mut state = self.0.borrow_mut();
        let rate = state.faults.other;
        state.fail(rate, "listing")?;
        let names = state.names.keys();
        let mut found: Vec<String> = names
            .filter_map(|path| path.strip_prefix(dir)?.strip_prefix('/'))
            .map(str::to_owned)
            .collect();
        state.rng.shuffle(&mut found);
        Ok(found)
    }

    fn open(&self, path: &str, access: Access) -> io::Result<SimFile> {
        let mut state = self.0.borrow_mut();
        let rate = state.faults.other;
        state.fail(rate, "opening")?;
        let known = state.names.get(path).copied();
        let inode = match (known, access) {
            (Some(inode), Access::Read | Access::Write) => inode,
            (None, Access::Read | Access::Write) => return Err(io::ErrorKind::NotFound.into()),
            (known, Access::Create) => {
                state.change()?;
                if let Some(inode) = known {
                    let file = state.file(inode)?;
                    file.current.clear();
                    file.unsynced.push(FileChange::Length(0));
                    inode
                } else {
                    let inode = state.next_inode;
                    state.next_inode += 1;
                    state.files.insert(inode, Inode::default());
                    state.rename_now(NameChange::Set(path.to_owned(), inode), path);
                    inode
                }
            }
        };
        Ok(SimFile {
            disk: Rc::clone(&self.0),
            inode,
        })
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let mut state = self.0.borrow_mut();
        state.change()?;
        let rate = state.faults.other;
        state.fail(rate, "renaming")?;
        let Some(inode) = state.names.get(from).copied() else {
            return Err(io::ErrorKind::NotFound.into());
        };
        state.rename_now(NameChange::Move(from.to_owned(), to.to_owned(), inode), to);
        Ok(())
    }

    fn adopt(&self, from: &Path, to: &str) -> io::Result<()> {
        self.rename(&from.to_string_lossy(), to)
    }

    fn remove(&self, path: &str) -> io::Result<()> {
        let mut state = self.0.borrow_mut();
        state.change()?;
        let rate = state.faults.other;
        state.fail(rate, "removing")?;
        if !state.names.contains_key(path) {
            return Err(io::ErrorKind::NotFound.into());
        }
        state.rename_now(NameChange::Remove(path.to_owned()), path);
        Ok(())
    }

    fn sync_dir(&self, dir: &str) -> io::Result<()> {
        let mut state = self.0.borrow_mut();
        state.change()?;
        let rate = state.faults.sync;
        state.fail(rate, "syncing a directory")?;
        let state = &mut *state;
        let mut rest = Vec::new();
        for (of, change) in std::mem::take(&mut state.unsynced_names) {
            if of == dir {
                apply_name(&mut state.durable_names, change);
            } else {
                rest.push((of, change));
            }
        }
        state.unsynced_names = rest;
        Ok(())
    }
}

impl DiskFile for SimFile {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let mut state = self.disk.borrow_mut();
        let rate = state.faults.read;
        state.fail(rate, "reading")?;
        let content = &state.file(self.inode)?.current;
        let offset = usize::try_from(offset).unwrap_or(usize::MAX);
        let rest = content.get(offset..).unwrap_or(&[]);
        let count = rest.len().min(buffer.len());
        buffer[..count].copy_from_slice(&rest[..count]);
        Ok(count)
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<usize> {
        let mut state = self.disk.borrow_mut();
        state.change()?;
        let offset = usize::try_from(offset).map_err(|_| io::ErrorKind::FileTooLarge)?;
        let length = state.file(self.inode)?.current.len();
        let more = (offset + bytes.len()).saturating_sub(length);
        if more > 0 {
            state.has_room(more)?;
        }
        let Faults { write, short, .. } = state.faults;
        let failed = state.fail(write, "writing");
        let is_short = bytes.len() > 1 && state.fail(short, "").is_err();
        let count = match &failed {
            Err(_) => state.rng.usize(0..=bytes.len()),
            Ok(()) if is_short => state.rng.usize(1..bytes.len()),
            Ok(()) => bytes.len(),
        };
        let change = FileChange::Write(offset, bytes[..count].to_vec());
        let file = state.file(self.inode)?;
        apply(&mut file.current, &change);
        file.unsynced.push(change);
        failed.map(|()| count)
    }

    fn sync(&self) -> io::Result<()> {
        let mut state = self.disk.borrow_mut();
        state.change()?;
        state.syncs += 1;
        let rate = state.faults.sync;
        let failed = state.fail(rate, "syncing");
        let state = &mut *state;
        let rng = &mut state.rng;
        let gone = || broken("a file from before the crash");
        let file = state.files.get_mut(&self.inode).ok_or_else(gone)?;
        for change in std::mem::take(&mut file.unsynced) {
            if failed.is_ok() {
                apply(&mut file.durable, &change);
            } else {
                tear(&mut file.durable, change, rng);
            }
        }
        failed
    }

    fn set_len(&self, length: u64) -> io::Result<()> {
        let mut state = self.disk.borrow_mut();
        state.change()?;
        let rate = state.faults.write;
        state.fail(rate, "cutting")?;
        let length = usize::try_from(length).map_err(|_| io::ErrorKind::FileTooLarge)?;
        let before = state.file(self.inode)?.current.len();
        if length > before {
            state.has_room(length - before)?;
        }
        let file = state.file(self.inode)?;
        file.current.resize(length, 0);
        file.unsynced.push(FileChange::Length(length));
        Ok(())
    }

    fn allocate(&self, length: u64) -> io::Result<()> {
        if length > self.size()? {
            self.set_len(length)?;
        }
        Ok(())
    }

    fn size(&self) -> io::Result<u64> {
        Ok(self.disk.borrow_mut().file(self.inode)?.current.len() as u64)
    }

    fn forget(&self, _offset: u64, length: u64) {
        self.disk.borrow_mut().forgotten += length;
    }

    fn again(&self) -> io::Result<Self> {
        Ok(self.clone())
    }
}

impl Drop for SimLock {
    fn drop(&mut self) {
        let Ok(mut state) = self.disk.try_borrow_mut() else {
            return;
        };
        if state.boot != self.boot {
            return;
        }
        if self.exclusive {
            state.writer = false;
        } else {
            state.readers -= 1;
        }
    }
}
