//! Messages in the data directory of a receptord that does not run.
//!
//! Owns reading the spool and the dead letters there, as the same answers that a running receptord
//! gives. It takes the spool's lock while it reads, so that a receptord that runs is never read behind
//! its back, and changes nothing: dropping a message takes a receptord that tells its sender.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, BufRead as _, BufReader, ErrorKind, Read as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use receptor_proto::control::{
    DeadLetterStatus, DeadLettersReply, SpoolDamage, SpoolEntry, SpoolKind, SpoolReason, SpoolReply,
};
use receptor_proto::packet::{Message, MessageKind};
use receptor_proto::record::Record;
use receptor_proto::{Directive, ErrorBody, IdPrefix, MessageId, NodeId};
use receptor_spool::{Disk as _, FsDisk, Report, Spool, SpoolError};
use serde::Deserialize;

use crate::exit::{Exit, Failure};
use crate::output::printable;

/// Where the packaged daemon keeps everything.
const DEFAULT_DATA_DIR: &str = "/var/lib/receptor";
/// Messages in one answer, as many as receptord looks at for one.
const LISTED_MAX: usize = 10_000;
/// The longest first line of a dead letter, as receptord has it.
const LINE_MAX: u64 = 1 << 20;

/// The data directory to read when the daemon of the default socket is not there, if it can be:
/// as the tools of mail systems look into the queue themselves then.
pub(super) fn fallback() -> Option<PathBuf> {
    let dir = Path::new(DEFAULT_DATA_DIR);
    let format = dir.join("spool/format");
    File::open(format).is_ok().then(|| dir.to_owned())
}

/// The messages that wait in the spool of a data directory, or those of one work.
pub(super) fn list(data_dir: &Path, only: Option<&IdPrefix>) -> Result<SpoolReply, Failure> {
    let (spool, report) = open(data_dir)?;
    let now = now_ms();
    let mut damaged: Vec<_> = report.damage.iter().map(SpoolDamage::from).collect();
    let mut messages = Vec::new();
    let mut total = 0;
    // Of an outgoing message the mark comes first: its recipient has it, and it does not wait.
    let mut started = Vec::new();
    for record in spool.records(now) {
        let record = match record {
            Ok(record) => record,
            Err(SpoolError::Damaged(entry)) => {
                damaged.push(SpoolDamage {
                    file: None,
                    offset: None,
                    bytes: None,
                    entry: Some(entry.0),
                    message: SpoolError::Damaged(entry).to_string(),
                });
                continue;
            }
            Err(error) => return Err(failed(data_dir, &error)),
        };
        let (entry, recipient, origin, message) = match record {
            Record::Started { entry } => {
                started.push(entry);
                continue;
            }
            Record::Outgoing {
                entry,
                recipient,
                message,
            } => (entry, recipient, None, message),
            Record::Transit {
                entry,
                origin,
                recipient,
                message,
            } => (entry, recipient, Some(origin), message),
            Record::Incoming { .. } | Record::Received { .. } => continue,
        };
        if started.binary_search(&entry).is_ok()
            || only.is_some_and(|only| !only.matches(message.work))
        {
            continue;
        }
        total += 1;
        if messages.len() < LISTED_MAX {
            messages.push(described(recipient, origin, message, now));
        }
    }
    // By recipient, in the order in which each was written to first.
    let mut order = BTreeMap::new();
    for message in &messages {
        let next = order.len();
        order.entry(message.recipient.clone()).or_insert(next);
    }
    messages.sort_by_key(|message| order.get(&message.recipient).copied());
    if let Some(only) = only {
        one_work(&messages, only)?;
    }
    Ok(SpoolReply {
        messages,
        total,
        damaged,
    })
}

/// There is something, and all of it is of one work.
fn one_work(messages: &[SpoolEntry], only: &IdPrefix) -> Result<(), Failure> {
    let Some(first) = messages.first() else {
        let text = format!("nothing waits here of a work {only}");
        return Err(Failure::new(Exit::Failed, text));
    };
    if messages.iter().any(|message| message.id != first.id) {
        let text = format!("several ids begin with {only}; give more of it");
        return Err(Failure::new(Exit::Usage, text));
    }
    Ok(())
}

fn described(recipient: NodeId, origin: Option<NodeId>, message: Message, now: u64) -> SpoolEntry {
    let (kind, directive, serial) = match message.kind {
        MessageKind::Request { directive, .. } => (SpoolKind::Request, Some(directive), None),
        MessageKind::Response { serial, .. } => (SpoolKind::Response, None, Some(serial)),
        MessageKind::Cancel { .. } => (SpoolKind::Cancel, None, None),
    };
    let made = (kind == SpoolKind::Request)
        .then(|| message.work.made_ms())
        .flatten();
    SpoolEntry {
        id: message.work,
        kind,
        recipient,
        origin,
        directive,
        serial,
        size: message.size,
        age_ms: made.map(|made| now.saturating_sub(made)),
        expires_ms: message.remaining_ms,
        reason: SpoolReason::Stopped,
        volatile: false,
    }
}

/// The first line of a dead letter, as far as it is shown.
#[derive(Deserialize)]
struct Letter {
    id: MessageId,
    directive: Directive,
    recipient: NodeId,
    #[serde(default)]
    origin: Option<NodeId>,
    size: u64,
    at_ms: u64,
    reason: ErrorBody,
}

/// The dead letters of a data directory, oldest first.
pub(super) fn letters(data_dir: &Path) -> Result<DeadLettersReply, Failure> {
    let _lock = FsDisk::new(data_dir.join("spool"))
        .lock(false)
        .map_err(|error| {
            if error.kind() == ErrorKind::WouldBlock {
                return failed(data_dir, &SpoolError::InUse);
            }
            unreadable(data_dir, &error)
        })?;
    let dir = data_dir.join("dead-letters");
    let entries = match fs::read_dir(&dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == ErrorKind::NotFound => {
            let (letters, total) = (Vec::new(), 0);
            return Ok(DeadLettersReply { letters, total });
        }
        Err(error) => return Err(unreadable(&dir, &error)),
    };
    let mut letters = Vec::new();
    for entry in entries {
        let path = entry.map_err(|error| unreadable(&dir, &error))?.path();
        if path.extension().is_some() {
            continue;
        }
        match letter(&path) {
            Ok(letter) => letters.push(letter),
            Err(error) => {
                let file = path.display().to_string();
                crate::output::note(&format!("{file} is no dead letter: {error}"));
            }
        }
    }
    letters.sort_by_key(|letter| (letter.at_ms, letter.id));
    let now = now_ms();
    let total = letters.len() as u64;
    let letters = letters.into_iter().map(|letter| DeadLetterStatus {
        id: letter.id,
        directive: letter.directive,
        recipient: letter.recipient,
        origin: letter.origin,
        size: letter.size,
        age_ms: now.saturating_sub(letter.at_ms),
        reason: letter.reason,
    });
    let letters = letters.collect();
    Ok(DeadLettersReply { letters, total })
}

fn letter(path: &Path) -> io::Result<Letter> {
    let mut line = Vec::new();
    BufReader::new(File::open(path)?.take(LINE_MAX)).read_until(b'\n', &mut line)?;
    Ok(serde_json::from_slice(&line)?)
}

fn open(data_dir: &Path) -> Result<(Spool<FsDisk>, Report), Failure> {
    let dir = data_dir.join("spool");
    if let Err(error) = fs::metadata(&dir) {
        return Err(unreadable(data_dir, &error));
    }
    Spool::open_read_only(FsDisk::new(dir)).map_err(|error| failed(data_dir, &error))
}

fn failed(data_dir: &Path, error: &SpoolError) -> Failure {
    let shown = data_dir.display().to_string();
    let shown = printable(&shown);
    if *error == SpoolError::InUse {
        let text = format!(
            "a receptord runs with the data directory {shown}: ask it, without --data-dir, or stop it first"
        );
        return Failure::new(Exit::Unavailable, text);
    }
    let exit = if let SpoolError::Disk { kind, .. } = error {
        exit_of(*kind)
    } else if matches!(error, SpoolError::Newer { .. }) {
        Exit::Configuration
    } else {
        Exit::Internal
    };
    Failure::new(exit, format!("{shown}: {error}"))
}

fn unreadable(path: &Path, error: &io::Error) -> Failure {
    let shown = path.display().to_string();
    let shown = printable(&shown);
    let text = if error.kind() == ErrorKind::NotFound {
        format!("{shown} is no data directory of receptord: there is no spool in it")
    } else {
        format!("{shown} cannot be read: {error}")
    };
    Failure::new(exit_of(error.kind()), text)
}

fn exit_of(kind: ErrorKind) -> Exit {
    if kind == ErrorKind::PermissionDenied {
        Exit::NotPermitted
    } else if kind == ErrorKind::NotFound {
        Exit::Usage
    } else {
        Exit::Internal
    }
}

fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    let since: Duration = since.unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
