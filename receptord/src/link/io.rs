//! One link at work: bytes of the transport to frames for the engine, and back.
//!
//! Owns the transport of a link from the moment it is ready until it is closed. Splits what
//! arrives into frames and hands everything that one read brought to the engine as one batch;
//! writes what the engine left in the [`Outbox`]. Decides nothing: what a frame means, and when
//! a silent peer is gone, is the core's business. The peer's bytes can end this link and
//! nothing else.

use std::io;
use std::pin::pin;
use std::rc::Rc;
use std::time::{Duration, Instant};

use bytes::{Buf as _, Bytes, BytesMut};
use receptor_mesh::{LinkId, LinkInfo, MAX_FRAME};
use receptor_proto::frame::{Frame, HELLO_MAX};
use receptor_proto::wire::DecodeError;
use receptor_proto::{ErrorBody, ErrorCode};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::sync::Notify;
use tokio::time::{timeout, timeout_at};

use super::admission::Permit;
use super::outbox::{Frames, Outbox};
use super::tls;
use super::transport::Transport;
use crate::engine::{EngineGone, EngineHandle, Input};

/// The first read buffer of a link: a quiet one never needs more.
const READ_MIN: usize = 8 * 1024;
/// The largest read buffer: more in one call to the system was not measurably faster.
const READ_MAX: usize = 256 * 1024;
/// A read buffer with less room than this is not worth a call to the system.
const READ_TAIL: usize = 4 * 1024;
/// Frames handed to the engine at once, so that a batch of tiny ones stays small in memory.
const BATCH_MAX: usize = 1024;
/// Time for the last bytes, the goodbye among them, to leave and for the peer to close.
const CLOSE_TIME: Duration = Duration::from_secs(1);
/// Time from the connection to the hello, with everything that is between them: TLS, and the request of a web socket.
pub(super) const OPEN_TIME: Duration = Duration::from_secs(5);

/// A link that begins.
#[derive(Debug)]
pub(super) struct Opening<'a> {
    /// Its name.
    pub(super) link: LinkId,
    /// What the core is told of it.
    pub(super) info: LinkInfo,
    /// The URL of its listener or peer.
    pub(super) origin: Rc<str>,
    /// When the peer must have said hello.
    pub(super) hello_by: Instant,
    /// Its place among those that are open.
    pub(super) permit: &'a Permit,
}

/// Runs a link until it ends, and says why it did: in the words of whoever said goodbye, if
/// anybody did. The engine hears of its start and, unless it closed the link itself, of its end.
pub(super) async fn run(
    transport: Transport,
    opening: Opening<'_>,
    engine: &EngineHandle,
) -> Result<ErrorBody, EngineGone> {
    let Opening {
        link,
        info,
        origin,
        hello_by,
        permit,
    } = opening;
    let outbox = Rc::new(Outbox::default());
    engine
        .send(Input::LinkUp {
            link,
            info,
            origin,
            outbox: Rc::clone(&outbox),
        })
        .await?;
    let Transport { reader, writer } = transport;
    let mut reader = reader;
    let mut write = pin!(write(writer, link, &outbox, engine));
    let mut written = false;
    let hello = Notify::new();
    let broken = {
        let mut read = pin!(read(&mut reader, link, &outbox, &hello, engine));
        let mut late = pin!(late(hello_by, link, &hello, permit, engine));
        tokio::select! {
            biased;
            end = &mut read => end?,
            end = &mut late => { end?; None }
            result = &mut write => {
                written = true;
                match result? {
                    Ok(()) => None,
                    Err(error) => Some(tls::fault(&error)),
                }
            }
            _ = outbox.closed() => None,
        }
    };
    if let Some(reason) = broken {
        engine
            .send(Input::LinkDown {
                link,
                error: reason.clone(),
            })
            .await?;
        return Ok(reason);
    }
    let reason = outbox.closed().await;
    // Whoever said no hello is in nobody's way while it is told so.
    permit.opened();
    // What the peer still sends is read and dropped: closing a socket with unread bytes would
    // take the goodbye away from the peer.
    let _ = timeout(CLOSE_TIME, async {
        let mut rest = [0; 4096];
        let drain = async { while matches!(reader.read(&mut rest).await, Ok(1..)) {} };
        if written {
            drain.await;
        } else {
            let _ = tokio::join!(write, drain);
        }
    })
    .await;
    Ok(reason)
}

/// Closes the link when the hello is late; never ends when it is in time.
async fn late(
    hello_by: Instant,
    link: LinkId,
    hello: &Notify,
    permit: &Permit,
    engine: &EngineHandle,
) -> Result<(), EngineGone> {
    if timeout_at(hello_by.into(), hello.notified()).await.is_ok() {
        permit.opened();
        return std::future::pending().await;
    }
    let reason = ErrorBody::new(ErrorCode::HelloTimeout, "no hello came in time");
    engine.send(Input::CloseLink { link, reason }).await
}

/// Reads until the transport ends or breaks (the reason) or the peer sent nonsense, which the
/// engine is told and answers by closing (`None`).
async fn read(
    reader: &mut (impl AsyncRead + Unpin + ?Sized),
    link: LinkId,
    outbox: &Outbox,
    hello: &Notify,
    engine: &EngineHandle,
) -> Result<Option<ErrorBody>, EngineGone> {
    let mut input = BytesMut::with_capacity(READ_MIN);
    let mut size = READ_MIN;
    let mut max_frame = HELLO_MAX;
    let mut goodbye = None;
    loop {
        let tail = input.capacity() - input.len();
        if tail < READ_TAIL {
            input.reserve(size);
        }
        let room = input.capacity() - input.len();
        let count = match reader.read_buf(&mut input).await {
            Ok(0) => {
                if let Some(goodbye) = goodbye {
                    return Ok(Some(goodbye));
                }
                let text = match input.len() {
                    0 => "the peer closed the connection".to_owned(),
                    rest => format!("the peer closed the connection {rest} bytes into a frame"),
                };
                return Ok(Some(ErrorBody::new(ErrorCode::Transport, text)));
            }
            Ok(count) => count,
            Err(error) => return Ok(Some(tls::fault(&error))),
        };
        outbox.count_in(count);
        // Grow while reads fill whole buffers (not only the rest of one), shrink when they stay
        // far below.
        if count == room && room >= size {
            size = (size * 4).min(READ_MAX);
        } else if count < size / 8 {
            size = (size / 2).max(READ_MIN);
        }
        loop {
            let (frames, error) = split(&mut input, &mut max_frame);
            let full = frames.len() == BATCH_MAX;
            if let Some(Frame::Hello(_)) = frames.first() {
                hello.notify_one();
            }
            if let Some(Frame::Goodbye(last)) = frames.last() {
                goodbye = Some(ErrorBody::new(last.code.clone(), last.message.clone()));
            }
            if !frames.is_empty() {
                engine.send(Input::Frames { link, frames }).await?;
            }
            if let Some(error) = error {
                engine.send(Input::BadFrame { link, error }).await?;
                return Ok(None);
            }
            if !full {
                break;
            }
        }
        // A large frame has begun: make room for the rest of it at once.
        if let Some(head) = input.first_chunk::<4>() {
            let whole = u32::from_be_bytes(*head) as usize + 4;
            if whole > input.capacity() {
                input.reserve((whole - input.len()).max(size));
            }
        }
    }
}

/// Takes the whole frames off the front of `input`, at most [`BATCH_MAX`].
fn split(input: &mut BytesMut, max_frame: &mut usize) -> (Vec<Frame>, Option<DecodeError>) {
    let mut frames = Vec::new();
    while frames.len() < BATCH_MAX {
        let decoded = match Frame::split(input, *max_frame) {
            Ok(Some(bytes)) => decode(bytes),
            Ok(None) => break,
            Err(error) => Err(error),
        };
        match decoded {
            Ok(frame) => {
                if matches!(frame, Frame::Hello(_)) {
                    *max_frame = MAX_FRAME;
                }
                frames.push(frame);
            }
            Err(error) => return (frames, Some(error)),
        }
    }
    (frames, None)
}

/// Decodes one frame. What the core keeps for long (LSAs) must keep neither the read buffer alive
/// nor the frame, which may be long behind what it says, so it is copied; packets, which pass
/// through, are not.
fn decode(bytes: Bytes) -> Result<Frame, DecodeError> {
    let mut frame = Frame::decode(bytes)?;
    if let Frame::Lsas(lsas) = &mut frame {
        for lsa in lsas {
            lsa.body = Bytes::copy_from_slice(&lsa.body);
        }
    }
    Ok(frame)
}

/// Writes until the outbox is closed and empty, or the transport breaks.
async fn write(
    mut writer: impl AsyncWrite + Unpin,
    link: LinkId,
    outbox: &Outbox,
    engine: &EngineHandle,
) -> Result<io::Result<()>, EngineGone> {
    let mut frames = Frames::default();
    while outbox.take(&mut frames).await {
        while frames.has_remaining() {
            let count = match writer.write_buf(&mut frames).await {
                Ok(0) => return Ok(Err(io::ErrorKind::WriteZero.into())),
                Ok(count) => count,
                Err(error) => return Ok(Err(error)),
            };
            if outbox.written(count) {
                engine.send(Input::LinkRoom { link }).await?;
            }
        }
        if let Err(error) = writer.flush().await {
            return Ok(Err(error));
        }
    }
    Ok(writer.shutdown().await)
}
