//! Packets between their two ends: sealed when they leave their source, opened at their destination.
//!
//! Nothing that concerns messages is taken from another node unless it is sealed, so a router can drop and
//! delay, and nothing else. A packet is sealed when it is sent, not when its message is accepted: one that is sent
//! again, or to another node, is sealed again. Messages that this node keeps for others stay sealed, with their
//! origin's statement, and are never opened here.

use alloc::collections::VecDeque;
use alloc::string::ToString;
use alloc::vec::Vec;

use bytes::{Bytes, BytesMut};
use core::fmt::Display;
use receptor_proto::packet::sealed::{
    Form, Identity, KEPT_IDENTITY_MAX, Keepsake, Sealed, SealedEntrusted, SealedKept, Split, join,
};
use receptor_proto::packet::{About, Body, Custody, Holding, Message, Packet, Priority, kind};
use receptor_proto::wire::DecodeError;
use receptor_proto::{ErrorBody, ErrorCode, NodeId};

use super::Guard;
use crate::router::{Local, Out, Router};
use crate::security::{Learned, NotOpened};
use crate::{Instant, LinkId};

/// Packets whose source is not known yet, and their bytes: a moment's worth. What finds no room is sent
/// again by its source.
const UNOPENED_MAX: usize = 64;
const UNOPENED_BYTES: usize = 1 << 20;
/// What a kept message's statement costs of the neighbor's allowance that brought it.
const LEARN_COST: u32 = 4;

/// Packets that wait for their source to be known.
#[derive(Debug, Default)]
pub(super) struct Unopened {
    packets: VecDeque<(LinkId, Packet)>,
    bytes: usize,
}

/// What a packet for this node is.
pub(in crate::router) enum Opened {
    /// What it says.
    Body(Body),
    /// For delivery, as it is.
    Local(Local),
    /// It says nothing, or not yet.
    Nothing,
}

impl Unopened {
    fn keep(&mut self, link: LinkId, packet: Packet) {
        self.bytes += packet.body.len();
        self.packets.push_back((link, packet));
        while self.packets.len() > UNOPENED_MAX || self.bytes > UNOPENED_BYTES {
            if let Some((_, packet)) = self.packets.pop_front() {
                self.bytes -= packet.body.len();
            }
        }
    }

    pub(super) fn take(&mut self, node: &NodeId) -> Vec<(LinkId, Packet)> {
        let mut taken = Vec::new();
        for (link, packet) in core::mem::take(&mut self.packets) {
            if packet.source == *node {
                self.bytes -= packet.body.len();
                taken.push((link, packet));
            } else {
                self.packets.push_back((link, packet));
            }
        }
        taken
    }
}

/// Whether a body of this kind means something only if it is sealed.
fn must_be_sealed(kind: u8) -> bool {
    matches!(
        kind,
        kind::MESSAGE
            | kind::SEGMENT
            | kind::RECEIPT
            | kind::KEPT
            | kind::CUSTODY
            | kind::ENTRUSTED
            | kind::INQUIRY
    )
}

impl Guard {
    /// The body of a sealed packet, behind what stands in `out` already. False: `to` is not known.
    fn seal(&mut self, now: Instant, to: &NodeId, split: &Split, out: &mut Vec<u8>) -> bool {
        let hidden = [&split.hidden[..], &split.rest[..]];
        let (form, shown, plain) = if self.security.hides() {
            (Form::Hidden, Vec::new(), &hidden[..])
        } else {
            (Form::Shown, hidden.concat(), &[][..])
        };
        let bound = Sealed::bound(split.kind, form, &split.clear, &shown);
        let size: usize = plain.iter().map(|part| part.len()).sum();
        out.reserve(bound.len() + size + SEAL_HINT);
        // All of it but the kind, which stands in the packet's header.
        out.extend_from_slice(&bound[1..]);
        self.security.seal(now, to, &bound, plain, out).is_ok()
    }

    pub(in crate::router) fn fingerprint(&self, message: &Sealed) -> u64 {
        let mut bytes = Vec::new();
        message.encode(&mut bytes);
        self.security.fingerprint(&bytes)
    }

    fn open(
        &mut self,
        now: Instant,
        neighbor: &NodeId,
        source: &NodeId,
        kind: u8,
        sealed: Sealed,
    ) -> Result<(Body, u64), Failed> {
        let cheap = self.security.opens_cheaply(source, &sealed.seal);
        if !cheap && !self.openings.take(now, neighbor, 1) {
            return Err(Failed::Later);
        }
        let bound = Sealed::bound(kind, sealed.form, &sealed.clear, &sealed.shown);
        let opened = self
            .security
            .open(now, source, &bound, BytesMut::from(sealed.seal))?;
        let hidden = match sealed.form {
            Form::Hidden => opened,
            Form::Shown => sealed.shown,
        };
        Ok(join(kind, &sealed.clear, hidden)?)
    }
}

/// What a seal adds, for the size of buffers only.
const SEAL_HINT: usize = 80;

/// Why a packet was not opened.
enum Failed {
    /// Its neighbor has caused too much work just now.
    Later,
    /// It cannot be.
    NotOpened(NotOpened),
    /// What is in it makes no sense.
    Bad(DecodeError),
}

impl From<NotOpened> for Failed {
    fn from(why: NotOpened) -> Self {
        Self::NotOpened(why)
    }
}

impl From<DecodeError> for Failed {
    fn from(error: DecodeError) -> Self {
        Self::Bad(error)
    }
}

impl Router {
    /// Whether a packet of others may go on: in a mesh with certificates nobody takes it if it is not sealed.
    pub(in crate::router) fn may_pass(&mut self, packet: &Packet) -> bool {
        let passes = self.guard.is_none() || !must_be_sealed(packet.kind);
        self.counters.unproved += u64::from(!passes);
        passes
    }

    /// Sends a message of this node; a volatile one to this start of its recipient alone, as far as that is known.
    pub(in crate::router) fn post_message(
        &mut self,
        now: Instant,
        to: &NodeId,
        message: &Message,
        instance: u64,
    ) -> Result<(), ErrorCode> {
        if self.guard.is_none() || *to == self.config.node {
            let own = self.config.node.clone();
            let hop_limit = self.config.hop_limit;
            return self.send_own(Packet::with_message(own, to.clone(), hop_limit, message));
        }
        let split = Split::message(message, instance.max(self.find_stated_start(to)));
        self.post_split(now, to, &split, message.priority())
    }

    /// Which start of a node its statements are of; 0: none is known.
    pub(in crate::router) fn find_stated_start(&self, node: &NodeId) -> u64 {
        let index = self.lsdb.find(node);
        let node = index.and_then(|index| self.lsdb.node(index));
        node.map_or(0, |node| node.instance())
    }

    /// Sends a body of this node.
    pub(in crate::router) fn post_body(
        &mut self,
        now: Instant,
        to: &NodeId,
        body: &Body,
    ) -> Result<(), ErrorCode> {
        if let Body::Entrusted { recipient, message } = body
            && self.guard.is_some()
        {
            return self.post_entrusted(now, to, recipient, message);
        }
        let is_sealed = self.guard.is_some() && *to != self.config.node;
        match is_sealed.then(|| Split::body(body)).flatten() {
            Some(split) => self.post_split(now, to, &split, body.priority()),
            None => self.send_own(self.packet(to.clone(), body)),
        }
    }

    fn post_split(
        &mut self,
        now: Instant,
        to: &NodeId,
        split: &Split,
        priority: Priority,
    ) -> Result<(), ErrorCode> {
        self.next(to)?;
        let mut body = Vec::new();
        self.seal(now, to, split, &mut body)?;
        let kind = kind::SEALED | split.kind;
        self.send_sealed(to, kind, priority, body.into())
    }

    fn post_entrusted(
        &mut self,
        now: Instant,
        trustee: &NodeId,
        recipient: &NodeId,
        message: &Message,
    ) -> Result<(), ErrorCode> {
        self.next(trustee)?;
        let split = Split::message(message, 0);
        let mut sealed = Vec::new();
        self.seal(now, recipient, &split, &mut sealed)?;
        let message_priority = message.priority();
        let message = Sealed::decode(sealed.into()).map_err(|_| ErrorCode::Internal)?;
        let recipient = recipient.clone();
        let entrusted = SealedEntrusted { recipient, message };
        let kind = kind::SEALED | kind::ENTRUSTED;
        self.send_sealed(trustee, kind, message_priority, entrusted.encode())
    }

    /// Busy: the other node is asked who it is, and whoever waits hears when there is an answer.
    fn seal(
        &mut self,
        now: Instant,
        to: &NodeId,
        split: &Split,
        out: &mut Vec<u8>,
    ) -> Result<(), ErrorCode> {
        if self.is_introduced(now, to, None) {
            let start = out.len();
            if let Some(guard) = &mut self.guard
                && guard.seal(now, to, split, out)
            {
                return Ok(());
            }
            out.truncate(start);
        }
        self.ask_identity(now, to, true);
        Err(ErrorCode::Busy)
    }

    fn send_sealed(
        &mut self,
        to: &NodeId,
        kind: u8,
        priority: Priority,
        body: Bytes,
    ) -> Result<(), ErrorCode> {
        self.send_own(Packet {
            hop_limit: self.config.hop_limit,
            hops: 0,
            priority,
            source: self.config.node.clone(),
            destination: to.clone(),
            kind,
            body,
        })
    }

    /// What a packet of others, for which there is no way, would be in custody, and who kept it before.
    /// `None`: it cannot be kept.
    pub(crate) fn keepsake(&self, packet: &Packet) -> Option<(Message, Option<NodeId>)> {
        let body = packet.body.clone();
        if packet.kind & kind::SEALED == 0 {
            return match Body::decode(packet.kind, body).ok()? {
                Body::Message(message) => Some((message, None)),
                Body::Kept { custodian, message } => Some((message, Some(custodian))),
                Body::Echo { .. }
                | Body::EchoReply(_)
                | Body::Undeliverable(_)
                | Body::Segment(_)
                | Body::Receipt(_)
                | Body::Custody(_)
                | Body::Entrusted { .. }
                | Body::Inquiry(_)
                | Body::Unknown { .. } => None,
            };
        }
        match kind::plain(packet.kind) {
            kind::MESSAGE => {
                let sealed = Sealed::decode(body).ok()?;
                Some((self.keepsake_of(&packet.source, sealed)?, None))
            }
            kind::KEPT => {
                let kept = SealedKept::decode(body).ok()?;
                let keepsake = Keepsake::decode(kept.keepsake).ok()?;
                let mut message = self.keepsake_of(&packet.source, keepsake.message)?;
                message.remaining_ms = message.remaining_ms.min(kept.remaining_ms);
                Some((message, Some(kept.custodian)))
            }
            _ => None,
        }
    }

    /// A sealed message as it is kept, with what its recipient needs to open it.
    fn keepsake_of(&self, origin: &NodeId, message: Sealed) -> Option<Message> {
        let identity = self.guard.as_ref()?.security.known(origin)?;
        if identity.len() > KEPT_IDENTITY_MAX || message.envelope().ok()?.is_segmented() {
            return None;
        }
        Keepsake { identity, message }.message().ok()
    }

    /// Opens a packet for this node.
    pub(in crate::router) fn open(
        &mut self,
        now: Instant,
        from: Option<LinkId>,
        packet: Packet,
        out: &mut Out,
    ) -> Opened {
        let source = packet.source.clone();
        let neighbor = from.and_then(|from| self.links.get(&from)?.peer.as_ref());
        let neighbor = neighbor.map(|peer| peer.node.clone());
        let (Some(from), Some(neighbor), true) = (from, neighbor, self.is_secured()) else {
            // Of this node itself, or in a mesh where nothing is sealed.
            return match (Body::decode(packet.kind, packet.body), from) {
                (Ok(body), _) => Opened::Body(body),
                (Err(error), Some(from)) => self.bad_packet(from, &source, &error, out),
                (Err(_), None) => Opened::Nothing,
            };
        };
        if packet.kind & kind::SEALED == 0 {
            return self.take_plain(now, from, packet, out);
        }
        let opened = match kind::plain(packet.kind) {
            kind::KEPT => self.open_kept(now, &neighbor, packet, out),
            kind::ENTRUSTED => self.open_entrusted(now, &neighbor, packet),
            kind => self.open_sealed(now, from, &neighbor, kind, packet),
        };
        match opened {
            Ok(opened) => opened,
            Err(Failed::Later) => Opened::Nothing,
            Err(Failed::NotOpened(NotOpened::Stranger)) => {
                let guard = self.guard.as_mut();
                if guard.is_some_and(|guard| guard.openings.take(now, &neighbor, 1)) {
                    self.ask_identity(now, &source, false);
                }
                Opened::Nothing
            }
            Err(Failed::NotOpened(NotOpened::NotOurs)) => {
                self.counters.unproved += 1;
                self.tell_identity(now, &source);
                Opened::Nothing
            }
            Err(Failed::NotOpened(why @ NotOpened::Forged)) => {
                self.unproved(from, &source, &why, out);
                Opened::Nothing
            }
            Err(Failed::Bad(error)) => self.bad_packet(from, &source, &error, out),
        }
    }

    /// What is said without a seal: a sign of life, and who somebody is.
    fn take_plain(&mut self, now: Instant, from: LinkId, packet: Packet, out: &mut Out) -> Opened {
        let source = packet.source;
        if packet.kind == kind::IDENTITY {
            return match Identity::decode(packet.body) {
                Ok(identity) => {
                    self.handle_identity(now, from, &source, &identity, out);
                    Opened::Nothing
                }
                Err(error) => self.bad_packet(from, &source, &error, out),
            };
        }
        match Body::decode(packet.kind, packet.body) {
            Ok(Body::Undeliverable(notice)) if matches!(notice.about, About::Message { .. }) => {
                self.counters.unproved += 1;
                Opened::Nothing
            }
            Ok(_) if must_be_sealed(packet.kind) => {
                self.counters.unproved += 1;
                Opened::Nothing
            }
            Ok(body) => Opened::Body(body),
            Err(error) => self.bad_packet(from, &source, &error, out),
        }
    }

    fn open_sealed(
        &mut self,
        now: Instant,
        from: LinkId,
        neighbor: &NodeId,
        kind: u8,
        packet: Packet,
    ) -> Result<Opened, Failed> {
        let is_known = self.is_introduced(now, &packet.source, Some(neighbor));
        let Some(guard) = &mut self.guard else {
            return Ok(Opened::Nothing);
        };
        if !is_known {
            guard.unopened.keep(from, packet);
            return Err(NotOpened::Stranger.into());
        }
        let mut sealed = Sealed::decode(packet.body)?;
        // The seal is then alone in its buffer, and is opened where it lies.
        sealed.clear = Bytes::copy_from_slice(&sealed.clear);
        let (body, instance) = guard.open(now, neighbor, &packet.source, kind, sealed)?;
        Ok(self.of_this_start(packet.source, body, instance))
    }

    /// A volatile message for another start of this node may have been taken by that one.
    fn of_this_start(&self, source: NodeId, body: Body, instance: u64) -> Opened {
        if let Body::Message(message) = &body
            && message.volatile
            && instance != self.config.instance
        {
            let (epoch, seq) = (message.epoch, message.seq);
            return Opened::Local(Local::OtherStart(source, epoch, seq));
        }
        Opened::Body(body)
    }

    fn open_kept(
        &mut self,
        now: Instant,
        neighbor: &NodeId,
        packet: Packet,
        out: &mut Out,
    ) -> Result<Opened, Failed> {
        let source = packet.source;
        let kept = SealedKept::decode(packet.body)?;
        let keepsake = Keepsake::decode(kept.keepsake)?;
        let Some(guard) = &mut self.guard else {
            return Ok(Opened::Nothing);
        };
        // One that is not believed may have been replaced by another one that is.
        let is_known = guard.security.known(&source).as_ref() == Some(&keepsake.identity);
        let learned = (!is_known && guard.openings.take(now, neighbor, LEARN_COST))
            .then(|| guard.security.learn(now, &source, &keepsake.identity));
        if learned == Some(Ok(Learned::New)) {
            self.introduced(now, &source, out);
        }
        let Some(guard) = &mut self.guard else {
            return Ok(Opened::Nothing);
        };
        let message = keepsake.message;
        let opened = guard.open(now, neighbor, &source, kind::MESSAGE, message.clone());
        let never_opens = match &opened {
            Err(Failed::NotOpened(NotOpened::Forged | NotOpened::NotOurs)) => true,
            // Its origin has no such key, as it says itself in what came with it.
            Err(Failed::NotOpened(NotOpened::Stranger)) => {
                is_known || learned.is_some_and(|learned| learned.is_ok())
            }
            Ok(_) | Err(Failed::Later | Failed::Bad(_)) => false,
        };
        if never_opens {
            self.refuse_kept(now, source.clone(), &kept.custodian, &message);
        }
        let (body, instance) = opened?;
        Ok(match self.of_this_start(source, body, instance) {
            Opened::Body(Body::Message(mut message)) => {
                message.remaining_ms = message.remaining_ms.min(kept.remaining_ms);
                let custodian = kept.custodian;
                Opened::Body(Body::Kept { custodian, message })
            }
            opened @ (Opened::Body(_) | Opened::Local(_) | Opened::Nothing) => opened,
        })
    }

    /// Tells a custodian that what it keeps opens for nobody, so that it keeps it no longer.
    fn refuse_kept(&mut self, now: Instant, origin: NodeId, custodian: &NodeId, message: &Sealed) {
        let (Some(place), Some(guard)) = (message.place(kind::MESSAGE), &self.guard) else {
            return;
        };
        let word = Custody {
            holding: Holding::Unopened(guard.fingerprint(message)),
            origin,
            recipient: self.config.node.clone(),
            epoch: place.epoch,
            messages: alloc::vec![(place.seq, place.seq)],
            never_sent: false,
        };
        // One that does not hear of it sends the message again, and is told then.
        let _ = self.post_body(now, custodian, &Body::Custody(word));
    }

    fn open_entrusted(
        &mut self,
        now: Instant,
        neighbor: &NodeId,
        packet: Packet,
    ) -> Result<Opened, Failed> {
        let SealedEntrusted { recipient, message } = SealedEntrusted::decode(packet.body)?;
        if recipient == self.config.node {
            let Some(guard) = &mut self.guard else {
                return Ok(Opened::Nothing);
            };
            let (body, instance) =
                guard.open(now, neighbor, &packet.source, kind::MESSAGE, message)?;
            return Ok(self.of_this_start(packet.source, body, instance));
        }
        let Some(message) = self.keepsake_of(&packet.source, message) else {
            return Err(NotOpened::Stranger.into());
        };
        Ok(Opened::Body(Body::Entrusted { recipient, message }))
    }

    fn bad_packet(
        &mut self,
        from: LinkId,
        source: &NodeId,
        error: &DecodeError,
        out: &mut Out,
    ) -> Opened {
        let text = alloc::format!("a bad packet of {source}: {error}");
        self.mistake(from, ErrorBody::new(ErrorCode::BadFrame, text), out);
        Opened::Nothing
    }

    /// Something is not what it says it is.
    pub(super) fn unproved(
        &mut self,
        from: LinkId,
        source: &NodeId,
        why: &impl Display,
        out: &mut Out,
    ) {
        self.counters.unproved += 1;
        let why = why.to_string();
        let text = alloc::format!("a packet that claims to be of {source} is refused: {why}");
        self.mistake(from, ErrorBody::new(ErrorCode::BadFrame, text), out);
    }
}
