//! What can happen, and in which order it does.
//!
//! Owns simulated time. Events at one moment happen in the order in which they were planned,
//! so that a run depends on nothing but its options.

use std::cmp::Ordering;
use std::collections::BinaryHeap;

use bytes::Bytes;
use receptor_mesh::Record;
use receptor_proto::frame::Frame;
use receptor_proto::{ErrorCode, MessageId};

/// A node, by its place in the plan.
pub(crate) type NodeIndex = usize;
/// One connection over a wire. Never used twice.
pub(crate) type ConnIndex = usize;

/// A frame on its way.
#[derive(Debug, Clone)]
pub(crate) enum Carried {
    /// As bytes, to be split and decoded.
    Bytes(Bytes),
    /// As its sender made it; the number is its size in bytes.
    Frame(Box<Frame>, u64),
}

impl Carried {
    pub(crate) fn size(&self) -> u64 {
        match self {
            Self::Bytes(bytes) => bytes.len() as u64,
            Self::Frame(_, size) => *size,
        }
    }
}

/// What happens to one end of a connection.
#[derive(Debug)]
pub(crate) enum LinkEvent {
    Up,
    Arrive(Carried),
    /// The connection takes bytes again.
    Room,
    Down(ErrorCode),
}

/// What happens to the process of one node in one of its lives; void in the next.
#[derive(Debug)]
pub(crate) enum ProcessEvent {
    Timer,
    /// The oldest job of the disk is done.
    Disk,
    /// A work takes its next step.
    Work(MessageId),
    /// A client has taken a response.
    Consume(MessageId, u64),
    /// A client cancels what it sent.
    Cancel(MessageId),
    /// A client sends a message.
    Submit,
    /// A client sends an echo.
    Echo,
    /// Capabilities, metadata or costs change.
    Change,
    /// The process has said goodbye and ends.
    Stop,
}

/// Troubles of the world, by what they do when their time has come.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Trouble {
    Flap,
    BlackHole,
    OneWay,
    Crash,
    PowerCut,
    Freeze,
    Change,
    Shutdown,
    DiskOutage,
}

impl Trouble {
    pub(crate) const ALL: [Self; 9] = [
        Self::Flap,
        Self::BlackHole,
        Self::OneWay,
        Self::Crash,
        Self::PowerCut,
        Self::Freeze,
        Self::Change,
        Self::Shutdown,
        Self::DiskOutage,
    ];
}

/// Everything that can happen.
#[derive(Debug)]
pub(crate) enum Event {
    /// To one end, 0 or 1, of a connection.
    Link(ConnIndex, usize, LinkEvent),
    /// In a life of a process.
    Process(NodeIndex, u32, ProcessEvent),
    /// The dialler of a wire tries to connect.
    Dial(usize),
    /// A wire carries again what it swallowed, or can be connected again. The number names the
    /// fault that ends, so that a later one is not ended early.
    Mend(usize, u64),
    /// A process starts.
    Start(NodeIndex),
    /// A stopped process goes on.
    Thaw(NodeIndex, u64),
    /// A disk works again. The number names the fault that ends.
    DiskMend(NodeIndex, u64),
    /// The next trouble of its kind, and planning the one after.
    Trouble(Trouble),
    /// The next message of the traffic, and planning the one after.
    Traffic,
    /// A client asks again what became of a message that has a key.
    Ask(MessageId),
    /// An operator drops a message where it waits.
    Drop(MessageId),
    /// The next echo of the traffic, and planning the one after.
    Echoes,
    /// The hostile neighbor of this number does something.
    Hostile(usize),
}

#[derive(Debug)]
struct Planned {
    at: u64,
    order: u64,
    event: Event,
}

impl PartialEq for Planned {
    fn eq(&self, other: &Self) -> bool {
        (self.at, self.order) == (other.at, other.order)
    }
}
impl Eq for Planned {}
impl PartialOrd for Planned {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Planned {
    /// The earliest is the greatest, for a heap that gives the greatest first.
    fn cmp(&self, other: &Self) -> Ordering {
        (other.at, other.order).cmp(&(self.at, self.order))
    }
}

/// The future. Times are microseconds since the start of the run.
#[derive(Debug, Default)]
pub(crate) struct Queue {
    heap: BinaryHeap<Planned>,
    now: u64,
    planned: u64,
}

impl Queue {
    pub(crate) fn now(&self) -> u64 {
        self.now
    }

    /// Plans an event; one in the past happens now.
    pub(crate) fn at(&mut self, at: u64, event: Event) {
        self.planned += 1;
        let at = at.max(self.now);
        let order = self.planned;
        self.heap.push(Planned { at, order, event });
    }

    /// Plans an event `micros` from now.
    pub(crate) fn after(&mut self, micros: u64, event: Event) {
        self.at(self.now.saturating_add(micros), event);
    }

    /// The next event up to `end`, and time moves to it; at `None` it has moved to `end`.
    pub(crate) fn next(&mut self, end: u64) -> Option<Event> {
        if self.heap.peek().is_none_or(|first| first.at > end) {
            self.now = self.now.max(end);
            return None;
        }
        let Planned { at, event, .. } = self.heap.pop()?;
        self.now = at;
        Some(event)
    }
}

/// Which record it is, in a word, for traces.
pub(crate) fn record_word(record: &Record) -> &'static str {
    match record {
        Record::Outgoing { .. } => "outgoing",
        Record::Incoming { .. } => "incoming",
        Record::Transit { .. } => "transit",
        Record::Started { .. } => "started",
        Record::Received { .. } => "received",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_come_in_order_of_time_then_of_planning() {
        let mut queue = Queue::default();
        queue.at(5, Event::Dial(2));
        queue.at(3, Event::Dial(0));
        queue.at(3, Event::Dial(1));
        let mut order = Vec::new();
        while let Some(Event::Dial(wire)) = queue.next(4) {
            order.push(wire);
        }
        assert_eq!((order, queue.now()), (vec![0, 1], 4));
        queue.at(1, Event::Dial(3));
        assert!(matches!(queue.next(9), Some(Event::Dial(3))));
        assert_eq!(queue.now(), 4);
    }
}
