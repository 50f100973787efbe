//! The engine: the one task that owns the core.
//!
//! Owns the [`Mesh`], the clock that it is told, and the table of what belongs to its ids:
//! links, clients, echoes. Takes many inputs in one turn, then does what the core wants, in
//! the core's order, then lets every writer go. Never waits for anybody but its inbox and the
//! next timeout: whoever is slow has a queue of its own that the core knows the room of.
//!
//! ```text
//!   readers, sessions ──Input──▶ inbox ─▶ ┌────────┐ ─▶ Outbox ─▶ writers
//!   workers, store ────────────reports ─▶ │ engine │ ─▶ Mailbox ─▶ sessions
//!                   next timeout ───────▶ └────────┘ ─▶ Store, workers
//! ```

mod ask;
mod clients;
mod events;
mod input;
mod mailbox;
mod quiet;
mod works;

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use receptor_mesh::{
    Config, EchoAnswer, EchoId, EntryId, Event, Instant, LinkId, Mesh, Output, Payload, Record,
};
use receptor_proto::ErrorBody;
use receptor_proto::packet::MessageKind;
use receptor_spool::LostRequest;
use tokio::sync::{mpsc, oneshot};

use self::ask::Known;
use self::clients::Clients;
use self::events::EventLog;
use crate::config::Settings;
use crate::instance;
use crate::link::{Outbox, WRITE_BUDGET};
use crate::member::Membership;
use crate::results::{DeadLetter, Ending, Keeper};
use crate::spooler::{Answer, Done, Recovered, Reports, Store};
use crate::systemd::Notifier;
use crate::task;
use crate::worker::{Job, Report};

pub(crate) use self::input::{EngineGone, EngineHandle, Health, Input, LinkReport, Query, Submit};
pub(crate) use self::mailbox::{Letter, Mailbox, News, Response};
pub(crate) use self::quiet::{Quiet, Taking};
use self::works::Works;
pub(crate) use self::works::{HostLink, Left};

/// Inputs handled before the outputs are done: enough to share the cost of a turn, few enough
/// that a probe behind them is not late.
const TURN: usize = 64;
/// The monotonic clock that the core is told.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Clock(std::time::Instant);

impl Clock {
    /// Starts at zero.
    pub(crate) fn start() -> Self {
        Self(std::time::Instant::now())
    }

    fn now(self) -> Instant {
        let micros = u64::try_from(self.0.elapsed().as_micros()).unwrap_or(u64::MAX);
        Instant::from_micros(micros)
    }

    fn at(self, instant: Instant) -> tokio::time::Instant {
        tokio::time::Instant::from_std(self.0 + Duration::from_micros(instant.as_micros()))
    }
}

/// See the module.
pub(crate) struct Engine {
    mesh: Mesh,
    clock: Clock,
    /// What the clock said when this turn, or the doing of its outputs, began. The core must
    /// never be told an earlier time than before.
    now: Instant,
    inbox: mpsc::Receiver<Input>,
    store: Store,
    keeper: Keeper,
    /// Messages that were given up and whose payload the store is asked for.
    letters: HashMap<EntryId, DeadLetter>,
    known: Known,
    stored: Reports,
    notifier: Notifier,
    settings: Rc<RefCell<Settings>>,
    reports: mpsc::Receiver<Report>,
    works: Works,
    links: BTreeMap<LinkId, LinkEntry>,
    /// Links that were written to in this turn.
    dirty: Vec<LinkId>,
    clients: Clients,
    echoes: HashMap<EchoId, oneshot::Sender<Result<EchoAnswer, ErrorBody>>>,
    events: EventLog,
    shutdown: Option<oneshot::Sender<()>>,
    /// For clients, once the disk has what the core wants of it.
    answers: Vec<Answer>,
}

struct LinkEntry {
    outbox: Rc<Outbox>,
    origin: Rc<str>,
    address: String,
    dirty: bool,
    /// The core has forgotten it. It stays in the table to the end of the turn, so that the
    /// core's last words about it find its address.
    gone: bool,
}

impl std::fmt::Debug for Engine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Engine").finish_non_exhaustive()
    }
}

impl Engine {
    /// A node that starts with what its store holds, and with its certificate, if it has one.
    ///
    /// # Errors
    ///
    /// When the store's thread cannot be started.
    pub(crate) fn new(
        (config, membership): (Config, Option<Membership>),
        store: Store,
        recovered: Recovered,
        keeper: Keeper,
        notifier: Notifier,
        settings: Rc<RefCell<Settings>>,
        host: HostLink,
    ) -> io::Result<(Self, EngineHandle)> {
        let (handle, inbox) = EngineHandle::new();
        let clock = Clock::start();
        let now = clock.now();
        for (entry, memo) in recovered.memos() {
            match Ending::from_memo(&memo) {
                Some(ending) => keeper.restore_ended(entry, ending),
                None => tracing::debug!(entry = entry.0, "a memo of a later version is left alone"),
            }
        }
        let records = recovered.records().inspect(|record| {
            if let Record::Outgoing {
                recipient, message, ..
            } = record
                && let MessageKind::Request {
                    directive,
                    respond: true,
                } = &message.kind
            {
                keeper.restore(message.work, directive, recipient);
            }
        });
        let mut mesh = match membership {
            None => Mesh::new(config, now, records),
            Some(membership) => Mesh::secured(config, now, records, Box::new(membership)),
        };
        let rules = Arc::clone(&settings.borrow().rules);
        mesh.set_policy(now, rules);
        for (record, written) in recovered.unfinished() {
            if let Record::Incoming {
                entry,
                origin,
                message,
            } = record
            {
                tracing::info!(
                    origin = %origin,
                    work = %message.work,
                    bytes = written,
                    of = message.size,
                    "a payload goes on where it stopped"
                );
                mesh.restore_partial(now, entry, &origin, message, written);
            }
        }
        for lost in recovered.lost() {
            match lost {
                LostRequest::Incoming { origin, work } => mesh.restore_damaged(now, origin, *work),
                LostRequest::Outgoing { entry, work, .. } if keeper.has_end(*work) => {
                    // Its sender was told, or it had an end before.
                    store.remove(*entry);
                }
                LostRequest::Outgoing {
                    entry,
                    recipient,
                    work,
                    directive,
                    key,
                } => {
                    keeper.restore(*work, directive, recipient);
                    mesh.restore_damaged_own(now, *entry, recipient, *work, *key);
                }
            }
        }
        keeper.settle_old(|work| mesh.is_pending(work));
        let done = handle.clone();
        keeper.start(Box::new(move |work, result| {
            done.send_stored(Input::Kept(work, result));
        }));
        let done = handle.clone();
        keeper.letters().start(Box::new(move |entry, result| {
            done.send_stored(Input::LetterKept(entry, result));
        }));
        let stored = store.start(recovered)?;
        let engine = Self {
            mesh,
            clock,
            now,
            inbox,
            store,
            keeper,
            letters: HashMap::new(),
            known: Known::default(),
            stored,
            notifier,
            settings,
            reports: host.reports,
            works: Works::new(host.commands, host.admission, host.left),
            links: BTreeMap::new(),
            dirty: Vec::new(),
            clients: Clients::default(),
            echoes: HashMap::new(),
            events: EventLog::default(),
            shutdown: None,
            answers: Vec::new(),
        };
        Ok((engine, handle))
    }

    /// Works until every handle is gone, or the store's thread.
    pub(crate) async fn run(mut self) {
        let mut inputs = Vec::with_capacity(TURN);
        let mut reports = Vec::with_capacity(TURN);
        let mut stored = Vec::new();
        let mut host_is_there = true;
        let watchdog = self.notifier.watchdog_interval();
        let mut next_watchdog = watchdog.map(|every| tokio::time::Instant::now() + every);
        let sleep = tokio::time::sleep(Duration::ZERO);
        tokio::pin!(sleep);
        let mut armed = sleep.deadline();
        self.turn(false);
        self.end_others();
        self.store.release();
        loop {
            let due = self.mesh.poll_timeout().map(|at| self.clock.at(at));
            let linger = self.store.due().map(tokio::time::Instant::from_std);
            let due = [due, linger, next_watchdog].into_iter().flatten().min();
            // A deadline that moved away is found out when the old one comes; setting the
            // timer anew in every turn would cost more.
            if let Some(due) = due
                && (due < armed || sleep.is_elapsed())
            {
                sleep.as_mut().reset(due);
                armed = due;
            }
            let mut timeout = false;
            tokio::select! {
                biased;
                count = self.inbox.recv_many(&mut inputs, TURN) => {
                    if count == 0 {
                        return;
                    }
                }
                done = self.stored.recv() => {
                    let Some(done) = done else {
                        return;
                    };
                    stored.push(done);
                }
                count = self.reports.recv_many(&mut reports, TURN), if host_is_there => {
                    host_is_there = count > 0;
                }
                () = self.works.room() => {}
                () = &mut sleep, if due.is_some() => timeout = true,
            }
            self.now = self.clock.now();
            for input in inputs.drain(..) {
                self.handle(input);
            }
            // A full inbox must not keep those waiting whose messages are safe.
            while let Ok(done) = self.stored.try_recv() {
                stored.push(done);
            }
            for done in stored.drain(..).flatten() {
                self.stored(done);
            }
            // Nor the plugins' results.
            while reports.len() < TURN
                && let Ok(report) = self.reports.try_recv()
            {
                reports.push(report);
            }
            for report in reports.drain(..) {
                self.report(report);
            }
            self.admit_all();
            let now = self.now;
            let time_has_come = timeout || self.mesh.poll_timeout().is_some_and(|at| at <= now);
            let sent = self.turn(time_has_come);
            if sent && self.store.is_called_for() {
                // What was sent has a long way before it, and nobody on it waits for this disk.
                task::behind_others().await;
            }
            self.store.release();
            if let (Some(every), Some(at)) = (watchdog, next_watchdog)
                && tokio::time::Instant::now() >= at
            {
                self.notifier.watchdog();
                next_watchdog = Some(tokio::time::Instant::now() + every);
            }
        }
    }

    /// Does what the core wants until it wants nothing, then lets the writers go, and says whether
    /// there is anything for those of links. The store is held.
    fn turn(&mut self, time_has_come: bool) -> bool {
        self.now = self.clock.now();
        self.store.hold();
        if time_has_come {
            self.mesh.handle_timeout(self.now);
        }
        loop {
            while let Some(output) = self.mesh.poll_output() {
                self.act(output);
            }
            // Room that was made meanwhile may be used at once.
            if !self.report_room() && !self.submit_held() {
                break;
            }
        }
        let recalled = |answer: &mut Answer| self.mesh.is_recalled(answer.work);
        let done: Vec<Answer> = self
            .answers
            .extract_if(.., |answer| !recalled(answer))
            .collect();
        if !done.is_empty() {
            self.store.settle(done);
        }
        // A work takes longer than the word that it has arrived.
        self.works.flush();
        let sent = !self.dirty.is_empty();
        for link in self.dirty.drain(..) {
            if let Some(entry) = self.links.get_mut(&link) {
                entry.dirty = false;
                entry.outbox.flush();
                if entry.gone {
                    self.links.remove(&link);
                }
            }
        }
        if let Some(reply) = self.shutdown.take() {
            let _ = reply.send(());
        }
        sent
    }

    /// Tells the core what the writers have written. Whether there was anything to tell.
    fn report_room(&mut self) -> bool {
        let mut any = false;
        for link in &self.dirty {
            if let Some(entry) = self.links.get(link)
                && !entry.gone
            {
                let room = entry.outbox.take_written();
                if room > 0 {
                    self.mesh.handle_room(self.now, *link, room);
                    any = true;
                }
            }
        }
        any
    }

    fn handle(&mut self, input: Input) {
        match input {
            Input::LinkUp {
                link,
                info,
                origin,
                outbox,
            } => {
                let entry = LinkEntry {
                    outbox,
                    origin,
                    address: info.address.clone(),
                    dirty: false,
                    gone: false,
                };
                self.links.insert(link, entry);
                self.mesh.handle_link_up(self.now, link, info);
                self.mesh.handle_room(self.now, link, WRITE_BUDGET);
            }
            Input::Frames { link, frames } => {
                for frame in frames {
                    self.mesh.handle_frame(self.now, link, frame);
                }
            }
            Input::BadFrame { link, error } => self.mesh.handle_bad_frame(self.now, link, error),
            Input::LinkDown { link, error } => {
                // A link that the core closed meanwhile is not its any more.
                if let Some(entry) = self.links.get_mut(&link)
                    && !entry.gone
                {
                    entry.gone = true;
                    self.touch(link);
                    self.mesh.handle_link_down(self.now, link, error);
                }
            }
            Input::LinkRoom { link } => {
                if let Some(entry) = self.links.get(&link)
                    && !entry.gone
                {
                    self.mesh
                        .handle_room(self.now, link, entry.outbox.take_written());
                    self.touch(link);
                }
            }
            Input::CloseLink { link, reason } => self.mesh.close_link(self.now, link, reason),
            Input::CloseOrigin { origin, reason } => {
                for link in self.links_of(&origin) {
                    self.mesh.close_link(self.now, link, reason.clone());
                }
            }
            Input::SetCost { origin, cost } => {
                for link in self.links_of(&origin) {
                    self.mesh.set_cost(self.now, link, cost);
                }
            }
            Input::SetMetadata(metadata) => self.mesh.set_metadata(self.now, metadata),
            Input::OtherKeys => self.mesh.recheck_security(self.now),
            Input::SetRules(rules) => self.mesh.set_policy(self.now, rules),
            Input::Submit(submits) => {
                for submit in submits {
                    self.submit(submit);
                }
            }
            Input::Cancel {
                work,
                reason,
                reply,
            } => {
                let result = self.cancel(&work, reason);
                self.answer_when_durable(result, reply);
            }
            Input::Release { work, reply } => {
                let result = self.release(&work);
                self.answer_when_durable(result, reply);
            }
            Input::SpoolDrop { work, reply } => {
                let result = self.spool_drop(&work);
                self.answer_when_durable(result, reply);
            }
            Input::Kept(work, result) => self.kept(work, result),
            Input::LetterKept(entry, result) => {
                self.mesh.handle_dead_letter(self.now, entry, result);
            }
            Input::Consumed(list) => {
                for (work, serial) in list {
                    self.consumed(work, serial);
                }
            }
            Input::ClientGone(client, works) => {
                for work in works {
                    self.client_gone(work, &client);
                }
            }
            Input::NewEntry(reply) => {
                let _ = reply.send(self.mesh.new_entry());
            }
            Input::Echo {
                node,
                hop_limit,
                timeout,
                reply,
            } => {
                let id = self.mesh.echo(self.now, &node, hop_limit, timeout);
                self.echoes.insert(id, reply);
            }
            Input::Query(query) => self.answer(query),
            Input::Shutdown(reply) => {
                self.mesh.shutdown(self.now);
                self.shutdown = Some(reply);
            }
        }
    }

    fn act(&mut self, output: Output) {
        match output {
            Output::Transmit { link, frame } => {
                if let Some(entry) = self.links.get(&link) {
                    entry.outbox.push(&frame);
                    self.touch(link);
                }
            }
            Output::CloseLink { link, reason } => {
                if let Some(entry) = self.links.get_mut(&link) {
                    entry.gone = true;
                    entry.outbox.close(reason);
                    self.touch(link);
                }
            }
            Output::Persist {
                token,
                records,
                urgent,
            } => {
                if let Some((token, result)) = self.store.persist(token, records, urgent) {
                    self.stored(Done::Persisted(token, result));
                }
            }
            Output::Remove { entry } => self.store.remove(entry),
            Output::Fetch {
                entry,
                offset,
                length,
            } => {
                self.store.fetch(entry, offset, length);
            }
            Output::Load {
                token,
                recipient,
                first,
                last,
                records,
                bytes,
            } => {
                let range = (first, last);
                self.store
                    .load_page(token, recipient, range, (records, bytes));
            }
            Output::Begin {
                entry,
                origin,
                message,
            } => self.store.begin(entry, origin, *message),
            Output::Append {
                entry,
                offset,
                piece,
            } => {
                self.store.append(entry, offset, piece);
            }
            Output::Accepted { work, recipient } => self.accepted(work, recipient),
            Output::Readdressed { work, recipient } => {
                tracing::debug!(%work, %recipient, "goes to another node, the first cannot be reached");
                self.keeper.accepted(work, &recipient);
            }
            Output::NotAccepted { work, reason } => self.not_accepted(work, reason),
            Output::Dispatch {
                work,
                sender,
                directive,
                content,
                payload,
                attempt,
            } => {
                let stored = match &payload {
                    Payload::Stored { entry, .. } => Some(*entry),
                    Payload::Inline(_) => None,
                };
                let payload = self.job_payload(payload);
                let job = Box::new(Job {
                    work,
                    sender,
                    directive,
                    content,
                    payload,
                    attempt,
                    admitted: false,
                    start: false,
                    outlives: self.mesh.outlives_a_restart(work),
                });
                self.dispatch(job, stored);
            }
            Output::Start { work } => self.start_work(work),
            Output::ResponsesSafe { work, serial } => self.responses_safe(work, serial),
            Output::CancelWork { work, reason } => self.cancel_work(work, reason),
            Output::ResumeWork { work } => self.resume_work(work),
            Output::Ended {
                work,
                sender,
                responses,
                eof,
            } => self.work_ended(work, sender, responses, &eof),
            Output::Deliver {
                work,
                sender,
                serial,
                content,
                name,
                payload,
                eof,
            } => {
                let response = Response {
                    sender,
                    serial,
                    content,
                    name,
                    payload,
                    eof,
                };
                self.deliver(work, response);
            }
            Output::AskEnd {
                work,
                recipient,
                place,
            } => {
                let end = self.keeper.end_of(work, &recipient);
                self.mesh.handle_end(self.now, &recipient, place, end);
            }
            Output::DeadLetter {
                entry,
                origin,
                recipient,
                message,
                reason,
            } => self.dead_letter(entry, (origin, recipient), *message, reason),
            Output::EchoResult { id, result } => {
                if let Some(reply) = self.echoes.remove(&id) {
                    let _ = reply.send(result);
                }
            }
            Output::Event(event) => {
                let address = |link: LinkId| {
                    self.links
                        .get(&link)
                        .map_or("", |entry| entry.address.as_str())
                };
                let rules = &self.settings.borrow().rules;
                self.events.tell(&event, address, rules);
                // So rare that a sync in between is no matter.
                if let Event::Behind { start, .. } = event
                    && let Err(error) =
                        instance::go_on_above(&self.settings.borrow().data_dir, start)
                {
                    tracing::error!(%error, "the number of this node's start was not written");
                }
            }
        }
    }

    fn touch(&mut self, link: LinkId) {
        if let Some(entry) = self.links.get_mut(&link)
            && !entry.dirty
        {
            entry.dirty = true;
            self.dirty.push(link);
        }
    }

    fn links_of(&self, origin: &str) -> Vec<LinkId> {
        self.links
            .iter()
            .filter(|(_, entry)| !entry.gone && &*entry.origin == origin)
            .map(|(link, _)| *link)
            .collect()
    }

    fn stored(&mut self, done: Done) {
        match done {
            Done::Persisted(token, Ok(())) => self.mesh.handle_persisted(self.now, token),
            Done::Persisted(token, Err(error)) => {
                tracing::debug!(%error, "messages were not kept");
                self.mesh.handle_persist_failed(self.now, token, error);
            }
            Done::Fetched(entry, _, result) if self.letters.contains_key(&entry) => {
                self.letter_read(entry, result.map(|piece| piece.bytes));
            }
            Done::Fetched(entry, offset, result) => {
                self.mesh.handle_fetched(self.now, entry, offset, result);
            }
            Done::Appended(entry, end, result) => {
                self.mesh.handle_appended(self.now, entry, end, result);
            }
            Done::Loaded(work, result) => self.loaded(work, result),
            Done::Page(token, result) => self.mesh.handle_loaded(self.now, token, result),
        }
    }

    fn answer(&mut self, query: Query) {
        match query {
            Query::Nodes(reply) => {
                let nodes = self.mesh.nodes().into_iter();
                let aged = nodes.map(|view| {
                    let age = self.now.since(view.changed);
                    (view, age)
                });
                let _ = reply.send(aged.collect());
            }
            Query::Links(reply) => {
                let links = self.mesh.links().into_iter();
                let report = links.filter_map(|view| {
                    let entry = self.links.get(&view.link)?;
                    let (bytes_in, bytes_out) = entry.outbox.totals();
                    Some(LinkReport {
                        age: self.now.since(view.since),
                        heard: self.now.since(view.heard),
                        bytes_in,
                        bytes_out,
                        waiting: entry.outbox.waiting(),
                        view,
                    })
                });
                let _ = reply.send(report.collect());
            }
            Query::WorksActive(reply) => {
                let _ = reply.send(self.works_active());
            }
            Query::Works(only, reply) => {
                let _ = reply.send(self.work_statuses(only.as_ref()));
            }
            Query::Spool(only, reply) => {
                let _ = reply.send(self.spool_reply(only.as_ref()));
            }
            Query::Health(reply) => {
                let _ = reply.send(Health {
                    counters: self.mesh.counters(),
                    lsas: self.mesh.lsdb_len(),
                    in_custody: self.mesh.in_custody().0,
                    twins: self.events.twins(),
                });
            }
        }
    }
}
