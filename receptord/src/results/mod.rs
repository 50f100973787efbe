//! What this node keeps for those who send from it: the responses of their works until they have
//! them, what it knows of these works, and the messages that were given up; and how works ended,
//! those that were sent from here and those that ran here.
//!
//! Owns `kept/` and `dead-letters/` in the data directory, and their limits. A response is the
//! core's until [`Keeper::to_forget`] says that its client has it, or that it is on the disk here for
//! whoever asks. The responses of a work whose client takes them as they come are written only
//! when they become many: most works end before, and their client has everything. Never touches
//! the core, and never holds a large payload: that is a file, and becomes one more name of it.
//!
//! ```text
//!   <data-dir>/kept/   <id>            what came, one response behind the other (frame.rs)
//!   <data-dir>/kept/   <id>.<serial>   a payload too large for that
//!   <data-dir>/kept/corrupt/<id>   what a disk has damaged
//!   <data-dir>/dead-letters/<id>       a message that was given up (letters.rs)
//!   memos in the spool                 how a work ended (ending.rs)
//! ```

mod disk;
mod ending;
mod frame;
pub(crate) mod fuzz;
mod history;
mod letters;
mod reader;
mod start;
mod table;
mod work;

use std::cell::{Cell, RefCell};
use std::fs::{DirBuilder, File};
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::{Duration, Instant, SystemTime};

use receptor_mesh::Payload;
use receptor_proto::control::{WorkRole, WorkStatus};
use receptor_proto::packet::Eof;
use receptor_proto::{Directive, ErrorBody, ErrorCode, IdPrefix, MessageId, NodeId};

use self::disk::{Disk, Op};
use self::frame::End;
use self::table::Table;
use self::work::{Unread, Work};
use crate::config::Settings;
use crate::engine::Response;
use crate::spooler::Store;
use crate::task;

pub(crate) use self::ending::Ending;
pub(crate) use self::history::History;
pub(crate) use self::letters::{DeadLetter, DeadLetters, LetterBody};
pub(crate) use self::reader::{Item, Source, Stop};

/// When room is made, a tenth of the limit is freed, so that not every response has to make some.
const MAKE_ROOM: u64 = 10;
/// How long after a failed write the next is tried: room is often made by what was written last.
const AGAIN: Duration = Duration::from_millis(500);
/// Between two log lines about failed writes or dropped responses.
const COMPLAIN_EVERY: Duration = Duration::from_secs(10);
/// The longest and shortest time between two looks for what has been kept long enough.
const SWEEP: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(60));

/// Is told that something about this work, or writing what is known of it, changed; the engine
/// then asks what to do.
pub(crate) type OnChange = Box<dyn Fn(MessageId, Result<(), ErrorBody>)>;

/// A work that is about to be sent.
#[derive(Debug)]
pub(crate) struct Begin {
    /// What runs.
    pub(crate) directive: Directive,
    /// Where; `None` when that is not chosen yet.
    pub(crate) recipient: Option<NodeId>,
    /// Of a send with a key: what it asks for.
    pub(crate) digest: Option<String>,
    /// Its client takes the responses.
    pub(crate) client: bool,
}

/// See the module. Clones are the same keeper.
#[derive(Clone)]
pub(crate) struct Keeper(Rc<Inner>);

struct Inner {
    table: RefCell<Table>,
    history: History,
    disk: Disk,
    letters: DeadLetters,
    settings: Rc<RefCell<Settings>>,
    store: Store,
    complained: Cell<Option<Instant>>,
}

impl std::fmt::Debug for Keeper {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let table = self.0.table.borrow();
        write!(f, "Keeper({} works, {} B)", table.works.len(), table.bytes)
    }
}

/// Milliseconds since 1970.
pub(crate) fn now_ms() -> u64 {
    ms_of(SystemTime::now())
}

fn ms_of(time: SystemTime) -> u64 {
    let since = time.duration_since(SystemTime::UNIX_EPOCH);
    since.map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(0))
}

pub(crate) fn not_found(what: &IdPrefix) -> ErrorBody {
    let text = format!("nothing is known here of a work {what}");
    ErrorBody::new(ErrorCode::NotFound, text)
}

/// The one id among these that begins so.
pub(crate) fn resolve(
    prefix: &IdPrefix,
    ids: impl Iterator<Item = MessageId>,
) -> Result<MessageId, ErrorBody> {
    /// As many as are named when there are several.
    const NAMED: usize = 8;
    if let Some(whole) = prefix.whole() {
        return Ok(whole);
    }
    let mut found: Vec<MessageId> = Vec::new();
    for id in ids.filter(|id| prefix.matches(*id)) {
        if !found.contains(&id) {
            found.push(id);
        }
        if found.len() > NAMED {
            break;
        }
    }
    match found[..] {
        [] => Err(not_found(prefix)),
        [one] => Ok(one),
        _ => {
            let text = format!("several ids begin with {prefix}; give more of it");
            let ids: Vec<String> = found.iter().map(ToString::to_string).collect();
            Err(ErrorBody::new(ErrorCode::InvalidRequest, text).with("ids", ids))
        }
    }
}

fn make_dir(data_dir: &Path, name: &str) -> io::Result<PathBuf> {
    let dir = data_dir.join(name);
    DirBuilder::new().recursive(true).mode(0o700).create(&dir)?;
    Ok(dir)
}

impl Keeper {
    /// Opens what an earlier run left in the data directory.
    ///
    /// # Errors
    ///
    /// When a directory cannot be made or read. A file that makes no sense is left alone and
    /// logged.
    pub(crate) fn open(
        data_dir: &Path,
        settings: Rc<RefCell<Settings>>,
        store: Store,
    ) -> io::Result<Self> {
        let dir = make_dir(data_dir, "kept")?;
        let letters = DeadLetters::open(make_dir(data_dir, "dead-letters")?)?;
        // Also when they were there: whoever made them may have been killed before this.
        File::open(data_dir)?.sync_all()?;
        let ended_max = ending::ended_max(settings.borrow().spool.max_bytes);
        let mut table = Table::new(ended_max);
        start::load(&dir, &mut table)?;
        if table.files > 0 {
            tracing::info!(works = table.files, "kept responses");
        }
        let keeper = Self(Rc::new(Inner {
            table: RefCell::new(table),
            history: History::new(store.clone(), ended_max),
            disk: Disk::new(dir),
            letters,
            settings,
            store,
            complained: Cell::new(None),
        }));
        Ok(keeper)
    }

    /// Who is told of changes, and from now on what was kept long enough is dropped.
    pub(crate) fn start(&self, on_change: OnChange) {
        self.0.table.borrow_mut().on_change = Some(on_change);
        let keeper = self.clone();
        task::spawn("results-retention", async move {
            keeper.survey().await;
            loop {
                let (results, letters) = keeper.retention();
                let pause = results.min(letters) / 4;
                tokio::time::sleep(pause.clamp(SWEEP.0, SWEEP.1)).await;
                keeper.sweep();
            }
        });
    }

    fn retention(&self) -> (Duration, Duration) {
        let settings = self.0.settings.borrow();
        let spool = &settings.spool;
        (spool.results_retention, spool.dead_letter_retention)
    }

    /// The works that ran here and have ended.
    pub(crate) fn history(&self) -> &History {
        &self.0.history
    }

    /// The messages that were given up.
    pub(crate) fn letters(&self) -> &DeadLetters {
        &self.0.letters
    }

    /// Waits until what was asked before is on the disk. What comes later is the core's still.
    pub(crate) async fn flushed(&self) {
        self.0.disk.flushed().await;
        self.0.letters.flushed().await;
    }

    // What the engine tells.

    /// A work is about to be sent. With a digest the engine is told when that is on the disk, and must
    /// not send before.
    pub(crate) fn begin(&self, id: MessageId, begin: Begin) {
        let mut table = self.0.table.borrow_mut();
        let mut work = Work::new(now_ms());
        work.directive = Some(begin.directive);
        work.recipient = begin.recipient;
        work.digest = begin.digest;
        work.client = begin.client;
        let keyed = work.digest.is_some();
        table.works.insert(id, work);
        self.bound(&mut table);
        drop(table);
        if keyed {
            self.write(id);
        }
    }

    /// The work was accepted.
    pub(crate) fn accepted(&self, id: MessageId, recipient: &NodeId) {
        let mut table = self.0.table.borrow_mut();
        if let Some(work) = table.works.get_mut(&id) {
            work.accepted = true;
            work.recipient = Some(recipient.clone());
            work.changed.notify_waiters();
        }
    }

    /// The work was not accepted, or wants no responses and has arrived: there is nothing to keep.
    pub(crate) fn abandon(&self, id: MessageId) {
        let mut table = self.0.table.borrow_mut();
        self.unlink(&mut table, id);
        self.forget(&mut table, id);
    }

    /// A response came.
    pub(crate) fn take(&self, id: MessageId, response: &Response) {
        self.look(id, response.serial);
        let mut table = self.0.table.borrow_mut();
        let table = &mut *table;
        let work = table.works.entry(id).or_insert_with(|| {
            let mut work = Work::new(id.made_ms().unwrap_or_else(now_ms));
            work.recipient = Some(response.sender.clone());
            work
        });
        work.accepted = true;
        let Some(serial) = work.place(response.serial, response.eof.is_some()) else {
            // It was kept before a restart, and the core did not hear of it.
            work.told = work.told.min(response.serial - 1);
            return;
        };
        if work.last == 0 && response.serial > 1 && !work.has_file {
            // Those before it were let go before a restart, which knows no more than that. Without them
            // the others are of use to nobody.
            work.dropped = true;
        }
        work.last = serial;
        if !work.is_let_go() {
            let mut response = response.clone();
            response.serial = serial;
            if let Payload::Inline(bytes) = &mut response.payload {
                // A slice of a read buffer would keep the whole buffer.
                *bytes = bytes::Bytes::copy_from_slice(bytes);
            }
            work.push(response);
        }
        if let Some(eof) = &response.eof
            && table.end(id, End::from(eof))
        {
            self.remember(table, id);
        }
        self.bound(table);
    }

    /// The client has this response and those before it.
    pub(crate) fn client_has(&self, id: MessageId, serial: u64) {
        let mut table = self.0.table.borrow_mut();
        if let Some(work) = table.works.get_mut(&id) {
            work.taken = work.taken.max(serial);
            if work.is_served() {
                self.serve(&mut table, id);
            }
        }
    }

    /// The client is gone: what came and comes waits for whoever asks.
    pub(crate) fn client_gone(&self, id: MessageId) {
        let mut table = self.0.table.borrow_mut();
        if let Some(work) = table.works.get_mut(&id) {
            work.client = false;
        }
    }

    /// Writes what is to be written, and says up to where the core is to forget the responses of
    /// this work; `None`: nothing new. To be asked after everything that concerns it.
    pub(crate) fn to_forget(&self, id: MessageId, store: &Store) -> Option<u64> {
        self.spill(id, store);
        let mut table = self.0.table.borrow_mut();
        let work = table.works.get_mut(&id)?;
        let done = work.done();
        (done > work.told).then(|| {
            work.told = done;
            done
        })
    }

    /// Nobody wants the responses of this work any more.
    pub(crate) fn release(&self, id: MessageId) -> bool {
        let mut table = self.0.table.borrow_mut();
        let Some(work) = table.works.get_mut(&id) else {
            return false;
        };
        work.released = true;
        work.changed.notify_waiters();
        let last = work.last;
        self.unlink(&mut table, id);
        if let Some(work) = table.works.get_mut(&id) {
            work.drop_pending(last);
        }
        true
    }

    /// Whether the end of this work is known.
    pub(crate) fn has_end(&self, id: MessageId) -> bool {
        let table = self.0.table.borrow();
        table.works.get(&id).is_some_and(|work| work.end.is_some())
    }

    /// How many responses came of a work, and how it ended, if it was for this node and that is known.
    pub(crate) fn end_of(&self, id: MessageId, recipient: &NodeId) -> Option<(u64, Eof)> {
        self.look(id, 1);
        let table = self.0.table.borrow();
        let work = table.works.get(&id)?;
        let (end, _) = work.end.as_ref()?;
        let end = Eof {
            code: end.code,
            error: end.error.clone(),
        };
        (work.recipient.as_ref() == Some(recipient)).then(|| (work.responses(), end))
    }

    /// A released work that has ended, and that the core was told of, is forgotten.
    pub(crate) fn tidy(&self, id: MessageId) {
        let mut table = self.0.table.borrow_mut();
        let over = table
            .works
            .get(&id)
            .is_some_and(|work| work.released && work.end.is_some() && work.told >= work.last);
        if over {
            self.forget(&mut table, id);
        }
    }

    // What is asked.

    /// Whether something is known of this work.
    pub(crate) fn knows(&self, id: MessageId) -> bool {
        self.0.table.borrow().works.contains_key(&id)
    }

    /// Whether nobody wants the responses of this work any more, which has not ended.
    pub(crate) fn is_released(&self, id: MessageId) -> bool {
        let table = self.0.table.borrow();
        table.works.get(&id).is_some_and(|work| work.released)
    }

    /// What a send with a key asked for, whether it was accepted, and its recipient.
    pub(crate) fn keyed(&self, id: MessageId) -> Option<(Option<String>, bool, Option<NodeId>)> {
        self.look(id, 1);
        let table = self.0.table.borrow();
        let work = table.works.get(&id)?;
        Some((work.digest.clone(), work.accepted, work.recipient.clone()))
    }

    /// Whether this work is known, and its client was not told that it is accepted.
    pub(crate) fn is_unaccepted(&self, id: MessageId) -> bool {
        let table = self.0.table.borrow();
        table.works.get(&id).is_some_and(|work| !work.accepted)
    }

    /// Whether the first line of its file is on the disk, or nobody wants it there any more.
    pub(crate) fn has_head(&self, id: MessageId) -> bool {
        let table = self.0.table.borrow();
        let work = table.works.get(&id);
        work.is_some_and(|work| work.has_file || work.is_let_go())
    }

    /// All works that are known.
    pub(crate) fn ids(&self) -> Vec<MessageId> {
        self.0.table.borrow().works.keys().copied().collect()
    }

    /// How it stands with the works; `arrived` is what the core knows of one.
    pub(crate) fn statuses(
        &self,
        node: &NodeId,
        only: Option<MessageId>,
        arrived: impl Fn(MessageId) -> Option<bool>,
    ) -> Vec<WorkStatus> {
        match only {
            Some(id) => self.look(id, 1),
            None => self.look_at_all(),
        }
        let now = now_ms();
        let table = self.0.table.borrow();
        let works = table.works.iter().filter(|(id, work)| {
            (work.accepted || work.last > 0) && only.is_none_or(|only| only == **id)
        });
        works
            .map(|(id, work)| WorkStatus {
                id: *id,
                role: WorkRole::Sent,
                state: work.state(arrived(*id)),
                cancelling: false,
                directive: work.directive.clone(),
                sender: Some(node.clone()),
                recipient: work.recipient.clone(),
                age_ms: now.saturating_sub(work.since_ms),
                ended_ms: work.end.as_ref().map(|(_, at)| now.saturating_sub(*at)),
                message: None,
                progress: None,
                sent: None,
                coming: None,
                code: work.end.as_ref().map(|(end, _)| end.code),
                error: work.end.as_ref().and_then(|(end, _)| end.error.clone()),
                responses: work.responses(),
                kept_bytes: work.bytes,
                dropped: work.dropped,
            })
            .collect()
    }

    // How it is done.

    /// Writes what came of a work, when it is time for that.
    fn spill(&self, id: MessageId, store: &Store) {
        let mut table = self.0.table.borrow_mut();
        let table = &mut *table;
        let Some(work) = table.works.get_mut(&id) else {
            return;
        };
        if work.writing.is_some() || !work.wants_disk() {
            return;
        }
        if !table.stalled.is_empty() {
            table.stalled.insert(id);
            return;
        }
        let mut bytes = Vec::new();
        let mut links = Vec::new();
        if work.length == 0 {
            frame::put_head(&work.head(id), &mut bytes);
        }
        for response in &work.pending {
            if let Payload::Stored { entry, .. } = &response.payload {
                links.push((store.path(*entry), apart(id, response.serial)));
            }
            frame::put_response(response, &mut bytes);
        }
        let last = work.last;
        self.append(work, id, last, bytes, links);
    }

    /// Writes the head of a work alone.
    fn write(&self, id: MessageId) {
        let mut table = self.0.table.borrow_mut();
        if let Some(work) = table.works.get_mut(&id) {
            let mut bytes = Vec::new();
            frame::put_head(&work.head(id), &mut bytes);
            self.append(work, id, 0, bytes, Vec::new());
        }
    }

    fn append(
        &self,
        work: &mut Work,
        id: MessageId,
        last: u64,
        bytes: Vec<u8>,
        links: Vec<(PathBuf, String)>,
    ) {
        work.writing = Some(last);
        let length = bytes.len() as u64;
        let op = Op::Append {
            name: id.to_string(),
            offset: work.length,
            bytes,
            links,
        };
        let keeper = self.clone();
        self.0.disk.push(op, move |result| {
            keeper.written(id, last, length, result);
        });
    }

    fn written(&self, id: MessageId, last: u64, length: u64, result: io::Result<()>) {
        let mut table = self.0.table.borrow_mut();
        let table_ref = &mut *table;
        let Some(work) = table_ref.works.get_mut(&id) else {
            // Forgotten meanwhile; its removal is behind this write.
            return;
        };
        work.writing = None;
        let told = match result {
            // The removal that was asked for is behind this write.
            Ok(()) if work.is_let_go() || work.is_served() => Ok(()),
            Ok(()) => {
                let mut bytes = length;
                while let Some(first) = work.pending.front() {
                    if first.serial > last {
                        break;
                    }
                    if let Payload::Stored { size, .. } = &first.payload {
                        bytes += size;
                        work.apart.push(first.serial);
                    }
                    let serial = first.serial;
                    work.drop_pending(serial);
                }
                work.written = work.written.max(last);
                work.length += length;
                work.bytes += bytes;
                table_ref.bytes += bytes;
                if !std::mem::replace(&mut work.has_file, true) {
                    table_ref.files += 1;
                }
                work.changed.notify_waiters();
                self.make_room(table_ref);
                Ok(())
            }
            Err(error) => {
                if self.may_complain() {
                    tracing::warn!(work = %id, %error, "responses were not kept; it is tried again");
                    if is_full(&error) {
                        self.0.store.tighten();
                    }
                }
                let text = format!("what is known of the work cannot be kept: {error}");
                Err(ErrorBody::new(ErrorCode::Internal, text))
            }
        };
        drop(table);
        if told.is_err() {
            self.try_again(id);
        }
        self.tell(id, told);
    }

    /// Tries again later to write the responses of a work, and those of all others that come
    /// until then.
    fn try_again(&self, id: MessageId) {
        let mut table = self.0.table.borrow_mut();
        let is_first = table.stalled.is_empty();
        table.stalled.insert(id);
        if !is_first {
            return;
        }
        let keeper = self.clone();
        task::spawn("results-again", async move {
            tokio::time::sleep(AGAIN).await;
            let stalled = std::mem::take(&mut keeper.0.table.borrow_mut().stalled);
            for id in stalled {
                keeper.tell(id, Ok(()));
            }
        });
    }

    fn tell(&self, id: MessageId, result: Result<(), ErrorBody>) {
        let table = self.0.table.borrow();
        if let Some(on_change) = &table.on_change {
            on_change(id, result);
        }
    }

    /// The client has everything: nothing needs to be kept.
    fn serve(&self, table: &mut Table, id: MessageId) {
        self.unlink(table, id);
        if let Some(work) = table.works.get_mut(&id) {
            let last = work.last;
            work.drop_pending(last);
        }
    }

    /// Remembers how a work ended. What is asked of the store after this is not safe without it.
    fn remember(&self, table: &mut Table, id: MessageId) {
        if let Some(work) = table.works.get_mut(&id)
            && let Some(ending) = work.ending(id)
        {
            let memo = self.0.store.keep_memo(ending.to_memo());
            if let Some(older) = work.memo.replace(memo) {
                self.0.store.remove(older);
            }
        }
    }

    /// Keeps the table within its limits.
    fn bound(&self, table: &mut Table) {
        table.bound();
        self.forget_memos(table);
    }

    fn forget(&self, table: &mut Table, id: MessageId) {
        table.forget(id);
        self.forget_memos(table);
    }

    /// Removes the memos of works that were forgotten.
    fn forget_memos(&self, table: &mut Table) {
        for memo in table.take_forgotten() {
            self.0.store.remove(memo);
        }
    }

    fn remove(&self, names: Vec<String>) {
        self.0.disk.push(Op::Remove { names }, |result| {
            if let Err(error) = result {
                tracing::warn!(%error, "kept responses were not removed");
            }
        });
    }

    /// Removes what is on the disk of a work.
    fn unlink(&self, table: &mut Table, id: MessageId) {
        let Some(work) = table.works.get_mut(&id) else {
            return;
        };
        if !work.has_file && work.writing.is_none() {
            return;
        }
        table.bytes -= std::mem::take(&mut work.bytes);
        table.files -= u64::from(std::mem::take(&mut work.has_file));
        let mut names = vec![id.to_string()];
        names.extend(
            work.apart
                .drain(..)
                .flat_map(|serial| apart_names(id, serial)),
        );
        // A write under way may bring these as well.
        let stored = work
            .pending
            .iter()
            .filter(|response| matches!(response.payload, Payload::Stored { .. }));
        names.extend(stored.flat_map(|response| apart_names(id, response.serial)));
        work.length = 0;
        work.unread = None;
        self.remove(names);
    }

    /// Drops responses until there is room again: first of works that have ended, the oldest first,
    /// then of the oldest others.
    fn make_room(&self, table: &mut Table) {
        let (max_bytes, max_files) = {
            let settings = self.0.settings.borrow();
            let spool = &settings.spool;
            (spool.results_max_bytes, spool.results_max_entries)
        };
        if table.bytes <= max_bytes && table.files <= max_files {
            return;
        }
        let bytes_goal = max_bytes - max_bytes / MAKE_ROOM;
        let files_goal = max_files - max_files / MAKE_ROOM;
        let mut victims: Vec<_> = table
            .works
            .iter()
            // What takes an unknown part of the room is looked at soon.
            .filter(|(_, work)| work.has_file && work.unread.is_none())
            .map(|(id, work)| {
                let since = work.end.as_ref().map_or(work.since_ms, |(_, at)| *at);
                ((work.end.is_none(), since), *id)
            })
            .collect();
        victims.sort_unstable();
        let mut dropped = 0u64;
        let mut last = None;
        for (_, id) in victims {
            if table.bytes <= bytes_goal && table.files <= files_goal {
                break;
            }
            self.unlink(table, id);
            if let Some(work) = table.works.get_mut(&id) {
                work.dropped = true;
                let to = work.last;
                work.drop_pending(to);
                work.changed.notify_waiters();
                dropped += 1;
                last = Some(id);
            }
        }
        if let Some(work) = last
            && self.may_complain()
        {
            tracing::warn!(
                %work,
                works = dropped,
                "responses that nobody asked for were dropped to make room (spool.results-max-bytes, spool.results-max-entries)"
            );
        }
    }

    /// Forgets what was kept long enough.
    fn sweep(&self) {
        let (results, letters) = self.retention();
        let now = now_ms();
        let ms = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
        let before = now.saturating_sub(ms(results));
        let mut table = self.0.table.borrow_mut();
        let old: Vec<_> = table
            .ended
            .iter()
            .take_while(|(at, _)| *at <= before)
            .map(|(_, id)| *id)
            .collect();
        for id in old {
            let has_core = |work: &Work| work.told < work.last || work.unread == Some(Unread::Open);
            if table.works.get(&id).is_some_and(has_core) {
                // The core still has some of it.
                continue;
            }
            self.unlink(&mut table, id);
            self.forget(&mut table, id);
        }
        drop(table);
        self.0.history.sweep(before);
        self.0.letters.sweep(now.saturating_sub(ms(letters)));
    }

    fn may_complain(&self) -> bool {
        let now = Instant::now();
        let last = self.0.complained.get();
        let quiet = last.is_none_or(|then| now - then >= COMPLAIN_EVERY);
        if quiet {
            self.0.complained.set(Some(now));
        }
        quiet
    }
}

fn is_full(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
    )
}

fn apart(id: MessageId, serial: u64) -> String {
    format!("{id}.{serial}")
}

/// The names of a payload apart, and of its checksums.
fn apart_names(id: MessageId, serial: u64) -> [String; 2] {
    let name = apart(id, serial);
    let sums = format!("{name}{}", receptor_spool::SUMS);
    [name, sums]
}
