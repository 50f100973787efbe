//! The face of a node: every input, command and getter, and the one ordered output queue.
//!
//! Owns the order of things. An input goes to the half it concerns; then [`Mesh::settle`]
//! carries packets, route changes and room between the halves until nothing moves any more. What
//! delivery sends, writes and acknowledges waits until the queue is polled, so that calls that
//! come together are answered together. Never decides anything itself.

use alloc::boxed::Box;
use alloc::collections::{BTreeMap, VecDeque};
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::time::Duration;

use receptor_proto::frame::Frame;
use receptor_proto::lsa::Capability;
use receptor_proto::packet::{CancelReason, Content, Eof, Message, Piece, Priority};
use receptor_proto::wire::DecodeError;
use receptor_proto::{Directive, ErrorBody, MessageId, NodeId};

use crate::delivery::Delivery;
use crate::policy::Gate;
use crate::router::{Local, Router};
use crate::wiring::Net;
use crate::{
    Adopted, Config, Counters, EchoId, EntryId, Instant, LinkId, LinkInfo, LinkView, LoadToken,
    Loaded, NoSuchWork, NodeView, Output, Payload, PersistToken, Policy, Reachability, Record,
    RouteView, Security, Submission, SubmitError, Taken, WaitingView, WorkView,
};

/// One node.
///
/// After every call that takes `now`, or after several that came together, take everything from
/// [`Mesh::poll_output`], do it in that order, and ask [`Mesh::poll_timeout`] when to call
/// [`Mesh::handle_timeout`]. What several calls ask of the store or owe a peer then goes out as
/// one. `now` must never go back.
#[derive(Debug)]
pub struct Mesh {
    router: Router,
    delivery: Delivery,
    out: VecDeque<Output>,
    /// Of the last input: when everything happens that follows from it.
    now: Instant,
    /// Delivery has heard something since it was last asked what follows.
    is_unanswered: bool,
}

impl Mesh {
    /// A node that starts now with what its store holds, in this order: everything but
    /// [`Record::Outgoing`] in any order, then those, in order of entry. They are taken one by
    /// one; what waits is kept as pages, so that a store that gives them one by one too starts
    /// in little memory. Bodies of outgoing messages may be empty where the store knows the
    /// size: the core fetches them.
    ///
    /// # Panics
    ///
    /// When they come in another order.
    #[must_use]
    pub fn new(config: Config, now: Instant, records: impl IntoIterator<Item = Record>) -> Self {
        Self::start(config, now, records, None)
    }

    /// The same with a certificate: every statement is signed and every packet between two nodes sealed, and nothing
    /// else is believed.
    ///
    /// # Panics
    ///
    /// As [`Self::new`].
    #[must_use]
    pub fn secured(
        config: Config,
        now: Instant,
        records: impl IntoIterator<Item = Record>,
        security: Box<dyn Security>,
    ) -> Self {
        Self::start(config, now, records, Some(security))
    }

    fn start(
        config: Config,
        now: Instant,
        records: impl IntoIterator<Item = Record>,
        security: Option<Box<dyn Security>>,
    ) -> Self {
        let delivery = Delivery::new(&config, now, records, security.is_some());
        Self {
            router: Router::new(config, now, security),
            delivery,
            out: VecDeque::new(),
            now,
            is_unanswered: true,
        }
    }

    /// What the node was made with.
    #[must_use]
    pub fn config(&self) -> &Config {
        self.router.config()
    }

    /// The next thing to do. `None`: nothing until the next input.
    pub fn poll_output(&mut self) -> Option<Output> {
        while self.is_unanswered && self.out.is_empty() {
            self.flush();
        }
        if cfg!(debug_assertions) && self.out.is_empty() {
            self.assert_at_rest();
        }
        self.out.pop_front()
    }

    /// When to call [`Self::handle_timeout`] at the latest. `None`: not before another input.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        Instant::earlier(self.router.poll_timeout(), self.delivery.poll_timeout())
    }

    /// Time has come. Calling it early or twice does no harm.
    pub fn handle_timeout(&mut self, now: Instant) {
        self.router.handle_timeout(now, &mut self.out);
        self.delivery
            .handle_timeout(now, &mut self.router, &mut self.out);
        self.settle(now);
    }

    // Links.

    /// A transport connection stands. The id must be new; one over [`crate::Limits::links`] is
    /// closed at once.
    pub fn handle_link_up(&mut self, now: Instant, link: LinkId, info: LinkInfo) {
        self.router.handle_link_up(now, link, info, &mut self.out);
        self.settle(now);
    }

    /// A frame came. One for a link that the core has closed is ignored.
    pub fn handle_frame(&mut self, now: Instant, link: LinkId, frame: Frame) {
        self.router.handle_frame(now, link, frame, &mut self.out);
        self.settle(now);
    }

    /// Bytes came that are no frame. The peer is told why, and the link closed.
    pub fn handle_bad_frame(&mut self, now: Instant, link: LinkId, error: DecodeError) {
        self.router
            .handle_bad_frame(now, link, &error, &mut self.out);
        self.settle(now);
    }

    /// The transport failed or was closed by the other end; the id is not used again.
    pub fn handle_link_down(&mut self, now: Instant, link: LinkId, reason: ErrorBody) {
        self.router
            .handle_link_down(now, link, reason, &mut self.out);
        self.settle(now);
    }

    /// The link's writer can take this many more bytes: at first its whole capacity, then what
    /// it has written, counted as [`Frame::encoded_len`] counts, every frame included. Bulk
    /// waits for room; hellos, goodbyes, probes, grants and acknowledgements do not and may
    /// overdraw it.
    pub fn handle_room(&mut self, now: Instant, link: LinkId, bytes: usize) {
        self.router.handle_room(link, bytes);
        self.settle(now);
    }

    /// The cost of this side from now on; the other side is told. The higher of both sides' holds
    /// in both directions.
    pub fn set_cost(&mut self, now: Instant, link: LinkId, cost: u32) {
        self.router.set_cost(now, link, cost, &mut self.out);
        self.settle(now);
    }

    /// Closes a link, telling the other end why.
    pub fn close_link(&mut self, now: Instant, link: LinkId, reason: ErrorBody) {
        self.router.close_link(now, link, reason, &mut self.out);
        self.settle(now);
    }

    /// Takes back what this node stated about itself and says goodbye on all links. Links that
    /// come up afterwards are closed again; the store and works are not touched.
    pub fn shutdown(&mut self, now: Instant) {
        self.router.shutdown(now, &mut self.out);
        self.settle(now);
    }

    /// What the [`Security`] believes, or who it says this node is, may be different now: it is asked. Statements of
    /// nodes that are believed no longer are forgotten. It is asked every few seconds in any case.
    pub fn recheck_security(&mut self, now: Instant) {
        self.router.recheck_security(now);
        self.settle(now);
    }

    // What this node advertises.

    /// The plugins that can be used here, in order of name. More than a statement can hold is
    /// cut: first actions, then plugins.
    pub fn set_capabilities(&mut self, now: Instant, plugins: Vec<Capability>) {
        self.router.set_capabilities(now, plugins);
        self.settle(now);
    }

    /// This node's free metadata, for «any» recipients.
    pub fn set_metadata(&mut self, now: Instant, metadata: BTreeMap<String, String>) {
        self.router.set_metadata(now, metadata);
        self.settle(now);
    }

    /// Who may do what here from now on; before the first call everything is permitted. Links that it
    /// does not permit are closed. Of works only those are refused that have not arrived.
    pub fn set_policy(&mut self, now: Instant, policy: Arc<dyn Policy>) {
        let gate = Gate::new(policy);
        self.delivery.set_gate(gate.clone());
        self.router.set_gate(now, gate, &mut self.out);
        self.settle(now);
    }

    // The store.

    /// What [`Output::Persist`] asked for is on the disk.
    pub fn handle_persisted(&mut self, now: Instant, token: PersistToken) {
        self.delivery
            .handle_persisted(now, &mut self.router, token, &mut self.out);
        self.settle(now);
    }

    /// What [`Output::Persist`] asked for could not be written; none of it counts.
    pub fn handle_persist_failed(&mut self, now: Instant, token: PersistToken, error: ErrorBody) {
        self.delivery
            .handle_persist_failed(now, &mut self.router, token, error, &mut self.out);
        self.settle(now);
    }

    /// Answers [`Output::Fetch`].
    pub fn handle_fetched(
        &mut self,
        now: Instant,
        entry: EntryId,
        offset: u64,
        result: Result<Piece, ErrorBody>,
    ) {
        self.delivery
            .handle_fetched(now, &mut self.router, entry, offset, result, &mut self.out);
        self.settle(now);
    }

    /// Answers [`Output::DeadLetter`]: the letter is on the disk, or could not be put there; then
    /// it is asked for a few times more.
    pub fn handle_dead_letter(
        &mut self,
        now: Instant,
        entry: EntryId,
        result: Result<(), ErrorBody>,
    ) {
        self.delivery
            .handle_dead_letter(now, &mut self.router, entry, result, &mut self.out);
        self.settle(now);
    }

    /// Answers [`Output::AskEnd`]: how many responses came of the work, and how it ended, as far as a restart
    /// would know once everything that was asked for before is written. `None`: nothing is remembered of
    /// it, or it was for another node.
    pub fn handle_end(
        &mut self,
        now: Instant,
        recipient: &NodeId,
        place: (u64, u64),
        end: Option<(u64, Eof)>,
    ) {
        self.delivery.handle_end(recipient, place, end);
        self.settle(now);
    }

    /// Answers [`Output::Append`]: the entry now ends at `end`, or could not be written.
    pub fn handle_appended(
        &mut self,
        now: Instant,
        entry: EntryId,
        end: u64,
        result: Result<(), ErrorBody>,
    ) {
        self.delivery
            .handle_appended(now, &mut self.router, entry, end, result, &mut self.out);
        self.settle(now);
    }

    /// Answers [`Output::Load`].
    pub fn handle_loaded(
        &mut self,
        now: Instant,
        token: LoadToken,
        result: Result<Loaded, ErrorBody>,
    ) {
        self.delivery
            .handle_loaded(now, &mut self.router, token, result, &mut self.out);
        self.settle(now);
    }

    /// Right after [`Self::new`]: the store has this much, durably, of the payload of a message
    /// that an earlier start said to [begin](crate::Output::Begin). What is not wanted any more
    /// is removed.
    pub fn restore_partial(
        &mut self,
        now: Instant,
        entry: EntryId,
        origin: &NodeId,
        message: Message,
        written: u64,
    ) {
        self.delivery
            .restore_partial(now, entry, origin, message, written);
    }

    /// Right after [`Self::new`]: the store cannot read a request for a work here any more, and
    /// this seems to have been its origin and its work. That node is told, unless the work is
    /// here nevertheless or has said its last word.
    pub fn restore_damaged(&mut self, now: Instant, origin: &NodeId, work: MessageId) {
        self.delivery.restore_damaged(now, origin, work);
    }

    /// Right after [`Self::new`]: the store cannot read a request of this node any more. It seems
    /// to have had this name and place, and to have been for this work there. It ends, unless it is
    /// here nevertheless; its entry is removed when its sender has taken that.
    pub fn restore_damaged_own(
        &mut self,
        now: Instant,
        entry: EntryId,
        recipient: &NodeId,
        work: MessageId,
        place: (u64, u64),
    ) {
        self.delivery
            .restore_damaged_own(now, entry, recipient, work, place);
    }

    /// A name for a payload that the driver is about to store.
    pub fn new_entry(&mut self) -> EntryId {
        self.delivery.new_entry()
    }

    // Messages and works.

    /// Sends a message. [`Output::Accepted`] follows when it is safe.
    pub fn submit(&mut self, now: Instant, submission: Submission) -> Result<(), SubmitError> {
        let result = self
            .delivery
            .submit(now, &mut self.router, submission, &mut self.out);
        self.settle(now);
        result
    }

    /// Messages of this node to another, or to itself, that the recipient has not confirmed. What
    /// is volatile is accepted at once, so that this alone tells a driver to hold a sender back.
    #[must_use]
    pub fn outstanding(&self, node: &NodeId) -> usize {
        self.delivery.outstanding(node)
    }

    /// Whether a durable message, or one that waits for responses, with this id was sent from
    /// here and has not ended; also when it waits in the store alone. Wrong with a chance of one
    /// in a thousand million for each million of those.
    #[must_use]
    pub fn is_pending(&self, work: MessageId) -> bool {
        self.delivery.is_pending(work)
    }

    /// Whether a message that was sent from here waits in the store alone, behind others to its
    /// recipient. [`Self::waiting`] does not have it. As certain as [`Self::is_pending`].
    #[must_use]
    pub fn waits_in_store(&self, work: MessageId) -> bool {
        self.delivery.waits_in_store(work)
    }

    /// The node that a message to «any» would go to now: the nearest that can be reached, offers
    /// this directive and has all of this metadata.
    #[must_use]
    pub fn resolve(
        &mut self,
        directive: &Directive,
        metadata: &BTreeMap<String, String>,
    ) -> Option<NodeId> {
        self.router.resolve(directive, metadata)
    }

    /// Messages of other nodes that are kept here until there is a way for them, and what they
    /// take of [`crate::Limits::custody_bytes`].
    #[must_use]
    pub fn in_custody(&self) -> (usize, u64) {
        self.delivery.in_custody()
    }

    /// Bytes that the recipient has of the large payload of a work that was sent from here, and
    /// its size; `None` when there is none, or it has arrived.
    #[must_use]
    pub fn sent(&self, work: MessageId) -> Option<(u64, u64)> {
        self.delivery.sent(work)
    }

    /// Bytes that are here of a large response to a work that was sent from here, and its size,
    /// while one comes.
    #[must_use]
    pub fn coming(&self, work: MessageId) -> Option<(u64, u64)> {
        self.delivery.coming(work)
    }

    /// Messages that wait in the store alone, and the bytes of memory that this takes.
    #[must_use]
    pub fn paged(&self) -> (usize, usize) {
        self.delivery.paged()
    }

    /// Asks for the end of a work that was sent from here. For one that waits in the store alone
    /// the end comes when it was read.
    pub fn cancel(
        &mut self,
        now: Instant,
        work: MessageId,
        reason: CancelReason,
    ) -> Result<(), NoSuchWork> {
        let result = self
            .delivery
            .cancel(now, &mut self.router, work, reason, &mut self.out);
        self.settle(now);
        result
    }

    /// Whether the end of a work that was sent from here was asked for, also before the last restart
    /// if its recipient may not have heard of that.
    #[must_use]
    pub fn is_cancelled(&self, work: MessageId) -> bool {
        self.delivery.is_cancelled(work)
    }

    /// Whether what [`Self::cancel`] was asked for is still to come, because the work waits in the store alone.
    #[must_use]
    pub fn is_recalled(&self, work: MessageId) -> bool {
        self.delivery.is_recalled(work)
    }

    /// Gives up what waits here of this work: its request, as [`Self::cancel`] does, or the
    /// responses that its sender has not got, who is told so in their place. What is in custody here
    /// is given up too, and its origin told to do the same.
    pub fn drop_waiting(&mut self, now: Instant, work: MessageId) -> Result<(), NoSuchWork> {
        let result = self
            .delivery
            .drop_waiting(now, &mut self.router, work, &mut self.out);
        self.settle(now);
        result
    }

    /// Messages of this node that their recipients have not confirmed, at most `limit`, and how
    /// many there are.
    #[must_use]
    pub fn waiting(&self, now: Instant, limit: usize) -> (Vec<WaitingView>, u64) {
        self.delivery.waiting(now, limit)
    }

    /// The works that were accepted here and have not finished, oldest first, at most `limit`, and
    /// how many there are.
    #[must_use]
    pub fn works(&self, limit: usize) -> (Vec<WorkView>, u64) {
        self.delivery.works(limit)
    }

    /// One of them.
    #[must_use]
    pub fn work(&self, work: MessageId) -> Option<WorkView> {
        self.delivery.work(work)
    }

    /// Whether the recipient of this request has it; `None`: no such request waits for anything.
    #[must_use]
    pub fn has_arrived(&self, work: MessageId) -> Option<bool> {
        self.delivery.has_arrived(work)
    }

    /// Whether this work is dispatched again after a restart: it is on the disk and has not ended.
    #[must_use]
    pub fn outlives_a_restart(&self, work: MessageId) -> bool {
        self.delivery.outlives_a_restart(work)
    }

    /// The plugin has begun with a dispatched work. With `idempotent` it says that the work may be
    /// run again after a crash of this node: then what is sent of an attempt is on the disk first, so
    /// that what the next one says comes behind all of it.
    pub fn work_started(&mut self, now: Instant, work: MessageId, idempotent: bool) {
        self.delivery
            .work_started(now, &mut self.router, work, idempotent, &mut self.out);
        self.settle(now);
    }

    /// Instead of [`Self::work_started`]: the plugin of a work that was dispatched as a second attempt
    /// still runs, and goes on saying what follows on the response `said` (0: all of it).
    /// `idempotent` as there. No [`Output::Start`] comes.
    ///
    /// # Errors
    ///
    /// When there is no work that waits to be run again.
    pub fn work_adopted(
        &mut self,
        now: Instant,
        work: MessageId,
        idempotent: bool,
        said: u64,
    ) -> Result<Adopted, NoSuchWork> {
        let result = self.delivery.work_adopted(work, idempotent, said);
        self.settle(now);
        result
    }

    /// The plugin has a result.
    pub fn work_data(
        &mut self,
        now: Instant,
        work: MessageId,
        content: Content,
        name: Option<String>,
        payload: Payload,
    ) -> Result<Taken, NoSuchWork> {
        let result = self.delivery.work_data(
            now,
            &mut self.router,
            work,
            content,
            name,
            payload,
            &mut self.out,
        );
        self.settle(now);
        result
    }

    /// The work has ended, with a last result. Gives back the serial that [`Output::ResponsesSafe`] will
    /// have when a restart knows that; `None` if none knows of the work anyway.
    pub fn work_done(
        &mut self,
        now: Instant,
        work: MessageId,
        eof: Eof,
        content: Content,
        payload: Payload,
    ) -> Result<Option<u64>, NoSuchWork> {
        let result = self.delivery.work_done(
            now,
            &mut self.router,
            work,
            eof,
            content,
            payload,
            &mut self.out,
        );
        self.settle(now);
        result
    }

    /// The response with this serial, and those before it, were taken or will never be.
    pub fn consumed(&mut self, now: Instant, work: MessageId, serial: u64) {
        self.delivery
            .consumed(now, &mut self.router, work, serial, &mut self.out);
        self.settle(now);
    }

    /// Asks a node for a sign of life. [`Output::EchoResult`] follows always, at the latest
    /// after `timeout`. With a hop limit of 0 the first node on the way answers, with 1 the
    /// second, and so on; `None` takes [`Config::hop_limit`].
    pub fn echo(
        &mut self,
        now: Instant,
        node: &NodeId,
        hop_limit: Option<u8>,
        timeout: Duration,
    ) -> EchoId {
        let id = self
            .router
            .echo(now, node, hop_limit, timeout, &mut self.out);
        self.settle(now);
        id
    }

    // What this node knows.

    /// Every known node, this one included, in order of id.
    #[must_use]
    pub fn nodes(&self) -> Vec<NodeView> {
        self.router.nodes()
    }

    /// Every link, in order of id.
    #[must_use]
    pub fn links(&self) -> Vec<LinkView> {
        self.router.links()
    }

    /// The way to a node.
    #[must_use]
    pub fn route(&self, node: &NodeId) -> Option<RouteView> {
        self.router.route(node)
    }

    /// Whether there is a way to a node.
    #[must_use]
    pub fn reachability(&self, node: &NodeId) -> Reachability {
        self.router.reachability(node)
    }

    /// Whether a message to `node` may have [`Content::Bundle`]: it says so, or is this node itself.
    pub fn takes_bundles(&mut self, node: &NodeId) -> bool {
        *node == self.router.config().node || self.router.takes_bundles(node)
    }

    /// The link that a packet to `node` would take now.
    #[must_use]
    pub fn next_link(&self, node: &NodeId) -> Option<LinkId> {
        self.router.next_link(node)
    }

    /// Totals since the start.
    #[must_use]
    pub fn counters(&self) -> Counters {
        let mut counters = self.router.counters();
        self.delivery.count(&mut counters);
        counters
    }

    /// Differs, but for chance, between two nodes whose databases differ.
    #[must_use]
    pub fn lsdb_digest(&self) -> u64 {
        self.router.lsdb_digest()
    }

    /// LSAs in the database.
    #[must_use]
    pub fn lsdb_len(&self) -> usize {
        self.router.lsdb_len()
    }

    /// Whether routing is at rest: every link is up, nothing is to be stated or computed, and
    /// everything stated was acknowledged.
    #[must_use]
    pub fn is_quiet(&self) -> bool {
        self.router.is_quiet()
    }

    /// Bytes waiting for a link, by [`Priority`]; what [`LinkView::queued`] sums up.
    #[must_use]
    pub fn queued(&self, link: LinkId) -> [usize; Priority::ALL.len()] {
        self.router.queued(link)
    }

    /// After an input: carries what follows from it between the halves.
    fn settle(&mut self, now: Instant) {
        self.now = now;
        self.is_unanswered = true;
        self.carry();
    }

    /// Lets delivery answer everything that it has heard.
    fn flush(&mut self) {
        self.is_unanswered = false;
        self.delivery
            .flush(self.now, &mut self.router, &mut self.out);
        self.carry();
    }

    /// That another flush would bring nothing is what saves it.
    fn assert_at_rest(&mut self) {
        let deadline = self.delivery.poll_timeout();
        self.flush();
        let rests = self.out.is_empty() && !self.is_unanswered;
        assert!(rests, "not everything was answered: {:?}", self.out);
        assert_eq!(self.delivery.poll_timeout(), deadline);
    }

    /// Carries everything between the halves until nothing moves. Ends because a packet to this
    /// node itself answers nothing that is answered again, and each other turn uses up room.
    fn carry(&mut self) {
        let now = self.now;
        while self.router.is_pending(now) {
            while let Some(local) = self.router.next_local(now, &mut self.out) {
                self.is_unanswered = true;
                match local {
                    Local::Deliver(source, body) => self.delivery.handle_packet(
                        now,
                        &mut self.router,
                        source,
                        body,
                        &mut self.out,
                    ),
                    Local::Stuck(packet, code) => {
                        let message = self.router.keepsake(&packet);
                        let kept = message.is_some_and(|(message, before)| {
                            self.delivery.keep(now, &packet, message, before)
                        });
                        if !kept {
                            self.router.give_back(now, &packet, code);
                        }
                    }
                    Local::OtherStart(source, epoch, seq) => {
                        self.delivery.on_other_start(&source, epoch, seq);
                    }
                    Local::Echo(echo) => {
                        let (active, works) = self.delivery.active_works(now);
                        self.router.answer_echo(echo, active, works);
                    }
                }
            }
            if self.router.update(now, &mut self.out) {
                self.is_unanswered = true;
                self.delivery
                    .handle_routes_changed(now, &mut self.router, &mut self.out);
            }
            if self.router.take_offers_changed() {
                self.is_unanswered = true;
                self.delivery
                    .handle_offers_changed(now, &mut self.router, &mut self.out);
            }
            if self.router.pump(now, &mut self.out) {
                self.is_unanswered = true;
                self.delivery
                    .handle_room(now, &mut self.router, &mut self.out);
            }
        }
    }
}
