//! Power that fails: what a file system may have of a directory that a daemon wrote to and did
//! not, or not yet, make durable.
//!
//! Owns one directory, followed through the library of `tests/power`. [`Power::fail`] puts it into
//! a state that a crash may leave, chosen by a seed: unsynced writes are lost, torn at a sector,
//! out of order or zeros; unsynced names are lost, or old ones come back; only what a sync of that
//! very file or directory returned for is sure. A rename within a directory is whole or absent.

#[path = "../power/src/record.rs"]
pub mod record;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ffi::OsStr;
use std::fs;
use std::io::Write as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use self::record::Record;
use crate::{Daemon, Node, program};

/// What a disk writes whole or not at all.
const SECTOR: usize = 512;
/// How long a sync takes, so that what comes meanwhile has to wait for the next one.
const SYNC_US: u64 = 500;

/// Numbers from a seed.
#[derive(Debug, Clone)]
pub struct Dice(u64);

impl Dice {
    /// The same numbers for the same seed.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        // SplitMix64, so that neighboring seeds have nothing in common.
        let mut mixed = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        Self((mixed ^ (mixed >> 31)).max(1))
    }

    /// One of `0..below`.
    pub fn throw(&mut self, below: u64) -> u64 {
        // Marsaglia's xorshift: any will do.
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % below.max(1)
    }

    /// One of `0..below`.
    pub fn index(&mut self, below: usize) -> usize {
        usize::try_from(self.throw(below as u64)).unwrap_or_default()
    }

    fn percent(&mut self, chance: u64) -> bool {
        self.throw(100) < chance
    }
}

type Name = Vec<u8>;
type Id = usize;

/// A file or a directory.
#[derive(Debug, Clone)]
enum Object {
    File {
        live: Vec<u8>,
        durable: Vec<u8>,
        pending: Vec<(u64, Change)>,
    },
    Dir {
        live: BTreeMap<Name, Id>,
        durable: BTreeMap<Name, Id>,
        pending: Vec<(u64, Naming)>,
    },
}

/// What was done to a file and is not durable.
#[derive(Debug, Clone)]
enum Change {
    Write(usize, Vec<u8>),
    Truncate(usize),
    Allocate(usize),
}

/// What was done to the names of a directory and is not durable.
#[derive(Debug, Clone)]
enum Naming {
    Add(Name, Id),
    Remove(Name),
    Move(Name, Name, Id),
    /// The name has gone to another directory: not without that one having it.
    Leave(Name, Id, u64),
}

/// See the module.
#[derive(Debug)]
pub struct Power {
    root: PathBuf,
    log: PathBuf,
    /// Below these paths a sync does nothing.
    broken: Vec<Vec<u8>>,
    objects: Vec<Object>,
    numbers: HashMap<u64, Id>,
    syncs: HashMap<u64, u64>,
    clock: u64,
    lost: Vec<String>,
}

const ROOT: Id = 0;

impl Power {
    /// Gives a node that is to be started a data directory on a disk whose power can fail.
    ///
    /// # Panics
    ///
    /// When there is no room for it.
    #[must_use]
    pub fn of(node: Node) -> (Self, Node) {
        let root = node.home.join("data");
        let log = node.home.join("power");
        fs::create_dir_all(&root).expect("a data directory");
        fs::set_permissions(&root, fs::Permissions::from_mode(0o700)).expect("a data directory");
        let root = root.canonicalize().expect("a data directory");
        fs::write(&log, "").expect("a log of the disk");
        let node = node
            .env("LD_PRELOAD", path_text(&program("libreceptor_power.so")))
            .env("POWER_LOSS_ROOT", path_text(&root))
            .env("POWER_LOSS_LOG", path_text(&log))
            .env("POWER_LOSS_SYNC_US", &SYNC_US.to_string());
        let mut power = Self {
            root,
            log,
            broken: Vec::new(),
            objects: Vec::new(),
            numbers: HashMap::new(),
            syncs: HashMap::new(),
            clock: 0,
            lost: Vec::new(),
        };
        power.begin();
        (power, node)
    }

    /// From here on calls of this sort (`write` at an offset, `sync`) fail with EIO; `None`: none
    /// does any more.
    ///
    /// # Panics
    ///
    /// When that cannot be said.
    pub fn break_down(&self, sort: Option<&str>) {
        let faults = self.log.with_extension("eio");
        match sort {
            Some(sort) => {
                // At once, for whoever reads it meanwhile.
                let new = faults.with_extension("new");
                fs::write(&new, sort).expect("a fault");
                fs::rename(new, faults).expect("a fault");
            }
            None => fs::remove_file(faults).expect("there was a fault"),
        }
    }

    /// Follows a data directory that is a new one now. Its daemon must not run.
    ///
    /// # Panics
    ///
    /// When it cannot be made.
    pub fn renew(&mut self) {
        fs::create_dir_all(&self.root).expect("a data directory");
        let mode = fs::Permissions::from_mode(0o700);
        fs::set_permissions(&self.root, mode).expect("a data directory");
        self.begin();
    }

    /// From now on no sync below these paths makes anything durable; of one that ends with `$`,
    /// none of that very file or directory.
    pub fn forget_syncs(&mut self, below: &[&str]) {
        self.broken = below.iter().map(|path| path.as_bytes().to_vec()).collect();
    }

    /// Kills the daemon and everything that it has started, and leaves of its directory what a
    /// power loss may leave.
    ///
    /// # Panics
    ///
    /// When the daemon does not run, or did something to its directory that cannot be followed.
    pub fn fail(&mut self, daemon: &mut Daemon, dice: &mut Dice) {
        kill_all(daemon);
        self.replay();
        assert!(self.lost.is_empty(), "not followed: {:?}", self.lost);
        let after = Crash::of(self, dice);
        clear(&self.root);
        after.write(&self.root);
        self.begin();
    }

    /// Kills the daemon alone, as `kill -9` does, and says where its directory is not as its
    /// writes that were seen would have left it: nowhere, unless writes are not seen.
    ///
    /// # Panics
    ///
    /// When the daemon does not run.
    #[must_use]
    pub fn differences(&mut self, daemon: &mut Daemon) -> Vec<String> {
        kill_all(daemon);
        self.replay();
        let mut found = std::mem::take(&mut self.lost);
        let mut names = Vec::new();
        self.compare(ROOT, &self.root, &mut names);
        found.append(&mut names);
        found
    }

    fn compare(&self, dir: Id, path: &Path, found: &mut Vec<String>) {
        let Object::Dir { live, .. } = &self.objects[dir] else {
            found.push(format!("{} is no directory", path.display()));
            return;
        };
        let mut there = BTreeSet::new();
        for entry in fs::read_dir(path).expect("a directory") {
            there.insert(entry.expect("an entry").file_name().as_bytes().to_vec());
        }
        let known: BTreeSet<Name> = live.keys().cloned().collect();
        for name in there.symmetric_difference(&known) {
            let path = path.join(OsStr::from_bytes(name));
            found.push(format!("{} on one side only", path.display()));
        }
        for (name, id) in live.iter().filter(|(name, _)| there.contains(*name)) {
            let path = path.join(OsStr::from_bytes(name));
            match &self.objects[*id] {
                Object::Dir { .. } => self.compare(*id, &path, found),
                Object::File { live, .. } => {
                    if fs::read(&path).is_ok_and(|bytes| bytes != *live) {
                        found.push(format!("{} differs", path.display()));
                    }
                }
            }
        }
    }

    /// What is there now is durable, and nothing else has ever been.
    fn begin(&mut self) {
        self.objects.clear();
        self.numbers.clear();
        self.syncs.clear();
        self.lost.clear();
        fs::write(&self.log, "").expect("the log");
        let root = self.root.clone();
        self.scan(&root);
    }

    fn scan(&mut self, path: &Path) -> Id {
        let metadata = fs::symlink_metadata(path).expect("what is there");
        if let Some(id) = self.numbers.get(&metadata.ino()) {
            return *id;
        }
        let id = self.objects.len();
        self.numbers.insert(metadata.ino(), id);
        if !metadata.is_dir() {
            let live = fs::read(path).expect("a file");
            let durable = live.clone();
            let pending = Vec::new();
            self.objects.push(Object::File {
                live,
                durable,
                pending,
            });
            return id;
        }
        self.objects.push(empty_dir());
        let mut names = BTreeMap::new();
        for entry in fs::read_dir(path).expect("a directory") {
            let entry = entry.expect("an entry");
            let child = self.scan(&entry.path());
            names.insert(entry.file_name().as_bytes().to_vec(), child);
        }
        self.objects[id] = Object::Dir {
            live: names.clone(),
            durable: names,
            pending: Vec::new(),
        };
        id
    }

    fn replay(&mut self) {
        let log = fs::read(&self.log).expect("the log");
        let mut rest = &log[..];
        while let Some((record, behind)) = Record::decode(rest) {
            rest = behind;
            self.clock += 1;
            self.apply(record);
        }
    }

    fn apply(&mut self, record: Record) {
        match record {
            Record::Open {
                ino,
                created,
                truncated,
                path,
            } => self.opened(ino, created, truncated, &path),
            Record::Write { ino, offset, bytes } => {
                self.change(ino, Change::Write(length(offset), bytes));
            }
            Record::Truncate { ino, length: to } => {
                self.change(ino, Change::Truncate(length(to)));
            }
            Record::Allocate { ino, length: to } => {
                self.change(ino, Change::Allocate(length(to)));
            }
            Record::SyncBegin { call, .. } => {
                self.syncs.insert(call, self.clock);
            }
            Record::SyncEnd { ino, call } => {
                let upto = self.syncs.remove(&call).unwrap_or_default();
                self.synced(ino, upto);
            }
            Record::Rename { from, to } => self.renamed(&from, &to),
            Record::Link { ino, to } => {
                let id = self.known(ino, &to);
                self.named(&to, id);
            }
            Record::Remove { path } => {
                let Some((dir, name)) = self.parent(&path) else {
                    return self.lose("removed", &path);
                };
                self.renames(dir, Naming::Remove(name));
            }
            Record::MakeDir { ino, path } => {
                let id = self.add(ino, empty_dir());
                self.named(&path, id);
            }
            Record::Lost { what } => self.lose("done", &what),
        }
    }

    fn opened(&mut self, ino: u64, created: bool, truncated: bool, path: &[u8]) {
        if path.is_empty() {
            self.numbers.insert(ino, ROOT);
        } else if created {
            let file = Object::File {
                live: Vec::new(),
                durable: Vec::new(),
                pending: Vec::new(),
            };
            let id = self.add(ino, file);
            self.named(path, id);
        } else if let Some((dir, name)) = self.parent(path) {
            // What no followed process has made.
            let id = self.known(ino, path);
            if self.live(dir).get(&name) != Some(&id) {
                self.renames(dir, Naming::Add(name, id));
            }
        }
        if truncated && !created {
            self.change(ino, Change::Truncate(0));
        }
    }

    /// The object of this number; one that nobody has told of is read from the disk.
    fn known(&mut self, ino: u64, path: &[u8]) -> Id {
        if let Some(id) = self.numbers.get(&ino) {
            return *id;
        }
        let path = self.root.join(OsStr::from_bytes(path));
        if path.is_dir() {
            return self.add(ino, empty_dir());
        }
        let live = fs::read(path).unwrap_or_default();
        let pending = vec![(self.clock, Change::Write(0, live.clone()))];
        let durable = Vec::new();
        self.add(
            ino,
            Object::File {
                live,
                durable,
                pending,
            },
        )
    }

    fn add(&mut self, ino: u64, object: Object) -> Id {
        let id = self.objects.len();
        self.objects.push(object);
        self.numbers.insert(ino, id);
        id
    }

    fn live(&self, dir: Id) -> &BTreeMap<Name, Id> {
        static NONE: BTreeMap<Name, Id> = BTreeMap::new();
        match &self.objects[dir] {
            Object::Dir { live, .. } => live,
            Object::File { .. } => &NONE,
        }
    }

    fn parent(&self, path: &[u8]) -> Option<(Id, Name)> {
        let mut dir = ROOT;
        let mut parts: Vec<&[u8]> = path.split(|byte| *byte == b'/').collect();
        let name = parts.pop()?;
        for part in parts {
            dir = *self.live(dir).get(part)?;
        }
        Some((dir, name.to_vec()))
    }

    fn named(&mut self, path: &[u8], id: Id) {
        match self.parent(path) {
            Some((dir, name)) => self.renames(dir, Naming::Add(name, id)),
            None => self.lose("named", path),
        }
    }

    fn renamed(&mut self, from: &[u8], to: &[u8]) {
        let Some((dir, name)) = self.parent(from) else {
            return self.lose("renamed", from);
        };
        let Some(id) = self.live(dir).get(&name).copied() else {
            return self.lose("renamed", from);
        };
        if to.is_empty() {
            return self.renames(dir, Naming::Remove(name));
        }
        let Some((other, new)) = self.parent(to) else {
            return self.lose("renamed", to);
        };
        if other == dir {
            return self.renames(dir, Naming::Move(name, new, id));
        }
        self.renames(other, Naming::Add(new, id));
        self.renames(dir, Naming::Leave(name, other, self.clock));
    }

    fn renames(&mut self, dir: Id, naming: Naming) {
        if let Object::Dir { live, pending, .. } = &mut self.objects[dir] {
            naming.apply(live);
            pending.push((self.clock, naming));
        }
    }

    fn change(&mut self, ino: u64, change: Change) {
        let object = self.numbers.get(&ino).map(|id| &mut self.objects[*id]);
        let Some(Object::File { live, pending, .. }) = object else {
            return self.lose("written to", ino.to_string().as_bytes());
        };
        change.apply(live);
        pending.push((self.clock, change));
    }

    fn synced(&mut self, ino: u64, upto: u64) {
        let Some(id) = self.numbers.get(&ino).copied() else {
            return self.lose("synced", ino.to_string().as_bytes());
        };
        if !self.broken.is_empty() {
            let path = self.path_of(id);
            let forgets = |place: &Vec<u8>| match place.strip_suffix(b"$") {
                Some(this) => path == this,
                None => path.starts_with(place),
            };
            if self.broken.iter().any(forgets) {
                return;
            }
        }
        match &mut self.objects[id] {
            Object::File {
                durable, pending, ..
            } => {
                for (_, change) in pending.extract_if(.., |(at, _)| *at <= upto) {
                    change.apply(durable);
                }
            }
            Object::Dir {
                durable, pending, ..
            } => {
                for (_, naming) in pending.extract_if(.., |(at, _)| *at <= upto) {
                    naming.apply(durable);
                }
            }
        }
    }

    /// Where an object is now; a `/` at the end of that of a directory.
    fn path_of(&self, id: Id) -> Vec<u8> {
        let mut todo = vec![(ROOT, Vec::new())];
        while let Some((at, path)) = todo.pop() {
            if at == id {
                return path;
            }
            for (name, child) in self.live(at) {
                let mut path = [&*path, name].concat();
                if matches!(self.objects[*child], Object::Dir { .. }) {
                    path.push(b'/');
                }
                todo.push((*child, path));
            }
        }
        Vec::new()
    }

    fn lose(&mut self, what: &str, path: &[u8]) {
        let path = String::from_utf8_lossy(path);
        self.lost.push(format!("{path} was {what}"));
    }
}

impl Change {
    fn apply(&self, bytes: &mut Vec<u8>) {
        match self {
            Self::Write(at, new) => put(bytes, *at, new),
            Self::Truncate(length) => bytes.resize(*length, 0),
            Self::Allocate(length) => bytes.resize(bytes.len().max(*length), 0),
        }
    }
}

impl Naming {
    fn apply(&self, names: &mut BTreeMap<Name, Id>) {
        match self {
            Self::Add(name, id) => {
                names.insert(name.clone(), *id);
            }
            Self::Remove(name) | Self::Leave(name, ..) => {
                names.remove(name);
            }
            Self::Move(from, to, id) => {
                // Not when the old name has another meaning here.
                if names.get(from) == Some(id) {
                    names.remove(from);
                }
                names.insert(to.clone(), *id);
            }
        }
    }
}

/// What is left.
#[derive(Debug)]
struct Crash {
    files: HashMap<Id, Vec<u8>>,
    dirs: HashMap<Id, BTreeMap<Name, Id>>,
}

impl Crash {
    fn of(power: &Power, dice: &mut Dice) -> Self {
        // A disk that was quick, one that was slow, and what is between.
        let (data, names) = match dice.throw(6) {
            0 => (0, 0),
            1 => (0, 100),
            2 => (100, 0),
            _ => (dice.throw(101), dice.throw(101)),
        };
        let mut kept = HashMap::new();
        let mut files = HashMap::new();
        for (id, object) in power.objects.iter().enumerate() {
            match object {
                Object::File {
                    durable,
                    pending,
                    live,
                } => {
                    let mut bytes = durable.clone();
                    for (_, change) in pending {
                        tear(change, &mut bytes, data, dice);
                    }
                    if bytes.len() < live.len() && dice.throw(4) == 0 {
                        bytes.resize(live.len(), 0);
                    }
                    files.insert(id, bytes);
                }
                Object::Dir { pending, .. } => {
                    // Some file systems keep the order of names and some do not.
                    let in_order = dice.throw(2) == 0;
                    let mut stopped = false;
                    let stays = |_: &(u64, Naming)| {
                        stopped |= in_order && !dice.percent(names);
                        !stopped && (in_order || dice.percent(names))
                    };
                    kept.insert(id, pending.iter().map(stays).collect::<Vec<bool>>());
                }
            }
        }
        let dirs = power.objects.iter().enumerate().filter_map(|(id, object)| {
            let Object::Dir {
                durable, pending, ..
            } = object
            else {
                return None;
            };
            let mut left = durable.clone();
            for ((_, naming), stays) in pending.iter().zip(&kept[&id]) {
                let arrived = match naming {
                    Naming::Leave(_, other, at) => {
                        has_arrived(&power.objects[*other], *at, &kept[other])
                    }
                    Naming::Add(..) | Naming::Remove(_) | Naming::Move(..) => true,
                };
                if *stays && arrived {
                    naming.apply(&mut left);
                }
            }
            Some((id, left))
        });
        let dirs = dirs.collect();
        Self { files, dirs }
    }

    fn write(&self, root: &Path) {
        let mut written: HashMap<Id, PathBuf> = HashMap::new();
        let mut todo = vec![(ROOT, root.to_owned())];
        while let Some((dir, path)) = todo.pop() {
            for (name, id) in &self.dirs[&dir] {
                let path = path.join(OsStr::from_bytes(name));
                if let Some(bytes) = self.files.get(id) {
                    if let Some(first) = written.get(id) {
                        fs::hard_link(first, &path).expect("another name");
                        continue;
                    }
                    let mut file = fs::File::create(&path).expect("a file");
                    file.write_all(bytes).expect("room for a file");
                    let mode = fs::Permissions::from_mode(0o600);
                    file.set_permissions(mode).expect("a file");
                    written.insert(*id, path);
                } else {
                    fs::create_dir(&path).expect("a directory");
                    let mode = fs::Permissions::from_mode(0o700);
                    fs::set_permissions(&path, mode).expect("a directory");
                    todo.push((*id, path));
                }
            }
        }
    }
}

/// Whether the name that was given at that time is in its directory after the crash.
fn has_arrived(dir: &Object, at: u64, kept: &[bool]) -> bool {
    let Object::Dir { pending, .. } = dir else {
        return true;
    };
    let found = pending.iter().position(|(when, _)| *when == at);
    // Not pending any more: durable.
    found.is_none_or(|index| kept[index])
}

/// Does a part of a change.
fn tear(change: &Change, bytes: &mut Vec<u8>, chance: u64, dice: &mut Dice) {
    let Change::Write(at, new) = change else {
        if dice.percent(chance) {
            change.apply(bytes);
        }
        return;
    };
    let mut from = 0;
    while from < new.len() {
        // Sectors lie where they lie in the file.
        let upto = new.len().min(from + SECTOR - (at + from) % SECTOR);
        if dice.percent(chance) {
            put(bytes, at + from, &new[from..upto]);
        }
        from = upto;
    }
}

fn put(bytes: &mut Vec<u8>, at: usize, new: &[u8]) {
    if new.is_empty() {
        return;
    }
    bytes.resize(bytes.len().max(at + new.len()), 0);
    bytes[at..at + new.len()].copy_from_slice(new);
}

fn empty_dir() -> Object {
    Object::Dir {
        live: BTreeMap::new(),
        durable: BTreeMap::new(),
        pending: Vec::new(),
    }
}

fn length(value: u64) -> usize {
    usize::try_from(value).expect("a file that fits into memory")
}

fn path_text(path: &Path) -> &str {
    path.to_str().expect("a path of letters")
}

fn clear(dir: &Path) {
    for entry in fs::read_dir(dir).expect("a directory") {
        let entry = entry.expect("an entry");
        if entry.file_type().expect("a type").is_dir() {
            fs::remove_dir_all(entry.path()).expect("a directory that goes");
        } else {
            fs::remove_file(entry.path()).expect("a file that goes");
        }
    }
}

/// Ends a daemon and all that it has started at one moment, as far as that can be.
fn kill_all(daemon: &mut Daemon) {
    daemon.signal(Signal::SIGSTOP);
    let mut all = vec![daemon.pid()];
    let mut next = 0;
    while let Some(pid) = all.get(next).copied() {
        next += 1;
        let tasks = fs::read_dir(format!("/proc/{pid}/task"));
        for task in tasks.into_iter().flatten().flatten() {
            let children = fs::read_to_string(task.path().join("children")).unwrap_or_default();
            all.extend(
                children
                    .split_whitespace()
                    .filter_map(|pid| pid.parse::<u32>().ok()),
            );
        }
    }
    daemon.kill();
    for pid in &all[1..] {
        if let Ok(pid) = i32::try_from(*pid) {
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
    }
}
