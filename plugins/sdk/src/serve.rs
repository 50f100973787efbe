//! The conversation with the daemon.
//!
//! With one process a job:
//!
//! ```text
//!   calling thread: hello ─▶ reads up to the job ─▶ runs it ─▶ returns
//!                                      │ hands over
//!   watching thread: waits ............▼ reads on ─▶ cancels it; leaves when it does not end
//! ```
//!
//! With one process for many:
//!
//! ```text
//!   reading thread ──inline jobs──▶ output
//!        │  └─ cancel ─▶ Stop of a job      ▲
//!        └─ one thread a job ───────────────┘
//!   calling thread: waits for the end
//! ```
//!
//! Whoever reads never waits for a job, and a job that does not end when it should holds nothing up: what
//! still runs then ends with the process. The watching thread is started while the daemon answers the
//! hello, and no thread is started between the job and its first instruction: a new thread waits for its
//! turn on a busy machine as if it had nothing to hurry for.

use std::{
    collections::BTreeMap,
    io::{self, Read, Write},
    panic::{AssertUnwindSafe, catch_unwind},
    path::PathBuf,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, mpsc::sync_channel},
    thread,
    time::{Duration, Instant},
};

use receptor_proto::plugin::{
    CANCEL_GRACE, Cancel, CancelReason, DecodeError, ErrorCode, Execute, HostHello, HostMessage,
    Limits, MAX_LINE, Mode, PROTOCOL_VERSION, PluginHello, PluginMessage, Ready, feature,
};

use crate::{
    Error, Job, Outcome, Result,
    job::{Session, Stop},
    lines::{Filled, Lines},
    output::{Output, SendError},
};

/// An action's function.
pub(crate) type Run = dyn Fn(&Job) -> Result<Outcome> + Send + Sync;

/// Says whether jobs have a chance.
pub(crate) type IsReady = dyn Fn(Option<&HostHello>) -> std::result::Result<(), String> + Send;

/// Ends the process while a job still runs.
pub(crate) type Leave = dyn FnOnce(std::result::Result<(), ServeError>) + Send;

/// What runs an action.
#[derive(Clone)]
pub(crate) struct Handler {
    pub(crate) inline: bool,
    pub(crate) max_payload: Option<u64>,
    pub(crate) run: Arc<Run>,
}

/// Why the conversation broke off.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ServeError {
    #[error("stdin: {0}")]
    Read(io::Error),
    #[error("stdout: {0}")]
    Write(#[from] SendError),
    #[error("a line from the daemon is longer than {MAX_LINE} bytes")]
    TooLong,
    // Only where, not what: the line may hold a payload.
    #[error("a line from the daemon is not understood ({0})")]
    Decode(&'static str),
    #[error("the daemon speaks protocol {0}, this plugin {PROTOCOL_VERSION}")]
    Protocol(u32),
    #[error("no thread could be started: {0}")]
    Thread(io::Error),
}

#[derive(Default)]
struct State {
    /// The jobs that can be cancelled.
    running: BTreeMap<String, Arc<Stop>>,
    /// Jobs whose final message is not written yet.
    unfinished: usize,
    /// A job has ended, and the plugin is for one job only.
    over: bool,
    /// No more jobs; end when the running ones have.
    draining: bool,
    /// Nothing more comes from the daemon; why, if it should not be so.
    closed: Option<std::result::Result<(), ServeError>>,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Says hello and serves until there is nothing more to do.
pub(crate) fn serve(
    mut hello: PluginHello,
    actions: BTreeMap<String, Handler>,
    is_ready: Option<Box<IsReady>>,
    dir: PathBuf,
    input: impl Read + Send + 'static,
    output: Box<dyn Write + Send>,
    leave: Box<Leave>,
) -> std::result::Result<(), ServeError> {
    let mode = hello.mode;
    let cancelable = hello.has(feature::CANCEL);
    let max_jobs = match mode {
        Mode::Job => 1,
        Mode::Serve => usize::try_from(hello.max_jobs.unwrap_or(1)).unwrap_or(usize::MAX),
    };
    if let Some(is_ready) = &is_ready {
        hello.reason = is_ready(None).err();
        hello.ready = hello.reason.is_none();
    }
    let reason = hello.reason.clone();
    let output = Output::new(output);
    output.send(&PluginMessage::Hello(hello))?;

    let shared = Arc::new(Shared::default());
    let reader = Reader {
        session: Arc::new(Session {
            output,
            host: HostHello {
                protocol: PROTOCOL_VERSION,
                host: String::new(),
                version: String::new(),
                node: String::new(),
                features: Vec::new(),
                limits: Limits::default(),
                config: None,
            },
            dir,
        }),
        shared: Arc::clone(&shared),
        actions,
        is_ready,
        reason,
        mode,
        max_jobs,
        next: None,
    };
    let lines = Lines::new(input, MAX_LINE);
    match mode {
        Mode::Job => one_job(reader, lines, cancelable, leave),
        Mode::Serve => {
            thread::Builder::new()
                .name("reader".to_owned())
                .spawn(move || reader.run(lines))
                .map_err(ServeError::Thread)?;
            wait(&shared, cancelable)
        }
    }
}

/// Reads until there is a job, and runs it here.
fn one_job<R: Read + Send + 'static>(
    mut reader: Reader,
    mut lines: Lines<R>,
    cancelable: bool,
    leave: Box<Leave>,
) -> std::result::Result<(), ServeError> {
    let shared = Arc::clone(&reader.shared);
    let (hand_over, handed_over) = sync_channel::<(Reader, Lines<R>)>(1);
    let watched = Arc::clone(&shared);
    thread::Builder::new()
        .name("watch".to_owned())
        .spawn(move || {
            // Nothing is handed over when no job came.
            let Ok((reader, lines)) = handed_over.recv() else {
                return;
            };
            reader.run(lines);
            let ended = wait(&watched, cancelable);
            // Else the calling thread is on its way out.
            if !watched.lock().over {
                leave(ended);
            }
        })
        .map_err(ServeError::Thread)?;
    if let Some(next) = reader.read(&mut lines)? {
        // The thread waits for it, and has no other end before.
        let _ = hand_over.send((reader, lines));
        next.run(&shared, true);
    }
    Ok(())
}

/// Waits until there is nothing more to do. When the daemon is gone, jobs that can be cancelled
/// get their grace.
fn wait(shared: &Shared, cancelable: bool) -> std::result::Result<(), ServeError> {
    let mut state = shared.lock();
    let mut deadline: Option<Instant> = None;
    loop {
        let idle = state.unfinished == 0;
        if state.over || (state.draining && idle) {
            return Ok(());
        }
        let mut timeout = Duration::MAX;
        if state.closed.is_some() {
            let until = *deadline.get_or_insert_with(|| Instant::now() + CANCEL_GRACE);
            timeout = until.saturating_duration_since(Instant::now());
            if idle || !cancelable || timeout.is_zero() {
                return state.closed.take().unwrap_or(Ok(()));
            }
        }
        let waited = shared.changed.wait_timeout(state, timeout);
        state = waited.unwrap_or_else(PoisonError::into_inner).0;
    }
}

struct Reader {
    session: Arc<Session>,
    shared: Arc<Shared>,
    actions: BTreeMap<String, Handler>,
    is_ready: Option<Box<IsReady>>,
    /// Why the plugin is not ready, as the daemon knows it.
    reason: Option<String>,
    mode: Mode,
    max_jobs: usize,
    /// The one job, for the calling thread.
    next: Option<Next>,
}

/// A job that is to be run.
struct Next {
    job: Job,
    run: Arc<Run>,
}

impl Next {
    fn run(self, shared: &Shared, once: bool) {
        let Self { job, run } = self;
        let result = guarded(&*run, &job);
        // Before the final message, after which the daemon may send the next job.
        shared.lock().running.remove(job.id());
        // When the daemon no longer listens whoever reads will notice as well.
        let _ = job.finish(result);
        let mut state = shared.lock();
        state.unfinished -= 1;
        state.over = once;
        drop(state);
        shared.changed.notify_all();
    }
}

impl Reader {
    /// Reads to the end, and then lets the jobs know.
    fn run(mut self, mut lines: Lines<impl Read>) {
        let ended = self.read(&mut lines).map(drop);
        let mut state = self.shared.lock();
        state.closed = Some(ended);
        let running: Vec<_> = state
            .running
            .iter()
            .map(|(id, stop)| (id.clone(), Arc::clone(stop)))
            .collect();
        drop(state);
        for (id, stop) in running {
            stop.cancel(&Cancel {
                id,
                reason: CancelReason::Shutdown,
                grace_ms: u64::try_from(CANCEL_GRACE.as_millis()).unwrap_or(u64::MAX),
            });
        }
        self.shared.changed.notify_all();
    }

    /// Reads until there is the one job to run, or nothing more comes.
    fn read(
        &mut self,
        lines: &mut Lines<impl Read>,
    ) -> std::result::Result<Option<Next>, ServeError> {
        loop {
            while let Some(line) = lines.next_line() {
                match HostMessage::decode(line) {
                    Ok(message) => self.handle(message)?,
                    Err(e) => return Err(ServeError::Decode(kind(&e))),
                }
                if self.next.is_some() {
                    self.session.output.flush().map_err(SendError::from)?;
                    return Ok(self.next.take());
                }
            }
            self.session.output.flush().map_err(SendError::from)?;
            if self.mode == Mode::Job && self.is_drained() {
                return Ok(None);
            }
            match lines.fill().map_err(ServeError::Read)? {
                Filled::More => {}
                Filled::End => return Ok(None),
                Filled::TooLong => return Err(ServeError::TooLong),
            }
        }
    }

    fn is_drained(&self) -> bool {
        let state = self.shared.lock();
        state.draining && state.unfinished == 0
    }

    fn handle(&mut self, message: HostMessage) -> std::result::Result<(), ServeError> {
        match message {
            HostMessage::Hello(host) => {
                if host.protocol != PROTOCOL_VERSION {
                    return Err(ServeError::Protocol(host.protocol));
                }
                // No job holds the session yet, unless the daemon greets twice: then the first
                // greeting stays.
                if let Some(session) = Arc::get_mut(&mut self.session) {
                    session.host = host;
                }
                self.tell_ready()?;
            }
            HostMessage::Execute(execute) => self.execute(execute)?,
            HostMessage::Cancel(cancel) => {
                let stop = self.shared.lock().running.get(&cancel.id).cloned();
                // A job that has just ended is no longer known, and that is fine.
                if let Some(stop) = stop {
                    stop.cancel(&cancel);
                }
            }
            HostMessage::Ping(ping) => {
                self.session.output.queue(&PluginMessage::Pong(ping))?;
            }
            HostMessage::Shutdown(_) => {
                self.shared.lock().draining = true;
                self.session.output.flush().map_err(SendError::from)?;
                self.shared.changed.notify_all();
            }
            HostMessage::Unknown { .. } => {}
        }
        Ok(())
    }

    /// Tells the daemon when the configuration has changed whether jobs have a chance.
    fn tell_ready(&mut self) -> std::result::Result<(), ServeError> {
        let Some(is_ready) = &self.is_ready else {
            return Ok(());
        };
        let reason = is_ready(Some(&self.session.host)).err();
        if reason != self.reason {
            self.session.output.queue(&PluginMessage::Ready(Ready {
                ready: reason.is_none(),
                reason: reason.clone(),
            }))?;
            self.reason = reason;
        }
        Ok(())
    }

    fn execute(&mut self, execute: Execute) -> std::result::Result<(), ServeError> {
        let stop = Arc::new(Stop::default());
        let Some(handler) = self.actions.get(&execute.action) else {
            let error = Error::new(
                ErrorCode::UnknownAction,
                format!("there is no action {:?}", execute.action),
            );
            return Ok(self.job(execute, stop, None, true).finish(Err(error))?);
        };
        if handler.inline && self.mode == Mode::Serve {
            let run = Arc::clone(&handler.run);
            let job = self.job(execute, stop, handler.max_payload, true);
            let result = guarded(&*run, &job);
            return Ok(job.finish(result)?);
        }
        let handler = handler.clone();
        let id = execute.id.clone();
        let refusal = {
            let mut state = self.shared.lock();
            if state.running.contains_key(&id) {
                // To answer it would end the job that has this id.
                return Ok(());
            }
            if state.draining {
                Some(Error::new(
                    ErrorCode::NotReady,
                    "the plugin is shutting down",
                ))
            } else if state.running.len() >= self.max_jobs || state.over {
                Some(Error::new(
                    ErrorCode::Busy,
                    format!("{} jobs are running already", self.max_jobs),
                ))
            } else {
                state.running.insert(id, Arc::clone(&stop));
                state.unfinished += 1;
                None
            }
        };
        let job = self.job(execute, stop, handler.max_payload, false);
        if let Some(error) = refusal {
            return Ok(job.finish(Err(error))?);
        }
        let run = handler.run;
        let next = Next { job, run };
        if self.mode == Mode::Job {
            self.next = Some(next);
            return Ok(());
        }
        let shared = Arc::clone(&self.shared);
        let started = thread::Builder::new()
            .name("job".to_owned())
            .spawn(move || next.run(&shared, false));
        match started {
            Ok(_) => Ok(()),
            Err(e) => Err(ServeError::Thread(e)),
        }
    }

    fn job(&self, execute: Execute, stop: Arc<Stop>, max: Option<u64>, inline: bool) -> Job {
        Job::new(execute, Arc::clone(&self.session), stop, max, inline)
    }
}

/// Runs an action's function; a panic of it is an error like any other.
fn guarded(run: &Run, job: &Job) -> Result<Outcome> {
    catch_unwind(AssertUnwindSafe(|| run(job)))
        .unwrap_or_else(|_| Err(Error::internal("the plugin panicked, see its stderr")))
}

fn kind(error: &DecodeError) -> &'static str {
    match error {
        DecodeError::TooLong { .. } => "too long",
        DecodeError::NotUtf8(_) => "not UTF-8",
        DecodeError::NoType => "no type",
        DecodeError::JobId(_) => "job id",
        DecodeError::Json(e) if e.is_data() => "a field is missing or of the wrong type",
        DecodeError::Json(_) => "no JSON",
    }
}

#[cfg(test)]
mod tests;
