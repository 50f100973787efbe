//! What the host knows of every plugin, and how it comes to know it.
//!
//! Owns the answer to what a name stands for: the file that was found, what it said of itself, why it cannot
//! be used. It tells the admission what each plugin may do, and the engine what the node can. Never
//! starts a work and never waits for a plugin.

use std::collections::VecDeque;
use std::rc::Rc;
use std::time::{Duration, Instant};

use receptor_proto::lsa::{Capability, TEXT_MAX};
use receptor_proto::plugin::{Mode, PluginHello};
use receptor_proto::{ErrorBody, ErrorCode};
use tokio::task::JoinHandle;

use super::Host;
use crate::task;
use crate::worker::admission::Known;
use crate::worker::api::{Job, PluginInfo, Report};
use crate::worker::describe::describe;
use crate::worker::discover::{Found, Installed};
use crate::worker::outcome::{cut, error};
use crate::worker::serve::Server;
use crate::worker::shared::{Promise, TaskEnd};

/// Descriptions under way at once.
const MAX_DESCRIBING: usize = 4;
/// Changes of what the node can do gather for this long while plugins are being described: each
/// report is flooded through the mesh.
const GATHER: Duration = Duration::from_secs(1);

/// What is known of one name.
#[derive(Debug, Default)]
pub(super) struct Plugin {
    /// `None` once it is gone, as long as works of it run.
    pub found: Option<Found>,
    /// What it said last.
    pub hello: Option<Rc<PluginHello>>,
    /// Why it cannot be used, when it cannot.
    pub problem: Option<ErrorBody>,
    /// Works wait for this description.
    pub unknown: bool,
    pub describing: Option<(u64, JoinHandle<()>)>,
    pub described_at: Option<Instant>,
    pub ask_at: Option<Instant>,
    pub waiting: VecDeque<(u64, Box<Job>)>,
    pub server: Option<Rc<Server>>,
    pub servers: usize,
    pub crashes: VecDeque<Instant>,
    pub paused_until: Option<Instant>,
    /// It was stopped for its crashes.
    pub stopped: Option<String>,
}

impl Plugin {
    pub(super) fn is_installed(&self) -> bool {
        matches!(self.found, Some(Found::Plugin { .. }))
    }

    /// Forgets its crashes.
    pub(super) fn forgive(&mut self) {
        self.crashes.clear();
        self.paused_until = None;
        self.stopped = None;
    }

    /// New works get a new process.
    pub(super) fn let_server_go(&mut self) {
        if let Some(server) = self.server.take() {
            server.close();
        }
    }

    pub(super) fn stop_describing(&mut self) {
        if let Some((_, handle)) = self.describing.take() {
            handle.abort();
        }
    }

    /// Why it gets no works, or has little chance with them.
    fn reason(&self) -> Option<String> {
        match &self.found {
            Some(Found::Refused { why, .. }) => return Some(why.clone()),
            Some(Found::Masked { .. }) => return Some("masked by a link to /dev/null".to_owned()),
            Some(Found::Plugin { .. }) | None => {}
        }
        if let Some(problem) = &self.problem {
            return Some(problem.message.clone());
        }
        if self.stopped.is_some() {
            return self.stopped.clone();
        }
        let Some(hello) = &self.hello else {
            return Some("it has not said its hello yet".to_owned());
        };
        let reason = hello.reason.clone();
        (!hello.ready).then(|| reason.unwrap_or_else(|| "it does not say why".to_owned()))
    }

    fn capability(&self, name: &str) -> Option<Capability> {
        let hello = self.hello.as_ref().filter(|_| self.is_installed())?;
        if self.problem.is_some() {
            return None;
        }
        Some(Capability {
            plugin: name.to_owned(),
            version: cut(hello.version.clone(), TEXT_MAX),
            ready: self.reason().is_none(),
            actions: hello.actions.keys().cloned().collect(),
        })
    }
}

impl Host {
    /// What was found in the directories.
    pub(super) fn installed(&mut self, installed: Installed) {
        let Installed { by_name, .. } = installed;
        let gone: Vec<String> = self
            .plugins
            .iter()
            .filter(|(name, plugin)| plugin.found.is_some() && !by_name.contains_key(*name))
            .map(|(name, _)| name.clone())
            .collect();
        for name in gone {
            tracing::info!(plugin = name, "the plugin was removed");
            self.replace(&name, None);
        }
        for (name, found) in by_name {
            let plugin = self.plugins.entry(name.clone()).or_default();
            if plugin.found.as_ref() == Some(&found) {
                continue;
            }
            match &found {
                Found::Plugin { executable, .. } => {
                    let path = executable.path.display();
                    tracing::info!(plugin = name, %path, "a plugin is installed");
                }
                Found::Masked { path } => {
                    tracing::info!(plugin = name, path = %path.display(), "the plugin is masked");
                }
                Found::Refused { why, .. } => {
                    let message_id = crate::log::id::PLUGIN_REFUSED;
                    tracing::warn!(message_id, plugin = name, "the plugin is refused: {why}");
                }
            }
            self.replace(&name, Some(found));
        }
    }

    /// Another file, or none, stands for this name from now on.
    fn replace(&mut self, name: &str, found: Option<Found>) {
        let Some(plugin) = self.plugins.get_mut(name) else {
            return;
        };
        let is_plugin = matches!(found, Some(Found::Plugin { .. }));
        plugin.found = found;
        plugin.problem = None;
        plugin.forgive();
        plugin.let_server_go();
        plugin.stop_describing();
        plugin.ask_at = None;
        plugin.unknown = is_plugin;
        if is_plugin {
            self.admission.set_open(name, false);
            self.to_describe.insert(name.to_owned());
        } else {
            plugin.hello = None;
            self.admission.remove_plugin(name);
            self.refuse_waiting(name);
            self.dirty();
        }
        self.forget_if_gone(name);
    }

    /// Forgets a name that stands for nothing any more.
    pub(super) fn forget_if_gone(&mut self, name: &str) {
        let is_gone = self.plugins.get(name).is_some_and(|plugin| {
            plugin.found.is_none() && plugin.servers == 0 && plugin.waiting.is_empty()
        });
        if is_gone && self.admission.used_by(name) == 0 {
            self.plugins.remove(name);
            self.admission.remove_plugin(name);
        }
    }

    pub(super) fn describe_all(&mut self) {
        let installed = self
            .plugins
            .iter()
            .filter(|(_, plugin)| plugin.is_installed());
        self.to_describe
            .extend(installed.map(|(name, _)| name.clone()));
    }

    pub(super) fn describe_more(&mut self) {
        let mut busy = self
            .plugins
            .values()
            .filter(|p| p.describing.is_some())
            .count();
        while busy < MAX_DESCRIBING
            && self.stopping.is_none()
            && let Some(name) = self.to_describe.pop_first()
        {
            let number = self.shared.next_number();
            let Some(plugin) = self.plugins.get_mut(&name) else {
                continue;
            };
            let Some(Found::Plugin { executable, .. }) = &plugin.found else {
                continue;
            };
            let work = describe(
                Rc::clone(&self.shared),
                Rc::clone(&self.config),
                executable.clone(),
            );
            let fallback = TaskEnd::Described {
                plugin: name.clone(),
                number,
                result: Err(error(ErrorCode::Internal, "the description failed")),
            };
            let promise = Promise::new(&self.shared.ends, fallback);
            plugin.stop_describing();
            plugin.ask_at = None;
            let handle = task::spawn("plugin description", async move {
                let result = work.await;
                promise.keep(TaskEnd::Described {
                    plugin: name,
                    number,
                    result,
                });
            });
            plugin.describing = Some((number, handle));
            busy += 1;
        }
    }

    /// What the node can do has perhaps changed.
    pub(super) fn dirty(&mut self) {
        self.advertise_at.get_or_insert(Instant::now() + GATHER);
    }

    pub(super) fn advertise(&mut self) {
        let Some(at) = self.advertise_at else { return };
        let quiet = self.to_describe.is_empty()
            && self
                .plugins
                .values()
                .all(|plugin| plugin.describing.is_none());
        if !quiet && Instant::now() < at {
            return;
        }
        self.advertise_at = None;
        let capabilities: Vec<Capability> = self
            .plugins
            .iter()
            .filter_map(|(name, plugin)| plugin.capability(name))
            .collect();
        if self.advertised.as_ref() != Some(&capabilities) {
            self.outbox
                .push_back(Report::Capabilities(capabilities.clone()));
            self.advertised = Some(capabilities);
        }
    }

    pub(super) fn list(&self) -> Vec<PluginInfo> {
        let there = self.plugins.iter();
        there
            .filter_map(|(name, plugin)| {
                let found = plugin.found.as_ref()?;
                let hello = plugin.hello.as_deref();
                let reason = plugin.reason();
                Some(PluginInfo {
                    name: name.clone(),
                    path: found.path().to_owned(),
                    ready: hello.is_some() && reason.is_none(),
                    reason,
                    masked: matches!(found, Found::Masked { .. }),
                    mode: hello.map(|hello| hello.mode),
                    hello: hello.cloned(),
                    running: self.admission.used_by(name),
                    waiting: plugin.waiting.len(),
                })
            })
            .collect()
    }

    /// A job's own hello is as good as a description, and newer.
    pub(super) fn heard_hello(&mut self, name: &str, hello: PluginHello) {
        let Some(plugin) = self.plugins.get_mut(name) else {
            return;
        };
        // A hello that is never the same twice must not double the processes.
        let is_recent = plugin
            .described_at
            .is_some_and(|at| at.elapsed() < self.config.times.ask_again);
        let is_news = plugin
            .hello
            .as_ref()
            .is_some_and(|old| old.ready != hello.ready || (!is_recent && **old != hello));
        // While it is being described the file has perhaps changed since this one was started.
        if is_news && plugin.describing.is_none() && !self.to_describe.contains(name) {
            self.to_describe.insert(name.to_owned());
        }
    }

    pub(super) fn described(
        &mut self,
        name: &str,
        number: u64,
        result: Result<PluginHello, ErrorBody>,
    ) {
        let now = Instant::now();
        let Some(plugin) = self.plugins.get_mut(name) else {
            return;
        };
        if plugin
            .describing
            .as_ref()
            .is_none_or(|(latest, _)| *latest != number)
        {
            return;
        }
        plugin.describing = None;
        plugin.described_at = Some(now);
        plugin.unknown = false;
        let ask_again = now + self.config.times.ask_again;
        let before = plugin.hello.clone();
        match result {
            Ok(hello) => {
                let is_news =
                    before.is_none_or(|before| *before != hello) || plugin.problem.is_some();
                if !hello.ready {
                    plugin.ask_at = Some(ask_again);
                    let reason = hello.reason.as_deref().unwrap_or_default();
                    if is_news {
                        tracing::warn!(plugin = name, reason, "the plugin is not ready");
                    }
                } else if is_news {
                    tracing::info!(
                        plugin = name,
                        version = hello.version,
                        "the plugin is ready"
                    );
                }
                plugin.hello = Some(Rc::new(hello));
                plugin.problem = None;
                self.open(name);
            }
            Err(problem) => {
                plugin.ask_at = Some(ask_again);
                if plugin.problem.as_ref() != Some(&problem) {
                    tracing::warn!(plugin = name, "{}", problem.message);
                }
                plugin.problem = Some(problem);
                self.admission.set_open(name, false);
                self.refuse_waiting(name);
            }
        }
        self.dirty();
        self.forget_if_gone(name);
    }

    /// Tells the admission what the plugin may do now.
    pub(super) fn open(&mut self, name: &str) {
        let Some(plugin) = self.plugins.get(name) else {
            return;
        };
        let Some(hello) = &plugin.hello else { return };
        let own = self.config.plugins.get(name).and_then(|own| own.max_works);
        let said = hello
            .max_jobs
            .map(|jobs| usize::try_from(jobs).unwrap_or(usize::MAX));
        let actions = hello.actions.iter();
        let actions = actions.map(|(name, action)| (name.clone(), action.idempotent));
        let open = plugin.is_installed()
            && plugin.problem.is_none()
            && plugin.stopped.is_none()
            && plugin.paused_until.is_none()
            && !plugin.unknown;
        let serves = hello.mode == Mode::Serve;
        // One that serves and does not say how much it bears gets as many as processes would.
        let unsaid = if serves {
            self.config.max_works
        } else {
            usize::MAX
        };
        let known = Known {
            open,
            serves,
            max: own.or(said).unwrap_or(unsaid),
            actions: actions.collect(),
        };
        if self.admission.set_plugin(name, known) {
            // What waits with the engine asks no further until it hears of a place.
            self.outbox.push_back(Report::Room);
        }
    }

    /// Refuses works that wait for what will not come.
    pub(super) fn refuse_waiting(&mut self, name: &str) {
        let Some(plugin) = self.plugins.get_mut(name) else {
            return;
        };
        let waiting = std::mem::take(&mut plugin.waiting);
        let mut stay = VecDeque::new();
        for (order, job) in waiting {
            match self.check(&job) {
                Ok(()) => stay.push_back((order, job)),
                Err(problem) => self.refuse(job.work, problem),
            }
        }
        self.admission.set_waiting(name, stay.len());
        if let Some(plugin) = self.plugins.get_mut(name) {
            plugin.waiting = stay;
        }
    }
}
