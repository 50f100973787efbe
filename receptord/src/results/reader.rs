//! Reads what is kept of a work, from the start, as often as asked and also while more comes.
//!
//! Owns one reader's place in the file. Reads only what the keeper knows to be whole, at most one
//! piece at a time, off the engine's thread; a large payload is handed on as an open file.

use std::fs::File;
use std::io::{self, BufReader, Read as _, Seek as _, SeekFrom};
use std::rc::Rc;

use bytes::Bytes;
use receptor_proto::control::WorkState;
use receptor_proto::packet::{Content, Eof};
use receptor_proto::{ErrorBody, ErrorCode, MessageId, NodeId};
use receptor_spool::verify_payload;

use super::frame::{self, Read1};
use super::{Keeper, apart};

/// Bytes of responses read at once; a single one may be a little more.
const PIECE: u64 = 256 * 1024;

/// See the module.
#[derive(Debug)]
pub(crate) struct Reader {
    keeper: Keeper,
    id: MessageId,
    file: Option<File>,
    offset: u64,
}

/// One response that was kept.
#[derive(Debug)]
pub(crate) struct Item {
    /// Who answers.
    pub(crate) sender: NodeId,
    /// 1, 2, 3 …
    pub(crate) serial: u64,
    /// What the payload is.
    pub(crate) content: Content,
    /// The payload's name.
    pub(crate) name: Option<String>,
    /// The payload.
    pub(crate) payload: Source,
    /// On the last one.
    pub(crate) eof: Option<Eof>,
}

/// Where a payload is.
#[derive(Debug)]
pub(crate) enum Source {
    /// Here.
    Inline(Bytes),
    /// In this file, so many bytes.
    File(File, u64),
}

/// What there is to read.
enum Next {
    Read { to: u64 },
    Wait,
    Pending(WorkState),
}

impl Keeper {
    /// A reader from the start.
    ///
    /// # Errors
    ///
    /// When nothing is kept of this work.
    pub(crate) fn reader(&self, id: MessageId) -> Result<Reader, ErrorBody> {
        self.look(id, 1);
        let mut table = self.0.table.borrow_mut();
        let not_found = |text: String| Err(ErrorBody::new(ErrorCode::NotFound, text));
        let Some(work) = table.works.get_mut(&id) else {
            return not_found(format!("no responses are kept here for {id}"));
        };
        if work.released {
            return not_found(format!("the responses of {id} were released"));
        }
        if work.dropped {
            return Err(dropped(id));
        }
        let came = work.last > 0 || work.end.is_some();
        if came && !work.has_file && work.pending.is_empty() {
            return not_found(format!(
                "no responses are kept for {id}: the client that sent it has had them"
            ));
        }
        work.readers += 1;
        drop(table);
        // They are to be written, if they are only in memory.
        self.tell(id, Ok(()));
        Ok(Reader {
            keeper: self.clone(),
            id,
            file: None,
            offset: 0,
        })
    }
}

impl Reader {
    /// The next responses, at least one. After the last one there is nothing to ask for.
    ///
    /// # Errors
    ///
    /// Without `follow` the state of the work, when that has not ended and nothing more came;
    /// else why they cannot be read.
    pub(crate) async fn next(&mut self, follow: bool) -> Result<Vec<Item>, Stop> {
        loop {
            let changed = self.changed()?;
            let mut changed = std::pin::pin!(changed.notified());
            // From here on no change is missed.
            changed.as_mut().enable();
            match self.look(follow)? {
                Next::Read { to } => {
                    let items = self.read(to).await.map_err(|error| {
                        let kind = error.kind();
                        let is_damaged =
                            kind == io::ErrorKind::InvalidData || kind == io::ErrorKind::NotFound;
                        let code = if is_damaged {
                            ErrorCode::Damaged
                        } else {
                            ErrorCode::Internal
                        };
                        let text = format!("kept responses cannot be read: {error}");
                        tracing::error!(work = %self.id, "{text}");
                        Stop::Failed(ErrorBody::new(code, text))
                    })?;
                    if !items.is_empty() {
                        return Ok(items);
                    }
                }
                Next::Pending(state) => return Err(Stop::Pending(state)),
                Next::Wait => changed.await,
            }
        }
    }

    fn changed(&self) -> Result<Rc<tokio::sync::Notify>, Stop> {
        let table = self.keeper.0.table.borrow();
        let work = table.works.get(&self.id).ok_or_else(|| gone(self.id))?;
        Ok(Rc::clone(&work.changed))
    }

    fn look(&self, follow: bool) -> Result<Next, Stop> {
        let table = self.keeper.0.table.borrow();
        let work = table.works.get(&self.id).ok_or_else(|| gone(self.id))?;
        if work.released {
            return Err(gone(self.id));
        }
        if work.dropped {
            return Err(Stop::Failed(dropped(self.id)));
        }
        if work.has_file && self.offset < work.length {
            return Ok(Next::Read { to: work.length });
        }
        if work.is_whole() && work.told >= work.last && work.writing.is_none() {
            // It is known how it ended, but not by a response that was kept.
            let error = work.end.as_ref().and_then(|(end, _)| end.error.clone());
            let text = "the last response of the work is not kept";
            let error = error.unwrap_or_else(|| ErrorBody::new(ErrorCode::Lost, text));
            return Err(Stop::Failed(error));
        }
        if !follow && work.pending.is_empty() && !work.is_whole() {
            return Ok(Next::Pending(work.state(None)));
        }
        Ok(Next::Wait)
    }

    /// Reads up to `to`, or a piece of it.
    async fn read(&mut self, to: u64) -> io::Result<Vec<Item>> {
        let file = match self.file.take() {
            Some(file) => file,
            None => File::open(self.keeper.0.disk.path(&self.id.to_string()))?,
        };
        let offset = self.offset;
        let read = tokio::task::spawn_blocking(move || read(file, offset, to));
        let (file, responses, offset) = read.await.map_err(io::Error::other)??;
        self.file = Some(file);
        self.offset = offset;
        if let Some(Read1 { frame, .. }) = responses.iter().find(|read| read.frame.apart) {
            // Before its length is said: what was announced must be sent.
            let path = self.keeper.0.disk.path(&apart(self.id, frame.serial));
            let verified = tokio::task::spawn_blocking(move || verify_payload(&path)).await;
            verified.map_err(io::Error::other)??;
        }
        let items = responses.into_iter().map(|Read1 { frame, bytes }| {
            let payload = if frame.apart {
                let name = apart(self.id, frame.serial);
                let file = File::open(self.keeper.0.disk.path(&name))?;
                Source::File(file, frame.size)
            } else {
                Source::Inline(bytes)
            };
            Ok(Item {
                sender: frame.from,
                serial: frame.serial,
                content: frame.content,
                name: frame.name,
                payload,
                eof: frame.eof.map(Eof::from),
            })
        });
        items.collect()
    }
}

/// Why there is no next response.
#[derive(Debug)]
pub(crate) enum Stop {
    /// The work has not ended, and nothing more came.
    Pending(WorkState),
    /// They cannot be read, or not any more.
    Failed(ErrorBody),
}

fn gone(id: MessageId) -> Stop {
    let text = format!("the responses of {id} were released while they were read");
    Stop::Failed(ErrorBody::new(ErrorCode::NotFound, text))
}

fn dropped(id: MessageId) -> ErrorBody {
    let text = format!(
        "the responses of {id} were dropped to make room (spool.results-max-bytes, spool.results-max-entries)"
    );
    ErrorBody::new(ErrorCode::ResultQuota, text)
}

fn read(mut file: File, offset: u64, to: u64) -> io::Result<(File, Vec<Read1>, u64)> {
    file.seek(SeekFrom::Start(offset))?;
    let mut at = offset;
    let mut responses = Vec::new();
    let mut buffered = BufReader::new((&mut file).take(to - offset));
    if offset == 0 {
        let mut head = Vec::new();
        io::BufRead::read_until(&mut buffered, b'\n', &mut head)?;
        at += head.len() as u64;
    }
    while at < to && at - offset < PIECE {
        let Some((response, length)) = frame::next(&mut buffered)? else {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "the file is damaged",
            ));
        };
        at += length;
        responses.push(response);
        // Each of these is an open file until its reader has it.
        if responses
            .last()
            .is_some_and(|response| response.frame.apart)
        {
            break;
        }
    }
    Ok((file, responses, at))
}

impl Drop for Reader {
    fn drop(&mut self) {
        let mut table = self.keeper.0.table.borrow_mut();
        if let Some(work) = table.works.get_mut(&self.id) {
            work.readers -= 1;
            if work.is_served() {
                self.keeper.serve(&mut table, self.id);
            }
        }
        drop(table);
        self.keeper.tell(self.id, Ok(()));
    }
}
