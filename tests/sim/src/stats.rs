//! What a run cost: frames and bytes by type, and what the cores counted.

use std::time::Duration;

use nix::time::{ClockId, clock_gettime};

use receptor_mesh::{Counters, Mesh};
use receptor_proto::frame::Frame;

/// The frame types, in order of their numbers.
pub const TYPES: [&str; 11] = [
    "hello",
    "goodbye",
    "probe",
    "probe reply",
    "digest",
    "summary",
    "LSAs",
    "LSA ack",
    "credit",
    "packet",
    "unknown",
];

/// Totals of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Stats {
    /// Events handled.
    pub events: u64,
    /// Frames sent, by type.
    pub frames: [u64; TYPES.len()],
    /// Bytes sent, by type.
    pub bytes: [u64; TYPES.len()],
    /// The most outputs that one input caused.
    pub outputs_max: usize,
    /// Shortest-path computations.
    pub spf_runs: u64,
    /// LSAs sent and received, and how many of these were news.
    pub lsas_sent: u64,
    /// See above.
    pub lsas_received: u64,
    /// See above.
    pub lsas_new: u64,
    /// Messages sent again.
    pub retransmitted: u64,
    /// Messages that came again and were recognised.
    pub duplicates: u64,
    /// Statements and packets that were refused because they prove nothing.
    pub unproved: u64,
    /// Frames that traitors tampered with.
    pub tampered: u64,
    /// Packets dropped on their way, for any reason.
    pub dropped: u64,
    /// Submissions refused.
    pub refused: u64,
    /// Messages given up by their origin.
    pub given_up: u64,
    /// Pages of waiting messages that were loaded.
    pub loads: u64,
    /// Messages that nodes on their way kept.
    pub kept: u64,
    /// Times that a plugin was told to wait.
    pub held: u64,
    /// Works that went on behind a restart of their node.
    pub adopted: u64,
    /// Echoes answered.
    pub echoes_answered: u64,
    /// Echoes that came to nothing.
    pub echoes_failed: u64,
    /// Things that peers got wrong.
    pub peer_mistakes: u64,
    /// Times that somebody saw two nodes with one id.
    pub duplicate_ids: u64,
}

impl Stats {
    pub(crate) fn frame(&mut self, frame: &Frame, size: u64) {
        let index = match frame {
            Frame::Hello(_) => 0,
            Frame::Goodbye(_) => 1,
            Frame::Probe { .. } => 2,
            Frame::ProbeReply { .. } => 3,
            Frame::Digest { .. } => 4,
            Frame::Summary { .. } => 5,
            Frame::Lsas(_) => 6,
            Frame::LsaAck(_) => 7,
            Frame::Credit { .. } => 8,
            Frame::Packet(_) => 9,
            Frame::Cost { .. } | Frame::Unknown { .. } => 10,
        };
        self.frames[index] += 1;
        self.bytes[index] += size;
    }

    /// Frames that are not there to see whether a neighbor lives.
    #[must_use]
    pub fn working_frames(&self) -> u64 {
        self.frames.iter().sum::<u64>() - self.frames[2] - self.frames[3]
    }

    /// Frames and bytes of routing: all but hellos, probes, credit and packets.
    #[must_use]
    pub fn routing(&self) -> (u64, u64) {
        let sum = |of: &[u64; TYPES.len()]| of[4..=7].iter().sum();
        (sum(&self.frames), sum(&self.bytes))
    }

    /// What happened since `earlier`.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Self {
        let each = |a: &[u64; TYPES.len()], b: &[u64; TYPES.len()]| {
            std::array::from_fn(|index| a[index] - b[index])
        };
        Self {
            events: self.events - earlier.events,
            frames: each(&self.frames, &earlier.frames),
            bytes: each(&self.bytes, &earlier.bytes),
            outputs_max: self.outputs_max,
            spf_runs: self.spf_runs - earlier.spf_runs,
            lsas_sent: self.lsas_sent - earlier.lsas_sent,
            lsas_received: self.lsas_received - earlier.lsas_received,
            lsas_new: self.lsas_new - earlier.lsas_new,
            retransmitted: self.retransmitted - earlier.retransmitted,
            duplicates: self.duplicates - earlier.duplicates,
            unproved: self.unproved - earlier.unproved,
            tampered: self.tampered - earlier.tampered,
            dropped: self.dropped - earlier.dropped,
            refused: self.refused - earlier.refused,
            given_up: self.given_up - earlier.given_up,
            loads: self.loads - earlier.loads,
            kept: self.kept - earlier.kept,
            held: self.held - earlier.held,
            adopted: self.adopted - earlier.adopted,
            echoes_answered: self.echoes_answered - earlier.echoes_answered,
            echoes_failed: self.echoes_failed - earlier.echoes_failed,
            peer_mistakes: self.peer_mistakes - earlier.peer_mistakes,
            duplicate_ids: self.duplicate_ids - earlier.duplicate_ids,
        }
    }

    /// Takes over what `ended` counted in processes that are gone.
    pub(crate) fn restart_counters(&mut self, ended: &Self) {
        self.spf_runs = ended.spf_runs;
        self.lsas_sent = ended.lsas_sent;
        self.lsas_received = ended.lsas_received;
        self.lsas_new = ended.lsas_new;
        self.retransmitted = ended.retransmitted;
        self.duplicates = ended.duplicates;
        self.unproved = ended.unproved;
        self.dropped = ended.dropped;
    }

    pub(crate) fn add_counters(&mut self, counters: &Counters) {
        self.spf_runs += counters.spf_runs;
        self.lsas_sent += counters.lsas_sent;
        self.lsas_received += counters.lsas_received;
        self.lsas_new += counters.lsas_new;
        self.retransmitted += counters.retransmitted;
        self.duplicates += counters.duplicates;
        self.unproved += counters.unproved;
        self.dropped +=
            counters.dropped_no_route + counters.dropped_hop_limit + counters.dropped_queue_full;
    }
}

/// Processor time of this thread: other work on the machine does not count.
pub(crate) fn cpu_time() -> Duration {
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).map_or(Duration::ZERO, Duration::from)
}

/// Measures how long the core takes where it computes routes. It changes nothing in a run and is
/// used for reports only.
#[derive(Debug, Default)]
pub struct SpfClock {
    /// Computations measured.
    pub runs: u64,
    /// Their time in all.
    pub total: Duration,
    /// The longest call with one.
    pub longest: Duration,
}

impl SpfClock {
    pub(crate) fn measure(&mut self, mesh: &mut Mesh, call: impl FnOnce(&mut Mesh)) {
        let before = mesh.counters().spf_runs;
        let start = cpu_time();
        call(mesh);
        let took = cpu_time().saturating_sub(start);
        let runs = mesh.counters().spf_runs - before;
        if runs > 0 {
            self.runs += runs;
            self.total += took;
            self.longest = self.longest.max(took);
        }
    }
}
