//! One message of a campaign: how it is sent, what its answer must be, and what its end may be.
//!
//! Owns the payloads and the judgement of an answer. Knows nothing of clients and daemons.

use std::io;
use std::path::PathBuf;

use serde_json::{Value, json};

use super::plugins::{Ending, LARGE_RESPONSE, Plugin};
use super::{Excused, Summary, Taste};
use crate::power::Dice;
use crate::{Control, traffic};

/// What a lifetime is when a message may expire: shorter and longer than most outages.
const SHORT_LIVES_MS: [u64; 3] = [50, 400, 2_000];
/// The largest payload.
const LARGE: usize = 8 << 20;
/// The largest when most are large.
const OFTEN_LARGE: usize = 2 << 20;
/// Sizes at which something changes: what counts as small, what is sent in one piece and lies in
/// the log, what a plugin gets in its line, what is on its way at once, and the largest.
const EDGES: [usize; 6] = [4 << 10, 64 << 10, 256 << 10, 512 << 10, 1 << 20, LARGE];

/// How a client sends a message and what it does about the responses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Manner {
    /// Reads them to the end.
    Stay,
    /// Leaves them where they are.
    Detach,
    /// Leaves them, and reads them as a second reader while they come.
    Follow,
    /// Sends it under a key, again and again until it is accepted.
    Key,
    /// Is gone after some lines.
    Vanish,
    /// Is gone in the middle of the payload.
    Half,
    /// Sends a cancel behind it.
    Cancel,
    /// Wants the responses no longer.
    Release,
    /// With a lifetime that may be too short.
    Expire,
    /// At most once.
    Volatile,
}

impl Manner {
    fn any(dice: &mut Dice) -> Self {
        match dice.throw(20) {
            0..=3 => Self::Stay,
            4..=6 => Self::Detach,
            7 => Self::Follow,
            8..=11 => Self::Key,
            12 | 13 => Self::Vanish,
            14 => Self::Half,
            15 | 16 => Self::Cancel,
            17 => Self::Release,
            18 => Self::Expire,
            _ => Self::Volatile,
        }
    }
}

/// A message and what is known of it.
#[derive(Debug)]
pub(super) struct Message {
    pub(super) plugin: Plugin,
    pub(super) number: u64,
    pub(super) manner: Manner,
    /// Lines of data that [`Plugin::Serve`] is asked for.
    lines: usize,
    large: bool,
    size: usize,
    /// Without a length ahead.
    stream: bool,
    recipient: Option<String>,
    /// How long it is worth delivering, if not as long as the daemon has it.
    lifetime_ms: Option<u64>,
    /// Which of the campaign's sockets it was sent to.
    pub(super) socket: usize,
    /// When it was accepted.
    pub(super) id: Option<String>,
    /// When it was read to the end.
    pub(super) end: Option<Value>,
}

impl Message {
    pub(super) fn any(dice: &mut Dice, workers: &[String], socket: usize, taste: Taste) -> Self {
        let plugin = Plugin::any(dice);
        let mut manner = Manner::any(dice);
        if taste.cancels && dice.throw(3) == 0 {
            manner = Manner::Cancel;
        }
        let size = match dice.throw(80) {
            _ if taste.large && dice.throw(2) == 0 => dice.index(OFTEN_LARGE),
            0 => dice.index(LARGE),
            1 => LARGE,
            2..=5 => EDGES[dice.index(EDGES.len() - 1)] + dice.index(3) - 1,
            6..=9 => dice.index(200_000),
            10..=20 => dice.index(5_000),
            21..=30 => 0,
            _ => dice.index(40),
        };
        let serve = plugin == Plugin::Serve;
        let any = taste.any || dice.throw(4) == 0;
        let recipient = &workers[dice.index(workers.len())];
        Self {
            plugin,
            number: traffic::number(),
            manner,
            lines: if serve { dice.index(20) } else { 0 },
            large: serve && dice.throw(20) == 0,
            size,
            stream: !matches!(
                manner,
                Manner::Half | Manner::Follow | Manner::Cancel | Manner::Release
            ) && dice.throw(16) == 0,
            recipient: (!any).then(|| recipient.clone()),
            lifetime_ms: (manner == Manner::Expire)
                .then(|| SHORT_LIVES_MS[dice.index(SHORT_LIVES_MS.len())]),
            socket,
            id: None,
            end: None,
        }
    }

    /// The words for [`Plugin::Serve`], and then something else at each place.
    pub(super) fn payload(&self) -> Vec<u8> {
        let mut payload = if self.plugin == Plugin::Serve {
            let large = if self.large { "large" } else { "" };
            format!("{};{};{large};", self.number, self.lines).into_bytes()
        } else {
            Vec::new()
        };
        let number = usize::try_from(self.number % 1000).unwrap_or_default();
        let letter = |at: usize| {
            let letter = (at * 7 + at / 251 + at / 65_537 + number) % 26;
            b'a' + u8::try_from(letter).unwrap_or_default()
        };
        let from = payload.len();
        payload.extend((from..self.size.max(from)).map(letter));
        payload
    }

    pub(super) fn command(&self, payload: &[u8]) -> Value {
        let mut command = json!({
            "command": "send", "directive": format!("{}:add", self.plugin.name()), "wait": true,
            "content": "text",
        });
        if self.stream {
            command["stream"] = json!(true);
        } else {
            command["size"] = json!(payload.len());
        }
        match &self.recipient {
            Some(name) => command["recipient"] = json!(name),
            None => command["any"] = json!(true),
        }
        if let Some(lifetime) = self.lifetime_ms {
            command["expires_ms"] = json!(lifetime);
        }
        match self.manner {
            Manner::Stay | Manner::Vanish | Manner::Half | Manner::Expire => {}
            Manner::Detach | Manner::Follow | Manner::Cancel | Manner::Release => {
                command["detach"] = json!(true);
            }
            Manner::Key => {
                command["detach"] = json!(true);
                command["key"] = json!(format!("key-{}", self.number));
            }
            Manner::Volatile => command["volatile"] = json!(true),
        }
        command
    }

    /// Whether its responses wait for who reads them.
    pub(super) fn is_kept(&self) -> bool {
        !matches!(self.manner, Manner::Volatile | Manner::Release)
    }

    /// What its runs are noted under.
    pub(super) fn run_name(&self) -> Option<String> {
        Some(format!("{} {}", self.plugin.name(), self.id.as_ref()?))
    }

    /// Whether its client reads the responses as they come.
    pub(super) fn reads(&self) -> bool {
        match self.manner {
            Manner::Stay | Manner::Follow | Manner::Expire | Manner::Volatile => true,
            Manner::Detach
            | Manner::Key
            | Manner::Vanish
            | Manner::Half
            | Manner::Cancel
            | Manner::Release => false,
        }
    }

    /// Whether its connection is of no use after it.
    pub(super) fn is_last(&self) -> bool {
        self.stream
    }

    /// Judges what came of it, after it was run at these places.
    ///
    /// # Panics
    ///
    /// When that must not be.
    pub(super) fn check(&self, runs: &[PathBuf], excused: Excused, summary: &mut Summary) {
        let again = self.plugin == Plugin::Again;
        let times = runs.len();
        assert!(again || times <= 1, "{runs:?} of {self:?}");
        let Some(end) = &self.end else {
            // What becomes of these is nobody's concern.
            let unknown =
                self.id.is_none() || matches!(self.manner, Manner::Volatile | Manner::Release);
            // A client that left may have had everything before it did.
            let had = self.manner == Manner::Vanish && times >= 1;
            assert!(unknown || had, "without an end: {self:?}");
            return;
        };
        if self.manner == Manner::Volatile {
            return;
        }
        match end["error"]["code"].as_str() {
            None => {
                assert!(times >= 1, "never run: {self:?}");
                let code = end["data"]["code"].as_i64().unwrap_or_default();
                assert_eq!(self.plugin.ending(), Ending::Done(code), "{self:?}");
            }
            Some("interrupted") => {
                // What was cancelled is not run again.
                let never = again && self.manner != Manner::Cancel;
                assert!(excused.interrupted && !never, "{self:?}");
                summary.interrupted += 1;
            }
            // Those of one process go with it.
            Some("cancelled") if self.manner == Manner::Cancel => summary.cancelled += 1,
            Some("expired") if self.lifetime_ms.is_some() => {
                assert_eq!(times, 0, "{self:?}");
                summary.expired += 1;
            }
            // Nobody could be asked who may have run it.
            Some("lost") if self.lifetime_ms.is_some() => summary.lost += 1,
            Some(code) => {
                let same = matches!(self.plugin.ending(), Ending::Failed(own) if own == code);
                assert!(same, "{self:?}");
                assert!(times >= 1, "{self:?}");
            }
        }
    }
}

/// Reads responses to the end, or `upto` of them, and demands that they are whole and in order.
/// Nothing when the daemon goes away, or when that were enough.
pub(super) fn stream(control: &mut Control, message: &Message, upto: u64) -> Option<Value> {
    let mut answer = Answer::default();
    loop {
        let reply: Value = serde_json::from_str(&control.try_line().ok()?).ok()?;
        if reply["type"].is_null() || reply["type"] == "error" {
            assert!(reply["error"].is_object(), "{reply} of {message:?}");
            return Some(reply);
        }
        answer.take(control, &reply, message).ok()?;
        if reply["eof"] == true {
            answer.check(&reply, message);
            return Some(reply);
        }
        if answer.last == upto {
            return None;
        }
    }
}

/// What came so far.
#[derive(Debug, Default)]
struct Answer {
    last: u64,
    /// Of data.
    lines: usize,
    text: Vec<String>,
}

impl Answer {
    fn take(&mut self, control: &mut Control, reply: &Value, message: &Message) -> io::Result<()> {
        assert_eq!(reply["type"], "response", "{reply} of {message:?}");
        let serial = reply["serial"].as_u64().expect("a serial");
        assert_eq!(serial, self.last + 1, "{reply} of {message:?}");
        self.last = serial;
        if let Some(i) = reply["data"]["i"].as_u64() {
            assert_eq!(i, self.lines as u64, "{reply} of {message:?}");
            self.lines += 1;
        }
        if let Some(size) = reply["size"].as_u64() {
            let bytes = control.try_raw(usize::try_from(size).expect("a size"))?;
            self.text.push(String::from_utf8_lossy(&bytes).into_owned());
        }
        if let Some(text) = reply["text"].as_str() {
            self.text.push(text.to_owned());
        }
        Ok(())
    }

    fn check(&self, end: &Value, message: &Message) {
        let undisturbed = match (end["error"]["code"].as_str(), message.plugin.ending()) {
            (None, _) => true,
            (Some(code), Ending::Failed(expected)) => code == expected,
            (Some(_), Ending::Done(_)) => false,
        };
        if !undisturbed {
            return;
        }
        if message.plugin == Plugin::Serve {
            assert_eq!(self.lines, message.lines, "{end} of {message:?}");
            let length = end["data"]["length"].as_u64();
            assert_eq!(
                length,
                Some(message.payload().len() as u64),
                "{end} of {message:?}"
            );
            let large: usize = self.text.iter().map(String::len).sum();
            let expected = if message.large { LARGE_RESPONSE } else { 0 };
            assert_eq!(large, expected, "{end} of {message:?}");
            return;
        }
        let expected = message.plugin.lines(|| message.payload());
        if message.plugin == Plugin::Again {
            // What an attempt that was cut short said stands before.
            assert!(
                self.text.ends_with(&expected),
                "{:?} of {message:?}",
                self.text
            );
            return;
        }
        let same = self.text == expected;
        let (came, first) = (self.text.len(), self.text.first());
        let first = first.map(|text| text.chars().take(80).collect::<String>());
        assert!(same, "{came} lines from {first:?} and {end} of {message:?}");
    }
}
