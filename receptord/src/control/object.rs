//! A JSON object that is written field by field.
//!
//! For the lines that every message gets: serde looks for what has to be escaped in every key and id, and that
//! took longer than all the rest of such a line. Owns the form of one line, with the client's tag in front.
//! Never looks at what stands in it.

use receptor_proto::MessageId;
use serde::Serialize;
use serde_json::value::RawValue;

/// See the module.
pub(super) struct Object<'a> {
    buffer: &'a mut Vec<u8>,
    /// What stands before the next field.
    before: u8,
}

impl<'a> Object<'a> {
    /// One that stands behind what is in the buffer already.
    pub(super) fn new(buffer: &'a mut Vec<u8>, tag: Option<&RawValue>) -> Self {
        let mut object = Self {
            buffer,
            before: b'{',
        };
        if let Some(tag) = tag {
            object.json("tag", tag.get());
        }
        object
    }

    fn key(&mut self, key: &'static str) {
        self.buffer.extend([self.before, b'"']);
        self.before = b',';
        self.buffer.extend_from_slice(key.as_bytes());
        self.buffer.extend_from_slice(b"\":");
    }

    /// A value that is JSON already.
    pub(super) fn json(&mut self, key: &'static str, value: &str) {
        self.key(key);
        self.buffer.extend_from_slice(value.as_bytes());
    }

    /// A text in which nothing has to be escaped: a word of ours, or the name of a node.
    pub(super) fn word(&mut self, key: &'static str, word: &str) {
        self.key(key);
        self.buffer.push(b'"');
        self.buffer.extend_from_slice(word.as_bytes());
        self.buffer.push(b'"');
    }

    /// The id of a message.
    pub(super) fn id(&mut self, key: &'static str, id: MessageId) {
        self.word(key, id.encode(&mut [0; MessageId::TEXT_LEN]));
    }

    /// Anything else: plain structures with text keys, in which there is nothing that has no JSON.
    pub(super) fn value(&mut self, key: &'static str, value: &(impl Serialize + ?Sized)) {
        self.key(key);
        let start = self.buffer.len();
        if serde_json::to_writer(&mut *self.buffer, value).is_err() {
            self.buffer.truncate(start);
            self.buffer.extend_from_slice(b"null");
        }
    }

    /// It is whole, and so is its line.
    pub(super) fn end(self) {
        self.buffer.extend_from_slice(b"}\n");
    }
}
