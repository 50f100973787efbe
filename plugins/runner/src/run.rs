//! One job from its start to its one final word.
//!
//! ```text
//!   kwargs (a file) ──▶ ansible-runner worker ──stdout──▶ Stream ─▶ Report ─▶ data, status
//!                             │        └──stderr──▶ the last of it
//!   cancel, SIGTERM ──▶ wake ─┤
//!   a thread that waits ──▶ wake
//! ```
//!
//! One thread reads, sends and keeps the time. When the daemon takes no more results it stops in
//! the middle of sending, and through the pipes that stops Ansible.

use std::{
    io::{self, Read},
    os::{fd::AsFd, unix::process::ExitStatusExt},
    path::PathBuf,
    process::{Child, ExitStatus},
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::{Duration, Instant},
};

use nix::{
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::eventfd::{EfdFlags, EventFd},
    unistd::Pid,
};
use receptor_plugin::{CancelReason, Error, ErrorCode, Job, Level, Outcome, Result};
use serde_json::json;

use crate::{
    artifacts,
    config::Config,
    launch::{kill_container, prepare, private, start},
    payload::{Refusal, plan},
    report::{Report, Step},
    stream::Stream,
    tail::Tail,
    tools::{Missing, Tools, version_of},
    tree,
};

/// The result code when Ansible ran and no host matched: nothing was done, which nobody wants to
/// take for success by accident.
const NO_HOSTS: i64 = 3;
/// What a shell and ansible-runner say when a command was not found.
const NOT_FOUND: i32 = 127;

/// Bytes of stderr that are kept for the error.
const STDERR_KEPT: usize = 4_096;
/// Bytes read at once.
const CHUNK: usize = 65_536;
/// Time between two status lines.
const STATUS_PAUSE: Duration = Duration::from_millis(250);
/// Time between two looks for zombies.
const REAP_PAUSE: Duration = Duration::from_secs(5);
/// How long stdout may stay open when ansible-runner has ended: a process it left can hold it.
const DRAIN: Duration = Duration::from_secs(1);
/// How long ansible-runner may still be there when it has closed stdout.
const EXIT_WAIT: Duration = Duration::from_secs(5);
/// The longest time that a job gets to end when it is stopped.
const GRACE: Duration = Duration::from_secs(10);
/// What is left at the normal end of a job, such as a shared ssh connection, gets this long.
const LEFT_GRACE: Duration = Duration::from_secs(1);

/// Runs the job.
pub(crate) fn execute(job: &Job) -> Result<Outcome> {
    let config: Config = job.config()?;
    let plan = plan(&job.bytes()?, &config, job.dir()).map_err(Refusal::into_error)?;
    let tools = Tools::find(&config).map_err(Missing::into_error)?;
    let container = match &plan.isolation {
        Some(program) => {
            let path = tools.program(program).map_err(Missing::into_error)?;
            Some((path, format!("job-{}", job.id())))
        }
        None => None,
    };
    let ident = container.as_ref().map_or("job", |(_, ident)| ident);
    let input = prepare(job.dir(), &plan, ident)?;
    let started = Instant::now();
    let child = start(job, &config, &tools, input)?;

    let kwargs = &plan.kwargs;
    let omits = ["omit_event_data", "only_failed_event_data"]
        .iter()
        .any(|key| kwargs.get(*key) == Some(&true.into()));
    // The daemon keeps the time too, but knows less about how to end a job.
    let times = [
        plan.timeout,
        job.timeout(),
        Some(config.timeout(job.timeout())),
    ];
    let timeout = times.into_iter().flatten().min().unwrap_or_default();
    let run = Run {
        job,
        stream: Stream::new(plan.options.max_event_bytes / 2),
        report: Report::new(plan.options.clone(), omits),
        stderr: Tail::new(STDERR_KEPT),
        child: Pid::from_raw(i32::try_from(child.id()).expect("a process id is a pid_t")),
        wake: Arc::new(EventFd::from_flags(
            EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK,
        )?),
        started,
        timeout,
        idle_timeout: plan.idle_timeout.unwrap_or(config.idle_timeout()),
        start_timeout: config.start_timeout(),
        artifacts: plan
            .options
            .artifacts
            .then(|| job.dir().join("pdd/artifacts").join(ident)),
        container,
        tools: &tools,
        said_at: started,
        status_at: None,
        news: false,
        stop: None,
    };
    run.run(child, plan.options.fail_on_no_hosts)
}

/// Why a job was stopped before its end.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Why {
    Canceled(CancelReason),
    Timeout,
    IdleTimeout,
    StartTimeout,
    /// It has said all and does not end.
    Hanging,
}

struct Run<'a> {
    job: &'a Job,
    stream: Stream,
    report: Report,
    stderr: Tail,
    child: Pid,
    wake: Arc<EventFd>,
    started: Instant,
    timeout: Duration,
    idle_timeout: Duration,
    start_timeout: Duration,
    /// What ansible-runner keeps of the job, when the sender wants it.
    artifacts: Option<PathBuf>,
    /// The program that isolates the job, and the name that the container goes by.
    container: Option<(PathBuf, String)>,
    tools: &'a Tools,
    /// When ansible-runner said something.
    said_at: Instant,
    /// When a person was told something.
    status_at: Option<Instant>,
    /// A person has something to be told.
    news: bool,
    /// Why the job is being stopped, and until when it may take.
    stop: Option<(Why, Instant)>,
}

impl Run<'_> {
    fn run(mut self, mut child: Child, fail_on_no_hosts: bool) -> Result<Outcome> {
        let stdout = child.stdout.take();
        let stderr = child.stderr.take();
        let exit = Arc::new(Mutex::new(None));
        self.wait_for(child, &exit)?;
        let wake = Arc::clone(&self.wake);
        self.job.on_cancel(move |_| wake_up(&wake));

        let watched = match self.watch(stdout, stderr, &exit) {
            Ok(()) => self.stream_end(),
            Err(e) => Err(e),
        };
        // Whatever has happened, nothing stays behind. Who was stopped has had the grace.
        let grace = if self.stop.is_some() || watched.is_err() {
            Duration::ZERO
        } else {
            LEFT_GRACE
        };
        let (left, stuck) = tree::sweep(grace);
        watched?;
        if left > 0 && self.stop.is_none() {
            let text = format!("ended {left} processes that the job had left running");
            // Mostly what is meant to outlive a command: a key agent, a shared connection.
            self.job.log(Level::Info, text)?;
        }
        if stuck > 0 {
            let text = format!("{stuck} processes of the job could not be ended");
            self.job.log(Level::Error, text)?;
        }
        let exit = exit.lock().unwrap_or_else(PoisonError::into_inner).take();
        self.finish(exit, left, fail_on_no_hosts)
    }

    /// Wakes us when the child has ended.
    fn wait_for(&self, mut child: Child, exit: &Arc<Mutex<Option<ExitStatus>>>) -> io::Result<()> {
        let wake = Arc::clone(&self.wake);
        let exit = Arc::clone(exit);
        thread::Builder::new()
            .name("wait".to_owned())
            .spawn(move || {
                let status = child.wait();
                *exit.lock().unwrap_or_else(PoisonError::into_inner) = status.ok();
                wake_up(&wake);
            })?;
        Ok(())
    }

    /// Reads until ansible-runner has ended, or has had its time.
    fn watch(
        &mut self,
        mut stdout: Option<impl Read + AsFd>,
        mut stderr: Option<impl Read + AsFd>,
        exit: &Mutex<Option<ExitStatus>>,
    ) -> Result<()> {
        let mut chunk = vec![0; CHUNK];
        let mut exited_at = None;
        let mut closed_at = None;
        let mut reaped_at = Instant::now();
        loop {
            let exited = exit
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .is_some();
            if exited {
                let at = *exited_at.get_or_insert_with(Instant::now);
                if stdout.is_none() || at.elapsed() >= DRAIN {
                    return Ok(());
                }
            } else if stdout.is_none() {
                let at = *closed_at.get_or_insert_with(Instant::now);
                if at.elapsed() >= EXIT_WAIT {
                    self.stop(Why::Hanging, GRACE);
                }
            }
            if let Some((_, until)) = &self.stop
                && Instant::now() >= *until
            {
                return Ok(());
            }
            let (out, err) = self.poll(stdout.as_ref(), stderr.as_ref(), exited)?;
            if out && !self.read_stdout(&mut stdout, &mut chunk)? {
                stdout = None;
            }
            if err && !self.read_stderr(&mut stderr, &mut chunk)? {
                stderr = None;
            }
            self.tell(false)?;
            self.keep_time();
            if let Some(cancel) = self.job.canceled() {
                // Some of the time is for the end that we make ourselves.
                let grace = Duration::from_millis(cancel.grace_ms).min(GRACE) * 3 / 4;
                self.stop(Why::Canceled(cancel.reason), grace);
            }
            if reaped_at.elapsed() >= REAP_PAUSE {
                reaped_at = Instant::now();
                tree::reap_orphans(self.child);
            }
        }
    }

    /// Waits until there is something to read or to do. Returns what can be read.
    fn poll(
        &self,
        stdout: Option<&impl AsFd>,
        stderr: Option<&impl AsFd>,
        exited: bool,
    ) -> Result<(bool, bool)> {
        let mut fds = vec![PollFd::new(self.wake.as_fd(), PollFlags::POLLIN)];
        let out = stdout.map(|fd| {
            fds.push(PollFd::new(fd.as_fd(), PollFlags::POLLIN));
            fds.len() - 1
        });
        let err = stderr.map(|fd| {
            fds.push(PollFd::new(fd.as_fd(), PollFlags::POLLIN));
            fds.len() - 1
        });
        let timeout = PollTimeout::try_from(self.next_look(exited)).unwrap_or(PollTimeout::ZERO);
        match poll(&mut fds, timeout) {
            Ok(_) | Err(nix::errno::Errno::EINTR) => {}
            Err(e) => return Err(e.into()),
        }
        let ready = |at: Option<usize>| {
            let fd = at.and_then(|at| fds.get(at));
            fd.and_then(PollFd::any).unwrap_or(false)
        };
        let ready = (ready(out), ready(err));
        // The next wait starts afresh.
        let _ = self.wake.read();
        Ok(ready)
    }

    /// How long there is certainly nothing to do.
    fn next_look(&self, exited: bool) -> Duration {
        let mut wait = REAP_PAUSE;
        let mut until = |at: Instant| wait = wait.min(at.saturating_duration_since(Instant::now()));
        match &self.stop {
            Some((_, end)) => until(*end),
            None => {
                until(self.started + self.timeout);
                until(self.said_at + self.idle_timeout);
                if self.report.status.is_none() {
                    until(self.started + self.start_timeout);
                }
            }
        }
        if self.news
            && let Some(at) = self.status_at
        {
            until(at + STATUS_PAUSE);
        }
        if exited {
            wait = wait.min(DRAIN / 10);
        }
        // A moment that begins within this millisecond must have come when we look.
        wait + Duration::from_millis(1)
    }

    /// Returns whether there may be more.
    fn read_stdout(&mut self, stdout: &mut Option<impl Read>, chunk: &mut [u8]) -> Result<bool> {
        let Some(stdout) = stdout else {
            return Ok(false);
        };
        let n = read(stdout, chunk)?;
        let Some(bytes) = chunk.get(..n).filter(|bytes| !bytes.is_empty()) else {
            return Ok(false);
        };
        self.feed(bytes)?;
        // Only now: while the daemon takes no results, the job is not the one that is silent.
        self.said_at = Instant::now();
        Ok(true)
    }

    fn read_stderr(&mut self, stderr: &mut Option<impl Read>, chunk: &mut [u8]) -> Result<bool> {
        let Some(stderr) = stderr else {
            return Ok(false);
        };
        let n = read(stderr, chunk)?;
        self.stderr.push(chunk.get(..n).unwrap_or_default());
        Ok(n > 0)
    }

    fn feed(&mut self, bytes: &[u8]) -> Result<()> {
        let Self {
            job,
            stream,
            report,
            news,
            ..
        } = self;
        stream.feed(bytes, |piece| send(job, report.take(&piece), news))
    }

    /// The last line may lack its newline.
    fn stream_end(&mut self) -> Result<()> {
        let Self {
            job,
            stream,
            report,
            news,
            ..
        } = self;
        stream.end(|piece| send(job, report.take(&piece), news))?;
        if let Some(from) = &self.artifacts
            && self.stop.is_none()
            && from.is_dir()
        {
            let to = job.dir().join("artifacts.zip");
            match artifacts::pack(from, &private(&to)?) {
                Ok(()) => job.data_file(&to, Some("artifacts.zip"))?,
                Err(e) => job.log(Level::Warn, format!("no artifacts: {e}"))?,
            }
        }
        if let Some(end) = report.end() {
            job.data_json(end)?;
        }
        self.tell(true)
    }

    /// Tells a person what is going on, but not more often than can be read.
    fn tell(&mut self, last: bool) -> Result<()> {
        let soon = self.status_at.is_some_and(|at| at.elapsed() < STATUS_PAUSE);
        if !self.news || (soon && !last) {
            return Ok(());
        }
        self.news = false;
        self.status_at = Some(Instant::now());
        let state = self.report.status.as_deref().unwrap_or("starting");
        self.job.status(state, &self.report.summary())
    }

    fn keep_time(&mut self) {
        if self.started.elapsed() >= self.timeout {
            self.stop(Why::Timeout, GRACE);
        } else if self.report.status.is_none() && self.started.elapsed() >= self.start_timeout {
            self.stop(Why::StartTimeout, GRACE);
        } else if self.said_at.elapsed() >= self.idle_timeout {
            self.stop(Why::IdleTimeout, GRACE);
        }
    }

    /// Asks the job to end; the first reason stays. It is read on meanwhile.
    fn stop(&mut self, why: Why, grace: Duration) {
        if self.stop.is_some() {
            return;
        }
        tree::terminate(self.child);
        if let Some((program, ident)) = &self.container {
            kill_container(program, ident);
        }
        self.stop = Some((why, Instant::now() + grace));
    }

    /// What the job has come to.
    fn finish(
        self,
        exit: Option<ExitStatus>,
        left: usize,
        fail_on_no_hosts: bool,
    ) -> Result<Outcome> {
        let report = &self.report;
        if report.dropped > 0 {
            let text = format!(
                "ansible-runner has dropped {} results that were too large for it",
                report.dropped
            );
            self.job.log(Level::Warn, text)?;
        }
        if report.garbage > 0 {
            let text = format!(
                "{} lines of ansible-runner were no messages",
                report.garbage
            );
            self.job.log(Level::Warn, text)?;
        }
        let status = report.status.as_deref();
        let code = exit.and_then(|exit| exit.code());
        let whole = report.eof && exit.is_some();
        match (status, code) {
            // Also when it was to be stopped and was faster.
            (Some("successful"), Some(0)) if whole => {}
            _ => {
                if let Some((why, _)) = &self.stop {
                    return Err(self.stopped(why, left));
                }
            }
        }
        match status {
            Some("successful") if whole && code == Some(0) => {
                if fail_on_no_hosts && report.no_hosts_matched() {
                    return self.outcome("successful", NO_HOSTS);
                }
                self.outcome("successful", 0)
            }
            Some("failed") if code == Some(NOT_FOUND) => Err(Error::new(
                ErrorCode::MissingDependency,
                format!("ansible-core could not be started: {}", report.output()),
            )),
            Some("failed") if report.output().contains("requires the locale encoding") => {
                Err(self.internal("Ansible cannot work with the locale of this node", exit))
            }
            Some("failed") if whole => {
                let code = code.filter(|code| *code != 0).unwrap_or(1);
                self.outcome("failed", code.into())
            }
            Some(status @ ("canceled" | "timeout")) => {
                let code = if status == "timeout" {
                    ErrorCode::Timeout
                } else {
                    ErrorCode::Canceled
                };
                let text = "ansible-runner was stopped, but not by this plugin";
                Err(Error::new(code, text).details(&json!({"status": status})))
            }
            Some("error") => Err(self.internal("ansible-runner could not run the job", exit)),
            Some(_) => Err(self.internal("ansible-runner ended in the middle of the job", exit)),
            None => Err(self.internal("ansible-runner did not run the job", exit)),
        }
    }

    fn outcome(&self, status: &str, code: i64) -> Result<Outcome> {
        let version = version_of("ansible_runner", &self.tools.runner);
        let seconds = self.started.elapsed().as_secs_f64();
        let result = self
            .report
            .result(status, code, seconds, version.as_deref());
        Outcome::code(code).with_result(&result)
    }

    fn stopped(&self, why: &Why, left: usize) -> Error {
        let (code, text) = match why {
            Why::Canceled(CancelReason::Timeout) | Why::Timeout => (
                ErrorCode::Timeout,
                format!("the job took longer than {} s", self.timeout.as_secs()),
            ),
            Why::Canceled(CancelReason::Quota) => (
                ErrorCode::ResultQuota,
                "the job's results are more than may be kept".to_owned(),
            ),
            Why::Canceled(reason) => (
                ErrorCode::Canceled,
                format!("the job was canceled ({reason})"),
            ),
            Why::IdleTimeout => (
                ErrorCode::IdleTimeout,
                format!("the job said nothing for {} s", self.idle_timeout.as_secs()),
            ),
            Why::StartTimeout => (
                ErrorCode::Timeout,
                format!(
                    "ansible-runner did not begin within {} s; {}",
                    self.start_timeout.as_secs(),
                    self.stderr.last_line()
                ),
            ),
            Why::Hanging => (
                ErrorCode::Internal,
                "ansible-runner has closed its output and did not end".to_owned(),
            ),
        };
        Error::new(
            code,
            format!("{text}; it was at: {}", self.report.summary()),
        )
        .details(&json!({
            "status": self.report.status,
            "at": self.report.summary(),
            "killed": left,
        }))
    }

    fn internal(&self, text: &str, exit: Option<ExitStatus>) -> Error {
        let mut why = match (&self.report.explanation, self.stderr.last_line()) {
            (Some(explanation), _) => explanation.clone(),
            (None, line) if !line.is_empty() => line,
            (None, _) => self.report.output(),
        };
        if why.is_empty() {
            why = match exit {
                Some(exit) => exit.to_string(),
                None => "it did not end".to_owned(),
            };
        }
        Error::internal(format!("{text}: {why}")).details(&json!({
            "exit": exit.and_then(|exit| exit.code()),
            "signal": exit.and_then(|exit| exit.signal()),
            "status": self.report.status,
            "stderr": self.stderr.text(),
            "output": self.report.output(),
        }))
    }
}

fn send(job: &Job, step: Step, news: &mut bool) -> Result<()> {
    *news |= step.news || step.state.is_some();
    match step.send {
        Some(json) => job.data_json(json),
        None => Ok(()),
    }
}

fn read(from: &mut impl Read, chunk: &mut [u8]) -> io::Result<usize> {
    loop {
        match from.read(chunk) {
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            other => return other,
        }
    }
}

fn wake_up(wake: &EventFd) {
    // It can only fail when it was woken 2^64 times already.
    let _ = wake.write(1);
}
