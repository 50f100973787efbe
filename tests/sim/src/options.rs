//! What a run is made of: one plain struct, the same from a test, a command line and a line of
//! `seeds.txt`.
//!
//! Owns the defaults and the way back from a value to the command line that makes it. Must
//! never hold anything that is not on that command line: a run is its options.

use std::fmt;
use std::str::FromStr;

use clap::{Args, Parser, ValueEnum};
use fastrand::Rng;

use crate::random::{Stream, stream};

/// The most nodes in one line or circle: a packet passes through 30 nodes at most.
const LINE_MAX: usize = 25;

/// An inclusive range, written `LOW..HIGH` or as one number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span {
    /// The lowest value.
    pub low: u64,
    /// The highest value.
    pub high: u64,
}

impl Span {
    /// `low..high`, both included.
    #[must_use]
    pub const fn new(low: u64, high: u64) -> Self {
        Self { low, high }
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}..{}", self.low, self.high)
    }
}

impl FromStr for Span {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let number = |text: &str| text.parse::<u64>().map_err(|error| error.to_string());
        let span = match text.split_once("..") {
            Some((low, high)) => Self::new(number(low)?, number(high.trim_start_matches('='))?),
            None => Self::new(number(text)?, number(text)?),
        };
        if span.low > span.high {
            return Err(format!("{text}: the first number is the lower one"));
        }
        Ok(span)
    }
}

/// How the routers are wired.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Topology {
    /// A random tree and random links on top, up to the wanted degree.
    Random,
    /// One circle.
    Ring,
    /// One line.
    Chain,
    /// The first router in the middle of all others.
    Star,
    /// Rows and columns.
    Grid,
}

/// How faithfully a connection carries frames.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Transport {
    /// As TCP does: in order and whole until the connection breaks; loss is delay.
    Tcp,
    /// Harsher than any real link: routing frames are lost, doubled and overtake each other.
    Datagram,
}

/// What a node's store keeps over a crash.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum StoreKind {
    /// Everything that was confirmed, and any prefix of what was not.
    Disk,
    /// Nothing. What is promised then is told in the module `ledger`.
    Memory,
}

fn word<T: ValueEnum>(value: &T) -> String {
    value
        .to_possible_value()
        .map_or_else(String::new, |value| value.get_name().to_string())
}

macro_rules! show_as_word {
    ($($name:ident),*) => {
        $(impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&word(self))
            }
        })*
    };
}
show_as_word!(Topology, Transport, StoreKind);

macro_rules! options {
    ($($(#[doc = $doc:literal])* $name:ident: $type:ty = $default:expr;)*) => {
        /// Everything that makes a run. Rates are events a simulated second in the whole mesh,
        /// shares are between 0 and 1.
        #[derive(Debug, Clone, PartialEq, Args)]
        pub struct Options {
            $($(#[doc = $doc])* #[arg(long, default_value_t = $default)] pub $name: $type,)*
        }

        impl Default for Options {
            fn default() -> Self {
                Self { $($name: $default,)* }
            }
        }

        impl Options {
            /// The arguments that make this run, those that are as by default left out, the
            /// seed first and always there.
            #[must_use]
            pub fn arguments(&self) -> String {
                let default = Self { seed: self.seed.wrapping_add(1), ..Self::default() };
                let mut line = String::new();
                $(if self.$name != default.$name {
                    let name = stringify!($name).replace('_', "-");
                    line.push_str(&format!(" --{name} {}", self.$name));
                })*
                line.trim_start().to_string()
            }

            /// Takes those options from `other` whose names, as on the command line, are given.
            pub fn take(&mut self, other: &Self, given: impl Fn(&str) -> bool) {
                $(if given(stringify!($name)) {
                    self.$name = other.$name;
                })*
            }
        }
    };
}

options! {
    /// Everything random comes from this number.
    seed: u64 = 1;
    /// How many nodes.
    nodes: usize = 10;
    /// How the routers are wired.
    topology: Topology = Topology::Random;
    /// Links of a router, on average (random topology only).
    degree: f64 = 3.0;
    /// Share of nodes that are leaves; each hangs on one or two routers.
    leaves: f64 = 0.0;
    /// Share of neighbors with a second link between them.
    double_links: f64 = 0.0;
    /// Link costs are drawn from this range, by each side on its own.
    cost: Span = Span::new(1, 10);
    /// One-way latency of a link, in milliseconds; drawn once a link.
    latency_ms: Span = Span::new(1, 20);
    /// Bytes a second in each direction of a link; 0: no limit.
    bandwidth: u64 = 0;
    /// Bytes that a connection takes in flight.
    socket_buffer: u64 = 262_144;
    /// How faithfully connections carry frames.
    transport: Transport = Transport::Tcp;
    /// Share of frames lost: late on tcp, gone on datagram.
    loss: f64 = 0.0;
    /// Share of routing frames that arrive twice (datagram only).
    duplication: f64 = 0.0;
    /// Share of frames that are overtaken (datagram only).
    reorder: f64 = 0.0;
    /// Share of frames that meet a delay spike.
    spikes: f64 = 0.0;
    /// How long a delay spike is, in milliseconds.
    spike_ms: Span = Span::new(100, 3000);
    /// Connections broken; the link comes back after a while.
    flaps: f64 = 0.0;
    /// Links that swallow everything, in both directions, without breaking.
    black_holes: f64 = 0.0;
    /// Links that swallow everything in one direction.
    one_way: f64 = 0.0;
    /// How long a link or node stays as a fault left it, in milliseconds.
    outage_ms: Span = Span::new(100, 8000);
    /// Processes killed and started again; their connections break at once.
    crashes: f64 = 0.0;
    /// Machines that lose power and come back; nobody is told.
    power_cuts: f64 = 0.0;
    /// Share of crashes and power cuts that lose the data directory too.
    data_loss: f64 = 0.0;
    /// Share of crashes and power cuts after which the wall clock is set back an hour.
    clock_back: f64 = 0.3;
    /// Processes stopped for a while, as by SIGSTOP.
    freezes: f64 = 0.0;
    /// Nodes whose capabilities, metadata or costs change.
    changes: f64 = 0.0;
    /// Orderly stops with a goodbye, and starts again.
    shutdowns: f64 = 0.0;
    /// Share of crashes and stops over which the plugins of a node go on.
    outlive: f64 = 0.0;
    /// Share of links that stay cut when everything else heals, so that the mesh may fall apart.
    cut: f64 = 0.0;
    /// Nodes that go down for good when all trouble ends.
    gone: usize = 0;
    /// Second nodes with the id of another, each with a link of its own, until all trouble ends.
    clones: usize = 0;
    /// Neighbors that send garbage: mutated, well-formed and meaningless frames.
    hostile: usize = 0;
    /// Whether the nodes have certificates, and whether payloads are hidden from those on their way.
    certificates: Certificates = Certificates::Off;
    /// Routers that change, redirect, repeat and forge what they pass on, until all trouble ends. Only where nodes
    /// have certificates.
    traitors: usize = 0;
    /// What a node's store keeps over a crash.
    store: StoreKind = StoreKind::Disk;
    /// How long a write takes, in milliseconds.
    persist_ms: Span = Span::new(0, 8);
    /// Share of writes that fail.
    disk_faults: f64 = 0.0;
    /// Messages that clients send, from the fault phase's start to its end.
    rate: f64 = 0.0;
    /// Size of a payload, in bytes.
    payload: Span = Span::new(0, 3000);
    /// Share of payloads that are large.
    large: f64 = 0.0;
    /// Size of a large payload, in bytes.
    large_payload: Span = Span::new(60_000, 600_000);
    /// Share of messages that are volatile.
    volatile: f64 = 0.0;
    /// Share of messages whose sender cancels them.
    cancel: f64 = 0.0;
    /// Share of messages to any node that has the plugin.
    any: f64 = 0.0;
    /// Share of messages without responses.
    forget: f64 = 0.0;
    /// Share of messages to a node that does not exist.
    nobody: f64 = 0.0;
    /// How long a message is worth delivering, in milliseconds.
    expiry_ms: Span = Span::new(600_000, 600_000);
    /// Responses of a work before its last one.
    responses: Span = Span::new(0, 5);
    /// How long a work takes from one step to the next, in milliseconds.
    work_ms: Span = Span::new(0, 40);
    /// Share of works that take a hundred times as long.
    slow_works: f64 = 0.0;
    /// Share of responses that a client leaves lying for seconds.
    stalls: f64 = 0.0;
    /// Echoes sent by clients.
    echoes: f64 = 0.0;
    /// Simulated seconds with faults and traffic.
    duration_s: f64 = 20.0;
    /// Simulated seconds after which everything must have come right.
    converge_s: f64 = 60.0;
    /// Hold time of every node, in milliseconds.
    hold_ms: u64 = 4000;
    /// The limits of every node.
    bounds: Bounds = Bounds::Default;
    /// Requests to one recipient that a node keeps in memory, of each size class.
    window: usize = 8192;
    /// Requests in one page of those that wait in the store.
    page: usize = 1000;
    /// Messages that a node keeps for one recipient while it cannot pass them on.
    custody: usize = 1000;
    /// Messages that a node keeps for others to take.
    room: usize = 1_000_000;
    /// When a sender cancels, in milliseconds after it sent.
    cancel_ms: Span = Span::new(0, 3000);
    /// Share of messages with a key: their clients ask again until they know what became of them.
    keys: f64 = 0.0;
    /// Share of messages whose action may be run again after a crash.
    idempotent: f64 = 0.0;
    /// Share of messages that an operator drops somewhere on their way.
    drops: f64 = 0.0;
    /// Nodes whose disk fails altogether, until it is mended or the node is restarted.
    disk_outages: f64 = 0.0;
    /// Share of stored requests, and of parts of large payloads, that a disk damages.
    damage: f64 = 0.0;
    /// Whether frames cross links as bytes; off, nodes share what they send, which is faster.
    codec: Codec = Codec::On;
}

/// Whether frames are really encoded and decoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Codec {
    /// Encoded, split and decoded on each link.
    On,
    /// Encoded for its size only; the receiver gets the sender's value.
    Off,
}

/// What nodes can prove.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Certificates {
    /// Nothing.
    Off,
    /// Who they are, with payloads sealed.
    Hidden,
    /// Who they are, with payloads that everybody can read.
    Shown,
}

/// The limits of every node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Bounds {
    /// As shipped.
    Default,
    /// A few messages fill them.
    Tight,
}
show_as_word!(Codec, Bounds, Certificates);

impl Options {
    /// Whether disks fail or damage what is on them.
    pub(crate) fn breaks_disks(&self) -> bool {
        self.disk_faults > 0.0 || self.disk_outages > 0.0 || self.damage > 0.0
    }

    /// The run of a seed when nobody says more: a random half of all that can go wrong, each at
    /// a random rate. Different seeds meet different mixtures; mixtures of everything hide what
    /// only a few faults together bring out.
    #[must_use]
    pub fn drawn(seed: u64, nodes: usize) -> Self {
        let rng = &mut stream(seed, Stream::Options);
        #[expect(clippy::cast_precision_loss, reason = "counts of nodes are small")]
        let scale = nodes as f64 / 10.0;
        let some = |rng: &mut Rng, most: f64| {
            let rate = (rng.f64() * most * 1000.0).round() / 1000.0;
            if rng.bool() { rate } else { 0.0 }
        };
        let degree = 2.0 + rng.f64() * 3.0;
        let topology = [
            Topology::Random,
            Topology::Random,
            Topology::Random,
            Topology::Ring,
            Topology::Chain,
            Topology::Star,
            Topology::Grid,
        ][rng.usize(0..7)];
        let long = matches!(topology, Topology::Ring | Topology::Chain) && nodes > LINE_MAX;
        let drawn = Self {
            seed,
            nodes,
            topology: if long { Topology::Random } else { topology },
            degree: (degree * 10.0).round() / 10.0,
            leaves: some(rng, 0.5),
            double_links: some(rng, 0.4),
            bandwidth: if rng.u8(0..4) == 0 { 2_000_000 } else { 0 },
            transport: if rng.u8(0..4) == 0 {
                Transport::Datagram
            } else {
                Transport::Tcp
            },
            loss: some(rng, 0.05),
            duplication: some(rng, 0.05),
            reorder: some(rng, 0.1),
            spikes: some(rng, 0.01),
            flaps: some(rng, scale),
            black_holes: some(rng, 0.3 * scale),
            one_way: some(rng, 0.3 * scale),
            crashes: some(rng, 0.4 * scale),
            power_cuts: some(rng, 0.3 * scale),
            data_loss: if rng.u8(0..4) == 0 { 0.3 } else { 0.0 },
            freezes: some(rng, 0.3 * scale),
            changes: some(rng, scale),
            shutdowns: some(rng, 0.2 * scale),
            cut: if rng.u8(0..6) == 0 { 0.15 } else { 0.0 },
            clones: usize::from(rng.u8(0..10) == 0),
            hostile: usize::from(rng.u8(0..6) == 0),
            store: if rng.u8(0..6) == 0 {
                StoreKind::Memory
            } else {
                StoreKind::Disk
            },
            disk_faults: if rng.u8(0..6) == 0 { 0.02 } else { 0.0 },
            rate: if rng.u8(0..6) == 0 {
                0.0
            } else {
                ((1.0 + rng.f64() * 9.0) * scale).round()
            },
            large: some(rng, 0.1),
            volatile: some(rng, 0.3),
            cancel: some(rng, 0.2),
            any: some(rng, 0.3),
            forget: some(rng, 0.2),
            nobody: some(rng, 0.1),
            expiry_ms: if rng.u8(0..5) == 0 {
                Span::new(500, 10_000)
            } else {
                Span::new(600_000, 600_000)
            },
            slow_works: some(rng, 0.05),
            stalls: some(rng, 0.3),
            echoes: some(rng, 4.0 * scale),
            bounds: if rng.u8(0..3) == 0 {
                Bounds::Tight
            } else {
                Bounds::Default
            },
            window: if rng.bool() { rng.usize(1..9) } else { 8192 },
            page: rng.usize(1..9),
            room: if rng.u8(0..8) == 0 {
                rng.usize(4..40)
            } else {
                1_000_000
            },
            cancel_ms: [
                Span::new(0, 0),
                Span::new(0, 20),
                Span::new(0, 300),
                Span::new(0, 3000),
                Span::new(0, 30_000),
            ][rng.usize(0..5)],
            keys: some(rng, 0.5),
            idempotent: some(rng, 0.5),
            drops: some(rng, 0.1),
            disk_outages: if rng.u8(0..6) == 0 { 0.1 * scale } else { 0.0 },
            damage: if rng.u8(0..8) == 0 { 0.05 } else { 0.0 },
            ..Self::default()
        };
        let certificates = match rng.u8(0..6) {
            0 => Certificates::Hidden,
            1 => Certificates::Shown,
            _ => Certificates::Off,
        };
        let traitors = match certificates {
            Certificates::Off => 0,
            Certificates::Hidden | Certificates::Shown => rng.usize(0..2),
        };
        Self {
            certificates,
            traitors,
            outlive: some(rng, 1.0),
            ..drawn
        }
    }
}

#[derive(Parser)]
struct Line {
    #[command(flatten)]
    options: Options,
}

impl FromStr for Options {
    type Err = String;

    /// Reads what [`Options::arguments`] writes.
    fn from_str(line: &str) -> Result<Self, String> {
        let words = std::iter::once("sim").chain(line.split_whitespace());
        let line = Line::try_parse_from(words).map_err(|error| error.to_string())?;
        Ok(line.options)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_make_the_same_options() {
        let options = Options {
            seed: 77,
            nodes: 3,
            topology: Topology::Grid,
            transport: Transport::Datagram,
            loss: 0.25,
            spike_ms: Span::new(5, 9),
            double_links: 1.0,
            codec: Codec::Off,
            ..Options::default()
        };
        assert_eq!(options.arguments().parse(), Ok(options));
        assert_eq!(Options::default().arguments(), "--seed 1");
        assert_eq!("".parse(), Ok(Options::default()));
    }

    #[test]
    fn spans_are_checked() {
        assert_eq!("3".parse(), Ok(Span::new(3, 3)));
        assert_eq!("3..=5".parse(), Ok(Span::new(3, 5)));
        assert!("5..3".parse::<Span>().is_err());
        assert!("x".parse::<Span>().is_err());
    }
}
