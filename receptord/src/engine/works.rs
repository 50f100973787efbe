//! Works between the core and the plugin host.
//!
//! Owns, for each work that was dispatched here, the reports that the core cannot take yet, the
//! works that the host has no place for yet, and the commands that it has no room for yet. All
//! are bounded: the host sends only so many results before they are confirmed
//! ([`WINDOW_RESULTS`]), and of works there are as many as the core accepts
//! ([`receptor_mesh::Limits::works`]), after which it holds back their senders. Decides nothing
//! about a work but whether policy allows it.
//!
//! A bundle is one work to the core. One for a serving plugin goes to the host as it is; for others it
//! is taken apart here, a part whenever there is a place for one.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use bytes::Bytes;
use receptor_mesh::{Denied, EntryId, Payload, WorkRoom, use_denied};
use receptor_proto::bundle::Bundle;
use receptor_proto::lsa::Capability;
use receptor_proto::packet::{self, Content, Eof, SEGMENT_MAX};
use receptor_proto::plugin::CancelReason;
use receptor_proto::{ErrorBody, ErrorCode, MessageId};
use tokio::sync::mpsc;

use super::Engine;
use crate::by_id::ById;
use crate::control::new_id;
use crate::worker::holder::Resumed;
use crate::worker::{
    Admission, Admitted, Command, Job, JobPayload, Report, ReportPayload, WINDOW_RESULTS,
};

/// A place for a bundle: it is volatile, and never run again.
const BUNDLE: Admitted = Admitted { idempotent: false };

/// The plugin host, as the engine reaches it.
#[derive(Debug)]
pub(crate) struct HostLink {
    /// To the host.
    pub(crate) commands: mpsc::Sender<Command>,
    /// From the host.
    pub(crate) reports: mpsc::Receiver<Report>,
    /// Places for works.
    pub(crate) admission: Admission,
    /// What the host has from an earlier start of the daemon.
    pub(crate) left: Vec<Left>,
}

/// A work whose plugin still runs.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Left {
    work: MessageId,
    idempotent: bool,
    /// The serial of the last response before what it says next.
    said: u64,
}

impl Left {
    /// What the engine has to know of a process's works.
    pub(crate) fn of(resumed: &Resumed) -> impl Iterator<Item = Self> {
        let works = resumed.works();
        works.map(|(work, idempotent, said)| Self {
            work,
            idempotent,
            said,
        })
    }
}

/// See the module.
#[derive(Debug)]
pub(super) struct Works {
    commands: mpsc::Sender<Command>,
    admission: Admission,
    /// What the host had no room for, in order.
    pending: VecDeque<Command>,
    /// How many commands went before the first of these.
    gone: u64,
    next_order: u64,
    /// Places have become free, for whichever plugin waits for one.
    freed: bool,
    table: ById<Work>,
    /// Those whose processes outlive this daemon, until their ends are safe.
    kept: ById<Kept>,
    /// Works of an earlier start that the core has not asked for; `None` once it has asked for all, or if there was none.
    left: Option<ById<Left>>,
    /// By plugin; only those with something in them.
    queues: HashMap<String, Queue>,
}

/// The works of one plugin that have no place yet.
#[derive(Debug, Default)]
struct Queue {
    /// How many the host has taken and not started, at most [`Admission::may_wait`].
    at_host: usize,
    /// In the order in which they came.
    held: VecDeque<Box<Job>>,
    /// The parts of the first of these that are left, when it is being taken apart.
    parts: Option<Bundle>,
}

/// One work that was dispatched here.
#[derive(Debug, Default)]
struct Work {
    /// Which command gives it to the host.
    run: u64,
    /// The core or the store must do something before the next report can be taken.
    blocked: bool,
    /// A result that the core has taken, and the host was not told.
    untaken: usize,
    /// The plugin whose [`Queue::at_host`] counts it.
    queued_for: Option<String>,
    /// What the host reported meanwhile, in order; at most [`WINDOW_RESULTS`] and one end.
    held: VecDeque<Held>,
    /// Where its payload lies, when that is a file of the store.
    stored: Option<EntryId>,
    /// The bundle that it is a part of.
    part_of: Option<MessageId>,
    /// Of a bundle that is, or was, taken apart.
    apart: Option<Apart>,
    /// Its place among all works that came.
    order: u64,
}

/// Which of a work's results are safe, so that its process need not keep them.
#[derive(Debug, Default)]
struct Kept {
    /// The serials of those that were not safe yet, oldest first; `None` of what nobody wants.
    serials: VecDeque<Option<u64>>,
    /// How many were before these.
    safe: u64,
    /// The serials up to this one are safe.
    safe_serial: u64,
    /// Of the end, once the core has it.
    end: Option<Option<u64>>,
}

impl Kept {
    /// What the host is to be told now, if anything has changed: how many results are safe, and whether the end is.
    fn news(&mut self) -> Option<(u64, bool)> {
        let before = self.safe;
        let is_safe = |serial: &Option<u64>| serial.is_none_or(|serial| serial <= self.safe_serial);
        while self.serials.front().is_some_and(is_safe) {
            self.serials.pop_front();
            self.safe += 1;
        }
        let ended = self.serials.is_empty() && self.end.as_ref().is_some_and(is_safe);
        (self.safe > before || ended).then_some((self.safe, ended))
    }
}

/// What is known of a bundle's parts.
#[derive(Debug, Default)]
struct Apart {
    /// There are more, in its queue.
    more: bool,
    /// At the host.
    running: usize,
    failed: usize,
    error: Option<ErrorBody>,
    /// The host shut down before one of them had ended.
    left: bool,
}

#[derive(Debug)]
enum Held {
    Data {
        content: Content,
        name: Option<String>,
        payload: ReportPayload,
    },
    Done {
        eof: Eof,
        content: Content,
        payload: ReportPayload,
    },
}

impl Held {
    fn payload(&self) -> &ReportPayload {
        match self {
            Self::Data { payload, .. } | Self::Done { payload, .. } => payload,
        }
    }

    /// Its payload is in a file, and the core wants what is small in its hand.
    fn is_to_load(&self) -> bool {
        match self.payload() {
            ReportPayload::Inline(_) => false,
            ReportPayload::File { size, .. } => *size <= SEGMENT_MAX as u64,
        }
    }

    fn set_payload(&mut self, with: ReportPayload) {
        match self {
            Self::Data { payload, .. } | Self::Done { payload, .. } => *payload = with,
        }
    }
}

impl Works {
    pub(super) fn new(
        commands: mpsc::Sender<Command>,
        admission: Admission,
        left: Vec<Left>,
    ) -> Self {
        Self {
            commands,
            admission,
            left: (!left.is_empty())
                .then(|| left.into_iter().map(|left| (left.work, left)).collect()),
            pending: VecDeque::new(),
            gone: 0,
            next_order: 0,
            freed: false,
            table: ById::default(),
            kept: ById::default(),
            queues: HashMap::new(),
        }
    }

    /// Waits until the host has room for what waits for it; for ever when nothing does.
    pub(super) async fn room(&self) {
        if self.pending.is_empty() {
            return std::future::pending().await;
        }
        // A host that is gone is noticed by its task's end.
        if self.commands.reserve().await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// Lets the host have what waits for it, as far as it has room.
    pub(super) fn flush(&mut self) {
        while let Some(command) = self.pending.pop_front() {
            match self.commands.try_send(command) {
                Ok(()) => self.gone += 1,
                Err(mpsc::error::TrySendError::Full(command)) => {
                    self.pending.push_front(command);
                    return;
                }
                Err(mpsc::error::TrySendError::Closed(_)) => {
                    self.pending.clear();
                    return;
                }
            }
        }
    }

    fn command(&mut self, command: Command) {
        self.pending.push_back(command);
    }

    /// Gives as many works of a plugin to the host as it takes. Those that got a place at once are
    /// returned.
    fn admit(&mut self, plugin: &str) -> Vec<(MessageId, Admitted)> {
        let mut started = Vec::new();
        while let Some(queue) = self.queues.get_mut(plugin)
            && let Some(job) = queue.held.front()
        {
            let is_bundle = job.content == Content::Bundle;
            if is_bundle && (queue.parts.is_some() || self.admission.is_one_each(plugin)) {
                let Some(first) = self.admit_part(plugin) else {
                    break;
                };
                started.extend(first.map(|bundle| (bundle, BUNDLE)));
                continue;
            }
            let admitted = try_admit(&self.admission, job);
            let waits = is_bundle && self.admission.bundles_wait(plugin);
            if admitted.is_none() && (waits || queue.at_host >= self.admission.may_wait(plugin)) {
                break;
            }
            let Some(mut job) = queue.held.pop_front() else {
                break;
            };
            job.admitted = admitted.is_some();
            if let Some(work) = self.table.get_mut(&job.work) {
                work.run = self.gone + self.pending.len() as u64;
                if admitted.is_none() {
                    work.queued_for = Some(plugin.to_owned());
                }
            }
            match admitted {
                Some(admitted) => started.push((job.work, admitted)),
                None => queue.at_host += 1,
            }
            self.pending.push_back(Command::Run(job));
        }
        if let Some(queue) = self.queues.get(plugin)
            && queue.at_host == 0
            && queue.held.is_empty()
        {
            self.queues.remove(plugin);
        }
        started
    }

    /// Gives the next part of the bundle that is the first of its queue to the host. `None`: there is no
    /// place for it. Else the bundle, when this is its first part.
    fn admit_part(&mut self, plugin: &str) -> Option<Option<MessageId>> {
        let queue = self.queues.get_mut(plugin)?;
        let bundle = queue.held.front()?;
        let admitted = self.admission.try_admit(&bundle.directive).is_some();
        if !admitted && queue.at_host >= self.admission.may_wait(plugin) {
            return None;
        }
        let whole = bundle.work;
        let mut first = None;
        let parts = match &mut queue.parts {
            Some(parts) => parts,
            None => {
                let JobPayload::Inline(body) = &bundle.payload else {
                    return None;
                };
                first = Some(whole);
                match Bundle::decode(body.clone()) {
                    Ok(parts) => queue.parts.insert(parts),
                    Err(_) => {
                        // The host knows what to say of what is no bundle.
                        let mut job = queue.held.pop_front()?;
                        job.admitted = admitted;
                        queue.at_host += usize::from(!admitted);
                        if !admitted && let Some(entry) = self.table.get_mut(&whole) {
                            entry.queued_for = Some(plugin.to_owned());
                        }
                        self.pending.push_back(Command::Run(job));
                        return Some(first);
                    }
                }
            }
        };
        let content = parts.content();
        let part = parts.next()?;
        let more = parts.left() > 0;
        let job = Box::new(Job {
            work: new_id(),
            sender: bundle.sender.clone(),
            directive: bundle.directive.clone(),
            content,
            payload: JobPayload::Inline(part),
            attempt: 1,
            admitted,
            start: admitted,
            outlives: false,
        });
        if !admitted {
            queue.at_host += 1;
        }
        if !more {
            queue.parts = None;
            queue.held.pop_front();
        }
        if let Some(entry) = self.table.get_mut(&whole) {
            let apart = entry.apart.get_or_insert_default();
            apart.running += 1;
            apart.more = more;
        }
        let entry = Work {
            run: self.gone + self.pending.len() as u64,
            queued_for: (!admitted).then(|| plugin.to_owned()),
            part_of: Some(whole),
            ..Work::default()
        };
        self.table.insert(job.work, entry);
        self.pending.push_back(Command::Run(job));
        Some(first)
    }

    /// Lets the host hand a work over: with the work itself, if that has not gone there yet.
    fn start(&mut self, work: MessageId) {
        if self
            .table
            .get(&work)
            .is_some_and(|entry| entry.apart.is_some())
        {
            // Its parts are told for themselves.
            return;
        }
        if let Some(entry) = self.table.get(&work)
            && let Some(ahead) = entry.run.checked_sub(self.gone)
            && let Ok(ahead) = usize::try_from(ahead)
            && let Some(Command::Run(job)) = self.pending.get_mut(ahead)
            && job.work == work
        {
            job.start = true;
            return;
        }
        self.command(Command::Start { work });
    }

    /// A work that had no place has one, or needs none any more. The plugin it waited for.
    fn left_queue(&mut self, work: MessageId) -> Option<String> {
        if self.queues.is_empty() {
            return None;
        }
        let plugin = self.table.get_mut(&work)?.queued_for.take()?;
        if let Some(queue) = self.queues.get_mut(&plugin) {
            queue.at_host = queue.at_host.saturating_sub(1);
        }
        Some(plugin)
    }

    /// Takes a work out of its queue, if the host has not got it.
    fn withdraw(&mut self, work: MessageId) -> Option<Box<Job>> {
        self.queues.values_mut().find_map(|queue| {
            let index = queue.held.iter().position(|job| job.work == work)?;
            if index == 0 {
                queue.parts = None;
            }
            queue.held.remove(index)
        })
    }

    /// Cancels what the host has of a bundle, of which there is no more. False: it has nothing.
    fn cancel_parts(&mut self, bundle: MessageId, reason: &CancelReason) -> bool {
        let apart = self.table.get_mut(&bundle);
        let Some(apart) = apart.and_then(|entry| entry.apart.as_mut()) else {
            return false;
        };
        apart.more = false;
        if apart.running == 0 {
            return false;
        }
        let parts = self.table.iter();
        let parts = parts.filter(|(_, entry)| entry.part_of == Some(bundle));
        let parts: Vec<_> = parts.map(|(part, _)| *part).collect();
        for work in parts {
            let reason = reason.clone();
            self.command(Command::Cancel { work, reason });
        }
        true
    }

    /// The bundle that a work here is a part of.
    fn bundle_of(&self, work: MessageId) -> Option<MessageId> {
        self.table.get(&work)?.part_of
    }

    /// Tells the host what of a work need not be kept any more.
    fn tell_safe(&mut self, work: MessageId) {
        let Some((results, end)) = self.kept.get_mut(&work).and_then(Kept::news) else {
            return;
        };
        if end {
            self.kept.remove(&work);
        }
        self.command(Command::Safe { work, results, end });
    }

    fn taken(&mut self, work: MessageId, results: usize) {
        if results > 0 {
            self.command(Command::Taken { work, results });
        }
    }
}

impl Engine {
    pub(super) fn job_payload(&self, payload: Payload) -> JobPayload {
        match payload {
            Payload::Inline(bytes) => JobPayload::Inline(bytes),
            Payload::Stored { entry, size } => JobPayload::File {
                path: self.store.path(entry),
                size,
                sha256: self.store.digest(entry),
            },
        }
    }

    /// Gives a work to the host, or has it wait. Its payload may be a file of the store.
    pub(super) fn dispatch(&mut self, mut job: Box<Job>, stored: Option<EntryId>) {
        let Job {
            work,
            sender,
            directive,
            attempt,
            ..
        } = &*job;
        let work = *work;
        if let Some(left) = self.works.left.as_mut().and_then(|left| left.remove(&work))
            && self.go_on(left, &job, stored)
        {
            return;
        }
        // The core asks of what arrives. What an earlier start took may not be permitted any more.
        let rules = Arc::clone(&self.settings.borrow().rules);
        if !rules.may_use(sender.as_str(), directive.as_str()).says {
            let (sender, directive) = (sender.clone(), directive.clone());
            let error = use_denied(&self.mesh.config().node, &sender, &directive);
            self.events
                .denied(&Denied::Work { sender, directive }, &rules);
            return self.end_work(work, error);
        }
        tracing::debug!(%work, %sender, %directive, attempt, "work");
        let is_bundle = job.content == Content::Bundle;
        let entry = Work {
            run: self.works.gone + self.works.pending.len() as u64,
            order: self.works.next_order,
            stored,
            ..Work::default()
        };
        self.works.next_order += 1;
        self.works.table.insert(work, entry);
        let plugin = job.directive.plugin();
        let queues = &self.works.queues;
        if (queues.is_empty() || !queues.contains_key(plugin))
            && !(is_bundle && self.works.admission.is_one_each(plugin))
            && let Some(Admitted { idempotent }) = try_admit(&self.works.admission, &job)
        {
            job.admitted = true;
            self.works.command(Command::Run(job));
            self.mesh.work_started(self.now, work, idempotent);
            return;
        }
        let plugin = plugin.to_owned();
        let queue = self.works.queues.entry(plugin.clone()).or_default();
        queue.held.push_back(job);
        self.admit(&plugin);
    }

    /// Takes up a work that runs already. False: the core knows better.
    fn go_on(&mut self, left: Left, job: &Job, stored: Option<EntryId>) -> bool {
        let Left {
            work,
            idempotent,
            said,
        } = left;
        let Ok(adopted) = self.mesh.work_adopted(self.now, work, idempotent, said) else {
            return false;
        };
        let entry = Work {
            order: self.works.next_order,
            stored,
            blocked: adopted.room == WorkRoom::Wait,
            ..Work::default()
        };
        self.works.next_order += 1;
        self.works.table.insert(work, entry);
        self.works.command(Command::GoOn {
            job: Box::new(job.clone()),
            repeats: adopted.repeats,
        });
        true
    }

    /// The core has dispatched what it had from an earlier start.
    pub(super) fn end_others(&mut self) {
        if self.works.left.take().is_some() {
            self.works.command(Command::EndOthers);
        }
    }

    /// A restart knows the responses of a work up to this one.
    pub(super) fn responses_safe(&mut self, work: MessageId, serial: u64) {
        if let Some(kept) = self.works.kept.get_mut(&work) {
            kept.safe_serial = kept.safe_serial.max(serial);
            self.works.tell_safe(work);
        }
    }

    /// Lets the host have what it has a place for.
    fn admit(&mut self, plugin: &str) {
        for (work, Admitted { idempotent }) in self.works.admit(plugin) {
            self.mesh.work_started(self.now, work, idempotent);
        }
    }

    /// After the reports of a turn: gives the places that they have freed to those who wait.
    pub(super) fn admit_all(&mut self) {
        if !std::mem::take(&mut self.works.freed) || self.works.queues.is_empty() {
            return;
        }
        let waiting: Vec<_> = self.works.queues.keys().cloned().collect();
        for plugin in waiting {
            self.admit(&plugin);
        }
    }

    /// Ends a work that the host never heard of.
    fn end_work(&mut self, work: MessageId, error: ErrorBody) {
        let eof = Eof {
            code: 1,
            error: Some(error),
        };
        let empty = Payload::Inline(Bytes::new());
        self.forget_told(work);
        let _ = self
            .mesh
            .work_done(self.now, work, eof, Content::None, empty);
    }

    pub(super) fn start_work(&mut self, work: MessageId) {
        self.works.start(work);
    }

    pub(super) fn cancel_work(&mut self, work: MessageId, reason: packet::CancelReason) {
        let reason = match reason {
            packet::CancelReason::User => CancelReason::User,
            packet::CancelReason::SenderGone => CancelReason::SenderGone,
        };
        let withdrawn = self.works.withdraw(work).is_some();
        if self.works.cancel_parts(work, &reason) {
            return;
        }
        if withdrawn {
            self.works.table.remove(&work);
            let text = "the work was cancelled before it began";
            return self.end_work(work, ErrorBody::new(ErrorCode::Cancelled, text));
        }
        self.works.command(Command::Cancel { work, reason });
    }

    pub(super) fn resume_work(&mut self, work: MessageId) {
        let Some(entry) = self.works.table.get_mut(&work) else {
            return;
        };
        entry.blocked = false;
        let taken = std::mem::take(&mut entry.untaken);
        self.works.taken(work, taken);
        self.pass_on(work);
    }

    /// A small result that lay in a file was read.
    pub(super) fn loaded(&mut self, work: MessageId, result: Result<Bytes, ErrorBody>) {
        let Some(entry) = self.works.table.get_mut(&work) else {
            return;
        };
        entry.blocked = false;
        match (result, entry.held.front_mut()) {
            (Ok(bytes), Some(held)) => held.set_payload(ReportPayload::Inline(bytes)),
            (Err(error), Some(held)) => {
                tracing::warn!(%work, %error, "a result was lost");
                held.set_payload(ReportPayload::Inline(Bytes::new()));
                self.lose_result(work);
            }
            (_, None) => {}
        }
        self.pass_on(work);
    }

    pub(super) fn report(&mut self, report: Report) {
        match report {
            Report::Started { work, idempotent } => {
                if self.works.bundle_of(work).is_some() {
                    self.works.start(work);
                } else {
                    self.mesh.work_started(self.now, work, idempotent);
                }
                if let Some(plugin) = self.works.left_queue(work) {
                    self.admit(&plugin);
                }
            }
            Report::Data {
                work,
                content,
                name,
                payload,
            } => {
                let held = Held::Data {
                    content,
                    name,
                    payload,
                };
                self.take_report(work, held);
            }
            Report::Done {
                work,
                eof,
                content,
                payload,
            } => {
                let bundle = self.works.bundle_of(work);
                self.works.left_queue(work);
                let held = Held::Done {
                    eof,
                    content,
                    payload,
                };
                match (bundle, held) {
                    (Some(bundle), Held::Done { eof, .. }) => {
                        self.part_ended(bundle, work, Some(eof));
                    }
                    (_, held) => self.take_report(work, held),
                }
                self.works.freed = true;
            }
            Report::Left { work } => {
                self.works.left_queue(work);
                match self.works.bundle_of(work) {
                    Some(bundle) => self.part_ended(bundle, work, None),
                    None => self.leave(work),
                }
            }
            Report::Kept { work } => {
                self.works.kept.insert(work, Kept::default());
            }
            Report::Room => self.works.freed = true,
            Report::Returned(job) => self.take_back(job),
            Report::Status {
                work,
                state,
                message,
                progress,
            } => {
                tracing::trace!(%work, state, message, ?progress, "work status");
                self.told_of_work(work, message.or(state), progress);
            }
            Report::Capabilities(plugins) => self.capabilities(plugins),
        }
    }

    fn capabilities(&mut self, plugins: Vec<Capability>) {
        let names: Vec<_> = plugins
            .iter()
            .map(|plugin| plugin.plugin.as_str())
            .collect();
        tracing::info!(plugins = names.join(" "), "capabilities");
        self.mesh.set_capabilities(self.now, plugins);
        self.works.freed = true;
    }

    fn take_report(&mut self, work: MessageId, held: Held) {
        let Some(entry) = self.works.table.get_mut(&work) else {
            discard(&held);
            if matches!(held, Held::Done { .. })
                && let Some(kept) = self.works.kept.get_mut(&work)
            {
                // Nobody wants anything of it.
                kept.safe_serial = u64::MAX;
                kept.end = Some(None);
                self.works.tell_safe(work);
            }
            return;
        };
        if entry.part_of.is_some() {
            discard(&held);
            return self.works.taken(work, 1);
        }
        debug_assert!(entry.held.len() <= WINDOW_RESULTS);
        if entry.blocked || !entry.held.is_empty() || held.is_to_load() {
            entry.held.push_back(held);
            return self.pass_on(work);
        }
        self.give(work, held);
    }

    /// This node stops, and the host has let go of a work that may run again. What is on the disk
    /// does so at the next start; of the others nothing is left then.
    fn leave(&mut self, work: MessageId) {
        self.works.table.remove(&work);
        if self.mesh.outlives_a_restart(work) {
            tracing::info!(%work, "the work goes on after the restart");
        } else {
            let text = "the node shut down";
            self.end_work(work, ErrorBody::new(ErrorCode::Interrupted, text));
        }
    }

    /// A part of a bundle that was taken apart is over, or was [left](Report::Left).
    fn part_ended(&mut self, bundle: MessageId, part: MessageId, eof: Option<Eof>) {
        self.works.table.remove(&part);
        let Some(entry) = self.works.table.get_mut(&bundle) else {
            return;
        };
        let apart = entry.apart.get_or_insert_default();
        apart.running = apart.running.saturating_sub(1);
        match eof {
            Some(eof) if eof.code != 0 => {
                apart.failed += 1;
                apart.error = apart.error.take().or(eof.error);
            }
            Some(_) => {}
            None => apart.left = true,
        }
        if apart.more || apart.running > 0 {
            return;
        }
        if apart.left {
            return self.leave(bundle);
        }
        let (failed, error) = (apart.failed, apart.error.take());
        if failed > 0 {
            let why = error.as_ref().map(|error| error.message.as_str());
            tracing::warn!(count = failed, error = why, "one-way works have failed");
        }
        self.works.table.remove(&bundle);
        let eof = Eof {
            code: u32::from(failed > 0),
            error,
        };
        let empty = Payload::Inline(Bytes::new());
        let _ = self
            .mesh
            .work_done(self.now, bundle, eof, Content::None, empty);
    }

    /// A bundle that the host cannot use as it is goes where it came from.
    fn take_back(&mut self, mut job: Box<Job>) {
        self.works.left_queue(job.work);
        if let JobPayload::Inline(body) = &job.payload
            && let Err(problem) = Bundle::decode(body.clone())
        {
            let error = ErrorBody::new(ErrorCode::ProtocolError, problem.to_string());
            self.works.table.remove(&job.work);
            return self.end_work(job.work, error);
        }
        let Some(order) = self.works.table.get(&job.work).map(|entry| entry.order) else {
            return;
        };
        (job.admitted, job.start) = (false, false);
        let plugin = job.directive.plugin().to_owned();
        let queue = self.works.queues.entry(plugin.clone()).or_default();
        let later = |held: &Job| {
            let entry = self.works.table.get(&held.work);
            entry.is_some_and(|entry| entry.order > order)
        };
        let place = queue.held.iter().position(|held| later(held));
        let begun = usize::from(queue.parts.is_some());
        let place = place.unwrap_or(queue.held.len()).max(begun);
        queue.held.insert(place, job);
        self.admit(&plugin);
    }

    /// Gives the core what was reported of a work, until it wants to wait.
    fn pass_on(&mut self, work: MessageId) {
        while let Some(entry) = self.works.table.get_mut(&work) {
            if entry.blocked {
                return;
            }
            let Some(held) = entry.held.front() else {
                return;
            };
            if held.is_to_load()
                && let ReportPayload::File { path, .. } = held.payload()
            {
                entry.blocked = true;
                self.store.load(work, path.clone());
                return;
            }
            let Some(held) = entry.held.pop_front() else {
                return;
            };
            self.give(work, held);
        }
    }

    /// Gives the core one report. A small payload must be in memory.
    fn give(&mut self, work: MessageId, held: Held) {
        match held {
            Held::Data {
                content,
                name,
                payload,
            } => {
                let is_kept = self.works.kept.contains_key(&work);
                let payload = match self.adopt(work, payload) {
                    Some(payload) => payload,
                    // Its number is taken, or those behind it would have another one after a restart.
                    None if is_kept => Payload::Inline(Bytes::new()),
                    None => return self.works.taken(work, 1),
                };
                let taken = self.mesh.work_data(self.now, work, content, name, payload);
                let waits = taken.is_ok_and(|taken| taken.room == WorkRoom::Wait);
                if let Some(kept) = self.works.kept.get_mut(&work) {
                    let serial = taken.ok().and_then(|taken| taken.serial);
                    kept.serials.push_back(serial);
                    self.works.tell_safe(work);
                }
                if waits && let Some(entry) = self.works.table.get_mut(&work) {
                    entry.blocked = true;
                    entry.untaken += 1;
                }
                // A work that the core has ended goes on until its end; its results are nobody's.
                if !waits {
                    self.works.taken(work, 1);
                }
            }
            Held::Done {
                eof,
                content,
                payload,
            } => {
                let payload = self
                    .adopt(work, payload)
                    .unwrap_or_else(|| Payload::Inline(Bytes::new()));
                let entry = self.works.table.remove(&work);
                let error = eof.error.as_ref();
                if error.is_some_and(|error| error.code == ErrorCode::Damaged)
                    && let Some(stored) = entry.and_then(|entry| entry.stored)
                {
                    self.store.set_aside(stored);
                }
                self.forget_told(work);
                let end = self.mesh.work_done(self.now, work, eof, content, payload);
                if let Some(kept) = self.works.kept.get_mut(&work) {
                    kept.end = Some(end.ok().flatten());
                    self.works.tell_safe(work);
                }
            }
        }
    }

    /// Puts a result where the core wants it; `None` when the store has no room for it.
    fn adopt(&mut self, work: MessageId, payload: ReportPayload) -> Option<Payload> {
        match payload {
            ReportPayload::Inline(bytes) => Some(Payload::Inline(bytes)),
            ReportPayload::File { path, size, sums } => {
                let entry: EntryId = self.mesh.new_entry();
                match self.store.adopt(entry, path, size, sums) {
                    Ok(()) => Some(Payload::Stored { entry, size }),
                    Err(error) => {
                        tracing::warn!(%work, %error, "a result was not kept");
                        self.lose_result(work);
                        None
                    }
                }
            }
        }
    }

    /// A result is lost, so the work cannot go well any more.
    fn lose_result(&mut self, work: MessageId) {
        let reason = CancelReason::Quota;
        self.works.command(Command::Cancel { work, reason });
    }

    /// Works here that have not ended.
    pub(super) fn works_active(&self) -> u64 {
        self.works.table.len() as u64
    }
}

/// Takes a place for a work if there is one. One that was cut short goes to the host without,
/// unless it is known that it may be run again: the host can find out.
fn try_admit(admission: &Admission, job: &Job) -> Option<Admitted> {
    let directive = &job.directive;
    if job.content == Content::Bundle {
        return admission.try_admit_bundle(directive).then_some(BUNDLE);
    }
    if job.attempt > 1 && admission.is_idempotent(directive) != Some(true) {
        return None;
    }
    admission.try_admit(directive)
}

/// Removes the file of a report that nobody waits for.
fn discard(held: &Held) {
    if let ReportPayload::File { path, .. } = held.payload() {
        let _ = std::fs::remove_file(path);
    }
}
