//! Requests and responses that leave memory for a page, and come back from it.
//!
//! A message that is written while enough others of its kind wait in memory for the same recipient
//! becomes part of a page. It comes back when there is room again and a way to the recipient, when
//! its time is over, or, being a request, when somebody asks for it by its id: a client that
//! cancels it, a response to it that a former start of this node must have asked for. Whatever the
//! reason, the whole page is read; what is not wanted of it stays in it.
//!
//! A message is either in memory or in a page, never in both. What is in a page was not sent by
//! this start of the node. Never writes anything.

use alloc::boxed::Box;
use alloc::collections::{BTreeMap, VecDeque};
use alloc::vec::Vec;
use core::time::Duration;

use receptor_proto::packet::{CancelReason, Message, MessageKind};
use receptor_proto::{ErrorBody, ErrorCode, MessageId};

use super::backlog::{self, Ids, LANES, Page, Paged, Tag, lane};
use super::flow::{GivenUp, Key, Outgoing};
use super::inbox::{OpenCancel, Request};
use super::{Cx, Delivery, OWN, Out, RemoteId};
use crate::wiring::Net;
use crate::{EntryId, Instant, LoadToken, Loaded, Output, Record};

/// Messages in memory, to all recipients together, from which on each recipient has no more
/// there than [`WAITING_LEAST`].
const RESIDENT_MAX: usize = 65_536;
/// See [`RESIDENT_MAX`].
const WAITING_LEAST: usize = 64;
/// Pages that are loaded at once.
const LOADS_MAX: usize = 4;
/// Records in one answer of the store.
const LOAD_RECORDS: usize = 1024;
/// How soon a page that something expired in is looked at again: one look for all that expire
/// within this time.
const LOOK_AGAIN: Duration = Duration::from_secs(1);
/// How soon one that could not be loaded because others are.
const LOAD_LATER: Duration = Duration::from_millis(100);
/// The longest wait after loads that failed.
const FAILED_MOST: Duration = Duration::from_secs(60);
/// Responses to requests in pages that are waited for; beyond, they are not asked for.
const RECALLS_MAX: usize = 1024;

/// A request that is wanted by its id.
#[derive(Debug, Default)]
struct Recall {
    /// It is to be cancelled.
    cancel: Option<CancelReason>,
    /// It was cancelled before the restart.
    open: Option<Box<OpenCancel>>,
    /// A load that began after it was wanted goes on; when that has ended, it is not there.
    covered: bool,
}

/// A page under way.
#[derive(Debug)]
struct Loading {
    remote: RemoteId,
    lane: usize,
    tag: Tag,
    /// All of it is wanted.
    whole: bool,
    /// What stays.
    rest: Option<Page>,
    /// What left.
    taken: usize,
    taken_bytes: u64,
}

impl Loading {
    /// Notes a message that stays in the page.
    fn leave(&mut self, paged: Paged) {
        match &mut self.rest {
            Some(page) => page.add(paged),
            rest @ None => *rest = Some(Page::new(self.tag, paged)),
        }
    }
}

/// See the module.
#[derive(Debug)]
pub(super) struct Paging {
    pub(super) ids: Ids,
    tags: BTreeMap<Tag, (RemoteId, usize)>,
    last_tag: Tag,
    last_token: u64,
    loads: BTreeMap<LoadToken, Loading>,
    recalls: BTreeMap<(Tag, MessageId), Recall>,
    /// Whose turn it is to load a page.
    hungry: VecDeque<RemoteId>,
    messages: usize,
}

impl Paging {
    pub(super) fn new(seed: u64) -> Self {
        Self {
            ids: Ids::new(seed),
            tags: BTreeMap::new(),
            last_tag: 0,
            last_token: 0,
            loads: BTreeMap::new(),
            recalls: BTreeMap::new(),
            hungry: VecDeque::new(),
            messages: 0,
        }
    }

    /// A tag that no page has; `None` when all are in use.
    fn new_tag(&mut self) -> Option<Tag> {
        if self.tags.len() > usize::from(Tag::MAX) {
            return None;
        }
        while self.tags.contains_key(&self.last_tag) {
            self.last_tag = self.last_tag.wrapping_add(1);
        }
        Some(self.last_tag)
    }

    /// What is wanted of a request that waits in a page.
    fn recalls_of(&self, id: MessageId) -> impl Iterator<Item = (Tag, &Recall)> {
        self.ids.find(id).filter_map(move |tag| {
            let recall = self.recalls.get(&(tag, id))?;
            Some((tag, recall))
        })
    }

    /// The cancel of a request that waits in a page and was cancelled before the restart.
    pub(super) fn open_cancel(&mut self, id: MessageId) -> Option<&mut Option<Box<OpenCancel>>> {
        let mut open = self.recalls_of(id).filter(|(_, it)| it.open.is_some());
        let (tag, _) = open.next()?;
        drop(open);
        let recall = self.recalls.get_mut(&(tag, id))?;
        Some(&mut recall.open)
    }
}

impl Delivery {
    /// Messages in pages, and the bytes of memory that these take.
    pub(crate) fn paged(&self) -> (usize, usize) {
        let pages = self.remotes.iter().map(|remote| remote.flow.backlog.size());
        let size = pages.sum::<usize>() + self.paging.ids.size();
        (self.paging.messages, size)
    }

    /// Whether a request with this id was sent from here and has not ended.
    pub(crate) fn is_pending(&self, id: MessageId) -> bool {
        self.requests.get(id).is_some() || self.paging.ids.contains(id)
    }

    /// Whether a request waits in the store alone.
    pub(crate) fn waits_in_store(&self, id: MessageId) -> bool {
        self.requests.get(id).is_none() && self.paging.ids.contains(id)
    }

    /// Whether a cancel of this request waits until its page is read.
    pub(crate) fn is_recalled(&self, id: MessageId) -> bool {
        self.paging
            .recalls_of(id)
            .any(|(_, recall)| recall.cancel.is_some())
    }

    /// Whether the end of this request was asked for, which has none.
    pub(crate) fn is_cancelled(&self, id: MessageId) -> bool {
        match self.requests.get(id) {
            Some(request) => request.cancelled,
            None => self
                .paging
                .recalls_of(id)
                .any(|(_, recall)| recall.cancel.is_some() || recall.open.is_some()),
        }
    }

    /// How many messages of each lane one recipient may have in memory.
    pub(super) fn allowance(&self) -> usize {
        let waiting = self.limits.flow_waiting.max(1);
        if self.kept.saturating_sub(self.paging.messages) < RESIDENT_MAX {
            waiting
        } else {
            waiting.min(WAITING_LEAST)
        }
    }

    /// Whether a message goes behind others that wait in pages, or are too many.
    pub(super) fn goes_behind(&self, to: RemoteId, outgoing: &Outgoing) -> bool {
        outgoing.is_pageable()
            && self.remotes[to.0]
                .flow
                .is_full(lane(&outgoing.message), self.allowance())
    }

    /// A request is accepted: it leaves memory if it has to wait behind others.
    pub(super) fn page_request_out(&mut self, id: MessageId) {
        let request = self.requests.get(id);
        if let Some((to, key)) = request.map(|request| (request.remote, request.key))
            && self.page_out(to, key)
        {
            self.requests.remove(id);
        }
    }

    /// A message is written: it leaves memory if it has to wait behind others. True: it did.
    pub(super) fn page_out(&mut self, to: RemoteId, key: Key) -> bool {
        let allowance = self.allowance();
        let flow = &mut self.remotes[to.0].flow;
        let Some(outgoing) = flow.get(key).filter(|outgoing| outgoing.is_behind()) else {
            return false;
        };
        let Some(entry) = outgoing.entry else {
            return false;
        };
        let (lane, name) = (
            lane(&outgoing.message),
            backlog::name(&outgoing.message, entry),
        );
        let paged = Paged {
            key,
            entry,
            size: outgoing.message.size,
            expires: outgoing.expires,
        };
        let full = flow.backlog.waits(lane) || flow.in_memory(lane) > allowance;
        let leaves = full && self.add_to_page(to, lane, name, paged);
        if leaves {
            self.remotes[to.0].flow.remove(key);
        } else {
            self.remotes[to.0].flow.come_forward(key);
        }
        self.touch(to);
        self.set_ready(to);
        leaves
    }

    /// Notes a message in the last page of its recipient, or a new one. False: it cannot be.
    pub(super) fn add_to_page(
        &mut self,
        to: RemoteId,
        lane: usize,
        name: MessageId,
        paged: Paged,
    ) -> bool {
        let backlog = &mut self.remotes[to.0].flow.backlog;
        if !backlog.is_last(lane, paged.key) {
            return false;
        }
        if !backlog.add(lane, paged, self.limits.page_messages.max(1)) {
            let Some(tag) = self.paging.new_tag() else {
                return false;
            };
            self.paging.tags.insert(tag, (to, lane));
            backlog.push(lane, Page::new(tag, paged));
        }
        let Some(tag) = backlog.last_tag(lane) else {
            return false;
        };
        self.paging.ids.insert(name, tag);
        self.paging.messages += 1;
        true
    }

    /// Wants a request by its id. False: it is in no page.
    pub(super) fn recall(
        &mut self,
        now: Instant,
        id: MessageId,
        cancel: Option<CancelReason>,
    ) -> bool {
        let tags: Vec<Tag> = self.paging.ids.find(id).collect();
        for tag in &tags {
            let Some(&(remote, lane)) = self.paging.tags.get(tag) else {
                continue;
            };
            let recalls = &mut self.paging.recalls;
            let counts = cancel.is_none() && !recalls.contains_key(&(*tag, id));
            if counts && recalls.len() >= RECALLS_MAX {
                continue;
            }
            let recall = recalls.entry((*tag, id)).or_default();
            recall.cancel = recall.cancel.or(cancel);
            let backlog = &mut self.remotes[remote.0].flow.backlog;
            backlog.change(lane, *tag, |page| {
                page.wanted = true;
                if page.failures == 0 {
                    page.rests = page.rests.min(now);
                }
            });
            self.touch(remote);
        }
        !tags.is_empty()
    }

    /// The same of one that was cancelled before the restart: such cancels are in memory themselves,
    /// so that this is not for few only.
    pub(super) fn recall_cancelled(&mut self, now: Instant, id: MessageId, cancel: Key) -> bool {
        for tag in self.paging.ids.find(id) {
            let recall = self.paging.recalls.entry((tag, id)).or_default();
            recall.open = OpenCancel::new(cancel);
        }
        self.recall(now, id, None)
    }

    /// Something about pages of this recipient is due.
    pub(super) fn look_at_pages(&mut self, cx: &mut Cx<'_>, id: RemoteId) {
        for (lane, tag) in self.remotes[id.0].flow.backlog.take_due(cx.now) {
            if self.room_to_load() == 0 {
                let later = cx.now + LOAD_LATER;
                let backlog = &mut self.remotes[id.0].flow.backlog;
                backlog.change(lane, tag, |page| page.rests = later);
            } else {
                let whole = self.has_appetite(id, lane, tag);
                self.load(cx, id, lane, tag, whole);
            }
        }
    }

    /// Loads what comes next while there is room for it.
    pub(super) fn refill(&mut self, cx: &mut Cx<'_>, id: RemoteId) {
        for lane in 0..LANES {
            let front = self.remotes[id.0].flow.backlog.front(lane);
            let Some(page) = front.filter(|page| !page.loading) else {
                continue;
            };
            let (tag, failed) = (page.tag, page.failures > 0 && page.rests > cx.now);
            if failed || !self.has_appetite(id, lane, tag) {
                continue;
            }
            if self.room_to_load() > 0 {
                self.load(cx, id, lane, tag, true);
            } else if !self.paging.hungry.contains(&id) {
                self.paging.hungry.push_back(id);
            }
        }
    }

    /// How many more pages may be loaded now.
    fn room_to_load(&self) -> usize {
        if self.letters.is_behind() {
            return 0;
        }
        LOADS_MAX.saturating_sub(self.paging.loads.len())
    }

    /// Lets those who waited longest for a page have their turn. Some may have no use for it any more, so that
    /// this is called until nobody is ready.
    pub(super) fn feed(&mut self) {
        for _ in 0..self.room_to_load() {
            let Some(next) = self.paging.hungry.pop_front() else {
                return;
            };
            self.set_ready(next);
        }
    }

    /// Whether this page comes next and there is room for it in memory.
    fn has_appetite(&self, id: RemoteId, lane: usize, tag: Tag) -> bool {
        let flow = &self.remotes[id.0].flow;
        let next = flow.backlog.front(lane);
        next.is_some_and(|page| page.tag == tag)
            && flow.in_memory(lane) <= self.allowance() / 2
            && (id == OWN || flow.has_way())
    }

    fn load(&mut self, cx: &mut Cx<'_>, remote: RemoteId, lane: usize, tag: Tag, whole: bool) {
        for (_, recall) in self
            .paging
            .recalls
            .range_mut((tag, MessageId::from_u128(0))..=(tag, MessageId::from_u128(u128::MAX)))
        {
            recall.covered = true;
        }
        let mut range = None;
        self.remotes[remote.0]
            .flow
            .backlog
            .change(lane, tag, |page| {
                page.wanted = false;
                page.loading = true;
                range = Some(page.entries);
            });
        let Some((first, last)) = range else {
            return;
        };
        let loading = Loading {
            remote,
            lane,
            tag,
            whole,
            rest: None,
            taken: 0,
            taken_bytes: 0,
        };
        self.ask(cx, loading, first, last);
        self.touch(remote);
    }

    fn ask(&mut self, cx: &mut Cx<'_>, loading: Loading, first: EntryId, last: EntryId) {
        self.paging.last_token += 1;
        let token = LoadToken(self.paging.last_token);
        cx.out.push_back(Output::Load {
            token,
            recipient: self.remotes[loading.remote.0].node.clone(),
            first,
            last,
            records: LOAD_RECORDS,
            bytes: self.limits.flow_window,
        });
        self.paging.loads.insert(token, loading);
    }

    /// The store's answer to a load.
    pub(crate) fn handle_loaded(
        &mut self,
        now: Instant,
        net: &mut dyn Net,
        token: LoadToken,
        result: Result<Loaded, ErrorBody>,
        out: &mut Out,
    ) {
        let cx = &mut Cx { now, net, out };
        let Some(mut loading) = self.paging.loads.remove(&token) else {
            return;
        };
        let (remote, lane, tag) = (loading.remote, loading.lane, loading.tag);
        let Some(page) = self.remotes[remote.0].flow.backlog.page(lane, tag) else {
            return;
        };
        let last = page.entries.1;
        match result {
            Ok(loaded) => {
                for (entry, message) in self.messages_in(tag, loaded.records) {
                    match message.kind {
                        _ if backlog::lane(&message) != lane => {}
                        MessageKind::Request { respond, .. } => {
                            self.request_loaded(cx, &mut loading, entry, message, respond);
                        }
                        MessageKind::Response { .. } => {
                            self.response_loaded(cx, &mut loading, entry, message);
                        }
                        MessageKind::Cancel { .. } => {}
                    }
                }
                for (entry, message) in self.messages_in(tag, loaded.damaged) {
                    self.damaged_loaded(cx, &mut loading, entry, message);
                }
                match loaded.next.filter(|next| *next <= last) {
                    Some(next) => self.ask(cx, loading, next, last),
                    None => self.load_ended(cx, loading),
                }
            }
            Err(_) => self.load_failed(cx, loading),
        }
        self.set_ready(remote);
        self.touch(remote);
    }

    /// The messages of a page among these records, in order. Others are in memory, were read when
    /// they still were in the store, or are in other pages.
    fn messages_in(&self, tag: Tag, records: Vec<Record>) -> Vec<(EntryId, Message)> {
        let mut messages: Vec<_> = records
            .into_iter()
            .filter_map(|record| match record {
                Record::Outgoing { entry, message, .. } => Some((entry, message)),
                Record::Incoming { .. }
                | Record::Transit { .. }
                | Record::Started { .. }
                | Record::Received { .. } => None,
            })
            .filter(|(entry, message)| {
                let name = backlog::name(message, *entry);
                self.paging.ids.is_in(name, tag)
            })
            .collect();
        messages.sort_unstable_by_key(|(_, message)| (message.epoch, message.seq));
        messages
    }

    /// One message of a page that is not as it was written any more: its work ends. It has a name
    /// of this page, so that it is that one; whatever else it says may be wrong.
    fn damaged_loaded(
        &mut self,
        cx: &mut Cx<'_>,
        loading: &mut Loading,
        entry: EntryId,
        mut message: Message,
    ) {
        let (to, tag) = (loading.remote, loading.tag);
        let id = message.work;
        let flow = &self.remotes[to.0].flow;
        let Some(page) = flow.backlog.page(loading.lane, tag) else {
            return;
        };
        let (first, last) = page.keys;
        (message.epoch, message.seq) = (message.epoch, message.seq).clamp(first, last);
        message.size = message
            .size
            .min(page.bytes.saturating_sub(loading.taken_bytes));
        if let MessageKind::Request { respond, .. } = message.kind {
            if self.requests.get(id).is_some() {
                return;
            }
            let key = (message.epoch, message.seq);
            let mut request = Request::new(to, self.remotes[to.0].node.clone(), key, respond);
            request.entry = Some(entry);
            request.accepted = true;
            let recall = self.paging.recalls.remove(&(tag, id));
            request.was_cancelled(recall.and_then(|recall| recall.open));
            self.requests.insert(id, request);
        }
        self.take_from_page(loading, backlog::name(&message, entry), message.size);
        let outgoing = Outgoing::new(message, Some(entry), cx.now);
        self.left(to, &outgoing);
        let text =
            "the message was damaged on the disk of the node that had it, before it was sent";
        let error = ErrorBody::new(ErrorCode::Damaged, text);
        self.unreadable(cx, to, outgoing, error);
    }

    /// One request of a page.
    fn request_loaded(
        &mut self,
        cx: &mut Cx<'_>,
        loading: &mut Loading,
        entry: EntryId,
        message: Message,
        respond: bool,
    ) {
        let Loading {
            remote: to, tag, ..
        } = *loading;
        let id = message.work;
        let paged = Paged::new(cx.now, entry, &message);
        let expires = paged.expires;
        if let Some(request) = self.requests.get(id) {
            // Written again before a restart, without its payload or for another recipient: this is
            // the older one.
            if request.entry.is_some_and(|newer| newer > entry) {
                self.journal.remove(entry);
                self.kept -= 1;
                self.kept_bytes -= paged.size;
                self.take_from_page(loading, id, paged.size);
            }
            return;
        }
        let mut recall = self.paging.recalls.remove(&(tag, id));
        let expired = expires <= cx.now;
        if !(expired || recall.is_some() || loading.whole) {
            loading.leave(paged);
            return;
        }
        self.take_from_page(loading, id, paged.size);
        let recipient = self.remotes[to.0].node.clone();
        let mut request = Request::new(to, recipient, paged.key, respond);
        request.entry = Some(entry);
        request.accepted = true;
        request.was_cancelled(recall.as_mut().and_then(|recall| recall.open.take()));
        self.requests.insert(id, request);
        let mut outgoing = Outgoing::new(message, Some(entry), expires);
        outgoing.stored = true;
        outgoing.restored = paged.key.0 != self.instance;
        if expired {
            // Of one that an earlier start may have sent nobody is asked any more: that is for few,
            // and this may be a whole backlog.
            let code = if outgoing.restored && respond {
                ErrorCode::Lost
            } else {
                ErrorCode::Expired
            };
            let outgoing = Box::new(outgoing);
            self.given_up(cx, to, GivenUp { outgoing, code });
            return;
        }
        outgoing.note_absent();
        let flow = &mut self.remotes[to.0].flow;
        flow.push(outgoing, cx.now, &self.limits, false);
        if let Some(reason) = recall.and_then(|recall| recall.cancel) {
            // It is in memory now.
            let _ = self.cancel_with(cx, id, reason);
        }
    }

    /// One response of a page.
    fn response_loaded(
        &mut self,
        cx: &mut Cx<'_>,
        loading: &mut Loading,
        entry: EntryId,
        message: Message,
    ) {
        let to = loading.remote;
        let paged = Paged::new(cx.now, entry, &message);
        let expires = paged.expires;
        let expired = expires <= cx.now;
        if !(expired || loading.whole) {
            loading.leave(paged);
            return;
        }
        self.take_from_page(loading, backlog::name(&message, entry), paged.size);
        let mut outgoing = Outgoing::new(message, Some(entry), expires);
        outgoing.stored = true;
        outgoing.restored = paged.key.0 != self.instance;
        if self.is_broken_off(to, &outgoing) {
            self.left(to, &outgoing);
            self.drop_broken_off(to, &outgoing);
        } else if expired {
            let outgoing = Box::new(outgoing);
            let code = ErrorCode::Expired;
            self.given_up(cx, to, GivenUp { outgoing, code });
        } else {
            outgoing.note_absent();
            let flow = &mut self.remotes[to.0].flow;
            flow.push(outgoing, cx.now, &self.limits, false);
        }
    }

    fn take_from_page(&mut self, loading: &mut Loading, name: MessageId, size: u64) {
        self.paging.ids.remove(name, loading.tag);
        self.paging.messages -= 1;
        loading.taken += 1;
        loading.taken_bytes += size;
    }

    /// All of a page was seen.
    fn load_ended(&mut self, cx: &mut Cx<'_>, loading: Loading) {
        let Loading {
            remote,
            lane,
            tag,
            rest,
            taken,
            taken_bytes,
            ..
        } = loading;
        let backlog = &mut self.remotes[remote.0].flow.backlog;
        let (mut missing, mut missing_bytes) = (0, 0);
        let gone = backlog.change(lane, tag, |page| {
            let count = rest.as_ref().map_or(0, |rest| rest.count);
            let bytes = rest.as_ref().map_or(0, |rest| rest.bytes);
            missing = page.count.saturating_sub(count + taken);
            missing_bytes = page.bytes.saturating_sub(bytes + taken_bytes);
            page.loading = false;
            page.failures = 0;
            page.rests = cx.now + LOOK_AGAIN;
            page.count = count;
            page.bytes = bytes;
            if let Some(rest) = rest {
                page.keys = rest.keys;
                page.entries = rest.entries;
                page.expires = rest.expires;
            }
            if page.wanted {
                page.rests = cx.now;
            }
        });
        // What the store has lost it has reported; here nobody knows whose it was.
        self.kept = self.kept.saturating_sub(missing);
        self.kept_bytes = self.kept_bytes.saturating_sub(missing_bytes);
        self.paging.messages = self.paging.messages.saturating_sub(missing);
        if gone {
            self.paging.tags.remove(&tag);
            if missing > 0 {
                self.paging.ids.forget(tag);
            }
        }
        self.settle_recalls(cx, tag, gone);
    }

    /// What was wanted of a page that was seen whole and did not have it is nowhere.
    fn settle_recalls(&mut self, cx: &mut Cx<'_>, tag: Tag, gone: bool) {
        let all = (tag, MessageId::from_u128(0))..=(tag, MessageId::from_u128(u128::MAX));
        let recalls = self.paging.recalls.range(all);
        let over: Vec<MessageId> = recalls
            .filter(|(_, recall)| gone || recall.covered)
            .map(|((_, id), _)| *id)
            .collect();
        for id in over {
            let recall = self.paging.recalls.remove(&(tag, id));
            // It may have come before it was wanted.
            if let Some(reason) = recall.and_then(|recall| recall.cancel)
                && self.requests.get(id).is_some()
            {
                let _ = self.cancel_with(cx, id, reason);
            }
        }
    }

    /// The store cannot read a page now. What came of it already is in memory.
    fn load_failed(&mut self, cx: &mut Cx<'_>, loading: Loading) {
        let Loading {
            remote,
            lane,
            tag,
            taken,
            taken_bytes,
            ..
        } = loading;
        for (_, recall) in self
            .paging
            .recalls
            .range_mut((tag, MessageId::from_u128(0))..=(tag, MessageId::from_u128(u128::MAX)))
        {
            recall.covered = false;
        }
        let backlog = &mut self.remotes[remote.0].flow.backlog;
        let gone = backlog.change(lane, tag, |page| {
            page.loading = false;
            page.count -= taken.min(page.count);
            page.bytes -= taken_bytes.min(page.bytes);
            let wait = LOOK_AGAIN * (1 << page.failures.min(6));
            page.failures += 1;
            page.rests = cx.now + wait.min(FAILED_MOST);
        });
        if gone {
            self.paging.tags.remove(&tag);
            self.settle_recalls(cx, tag, true);
        }
    }
}
