//! What a client and its daemon say to each other on the control socket.
//!
//! The server greets with [`greeting`]. A client sends one command a line: a JSON object with
//! `"command"`, or plain words. Every reply is one JSON line, or a stream of them that ends
//! with `"eof": true`. Raw payload bytes may follow a line whose `"size"` counts them, in either
//! direction. The commands `ping`, `traceroute`, `status` and `reload` answer with the keys that clients of
//! the Go Receptor 1.x read (`Success`, `NodeID`, …) and with keys of our own beside them; the
//! others are ours. Fields are only ever added.
//!
//! A command with a `"tag"` may run beside others of its connection; every line of its
//! reply carries the tag. Commands without one are answered in order, one after the other.

use alloc::borrow::Cow;
use alloc::boxed::Box;
use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::value::RawValue;

use crate::directive::Directive;
use crate::error::ErrorBody;
use crate::id::{IdPrefix, MessageId, NodeId};
use crate::lsa::Capability;
use crate::packet::{ActiveWork, Content};

/// The longest line either side sends, in bytes with its newline; larger payloads follow as
/// raw bytes.
pub const LINE_MAX: usize = 1 << 20;
/// The longest tag, in bytes of JSON.
pub const TAG_MAX: usize = 64;
/// The longest key of a send, in bytes.
pub const KEY_MAX: usize = 256;
/// Version of this protocol; grows when something is added.
pub const VERSION: u32 = 1;

/// The namespace of [`keyed_id`].
const KEY_NAMESPACE: uuid::Uuid = uuid::uuid!("6f0b3d0e-6a5c-4c55-9d43-2f6f7a1c5e1b");

/// The id of the message that was sent with this key at this node: the UUID of version 5 of the
/// key in the namespace that is the UUID of version 5 of the node's id in a namespace of our own.
#[must_use]
pub fn keyed_id(node: &NodeId, key: &str) -> MessageId {
    let node = uuid::Uuid::new_v5(&KEY_NAMESPACE, node.as_str().as_bytes());
    MessageId::from_u128(uuid::Uuid::new_v5(&node, key.as_bytes()).as_u128())
}

/// The first line of a server.
#[must_use]
pub fn greeting(node: &NodeId) -> String {
    format!("Receptor Control, node {node}\n")
}

/// The node id in a server's first line.
#[must_use]
pub fn parse_greeting(line: &str) -> Option<NodeId> {
    line.trim_end()
        .strip_prefix("Receptor Control, node ")?
        .parse()
        .ok()
}

/// What every JSON command has.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Envelope {
    /// Which command.
    pub command: String,
    /// A string or number that comes back in every line of the reply.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tag: Option<Box<RawValue>>,
}

/// `{"command":"ping","target":"node-b"}`: one echo.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct PingCommand {
    /// Whom to ask.
    pub target: String,
    /// How long to wait, in milliseconds; 10,000 when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout_ms: Option<u64>,
}

/// The answer to `ping`, and one hop of `traceroute`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct PingReply {
    /// Whether the target answered.
    #[serde(rename = "Success")]
    pub success: bool,
    /// Who answered.
    #[serde(rename = "From", default, skip_serializing_if = "Option::is_none")]
    pub from: Option<NodeId>,
    /// There and back, in nanoseconds.
    #[serde(rename = "Time", default)]
    pub time_ns: u64,
    /// The same, for people.
    #[serde(rename = "TimeStr", default)]
    pub time_text: String,
    /// Why not, for people.
    #[serde(rename = "Error", default, skip_serializing_if = "Option::is_none")]
    pub error_text: Option<String>,
    /// Why not, for programs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<ErrorBody>,
    /// Links between here and there.
    #[serde(default)]
    pub hops: u8,
    /// How many works the answering node has accepted and not finished.
    #[serde(default)]
    pub active: u64,
    /// Some of them.
    #[serde(default)]
    pub works: Vec<ActiveWork>,
}

/// `{"command":"traceroute","target":"node-b"}`. The answer is an object of [`PingReply`]s with
/// the keys `"0"`, `"1"`, …; with `"stream": true` one [`TraceHop`] line a hop as it comes.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct TracerouteCommand {
    /// Where to.
    pub target: String,
    /// One line a hop.
    #[serde(default)]
    pub stream: bool,
    /// How long to wait for each hop, in milliseconds; 10,000 when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout_ms: Option<u64>,
}

/// One line of a streamed traceroute.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct TraceHop {
    /// 1 for the first neighbor; the key `"0"` of the other form is this node itself.
    pub hop: u8,
    /// What the hop answered.
    #[serde(flatten)]
    pub reply: PingReply,
    /// This is the last one: the target, or where the way ends.
    #[serde(default)]
    pub eof: bool,
}

/// `{"command":"status"}`.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct StatusCommand {
    /// Only these top-level keys; unknown ones are left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub requested_fields: Option<Vec<String>>,
}

/// The answer to `status`: the keys of Go Receptor, and ours below `receptor`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct StatusReply {
    /// This node.
    #[serde(rename = "NodeID")]
    pub node_id: NodeId,
    /// Version of the daemon.
    #[serde(rename = "Version")]
    pub version: String,
    /// Cores of this host.
    #[serde(rename = "SystemCPUCount")]
    pub cpu_count: u64,
    /// Memory of this host, in MiB.
    #[serde(rename = "SystemMemoryMiB")]
    pub memory_mib: u64,
    /// Neighbors.
    #[serde(rename = "Connections", default)]
    pub connections: Vec<GoConnection>,
    /// Next hop by destination.
    #[serde(rename = "RoutingTable", default)]
    pub routing_table: BTreeMap<NodeId, NodeId>,
    /// What nodes can do, in Go Receptor's form.
    #[serde(rename = "Advertisements", default)]
    pub advertisements: Vec<GoAdvertisement>,
    /// Costs of all adjacencies.
    #[serde(rename = "KnownConnectionCosts", default)]
    pub known_connection_costs: BTreeMap<NodeId, BTreeMap<NodeId, f64>>,
    /// Everything else.
    pub receptor: Status,
}

/// A neighbor in Go Receptor's form.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct GoConnection {
    /// Who.
    #[serde(rename = "NodeID")]
    pub node_id: NodeId,
    /// At what cost.
    #[serde(rename = "Cost")]
    pub cost: f64,
}

/// A service in Go Receptor's form: our nodes show their control service.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct GoAdvertisement {
    /// Who.
    #[serde(rename = "NodeID")]
    pub node_id: NodeId,
    /// Always `control`.
    #[serde(rename = "Service")]
    pub service: String,
    /// When it was last heard of, RFC 3339.
    #[serde(rename = "Time")]
    pub time: String,
    /// 1: stream.
    #[serde(rename = "ConnType")]
    pub conn_type: u8,
    /// Free metadata.
    #[serde(rename = "Tags")]
    pub tags: Option<BTreeMap<String, String>>,
    /// Directives as work types.
    #[serde(rename = "WorkCommands")]
    pub work_commands: Option<Vec<GoWorkCommand>>,
}

/// A directive in Go Receptor's form.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct GoWorkCommand {
    /// `plugin:action`.
    #[serde(rename = "WorkType")]
    pub work_type: String,
    /// Always false: work is not signed by its sender's own key.
    #[serde(rename = "Secure")]
    pub secure: bool,
}

/// The one-look answer.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Status {
    /// This node.
    pub node: NodeId,
    /// Version of the daemon.
    pub version: String,
    /// Version of the control protocol.
    pub control: u32,
    /// Its process id.
    pub pid: u32,
    /// How long it runs, in milliseconds.
    pub uptime_ms: u64,
    /// Whether it forwards for others.
    pub router: bool,
    /// Its data directory.
    pub data_dir: String,
    /// URLs it listens on.
    pub listeners: Vec<String>,
    /// Neighbors that are up, and configured peers that are not.
    pub peers: Vec<PeerStatus>,
    /// Nodes that can be reached, this one included.
    pub nodes_reachable: u64,
    /// Nodes that are known, this one included.
    pub nodes_known: u64,
    /// Works accepted here and not finished.
    pub works_active: u64,
    /// Messages and payload bytes that wait here.
    pub spool: SpoolStatus,
    /// Plugins installed here.
    pub plugins: Vec<PluginStatus>,
    /// Clients connected to the control socket.
    pub clients: u64,
    /// Whether links are encrypted and LSAs signed: `none` or `tls`.
    pub security: String,
    /// Payloads and responses that this node sends can be read by their recipients alone.
    #[serde(default)]
    pub sealed: bool,
    /// This node's certificate, with TLS.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub certificate: Option<CertificateStatus>,
    /// Things that an operator should look at, one sentence each.
    pub warnings: Vec<String>,
    /// Totals since the daemon was started.
    #[serde(default)]
    pub counters: CounterStatus,
}

/// The certificate that a node presents, in [`Status`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CertificateStatus {
    /// The nodes that it is for.
    pub node_ids: Vec<NodeId>,
    /// Who issued it.
    pub issuer: String,
    /// Its SHA-256, 64 hexadecimal digits.
    pub fingerprint: String,
    /// When it, or the first of those that it rests on, expires, in seconds since 1970.
    pub expires: u64,
    /// The same in words: `2027-01-31T12:00:00Z`.
    pub expires_at: String,
}

/// What a node has counted since its start, in [`Status`]. Totals only grow, but for the last two,
/// which are as of now.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct CounterStatus {
    /// Packets passed on for other nodes.
    pub forwarded: u64,
    /// Packets dropped because there was no way to their destination.
    pub dropped_no_route: u64,
    /// Packets dropped because they had passed too many nodes.
    pub dropped_hop_limit: u64,
    /// Packets dropped because the queue of their link was full.
    pub dropped_queue_full: u64,
    /// Frames and packets of a kind that this version does not know.
    pub unknown: u64,
    /// Things that peers got wrong.
    pub peer_mistakes: u64,
    /// Statements and packets that were refused because they do not prove whose they are; with TLS.
    #[serde(default)]
    pub unproved: u64,
    /// Messages of this node that were sent again.
    pub resent: u64,
    /// Messages that came again and were recognised.
    pub duplicates: u64,
    /// Responses that nobody here waits for.
    pub orphans: u64,
    /// Link-state statements sent to neighbors.
    pub lsas_sent: u64,
    /// Link-state statements received.
    pub lsas_received: u64,
    /// How many of those were news.
    pub lsas_new: u64,
    /// Shortest-path computations.
    pub spf_runs: u64,
    /// Link-state statements held now.
    pub lsas_held: u64,
    /// Bytes that wait for a link now, in all.
    pub queued_bytes: u64,
}

/// A neighbor or configured peer in [`Status`].
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct PeerStatus {
    /// Who, when it is known.
    pub node: Option<NodeId>,
    /// Where it leads or comes from.
    pub address: String,
    /// `up`, `opening`, `connecting` or `waiting`.
    pub state: String,
    /// Cost of the link.
    pub cost: u32,
    /// Round-trip time in microseconds, when measured.
    pub rtt_us: Option<u64>,
    /// Why it is not up, when it is not.
    pub error: Option<ErrorBody>,
}

/// What waits in the spool.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct SpoolStatus {
    /// Messages.
    pub entries: u64,
    /// Bytes.
    pub bytes: u64,
    /// The limit in bytes.
    pub max_bytes: u64,
    /// Messages of other nodes among them, kept until there is a way.
    #[serde(default)]
    pub in_custody: u64,
    /// Parts of it that are damaged and set aside.
    #[serde(default)]
    pub damaged: u64,
    /// The disk fails: nothing new is kept. What it said, and what to do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// `{"command":"nodes"}`: all that are known.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct NodesReply {
    /// In order of id.
    pub nodes: Vec<NodeStatus>,
}

/// One node.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct NodeStatus {
    /// Its id.
    pub node: NodeId,
    /// Whether there is a way to it.
    pub reachable: bool,
    /// Sum of costs on the way.
    pub cost: Option<u32>,
    /// Links on the way.
    pub hops: Option<u8>,
    /// Whether it forwards for others.
    pub router: bool,
    /// Name and version of its program.
    pub software: String,
    /// Its metadata.
    pub metadata: BTreeMap<String, String>,
    /// Names of its plugins.
    pub plugins: Vec<String>,
    /// Its adjacencies and their costs.
    pub links: BTreeMap<NodeId, u32>,
    /// How long ago it was last heard of or changed its reachability, in milliseconds.
    pub changed_ms: u64,
}

/// `{"command":"routes"}`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct RoutesReply {
    /// In order of destination; unreachable nodes have none.
    pub routes: Vec<RouteStatus>,
}

/// One route.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct RouteStatus {
    /// Where to.
    pub destination: NodeId,
    /// The neighbor that is next.
    pub next_hop: NodeId,
    /// Address of the link.
    pub via: String,
    /// Sum of costs.
    pub cost: u32,
    /// Links on the way.
    pub hops: u8,
}

/// `{"command":"links"}`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct LinksReply {
    /// In order of neighbor.
    pub links: Vec<LinkStatus>,
}

/// One link.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct LinkStatus {
    /// Who is at the other end, when it is known.
    pub node: Option<NodeId>,
    /// `up`, `standby` (up; a better link to the same node is used), `opening`, `checking`,
    /// `connecting`, `waiting`.
    pub state: String,
    /// Where it leads or comes from.
    pub address: String,
    /// This side made the connection.
    pub dialled: bool,
    /// The effective cost.
    pub cost: u32,
    /// Round-trip time in microseconds, when measured.
    pub rtt_us: Option<u64>,
    /// How long it is in this state, in milliseconds.
    pub age_ms: u64,
    /// How long ago something was heard, in milliseconds.
    pub heard_ms: Option<u64>,
    /// Frames and bytes sent.
    pub frames_out: u64,
    /// Frames received.
    pub frames_in: u64,
    /// Bytes sent.
    pub bytes_out: u64,
    /// Bytes received.
    pub bytes_in: u64,
    /// Bytes waiting to be sent.
    pub queued: u64,
    /// Packets dropped.
    pub dropped: u64,
    /// When the other end's certificate, or the first of those that it rests on, expires, in seconds since 1970;
    /// nothing without TLS.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub certificate_expires: Option<u64>,
    /// Why it is not up, when it is not.
    pub error: Option<ErrorBody>,
}

/// `{"command":"capabilities"}`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct CapabilitiesReply {
    /// In order of node.
    pub nodes: Vec<NodeCapabilities>,
}

/// What one node can do.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct NodeCapabilities {
    /// Who.
    pub node: NodeId,
    /// Whether there is a way to it.
    pub reachable: bool,
    /// Its metadata.
    pub metadata: BTreeMap<String, String>,
    /// Its plugins.
    pub plugins: Vec<Capability>,
}

/// `{"command":"plugins"}`: what is installed on this node.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct PluginsReply {
    /// In order of name.
    pub plugins: Vec<PluginStatus>,
}

/// One installed plugin, or a file that is none and why.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct PluginStatus {
    /// Its name.
    pub name: String,
    /// Its version; empty when it could not say.
    pub version: String,
    /// `job` or `serve`.
    pub mode: String,
    /// Whether it can be used.
    pub ready: bool,
    /// Why not, and what to do.
    pub reason: Option<String>,
    /// The file.
    pub path: String,
    /// Its actions' names.
    pub actions: Vec<String>,
    /// What it is for.
    pub about: String,
    /// Works running now.
    pub running: u64,
    /// Works waiting.
    pub waiting: u64,
}

/// `{"command":"plugin-restart","name":"runner"}`: look at the plugin anew; forget its crashes.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct PluginRestartCommand {
    /// Which.
    pub name: String,
}

/// `{"command":"log-level","level":"debug"}`; without a level the answer only tells it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct LogLevelCommand {
    /// A level or directives such as `info,receptord::link=debug`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub level: Option<String>,
}

/// The answer to `log-level`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct LogLevelReply {
    /// What is in force now.
    pub level: String,
}

/// The text of this protocol, by which it is described to clients. Its examples are what tests read with these types.
pub const TEXT: &str = include_str!("../PROTOCOL-control.md");

/// Every command: what the sections of [`TEXT`] are about.
pub fn commands() -> impl Iterator<Item = &'static str> {
    let headings = TEXT.lines().filter_map(|line| line.strip_prefix("## "));
    headings
        .filter(|heading| heading.starts_with(|c: char| c.is_ascii_lowercase()))
        .flat_map(|heading| heading.split(", "))
}

/// The answer to `describe`: what can be asked here.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct DescribeReply {
    /// [`VERSION`].
    pub protocol: u32,
    /// See [`commands`].
    pub commands: Vec<String>,
    /// [`TEXT`], with the lines of every command and of its answers.
    pub text: String,
}

/// `{"command":"policy","from":"controller","directive":"runner:execute"}`: what the rules of this node say.
/// One of `from`, `link` and `user` is there; with `from` also `directive` or `to`.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct PolicyCommand {
    /// The node that asks for work, or that a packet is from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<NodeId>,
    /// What it would use here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub directive: Option<Directive>,
    /// To whom its packet is; if that is another node than this one, this asks whether this one forwards it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<NodeId>,
    /// The node that would be a neighbor.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub link: Option<NodeId>,
    /// The user who would use the control socket.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<PolicyUser>,
}

/// A user of the control socket, by numbers.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct PolicyUser {
    /// User id.
    pub uid: u32,
    /// Group ids.
    #[serde(default)]
    pub gids: Vec<u32>,
}

/// The answer to `policy`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct PolicyReply {
    /// Which rules were asked: `allow`, `allow-link`, `allow-transit` or `allow-control`.
    pub kind: String,
    /// Whether it is permitted; of a user, whether it may do anything.
    pub permitted: bool,
    /// What a user may do: `nothing`, `look`, `send` or `administer`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub right: Option<String>,
    /// Where the rule stands that decided, when one did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rule: Option<String>,
    /// Why, for people.
    pub because: String,
}

/// The answer to `reload`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ReloadReply {
    /// Whether the new configuration is in force.
    #[serde(rename = "Success")]
    pub success: bool,
    /// Why not, one line a problem.
    #[serde(rename = "Error", default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// Keys whose new value is in force.
    #[serde(default)]
    pub applied: Vec<String>,
    /// Keys whose new value needs a restart.
    #[serde(default)]
    pub needs_restart: Vec<String>,
}

/// `{"command":"send", …}`: sends a message and, unless detached, streams its responses.
///
/// The payload is one of: `payload` (any JSON value), `text`, `size` (that many raw bytes
/// follow the line), `stream` (raw bytes follow until the client shuts down its write half),
/// or none.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct SendCommand {
    /// `plugin:action`.
    pub directive: String,
    /// To whom; or `any`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub recipient: Option<String>,
    /// To the nearest node that can do it.
    #[serde(default, skip_serializing_if = "core::ops::Not::not")]
    pub any: bool,
    /// With `any`: only nodes with all of this metadata.
    #[serde(rename = "where", default, skip_serializing_if = "BTreeMap::is_empty")]
    pub metadata: BTreeMap<String, String>,
    /// The payload, as JSON; `null` is a payload as well.
    #[serde(
        default,
        deserialize_with = "given",
        skip_serializing_if = "Option::is_none"
    )]
    pub payload: Option<Box<RawValue>>,
    /// The payload, as text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub text: Option<String>,
    /// Size of the raw payload that follows, in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<u64>,
    /// A raw payload follows until the client's half-close.
    #[serde(default, skip_serializing_if = "core::ops::Not::not")]
    pub stream: bool,
    /// What a raw payload is; bytes when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub content: Option<Content>,
    /// At most once, never on a disk.
    #[serde(default, skip_serializing_if = "core::ops::Not::not")]
    pub volatile: bool,
    /// False: no responses are wanted; the reply ends after `accepted`.
    #[serde(default = "yes", skip_serializing_if = "Clone::clone")]
    pub respond: bool,
    /// The reply ends after `accepted`; the responses wait.
    #[serde(default, skip_serializing_if = "core::ops::Not::not")]
    pub detach: bool,
    /// With `volatile` and without `respond`: the reply is nothing at all, unless the message is
    /// refused.
    #[serde(default, skip_serializing_if = "core::ops::Not::not")]
    pub quiet: bool,
    /// How long the message is worth delivering, in milliseconds; configured default when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_ms: Option<u64>,
    /// Makes a repeated send harmless: the message's id follows from this key and the node, see
    /// [`keyed_id`]. 1 to [`KEY_MAX`] bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// Take the message also when its recipient was never heard of, and keep it until it is.
    /// Without this such a message is refused with `no-such-node`, because a misspelt id is
    /// likelier than a node that is yet to come; a node that is known and only cannot be
    /// reached now is always waited for.
    #[serde(default, skip_serializing_if = "core::ops::Not::not")]
    pub wait: bool,
}

fn yes() -> bool {
    true
}

/// One line of the reply to `send`.
#[derive(Debug, Clone, Serialize)]
#[serde(tag = "type", rename_all = "lowercase")]
pub enum SendReply {
    /// The message is kept. Always the first line unless the message is refused.
    Accepted {
        /// Names the message and its work.
        id: MessageId,
        /// To whom it goes.
        recipient: NodeId,
        /// Nothing more follows.
        #[serde(default, skip_serializing_if = "core::ops::Not::not")]
        eof: bool,
    },
    /// A response.
    Response(SendResponse),
    /// Only of `results` without `follow`: the work has not ended, and this is all that came.
    Pending {
        /// The message.
        id: MessageId,
        /// Where its work is.
        state: WorkState,
        /// Always true.
        eof: bool,
    },
    /// The message was refused.
    Error {
        /// Why.
        error: ErrorBody,
        /// Always true.
        eof: bool,
    },
}

/// By hand, because a derived one cannot keep JSON as the text it came in.
impl<'de> Deserialize<'de> for SendReply {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        struct Head<'a> {
            #[serde(borrow, rename = "type")]
            kind: Cow<'a, str>,
        }
        #[derive(Deserialize)]
        struct Accepted {
            id: MessageId,
            recipient: NodeId,
            #[serde(default)]
            eof: bool,
        }
        #[derive(Deserialize)]
        struct Pending {
            id: MessageId,
            state: WorkState,
            eof: bool,
        }
        let line = Box::<RawValue>::deserialize(deserializer)?;
        let text = line.get();
        let head: Head<'_> = serde_json::from_str(text).map_err(D::Error::custom)?;
        match &*head.kind {
            "accepted" => serde_json::from_str(text)
                .map(|Accepted { id, recipient, eof }| Self::Accepted { id, recipient, eof }),
            "response" => serde_json::from_str(text).map(Self::Response),
            "pending" => serde_json::from_str(text)
                .map(|Pending { id, state, eof }| Self::Pending { id, state, eof }),
            "error" => serde_json::from_str(text)
                .map(|ErrorReply { error, eof }| Self::Error { error, eof }),
            other => {
                const KINDS: &[&str] = &["accepted", "response", "pending", "error"];
                return Err(D::Error::unknown_variant(other, KINDS));
            }
        }
        .map_err(D::Error::custom)
    }
}

/// A response in the reply to `send`. Its payload is one of `data`, `text`, or `size` raw bytes
/// after the line; none of them when it is empty.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct SendResponse {
    /// The message.
    pub id: MessageId,
    /// Who answers.
    pub from: NodeId,
    /// 1, 2, 3 …
    pub serial: u64,
    /// The payload is this JSON value, which may be `null`.
    #[serde(
        default,
        deserialize_with = "given",
        skip_serializing_if = "Option::is_none"
    )]
    pub data: Option<Box<RawValue>>,
    /// The payload is this text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub text: Option<String>,
    /// The payload is the next `size` bytes after this line.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<u64>,
    /// What these bytes are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub content: Option<Content>,
    /// The payload's name, when the plugin gave one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// This is the last one.
    #[serde(default, skip_serializing_if = "core::ops::Not::not")]
    pub eof: bool,
    /// On the last one: 0 when the work went well.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub code: Option<u32>,
    /// On the last one: why the work could not be run or was stopped.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<ErrorBody>,
}

/// A value that stands there, also when it is `null`: that is not the same as none.
fn given<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Box<RawValue>>, D::Error> {
    Deserialize::deserialize(deserializer).map(Some)
}

/// `{"command":"cancel","id":"…"}`: ends a work that was sent from here or runs here.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct CancelCommand {
    /// Which.
    pub id: IdPrefix,
}

/// The answer to `cancel`: the request is on its way; the work ends with its own last response.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct CancelReply {
    /// Which.
    pub cancelling: MessageId,
}

/// `{"command":"results","id":"…"}`: the responses of a message that was sent from here, from the
/// first, as lines of [`SendReply::Response`]; without `follow` and before its end the last line
/// is [`SendReply::Pending`].
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ResultsCommand {
    /// Which.
    pub id: IdPrefix,
    /// Wait for what is yet to come.
    #[serde(default = "yes", skip_serializing_if = "Clone::clone")]
    pub follow: bool,
}

/// `{"command":"release","id":"…"}`: the responses of this work are wanted no longer, neither
/// those that are here nor those that may come.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ReleaseCommand {
    /// Which.
    pub id: IdPrefix,
}

/// The answer to `release`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ReleaseReply {
    /// Which.
    pub released: MessageId,
}

/// `{"command":"works"}`: works that were sent from here, and works that run here. With `id` only
/// that one, or the error `not-found`.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct WorksCommand {
    /// Only this one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<IdPrefix>,
}

/// The answer to `works`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct WorksReply {
    /// Oldest first; the youngest ones when they do not all fit into the line. A work that was
    /// sent from here to this node itself is there twice.
    pub works: Vec<WorkStatus>,
    /// How many there are.
    pub total: u64,
}

/// Which end of a work a [`WorkStatus`] is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum WorkRole {
    /// It was sent from here.
    Sent,
    /// It is run here.
    Here,
}

/// Where a work is. The first four follow each other; each of the others is final.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum WorkState {
    /// Kept by its sender's node, which has no receipt yet.
    Accepted,
    /// Its recipient has it.
    Sent,
    /// It waits for its plugin.
    Queued,
    /// Its plugin has it; for its sender, a response came.
    Running,
    /// It ended well.
    Succeeded,
    /// It ended otherwise.
    Failed,
    /// It was cancelled.
    Cancelled,
    /// Its lifetime ended before its recipient had it.
    Expired,
    /// Its recipient does not do that.
    Refused,
    /// It was cut short by a restart of its node.
    Interrupted,
    /// What became of it cannot be known.
    Lost,
}

impl WorkState {
    /// The final state that an end says.
    #[must_use]
    pub fn of_end(code: u32, error: Option<&ErrorBody>) -> Self {
        use crate::error::ErrorCode as Code;
        let Some(error) = error else {
            return if code == 0 {
                Self::Succeeded
            } else {
                Self::Failed
            };
        };
        if error.code == Code::Cancelled {
            Self::Cancelled
        } else if error.code == Code::Expired {
            Self::Expired
        } else if error.code == Code::Interrupted {
            Self::Interrupted
        } else if error.code == Code::Lost {
            Self::Lost
        } else if [
            Code::Refused,
            Code::PermissionDenied,
            Code::NoSuchPlugin,
            Code::NoSuchAction,
            Code::InvalidPayload,
            Code::PayloadTooLarge,
            Code::NotReady,
        ]
        .contains(&error.code)
        {
            Self::Refused
        } else {
            Self::Failed
        }
    }

    /// The word for it, as in JSON.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Accepted => "accepted",
            Self::Sent => "sent",
            Self::Queued => "queued",
            Self::Running => "running",
            Self::Succeeded => "succeeded",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
            Self::Expired => "expired",
            Self::Refused => "refused",
            Self::Interrupted => "interrupted",
            Self::Lost => "lost",
        }
    }

    /// Whether no other follows.
    #[must_use]
    pub fn is_final(self) -> bool {
        !matches!(
            self,
            Self::Accepted | Self::Sent | Self::Queued | Self::Running
        )
    }
}

/// One work.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct WorkStatus {
    /// Names it.
    pub id: MessageId,
    /// Which end of it this is.
    pub role: WorkRole,
    /// Where it is.
    pub state: WorkState,
    /// Its end was asked for.
    #[serde(default, skip_serializing_if = "core::ops::Not::not")]
    pub cancelling: bool,
    /// What runs; `None` when that is not known any more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub directive: Option<Directive>,
    /// Who sent it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sender: Option<NodeId>,
    /// Where it runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub recipient: Option<NodeId>,
    /// How long ago it came to be, in milliseconds.
    pub age_ms: u64,
    /// How long ago it ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended_ms: Option<u64>,
    /// What its plugin said last of how it goes; known where it runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// Steps done, and steps in all; known where it runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub progress: Option<(u64, u64)>,
    /// Bytes of a large payload that its recipient has, and all; known to who sent it, until
    /// that one has it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sent: Option<(u64, u64)>,
    /// Bytes of a large response that are here, and all; known to who sent it, while one comes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub coming: Option<(u64, u64)>,
    /// At its end: 0 when it went well.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub code: Option<u32>,
    /// At its end: why it could not be run or was stopped.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<ErrorBody>,
    /// Responses that came or went.
    #[serde(default)]
    pub responses: u64,
    /// Bytes of responses that are kept here for `results`.
    #[serde(default)]
    pub kept_bytes: u64,
    /// Responses that came were not kept, so that they cannot be read from the start.
    #[serde(default, skip_serializing_if = "core::ops::Not::not")]
    pub dropped: bool,
}

/// `{"command":"spool"}`: the messages that wait here: those of this node that their recipients
/// have not confirmed, and those of other nodes that are in custody here.
/// With `id` only those of that work, or the error `not-found`.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct SpoolCommand {
    /// Only of this work.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<IdPrefix>,
}

/// The answer to `spool`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct SpoolReply {
    /// By recipient, in the order in which they go; as many as fit into the line.
    pub messages: Vec<SpoolEntry>,
    /// How many there are.
    pub total: u64,
    /// What of the spool is damaged, as far as it is known; absent when nothing is.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub damaged: Vec<SpoolDamage>,
}

/// A part of the spool that is not what it was.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SpoolDamage {
    /// In which file of the spool.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file: Option<String>,
    /// Where it begins.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub offset: Option<u64>,
    /// How many bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes: Option<u64>,
    /// The number of the message that is lost with it, where that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub entry: Option<u64>,
    /// What is wrong, and where its bytes are kept, for people.
    pub message: String,
}

/// What a message in the spool is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SpoolKind {
    /// It asks for work.
    Request,
    /// It is a response of work that was done here.
    Response,
    /// It asks for the end of work.
    Cancel,
}

/// Why a message waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SpoolReason {
    /// Its recipient was never heard of.
    UnknownNode,
    /// There is no way to its recipient now.
    NoRoute,
    /// Its turn has not come.
    NotSent,
    /// It was sent, and its recipient has not confirmed it.
    NoReceipt,
    /// Its node does not run; never from a daemon.
    Stopped,
}

/// One message in the spool.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct SpoolEntry {
    /// The work that it is about.
    pub id: MessageId,
    /// What it is.
    pub kind: SpoolKind,
    /// For whom.
    pub recipient: NodeId,
    /// From whom, when it is in custody here for another node; absent: it is this node's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub origin: Option<NodeId>,
    /// Of a request: what is to be run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub directive: Option<Directive>,
    /// Of a response: which one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub serial: Option<u64>,
    /// Bytes of its payload.
    pub size: u64,
    /// Of a request whose time is known: how long it waits, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub age_ms: Option<u64>,
    /// What is left of its lifetime, in milliseconds.
    pub expires_ms: u64,
    /// Why it waits.
    pub reason: SpoolReason,
    /// It is in memory only.
    #[serde(default, skip_serializing_if = "core::ops::Not::not")]
    pub volatile: bool,
}

/// `{"command":"spool-drop","id":"…"}`: gives up the messages of this work that wait here: a
/// request, whose work then ends as cancelled, or responses whose sender never came back.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct SpoolDropCommand {
    /// Of which work.
    pub id: IdPrefix,
}

/// The answer to `spool-drop` and `dead-letter-drop`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct DropReply {
    /// Which.
    pub dropped: MessageId,
}

/// `{"command":"dead-letters"}`: requests of this node that were given up, with the reason.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct DeadLettersReply {
    /// Oldest first; the youngest ones when they do not all fit into the line.
    pub letters: Vec<DeadLetterStatus>,
    /// How many there are.
    pub total: u64,
}

/// A request that was given up.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct DeadLetterStatus {
    /// The message.
    pub id: MessageId,
    /// What was to be run.
    pub directive: Directive,
    /// Where.
    pub recipient: NodeId,
    /// Whose it is, when it was in custody here; absent: it is this node's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub origin: Option<NodeId>,
    /// Bytes of its payload.
    pub size: u64,
    /// How long ago it was given up, in milliseconds.
    pub age_ms: u64,
    /// Why.
    pub reason: ErrorBody,
}

/// `{"command":"dead-letter-retry","id":"…"}`, which sends it again as a new, detached message,
/// and `dead-letter-drop`, which forgets it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct DeadLetterCommand {
    /// Which.
    pub id: IdPrefix,
    /// Of a retry: how long the new message is worth delivering, in milliseconds; configured
    /// default when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_ms: Option<u64>,
}

/// The answer to `dead-letter-retry`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct RetryReply {
    /// The letter, which is gone.
    pub retried: MessageId,
    /// The new message, which is accepted.
    pub id: MessageId,
    /// To whom it goes.
    pub recipient: NodeId,
}

/// A one-line error of a command that is not Go Receptor's.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ErrorReply {
    /// What went wrong.
    pub error: ErrorBody,
    /// Always true: nothing more follows.
    pub eof: bool,
}

/// The directive and recipient of a [`SendCommand`], checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CheckedSend {
    /// What to run.
    pub directive: Directive,
    /// To whom; `None`: any.
    pub recipient: Option<NodeId>,
}

impl SendCommand {
    /// Checks what must hold between the fields.
    pub fn check(&self) -> Result<CheckedSend, ErrorBody> {
        use crate::error::ErrorCode::InvalidRequest;
        let directive = Directive::new(&self.directive)
            .map_err(|e| ErrorBody::new(InvalidRequest, format!("directive: {e}")))?;
        let recipient = match (&self.recipient, self.any) {
            (Some(_), true) => {
                let text = "give recipient or any, not both";
                return Err(ErrorBody::new(InvalidRequest, text));
            }
            (None, false) => {
                let text = "give a recipient, or any: true";
                return Err(ErrorBody::new(InvalidRequest, text));
            }
            (None, true) => None,
            (Some(node), false) => Some(
                NodeId::new(node)
                    .map_err(|e| ErrorBody::new(InvalidRequest, format!("recipient: {e}")))?,
            ),
        };
        if self.key.is_some() && !self.respond {
            let text = "a message that wants no responses is not remembered: give key or respond: false, not both";
            return Err(ErrorBody::new(InvalidRequest, text));
        }
        if self.detach && self.volatile && self.respond {
            let text = "the responses of a volatile message are not kept: give detach or volatile, not both, or respond: false";
            return Err(ErrorBody::new(InvalidRequest, text));
        }
        if self.quiet && (!self.volatile || self.respond) {
            let text = "quiet is for messages with volatile: true and respond: false";
            return Err(ErrorBody::new(InvalidRequest, text));
        }
        if let Some(key) = &self.key {
            if key.is_empty() || key.len() > KEY_MAX {
                let text = format!("key: expected 1 to {KEY_MAX} bytes");
                return Err(ErrorBody::new(InvalidRequest, text));
            }
            if self.volatile {
                let text = "a volatile message is not remembered: give key or volatile, not both";
                return Err(ErrorBody::new(InvalidRequest, text));
            }
        }
        if !self.metadata.is_empty() && !self.any {
            return Err(ErrorBody::new(InvalidRequest, "where needs any: true"));
        }
        let payloads = usize::from(self.payload.is_some())
            + usize::from(self.text.is_some())
            + usize::from(self.size.is_some())
            + usize::from(self.stream);
        if payloads > 1 {
            let text = "give at most one of payload, text, size and stream";
            return Err(ErrorBody::new(InvalidRequest, text));
        }
        Ok(CheckedSend {
            directive,
            recipient,
        })
    }
}
