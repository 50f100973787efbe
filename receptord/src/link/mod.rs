//! Links: connections to other nodes, in both directions.
//!
//! Owns the listeners and dialers that the configuration asks for, and changes them when it
//! changes without touching the links that stay the same. Knows transports and bytes; what is
//! said over a link is the engine's and its core's business.
//!
//! ```text
//!   listener ──accept──┐                                         ┌──── Input::Frames ───▶
//!                      ├─▶ transport ─▶ link (io::run) ──────────┤                        engine
//!   dialer ───connect──┘   TLS, web socket, proxy                └◀─── Outbox ───────────
//! ```

mod admission;
mod backoff;
mod dialer;
mod io;
mod listener;
mod outbox;
mod proven;
mod proxy;
mod reach;
mod tls;
mod transport;
mod websocket;

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::fmt;
use std::rc::Rc;

use receptor_identity::Refusal;
use receptor_mesh::LinkId;
use receptor_proto::{ErrorBody, ErrorCode};
use tokio::task::JoinHandle;

use self::admission::Admission;
use self::dialer::Dialer;
use self::proven::ProvenLinks;
use crate::config::{Link, LinkUrl, Listen, Peer, Settings};
use crate::engine::{EngineHandle, Input};
use crate::keyring::{Keyring, LOOK_EVERY, Look, seconds_since_1970};
use crate::log;

pub(crate) use self::dialer::{DialState, Phase};
pub(crate) use self::listener::{Bound, ListenError, adopt, bind, url_of};
pub(crate) use self::outbox::{Outbox, WRITE_BUDGET};
pub(crate) use self::proxy::Proxies;
pub(crate) use self::tls::fuzz;

/// What all listeners and dialers share.
struct Shared {
    engine: EngineHandle,
    admission: Rc<Admission>,
    keyring: Rc<Keyring>,
    proxies: Proxies,
    proven: Rc<ProvenLinks>,
    /// Configured costs by URL, as of the last reload.
    costs: RefCell<BTreeMap<String, u32>>,
    /// The daemon stops: nothing is dialled again.
    stopping: Cell<bool>,
}

impl Shared {
    fn cost(&self, origin: &str, default: u32) -> u32 {
        self.costs.borrow().get(origin).copied().unwrap_or(default)
    }
}

/// All listeners and dialers of this node.
pub(crate) struct Links {
    shared: Rc<Shared>,
    link: RefCell<Link>,
    listeners: RefCell<BTreeMap<LinkUrl, Listening>>,
    peers: RefCell<BTreeMap<LinkUrl, (Peer, Dialer)>>,
}

struct Listening {
    listen: Listen,
    addresses: Vec<String>,
    tasks: Vec<JoinHandle<()>>,
}

/// A configured peer, for `status`.
#[derive(Debug)]
pub(crate) struct PeerView {
    /// The URL.
    pub(crate) address: String,
    /// The configured cost.
    pub(crate) cost: u32,
    /// Where its dialer stands.
    pub(crate) state: DialState,
}

impl fmt::Debug for Links {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Links").finish_non_exhaustive()
    }
}

impl Links {
    /// Serves the listeners that are bound and starts dialling every peer.
    pub(crate) fn start(
        settings: &Settings,
        bound: Vec<(Listen, Bound)>,
        engine: EngineHandle,
        keyring: Rc<Keyring>,
        proxies: Proxies,
    ) -> Self {
        let links = Self {
            shared: Rc::new(Shared {
                engine,
                admission: Admission::new(&settings.link),
                keyring,
                proxies,
                proven: Rc::default(),
                costs: RefCell::default(),
                stopping: Cell::new(false),
            }),
            link: RefCell::new(settings.link.clone()),
            listeners: RefCell::default(),
            peers: RefCell::default(),
        };
        for (listen, bound) in bound {
            links.listen(listen, bound);
        }
        for peer in &settings.peer {
            links.dial(peer);
        }
        links
    }

    /// Puts another configuration in force. Links whose listener or peer stays are kept, also
    /// when their cost changes.
    ///
    /// # Errors
    ///
    /// The listeners that could not be bound; everything else is in force.
    pub(crate) async fn apply(&self, settings: &Settings) -> Vec<ListenError> {
        self.shared.admission.set_limits(&settings.link);
        let before = self.link.replace(settings.link.clone());
        let redial = before != settings.link;

        let gone: Vec<_> = self
            .listeners
            .borrow()
            .iter()
            .filter(|(url, listening)| {
                !settings.listen.iter().any(|listen| {
                    listen.url == **url
                        && listen.allow_plaintext == listening.listen.allow_plaintext
                })
            })
            .map(|(url, _)| url.clone())
            .collect();
        for url in gone {
            self.stop_listening(&url).await;
        }
        let gone: Vec<_> = self
            .peers
            .borrow()
            .iter()
            .filter(|(url, (old, dialer))| {
                let kept = settings.peer.iter().find(|peer| peer.url == **url);
                // Other pauses are for the next loss; a dialer that has a link keeps it.
                let idle = !matches!(dialer.state().phase, Phase::Connected(_));
                kept.is_none_or(|peer| {
                    peer.allow_plaintext != old.allow_plaintext
                        || peer.headers != old.headers
                        || redial && idle
                })
            })
            .map(|(url, _)| url.clone())
            .collect();
        for url in gone {
            if let Some((_, dialer)) = self.peers.borrow_mut().remove(&url) {
                dialer.stop();
            }
        }

        let mut failed = Vec::new();
        for listen in &settings.listen {
            self.set_cost(&listen.url, listen.cost).await;
            if let Some(listening) = self.listeners.borrow_mut().get_mut(&listen.url) {
                listening.listen = listen.clone();
                continue;
            }
            match bind(&listen.url).await {
                Ok(bound) => self.listen(listen.clone(), bound),
                Err(error) => failed.push(error),
            }
        }
        for peer in &settings.peer {
            self.set_cost(&peer.url, peer.cost).await;
            if let Some((old, _)) = self.peers.borrow_mut().get_mut(&peer.url) {
                *old = peer.clone();
                continue;
            }
            self.dial(peer);
        }
        failed
    }

    /// Accepts and dials no more, and waits for the links to end, which the engine has been
    /// told before: their last bytes leave first.
    pub(crate) async fn stop(&self) {
        for listening in self.listeners.take().into_values() {
            for task in listening.tasks {
                task.abort();
            }
        }
        self.shared.stopping.set(true);
        let peers = self.peers.take();
        for (_, dialer) in peers.values() {
            if !matches!(dialer.state().phase, Phase::Connected(_)) {
                dialer.stop();
            }
        }
        self.shared.admission.idle().await;
    }

    /// What is listened on, with the ports that the system chose.
    pub(crate) fn listening(&self) -> Vec<String> {
        let listeners = self.listeners.borrow();
        let addresses = listeners
            .values()
            .flat_map(|listening| &listening.addresses);
        addresses.cloned().collect()
    }

    /// The configured peers.
    pub(crate) fn peers(&self) -> Vec<PeerView> {
        let peers = self.peers.borrow();
        peers
            .iter()
            .map(|(url, (peer, dialer))| PeerView {
                address: url.to_string(),
                cost: peer.cost,
                state: dialer.state(),
            })
            .collect()
    }

    /// When the certificate that a link stands on is over, in seconds since 1970; nothing without TLS.
    pub(crate) fn proven_until(&self, link: LinkId) -> Option<u64> {
        self.shared.proven.not_after(link)
    }

    /// Looks after certificates for as long as the daemon runs: reads files that have changed, cuts the links whose
    /// peers are believed no more, and says what is about to expire.
    pub(crate) async fn look_after_certificates(self: Rc<Self>) {
        loop {
            self.shared.keyring.remind();
            tokio::time::sleep(LOOK_EVERY).await;
            match self.shared.keyring.look() {
                Look::Changed => self.keys_changed().await,
                Look::Same => {
                    for (link, refusal) in self.shared.proven.expired(seconds_since_1970()) {
                        self.cut(link, &refusal).await;
                    }
                }
            }
        }
    }

    /// Other certificates are in force, here or as those whom this node believes: links that would not be made again
    /// are cut, all others stay, and peers that refused to make one are asked again.
    pub(crate) async fn keys_changed(&self) {
        if let Some(keys) = self.shared.keyring.keys() {
            for (link, proven) in self.shared.proven.all() {
                if let Err(refusal) = proven.check(&keys.trust, seconds_since_1970()) {
                    self.cut(link, &refusal).await;
                }
                // A thousand signatures are not checked in one go.
                tokio::task::yield_now().await;
            }
        }
        let _ = self.shared.engine.send(Input::OtherKeys).await;
        for (_, dialer) in self.peers.borrow().values() {
            dialer.hurry();
        }
    }

    async fn cut(&self, link: LinkId, refusal: &Refusal) {
        let text = format!("the other end's certificate is refused: {refusal}");
        tracing::warn!(message_id = log::id::LINK_REFUSED, link = link.0, "{text}");
        let reason = ErrorBody::new(ErrorCode::Untrusted, text);
        let _ = self
            .shared
            .engine
            .send(Input::CloseLink { link, reason })
            .await;
    }

    fn listen(&self, listen: Listen, bound: Bound) {
        let addresses = bound.addresses.clone();
        tracing::info!(url = %listen.url, ?addresses, "listening");
        let tasks = bound.serve(&listen, &self.shared);
        let listening = Listening {
            listen: listen.clone(),
            addresses,
            tasks,
        };
        self.listeners.borrow_mut().insert(listen.url, listening);
    }

    fn dial(&self, peer: &Peer) {
        let dialer = Dialer::start(peer, &self.link.borrow(), &self.shared);
        let mut peers = self.peers.borrow_mut();
        peers.insert(peer.url.clone(), (peer.clone(), dialer));
    }

    async fn stop_listening(&self, url: &LinkUrl) {
        let removed = self.listeners.borrow_mut().remove(url);
        let Some(listening) = removed else {
            return;
        };
        for task in &listening.tasks {
            task.abort();
        }
        // The sockets are closed before another listener may want the same address.
        for task in listening.tasks {
            let _ = task.await;
        }
        tracing::info!(%url, "listening no more");
        let text = "the listener was taken out of the configuration";
        let close = Input::CloseOrigin {
            origin: url.to_string(),
            reason: ErrorBody::new(ErrorCode::Deconfigured, text),
        };
        let _ = self.shared.engine.send(close).await;
    }

    async fn set_cost(&self, url: &LinkUrl, cost: u32) {
        let origin = url.to_string();
        let before = self.shared.costs.borrow_mut().insert(origin.clone(), cost);
        if before.is_some_and(|before| before == cost) {
            return;
        }
        let _ = self
            .shared
            .engine
            .send(Input::SetCost { origin, cost })
            .await;
    }
}
