//! Looking through pages for the responses of one work.
//!
//! Owns what operators look for, at most [`SEARCHES_MAX`] of it, and what was found of that, at
//! most [`FOUND_MAX`] each. A search reads the pages that may have some, and no others, one after
//! the other: it takes no more of the store than one recipient who comes back. It ends when they
//! were read, when one of them cannot be, or when its time is over, and always says so.

use alloc::collections::{BTreeMap, VecDeque};
use alloc::format;
use alloc::vec::Vec;
use core::time::Duration;

use receptor_proto::packet::{Message, MessageKind};
use receptor_proto::{ErrorBody, ErrorCode, MessageId};

use super::backlog::Tag;
use super::views::view;
use super::{Cx, Delivery, RemoteId};
use crate::{Found, Instant, Output, SearchId, TooManySearches, WaitingView};

/// Searches at once: operators who look, and not programs that poll.
const SEARCHES_MAX: usize = 8;
/// Responses that one gives back, those with the lowest serials: more than fit into a line of the
/// control protocol. Of others it says how many there are.
const FOUND_MAX: usize = 4096;
/// After which a search has failed: a million responses of one work are read in a fraction of it.
const PATIENCE: Duration = Duration::from_secs(60);

/// One of them.
#[derive(Debug)]
struct Search {
    work: MessageId,
    /// What is found is to be given up.
    drop: bool,
    until: Instant,
    /// Pages that were not looked through since it began, in the order of their messages. The first
    /// is asked for.
    pages: VecDeque<Tag>,
    found: BTreeMap<(RemoteId, u64), WaitingView>,
    /// What was found, or dropped; what went from memory into a page meanwhile may count twice.
    total: u64,
}

impl Search {
    /// Something that waits.
    fn add(&mut self, to: RemoteId, serial: u64, view: WaitingView) {
        self.found.insert((to, serial), view);
        if self.found.len() > FOUND_MAX {
            self.found.pop_last();
        }
    }
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Searches {
    last_id: u64,
    open: BTreeMap<SearchId, Search>,
}

impl Searches {
    /// Those that a load of this page, which begins now, is for.
    pub(super) fn that_want(&self, tag: Tag) -> Vec<SearchId> {
        let open = self.open.iter();
        let wanting = open.filter(|(_, search)| search.pages.contains(&tag));
        wanting.map(|(id, _)| *id).collect()
    }

    /// Whether a response of this work that was read for these is to be given up.
    pub(super) fn takes(&mut self, searches: &[SearchId], work: MessageId) -> bool {
        let mut taken = false;
        for id in searches {
            if let Some(search) = self.open.get_mut(id)
                && search.work == work
                && search.drop
            {
                search.total += 1;
                taken = true;
            }
        }
        taken
    }

    /// A response that was read for these stays where it is.
    pub(super) fn see(
        &mut self,
        searches: &[SearchId],
        to: RemoteId,
        message: &Message,
        view: impl Fn() -> WaitingView,
    ) {
        let MessageKind::Response { serial, .. } = message.kind else {
            return;
        };
        for id in searches {
            if let Some(search) = self.open.get_mut(id)
                && search.work == message.work
                && !search.drop
            {
                search.total += 1;
                search.add(to, serial, view());
            }
        }
    }

    /// When one of them has failed.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.open.values().map(|search| search.until).min()
    }
}

impl Delivery {
    /// Looks for responses of a work in pages. `None`: none of them has any.
    pub(crate) fn search(
        &mut self,
        now: Instant,
        work: MessageId,
        drop: bool,
    ) -> Result<Option<SearchId>, TooManySearches> {
        let mark = self.paging.ids.mark(work);
        let backlogs = self.remotes.iter().map(|remote| &remote.flow.backlog);
        let mut pages: Vec<_> = backlogs
            .flat_map(|backlog| backlog.pages_with(mark))
            .map(|page| (page.keys.0, page.tag))
            .collect();
        if pages.is_empty() {
            return Ok(None);
        }
        if self.paging.searches.open.len() >= SEARCHES_MAX {
            return Err(TooManySearches);
        }
        pages.sort_unstable();
        let mut search = Search {
            work,
            drop,
            until: now + PATIENCE,
            pages: pages.into_iter().map(|(_, tag)| tag).collect(),
            found: BTreeMap::new(),
            total: 0,
        };
        if !drop {
            // Some of it may go into a page that was read already.
            for (to, serial, view) in self.responses_in_memory(now, work) {
                search.total += 1;
                search.add(to, serial, view);
            }
        }
        let searches = &mut self.paging.searches;
        searches.last_id += 1;
        let id = SearchId(searches.last_id);
        searches.open.insert(id, search);
        self.want_next(now, id);
        Ok(Some(id))
    }

    fn responses_in_memory(
        &self,
        now: Instant,
        work: MessageId,
    ) -> impl Iterator<Item = (RemoteId, u64, WaitingView)> {
        let remotes = self.remotes.iter().enumerate();
        let all = remotes.flat_map(|(at, remote)| {
            let of = move |outgoing| (RemoteId(at), &remote.node, outgoing);
            remote.flow.iter().map(of)
        });
        all.filter_map(move |(to, node, outgoing)| match outgoing.message.kind {
            MessageKind::Response { serial, .. } if outgoing.message.work == work => {
                Some((to, serial, view(now, node, outgoing)))
            }
            MessageKind::Response { .. }
            | MessageKind::Request { .. }
            | MessageKind::Cancel { .. } => None,
        })
    }

    /// Nobody waits for what it finds.
    pub(crate) fn end_search(&mut self, id: SearchId) {
        self.paging.searches.open.remove(&id);
    }

    /// Asks for the next page of a search. False: there is none.
    fn want_next(&mut self, now: Instant, id: SearchId) -> bool {
        let search = self.paging.searches.open.get(&id);
        let Some(tag) = search.and_then(|search| search.pages.front()) else {
            return false;
        };
        if let Some(&(remote, lane)) = self.paging.tags.get(tag) {
            let backlog = &mut self.remotes[remote.0].flow.backlog;
            backlog.change(lane, *tag, |page| page.want_at_once(now));
            self.touch(remote);
        }
        true
    }

    /// All of a page was seen: by these searches, or by all because it is no more.
    pub(super) fn page_searched(
        &mut self,
        cx: &mut Cx<'_>,
        searches: &[SearchId],
        tag: Tag,
        gone: bool,
    ) {
        let mut next = Vec::new();
        for (id, search) in &mut self.paging.searches.open {
            if (gone || searches.contains(id)) && search.pages.contains(&tag) {
                search.pages.retain(|other| *other != tag);
                next.push(*id);
            }
        }
        for id in next {
            if !self.want_next(cx.now, id) {
                self.searched(cx, id);
            }
        }
    }

    /// A search has read everything.
    fn searched(&mut self, cx: &mut Cx<'_>, id: SearchId) {
        let Some(mut search) = self.paging.searches.open.remove(&id) else {
            return;
        };
        // What came to memory meanwhile, for any other reason, is part of it.
        if search.drop {
            search.total += self.drop_responses(cx, search.work);
        } else {
            for (to, serial, view) in self.responses_in_memory(cx.now, search.work) {
                search.add(to, serial, view);
            }
        }
        let count = search.found.len();
        if !search.drop && count < FOUND_MAX {
            search.total = count as u64;
        }
        let waiting = search.found.into_values().collect();
        let total = search.total;
        let result = Ok(Found { waiting, total });
        cx.out.push_back(Output::Found { id, result });
    }

    /// A page cannot be read now: searches that are to end with it do not wait until it can be.
    pub(super) fn fail_searches(&mut self, cx: &mut Cx<'_>, tag: Tag, why: &ErrorBody) {
        for id in self.paging.searches.that_want(tag) {
            let text = format!(
                "not all that waits on the disk could be read: {}",
                why.message
            );
            self.search_failed(cx, id, ErrorBody::new(why.code.clone(), text));
        }
    }

    /// Searches that took too long end.
    pub(super) fn end_late_searches(&mut self, cx: &mut Cx<'_>) {
        let open = self.paging.searches.open.iter();
        let late = open.filter(|(_, search)| search.until <= cx.now);
        let late: Vec<_> = late.map(|(id, _)| *id).collect();
        for id in late {
            let text = format!(
                "what waits on the disk could not be read within {} s",
                PATIENCE.as_secs()
            );
            self.search_failed(cx, id, ErrorBody::new(ErrorCode::Busy, text));
        }
    }

    fn search_failed(&mut self, cx: &mut Cx<'_>, id: SearchId, error: ErrorBody) {
        self.paging.searches.open.remove(&id);
        let result = Err(error);
        cx.out.push_back(Output::Found { id, result });
    }
}
