//! Delivery: messages, receipts and works.

use alloc::collections::VecDeque;
use alloc::string::String;
use alloc::vec::Vec;

use bytes::Bytes;
use receptor_proto::packet::{ActiveWork, Body, CancelReason, Content, Eof};
use receptor_proto::{ErrorBody, ErrorCode, MessageId, NodeId};

use crate::wiring::Net;
use crate::{
    Config, Counters, EntryId, Instant, NoSuchWork, Output, Payload, PersistToken, Record,
    Submission, SubmitError, WorkRoom,
};

/// Everything about messages of and for this node.
#[derive(Debug)]
pub(crate) struct Delivery {}

type Out = VecDeque<Output>;

#[expect(
    clippy::unused_self,
    clippy::needless_pass_by_value,
    unused_variables,
    reason = "the shape that routing calls; the contents are a change of their own"
)]
impl Delivery {
    pub(crate) fn new(
        config: &Config,
        now: Instant,
        records: impl IntoIterator<Item = Record>,
    ) -> Self {
        Self {}
    }

    pub(crate) fn handle_packet(
        &mut self,
        now: Instant,
        net: &mut dyn Net,
        source: NodeId,
        body: Body,
        out: &mut Out,
    ) {
    }

    pub(crate) fn handle_routes_changed(&mut self, now: Instant, net: &mut dyn Net, out: &mut Out) {
    }

    pub(crate) fn handle_room(&mut self, now: Instant, net: &mut dyn Net, out: &mut Out) {}

    pub(crate) fn handle_timeout(&mut self, now: Instant, net: &mut dyn Net, out: &mut Out) {}

    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        None
    }

    pub(crate) fn active_works(&self, now: Instant) -> (u64, Vec<ActiveWork>) {
        (0, Vec::new())
    }

    pub(crate) fn handle_persisted(
        &mut self,
        now: Instant,
        net: &mut dyn Net,
        token: PersistToken,
        out: &mut Out,
    ) {
    }

    pub(crate) fn handle_persist_failed(
        &mut self,
        now: Instant,
        net: &mut dyn Net,
        token: PersistToken,
        error: ErrorBody,
        out: &mut Out,
    ) {
    }

    pub(crate) fn handle_fetched(
        &mut self,
        now: Instant,
        net: &mut dyn Net,
        entry: EntryId,
        offset: u64,
        result: Result<Bytes, ErrorBody>,
        out: &mut Out,
    ) {
    }

    pub(crate) fn handle_appended(
        &mut self,
        now: Instant,
        net: &mut dyn Net,
        entry: EntryId,
        end: u64,
        result: Result<(), ErrorBody>,
        out: &mut Out,
    ) {
    }

    pub(crate) fn new_entry(&mut self) -> EntryId {
        EntryId(0)
    }

    pub(crate) fn submit(
        &mut self,
        now: Instant,
        net: &mut dyn Net,
        submission: Submission,
        out: &mut Out,
    ) -> Result<(), SubmitError> {
        Err(SubmitError(ErrorBody::new(
            ErrorCode::Busy,
            "this node takes no messages yet",
        )))
    }

    pub(crate) fn cancel(
        &mut self,
        now: Instant,
        net: &mut dyn Net,
        work: MessageId,
        reason: CancelReason,
        out: &mut Out,
    ) -> Result<(), NoSuchWork> {
        Err(NoSuchWork)
    }

    pub(crate) fn work_started(
        &mut self,
        now: Instant,
        net: &mut dyn Net,
        work: MessageId,
        out: &mut Out,
    ) {
    }

    #[expect(clippy::too_many_arguments, reason = "mirrors the public method")]
    pub(crate) fn work_data(
        &mut self,
        now: Instant,
        net: &mut dyn Net,
        work: MessageId,
        content: Content,
        name: Option<String>,
        payload: Payload,
        out: &mut Out,
    ) -> Result<WorkRoom, NoSuchWork> {
        Err(NoSuchWork)
    }

    #[expect(clippy::too_many_arguments, reason = "mirrors the public method")]
    pub(crate) fn work_done(
        &mut self,
        now: Instant,
        net: &mut dyn Net,
        work: MessageId,
        eof: Eof,
        content: Content,
        payload: Payload,
        out: &mut Out,
    ) -> Result<(), NoSuchWork> {
        Err(NoSuchWork)
    }

    pub(crate) fn consumed(
        &mut self,
        now: Instant,
        net: &mut dyn Net,
        work: MessageId,
        serial: u64,
        out: &mut Out,
    ) {
    }

    /// Adds what this half counts.
    pub(crate) fn count(&self, counters: &mut Counters) {}
}
