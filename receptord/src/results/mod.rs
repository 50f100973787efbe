//! What this node keeps for those who send from it: the responses of their works until they have
//! them, what it knows of these works, and the messages that were given up.
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
//!   <data-dir>/dead-letters/<id>       a message that was given up (letters.rs)
//! ```

mod disk;
mod frame;
mod letters;
mod reader;
mod work;

use std::cell::{Cell, RefCell};
use std::collections::{BTreeSet, HashMap};
use std::fs::{self, DirBuilder, File};
use std::io::{self, BufReader};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::{Duration, Instant, SystemTime};

use receptor_mesh::Payload;
use receptor_proto::control::{WorkRole, WorkStatus};
use receptor_proto::{Directive, ErrorBody, ErrorCode, IdPrefix, MessageId, NodeId};

use self::disk::{Disk, Op};
use self::frame::{End, Head};
use self::work::Work;
use crate::config::Settings;
use crate::engine::Response;
use crate::spooler::Store;
use crate::task;

pub(crate) use self::letters::{DeadLetter, DeadLetters};
pub(crate) use self::reader::{Item, Source, Stop};

/// Works that are known at once. Of more, the oldest that nothing came of are known to the core
/// alone until a response comes.
const WORKS_MAX: usize = 20_000;
/// Works that have ended and are still known.
const ENDED_MAX: usize = 10_000;
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
    state: RefCell<State>,
    disk: Disk,
    letters: DeadLetters,
    settings: Rc<RefCell<Settings>>,
    store: Store,
    complained: Cell<Option<Instant>>,
}

#[derive(Default)]
struct State {
    works: HashMap<MessageId, Work>,
    /// Those that have ended, by when.
    ended: BTreeSet<(u64, MessageId)>,
    /// Works with a file, and bytes on the disk.
    files: u64,
    bytes: u64,
    /// From how many on it is looked again for those that can go: where none can, looking at all of them
    /// for each new one would cost the more the more there are.
    look_at_ended: usize,
    look_at_works: usize,
    /// Works whose responses could not be written, or that came while that was so: all are tried
    /// again together.
    stalled: BTreeSet<MessageId>,
    on_change: Option<OnChange>,
}

impl std::fmt::Debug for Keeper {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let state = self.0.state.borrow();
        write!(f, "Keeper({} works, {} B)", state.works.len(), state.bytes)
    }
}

/// Milliseconds since 1970.
pub(crate) fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
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
        let mut state = State::default();
        load(&dir, &mut state)?;
        if state.files > 0 {
            tracing::info!(works = state.files, bytes = state.bytes, "kept responses");
        }
        let keeper = Self(Rc::new(Inner {
            state: RefCell::new(state),
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
        self.0.state.borrow_mut().on_change = Some(on_change);
        let keeper = self.clone();
        task::spawn("results-retention", async move {
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

    /// The messages that were given up.
    pub(crate) fn letters(&self) -> &DeadLetters {
        &self.0.letters
    }

    // What the engine tells.

    /// A work is about to be sent. With a digest the engine is told when that is on the disk, and must
    /// not send before.
    pub(crate) fn begin(&self, id: MessageId, begin: Begin) {
        let mut state = self.0.state.borrow_mut();
        let mut work = Work::new(now_ms());
        work.directive = Some(begin.directive);
        work.recipient = begin.recipient;
        work.digest = begin.digest;
        work.client = begin.client;
        let keyed = work.digest.is_some();
        state.works.insert(id, work);
        state.bound();
        drop(state);
        if keyed {
            self.write(id);
        }
    }

    /// A work of an earlier run, that the core still knows.
    pub(crate) fn restore(&self, id: MessageId, directive: &Directive, recipient: &NodeId) {
        let mut state = self.0.state.borrow_mut();
        if state.works.len() >= WORKS_MAX {
            return;
        }
        let work = state.works.entry(id).or_insert_with(|| {
            // The id of a message without a key says when it was made.
            Work::new(id.made_ms().unwrap_or_else(now_ms))
        });
        work.accepted = true;
        work.directive.get_or_insert_with(|| directive.clone());
        work.recipient.get_or_insert_with(|| recipient.clone());
    }

    /// After a start: a work of an earlier run that the core does not know was never accepted, or
    /// is over.
    pub(crate) fn settle_old(&self, is_known: impl Fn(MessageId) -> bool) {
        let old: Vec<_> = {
            let state = self.0.state.borrow();
            let open = state.works.iter().filter(|(_, work)| work.end.is_none());
            let open = open.filter(|(id, _)| !is_known(**id));
            open.map(|(id, work)| (*id, work.last)).collect()
        };
        for (id, last) in old {
            if last == 0 {
                self.abandon(id);
                continue;
            }
            let text = "its node was stopped, and knows nothing of it any more";
            let end = End {
                code: 1,
                error: Some(ErrorBody::new(ErrorCode::Lost, text)),
            };
            let mut state = self.0.state.borrow_mut();
            state.end(id, end);
        }
    }

    /// The work was accepted.
    pub(crate) fn accepted(&self, id: MessageId, recipient: &NodeId) {
        let mut state = self.0.state.borrow_mut();
        if let Some(work) = state.works.get_mut(&id) {
            work.accepted = true;
            work.recipient = Some(recipient.clone());
            work.changed.notify_waiters();
        }
    }

    /// The work was not accepted, or wants no responses and has arrived: there is nothing to keep.
    pub(crate) fn abandon(&self, id: MessageId) {
        let mut state = self.0.state.borrow_mut();
        self.unlink(&mut state, id);
        state.forget(id);
    }

    /// Its end was asked for.
    pub(crate) fn cancelling(&self, id: MessageId) {
        let mut state = self.0.state.borrow_mut();
        if let Some(work) = state.works.get_mut(&id)
            && work.end.is_none()
        {
            work.cancelling = true;
        }
    }

    /// A response came.
    pub(crate) fn take(&self, id: MessageId, response: &Response) {
        let mut state = self.0.state.borrow_mut();
        let state = &mut *state;
        let work = state.works.entry(id).or_insert_with(|| {
            let mut work = Work::new(id.made_ms().unwrap_or_else(now_ms));
            work.recipient = Some(response.sender.clone());
            work
        });
        work.accepted = true;
        if response.serial <= work.last {
            // It was kept before a restart, and the core did not hear of it.
            work.told = work.told.min(response.serial - 1);
            return;
        }
        work.last = response.serial;
        if !work.is_let_go() {
            let mut response = response.clone();
            if let Payload::Inline(bytes) = &mut response.payload {
                // A slice of a read buffer would keep the whole buffer.
                *bytes = bytes::Bytes::copy_from_slice(bytes);
            }
            work.push(response);
        }
        if let Some(eof) = &response.eof {
            state.end(id, End::from(eof));
        }
        state.bound();
    }

    /// The client has this response and those before it.
    pub(crate) fn client_has(&self, id: MessageId, serial: u64) {
        let mut state = self.0.state.borrow_mut();
        if let Some(work) = state.works.get_mut(&id) {
            work.taken = work.taken.max(serial);
            if work.is_served() {
                self.serve(&mut state, id);
            }
        }
    }

    /// The client is gone: what came and comes waits for whoever asks.
    pub(crate) fn client_gone(&self, id: MessageId) {
        let mut state = self.0.state.borrow_mut();
        if let Some(work) = state.works.get_mut(&id) {
            work.client = false;
        }
    }

    /// Writes what is to be written, and says up to where the core is to forget the responses of
    /// this work; `None`: nothing new. To be asked after everything that concerns it.
    pub(crate) fn to_forget(&self, id: MessageId, store: &Store) -> Option<u64> {
        self.spill(id, store);
        let mut state = self.0.state.borrow_mut();
        let work = state.works.get_mut(&id)?;
        let done = work.done();
        (done > work.told).then(|| {
            work.told = done;
            done
        })
    }

    /// Nobody wants the responses of this work any more.
    pub(crate) fn release(&self, id: MessageId) -> bool {
        let mut state = self.0.state.borrow_mut();
        let Some(work) = state.works.get_mut(&id) else {
            return false;
        };
        work.released = true;
        work.changed.notify_waiters();
        let last = work.last;
        self.unlink(&mut state, id);
        if let Some(work) = state.works.get_mut(&id) {
            work.drop_pending(last);
        }
        true
    }

    /// A released work that has ended, and that the core was told of, is forgotten.
    pub(crate) fn tidy(&self, id: MessageId) {
        let mut state = self.0.state.borrow_mut();
        let over = state
            .works
            .get(&id)
            .is_some_and(|work| work.released && work.end.is_some() && work.told >= work.last);
        if over {
            state.forget(id);
        }
    }

    // What is asked.

    /// Whether something is known of this work.
    pub(crate) fn knows(&self, id: MessageId) -> bool {
        self.0.state.borrow().works.contains_key(&id)
    }

    /// What a send with a key asked for, whether it was accepted, and its recipient.
    pub(crate) fn keyed(&self, id: MessageId) -> Option<(Option<String>, bool, Option<NodeId>)> {
        let state = self.0.state.borrow();
        let work = state.works.get(&id)?;
        Some((work.digest.clone(), work.accepted, work.recipient.clone()))
    }

    /// Whether the first line of its file is on the disk.
    pub(crate) fn has_head(&self, id: MessageId) -> bool {
        let state = self.0.state.borrow();
        state.works.get(&id).is_some_and(|work| work.has_file)
    }

    /// All works that are known.
    pub(crate) fn ids(&self) -> Vec<MessageId> {
        self.0.state.borrow().works.keys().copied().collect()
    }

    /// How it stands with the works; `arrived` is what the core knows of one.
    pub(crate) fn statuses(
        &self,
        node: &NodeId,
        only: Option<MessageId>,
        arrived: impl Fn(MessageId) -> Option<bool>,
    ) -> Vec<WorkStatus> {
        let now = now_ms();
        let state = self.0.state.borrow();
        let works = state.works.iter().filter(|(id, work)| {
            (work.accepted || work.last > 0) && only.is_none_or(|only| only == **id)
        });
        works
            .map(|(id, work)| WorkStatus {
                id: *id,
                role: WorkRole::Sent,
                state: work.state(arrived(*id)),
                cancelling: work.cancelling && work.end.is_none(),
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
                responses: work.last,
                kept_bytes: work.bytes,
                dropped: work.dropped,
            })
            .collect()
    }

    // How it is done.

    /// Writes what came of a work, when it is time for that.
    fn spill(&self, id: MessageId, store: &Store) {
        let mut state = self.0.state.borrow_mut();
        let state = &mut *state;
        let Some(work) = state.works.get_mut(&id) else {
            return;
        };
        if work.writing.is_some() || !work.wants_disk() {
            return;
        }
        if !state.stalled.is_empty() {
            state.stalled.insert(id);
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
        let mut state = self.0.state.borrow_mut();
        if let Some(work) = state.works.get_mut(&id) {
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
        let mut state = self.0.state.borrow_mut();
        let state_ref = &mut *state;
        let Some(work) = state_ref.works.get_mut(&id) else {
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
                state_ref.bytes += bytes;
                if !std::mem::replace(&mut work.has_file, true) {
                    state_ref.files += 1;
                }
                work.changed.notify_waiters();
                self.make_room(state_ref);
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
        drop(state);
        if told.is_err() {
            self.try_again(id);
        }
        self.tell(id, told);
    }

    /// Tries again later to write the responses of a work, and those of all others that come
    /// until then.
    fn try_again(&self, id: MessageId) {
        let mut state = self.0.state.borrow_mut();
        let is_first = state.stalled.is_empty();
        state.stalled.insert(id);
        if !is_first {
            return;
        }
        let keeper = self.clone();
        task::spawn("results-again", async move {
            tokio::time::sleep(AGAIN).await;
            let stalled = std::mem::take(&mut keeper.0.state.borrow_mut().stalled);
            for id in stalled {
                keeper.tell(id, Ok(()));
            }
        });
    }

    fn tell(&self, id: MessageId, result: Result<(), ErrorBody>) {
        let state = self.0.state.borrow();
        if let Some(on_change) = &state.on_change {
            on_change(id, result);
        }
    }

    /// The client has everything: nothing needs to be kept.
    fn serve(&self, state: &mut State, id: MessageId) {
        self.unlink(state, id);
        if let Some(work) = state.works.get_mut(&id) {
            let last = work.last;
            work.drop_pending(last);
        }
    }

    /// Removes what is on the disk of a work.
    fn unlink(&self, state: &mut State, id: MessageId) {
        let Some(work) = state.works.get_mut(&id) else {
            return;
        };
        if !work.has_file && work.writing.is_none() {
            return;
        }
        state.bytes -= std::mem::take(&mut work.bytes);
        state.files -= u64::from(std::mem::take(&mut work.has_file));
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
        self.0.disk.push(Op::Remove { names }, |result| {
            if let Err(error) = result {
                tracing::warn!(%error, "kept responses were not removed");
            }
        });
    }

    /// Drops responses until there is room again: first of works that have ended, the oldest first,
    /// then of the oldest others.
    fn make_room(&self, state: &mut State) {
        let (max_bytes, max_files) = {
            let settings = self.0.settings.borrow();
            let spool = &settings.spool;
            (spool.results_max_bytes, spool.results_max_entries)
        };
        if state.bytes <= max_bytes && state.files <= max_files {
            return;
        }
        let bytes_goal = max_bytes - max_bytes / MAKE_ROOM;
        let files_goal = max_files - max_files / MAKE_ROOM;
        let mut victims: Vec<_> = state
            .works
            .iter()
            .filter(|(_, work)| work.has_file)
            .map(|(id, work)| {
                let since = work.end.as_ref().map_or(work.since_ms, |(_, at)| *at);
                ((work.end.is_none(), since), *id)
            })
            .collect();
        victims.sort_unstable();
        let mut dropped = 0u64;
        let mut last = None;
        for (_, id) in victims {
            if state.bytes <= bytes_goal && state.files <= files_goal {
                break;
            }
            self.unlink(state, id);
            if let Some(work) = state.works.get_mut(&id) {
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
        let mut state = self.0.state.borrow_mut();
        let old: Vec<_> = state
            .ended
            .iter()
            .take_while(|(at, _)| *at <= before)
            .map(|(_, id)| *id)
            .collect();
        for id in old {
            if state
                .works
                .get(&id)
                .is_some_and(|work| work.told < work.last)
            {
                // The core still has some of it.
                continue;
            }
            self.unlink(&mut state, id);
            state.forget(id);
        }
        drop(state);
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

impl State {
    fn end(&mut self, id: MessageId, end: End) {
        if let Some(work) = self.works.get_mut(&id) {
            let at = now_ms();
            work.end = Some((end, at));
            work.changed.notify_waiters();
            self.ended.insert((at, id));
        }
    }

    fn forget(&mut self, id: MessageId) {
        if let Some(work) = self.works.remove(&id) {
            if let Some((_, at)) = work.end {
                self.ended.remove(&(at, id));
            }
            work.changed.notify_waiters();
        }
    }

    /// Keeps the table within its limits; what has a file is bounded by other limits.
    fn bound(&mut self) {
        if self.ended.len() > self.look_at_ended.max(ENDED_MAX) {
            let over = |(_, id): &&(u64, MessageId)| {
                let work = self.works.get(id);
                work.is_none_or(|work| {
                    !work.has_file && work.told >= work.last && (!work.client || work.is_served())
                })
            };
            let oldest: Vec<_> = self
                .ended
                .iter()
                .filter(over)
                .take(ENDED_MAX / 10)
                .map(|(_, id)| *id)
                .collect();
            for id in oldest {
                self.forget(id);
            }
            self.look_at_ended = self.ended.len() + ENDED_MAX / 10;
        }
        if self.works.len() > self.look_at_works.max(WORKS_MAX) {
            let mut idle: Vec<_> = self
                .works
                .iter()
                .filter(|(_, work)| {
                    !work.client && work.accepted && work.last == 0 && !work.has_file
                })
                .map(|(id, work)| (work.since_ms, *id))
                .collect();
            idle.sort_unstable();
            idle.truncate(WORKS_MAX / 10);
            for (_, id) in idle {
                self.forget(id);
            }
            self.look_at_works = self.works.len() + WORKS_MAX / 10;
        }
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

/// Reads what an earlier run kept.
fn load(dir: &Path, state: &mut State) -> io::Result<()> {
    let mut apart: HashMap<MessageId, Vec<PathBuf>> = HashMap::new();
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        let name = path.file_name().and_then(|name| name.to_str());
        let Some(name) = name else {
            continue;
        };
        if let Some((id, _)) = name.split_once('.') {
            if let Ok(id) = id.parse() {
                apart.entry(id).or_default().push(path);
            }
            continue;
        }
        let Ok(id) = name.parse::<MessageId>() else {
            tracing::warn!(file = %path.display(), "what is this doing here? it is left alone");
            continue;
        };
        match File::open(&path).and_then(|file| frame::scan(BufReader::new(file))) {
            Ok(summary) => {
                let work = loaded(summary, &path)?;
                state.bytes += work.bytes;
                state.files += 1;
                if let Some((_, at)) = work.end {
                    state.ended.insert((at, id));
                }
                state.works.insert(id, work);
            }
            Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                // A write that was never reported.
                fs::remove_file(&path)?;
            }
            Err(error) => return Err(error),
        }
    }
    for (id, paths) in apart {
        for path in paths {
            let name = path.file_name().and_then(|name| name.to_str());
            let name = name.map(|name| name.strip_suffix(receptor_spool::SUMS).unwrap_or(name));
            let serial = name.and_then(|name| name.rsplit_once('.')?.1.parse().ok());
            let work = state.works.get(&id);
            if !work.is_some_and(|work| serial.is_some_and(|serial| work.apart.contains(&serial))) {
                fs::remove_file(&path)?;
            }
        }
    }
    Ok(())
}

fn loaded(summary: frame::Summary, path: &Path) -> io::Result<Work> {
    let frame::Summary {
        head,
        length,
        last,
        apart,
        end,
    } = summary;
    let Head {
        directive,
        recipient,
        since_ms,
        digest,
        ..
    } = head;
    let mut work = Work::new(since_ms);
    work.directive = directive;
    work.recipient = recipient;
    work.digest = digest;
    work.accepted = true;
    work.last = last;
    work.written = last;
    work.has_file = true;
    work.length = length;
    work.bytes = length + apart.iter().map(|(_, size)| size).sum::<u64>();
    work.apart = apart.into_iter().map(|(serial, _)| serial).collect();
    if let Some(end) = end {
        // The core is told again if it does not know.
        let modified = fs::metadata(path)?.modified()?;
        let at = modified.duration_since(SystemTime::UNIX_EPOCH);
        let at = at.map_or(0, |at| u64::try_from(at.as_millis()).unwrap_or(0));
        work.end = Some((end, at.min(now_ms())));
    }
    // Whatever the core gives again is known; what it does not, it was told.
    work.told = last;
    Ok(work)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_client_has_had_is_forgotten_while_it_stays() {
        let mut state = State::default();
        for number in 0..2 * ENDED_MAX {
            let id = MessageId::from_u128(number as u128);
            let mut work = Work::new(0);
            work.client = true;
            (work.last, work.taken, work.told) = (1, 1, 1);
            state.works.insert(id, work);
            let end = End {
                code: 0,
                error: None,
            };
            state.end(id, end);
            state.bound();
        }
        assert!(state.works.len() <= ENDED_MAX);
        assert_eq!(state.ended.len(), state.works.len());
    }
}
