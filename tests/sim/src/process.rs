//! What a simulated process does for its core: every output in its order, and the disk.

use receptor_mesh::{Event as MeshEvent, Loaded, Output, PersistToken, Record};
use receptor_proto::packet::Eof;
use receptor_proto::{ErrorBody, ErrorCode, MessageId};

use crate::event::{Event, NodeIndex, ProcessEvent, record_word};
use crate::net::conn_of;
use crate::random::Draw;
use crate::world::{DiskJob, LoadAsked, World};

/// Microseconds for which something that an earlier start of a node sent may still arrive: as long as a
/// link without a sign of life is held.
const LATE_MOST: u64 = 4_000_000;

impl World {
    /// Does one thing that a core wants done.
    pub(crate) fn output(&mut self, node: NodeIndex, output: Output) {
        let now = self.queue.now();
        match output {
            Output::Transmit { link, frame } => self.transmit(node, link, frame),
            Output::CloseLink { link, reason } => {
                self.trace.numbers([10, now, link.0]);
                self.trace
                    .line(now, || format!("{node}: closes {link:?}: {reason}"));
                let (conn, side) = conn_of(link);
                self.net.finish(&mut self.queue, conn, side);
            }
            Output::Persist { token, records, .. } => self.persist(node, token, records),
            Output::Remove { entry } => {
                self.trace.numbers([11, now, entry.0]);
                self.trace
                    .line(now, || format!("{node}: removes {entry:?}"));
                let result = self.hosts[node].store.remove(entry);
                self.check(result.map_err(|why| format!("node {node}: {why}")));
            }
            Output::Fetch {
                entry,
                offset,
                length,
            } => {
                let failed = if self.disk_fails(node) {
                    Some(ErrorCode::Internal)
                } else {
                    let damaged = self.troubled && self.disks.chance(self.options.damage);
                    damaged.then_some(ErrorCode::Damaged)
                };
                let job = DiskJob::Fetch {
                    entry,
                    offset,
                    length,
                    failed,
                };
                self.disk(node, job);
            }
            Output::Load {
                token,
                recipient,
                first,
                last,
                records,
                bytes,
            } => {
                self.stats.loads += 1;
                let failed = self.disk_fails(node);
                // Few at a time, so that more than one answer is needed.
                let asked = LoadAsked {
                    recipient,
                    range: (first, last),
                    most: (records.min(3), bytes.min(4096)),
                };
                let early = self.disks.bool();
                let read = early.then(|| self.read_page(node, &asked));
                let job = DiskJob::Load {
                    token,
                    asked,
                    read,
                    failed,
                };
                self.disk(node, job);
            }
            Output::Begin {
                entry,
                origin,
                message,
            } => {
                let store = &mut self.hosts[node].store;
                let result = store.begin(now, entry, origin, message);
                self.check(result.map_err(|why| format!("node {node}: {why}")));
            }
            Output::Append {
                entry,
                offset,
                piece,
            } => {
                // What follows a part that could not be written cannot be written either.
                let failed = self.hosts[node].torn.contains(&entry) || self.disk_fails(node);
                let end = offset + piece.bytes.len() as u64;
                // What a neighbor forged is taken for nothing else than it is.
                let forged = !crate::store::is_whole(&piece) && !self.all_themselves();
                let failed = failed || forged;
                if failed {
                    self.hosts[node].torn.insert(entry);
                } else {
                    let result = self.hosts[node].store.append(entry, offset, piece);
                    self.check(result.map_err(|why| format!("node {node}: {why}")));
                }
                self.disk(node, DiskJob::Append { entry, end, failed });
            }
            Output::Accepted { work, recipient } => {
                self.trace.numbers([12, now]);
                self.trace
                    .line(now, || format!("{node}: accepts {work} for {recipient}"));
                self.accepted(node, work, &recipient);
            }
            Output::Readdressed { work, recipient } => {
                self.trace.numbers([15, now]);
                self.trace
                    .line(now, || format!("{node}: {work} goes to {recipient} now"));
                let to = self.by_id.get(&recipient).copied();
                let result = match to {
                    Some(to) => self.ledger.readdressed(work, (to, self.hosts[to].life)),
                    None => Err(format!("{work} goes to {recipient}, which is no node")),
                };
                self.check_honest(result);
            }
            Output::NotAccepted { work, reason } => {
                self.trace.numbers([17, now]);
                self.trace
                    .line(now, || format!("{node}: does not accept {work}: {reason}"));
                let result = self.ledger.not_accepted(work);
                self.check_honest(result);
            }
            Output::Dispatch {
                work,
                sender,
                directive,
                payload,
                attempt,
                ..
            } => {
                self.trace
                    .numbers([13, now, node as u64, u64::from(attempt)]);
                self.trace.line(now, || {
                    format!("{node}: dispatches {work} of {sender}, attempt {attempt}")
                });
                let body = self.read_payload(node, &payload);
                match (body, self.by_id.get(&sender)) {
                    (Some(body), Some(&sender)) => {
                        self.dispatch(node, work, sender, directive, body, attempt);
                    }
                    (None, _) => {
                        self.check(Err(format!("{work} is not in the store of {node}")));
                    }
                    (_, None) => {
                        self.check_honest(Err(format!(
                            "{work} is from {sender}, whom nobody knows"
                        )));
                    }
                }
            }
            Output::Start { work } => {
                self.trace.numbers([14, now, node as u64]);
                self.trace.line(now, || format!("{node}: starts {work}"));
                self.start_work(node, work);
            }
            Output::CancelWork { work, .. } => {
                self.trace.line(now, || format!("{node}: ends {work}"));
                self.cancel_work(node, work);
            }
            Output::ResumeWork { work } => {
                self.trace.line(now, || format!("{node}: resumes {work}"));
                self.resume_work(node, work);
            }
            Output::ResponsesSafe { work, serial } => {
                self.trace
                    .line(now, || format!("{node}: {work} is safe up to {serial}"));
                self.responses_safe(node, work, serial);
            }
            Output::Ended { work, eof, .. } => {
                self.trace
                    .line(now, || format!("{node}: {work} has ended with {eof:?}"));
                let result = self.hosts[node].store.ended(work, eof);
                self.check(result);
            }
            Output::AskEnd {
                work,
                recipient,
                place,
            } => {
                self.trace.line(now, || {
                    format!("{node}: is asked how {work} of {recipient} ended")
                });
                let from = self.by_id.get(&recipient).copied();
                let end = from.and_then(|from| self.end_of(node, work, from));
                let clock = self.clock(node);
                if let Some(mesh) = self.hosts[node].mesh.as_mut() {
                    mesh.handle_end(clock, &recipient, place, end);
                }
            }
            Output::Deliver {
                work,
                serial,
                payload,
                eof,
                ..
            } => {
                self.trace.line(now, || {
                    format!("{node}: delivers response {serial} of {work}, eof {eof:?}")
                });
                self.deliver(node, work, serial, &payload, eof.as_ref());
            }
            Output::EchoResult { id, result } => self.echo_result(node, id, result),
            Output::DeadLetter { entry, .. } => {
                let failed = self.disk_fails(node);
                self.disk(node, DiskJob::DeadLetter { entry, failed });
            }
            Output::Event(event) => self.event(node, event),
        }
    }

    fn persist(
        &mut self,
        node: NodeIndex,
        PersistToken(token): PersistToken,
        records: Vec<Record>,
    ) {
        let now = self.queue.now();
        self.trace
            .numbers([15, now, node as u64, token, records.len() as u64]);
        self.trace.line(now, || {
            let words: Vec<String> = records
                .iter()
                .map(|record| match record {
                    Record::Outgoing { entry, message, .. }
                    | Record::Incoming { entry, message, .. }
                    | Record::Transit { entry, message, .. } => {
                        format!("{} {entry:?} of {}", record_word(record), message.work)
                    }
                    Record::Started { .. } | Record::Received { .. } => format!("{record:?}"),
                })
                .collect();
            format!("{node}: writes {token}: {}", words.join(", "))
        });
        let transit = |record: &&Record| matches!(record, Record::Transit { .. });
        self.stats.kept += records.iter().filter(transit).count() as u64;
        let failed = self.disk_fails(node);
        if !failed {
            let host = &mut self.hosts[node];
            host.unconfirmed.push_back((token, records.clone()));
            let result = host.store.persist(now, token, records);
            self.check(result.map_err(|why| format!("node {node}: {why}")));
        }
        self.disk(node, DiskJob::Persist { token, failed });
    }

    /// What this node remembers of the end of a work that it sent: as long as its core has the request nobody
    /// asks, and then a restart would know as much.
    fn end_of(&self, node: NodeIndex, work: MessageId, worker: NodeIndex) -> Option<(u64, Eof)> {
        let letter = self.ledger.letters.get(&work)?;
        let same = letter.from == node
            && letter.from_life.data == self.hosts[node].life.data
            && letter.recipient == Some(worker);
        let eof = letter.end.clone().filter(|_| same)?;
        Some((letter.got(), eof))
    }

    fn read_page(&self, node: NodeIndex, asked: &LoadAsked) -> Loaded {
        let now = self.queue.now();
        let store = &self.hosts[node].store;
        store.load(now, &asked.recipient, asked.range, asked.most)
    }

    fn disk(&mut self, node: NodeIndex, job: DiskJob) {
        let pause = self.disks.micros(self.options.persist_ms);
        let now = self.queue.now();
        let host = &mut self.hosts[node];
        host.disk_free_at = host.disk_free_at.max(now + pause);
        host.disk.push_back(job);
        let (at, process) = (host.disk_free_at, host.life.process);
        self.queue
            .at(at, Event::Process(node, process, ProcessEvent::Disk));
    }

    /// The oldest job of the disk is done.
    pub(crate) fn disk_done(&mut self, node: NodeIndex) {
        let clock = self.clock(node);
        let now = self.queue.now();
        let Some(job) = self.hosts[node].disk.pop_front() else {
            return;
        };
        self.trace.numbers([16, now, node as u64]);
        self.trace.line(now, || format!("{node}: disk did {job:?}"));
        let error = Self::disk_error();
        match job {
            DiskJob::Persist {
                token,
                failed: true,
            } => {
                if let Some(mesh) = self.hosts[node].mesh.as_mut() {
                    mesh.handle_persist_failed(clock, PersistToken(token), error);
                }
            }
            DiskJob::Persist {
                token,
                failed: false,
            } => {
                let host = &mut self.hosts[node];
                let result = host.store.confirm(token);
                while let Some((oldest, records)) = host.unconfirmed.pop_front() {
                    self.receipts.stored(&self.by_id, node, host.life, &records);
                    if oldest == token {
                        break;
                    }
                }
                self.check(result);
                if let Some(mesh) = self.hosts[node].mesh.as_mut() {
                    mesh.handle_persisted(clock, PersistToken(token));
                }
            }
            DiskJob::Fetch {
                entry,
                offset,
                length,
                failed,
            } => {
                let host = &mut self.hosts[node];
                let found = host.store.fetch(entry, offset, length);
                if found.is_none() && failed.is_none() && !host.store.is_retired(entry) {
                    self.check(Err(format!(
                        "node {node} fetches {entry:?}, which is not there"
                    )));
                    return;
                }
                let result = match (failed, found) {
                    (Some(code), _) => Err(ErrorBody::new(code, "the disk is broken")),
                    (None, found) => found.map(crate::store::piece).ok_or(error),
                };
                if let Some(mesh) = self.hosts[node].mesh.as_mut() {
                    mesh.handle_fetched(clock, entry, offset, result);
                }
            }
            DiskJob::Load {
                token,
                asked,
                read,
                failed,
            } => {
                let found = read.unwrap_or_else(|| self.read_page(node, &asked));
                let result = if failed { Err(error) } else { Ok(found) };
                if let Some(mesh) = self.hosts[node].mesh.as_mut() {
                    mesh.handle_loaded(clock, token, result);
                }
            }
            DiskJob::DeadLetter { entry, failed } => {
                let result = if failed { Err(error) } else { Ok(()) };
                if let Some(mesh) = self.hosts[node].mesh.as_mut() {
                    mesh.handle_dead_letter(clock, entry, result);
                }
            }
            DiskJob::Append { entry, end, failed } => {
                let result = if failed { Err(error) } else { Ok(()) };
                if let Some(mesh) = self.hosts[node].mesh.as_mut() {
                    mesh.handle_appended(clock, entry, end, result);
                }
            }
        }
    }

    fn accepted(&mut self, node: NodeIndex, work: MessageId, recipient: &receptor_proto::NodeId) {
        let Some(letter) = self.ledger.letters.get(&work) else {
            self.check_honest(Err(format!("{work} accepted at {node}, which nobody sent")));
            return;
        };
        if letter.from != node || letter.from_life != self.hosts[node].life {
            self.check_honest(Err(format!(
                "{work} accepted at {node}, where nobody sent it"
            )));
            return;
        }
        // One that nobody answers and that has arrived need not be written here any more.
        let arrived = !letter.respond
            && self
                .by_id
                .get(recipient)
                .is_some_and(|to| self.hosts[*to].store.was_durable(work));
        if !(letter.volatile || arrived || self.hosts[node].store.was_durable(work)) {
            self.check_honest(Err(format!(
                "{work} accepted at {node} before it is durable"
            )));
            return;
        }
        let nobody = letter.nobody;
        match self.by_id.get(recipient) {
            Some(&to) => {
                let life = self.hosts[to].life;
                let result = self.ledger.accepted(work, Some((to, life)));
                self.check_honest(result);
            }
            None if nobody => {
                let result = self.ledger.accepted(work, None);
                self.check_honest(result);
            }
            None => self.check_honest(Err(format!("{work} accepted for {recipient}"))),
        }
    }

    fn event(&mut self, node: NodeIndex, event: MeshEvent) {
        let now = self.queue.now();
        self.trace.line(now, || format!("{node}: {event:?}"));
        match event {
            MeshEvent::NeighborUp { link, .. } => {
                let (conn, side) = conn_of(link);
                if side == 0 {
                    self.net.reset_backoff(conn);
                }
            }
            MeshEvent::PeerMistake { link, reason } => {
                self.stats.peer_mistakes += 1;
                if self.all_honest() {
                    self.check(Err(format!(
                        "node {node} complains about {link:?}: {reason}"
                    )));
                }
            }
            MeshEvent::DuplicateNodeId { node: who, ours } => {
                self.stats.duplicate_ids += 1;
                // What an earlier start sent comes late, on a link that nobody has closed: whether that
                // start is over cannot be known there.
                let started = self.by_id.get(&who).map(|who| self.hosts[*who].started_at);
                let is_late = started.is_some_and(|at| now - at < LATE_MOST);
                // A hello over a plain link proves nothing.
                let is_a_claim = !self.hostile.is_empty();
                if self.all_themselves() && !is_a_claim && !is_late {
                    self.check(Err(format!(
                        "node {node} sees two nodes {who}, ours {ours}, and there is one"
                    )));
                }
            }
            MeshEvent::GivenUp { work, .. } => {
                self.stats.given_up += 1;
                if let Some(letter) = self.ledger.letters.get_mut(&work) {
                    letter.given_up = true;
                }
            }
            MeshEvent::NeighborDown { .. }
            | MeshEvent::LinkRefused { .. }
            | MeshEvent::NodeReachable { .. }
            | MeshEvent::NodeUnreachable { .. }
            | MeshEvent::NodeForgotten { .. }
            | MeshEvent::Behind { .. }
            | MeshEvent::NoDeadLetter { .. }
            // Nothing is forbidden here.
            | MeshEvent::Denied(_) => {}
        }
    }

    /// What a node shows of itself when something is wrong.
    pub(crate) fn describe(&self, node: NodeIndex) -> String {
        let host = &self.hosts[node];
        let Some(mesh) = &host.mesh else {
            return format!("node {node} does not run");
        };
        let links: Vec<String> = mesh
            .links()
            .iter()
            .map(|link| {
                let peer = link.node.as_ref().map_or("?", |id| id.as_str()).to_string();
                format!(
                    "{:?} to {peer} {:?} cost {}",
                    link.link, link.state, link.cost
                )
            })
            .collect();
        format!(
            "node {node}: {} LSAs, digest {:x}, links {}",
            mesh.lsdb_len(),
            mesh.lsdb_digest(),
            links.join("; ")
        )
    }
}
