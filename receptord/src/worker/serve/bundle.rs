//! Bundles at a serving process: many small jobs that nobody waits for, handed over as they lie.
//!
//! Owns what the host knows of such a job, which is little: a slot, whose number and generation are
//! the job's id for the plugin. To the plugin each is a job like any other, with a place of its own; to the
//! host, the engine and the core the bundle is one work, which ends with the last of them. A bundle
//! waits here until there are places, and what came behind it waits too. Results are nobody's and are let
//! go; failures are counted, and logged at most once a second.

use std::collections::VecDeque;
use std::rc::Rc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use receptor_proto::bundle::Bundle;
use receptor_proto::packet::{Content, Eof};
use receptor_proto::plugin::{Cancel, ExecuteRef, HostMessage, Payload, PluginMessage, feature};
use receptor_proto::{ErrorBody, ErrorCode, MessageId};

use super::super::api::{Job, JobPayload, Report, ReportPayload};
use super::super::job::MAX_LOG;
use super::super::job_dir::{Given, Handover, at_once, take_result};
use super::super::outcome::{Outcome, cut, error};
use super::super::running::{Control, Terms, Why};
use super::super::shared::TaskEnd;
use super::{NewJob, Serving, millis};
use crate::by_id::ById;

/// Time between two lines about failures.
const TELL_PAUSE: Duration = Duration::from_secs(1);

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Bundles {
    carried: ById<Box<Carried>>,
    /// Bundles of which the plugin has not got all, and jobs that came behind one.
    turns: VecDeque<Turn>,
    slots: Vec<Slot>,
    free: Vec<usize>,
    /// Places were given back and nobody was told.
    room: bool,
    failures: Failures,
}

/// Whose turn it is.
#[derive(Debug, Clone, Copy)]
enum Turn {
    Bundle(MessageId),
    Job(MessageId),
}

/// A bundle.
#[derive(Debug)]
struct Carried {
    job: Box<Job>,
    terms: Terms,
    control: Rc<Control>,
    parts: Bundle,
    /// Places that it has: one at least, and one for each part at the plugin.
    places: usize,
    /// Parts at the plugin.
    out: usize,
    timeout: Option<Duration>,
    idle: Option<Duration>,
    /// Parts that failed, and why the first did.
    failed: usize,
    error: Option<ErrorBody>,
    /// Nothing more of it is handed over.
    why: Option<Why>,
}

/// A part's place in the table.
#[derive(Debug, Default)]
struct Slot {
    /// Tells its parts from each other.
    generation: u32,
    part: Option<Part>,
}

#[derive(Debug)]
struct Part {
    bundle: MessageId,
    began: Instant,
    heard: Instant,
    has_file: bool,
    /// Why it is being ended, and when the process is instead.
    end: Option<Box<(Why, Instant)>>,
}

/// What was not told yet.
#[derive(Debug, Default)]
struct Failures {
    count: usize,
    first: Option<ErrorBody>,
    told: Option<Instant>,
}

impl Bundles {
    pub(super) fn is_empty(&self) -> bool {
        self.carried.is_empty()
    }

    /// Whether a job has to wait for what came before it.
    pub(super) fn is_behind(&self) -> bool {
        !self.turns.is_empty()
    }

    pub(super) fn wait(&mut self, job: MessageId) {
        self.turns.push_back(Turn::Job(job));
    }

    /// The slot of a part that the plugin has.
    fn find(&self, id: &str) -> Option<usize> {
        let (slot, generation) = slot_of(id)?;
        let found = self.slots.get(slot)?;
        (found.generation == generation && found.part.is_some()).then_some(slot)
    }

    fn parts(&self) -> impl Iterator<Item = &Part> {
        self.slots.iter().filter_map(|slot| slot.part.as_ref())
    }

    /// Whether the process must be ended for one that does not end.
    pub(super) fn is_stuck(&self, now: Instant) -> bool {
        self.parts()
            .any(|part| part.end.as_ref().is_some_and(|end| now >= end.1))
    }

    /// When the one that was silent for longest was heard.
    pub(super) fn silent_since(&self) -> Option<Instant> {
        self.parts().map(|part| part.heard).min()
    }

    /// When to look at them again.
    pub(super) fn deadline(&self) -> Option<Instant> {
        let parts = self.parts().filter_map(|part| match &part.end {
            Some(end) => Some(end.1),
            None => self.carried.get(&part.bundle)?.deadline(part),
        });
        let tell = self.failures.told.filter(|_| self.failures.count > 0);
        parts.chain(tell.map(|told| told + TELL_PAUSE)).min()
    }
}

impl Carried {
    fn plugin(&self) -> &str {
        self.job.directive.plugin()
    }

    fn fail(&mut self, problem: ErrorBody) {
        self.failed += 1;
        self.error.get_or_insert(problem);
    }

    fn deadline(&self, part: &Part) -> Option<Instant> {
        let limits = [
            self.timeout.and_then(|limit| part.began.checked_add(limit)),
            self.idle.and_then(|limit| part.heard.checked_add(limit)),
        ];
        limits.into_iter().flatten().min()
    }

    fn overdue(&self, part: &Part, now: Instant) -> Option<Why> {
        let passed = |since: Instant, limit: &Duration| now.duration_since(since) >= *limit;
        let timeout = self.timeout.filter(|limit| passed(part.began, limit));
        let idle = self.idle.filter(|limit| passed(part.heard, limit));
        timeout.map(Why::Timeout).or(idle.map(Why::Idle))
    }
}

/// Whether an id is that of a part; ids of works have no dot.
pub(super) fn is_part(id: &str) -> bool {
    id.contains('.')
}

fn slot_of(id: &str) -> Option<(usize, u32)> {
    let (slot, generation) = id.split_once('.')?;
    Some((slot.parse().ok()?, generation.parse().ok()?))
}

/// The job's id in a line that says nothing but that it went well, as it comes in great numbers.
pub(super) fn done_at_once(line: &[u8]) -> Option<&str> {
    let rest = line.strip_prefix(b"{\"type\":\"done\",\"id\":\"")?;
    let id = rest.strip_suffix(b"\",\"code\":0}\n")?;
    let plain = |byte: &u8| byte.is_ascii_alphanumeric() || *byte == b'.';
    id.iter().all(plain).then(|| str::from_utf8(id).ok())?
}

impl Serving<'_> {
    /// Takes a bundle from the host.
    pub(super) fn take_bundle(&mut self, new: NewJob) {
        let NewJob {
            mut job,
            terms,
            control,
        } = new;
        let work = job.work;
        let nothing = JobPayload::Inline(Bytes::new());
        let body = match std::mem::replace(&mut job.payload, nothing) {
            JobPayload::Inline(body) => body,
            JobPayload::File { .. } => Bytes::new(),
        };
        let (timeout, idle) = terms.limits(&self.own);
        match Bundle::decode(body) {
            Ok(parts) => {
                if !job.admitted {
                    let idempotent = terms.idempotent;
                    self.emit(Report::Started { work, idempotent });
                }
                let carried = Carried {
                    job,
                    terms,
                    control,
                    parts,
                    places: 1,
                    out: 0,
                    timeout,
                    idle,
                    failed: 0,
                    error: None,
                    why: None,
                };
                self.bundles.carried.insert(work, Box::new(carried));
                self.bundles.turns.push_back(Turn::Bundle(work));
                self.obey_bundle(work);
            }
            Err(problem) => {
                let plugin = job.directive.plugin();
                self.task.shared.admission.end_bundle(plugin);
                self.task.shared.admission.give_back(plugin);
                let problem = error(ErrorCode::ProtocolError, problem.to_string());
                self.report_bundle(work, Some(problem));
            }
        }
    }

    /// Does what the host has asked for. False: there is no such bundle.
    pub(super) fn obey_bundle(&mut self, work: MessageId) -> bool {
        let Some(carried) = self.bundles.carried.get_mut(&work) else {
            return false;
        };
        carried.control.look();
        if let Some(reason) = carried.control.cancelled()
            && carried.why.is_none()
        {
            self.withdraw(work, &Why::Cancel(reason));
        }
        true
    }

    /// Lets the plugin have what it has places for, in the order in which it came.
    pub(super) async fn hand_over_parts(&mut self) {
        while let Some(turn) = self.bundles.turns.front().copied() {
            match turn {
                Turn::Job(work) => {
                    if self.is_ahead() {
                        return;
                    }
                    self.bundles.turns.pop_front();
                    self.begin_job(work).await;
                }
                Turn::Bundle(work) => {
                    if let Some(mut carried) = self.bundles.carried.remove(&work) {
                        let all = self.hand_over_bundle(&mut carried).await;
                        self.bundles.carried.insert(work, carried);
                        if !all {
                            return;
                        }
                    }
                    self.bundles.turns.pop_front();
                    self.bundle_is_over(work);
                }
            }
        }
    }

    /// The plugin has all of a bundle, or gets no more of it.
    fn bundle_is_over(&mut self, work: MessageId) {
        self.task.shared.admission.end_bundle(self.name);
        self.bundles.room = true;
        self.settle(work);
    }

    /// Hands over parts as long as there is room. Whether that was all.
    async fn hand_over_bundle(&mut self, carried: &mut Carried) -> bool {
        if carried.why.is_some() {
            return true;
        }
        if !carried.control.may_start() {
            return false;
        }
        while carried.parts.left() > 0 {
            if self.is_ahead() {
                return false;
            }
            if carried.out >= carried.places {
                let admission = &self.task.shared.admission;
                let (wanted, changes) = (carried.parts.left(), &self.task.server.changes);
                carried.places += admission.join(carried.plugin(), wanted, changes);
                if carried.out >= carried.places {
                    return false;
                }
            }
            let Some(part) = carried.parts.next() else {
                break;
            };
            let size = u64::try_from(part.len()).unwrap_or(u64::MAX);
            match carried.terms.max_payload {
                Some(max) if size > max => {
                    let message =
                        format!("the payload has {size} bytes, and at most {max} are taken");
                    carried.fail(error(ErrorCode::PayloadTooLarge, message));
                }
                Some(_) | None => match self.hand_over_part(carried, part).await {
                    Ok(()) => carried.out += 1,
                    Err(problem) => carried.fail(problem),
                },
            }
        }
        let now = self.now;
        let silent_at = now + self.task.config.times.ping_after;
        let limits = [carried.timeout, carried.idle].into_iter().flatten().min();
        let limit = limits.and_then(|limit| now.checked_add(limit));
        self.plan(limit.map_or(silent_at, |at| at.min(silent_at)));
        true
    }

    /// Adds the line of one part.
    async fn hand_over_part(&mut self, carried: &Carried, part: Bytes) -> Result<(), ErrorBody> {
        let index = match self.bundles.free.pop() {
            Some(index) => index,
            None => {
                self.bundles.slots.push(Slot::default());
                self.bundles.slots.len() - 1
            }
        };
        let Some(slot) = self.bundles.slots.get_mut(index) else {
            return Ok(());
        };
        let mut id = std::mem::take(&mut self.part_id);
        put_id(&mut id, index, slot.generation);
        let reads_files = self.hello.has(feature::FILE);
        let payload = JobPayload::Inline(part);
        let (content, kind) = (carried.parts.content(), carried.terms.payload);
        let prepared = match at_once(&payload, content, kind, reads_files) {
            Some(prepared) => prepared,
            None => {
                let handover = Handover {
                    dir: self.places.dir.clone(),
                    file_name: part_file(index),
                    reads_files,
                    may_run_again: carried.terms.idempotent,
                };
                handover.prepare(payload, content, kind).await
            }
        };
        let written = prepared.and_then(|given| {
            if matches!(given, Some(Given::File(_))) {
                self.share_file(&part_file(index))?;
            }
            let execute = ExecuteRef {
                id: &id,
                action: carried.job.directive.action(),
                sender: carried.job.sender.as_str(),
                payload: given.as_ref().map(Given::as_payload),
                timeout_ms: carried
                    .timeout
                    .and_then(|limit| u64::try_from(limit.as_millis()).ok()),
                attempt: carried.job.attempt,
            };
            let has_file = matches!(given, Some(Given::File(_)));
            let put = execute
                .put_line(self.process.outgoing())
                .map_err(|problem| {
                    let message = format!("the payload does not fit a line: {problem}");
                    error(ErrorCode::PayloadTooLarge, message)
                });
            put.map(|()| has_file)
        });
        self.part_id = id;
        match (written, self.bundles.slots.get_mut(index)) {
            (Ok(has_file), Some(slot)) => {
                slot.part = Some(Part {
                    bundle: carried.job.work,
                    began: self.now,
                    heard: self.now,
                    has_file,
                    end: None,
                });
                Ok(())
            }
            (Ok(_), None) => Ok(()),
            (Err(problem), _) => {
                self.bundles.free.push(index);
                Err(problem)
            }
        }
    }

    /// A part went well. False: there is no such part.
    pub(super) fn part_is_done(&mut self, id: &str) -> bool {
        let found = self.bundles.find(id);
        if let Some(index) = found {
            self.part_ended(index, None);
        }
        found.is_some()
    }

    /// The plugin says something about a part.
    pub(super) fn part_message(&mut self, id: &str, message: PluginMessage) {
        let Some(index) = self.bundles.find(id) else {
            tracing::warn!(plugin = self.name, job = id, "a message about an ended job");
            return;
        };
        let now = self.now;
        if let Some(Slot {
            part: Some(part), ..
        }) = self.bundles.slots.get_mut(index)
        {
            part.heard = now;
        }
        match message {
            PluginMessage::Data(data) => {
                if let Payload::File(file) = data.body {
                    // It is the host's, and nobody wants it.
                    let to = self
                        .places
                        .results
                        .join(format!("{}.{index}", self.task.server.number));
                    if take_result(&self.places.dir, &file, &to).is_ok() {
                        let _ = std::fs::remove_file(&to);
                    }
                }
            }
            PluginMessage::Log(log) => {
                let text = cut(log.message, MAX_LOG);
                self.process.stderr().log(log.level, &text, now);
            }
            PluginMessage::Done(done) => {
                let problem = (done.code != 0).then(|| {
                    let text = format!("it ended with code {}", done.code);
                    self.why_of(index)
                        .unwrap_or_else(|| error(ErrorCode::Refused, text))
                });
                self.part_ended(index, problem);
            }
            PluginMessage::Error(failed) => {
                let problem = self.why_of(index);
                let problem = problem.unwrap_or_else(|| match Outcome::of_plugin(failed.error) {
                    Outcome::Failed(problem) => problem,
                    Outcome::Done { .. } => error(ErrorCode::Internal, "it failed"),
                });
                self.part_ended(index, Some(problem));
            }
            PluginMessage::Status(_)
            | PluginMessage::Hello(_)
            | PluginMessage::Ready(_)
            | PluginMessage::Pong(_)
            | PluginMessage::Unknown { .. } => {}
        }
    }

    /// Why a part was to be ended.
    fn why_of(&self, index: usize) -> Option<ErrorBody> {
        let part = self.bundles.slots.get(index)?.part.as_ref()?;
        part.end.as_ref().map(|end| end.0.error())
    }

    fn part_ended(&mut self, index: usize, problem: Option<ErrorBody>) {
        let Some(slot) = self.bundles.slots.get_mut(index) else {
            return;
        };
        let Some(part) = slot.part.take() else {
            return;
        };
        slot.generation = slot.generation.wrapping_add(1);
        self.bundles.free.push(index);
        if part.has_file {
            let _ = std::fs::remove_file(self.places.dir.join(part_file(index)));
        }
        let Some(carried) = self.bundles.carried.get_mut(&part.bundle) else {
            return;
        };
        carried.out -= 1;
        if let Some(problem) = problem {
            carried.fail(problem);
        }
        if carried.parts.left() == 0 || carried.why.is_some() {
            self.settle(part.bundle);
        }
    }

    /// Gives back places that a bundle needs no longer; ends it when it needs none.
    fn settle(&mut self, work: MessageId) {
        let Some(carried) = self.bundles.carried.get_mut(&work) else {
            return;
        };
        if carried.parts.left() > 0 && carried.why.is_none() {
            return;
        }
        let free = carried.places - carried.out;
        carried.places = carried.out;
        self.task.shared.admission.give_back_many(self.name, free);
        self.bundles.room |= free > 0;
        if carried.out > 0 {
            return;
        }
        // It is looked at once more when its turn comes.
        let waits = |turn: &Turn| matches!(turn, Turn::Bundle(waiting) if *waiting == work);
        if self.bundles.turns.iter().any(waits) {
            self.bundles.turns.retain(|turn| !waits(turn));
            self.task.shared.admission.end_bundle(self.name);
        }
        let Some(carried) = self.bundles.carried.remove(&work) else {
            return;
        };
        let failures = &mut self.bundles.failures;
        failures.count += carried.failed;
        if let Some(problem) = &carried.error {
            failures.first.get_or_insert_with(|| problem.clone());
        }
        self.tell_failures();
        if carried.error.is_some() && carried.control.is_left(carried.terms.idempotent) {
            self.idle_since = self.now;
            self.emit(Report::Left { work });
            return self.task.shared.ends.push(TaskEnd::Served(work));
        }
        self.report_bundle(work, carried.error);
    }

    fn report_bundle(&mut self, work: MessageId, error: Option<ErrorBody>) {
        self.idle_since = self.now;
        let eof = Eof {
            code: u32::from(error.is_some()),
            error,
        };
        self.emit(Report::Done {
            work,
            eof,
            content: Content::None,
            payload: ReportPayload::Inline(Bytes::new()),
        });
        self.task.shared.ends.push(TaskEnd::Served(work));
    }

    /// Tells host and engine, once for all that was read together, that there are places.
    pub(super) fn tell_room(&mut self) {
        if std::mem::take(&mut self.bundles.room) {
            self.task.shared.ends.push(TaskEnd::Room);
            self.emit(Report::Room);
        }
    }

    fn tell_failures(&mut self) {
        let now = self.now;
        let failures = &mut self.bundles.failures;
        if failures.count == 0 {
            return;
        }
        if let Some(told) = failures.told
            && now < told + TELL_PAUSE
        {
            return self.plan(told + TELL_PAUSE);
        }
        let error = failures.first.take();
        let error = error.map(|error| error.message).unwrap_or_default();
        let count = std::mem::take(&mut failures.count);
        failures.told = Some(now);
        tracing::warn!(
            plugin = self.name,
            count,
            error,
            "one-way works have failed"
        );
    }

    /// Hands over nothing more of a bundle, and ends what the plugin has of it.
    fn withdraw(&mut self, work: MessageId, why: &Why) {
        let Some(carried) = self.bundles.carried.get_mut(&work) else {
            return;
        };
        carried.why = Some(why.clone());
        for _ in 0..carried.parts.left() {
            carried.fail(why.error());
        }
        let all = 0..self.bundles.slots.len();
        let of_it = |index: &usize| {
            let part = self
                .bundles
                .slots
                .get(*index)
                .and_then(|slot| slot.part.as_ref());
            part.is_some_and(|part| part.bundle == work)
        };
        for index in all.filter(of_it).collect::<Vec<_>>() {
            self.end_part(index, why.clone());
        }
        self.settle(work);
    }

    fn end_part(&mut self, index: usize, why: Why) {
        // The plugin must know of the job before it is told to end it.
        self.process.flush();
        let grace = self.task.config.times.cancel_grace;
        let stop_at = Instant::now() + grace;
        let Some(slot) = self.bundles.slots.get_mut(index) else {
            return;
        };
        let Some(part) = slot.part.as_mut().filter(|part| part.end.is_none()) else {
            return;
        };
        if self.hello.has(feature::CANCEL) && !self.process.is_choked() {
            let cancel = HostMessage::Cancel(Cancel {
                id: format!("{index}.{}", slot.generation),
                reason: why.reason(),
                grace_ms: millis(grace),
            });
            if let Ok(line) = cancel.to_line() {
                self.process.send(&line);
            }
        }
        part.end = Some(Box::new((why, stop_at)));
        self.plan(stop_at);
    }

    /// Ends parts that have run, or were silent, for too long.
    pub(super) fn look_at_parts(&mut self, now: Instant) {
        let overdue = self.bundles.slots.iter().enumerate();
        let overdue = overdue.filter_map(|(index, slot)| {
            let part = slot.part.as_ref().filter(|part| part.end.is_none())?;
            let carried = self.bundles.carried.get(&part.bundle)?;
            Some((index, carried.overdue(part, now)?))
        });
        for (index, why) in overdue.collect::<Vec<_>>() {
            self.end_part(index, why);
        }
        self.tell_failures();
    }

    /// The process is gone, and with it all parts that it had or was to get.
    pub(super) fn fail_bundles(&mut self, problem: &ErrorBody) {
        for index in 0..self.bundles.slots.len() {
            let why = self.why_of(index);
            self.part_ended(index, Some(why.unwrap_or_else(|| problem.clone())));
        }
        let works: Vec<MessageId> = self.bundles.carried.keys().copied().collect();
        for work in works {
            self.withdraw(work, &Why::Broken(problem.clone()));
        }
    }
}

/// The id of a part, which [`slot_of`] understands. Written for every part, so that it is done by hand.
fn put_id(id: &mut String, slot: usize, generation: u32) {
    id.clear();
    put_digits(id, u64::try_from(slot).unwrap_or(u64::MAX));
    id.push('.');
    put_digits(id, generation.into());
}

fn put_digits(text: &mut String, number: u64) {
    if number >= 10 {
        put_digits(text, number / 10);
    }
    let digit = u8::try_from(number % 10).unwrap_or_default();
    text.push(char::from(b'0' + digit));
}

fn part_file(index: usize) -> String {
    format!("{index}.part")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_plain_end_is_known_at_once() {
        let line = |id: &str| format!("{{\"type\":\"done\",\"id\":\"{id}\",\"code\":0}}\n");
        assert_eq!(done_at_once(line("12.3").as_bytes()), Some("12.3"));
        for other in [
            "{\"type\":\"done\",\"id\":\"1.2\",\"code\":1}\n",
            "{\"type\":\"done\",\"id\":\"1.2\",\"code\":0,\"result\":1}\n",
            "{\"type\":\"done\",\"id\":\"1\\n2\",\"code\":0}\n",
            "{\"type\":\"done\",\"id\":\"1\",\"id\":\"2\",\"code\":0}\n",
            "{\"type\":\"error\",\"id\":\"1.2\",\"code\":0}\n",
        ] {
            assert_eq!(done_at_once(other.as_bytes()), None, "{other}");
        }
    }

    #[test]
    fn ids_name_a_slot_and_its_generation() {
        let mut id = String::new();
        for (slot, generation) in [(0, 0), (7, 10), (1023, u32::MAX)] {
            put_id(&mut id, slot, generation);
            assert_eq!(id, format!("{slot}.{generation}"));
            assert_eq!(slot_of(&id), Some((slot, generation)));
        }
        assert_eq!(slot_of("12.3"), Some((12, 3)));
        for id in ["", ".", "1.", ".2", "1.x", "1.99999999999"] {
            assert_eq!(slot_of(id), None, "{id}");
        }
        assert!(!is_part("0123456789abcdef0123456789abcdef"));
    }
}
