//! What an earlier run kept, and as little work with it as can be before the daemon is ready.
//!
//! Owns the reading of `kept/` at the start: only names, and whether a later version wrote there.
//! What a file holds is looked at when it is asked for, one at a time, and of all others while the
//! daemon runs ([`Keeper::survey`]); of a work that is known to have ended, and whose responses the
//! core does not have any more, nothing is read but the size. Never believes what may be torn: a
//! response that the core still has is checked before the core is told that it is kept.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, BufReader};
use std::path::Path;

use receptor_mesh::EntryId;
use receptor_proto::control::WorkRole;
use receptor_proto::{Directive, ErrorBody, ErrorCode, MessageId, NodeId};
use receptor_spool::SUMS;

use super::ending::Ending;
use super::frame::{self, End, Summary};
use super::table::Table;
use super::work::{Unread, Work};
use super::{Keeper, apart, apart_names, now_ms};

/// Files that are looked at in one go off the engine's thread.
const SURVEY_PART: usize = 64;

/// Files whose version is looked at before anything is done: the youngest, because an earlier version
/// than the one that wrote last is what must be noticed.
const VERSIONS_LOOKED_AT: usize = 16;

/// Where files that a disk has damaged are set aside.
const CORRUPT: &str = "corrupt";
/// As many of them as are kept.
const CORRUPT_MAX: usize = 1000;

/// What a look at a file found.
enum Found {
    /// So many bytes, with payloads in files of their own.
    Whole { length: u64, bytes: u64 },
    /// What could be read of it.
    Read(Box<Summary>),
    /// Its first line is damaged.
    Headless,
    /// A write that was never reported.
    Nothing,
}

impl Found {
    /// Sets aside what a disk has damaged. Only of a file that was not written to since it was opened:
    /// what is read of one that is being written looks damaged too.
    fn set_damaged_aside(&self, dir: &Path, id: MessageId) -> io::Result<()> {
        match self {
            // What is whole is used, and written on behind it.
            Self::Read(summary) if summary.is_damaged => {
                set_aside(dir, id, |from, to| fs::copy(from, to).map(|_| ()))
            }
            Self::Headless => set_aside(dir, id, |from, to| fs::rename(from, to)),
            Self::Whole { .. } | Self::Read(_) | Self::Nothing => Ok(()),
        }
    }
}

/// A file to look at.
struct Look {
    id: MessageId,
    how: Unread,
    /// Serials of payloads in files of their own.
    apart: Vec<u64>,
}

impl Look {
    /// `check_from`: the first response that the core may still have.
    fn look(&self, dir: &Path, check_from: u64) -> io::Result<Found> {
        let path = dir.join(self.id.to_string());
        match self.how {
            Unread::Ended => {
                let length = fs::metadata(path)?.len();
                let mut bytes = length;
                for serial in &self.apart {
                    // One that was damaged is not there any more.
                    let payload = fs::metadata(dir.join(apart(self.id, *serial)));
                    bytes += payload.map_or(0, |payload| payload.len());
                }
                Ok(Found::Whole { length, bytes })
            }
            Unread::Open | Unread::Orphan => {
                let check_from = match self.how {
                    Unread::Orphan => u64::MAX,
                    Unread::Open | Unread::Ended => check_from,
                };
                let file = BufReader::new(File::open(&path)?);
                match frame::scan(file, check_from) {
                    Ok(summary) => Ok(Found::Read(Box::new(summary))),
                    Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                        let is_whole = frame::has_line(&mut BufReader::new(File::open(&path)?))?;
                        Ok(if is_whole {
                            Found::Headless
                        } else {
                            Found::Nothing
                        })
                    }
                    Err(error) => Err(error),
                }
            }
        }
    }
}

/// Keeps a file that a disk has damaged for an operator to look at.
fn set_aside(
    dir: &Path,
    id: MessageId,
    keep: impl Fn(&Path, &Path) -> io::Result<()>,
) -> io::Result<()> {
    let corrupt = dir.join(CORRUPT);
    fs::create_dir_all(&corrupt)?;
    let path = corrupt.join(id.to_string());
    if fs::read_dir(&corrupt)?.count() >= CORRUPT_MAX && !path.exists() {
        tracing::error!(work = %id, "kept responses are damaged; there are too many such files to set this one aside");
        return Ok(());
    }
    keep(&dir.join(id.to_string()), &path)?;
    tracing::error!(work = %id, file = %path.display(), "kept responses are damaged; the file was set aside");
    Ok(())
}

/// The works of which `dir` has files, by their names.
///
/// # Errors
///
/// When the directory cannot be read, or a later version wrote there
/// ([`io::ErrorKind::Unsupported`]).
pub(super) fn load(dir: &Path, table: &mut Table) -> io::Result<()> {
    let mut apart: HashMap<MessageId, Vec<(u64, String)>> = HashMap::new();
    for entry in fs::read_dir(dir)? {
        let name = entry?.file_name();
        let Some(name) = name.to_str() else {
            continue;
        };
        if let Some((id, serial)) = name.split_once('.') {
            if let Ok(id) = id.parse() {
                let serial = serial.strip_suffix(SUMS).unwrap_or(serial);
                let serial = serial.parse().unwrap_or(0);
                let files: &mut Vec<_> = apart.entry(id).or_default();
                files.push((serial, name.to_owned()));
            }
            continue;
        }
        if name == CORRUPT {
            continue;
        }
        let Ok(id) = name.parse::<MessageId>() else {
            let file = dir.join(name);
            tracing::warn!(file = %file.display(), "what is this doing here? it is left alone");
            continue;
        };
        let mut work = Work::new(id.made_ms().unwrap_or_else(now_ms));
        work.accepted = true;
        work.has_file = true;
        work.unread = Some(Unread::Open);
        table.files += 1;
        table.works.insert(id, work);
    }
    let mut youngest: Vec<MessageId> = table.works.keys().copied().collect();
    youngest.sort_unstable_by(|a, b| b.cmp(a));
    for id in youngest.iter().take(VERSIONS_LOOKED_AT) {
        let file = File::open(dir.join(id.to_string()))?;
        match frame::head(&mut BufReader::new(file)) {
            // A write that was never reported.
            Err(error) if error.kind() != io::ErrorKind::InvalidData => return Err(error),
            _ => {}
        }
    }
    for (id, files) in apart {
        match table.works.get_mut(&id) {
            Some(work) => {
                work.apart = files.into_iter().map(|(serial, _)| serial).collect();
                work.apart.sort_unstable();
                work.apart.dedup();
            }
            None => {
                for (_, name) in files {
                    fs::remove_file(dir.join(name))?;
                }
            }
        }
    }
    Ok(())
}

impl Keeper {
    /// A work that ended in an earlier run.
    pub(crate) fn restore_ended(&self, memo: EntryId, ending: Ending) {
        match ending.role {
            WorkRole::Here => return self.0.history.restore(memo, ending),
            WorkRole::Sent => {}
        }
        let id = ending.id;
        let mut table = self.0.table.borrow_mut();
        let known = table.works.get(&id).and_then(|work| work.memo);
        if let Some(other) = known {
            // A work that was sent again under its key, and the first was not removed in time.
            self.0.store.remove(other.min(memo));
            if other > memo {
                return;
            }
            table.reopen(id);
        }
        let work = table.works.entry(id).or_insert_with(|| Work::new(0));
        work.memo = Some(memo);
        work.accepted = true;
        work.directive = ending.directive;
        work.recipient = ending.peer;
        work.since_ms = ending.since_ms;
        work.digest = ending.digest;
        work.said = ending.responses;
        table.end_at(id, ending.end, ending.at_ms);
    }

    /// A work of an earlier run, that the core still knows.
    pub(crate) fn restore(&self, id: MessageId, directive: &Directive, recipient: &NodeId) {
        let mut table = self.0.table.borrow_mut();
        if !table.works.contains_key(&id) && table.is_full() {
            return;
        }
        let work = table.works.entry(id).or_insert_with(|| {
            // The id of a message without a key says when it was made.
            Work::new(id.made_ms().unwrap_or_else(now_ms))
        });
        work.accepted = true;
        work.directive.get_or_insert_with(|| directive.clone());
        work.recipient.get_or_insert_with(|| recipient.clone());
    }

    /// After a start, when everything was restored: what the core does not know of any more is over,
    /// or was never accepted.
    pub(crate) fn settle_old(&self, is_known: impl Fn(MessageId) -> bool) {
        let mut table = self.0.table.borrow_mut();
        let open = table.works.iter_mut();
        let open = open.filter(|(_, work)| work.end.is_none() || work.unread.is_some());
        for (id, work) in open {
            if work.unread.is_some() && !is_known(*id) {
                work.unread = Some(if work.end.is_some() {
                    Unread::Ended
                } else {
                    Unread::Orphan
                });
            }
        }
        self.bound(&mut table);
        drop(table);
        self.0.history.bound();
    }

    /// Looks at what one work's file holds, if that was not done. `check_from`: the first response
    /// that the core may still have.
    pub(super) fn look(&self, id: MessageId, check_from: u64) {
        let look = {
            let table = self.0.table.borrow();
            table.works.get(&id).and_then(|work| work.to_look_at(id))
        };
        if let Some(look) = look {
            let found = look.look(self.0.disk.dir(), check_from);
            self.found(&look, found);
        }
    }

    /// Looks at all files that were not looked at.
    pub(super) fn look_at_all(&self) {
        for look in self.unread(usize::MAX) {
            let found = look.look(self.0.disk.dir(), 1);
            self.found(&look, found);
        }
    }

    /// The same, bit by bit and off the engine's thread, so that limits of bytes hold.
    pub(super) async fn survey(&self) {
        loop {
            let looks = self.unread(SURVEY_PART);
            if looks.is_empty() {
                return;
            }
            let dir = self.0.disk.dir().to_owned();
            let looked = tokio::task::spawn_blocking(move || {
                let look = |look: Look| (look.look(&dir, 1), look);
                looks.into_iter().map(look).collect::<Vec<_>>()
            });
            let Ok(looked) = looked.await else {
                // Only when the runtime ends.
                return;
            };
            for (found, look) in looked {
                self.found(&look, found);
            }
            self.make_room(&mut self.0.table.borrow_mut());
        }
    }

    /// So many files that were not looked at.
    fn unread(&self, most: usize) -> Vec<Look> {
        let table = self.0.table.borrow();
        let works = table.works.iter();
        let looks = works.filter_map(|(id, work)| work.to_look_at(*id));
        looks.take(most).collect()
    }

    fn found(&self, look: &Look, found: io::Result<Found>) {
        let id = look.id;
        let mut table = self.0.table.borrow_mut();
        let table = &mut *table;
        let Some(work) = table.works.get_mut(&id) else {
            return;
        };
        if work.unread.is_none() {
            // Somebody was faster.
            return;
        }
        work.unread = None;
        let found = found.and_then(|found| {
            found.set_damaged_aside(self.0.disk.dir(), id)?;
            Ok(found)
        });
        match found {
            Ok(Found::Whole { length, bytes }) => {
                (work.length, work.bytes) = (length, bytes);
                (work.last, work.written, work.told) = (work.said, work.said, work.said);
                table.bytes += bytes;
            }
            Ok(Found::Read(summary)) => {
                let length = summary.length;
                let end = work.take_over(*summary);
                table.bytes += work.bytes;
                self.remove_apart(id, &look.apart, &work.apart);
                let at = fs::metadata(self.0.disk.path(&id.to_string()));
                let at = at.and_then(|file| file.modified()).map_or(0, super::ms_of);
                if let Some(end) = end {
                    if table.end_at(id, end, at.min(now_ms())) {
                        self.remember(table, id);
                    }
                } else if matches!(look.how, Unread::Orphan) {
                    self.orphan(table, id);
                }
                tracing::trace!(work = %id, length, "kept responses were looked at");
            }
            Ok(Found::Headless | Found::Nothing) => {
                self.unlink(table, id);
                if matches!(look.how, Unread::Orphan) {
                    table.forget(id);
                }
            }
            Err(error) => {
                work.has_file = false;
                work.dropped = true;
                table.files -= 1;
                if error.kind() != io::ErrorKind::NotFound {
                    tracing::warn!(work = %id, %error, "kept responses cannot be read");
                }
            }
        }
        self.forget_memos(table);
    }

    /// A work that the core does not know and of which no end is kept: it was never accepted, or its
    /// end is lost.
    fn orphan(&self, table: &mut Table, id: MessageId) {
        let last = table.works.get(&id).map_or(0, |work| work.last);
        if last == 0 {
            self.unlink(table, id);
            table.forget(id);
            return;
        }
        let text = "its node was stopped, and knows nothing of it any more";
        let end = End {
            code: 1,
            error: Some(ErrorBody::new(ErrorCode::Lost, text)),
        };
        table.end(id, end);
        self.remember(table, id);
    }

    /// Removes payloads that no response names.
    fn remove_apart(&self, id: MessageId, there: &[u64], named: &[u64]) {
        let extra = there.iter().filter(|serial| !named.contains(serial));
        let names: Vec<_> = extra.flat_map(|serial| apart_names(id, *serial)).collect();
        if !names.is_empty() {
            self.remove(names);
        }
    }
}

impl Work {
    fn to_look_at(&self, id: MessageId) -> Option<Look> {
        Some(Look {
            id,
            how: self.unread?,
            apart: self.apart.clone(),
        })
    }

    /// Takes over what its file says. How it ended, if that is there.
    fn take_over(&mut self, summary: Summary) -> Option<End> {
        let Summary {
            head,
            length,
            last,
            apart,
            end,
            is_damaged: _,
        } = summary;
        self.directive = self.directive.take().or(head.directive);
        self.recipient = self.recipient.take().or(head.recipient);
        self.since_ms = head.since_ms;
        self.digest = self.digest.take().or(head.digest);
        (self.last, self.written) = (last, last);
        // Whatever the core gives again is known; what it does not, it was told.
        self.told = last;
        self.length = length;
        self.bytes = length + apart.iter().map(|(_, size)| size).sum::<u64>();
        self.apart = apart.into_iter().map(|(serial, _)| serial).collect();
        end
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use receptor_mesh::Payload;
    use receptor_proto::packet::{Content, Eof};

    const ID: MessageId = MessageId::from_u128(7);

    /// Three answers, the last of which ends the work, and where each part ends.
    fn file() -> (Vec<u8>, Vec<usize>) {
        let mut bytes = Vec::new();
        let head = frame::Head {
            version: frame::VERSION,
            id: ID,
            directive: None,
            recipient: None,
            since_ms: 1,
            digest: None,
        };
        frame::put_head(&head, &mut bytes);
        let mut ends = vec![bytes.len()];
        for serial in 1..=3 {
            let response = crate::engine::Response {
                sender: "b".parse().unwrap(),
                serial,
                content: Content::Bytes,
                name: None,
                payload: Payload::Inline(bytes::Bytes::from_static(b"an answer")),
                eof: (serial == 3).then_some(Eof {
                    code: 0,
                    error: None,
                }),
            };
            frame::put_response(&response, &mut bytes);
            ends.push(bytes.len());
        }
        (bytes, ends)
    }

    fn look(dir: &Path, bytes: &[u8], how: Unread) -> Found {
        fs::write(dir.join(ID.to_string()), bytes).unwrap();
        let look = Look {
            id: ID,
            how,
            apart: Vec::new(),
        };
        let found = look.look(dir, 1).unwrap();
        assert_eq!(set_aside(dir), None, "somebody may be writing to it");
        found.set_damaged_aside(dir, ID).unwrap();
        found
    }

    fn set_aside(dir: &Path) -> Option<Vec<u8>> {
        fs::read(dir.join(CORRUPT).join(ID.to_string())).ok()
    }

    #[test]
    fn a_damaged_first_line_does_not_remove_the_answers() {
        let dir = tempfile::tempdir().unwrap();
        let (mut bytes, _) = file();
        bytes[3] ^= 0x80;
        let found = look(dir.path(), &bytes, Unread::Open);
        assert!(matches!(found, Found::Headless));
        assert_eq!(set_aside(dir.path()), Some(bytes));
    }

    #[test]
    fn what_follows_a_damaged_answer_is_set_aside_before_it_is_written_over() {
        let dir = tempfile::tempdir().unwrap();
        let (whole, ends) = file();
        // The line of the second answer, or its payload.
        for at in [ends[1] + 2, ends[2] - 1] {
            let mut bytes = whole.clone();
            bytes[at] ^= 0x80;
            let Found::Read(summary) = look(dir.path(), &bytes, Unread::Open) else {
                panic!("one answer is whole");
            };
            assert_eq!((summary.last, summary.length), (1, ends[1] as u64));
            assert_eq!(set_aside(dir.path()), Some(bytes));
            fs::remove_dir_all(dir.path().join(CORRUPT)).unwrap();
        }
    }

    #[test]
    fn a_damaged_answer_does_not_make_a_work_that_went_well_a_lost_one() {
        let dir = tempfile::tempdir().unwrap();
        let (mut bytes, ends) = file();
        bytes[ends[2] - 1] ^= 1;
        let Found::Read(summary) = look(dir.path(), &bytes, Unread::Orphan) else {
            panic!("its end is there");
        };
        assert_eq!(summary.end.map(|end| end.code), Some(0));
    }

    #[test]
    fn a_write_that_was_cut_off_is_no_damage() {
        let dir = tempfile::tempdir().unwrap();
        let (bytes, _) = file();
        for cut in 0..bytes.len() {
            look(dir.path(), &bytes[..cut], Unread::Open);
            assert_eq!(set_aside(dir.path()), None, "cut at {cut}");
        }
    }
}
