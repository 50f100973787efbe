//! The plugin host's own task.
//!
//! Owns what is known of every plugin and where every work is: waiting, or with which process. It decides
//! who runs next and who is refused; talking to plugins is for the tasks that it starts. It never waits
//! for a plugin, a disk or the engine: whatever takes time comes back as an event. What it knows of plugins
//! is in `plugins`, what an earlier daemon has left in `left`.
//!
//! ```text
//! engine ── Command ──▶ Host ──▶ Lookout   what is installed
//!   ▲                    │ ▲
//!   │                    │ └──── Ends ◀─┐
//!   │                    ├─▶ describe ──┤   one task each
//!   ├── Report ◀── job ◀─┼─▶ job ───────┤
//!   └── Report ◀─ serve ◀┴─▶ serve ─────┴──▶ Sweeper   what they leave behind
//! ```

mod left;
mod plugins;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::{Duration, Instant};

use nix::sys::prctl;
use receptor_proto::lsa::Capability;
use receptor_proto::packet::Content;
use receptor_proto::plugin::{CancelReason, Mode};
use receptor_proto::{Directive, ErrorBody, ErrorCode, MessageId};
use tokio::sync::mpsc;
use tokio::task::spawn_blocking;

use self::left::Left;
use self::plugins::Plugin;
use super::admission::Admission;
use super::alarm::Alarm;
use super::api::{Command, Job, JobPayload, MAX_WAITING, Report, ReportPayload};
use super::config::{HostConfig, PluginConfig};
use super::discover::Found;
use super::job;
use super::lookout::Lookout;
use super::outcome::{Outcome, error};
use super::process::Spawner;
use super::running::{Control, Terms, Why};
use super::serve::{self, NewJob, Server, ServerEnd};
use super::shared::{Promise, Shared, TaskEnd};
use super::tree;
use crate::by_id::ById;
use crate::task;

/// Answers of the host itself that wait for the engine; with more no command is read.
const MAX_OUTBOX: usize = 256;
/// Commands taken in one turn, so that ended works give their places back in between.
const COMMANDS: usize = 64;

/// Why there can be no host.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    /// A directory of its own cannot be made.
    #[error("the plugin host cannot use {path}")]
    Directory {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The kernel refuses to hand orphans over.
    #[error("the plugin host cannot become the parent of orphans")]
    Subreaper(#[source] io::Error),
}

/// See the module.
#[derive(Debug)]
pub struct Host {
    config: Rc<HostConfig>,
    commands: mpsc::Receiver<Command>,
    shared: Rc<Shared>,
    admission: Admission,
    lookout: Rc<Lookout>,
    plugins: BTreeMap<String, Plugin>,
    works: ById<Work>,
    /// Works with the id of one that has ended and is not gone yet: its key was released and used again at once. One at most for
    /// each work that ends here and each directory that the sweeper has, which is bounded.
    put_off: Vec<Job>,
    /// Processes that an earlier daemon has left, until it is known which of their works go on.
    left: Vec<Left>,
    /// Works, and directories of processes, that the next daemon goes on with: what is theirs stays.
    spared: BTreeSet<String>,
    outbox: VecDeque<Report>,
    /// Gives waiting works their order over all plugins.
    order: u64,
    to_describe: BTreeSet<String>,
    advertised: Option<Vec<Capability>>,
    advertise_at: Option<Instant>,
    engine_is_gone: bool,
    stopping: Option<Stopping>,
    alarm: Alarm,
}

#[derive(Debug)]
struct Stopping {
    /// When works that still run are ended.
    at: Instant,
    ended: bool,
}

#[derive(Debug)]
enum Work {
    Waiting {
        directive: Directive,
    },
    Running {
        directive: Directive,
        control: Rc<Control>,
        server: Option<u64>,
    },
}

impl Host {
    /// Makes the host's directories and the kernel's promise that orphans come here.
    ///
    /// # Errors
    /// When one of these cannot be had.
    pub fn new(
        config: HostConfig,
        commands: mpsc::Receiver<Command>,
        reports: mpsc::Sender<Report>,
    ) -> Result<Self, HostError> {
        for path in [config.jobs(), config.results()] {
            make_private(&path).map_err(|source| HostError::Directory { path, source })?;
        }
        prctl::set_child_subreaper(true).map_err(|e| HostError::Subreaper(e.into()))?;
        let admission = Admission::default();
        let spawner = Spawner::new(config.helper.clone());
        let shared = Shared::new(spawner, admission.clone(), reports);
        admission.set_max(config.max_works);
        let lookout = Lookout::new(config.dirs.clone(), config.allow_unsafe);
        Ok(Self {
            commands,
            shared: Rc::new(shared),
            admission,
            lookout: Rc::new(lookout),
            plugins: BTreeMap::new(),
            works: ById::default(),
            put_off: Vec::new(),
            left: Vec::new(),
            spared: BTreeSet::new(),
            outbox: VecDeque::new(),
            order: 0,
            to_describe: BTreeSet::new(),
            advertised: None,
            advertise_at: None,
            engine_is_gone: false,
            stopping: None,
            alarm: Alarm::default(),
            config: Rc::new(config),
        })
    }

    /// The places for works, which the engine may give to those that just arrived.
    #[must_use]
    pub fn admission(&self) -> Admission {
        self.admission.clone()
    }

    /// Runs until [`Command::Shutdown`], or until the engine is gone, and then until nothing is
    /// left of any work.
    pub async fn run(mut self) {
        self.clear_away(vec![self.config.jobs(), self.config.results()])
            .await;
        let sweeper = task::spawn("plugin sweeper", Rc::clone(&self.shared.sweeper).run());
        let lookout = task::spawn("plugin lookout", Rc::clone(&self.lookout).run());
        let installed = self.lookout.found().await;
        self.installed(installed);
        self.dirty();
        while !self.is_over() {
            self.turn().await;
        }
        lookout.abort();
        self.shared.spawner.unpark();
        for report in std::mem::take(&mut self.outbox) {
            if self.shared.reports.send(report).await.is_err() {
                break;
            }
        }
        self.shared.sweeper.finish().await;
        sweeper.abort();
        // The engine may still be about to take results.
        self.clear_away(vec![self.config.jobs()]).await;
    }

    /// Ends whatever runs below the job directories, and empties these directories.
    async fn clear_away(&self, dirs: Vec<PathBuf>) {
        let jobs = self.config.jobs();
        let spared = self.spared.clone();
        let cleared = spawn_blocking(move || {
            tree::sweep_below(&jobs, &spared);
            for dir in &dirs {
                for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
                    let name = entry.file_name();
                    let name = name.to_str().unwrap_or_default();
                    // A result is named for its work.
                    let job = name.split('.').next().unwrap_or_default();
                    if spared.contains(name) || spared.contains(job) {
                        continue;
                    }
                    if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                        super::sweep::remove(&entry.path());
                    } else {
                        let _ = fs::remove_file(entry.path());
                    }
                }
            }
        });
        if let Err(error) = cleared.await {
            tracing::error!(%error, "clearing away what was left of works");
        }
    }

    async fn turn(&mut self) {
        self.take_put_off();
        self.describe_more();
        self.start_more();
        self.advertise();
        let deadline = self.deadline();
        let listens = self.outbox.len() < MAX_OUTBOX;
        let shared = Rc::clone(&self.shared);
        let lookout = Rc::clone(&self.lookout);
        tokio::select! {
            command = self.commands.recv(), if listens && !self.engine_is_gone => {
                self.take_commands(command);
            }
            permit = shared.reports.reserve(), if !self.outbox.is_empty() => match permit {
                Ok(permit) => {
                    if let Some(report) = self.outbox.pop_front() {
                        permit.send(report);
                    }
                }
                Err(_) => self.outbox.clear(),
            },
            ends = shared.ends.next() => {
                for end in ends {
                    self.ended(end);
                }
            }
            installed = lookout.found() => self.installed(installed),
            () = shared.sweeper.progress(), if shared.sweeper.is_full() || !self.put_off.is_empty() => {}
            () = self.alarm.wait(deadline) => self.keep_time(Instant::now()),
        }
    }

    fn take_commands(&mut self, first: Option<Command>) {
        let Some(first) = first else {
            self.engine_is_gone = true;
            self.shut_down(Duration::ZERO);
            return;
        };
        self.command(first);
        for _ in 1..COMMANDS {
            match self.commands.try_recv() {
                Ok(command) => self.command(command),
                Err(_) => return,
            }
        }
    }

    fn command(&mut self, command: Command) {
        match command {
            Command::Run(job) => self.take(job),
            Command::Start { work } => self.start_is_safe(work),
            Command::Cancel { work, reason } => self.cancel(work, reason),
            Command::Taken { work, results } => {
                if let Some(Work::Running { control, .. }) = self.works.get(&work) {
                    control.taken(results);
                }
            }
            Command::Safe { work, results, end } => {
                if let Some(Work::Running { control, .. }) = self.works.get(&work) {
                    control.set_safe(results);
                    if end {
                        control.set_end_safe();
                    }
                }
            }
            Command::GoOn { job, repeats } => self.go_on(job, repeats),
            Command::EndOthers => self.end_others(),
            Command::SetConfig(config) => self.set_config(*config),
            Command::Rescan => {
                self.lookout.look();
                self.describe_all();
            }
            Command::RestartPlugin { name, reply } => {
                let _ = reply.send(self.restart(&name));
            }
            Command::List { reply } => {
                let _ = reply.send(self.list());
            }
            Command::Shutdown { grace } => self.shut_down(grace),
        }
    }

    // Works.

    fn take(&mut self, job: Box<Job>) {
        // The engine has heard of an end before the process is gone, and before its directory is, which is
        // named for the work.
        if self.is_here(job.work) {
            return self.put_off.push(*job);
        }
        if let Some(stopping) = &self.stopping
            && (stopping.ended || !job.admitted)
        {
            // No plugin has seen it, and its entry stays in the engine's store. One that was admitted began on
            // the disk and would be cut short by the end: it runs beside those that were here.
            self.give_back_if_admitted(&job);
            return;
        }
        if let Err(problem) = self.check(&job) {
            self.give_back_if_admitted(&job);
            self.refuse(job.work, problem);
            return;
        }
        if !job.admitted {
            return self.wait(job);
        }
        if let Err(job) = self.start(job) {
            // Its plugin was replaced since it was admitted. It waits until it is known what the
            // new one can do.
            self.give_back_if_admitted(&job);
            if self.stopping.is_none() {
                self.wait(job);
            }
        }
    }

    /// Whether something is left of a work with this id.
    fn is_here(&self, work: MessageId) -> bool {
        self.works.contains_key(&work) || self.shared.sweeper.has(work)
    }

    fn take_put_off(&mut self) {
        for job in std::mem::take(&mut self.put_off) {
            self.take(Box::new(job));
        }
    }

    fn wait(&mut self, job: Box<Job>) {
        let (work, directive) = (job.work, job.directive.clone());
        let name = directive.plugin();
        let Some(plugin) = self.plugins.get_mut(name) else {
            let problem = self.no_such_plugin(name);
            return self.refuse(work, problem);
        };
        debug_assert!(
            job.admitted
                || plugin
                    .waiting
                    .iter()
                    .filter(|(_, job)| !job.admitted)
                    .count()
                    < MAX_WAITING,
            "the engine keeps the rest"
        );
        self.order += 1;
        plugin.waiting.push_back((self.order, job));
        self.admission.set_waiting(name, plugin.waiting.len());
        self.works.insert(work, Work::Waiting { directive });
        // At once, so that works which need not wait do not count as waiting for the next ones.
        self.start_more();
    }

    fn give_back_if_admitted(&self, job: &Job) {
        if job.admitted {
            self.admission.give_back(job.directive.plugin());
            if job.content == Content::Bundle {
                self.admission.end_bundle(job.directive.plugin());
            }
        }
    }

    /// Whether the work can be run here, as far as that is known now. One that was cut short by
    /// a restart of this node is run again only when its plugin says that it may be.
    fn check(&self, job: &Job) -> Result<(), ErrorBody> {
        if job.attempt == 1 {
            return self.check_plugin(job);
        }
        let name = job.directive.plugin();
        let plugin = self.plugins.get(name);
        let hello = plugin.and_then(|plugin| plugin.hello.as_ref());
        let action = hello.and_then(|hello| hello.actions.get(job.directive.action()));
        let unknown = plugin.is_some_and(|plugin| plugin.unknown);
        let may = unknown || action.is_some_and(|action| action.idempotent);
        if may && self.check_plugin(job).is_ok() {
            return Ok(());
        }
        let text = "its node was restarted while the work ran";
        Err(error(ErrorCode::Interrupted, text))
    }

    fn check_plugin(&self, job: &Job) -> Result<(), ErrorBody> {
        let name = job.directive.plugin();
        let plugin = self.plugins.get(name);
        let no_such = || self.no_such_plugin(name);
        let plugin = plugin.ok_or_else(no_such)?;
        match &plugin.found {
            Some(Found::Plugin { .. }) => {}
            Some(Found::Refused { why, .. }) => {
                let message = format!("{name} is installed but must not be run: {why}");
                let refused = error(ErrorCode::PluginStart, message);
                return Err(refused.with("retryable", false));
            }
            Some(Found::Masked { .. }) | None => return Err(no_such()),
        }
        if let Some(problem) = &plugin.problem {
            return Err(problem.clone());
        }
        if let Some(why) = &plugin.stopped {
            return Err(error(ErrorCode::NotReady, why.clone()));
        }
        if plugin.unknown {
            return Ok(());
        }
        let Some(hello) = &plugin.hello else {
            return Ok(());
        };
        let Some(action) = hello.actions.get(job.directive.action()) else {
            let actions: Vec<&str> = hello.actions.keys().map(String::as_str).collect();
            let message = format!(
                "{name} has no action {:?}; it has {}",
                job.directive.action(),
                actions.join(", ")
            );
            return Err(error(ErrorCode::NoSuchAction, message).with("actions", actions));
        };
        let size = match &job.payload {
            JobPayload::Inline(bytes) => u64::try_from(bytes.len()).unwrap_or(u64::MAX),
            JobPayload::File { size, .. } => *size,
        };
        match action.max_payload {
            // Of a bundle each part is looked at by itself.
            Some(max) if size > max && job.content != Content::Bundle => {
                let directive = &job.directive;
                let message =
                    format!("the payload has {size} bytes, and {directive} takes at most {max}");
                Err(error(ErrorCode::PayloadTooLarge, message))
            }
            Some(_) | None => Ok(()),
        }
    }

    fn no_such_plugin(&self, name: &str) -> ErrorBody {
        let there = self
            .plugins
            .iter()
            .filter(|(_, plugin)| plugin.is_installed());
        let names: Vec<&str> = there.map(|(name, _)| name.as_str()).collect();
        let installed = if names.is_empty() {
            "none is installed".to_owned()
        } else {
            format!("installed: {}", names.join(", "))
        };
        let node = &self.config.node;
        let message = format!("there is no plugin {name:?} on {node}; {installed}");
        error(ErrorCode::NoSuchPlugin, message).with("plugins", names)
    }

    fn refuse(&mut self, work: MessageId, problem: ErrorBody) {
        self.works.remove(&work);
        self.end(work, problem);
    }

    fn end(&mut self, work: MessageId, problem: ErrorBody) {
        let (eof, content, payload) = Outcome::Failed(problem).into_parts();
        self.outbox.push_back(Report::Done {
            work,
            eof,
            content,
            payload: ReportPayload::Inline(payload),
        });
    }

    fn cancel(&mut self, work: MessageId, reason: CancelReason) {
        if let Some(at) = self.put_off.iter().position(|job| job.work == work) {
            let job = self.put_off.swap_remove(at);
            self.give_back_if_admitted(&job);
            return self.end(work, Why::Cancel(reason).error());
        }
        match self.works.get(&work) {
            Some(Work::Running { control, .. }) => control.cancel(reason),
            Some(Work::Waiting { directive }) => {
                let name = directive.plugin();
                if let Some(plugin) = self.plugins.get_mut(name) {
                    plugin.waiting.retain(|(_, job)| job.work != work);
                    self.admission.set_waiting(name, plugin.waiting.len());
                }
                self.refuse(work, Why::Cancel(reason).error());
            }
            None => tracing::debug!(%work, "a cancel of a work that is not here"),
        }
    }

    /// Starts works that wait, in the order in which they came, as far as there are places.
    fn start_more(&mut self) {
        while !self.shared.sweeper.is_full() {
            let waiting = self.plugins.iter().filter_map(|(name, plugin)| {
                let (order, _) = plugin.waiting.front()?;
                let may = !plugin.unknown && self.admission.has_room(name);
                may.then_some((order, name))
            });
            let Some(name) = waiting.min().map(|(_, name)| name.clone()) else {
                return;
            };
            let Some(plugin) = self.plugins.get_mut(&name) else {
                return;
            };
            let Some((_, job)) = plugin.waiting.pop_front() else {
                return;
            };
            self.admission.set_waiting(&name, plugin.waiting.len());
            // What it can do may have changed while the work waited.
            if let Err(problem) = self.check(&job) {
                self.refuse(job.work, problem);
                continue;
            }
            self.admission.take(&name);
            let is_bundle = job.content == Content::Bundle;
            if is_bundle {
                self.admission.take_bundle(&name);
            }
            if let Err(job) = self.start(job) {
                self.admission.give_back(&name);
                if is_bundle {
                    self.admission.end_bundle(&name);
                }
                let problem = format!("it is not known what {name} can do");
                self.refuse(job.work, error(ErrorCode::NotReady, problem));
            }
        }
    }

    /// The start of a work is on the disk.
    fn start_is_safe(&mut self, work: MessageId) {
        if let Some(job) = self.put_off.iter_mut().find(|job| job.work == work) {
            job.start = true;
            return;
        }
        match self.works.get(&work) {
            Some(Work::Running { control, .. }) => control.start(),
            Some(Work::Waiting { directive }) => {
                // One that was admitted and had to wait nevertheless.
                let plugin = self.plugins.get_mut(directive.plugin());
                let waiting = plugin.into_iter().flat_map(|plugin| &mut plugin.waiting);
                for (_, job) in waiting.filter(|(_, job)| job.work == work) {
                    job.start = true;
                }
            }
            None => tracing::debug!(%work, "a start of a work that is not to be started"),
        }
    }

    /// Gives a work that has a place to its plugin. It comes back when it is not known whether the
    /// plugin can do it; the place is its own then as well.
    fn start(&mut self, job: Box<Job>) -> Result<(), Box<Job>> {
        let directive = job.directive.clone();
        let name = directive.plugin();
        let number = self.shared.next_number();
        let Some(plugin) = self.plugins.get_mut(name) else {
            return Err(job);
        };
        let (Some(Found::Plugin { executable, .. }), Some(hello)) = (&plugin.found, &plugin.hello)
        else {
            return Err(job);
        };
        let Some(action) = hello.actions.get(job.directive.action()) else {
            return Err(job);
        };
        let (work, may_start) = (job.work, job.start);
        if hello.mode == Mode::Job && job.content == Content::Bundle {
            self.admission.give_back(name);
            self.admission.end_bundle(name);
            self.works.remove(&work);
            self.outbox.push_back(Report::Returned(job));
            return Ok(());
        }
        let (control, server) = match hello.mode {
            Mode::Job => {
                let control = Rc::new(Control::new(work, Rc::default()));
                run_job(job::Task {
                    shared: Rc::clone(&self.shared),
                    config: Rc::clone(&self.config),
                    plugin: executable.clone(),
                    hello: Rc::clone(hello),
                    action: action.clone(),
                    job,
                    control: Rc::clone(&control),
                    resumed: None,
                });
                (control, None)
            }
            Mode::Serve => {
                let open = plugin.server.take().filter(|server| !server.is_closing());
                let server = open.unwrap_or_else(|| {
                    let server = Rc::new(Server::new(number, name));
                    run_server(serve::Task {
                        shared: Rc::clone(&self.shared),
                        config: Rc::clone(&self.config),
                        plugin: executable.clone(),
                        server: Rc::clone(&server),
                        resumed: None,
                    });
                    plugin.servers += 1;
                    server
                });
                let control = Rc::new(Control::new(work, server.changes()));
                server.push(NewJob {
                    terms: Terms::of(action),
                    job,
                    control: Rc::clone(&control),
                });
                let number = server.number;
                plugin.server = Some(server);
                (control, Some(number))
            }
        };
        if may_start {
            control.start();
        }
        if self.stopping.is_some() {
            control.leave();
        }
        self.works.insert(
            work,
            Work::Running {
                directive,
                control,
                server,
            },
        );
        Ok(())
    }

    // What the tasks tell.

    fn ended(&mut self, end: TaskEnd) {
        match end {
            TaskEnd::Job { work, hello, left } => {
                if left {
                    self.spared.insert(work.to_string());
                } else {
                    self.spared.remove(&work.to_string());
                }
                if let Some(Work::Running { directive, .. }) = self.works.remove(&work) {
                    let plugin = directive.plugin();
                    self.admission.give_back(plugin);
                    if let Some(hello) = hello {
                        self.heard_hello(plugin, hello);
                    }
                    self.forget_if_gone(plugin);
                }
            }
            TaskEnd::Served(work) => {
                if let Some(Work::Running { directive, .. }) = self.works.remove(&work) {
                    self.forget_if_gone(directive.plugin());
                }
            }
            // The turn gives them to works that wait.
            TaskEnd::Room => {}
            TaskEnd::Server {
                plugin,
                server,
                end,
            } => self.server_ended(&plugin, &server, end),
            TaskEnd::Crashed { plugin, why } => self.crashed(&plugin, &why),
            TaskEnd::Ready { plugin, ready } => {
                if let Some(plugin) = self.plugins.get_mut(&plugin)
                    && let Some(hello) = &mut plugin.hello
                    && (hello.ready, &hello.reason) != (ready.ready, &ready.reason)
                {
                    let hello = Rc::make_mut(hello);
                    hello.ready = ready.ready;
                    hello.reason = ready.reason;
                    self.dirty();
                }
            }
            TaskEnd::Described {
                plugin,
                number,
                result,
            } => self.described(&plugin, number, result),
        }
    }

    fn server_ended(&mut self, name: &str, server: &Server, end: ServerEnd) {
        let number = server.number;
        if end == ServerEnd::Left {
            self.spared.insert(server.name.clone());
        } else {
            self.spared.remove(&server.name);
        }
        let lost: Vec<MessageId> = self
            .works
            .iter()
            .filter(
                |(_, work)| matches!(work, Work::Running { server, .. } if *server == Some(number)),
            )
            .map(|(id, _)| *id)
            .collect();
        for work in lost {
            self.admission.give_back(name);
            let message = format!("the task of {name} failed");
            self.refuse(work, error(ErrorCode::Internal, message));
        }
        if end == ServerEnd::Failed {
            self.crashed(name, "its task failed");
        }
        let Some(plugin) = self.plugins.get_mut(name) else {
            return;
        };
        plugin.servers -= 1;
        if plugin
            .server
            .as_ref()
            .is_some_and(|server| server.number == number)
        {
            plugin.server = None;
        }
        self.forget_if_gone(name);
    }

    /// A serving process has crashed: the next one waits for a while, or for ever.
    fn crashed(&mut self, name: &str, why: &str) {
        let now = Instant::now();
        let times = self.config.times.clone();
        let Some(plugin) = self.plugins.get_mut(name) else {
            return;
        };
        plugin.crashes.push_back(now);
        while let Some(first) = plugin.crashes.front()
            && now.duration_since(*first) > times.crash_window
        {
            plugin.crashes.pop_front();
        }
        let count = plugin.crashes.len();
        self.admission.set_open(name, false);
        if count >= times.crashes {
            let within = humantime::format_duration(times.crash_window);
            let stopped = format!(
                "{name} was stopped after {count} crashes within {within}, the last one: {why}; replace the file, or run receptorctl plugin restart {name}"
            );
            tracing::error!(plugin = name, "{stopped}");
            plugin.stopped = Some(stopped);
            plugin.paused_until = None;
            self.refuse_waiting(name);
            self.dirty();
        } else {
            let doublings = u32::try_from(count - 1).unwrap_or(u32::MAX).min(16);
            let pause = (times.backoff * 2_u32.pow(doublings)).min(times.backoff_max);
            tracing::warn!(plugin = name, %why, ?pause, "a serving plugin has crashed");
            plugin.paused_until = Some(now + pause);
        }
    }

    // The operator's wishes.

    fn set_config(&mut self, config: HostConfig) {
        let old = std::mem::replace(&mut self.config, Rc::new(config));
        let config = Rc::clone(&self.config);
        self.admission.set_max(config.max_works);
        let default = PluginConfig::default();
        for (name, plugin) in &mut self.plugins {
            let of = |config: &HostConfig| config.plugins.get(name).unwrap_or(&default).clone();
            if of(&old) != of(&config) {
                // It gets its configuration with the daemon's hello, once.
                plugin.let_server_go();
            }
        }
        let names: Vec<String> = self.plugins.keys().cloned().collect();
        for name in names {
            self.open(&name);
        }
        self.lookout.set(config.dirs.clone(), config.allow_unsafe);
        self.describe_all();
    }

    fn restart(&mut self, name: &str) -> bool {
        let Some(plugin) = self.plugins.get_mut(name).filter(|p| p.is_installed()) else {
            return false;
        };
        plugin.forgive();
        plugin.let_server_go();
        self.to_describe.insert(name.to_owned());
        self.open(name);
        self.dirty();
        true
    }

    fn shut_down(&mut self, grace: Duration) {
        if let Some(stopping) = &mut self.stopping {
            stopping.at = stopping.at.min(Instant::now() + grace);
            return;
        }
        self.stopping = Some(Stopping {
            at: Instant::now() + grace,
            ended: false,
        });
        self.admission.close();
        self.to_describe.clear();
        self.leave_again();
        for work in self.works.values() {
            if let Work::Running { control, .. } = work {
                control.leave();
            }
        }
        for (name, plugin) in &mut self.plugins {
            for (_, job) in plugin.waiting.drain(..) {
                self.works.remove(&job.work);
            }
            self.admission.set_waiting(name, 0);
            plugin.stop_describing();
        }
        self.keep_time(Instant::now());
    }

    /// Whether nothing is left of any work. With the last of them their processes are let go.
    fn is_over(&mut self) -> bool {
        let Some(stopping) = &self.stopping else {
            return false;
        };
        // What was admitted before the stop and is not here yet comes in a moment.
        let expects = self.admission.used() > 0 && !stopping.ended;
        if expects || !self.works.is_empty() || !self.put_off.is_empty() {
            return false;
        }
        let mut servers = 0;
        for plugin in self.plugins.values_mut() {
            plugin.let_server_go();
            servers += plugin.servers;
        }
        servers == 0
    }

    // Time.

    fn deadline(&self) -> Option<Instant> {
        let plugins = self.plugins.values();
        let plugins = plugins.flat_map(|plugin| [plugin.ask_at, plugin.paused_until]);
        let stop = self
            .stopping
            .as_ref()
            .filter(|stop| !stop.ended)
            .map(|stop| stop.at);
        let parked = self.shared.spawner.expire(Instant::now());
        let others = [self.advertise_at, stop, parked];
        plugins.chain(others).flatten().min()
    }

    fn keep_time(&mut self, now: Instant) {
        let mut reopened = Vec::new();
        for (name, plugin) in &mut self.plugins {
            if plugin.ask_at.is_some_and(|at| now >= at) {
                plugin.ask_at = None;
                self.to_describe.insert(name.clone());
            }
            if plugin.paused_until.is_some_and(|at| now >= at) {
                plugin.paused_until = None;
                reopened.push(name.clone());
            }
        }
        for name in reopened {
            self.open(&name);
        }
        if let Some(stopping) = &mut self.stopping
            && !stopping.ended
            && now >= stopping.at
        {
            stopping.ended = true;
            for work in self.works.values() {
                if let Work::Running { control, .. } = work {
                    control.cancel(CancelReason::Shutdown);
                }
            }
        }
    }
}

/// Runs a job in a task of its own.
fn run_job(task: job::Task) {
    let work = task.job.work;
    let fallback = TaskEnd::Job {
        work,
        hello: None,
        left: false,
    };
    let promise = Promise::new(&task.shared.ends, fallback);
    task::spawn("plugin job", async move {
        let job::Ended { hello, left } = job::run(task).await;
        promise.keep(TaskEnd::Job { work, hello, left });
    });
}

/// Runs a serving process in a task of its own.
fn run_server(task: serve::Task) {
    let (plugin, server) = (task.plugin.name.clone(), Rc::clone(&task.server));
    let end = move |end| TaskEnd::Server {
        plugin: plugin.clone(),
        server: Rc::clone(&server),
        end,
    };
    let promise = Promise::new(&task.shared.ends, end(ServerEnd::Failed));
    task::spawn("serving plugin", async move {
        promise.keep(end(serve::run(task).await));
    });
}

/// Makes a directory that nobody else can look into. One that is there may let a group pass through.
fn make_private(path: &Path) -> io::Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    DirBuilder::new().recursive(true).mode(0o700).create(path)?;
    if fs::metadata(path)?.permissions().mode() & 0o067 != 0 {
        fs::set_permissions(path, fs::Permissions::from_mode(0o700))?;
    }
    Ok(())
}
