//! Handshake messages behind the handshake: tickets, which are passed over, and new keys.
//!
//! Owns where one begins and ends (RFC 8446, 5.1): a record may have several, and one may go on in the next record, but
//! nothing else may be between its parts, and nothing behind a new key, which holds from the next record on. Keeps the first
//! bytes of a message and nothing of a ticket.

use rustls::{Error, HandshakeType, InvalidMessage};

/// Type and length, in front of every message.
const HEAD: usize = 4;
/// One that says: from here on I use the next key. One byte of it says whether this end is asked for the same.
const KEY_UPDATE: usize = HEAD + 1;

/// See the module.
#[derive(Debug)]
pub(super) struct Messages {
    /// Whether the peer may send tickets: connections are never resumed, but whoever accepts one may offer it.
    tickets: bool,
    /// The message that has begun, so far.
    begun: [u8; KEY_UPDATE],
    length: usize,
    /// What is still to come of a ticket.
    ticket: usize,
}

impl Messages {
    pub(super) fn new(tickets: bool) -> Self {
        Self {
            tickets,
            begun: [0; KEY_UPDATE],
            length: 0,
            ticket: 0,
        }
    }

    /// Whether one has begun and not ended.
    pub(super) fn is_in_one(&self) -> bool {
        self.length > 0 || self.ticket > 0
    }

    /// Reads what a record has. `Some` says that the peer uses its next key from now on, and whether it asks for ours.
    ///
    /// # Errors
    ///
    /// When that is anything else, or no message.
    pub(super) fn read(&mut self, mut record: &[u8]) -> Result<Option<bool>, Error> {
        if record.is_empty() {
            return Err(InvalidMessage::InvalidEmptyPayload.into());
        }
        loop {
            let passed = self.ticket.min(record.len());
            self.ticket -= passed;
            let Some((byte, rest)) = record[passed..].split_first() else {
                return Ok(None);
            };
            record = rest;
            self.begun[self.length] = *byte;
            self.length += 1;
            if let Some(asks) = self.next()? {
                return match record {
                    [] => Ok(Some(asks)),
                    [next, ..] => Err(unexpected((*next).into())),
                };
            }
        }
    }

    /// Looks at the message that has begun, after each of its bytes.
    fn next(&mut self) -> Result<Option<bool>, Error> {
        let kind = HandshakeType::from(self.begun[0]);
        let allowed = kind == HandshakeType::KeyUpdate
            || kind == HandshakeType::NewSessionTicket && self.tickets;
        if !allowed {
            return Err(unexpected(kind));
        }
        let [_, a, b, c, asks] = self.begun;
        let body = usize::from(a) << 16 | usize::from(b) << 8 | usize::from(c);
        match self.length {
            HEAD if kind == HandshakeType::NewSessionTicket => {
                self.ticket = body;
                self.length = 0;
                Ok(None)
            }
            HEAD if body != 1 => Err(InvalidMessage::MessageTooShort.into()),
            KEY_UPDATE => {
                self.length = 0;
                match asks {
                    0 | 1 => Ok(Some(asks == 1)),
                    _ => Err(InvalidMessage::InvalidKeyUpdate.into()),
                }
            }
            _ => Ok(None),
        }
    }
}

fn unexpected(got_type: HandshakeType) -> Error {
    Error::InappropriateHandshakeMessage {
        expect_types: vec![HandshakeType::KeyUpdate],
        got_type,
    }
}
