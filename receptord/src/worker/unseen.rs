//! How far a plugin behind a holder was heard, and what of that the next daemon would have to hear again.
//!
//! Owns the works that the next daemon can go on with, and the places in what their process has said that have
//! to be safe before the holder may forget what comes before them. Never says anything of a plugin's words but how
//! far they reach.

use std::collections::VecDeque;
use std::ops::Range;
use std::rc::Rc;

use receptor_proto::MessageId;

use super::holder::{Entry, MAX_ENTRIES, Mark};
use super::process::Process;
use super::running::{Control, Places, Running, result_file};
use crate::by_id::ById;

/// Bytes heard between two words to a holder about what it need not keep, while there is more to come.
const TELL_EVERY: u64 = 64 * 1024;
/// Works of which the holder is told in one word, so that it fits a packet.
const MAX_MARKS: usize = 256;
/// Works with which a process gets no further one. Those that have just ended, and are not safe yet, count.
const MAX_WORKS: usize = MAX_ENTRIES / 2;

/// See the module.
#[derive(Debug)]
pub(super) struct Unseen {
    works: ById<Work>,
    /// Oldest first.
    places: VecDeque<Place>,
    /// Everything before this offset is safe, and the holder was told of what is before that one.
    safe: u64,
    told: u64,
    /// What the holder was not told of the works before `safe`; `None`: their ends are there.
    marks: ById<Option<Mark>>,
    /// Result files that are not needed when it knows of them.
    files: Vec<(MessageId, Range<u32>)>,
}

#[derive(Debug)]
struct Work {
    control: Rc<Control>,
    /// Its result files up to this number are not needed.
    files: u32,
}

/// What comes before this offset is safe with the places before this one, and when this is.
#[derive(Debug)]
struct Place {
    offset: u64,
    what: What,
}

#[derive(Debug)]
enum What {
    /// Nobody wants to hear of it.
    Nothing,
    /// So many results of a work.
    Results {
        work: MessageId,
        reported: u64,
        mark: Mark,
    },
    /// The end of a work that has used so many files.
    End { work: MessageId, files: u32 },
}

impl Unseen {
    /// Of a process that was heard up to this offset.
    pub(super) fn new(offset: u64) -> Self {
        Self {
            works: ById::default(),
            places: VecDeque::new(),
            safe: offset,
            told: offset,
            marks: ById::default(),
            files: Vec::new(),
        }
    }

    /// Leaves word of a work whose line is the last that is queued for the process.
    pub(super) fn begin(&mut self, running: &Running, entry: Entry, process: &mut Process) {
        process.enter(running.work, entry);
        self.go_on(running);
    }

    /// A work of which an earlier daemon has left word.
    pub(super) fn go_on(&mut self, running: &Running) {
        let work = Work {
            control: Rc::clone(&running.control),
            files: running.mark().files,
        };
        self.works.insert(running.work, work);
    }

    /// Whether the next daemon can go on with this work.
    pub(super) fn has(&self, work: MessageId) -> bool {
        self.works.contains_key(&work)
    }

    /// Works that are not over, or whose ends are not safe.
    pub(super) fn works(&self) -> impl Iterator<Item = MessageId> {
        self.works.keys().copied()
    }

    /// Whether there are as many as the holder can be told of.
    pub(super) fn is_full(&self) -> bool {
        self.works.len() >= MAX_WORKS
    }

    /// Whether the next daemon is to go on with them.
    pub(super) fn is_leaving(&self) -> bool {
        let mut controls = self.works.values().map(|work| &work.control);
        controls.any(|control| control.is_leaving())
    }

    /// Whether nothing has to be heard again.
    pub(super) fn is_empty(&self) -> bool {
        self.works.is_empty()
    }

    /// What comes before this offset was heard, and there was nothing to keep since the last place.
    pub(super) fn heard(&mut self, offset: u64) {
        match self.places.back_mut() {
            Some(last) => last.offset = offset,
            None => self.push(offset, What::Nothing),
        }
    }

    /// The last that was heard before this offset may have been a result of this work.
    pub(super) fn said(&mut self, offset: u64, running: &Running) {
        let (work, said, mark) = (running.work, running.reported(), running.mark());
        if let Some(Place { offset: end, what }) = self.places.back_mut()
            && let What::Results {
                work: last,
                reported,
                mark: old,
            } = what
            && (*last, *reported) == (work, said)
        {
            (*end, *old) = (offset, mark);
            return;
        }
        let reported = said;
        let what = What::Results {
            work,
            reported,
            mark,
        };
        self.push(offset, what);
    }

    /// A work is over, of which nothing comes behind this offset.
    pub(super) fn ended(&mut self, offset: u64, running: &Running) {
        let (work, files) = (running.work, running.mark().files);
        self.push(offset, What::End { work, files });
    }

    fn push(&mut self, offset: u64, what: What) {
        self.places.push_back(Place { offset, what });
    }

    fn is_safe(&self, place: &Place) -> bool {
        let of = |work: &MessageId| self.works.get(work).map(|work| &work.control);
        match &place.what {
            What::Nothing => true,
            What::Results { work, reported, .. } => {
                of(work).is_none_or(|control| control.safe() >= *reported)
            }
            What::End { work, .. } => of(work).is_none_or(|control| control.is_end_safe()),
        }
    }

    /// Tells the holder what nobody wants to hear again: at once when that is all there is, in larger pieces
    /// otherwise. The works whose ends have become safe.
    pub(super) fn tell(&mut self, process: &mut Process, at: &Places) -> Vec<MessageId> {
        let mut over = Vec::new();
        while self.places.front().is_some_and(|place| self.is_safe(place))
            && let Some(place) = self.places.pop_front()
        {
            self.safe = place.offset;
            match place.what {
                What::Nothing => {}
                What::Results { work, mark, .. } => {
                    if let Some(known) = self.works.get_mut(&work) {
                        if mark.files > known.files {
                            self.files.push((work, known.files..mark.files));
                            known.files = mark.files;
                        }
                        self.marks.insert(work, Some(mark));
                    }
                }
                What::End { work, files } => {
                    if let Some(known) = self.works.remove(&work) {
                        self.files.push((work, known.files..files));
                        self.marks.insert(work, None);
                        over.push(work);
                    }
                }
            }
            if self.marks.len() >= MAX_MARKS {
                self.send(process, at);
            }
        }
        let is_news = self.safe > self.told || !self.marks.is_empty();
        if is_news && (self.places.is_empty() || self.safe - self.told >= TELL_EVERY) {
            self.send(process, at);
        }
        over
    }

    fn send(&mut self, process: &mut Process, at: &Places) {
        process.seen(self.safe, &mut self.marks.drain());
        self.told = self.safe;
        for (work, files) in self.files.drain(..) {
            for number in files {
                let _ = std::fs::remove_file(result_file(&work.to_string(), number + 1, at));
            }
        }
    }
}
