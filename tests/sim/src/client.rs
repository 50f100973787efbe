//! The clients of the simulated nodes: they send messages of every sort, take responses in
//! their own time, change their minds, and look for nodes with echoes.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use receptor_mesh::{EchoAnswer, EchoId, Payload, Recipient, Submission};
use receptor_proto::packet::{CancelReason, Content, Eof, SEGMENT_MAX};
use receptor_proto::{Directive, ErrorBody, MessageId, NodeId};

use crate::event::{Event, NodeIndex, ProcessEvent};
use crate::ledger::{Delivered, Letter, payload};
use crate::options::Span;
use crate::random::{Draw, mix};
use crate::world::{World, ZONES, node_id, zone};

/// How long an echo may take, by the client's wish.
const ECHO_TIMEOUT: Duration = Duration::from_secs(5);
/// How long after that its result may come: the core's timers may be coarse.
const ECHO_GRACE_US: u64 = 1_000_000;
/// How long the client of a message with a key waits at most before it asks again.
const ASK_PAUSE_US: u64 = 4_000_000;
/// The directive of an action that may be run again.
pub(crate) const AGAIN: &str = "sim:again";
/// The time to live of a message to nobody: short enough to end within a run.
const NOBODY_EXPIRY_MS: Span = Span::new(2_000, 10_000);

impl World {
    /// Plans the next message of the traffic.
    pub(crate) fn plan_message(&mut self) {
        if !self.troubled {
            return;
        }
        let node = self.traffic.usize(0..self.members().len());
        let process = self.hosts[node].life.process;
        self.queue
            .after(0, Event::Process(node, process, ProcessEvent::Submit));
        let pause = self.traffic.pause(self.options.rate);
        self.queue.after(pause, Event::Traffic);
    }

    /// Plans the next echo of the traffic.
    pub(crate) fn plan_echo(&mut self) {
        if !self.troubled {
            return;
        }
        let node = self.traffic.usize(0..self.members().len());
        let process = self.hosts[node].life.process;
        self.queue
            .after(0, Event::Process(node, process, ProcessEvent::Echo));
        let pause = self.traffic.pause(self.options.echoes);
        self.queue.after(pause, Event::Echoes);
    }

    fn draw_directive(&mut self, any: bool) -> Directive {
        let again = self.wishes.chance(self.options.idempotent);
        let text = match if any { 2 } else { self.clients.u32(0..20) } {
            0 => "gone:run",
            1 => "sim:fail",
            _ if again => AGAIN,
            _ => "sim:run",
        };
        Directive::new(text).expect("these are directives")
    }

    pub(crate) fn submit(&mut self, node: NodeIndex) {
        self.next_message += 1;
        let low = mix(self.options.seed ^ self.next_message);
        let work = MessageId::from_u128(u128::from(self.next_message) << 64 | u128::from(low));
        let size = if self.clients.chance(self.options.large) {
            self.clients.within(self.options.large_payload)
        } else {
            self.clients.within(self.options.payload)
        };
        let volatile = self.clients.chance(self.options.volatile);
        let respond = !self.clients.chance(self.options.forget);
        let any = self.clients.chance(self.options.any);
        let nobody = !any && self.clients.chance(self.options.nobody);
        let directive = self.draw_directive(any);
        let expiry_ms = self.clients.within(if nobody {
            NOBODY_EXPIRY_MS
        } else {
            self.options.expiry_ms
        });
        let to = self.clients.usize(0..self.members().len());
        let cancelled = self.clients.chance(self.options.cancel);
        let recipient = if any {
            let zone = ("zone".to_string(), zone(self.clients.usize(0..ZONES)));
            let metadata: BTreeMap<_, _> = [zone].into();
            Recipient::Any { metadata }
        } else if nobody {
            Recipient::Node(node_id(usize::MAX))
        } else {
            Recipient::Node(self.hosts[to].id.clone())
        };
        let mut letter = Letter::new(
            node,
            self.hosts[node].life,
            directive,
            (!any && !nobody).then(|| (to, self.hosts[to].life)),
            (nobody, volatile, respond),
            size,
            self.queue.now(),
            expiry_ms * 1000,
        );
        letter.wanted = recipient.clone();
        let now = self.queue.now();
        self.trace.numbers([5, now, node as u64, low, size]);
        self.trace.line(now, || {
            format!(
                "{node}: a client sends {work} to {recipient:?}, {size} bytes, volatile {volatile}"
            )
        });
        letter.keyed = !volatile && self.wishes.chance(self.options.keys);
        if letter.keyed {
            let pause = self.wishes.u64(0..ASK_PAUSE_US);
            self.queue.after(pause, Event::Ask(work));
        }
        if self.wishes.chance(self.options.drops) {
            let pause = self.wishes.micros(self.options.cancel_ms);
            self.queue.after(pause, Event::Drop(work));
        }
        self.ledger.letters.insert(work, letter);
        if self.hand_over(node, work, recipient) && cancelled {
            let Span { low, high } = self.options.cancel_ms;
            let pause = self
                .clients
                .u64(low * 1000..(high * 1000).max(low * 1000 + 1));
            let process = self.hosts[node].life.process;
            let event = ProcessEvent::Cancel(work);
            self.queue
                .after(pause, Event::Process(node, process, event));
        }
    }

    /// Gives a message to its node; whether that takes it.
    fn hand_over(&mut self, node: NodeIndex, work: MessageId, recipient: Recipient) -> bool {
        let Some(letter) = self.ledger.letters.get(&work) else {
            return false;
        };
        let (directive, size) = (letter.directive.clone(), letter.size);
        let (volatile, respond, repeatable) = (letter.volatile, letter.respond, letter.keyed);
        let expiry = Duration::from_micros(letter.expiry_us);
        let payload = self.stored_payload(node, payload(work, 0, size));
        let clock = self.clock(node);
        let Some(mesh) = self.hosts[node].mesh.as_mut() else {
            return false;
        };
        let bundled = match &recipient {
            Recipient::Node(to) => volatile && !respond && mesh.takes_bundles(to),
            Recipient::Any { .. } => false,
        };
        let submission = Submission {
            id: work,
            recipient,
            directive,
            // To the core it is one message, whatever is in it.
            content: if bundled {
                Content::Bundle
            } else {
                Content::Bytes
            },
            payload,
            volatile,
            respond,
            expiry,
            repeatable,
        };
        let Err(error) = mesh.submit(clock, submission) else {
            return true;
        };
        let now = self.queue.now();
        self.trace
            .line(now, || format!("{node}: {work} is refused: {error}"));
        self.stats.refused += 1;
        if let Some(letter) = self.ledger.letters.get_mut(&work) {
            letter.refused = Some(error.0);
        }
        false
    }

    /// The client of a message with a key asks again what became of it. A node that knows nothing of
    /// it gets it again.
    pub(crate) fn ask_again(&mut self, work: MessageId) {
        let Some(letter) = self.ledger.letters.get(&work) else {
            return;
        };
        let node = letter.from;
        let host = &self.hosts[node];
        if letter.is_told() || letter.is_damaged() || letter.from_life.data != host.life.data {
            return;
        }
        let pause = self.wishes.u64(0..ASK_PAUSE_US);
        self.queue.after(pause, Event::Ask(work));
        let here = host.frozen.is_none() && !host.closing;
        let Some(mesh) = host.mesh.as_ref().filter(|_| here) else {
            return;
        };
        // Of one that nobody answers the node has the key on its disk since before it was sent, and
        // not in the core.
        let is_known = !letter.respond && host.store.was_durable(work);
        if is_known || mesh.is_pending(work) {
            return;
        }
        if letter.accepted {
            self.check_honest(Err(format!(
                "{work} was accepted at {node}, which knows nothing of it"
            )));
            return;
        }
        let now = self.queue.now();
        self.trace
            .line(now, || format!("{node}: a client sends {work} again"));
        let (life, recipient) = (host.life, letter.wanted.clone());
        let to = letter.recipient.map(|to| (to, self.hosts[to].life));
        if let Some(letter) = self.ledger.letters.get_mut(&work) {
            letter.sent_again(life, to, now);
        }
        self.hand_over(node, work, recipient);
        self.pump(node);
    }

    /// An operator drops a message where it, or an answer to it, waits: at the first node that has it,
    /// from any one on.
    pub(crate) fn drop_somewhere(&mut self, work: MessageId) {
        let count = self.members().len();
        let first = self.wishes.usize(0..count);
        for node in (first..count).chain(0..first) {
            let clock = self.clock(node);
            let host = &mut self.hosts[node];
            let Some(mesh) = host.mesh.as_mut().filter(|_| host.frozen.is_none()) else {
                continue;
            };
            if mesh.drop_waiting(clock, work).is_err() {
                continue;
            }
            let now = self.queue.now();
            self.trace
                .line(now, || format!("{node}: an operator drops {work}"));
            if let Some(letter) = self.ledger.letters.get_mut(&work) {
                letter.cancelled = true;
            }
            self.pump(node);
            return;
        }
    }

    /// A payload in hand, or written to the store first when it is large.
    pub(crate) fn stored_payload(&mut self, node: NodeIndex, bytes: Bytes) -> Payload {
        if bytes.len() <= SEGMENT_MAX {
            return Payload::Inline(bytes);
        }
        let size = bytes.len() as u64;
        let host = &mut self.hosts[node];
        let Some(mesh) = host.mesh.as_mut() else {
            return Payload::Inline(Bytes::new());
        };
        let entry = mesh.new_entry();
        host.uploads.insert(entry);
        for (index, part) in bytes.chunks(SEGMENT_MAX).enumerate() {
            let offset = (index * SEGMENT_MAX) as u64;
            if let Err(why) =
                host.store
                    .append(entry, offset, crate::store::piece(bytes.slice_ref(part)))
            {
                self.check(Err(why));
                break;
            }
        }
        Payload::Stored { entry, size }
    }

    pub(crate) fn cancel(&mut self, node: NodeIndex, work: MessageId) {
        let clock = self.clock(node);
        let Some(letter) = self.ledger.letters.get_mut(&work) else {
            return;
        };
        let ended = letter.end.is_some();
        letter.cancelled = true;
        let respond = letter.respond;
        let now = self.queue.now();
        self.trace
            .line(now, || format!("{node}: a client cancels {work}"));
        let Some(mesh) = self.hosts[node].mesh.as_mut() else {
            return;
        };
        let result = mesh.cancel(clock, work, CancelReason::User);
        if result.is_err() && !ended && respond {
            self.check_honest(Err(format!(
                "{work} has not ended and cannot be cancelled at {node}"
            )));
        }
    }

    /// A response for a client of this node.
    pub(crate) fn deliver(
        &mut self,
        node: NodeIndex,
        work: MessageId,
        serial: u64,
        payload: &Payload,
        eof: Option<&Eof>,
    ) {
        let Some(payload) = self.read_payload(node, payload) else {
            self.check(Err(format!(
                "response {serial} of {work} is not in the store of {node}"
            )));
            return;
        };
        let life = self.hosts[node].life;
        let now = self.queue.now();
        self.trace.numbers([6, now, node as u64, serial]);
        let what = Delivered {
            serial,
            payload,
            eof,
        };
        let result = self.ledger.delivered(work, node, life, now, &what);
        self.check_honest(result);
        let pause = if self.troubled && self.clients.chance(self.options.stalls) {
            self.clients.u64(500_000..4_000_000)
        } else {
            self.clients.u64(0..10_000)
        };
        let event = ProcessEvent::Consume(work, serial);
        self.queue
            .after(pause, Event::Process(node, life.process, event));
    }

    /// The bytes of a payload that the core hands out.
    pub(crate) fn read_payload(&self, node: NodeIndex, payload: &Payload) -> Option<Bytes> {
        match payload {
            Payload::Inline(bytes) => Some(bytes.clone()),
            Payload::Stored { entry, size } => {
                let size = usize::try_from(*size).ok()?;
                let bytes = self.hosts[node].store.fetch(*entry, 0, size)?;
                (bytes.len() == size).then_some(bytes)
            }
        }
    }

    pub(crate) fn consume(&mut self, node: NodeIndex, work: MessageId, serial: u64) {
        let clock = self.clock(node);
        if let Some(mesh) = self.hosts[node].mesh.as_mut() {
            mesh.consumed(clock, work, serial);
        }
    }

    /// Sends an echo to a random node.
    pub(crate) fn echo(&mut self, node: NodeIndex) {
        let to = self.clients.usize(0..self.members().len());
        self.echo_to(node, to);
    }

    /// Sends an echo to this node.
    pub(crate) fn echo_to(&mut self, node: NodeIndex, to: NodeIndex) {
        let clock = self.clock(node);
        let now = self.queue.now();
        self.trace
            .line(now, || format!("{node}: a client sends {to} an echo"));
        let id = self.hosts[to].id.clone();
        let host = &mut self.hosts[node];
        let Some(mesh) = host.mesh.as_mut() else {
            return;
        };
        let EchoId(echo) = mesh.echo(clock, &id, None, ECHO_TIMEOUT);
        let process = host.life.process;
        if self
            .echoes
            .insert((node, process, echo), (to, now))
            .is_some()
        {
            self.check(Err(format!("node {node} names two echoes {echo}")));
        }
    }

    /// An echo came back, or will not.
    pub(crate) fn echo_result(
        &mut self,
        node: NodeIndex,
        EchoId(echo): EchoId,
        result: Result<EchoAnswer, ErrorBody>,
    ) {
        let process = self.hosts[node].life.process;
        let Some((to, sent_at)) = self.echoes.remove(&(node, process, echo)) else {
            self.check(Err(format!(
                "node {node} has a result of no echo: {result:?}"
            )));
            return;
        };
        // A process that stands still answers nobody; its time counts from when it goes on.
        let since = sent_at.max(self.hosts[node].thawed_at);
        let late = self.queue.now() - since;
        let timeout = u64::try_from(ECHO_TIMEOUT.as_micros()).unwrap_or(u64::MAX);
        if late > timeout + ECHO_GRACE_US {
            self.check(Err(format!(
                "node {node} has the result of an echo after {late} us: {result:?}"
            )));
        }
        match result {
            // Routes that are just changing may lead in a circle.
            Ok(answer) if self.troubled && !answer.arrived => self.stats.echoes_failed += 1,
            Ok(answer) => {
                self.stats.echoes_answered += 1;
                let right: &NodeId = &self.hosts[to].id;
                if !answer.arrived || answer.from != *right || (node == to) != (answer.hops == 0) {
                    self.check_honest(Err(format!(
                        "node {node} asked {to} for an echo, got {answer:?}"
                    )));
                }
            }
            Err(_) if sent_at < self.calm_since => self.stats.echoes_failed += 1,
            Err(error) => {
                let why = format!("the echo of {node} to {to}, sent at {sent_at} us: {error}");
                self.echo_failure = Some(why);
            }
        }
    }
}
