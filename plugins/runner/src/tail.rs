//! The last of what a program says outside of its messages: bounded, and kept for the day on which
//! that explains a failure.

/// The end of a text that may have been long.
#[derive(Debug)]
pub(crate) struct Tail {
    kept: Vec<u8>,
    limit: usize,
}

impl Tail {
    /// Keeps the last `limit` bytes.
    pub(crate) fn new(limit: usize) -> Self {
        Self {
            kept: Vec::new(),
            limit,
        }
    }

    /// Adds bytes, and drops the oldest beyond the limit.
    pub(crate) fn push(&mut self, bytes: &[u8]) {
        let bytes = bytes
            .get(bytes.len().saturating_sub(self.limit)..)
            .unwrap_or_default();
        self.kept.extend_from_slice(bytes);
        let over = self.kept.len().saturating_sub(self.limit);
        self.kept.drain(..over);
    }

    /// Adds a line; an empty one is left out.
    pub(crate) fn line(&mut self, text: String) {
        let text = text.trim_end();
        if !text.is_empty() {
            self.push(text.as_bytes());
            self.push(b"\n");
        }
    }

    /// What is kept, without white space at its end.
    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.kept).trim_end().to_owned()
    }

    /// The last line of it.
    pub(crate) fn last_line(&self) -> String {
        let text = self.text();
        text.lines().last().unwrap_or_default().trim().to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_bytes_are_kept() {
        let mut tail = Tail::new(8);
        tail.push(b"0123456789");
        assert_eq!(tail.text(), "23456789");
        tail.push(b"ab");
        assert_eq!(tail.text(), "456789ab");
        tail.line(String::new());
        tail.line("end \n".to_owned());
        assert_eq!(tail.text(), "89abend");
        assert_eq!(tail.last_line(), "89abend");
    }
}
