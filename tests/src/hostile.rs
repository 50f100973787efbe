//! A member that means harm: it says a good hello, and then whatever it likes.
//!
//! Owns the other end of one link of a real daemon: it reads, answers probes as long as it is told
//! to, and counts what comes; a test writes frames, or bytes that are none. What carries the bytes is
//! a [`Wire`], so that any transport of the daemon can be put under it. In a mesh with certificates it has one
//! of its own, signs what it states, and seals what it sends.

mod papers;
mod tls;

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::Duration;

use bytes::BytesMut;
use receptor_proto::NodeId;
use receptor_proto::frame::{CREDIT_FLOOR, DIGEST_BUCKETS, Frame, Hello, MAX_FRAME_FLOOR};
use receptor_proto::lsa::{Lsa, LsaKey, LsaKind};
use receptor_proto::packet::{Body, Packet};

use self::papers::Papers;
use self::tls::Tls;
use crate::authority::Authority;

/// How long one write may take: a daemon that does not read has stopped this member.
const WRITE_TIMEOUT: Duration = Duration::from_secs(20);

/// A connection that can be read and written at the same time.
pub trait Wire: Read + Write + Send {
    /// The same connection once more.
    ///
    /// # Errors
    ///
    /// Those of the system.
    fn again(&self) -> io::Result<Box<dyn Wire>>;
    /// Ends it in both directions.
    fn end(&self);
}

impl Wire for TcpStream {
    fn again(&self) -> io::Result<Box<dyn Wire>> {
        Ok(Box::new(self.try_clone()?))
    }

    fn end(&self) {
        // It may be closed already.
        let _ = self.shutdown(Shutdown::Both);
    }
}

/// What came over the link so far.
#[derive(Debug, Default, Clone)]
pub struct Heard {
    /// Frames by the first word of their debug form, such as `Lsas`.
    pub frames: BTreeMap<String, u64>,
    /// Why the daemon closed the link.
    pub goodbye: Option<String>,
    /// Nothing comes any more.
    pub ended: bool,
}

struct Shared {
    writer: Mutex<Box<dyn Wire>>,
    heard: Mutex<Heard>,
    papers: Option<Mutex<Papers>>,
    is_silent: AtomicBool,
}

/// One link of such a member. Closed when it is dropped.
pub struct Member {
    id: NodeId,
    shared: Arc<Shared>,
    wire: Box<dyn Wire>,
    reader: Option<JoinHandle<()>>,
}

impl std::fmt::Debug for Member {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Member").field("id", &self.id).finish()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().expect("nobody panics with it")
}

/// A node id.
///
/// # Panics
///
/// When the text is none.
#[must_use]
pub fn id(text: &str) -> NodeId {
    NodeId::new(text).expect("a node id")
}

/// The hello of a router.
#[must_use]
pub fn hello(node: NodeId, instance: u64) -> Frame {
    Frame::Hello(Hello {
        versions: (1, 1),
        node,
        instance,
        features: 0,
        max_frame: u32::try_from(MAX_FRAME_FLOOR).expect("a small number"),
        credit: CREDIT_FLOOR,
        hold_time_ms: 15_000,
        router: true,
        cost: 1,
        software: "hostile".to_owned(),
    })
}

/// A statement of anybody.
#[must_use]
pub fn lsa(node: &str, kind: LsaKind, seq: u64, body: bytes::Bytes) -> Lsa {
    let node = id(node);
    Lsa {
        key: LsaKey { node, kind },
        seq,
        instance: 1,
        remaining_s: 3600,
        body,
    }
}

/// Connects, with a certificate for `name` where the mesh has an authority. One write takes `patience` at most.
///
/// # Errors
///
/// Those of the system and of TLS.
pub fn connect(
    address: &str,
    authority: Option<&Authority>,
    name: &str,
    patience: Duration,
) -> io::Result<Box<dyn Wire>> {
    let stream = TcpStream::connect(address)?;
    let Some(authority) = authority else {
        stream.set_write_timeout(Some(patience))?;
        return Ok(Box::new(stream));
    };
    let connection = authority.client(name);
    let wire = Tls::new(connection, stream.try_clone()?)?;
    stream.set_write_timeout(Some(patience))?;
    Ok(Box::new(wire))
}

impl Member {
    /// Connects and says hello. Who listens may still refuse it.
    ///
    /// # Panics
    ///
    /// When nobody listens.
    #[must_use]
    pub fn join(address: &str, authority: Option<&Authority>, name: &str, instance: u64) -> Self {
        let wire = connect(address, authority, name, WRITE_TIMEOUT).expect("the daemon listens");
        let papers = authority.map(|authority| {
            let (own, trust) = authority.credentials(name);
            Papers::new(&id(name), own, trust)
        });
        let again = || wire.again().expect("a descriptor");
        let shared = Arc::new(Shared {
            writer: Mutex::new(again()),
            heard: Mutex::default(),
            papers: papers.map(Mutex::new),
            is_silent: AtomicBool::new(false),
        });
        let reader = again();
        let reader = std::thread::spawn({
            let shared = Arc::clone(&shared);
            move || read(reader, &shared)
        });
        let member = Self {
            id: id(name),
            shared,
            wire,
            reader: Some(reader),
        };
        member.send(&hello(member.id.clone(), instance));
        if let Some(papers) = &member.shared.papers {
            let identity = lock(papers).identity();
            member.send(&Frame::Lsas(vec![identity]));
            // It knows nothing yet, so it is told everything.
            for bucket in (0u8..).take(DIGEST_BUCKETS) {
                let entries = Vec::new();
                let more = false;
                member.send(&Frame::Summary {
                    bucket,
                    more,
                    entries,
                });
            }
        }
        member
    }

    /// Writes a frame. False: the link is closed, or the daemon does not read.
    pub fn send(&self, frame: &Frame) -> bool {
        let mut bytes = Vec::new();
        frame.encode(&mut bytes);
        self.raw(&bytes)
    }

    /// Writes bytes.
    pub fn raw(&self, bytes: &[u8]) -> bool {
        lock(&self.shared.writer).write_all(bytes).is_ok()
    }

    /// States what is in these, with its own signature.
    pub fn state(&self, mut lsas: Vec<Lsa>) -> bool {
        if let Some(papers) = &self.shared.papers {
            let papers = lock(papers);
            lsas = lsas.into_iter().map(|lsa| papers.signed(lsa)).collect();
        }
        self.send(&Frame::Lsas(lsas))
    }

    /// Writes a packet from this member, sealed where it can be.
    pub fn packet(&self, to: &str, body: &Body) -> bool {
        let mut packet = Packet::new(self.id.clone(), id(to), 30, body);
        if let Some(papers) = &self.shared.papers {
            packet = lock(papers).sealed(packet);
        }
        self.send(&Frame::Packet(packet))
    }

    /// The same with bytes in the seal's place that nobody made with a key, others each time.
    pub fn scribble(&self, to: &str, body: &Body) -> bool {
        let mut packet = Packet::new(self.id.clone(), id(to), 30, body);
        if let Some(papers) = &self.shared.papers {
            packet = lock(papers).scribbled(packet);
        }
        self.send(&Frame::Packet(packet))
    }

    /// Answers no probe any more.
    pub fn fall_silent(&self) {
        self.shared.is_silent.store(true, Ordering::Relaxed);
    }

    /// Whether what is written to this node will be sealed, if anything is.
    #[must_use]
    pub fn knows(&self, node: &str) -> bool {
        let papers = self.shared.papers.as_ref();
        papers.is_none_or(|papers| lock(papers).knows(&id(node)))
    }

    /// What came so far.
    #[must_use]
    pub fn heard(&self) -> Heard {
        lock(&self.shared.heard).clone()
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        self.wire.end();
        if let Some(reader) = self.reader.take() {
            let _ = reader.join();
        }
    }
}

fn read(mut wire: Box<dyn Wire>, shared: &Shared) {
    let mut input = BytesMut::new();
    let mut buffer = vec![0; 64 << 10];
    while let Ok(count) = wire.read(&mut buffer) {
        if count == 0 {
            break;
        }
        input.extend_from_slice(&buffer[..count]);
        while let Ok(Some(frame)) = Frame::split(&mut input, MAX_FRAME_FLOOR) {
            if let Ok(frame) = Frame::decode(frame) {
                take(&frame, shared);
            }
        }
    }
    lock(&shared.heard).ended = true;
}

fn take(frame: &Frame, shared: &Shared) {
    let shown = format!("{frame:?}");
    let name = shown.split(|c: char| !c.is_alphanumeric()).next();
    let mut heard = lock(&shared.heard);
    *heard
        .frames
        .entry(name.unwrap_or_default().to_owned())
        .or_default() += 1;
    if let Frame::Goodbye(goodbye) = frame {
        heard.goodbye = Some(goodbye.code.to_string());
    }
    drop(heard);
    if let (Frame::Lsas(lsas), Some(papers)) = (frame, &shared.papers) {
        let mut papers = lock(papers);
        lsas.iter().for_each(|lsa| papers.hear(lsa));
    }
    if let Frame::Probe { nonce } = frame
        && !shared.is_silent.load(Ordering::Relaxed)
    {
        let mut bytes = Vec::new();
        Frame::ProbeReply { nonce: *nonce }.encode(&mut bytes);
        let _ = lock(&shared.writer).write_all(&bytes);
    }
}
