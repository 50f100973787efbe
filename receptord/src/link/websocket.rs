//! Web sockets: the bytes of a link inside of binary messages.
//!
//! Owns the request and its answer, and turning messages into a stream of bytes and back. Where a message begins and
//! ends means nothing: frames of the link protocol may be cut anywhere, so that a proxy may do with messages what it
//! likes.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf as _, Bytes};
use futures_util::{Sink as _, Stream as _};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;
use tokio_tungstenite::tungstenite::handshake::server::{ErrorResponse, Request, Response};
use tokio_tungstenite::tungstenite::http::{HeaderName, HeaderValue, StatusCode, header};
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_tungstenite::tungstenite::{Error, Message};
use tokio_tungstenite::{accept_hdr_async_with_config, client_async_with_config};

use super::transport::ConnectError;
use crate::config::Peer;

/// The largest message that is taken, and the largest frame of one. Ours are far smaller; other programs may collect more.
const MESSAGE_MAX: usize = 1 << 20;
/// Bytes in one message that is sent: a probe does not wait for more than this to be written as a whole.
const MESSAGE_SEND: usize = 64 * 1024;
/// What one call to the system reads; taken for each link, also for quiet ones.
const READ_BUFFER: usize = 32 * 1024;
/// Messages without bytes for us (pings, empty ones) that are passed over before other links have their turn.
const EMPTY_MAX: usize = 64;

fn config() -> WebSocketConfig {
    WebSocketConfig::default()
        .read_buffer_size(READ_BUFFER)
        .write_buffer_size(MESSAGE_SEND)
        .max_message_size(Some(MESSAGE_MAX))
        .max_frame_size(Some(MESSAGE_MAX))
}

/// The end that opened the connection: asks for a web socket, with the headers that are configured.
pub(super) async fn connect<S>(stream: S, peer: &Peer) -> Result<WebSocket<S>, ConnectError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let request = peer.url.to_string().into_client_request();
    let mut request = request.map_err(failed)?;
    for (name, value) in &peer.headers {
        let name = HeaderName::try_from(name);
        let value = HeaderValue::try_from(value);
        // The configuration has let only such through as can be sent.
        if let (Ok(name), Ok(mut value)) = (name, value) {
            value.set_sensitive(true);
            request.headers_mut().insert(name, value);
        }
    }
    match client_async_with_config(request, stream, Some(config())).await {
        Ok((stream, _)) => Ok(WebSocket::new(stream)),
        Err(error) => Err(failed(error)),
    }
}

/// The end that accepted it: takes a request for `path`.
pub(super) async fn accept<S>(stream: S, path: &str) -> Result<WebSocket<S>, ConnectError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let (path, _) = path.split_once('?').unwrap_or((path, ""));
    #[expect(
        clippy::result_large_err,
        reason = "the form that the library wants, once for each connection"
    )]
    let check = |request: &Request, response: Response| {
        // A page in a browser on this host could reach a port of loopback, and says so by this header.
        if request.headers().contains_key(header::ORIGIN) {
            return Err(answer(
                StatusCode::FORBIDDEN,
                "web pages cannot be nodes of a mesh\n",
            ));
        }
        if request.uri().path() != path {
            return Err(answer(StatusCode::NOT_FOUND, "no mesh is served here\n"));
        }
        Ok(response)
    };
    match accept_hdr_async_with_config(stream, check, Some(config())).await {
        Ok(stream) => Ok(WebSocket::new(stream)),
        Err(error) => Err(failed(error)),
    }
}

fn answer(status: StatusCode, text: &str) -> ErrorResponse {
    let mut response = ErrorResponse::new(Some(text.to_owned()));
    *response.status_mut() = status;
    response
}

fn failed(error: Error) -> ConnectError {
    #[expect(
        clippy::wildcard_enum_match_arm,
        reason = "a foreign enum that grows; all others are told as they are"
    )]
    match error {
        // An alert of TLS may be what ended it.
        Error::Io(error) => ConnectError::Tls(error),
        Error::Http(response) => {
            let hint = match response.status() {
                StatusCode::NOT_FOUND => " (is the path right?)",
                StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => " (are the headers right?)",
                _ => "",
            };
            let status = response.status();
            ConnectError::WebSocket(format!("no web socket: the answer is {status}{hint}"))
        }
        other => ConnectError::WebSocket(format!("no web socket: {other}")),
    }
}

/// The bytes of a link over a web socket.
#[derive(Debug)]
pub(super) struct WebSocket<S> {
    stream: WebSocketStream<S>,
    /// What is left of the last message.
    rest: Bytes,
}

impl<S> WebSocket<S> {
    fn new(stream: WebSocketStream<S>) -> Self {
        Self {
            stream,
            rest: Bytes::new(),
        }
    }
}

fn io_error(error: Error) -> io::Error {
    #[expect(
        clippy::wildcard_enum_match_arm,
        reason = "a foreign enum that grows; all others are told as they are"
    )]
    match error {
        Error::Io(error) => error,
        Error::ConnectionClosed | Error::AlreadyClosed => io::ErrorKind::UnexpectedEof.into(),
        other => io::Error::new(io::ErrorKind::InvalidData, other),
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for WebSocket<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        for _ in 0..EMPTY_MAX {
            if !self.rest.is_empty() {
                let count = self.rest.len().min(buffer.remaining());
                buffer.put_slice(&self.rest[..count]);
                self.rest.advance(count);
                return Poll::Ready(Ok(()));
            }
            let message = match ready!(Pin::new(&mut self.stream).poll_next(cx)) {
                Some(Ok(message)) => message,
                None | Some(Err(Error::ConnectionClosed | Error::AlreadyClosed)) => {
                    return Poll::Ready(Ok(()));
                }
                Some(Err(error)) => return Poll::Ready(Err(io_error(error))),
            };
            match message {
                Message::Binary(bytes) => self.rest = bytes,
                // The library answers pings by itself.
                Message::Ping(_) | Message::Pong(_) | Message::Frame(_) => {}
                Message::Close(_) => return Poll::Ready(Ok(())),
                Message::Text(_) => {
                    let text = "a web socket of the mesh carries no text";
                    let error = io::Error::new(io::ErrorKind::InvalidData, text);
                    return Poll::Ready(Err(error));
                }
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for WebSocket<S> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        pieces: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        ready!(Pin::new(&mut self.stream).poll_ready(cx)).map_err(io_error)?;
        let all: usize = pieces.iter().map(|piece| piece.len()).sum();
        let count = all.min(MESSAGE_SEND);
        let mut message = Vec::with_capacity(count);
        for piece in pieces {
            let rest = count - message.len();
            message.extend_from_slice(&piece[..piece.len().min(rest)]);
        }
        Pin::new(&mut self.stream)
            .start_send(Message::Binary(message.into()))
            .map_err(io_error)?;
        Poll::Ready(Ok(count))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx).map_err(io_error)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_close(cx).map_err(io_error)
    }
}
