//! What clients asked for, what workers did, and whether the two fit.
//!
//! Owns the promises about messages, seen from outside of all nodes:
//!
//! * a work is handed to a plugin once, whatever happens;
//! * a client gets the responses of its work in serial order, without gaps, whole, and after the
//!   last one nothing. Only a restart of the client's own node may show it again what it had
//!   taken already;
//! * at the end every message that was called accepted was run, or its sender was told why not,
//!   once; and what its work answered is at the client.
//!
//! Two things are not promised and not asked for. A *volatile* message is run at most once, and
//! its sender is told something at most once. And a node that loses its data directory — or has
//! a store in memory only and crashes — forgets: what it had accepted or received may be gone,
//! and a message may be run again there if it was run by the forgotten life. Within each life of
//! its data every promise holds.

use std::collections::BTreeMap;

use bytes::Bytes;
use receptor_mesh::Recipient;
use receptor_proto::packet::Eof;
use receptor_proto::{Directive, ErrorBody, ErrorCode, MessageId};

use crate::event::NodeIndex;
use crate::random::mix;

/// A life of a node: of its data, and of its process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Life {
    pub(crate) data: u32,
    pub(crate) process: u32,
}

/// One message and all that became of it.
#[derive(Debug)]
pub(crate) struct Letter {
    pub(crate) from: NodeIndex,
    pub(crate) from_life: Life,
    pub(crate) directive: Directive,
    /// Who it is for; `None` for «any», until accepted, and for nobody.
    pub(crate) recipient: Option<NodeIndex>,
    pub(crate) any: bool,
    /// The recipient's life when it became the recipient.
    pub(crate) recipient_life: Life,
    pub(crate) nobody: bool,
    pub(crate) volatile: bool,
    pub(crate) respond: bool,
    pub(crate) size: u64,
    pub(crate) sent_at: u64,
    pub(crate) expiry_us: u64,
    pub(crate) cancelled: bool,
    /// Its client asks again until it knows what became of it.
    pub(crate) keyed: bool,
    /// Whom its client named.
    pub(crate) wanted: Recipient,
    /// Its sender's disk has damaged it: nobody may know what became of it.
    unknown: bool,
    /// Its worker's disk has damaged it: its sender is told so.
    damaged: bool,
    /// A node said in its log that it gave it up.
    pub(crate) given_up: bool,
    pub(crate) refused: Option<ErrorBody>,
    pub(crate) accepted: bool,
    /// The client was told that it could not be written.
    not_accepted: bool,
    /// Where it was handed to a plugin.
    pub(crate) runs: Vec<(NodeIndex, Life)>,
    /// What the plugin said in its latest run.
    pub(crate) said: Said,
    /// The same of runs that their node forgot; it may still be on its way.
    forgotten: Vec<Said>,
    /// In which life of its worker's data no restart can undo its end.
    settled: Option<u32>,
    /// The last serial that the client got, and in which life of its node.
    got: (u64, Life),
    pub(crate) end: Option<Eof>,
    pub(crate) ended_at: u64,
}

/// What a plugin answered in one run.
#[derive(Debug, Clone, Default)]
pub(crate) struct Said {
    /// Sizes of the responses.
    pub(crate) responses: Vec<u64>,
    /// The end, and the size of its payload.
    pub(crate) last_word: Option<(Eof, u64)>,
}

impl Said {
    /// Whether the plugin said this. An end that follows what another run had said has `moved`.
    fn holds(&self, work: MessageId, what: &Delivered<'_>, moved: bool) -> bool {
        let last = self.responses.len() as u64 + 1;
        let (serial, size) = match (what.eof, &self.last_word) {
            (None, _) => {
                let at = usize::try_from(what.serial - 1).unwrap_or(usize::MAX);
                (what.serial, self.responses.get(at))
            }
            (Some(eof), Some((said, size))) if said == eof => (last, Some(size)),
            (Some(_), _) => return false,
        };
        (moved || serial == what.serial)
            && size.is_some_and(|size| what.payload == payload(work, serial, *size))
    }
}

/// All messages of a run.
#[derive(Debug, Default)]
pub(crate) struct Ledger {
    pub(crate) letters: BTreeMap<MessageId, Letter>,
}

/// A response as a client gets it.
#[derive(Debug)]
pub(crate) struct Delivered<'a> {
    pub(crate) serial: u64,
    pub(crate) payload: Bytes,
    pub(crate) eof: Option<&'a Eof>,
}

/// The bytes that belong to a message (serial 0) or response.
pub(crate) fn payload(work: MessageId, serial: u64, size: u64) -> Bytes {
    let id = work.as_u128();
    #[expect(clippy::cast_possible_truncation, reason = "both halves are taken")]
    let seed = mix(mix(id as u64 ^ (id >> 64) as u64) ^ serial);
    let words = size.div_ceil(8);
    let mut out = Vec::with_capacity(usize::try_from(words * 8).unwrap_or(0));
    for word in 0..words {
        out.extend_from_slice(
            &seed
                .wrapping_add(word.wrapping_mul(0x9e37_79b9_7f4a_7c15))
                .to_le_bytes(),
        );
    }
    out.truncate(usize::try_from(size).unwrap_or(usize::MAX));
    out.into()
}

impl Letter {
    #[expect(
        clippy::too_many_arguments,
        reason = "one for each thing a client says"
    )]
    pub(crate) fn new(
        from: NodeIndex,
        from_life: Life,
        directive: Directive,
        recipient: Option<(NodeIndex, Life)>,
        (nobody, volatile, respond): (bool, bool, bool),
        size: u64,
        sent_at: u64,
        expiry_us: u64,
    ) -> Self {
        Self {
            from,
            from_life,
            directive,
            recipient: recipient.map(|(node, _)| node),
            any: recipient.is_none() && !nobody,
            recipient_life: recipient.map_or(
                Life {
                    data: 0,
                    process: 0,
                },
                |(_, life)| life,
            ),
            nobody,
            volatile,
            respond,
            size,
            sent_at,
            expiry_us,
            cancelled: false,
            keyed: false,
            wanted: Recipient::Any {
                metadata: BTreeMap::new(),
            },
            unknown: false,
            damaged: false,
            given_up: false,
            refused: None,
            accepted: false,
            not_accepted: false,
            runs: Vec::new(),
            said: Said::default(),
            forgotten: Vec::new(),
            settled: None,
            got: (0, from_life),
            end: None,
            ended_at: 0,
        }
    }

    /// The last serial that its client got.
    pub(crate) fn got(&self) -> u64 {
        self.got.0
    }

    /// Whether its client knows what became of it.
    pub(crate) fn is_told(&self) -> bool {
        self.end.is_some()
            || self.refused.is_some()
            || self.not_accepted
            || self.accepted && !self.respond
    }

    /// Its client sends it again, to a node that knows nothing of it.
    pub(crate) fn sent_again(&mut self, life: Life, to: Option<(NodeIndex, Life)>, now: u64) {
        self.from_life = life;
        self.got = (0, life);
        self.sent_at = now;
        if let Some((_, life)) = to {
            self.recipient_life = life;
        }
    }

    /// A disk has damaged it, its sender's `own` or that of the node it was for.
    pub(crate) fn damaged(&mut self, own: bool) {
        self.unknown |= own;
        self.damaged |= !own;
    }

    /// Whether a disk has damaged it.
    pub(crate) fn is_damaged(&self) -> bool {
        self.unknown || self.damaged
    }

    /// Whether its worker's node may take it for one that was cut short.
    fn may_be_cut(&self, work: MessageId, life: Life) -> Result<(), String> {
        let settled = self.settled == Some(life.data) && !self.is_damaged();
        if settled {
            return Err(format!("{work} was over for good, and is taken up again"));
        }
        Ok(())
    }

    /// Whether its action may be run again after a crash.
    fn may_run_again(&self) -> bool {
        self.directive.action() == "again"
    }

    /// The plugin, or its host, says the last word. One after another comes of a node that forgot
    /// the first, or could not write it; that one may still be on its way.
    pub(crate) fn say_last(&mut self, eof: Eof, size: u64) {
        if self.said.last_word.is_some() {
            self.forgotten.push(self.said.clone());
        }
        self.said.last_word = Some((eof, size));
    }

    fn deliver(&mut self, work: MessageId, life: Life, what: &Delivered<'_>) -> Result<(), String> {
        let serial = what.serial;
        if self.refused.is_some() {
            return Err(format!("a response of {work}, which was refused"));
        }
        if !self.respond && what.eof.is_none_or(|eof| eof.error.is_none()) {
            return Err(format!("a response of {work}, whose client wants none"));
        }
        let (last, last_life) = self.got;
        if life == last_life {
            if self.end.is_some() {
                return Err(format!("response {serial} of {work} after its last"));
            }
            if serial != last + 1 {
                return Err(format!("response {serial} of {work} after response {last}"));
            }
        } else if serial > 0 && serial <= last + 1 {
            // What came before the restart comes again.
            self.end = None;
        } else {
            return Err(format!(
                "response {serial} of {work} after a restart, response {last} was the last before"
            ));
        }
        self.got = (serial, life);
        // A node that refuses a message or ends its work says so in its own words.
        let own_words = what.eof.is_some_and(|eof| eof.error.is_some());
        let moved = !self.forgotten.is_empty();
        let mut said = self.forgotten.iter().chain([&self.said]);
        let right = said.any(|said| said.holds(work, what, moved));
        if !(right || own_words) {
            return Err(format!(
                "response {serial} of {work} is not what its plugin gave: {} bytes, eof {:?}, of {:?}",
                what.payload.len(),
                what.eof,
                self.said
            ));
        }
        Ok(())
    }
}

impl Ledger {
    /// A client that wants no responses was told that its message could not be written.
    pub(crate) fn not_accepted(&mut self, work: MessageId) -> Result<(), String> {
        let Some(letter) = self.letters.get_mut(&work) else {
            return Err(format!("{work} not accepted, which nobody sent"));
        };
        let again = std::mem::replace(&mut letter.not_accepted, true);
        if again || letter.accepted || letter.respond {
            return Err(format!(
                "{work} not accepted, and its client was told already"
            ));
        }
        Ok(())
    }

    /// A client was told «accepted».
    pub(crate) fn accepted(
        &mut self,
        work: MessageId,
        recipient: Option<(NodeIndex, Life)>,
    ) -> Result<(), String> {
        let Some(letter) = self.letters.get_mut(&work) else {
            return Err(format!("{work} accepted, which nobody sent"));
        };
        if letter.not_accepted || std::mem::replace(&mut letter.accepted, true) {
            return Err(format!(
                "{work} accepted a second time, or after it was not"
            ));
        }
        if letter.refused.is_some() {
            return Err(format!("{work} accepted and refused"));
        }
        let Some((recipient, life)) = recipient else {
            return Ok(());
        };
        if letter.recipient.is_some_and(|node| node != recipient) {
            return Err(format!("{work} accepted for somebody else"));
        }
        if letter.recipient.is_none() {
            letter.recipient = Some(recipient);
            letter.recipient_life = life;
        }
        Ok(())
    }

    /// Another recipient was chosen for a message to any node. It may have gone to that one before
    /// a restart.
    pub(crate) fn readdressed(
        &mut self,
        work: MessageId,
        (recipient, life): (NodeIndex, Life),
    ) -> Result<(), String> {
        let Some(letter) = self.letters.get_mut(&work) else {
            return Err(format!("{work} goes elsewhere, which nobody sent"));
        };
        if letter.recipient == Some(recipient) {
            return Ok(());
        }
        if !letter.any {
            return Err(format!("{work} was for one node and goes to {recipient}"));
        }
        if let Some(run) = letter.runs.first() {
            return Err(format!("{work} ran at {run:?} and goes to {recipient}"));
        }
        letter.recipient = Some(recipient);
        letter.recipient_life = life;
        Ok(())
    }

    /// A work was handed to a plugin. Of an earlier run its node `kept` so many responses.
    pub(crate) fn run(
        &mut self,
        work: MessageId,
        sender: NodeIndex,
        node: NodeIndex,
        life: Life,
        (directive, body): (&Directive, &Bytes),
        kept: u64,
    ) -> Result<(), String> {
        let Some(letter) = self.letters.get_mut(&work) else {
            return Err(format!("{work} runs, which nobody sent"));
        };
        let before = letter.runs.iter().find(|(at, in_life)| {
            // A message that was never on a disk has no excuse to run again in another life.
            // Of a damaged one that its sender has an end of, a copy may come to a later start, which
            // was told nothing.
            let strange = letter.damaged && letter.end.is_some();
            let again = (letter.may_run_again() || strange) && in_life.process != life.process;
            *at != node || letter.volatile || in_life.data == life.data && !again
        });
        if let Some(before) = before {
            return Err(format!(
                "{work} runs at {node} {life:?} and ran at {before:?}"
            ));
        }
        letter.may_be_cut(work, life)?;
        letter.runs.push((node, life));
        if letter.refused.is_some() {
            return Err(format!("{work} runs and was refused"));
        }
        if letter.from != sender || letter.recipient.is_some_and(|wanted| wanted != node) {
            return Err(format!("{work} runs at {node} for {sender}"));
        }
        if letter.directive != *directive || *body != payload(work, 0, letter.size) {
            return Err(format!("{work} does not run as it was sent"));
        }
        if letter.runs.len() > 1 {
            let mut responses = letter.said.responses.clone();
            responses.truncate(usize::try_from(kept).unwrap_or(usize::MAX));
            letter.forgotten.push(std::mem::take(&mut letter.said));
            letter.said.responses = responses;
        }
        Ok(())
    }

    /// The plugin of a work outlived its node, and the work with it.
    pub(crate) fn goes_on(&mut self, work: MessageId, life: Life) {
        let letter = self.letters.get_mut(&work);
        if let Some((_, run)) = letter.and_then(|letter| letter.runs.last_mut()) {
            *run = life;
        }
    }

    /// Its worker's node says that no restart of it forgets how the work ended.
    pub(crate) fn end_is_safe(&mut self, work: MessageId, life: Life) {
        if let Some(letter) = self.letters.get_mut(&work) {
            letter.settled = letter.respond.then_some(life.data);
        }
    }

    /// Whether a node may say that it was restarted while this work ran.
    pub(crate) fn may_be_cut(&self, work: MessageId, life: Life) -> Result<(), String> {
        let letter = self.letters.get(&work);
        letter.map_or(Ok(()), |letter| letter.may_be_cut(work, life))
    }

    /// A client got a response.
    pub(crate) fn delivered(
        &mut self,
        work: MessageId,
        node: NodeIndex,
        life: Life,
        now: u64,
        what: &Delivered<'_>,
    ) -> Result<(), String> {
        let Some(letter) = self.letters.get_mut(&work) else {
            return Err(format!("a response of {work}, which nobody sent"));
        };
        if letter.from != node || letter.from_life.data != life.data {
            return Err(format!("a response of {work} to somebody else"));
        }
        letter.deliver(work, life, what)?;
        if let Some(eof) = what.eof {
            letter.end = Some(eof.clone());
            letter.ended_at = now;
        }
        Ok(())
    }

    /// The first message that is not yet what was promised, and why; `life` gives the present
    /// life of a node and `apart` tells whether there is no way between two.
    /// With a broken disk a work may fail for that.
    pub(crate) fn unfinished(
        &self,
        life: impl Fn(NodeIndex) -> Life,
        apart: impl Fn(NodeIndex, NodeIndex) -> bool,
        broken_disk: bool,
    ) -> Option<String> {
        let mut together = self
            .letters
            .iter()
            .filter(|(_, letter)| !apart(letter.from, letter.recipient.unwrap_or(letter.from)));
        together.find_map(|(work, letter)| {
            letter
                .unfinished(&life, broken_disk)
                .map(|why| format!("{work} {why}"))
        })
    }
}

impl Letter {
    fn unfinished(&self, life: impl Fn(NodeIndex) -> Life, broken_disk: bool) -> Option<String> {
        let forgotten = life(self.from).data != self.from_life.data
            || self
                .recipient
                .is_some_and(|node| life(node).data != self.recipient_life.data);
        if self.volatile || forgotten || self.unknown {
            return None;
        }
        if !self.accepted {
            let told = self.refused.is_some() || self.not_accepted || self.end.is_some();
            return (!told && life(self.from) == self.from_life)
                .then(|| "was neither accepted nor refused".to_owned());
        }
        let about = || {
            format!(
                "from {} to {:?} sent at {} s, runs {:?}, responses {}, last word {:?}, got {:?}, end {:?}",
                self.from,
                self.recipient,
                self.sent_at / 1_000_000,
                self.runs,
                self.said.responses.len(),
                self.said.last_word,
                self.got,
                self.end
            )
        };
        if !self.respond {
            let given_up = self.given_up || self.end.is_some() || self.cancelled || self.nobody;
            let interrupted = self
                .recipient
                .is_some_and(|node| life(node).process != self.recipient_life.process)
                && !self.may_run_again();
            let refused = self.said.last_word.is_some() || self.damaged;
            return (self.runs.is_empty() && !given_up && !interrupted && !refused)
                .then(|| format!("was never run: {}", about()));
        }
        let Some(end) = &self.end else {
            return Some(format!("has no end: {}", about()));
        };
        let Some(error) = &end.error else {
            return None;
        };
        // Told no, and nothing speaks for it: nobody cancelled, no time ran out, no restart.
        let steady = self
            .runs
            .first()
            .is_some_and(|(node, in_life)| life(*node) == *in_life);
        let excused = self.cancelled
            || self.nobody
            || self.damaged
            || error.code == ErrorCode::Busy
            || broken_disk && matches!(error.code, ErrorCode::Internal | ErrorCode::Damaged)
            || self.expiry_us <= self.ended_at - self.sent_at
            || self
                .said
                .last_word
                .as_ref()
                .is_some_and(|(said, _)| said == end)
            || !(steady
                || self.runs.is_empty() && error.code != ErrorCode::Interrupted
                || self.may_run_again());
        (!excused).then(|| format!("was refused without reason: {}", about()))
    }
}
