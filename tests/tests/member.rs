//! A member that was let in and means harm: what it may cost its neighbor, attack by attack.
//!
//! | attack | bound | test |
//! | --- | --- | --- |
//! | statements of invented nodes | `LSAS` of memory for 60,000 of them; forgotten with the link's end or their lifetime | `statements_of_invented_nodes_take_little` |
//! | the longest statements of invented nodes | `BODIES`, of which 128 MiB are statements | `the_longest_statements_have_a_bound_of_their_own` |
//! | the highest sequence number, for itself and for others | the other states itself above it, or goes on without | `the_highest_sequence_number_takes_nobody_out` |
//! | summaries and digests without end | memory; what is asked for is asked for once | `a_storm_of_summaries_is_answered_in_bounds` |
//! | 10,000 capabilities, and statements that lie about their length | the statement is not used | `statements_over_their_limits_state_nothing` |
//! | never reads, and asks on | a queue of answers, of which the rest is dropped; when it is silent too, its own link is given up | `who_never_reads_costs_a_queue_and_its_own_link` |
//! | grants no credit | a link's queue; what waits longer stays with its sender | `who_grants_no_credit_stalls_only_what_is_for_it` |
//! | a frame byte by byte | the hold time | `a_frame_that_takes_for_ever_is_a_silent_neighbor` |
//! | links that come and go | memory; none is left | `links_that_come_and_go_leave_nothing` |
//! | payloads of 2^63 bytes, ones that never end, bundles that lie about their lengths | not taken; nothing of it is on the disk | `payloads_larger_than_any_and_bundles_that_are_none_are_not_taken` |
//! | receipts, words about custody and inquiries for what never was | nothing | `words_about_what_never_was_say_nothing` |
//! | another's node id | the newcomer is refused | `whoever_takes_anothers_id_is_refused` |
//! | frames once more | run once | `frames_said_once_more_run_nothing_again` |
//! | signatures and seals that take public-key work to see through | so much of it a second for each neighbor | `what_takes_work_to_see_through_is_looked_at_in_bounds` |
//!
//! Every attack is bounded in memory, processor time and disk ([`Bound`], [`SPOOL_MAX`]), and is made on a plain link and,
//! by a member with a certificate of its own, on one with TLS. Out of scope where nothing is signed: what a
//! member states in another's name, once it is newer than what that node says itself; and everywhere what it drops of others' messages on its way.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::io::Write as _;
use std::time::{Duration, Instant};

use bytes::Bytes;
use receptor_proto::frame::{DIGEST_BUCKETS, Frame, SUMMARY_MAX};
use receptor_proto::lsa::{
    CapabilitiesBody, Capability, LinkEntry, LinksBody, LsaKey, LsaKind, LsaSummary, Version,
};
use receptor_proto::packet::{
    Body, Content, Custody, Holding, Inquiry, Message, MessageKind, Packet, Piece, Receipt, Segment,
};
use receptor_proto::{Directive, MessageId};
use receptor_tests::authority::Authority;
use receptor_tests::hostile::{Member, connect, hello, id, lsa};
use receptor_tests::traffic::{Counter, Sent, peak_kib};
use receptor_tests::{Daemon, Mesh, wait_for};

/// What an attack may cost a daemon in all.
struct Bound {
    /// Memory at most, in KiB.
    peak_kib: u64,
    /// Processor time, in hundredths of a second of a program that is not optimized.
    cpu_ticks: u64,
}

/// Of nearly every attack: connections with certificates cost most, at 6 ms each.
const BOUND: Bound = Bound {
    peak_kib: 64 * 1024,
    cpu_ticks: 800,
};
/// Long enough for daemons that are not optimized and share a processor with a dozen others.
const HOLD_TIME: &str = "[link]\nhold-time = \"15s\"\n";
/// Nodes that a member invents.
const INVENTED: usize = 60_000;
/// The same with 60,000 nodes more to know of, at some 1.5 KiB each.
const LSAS: Bound = Bound {
    peak_kib: 192 * 1024,
    ..BOUND
};
/// How long a daemon is looked at for its share of a processor.
const WINDOW: Duration = Duration::from_millis(500);
/// What it may take of that, in hundredths of a second: a fifth of one processor.
const REST_TICKS: u64 = 10;
/// Bytes of echoes whose answers are not read: many times what sockets and queues hold.
const UNREAD: usize = 40 << 20;
/// The same with as many long statements as a daemon keeps, twice: those under way are copied.
const BODIES: Bound = Bound {
    peak_kib: 320 * 1024,
    cpu_ticks: 2500,
};
/// Bytes of the spool that no work is in.
const SPOOL_MAX: u64 = 64 << 20;

/// A node, an honest neighbor of it, and room for one that is not.
struct Rig {
    a: Daemon,
    b: Daemon,
    counter: Counter,
    authority: Option<Authority>,
    _mesh: Mesh,
}

/// What an attack does is done to a node without certificates, and to one of a mesh in which the member has one.
fn everywhere(attack: impl Fn(&Rig) + Sync) {
    let attack = &attack;
    std::thread::scope(|scope| {
        let on = |name: &str, has_authority| {
            let thread = std::thread::Builder::new().name(name.to_owned());
            thread
                .spawn_scoped(scope, move || attack(&Rig::new(has_authority)))
                .unwrap()
        };
        let ends = [on("plain", false), on("certificates", true)].map(|thread| thread.join());
        for end in ends {
            end.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        }
    });
}

impl Rig {
    fn new(has_authority: bool) -> Self {
        let mesh = Mesh::new();
        let authority = has_authority.then(|| Authority::new(&mesh.dir().join("ca")));
        let node = |name| {
            let node = mesh.node(name).config(HOLD_TIME);
            match &authority {
                Some(authority) => authority.equip(node, name),
                None => node,
            }
        };
        let (counter, a) = Counter::install(&mesh, node("a"), "a");
        let a = a.start();
        let b = node("b").peer(&a).start();
        b.wait_ping("a");
        Self {
            a,
            b,
            counter,
            authority,
            _mesh: mesh,
        }
    }

    fn join(&self, name: &str, instance: u64) -> Member {
        Member::join(&self.a.address(), self.authority.as_ref(), name, instance)
    }

    fn member(&self, name: &str) -> Member {
        self.meet(self.join(name, 1))
    }

    /// Who was not refused has heard who the daemon is.
    fn meet(&self, member: Member) -> Member {
        wait_for("the daemon's hello", || {
            let heard = member.heard();
            let met = heard.frames.contains_key("Hello") && member.knows(self.a.name());
            (met || heard.ended).then_some(())
        });
        member
    }

    /// A ping of the honest neighbor is answered.
    fn ping(&self) {
        self.b.wait_ping("a");
    }

    /// The link to the honest neighbor is the only one.
    fn wait_alone(&self) {
        let one = || {
            let links = self.a.control().json("links");
            (links["links"].as_array()?.len() == 1).then_some(())
        };
        wait_for("the end of every other link", one);
    }

    /// The daemon comes to rest: what was asked of it is done or dropped.
    fn wait_rest(&self) {
        let mut since = (Instant::now(), cpu_ticks(self.a.pid()));
        wait_for("a daemon at rest", || {
            let (then, before) = since;
            if then.elapsed() < WINDOW {
                return None;
            }
            let ticks = cpu_ticks(self.a.pid());
            since = (Instant::now(), ticks);
            (ticks - before <= REST_TICKS).then_some(())
        });
    }

    /// The honest neighbor was never given up, and what all of it cost is within bounds.
    fn check(&self, bound: &Bound) {
        self.ping();
        self.a.wait_ping("b");
        self.wait_rest();
        let log = self.a.log();
        let of_b = |what: &str| {
            let mut lines = log.lines();
            lines.find(|line| line.contains(what) && line.contains("peer=b "))
        };
        assert!(of_b("neighbor up").is_some(), "{log}");
        assert_eq!(of_b("neighbor down"), None, "{log}");
        assert_eq!(of_b("neighbor silent"), None, "{log}");
        let peak = peak_kib(self.a.pid());
        assert!(peak < bound.peak_kib, "{peak} KiB");
        let ticks = cpu_ticks(self.a.pid());
        assert!(ticks < bound.cpu_ticks, "{ticks}");
        let spool = size(&self.a.data_dir().join("spool"));
        assert!(spool <= SPOOL_MAX, "{spool} bytes");
    }
}

/// Processor time of a process so far, in hundredths of a second.
fn cpu_ticks(pid: u32) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields = stat.rsplit_once(')').unwrap().1.split_whitespace();
    let times: Vec<u64> = fields
        .skip(11)
        .take(2)
        .map(|n| n.parse().unwrap())
        .collect();
    times.iter().sum()
}

fn size(directory: &std::path::Path) -> u64 {
    let entries = std::fs::read_dir(directory).unwrap();
    entries
        .map(|entry| {
            let entry = entry.unwrap();
            let kind = entry.metadata().unwrap();
            if kind.is_dir() {
                size(&entry.path())
            } else {
                kind.len()
            }
        })
        .sum()
}

fn links(to: &str) -> Bytes {
    LinksBody {
        links: vec![LinkEntry {
            neighbor: id(to),
            cost: 1,
            leaf: false,
        }],
    }
    .encode()
}

fn request(work: u128, size: u64, body: &'static [u8]) -> Message {
    Message {
        epoch: 1,
        seq: u64::try_from(work).unwrap(),
        floor: 1,
        work: MessageId::from_u128(work),
        kind: MessageKind::Request {
            directive: Directive::new("counter:add").unwrap(),
            respond: true,
        },
        volatile: false,
        remaining_ms: 60_000,
        content: Content::Bytes,
        name: None,
        size,
        body: Bytes::from_static(body),
    }
}

fn ended(member: &Member) -> Option<String> {
    let heard = member.heard();
    heard.ended.then(|| heard.goodbye.unwrap_or_default())
}

#[test]
fn statements_of_invented_nodes_take_little() {
    everywhere(|rig| {
        let member = rig.member("m");
        for frame in 0..INVENTED / 100 {
            let lsas = (0..100)
                .map(|n| {
                    lsa(
                        &format!("invented-{frame}-{n}"),
                        LsaKind::LINKS,
                        1,
                        links("m"),
                    )
                })
                .collect();
            assert!(member.state(lsas));
            if frame % 200 == 0 {
                rig.ping();
            }
        }
        let known = || {
            rig.a.control().json("nodes")["nodes"]
                .as_array()
                .map_or(0, Vec::len)
        };
        if rig.authority.is_some() {
            // Nobody states anything for another.
            rig.ping();
            assert!(known() < 10);
        } else {
            // Everything was taken: the bound is not that of a link which was closed.
            wait_for("all of them", || (known() >= INVENTED).then_some(()));
        }
        rig.check(&LSAS);
    });
}

#[test]
fn the_longest_statements_have_a_bound_of_their_own() {
    everywhere(|rig| {
        let member = rig.member("m");
        // A kind of a later version: nobody looks what is in it. 240 MB in all.
        let body = Bytes::from(vec![7; 60_000]);
        for n in 0..4_000 {
            let stated = lsa(&format!("long-{n}"), LsaKind(9), 1, body.clone());
            assert!(member.state(vec![stated]));
            // Before so much has gathered that a neighbor without a processor of its own is held to be gone.
            if n % 250 == 0 {
                rig.ping();
            }
        }
        rig.check(&BODIES);
    });
}

#[test]
fn the_highest_sequence_number_takes_nobody_out() {
    everywhere(|rig| {
        let member = rig.member("m");
        for seq in [u64::MAX, u64::MAX - 1, 1 << 63] {
            for node in ["m", "a", "b"] {
                for kind in [LsaKind::LINKS, LsaKind::CAPABILITIES] {
                    member.state(vec![lsa(node, kind, seq, Bytes::new())]);
                }
            }
        }
        rig.ping();
        drop(member);
        rig.check(&BOUND);
    });
}

#[test]
fn a_storm_of_summaries_is_answered_in_bounds() {
    everywhere(|rig| {
        let member = rig.member("m");
        let entry = |n: usize| LsaSummary {
            key: LsaKey {
                node: id(&format!("never-{n}")),
                kind: LsaKind::LINKS,
            },
            version: Version {
                seq: 9,
                fingerprint: 9,
            },
        };
        let entries: Vec<LsaSummary> = (0..SUMMARY_MAX).map(entry).collect();
        for round in 0..500u64 {
            member.send(&Frame::Digest {
                reply: true,
                buckets: vec![round; DIGEST_BUCKETS],
            });
            let bucket = u8::try_from(round % 64).unwrap();
            let entries = entries.clone();
            member.send(&Frame::LsaAck(entries.clone()));
            member.send(&Frame::Summary {
                bucket,
                more: true,
                entries,
            });
        }
        rig.check(&BOUND);
    });
}

#[test]
fn statements_over_their_limits_state_nothing() {
    everywhere(|rig| {
        let member = rig.member("m");
        let plugin = |n: usize| Capability {
            plugin: format!("p{n}"),
            version: String::new(),
            ready: true,
            actions: Vec::new(),
        };
        let many = CapabilitiesBody {
            router: true,
            plugins: (0..10_000).map(plugin).collect(),
            ..CapabilitiesBody::default()
        };
        let many = many.encode();
        // What fits a frame says that there are 10,000, and ends early.
        let cut = many.slice(..60_000);
        for (seq, body) in [(5, cut), (6, Bytes::from_static(&[0xff; 1000]))] {
            for kind in [LsaKind::CAPABILITIES, LsaKind::LINKS] {
                member.state(vec![lsa("m", kind, seq, body.clone())]);
            }
        }
        rig.ping();
        let known = rig.a.control().json("capabilities").to_string();
        assert!(!known.contains("\"p9\""), "{known:.300}");
        rig.check(&BOUND);
    });
}

#[test]
fn who_never_reads_costs_a_queue_and_its_own_link() {
    everywhere(|rig| {
        let patience = Duration::from_millis(50);
        let mut stream = connect(&rig.a.address(), rig.authority.as_ref(), "m", patience).unwrap();
        let mut bytes = Vec::new();
        hello(id("m"), 1).encode(&mut bytes);
        let mut echoes = Vec::new();
        for nonce in 0..1000 {
            let packet = Packet::new(id("m"), id("a"), 30, &Body::Echo { nonce });
            Frame::Packet(packet).encode(&mut echoes);
        }
        // Every echo asks for an answer that is never read. What the daemon does not take, waits here.
        for _ in 0..UNREAD / echoes.len() {
            bytes.extend_from_slice(&echoes);
        }
        let mut rest = &bytes[..];
        while !rest.is_empty() {
            match stream.write(rest) {
                Ok(count) => rest = &rest[count..],
                // It does not read on, or has closed the link.
                Err(_) => break,
            }
        }
        rig.ping();
        rig.wait_alone();
        rig.check(&BOUND);
    });
}

#[test]
fn a_frame_that_takes_for_ever_is_a_silent_neighbor() {
    everywhere(|rig| {
        let member = rig.member("m");
        member.fall_silent();
        // A frame of 60,000 bytes, of which there is one now and then.
        member.raw(&[0, 0, 0xea, 0x60, 4]);
        let code = wait_for("the end of the link", || {
            member.raw(b"x");
            ended(&member)
        });
        assert_eq!(code, "hold-time");
        rig.check(&BOUND);
    });
}

#[test]
fn who_grants_no_credit_stalls_only_what_is_for_it() {
    everywhere(|rig| {
        let member = rig.member("m");
        member.state(vec![lsa("m", LsaKind::LINKS, 1, links("a"))]);
        rig.b.wait_reachable("m");
        let mut control = rig.b.control();
        let payload = "x".repeat(50_000);
        for _ in 0..200 {
            let accepted = control.json(&format!(
                "{{\"command\":\"send\",\"detach\":true,\"directive\":\"counter:add\",\"recipient\":\"m\",\"payload\":\"{payload}\"}}"
            ));
            assert!(accepted["error"].is_null(), "{accepted}");
        }
        // The hello's credit is used up, and no more was sent than that.
        wait_for("packets", || {
            (member.heard().frames.get("Packet") >= Some(&4)).then_some(())
        });
        rig.check(&BOUND);
        assert!(member.heard().frames["Packet"] < 200);
        // What is for others goes on.
        let mut other = rig.b.control();
        assert!(Sent::one(&mut other, "a").is_done());
    });
}

#[test]
fn links_that_come_and_go_leave_nothing() {
    everywhere(|rig| {
        for round in 0..300 {
            let member = rig.join(&format!("m{}", round % 7), round + 1);
            if round % 2 == 0 {
                member.state(vec![lsa("m", LsaKind::LINKS, round, links("a"))]);
            }
            if round % 50 == 0 {
                rig.ping();
            }
        }
        rig.wait_alone();
        rig.check(&BOUND);
    });
}

#[test]
fn payloads_larger_than_any_and_bundles_that_are_none_are_not_taken() {
    everywhere(|rig| {
        let member = rig.member("m");
        // More than the spool may hold: nothing of it is taken.
        member.packet("a", &Body::Message(request(1, 1 << 56, b"")));
        let piece = Bytes::from(vec![7; 60_000]);
        for n in 0..200u64 {
            let sum = 0;
            let segment = Segment {
                epoch: 1,
                seq: 1,
                offset: n * 60_000,
                piece: Piece {
                    sum,
                    bytes: piece.clone(),
                },
            };
            member.packet("a", &Body::Segment(segment));
        }
        rig.ping();
        drop(member);
        let member = rig.member("n");
        member.packet("a", &Body::Message(request(2, 1 << 63, b"")));
        let lies: [&'static [u8]; 4] = [b"\x03\xff\xff\x7f", b"\x04\x01x", b"\x01", b"\x03\x05x"];
        for (work, body) in (3..).zip(lies) {
            let bundle = Message {
                volatile: true,
                content: Content::Bundle,
                ..request(work, body.len() as u64, body)
            };
            member.packet("a", &Body::Message(bundle));
        }
        rig.ping();
        drop(member);
        let payloads = rig.a.data_dir().join("spool/payloads");
        assert_eq!(size(&payloads), 0);
        assert!(rig.counter.runs().is_empty());
        rig.check(&BOUND);
    });
}

#[test]
fn words_about_what_never_was_say_nothing() {
    everywhere(|rig| {
        let member = rig.member("m");
        for n in 1..200u64 {
            member.packet(
                "a",
                &Body::Receipt(Receipt {
                    epoch: n,
                    received: vec![(1, u64::MAX)],
                    ..Receipt::default()
                }),
            );
            member.packet(
                "a",
                &Body::Custody(Custody {
                    holding: Holding::Kept,
                    origin: id("a"),
                    recipient: id("b"),
                    epoch: n,
                    messages: vec![(0, u64::MAX)],
                    never_sent: true,
                }),
            );
            let works = (0..256)
                .map(|work| MessageId::from_u128(work + u128::from(n) * 1000))
                .collect();
            member.packet(
                "a",
                &Body::Inquiry(Inquiry {
                    nonce: n,
                    is_reply: n % 2 == 0,
                    works,
                }),
            );
            let response = Message {
                kind: MessageKind::Response {
                    serial: n,
                    eof: None,
                    in_doubt: false,
                },
                ..request(u128::from(n), 1, b"x")
            };
            member.packet("a", &Body::Message(response));
        }
        rig.ping();
        let works = rig.a.control().json("works");
        assert_eq!(works["works"].as_array().map(Vec::len), Some(0), "{works}");
        rig.check(&BOUND);
    });
}

#[test]
fn whoever_takes_anothers_id_is_refused() {
    everywhere(|rig| {
        for name in ["a", "b"] {
            let member = rig.join(name, 1);
            let code = wait_for("the end of the link", || ended(&member));
            assert_eq!(code, "duplicate-node-id", "{name}");
        }
        rig.check(&BOUND);
    });
}

#[test]
fn frames_said_once_more_run_nothing_again() {
    everywhere(|rig| {
        let json = Message {
            content: Content::Json,
            ..request(77, 8, b"{\"n\":77}")
        };
        let said = Body::Message(json);
        for instance in [1, 1, 2] {
            let member = rig.meet(rig.join("m", instance));
            for _ in 0..20 {
                member.packet("a", &said);
            }
            wait_for("the receipt", || {
                (member.heard().frames.contains_key("Packet") || member.heard().ended).then_some(())
            });
        }
        wait_for("the work", || {
            (!rig.counter.runs().is_empty()).then_some(())
        });
        rig.check(&BOUND);
        assert_eq!(rig.counter.runs(), [(77, 1)].into());
    });
}

#[test]
fn what_takes_work_to_see_through_is_looked_at_in_bounds() {
    let rig = Rig::new(true);
    let member = rig.member("m");
    for round in 0..2000u64 {
        // About the neighbor, newer each time, in the right form, and with a signature that is not the neighbor's.
        let forged =
            (0..20).map(|n| lsa("b", LsaKind::LINKS, (1 << 62) + round * 20 + n, links("m")));
        member.state(forged.collect());
        // Every seal is of a context that nobody has heard of, and opens none.
        for n in 0..20u64 {
            member.scribble(
                "a",
                &Body::Message(request(u128::from(round * 20 + n + 1), 1, b"x")),
            );
        }
    }
    rig.ping();
    let routes = rig.a.control().json("routes").to_string();
    assert!(routes.contains("\"b\""), "{routes}");
    assert!(rig.counter.runs().is_empty());
    rig.check(&BOUND);
}
