//! Job mode: one process for one work.
//!
//! Owns the whole life of such a process, in one task:
//!
//! ```text
//! payload checked ─▶ Started ─▶ (start is on the disk) ─▶ spawn ─▶ hello ─▶ execute
//!                                                                             │
//!          data, status, log ◀──────────── conversation ◀────────────────────┘
//!                                              │ done, error, exit, or a broken rule;
//!                                              │ cancel: message, SIGTERM, SIGKILL to the tree
//!                                              ▼
//!                          Done ─▶ stdin closed, exit ─▶ the sweeper takes the rest
//! ```
//!
//! Never has more results under way than the engine has room for: while there is none the plugin's pipe
//! is not read, which holds up this plugin and nobody else.
//!
//! Where there is a unit for it the process runs behind a holder. Then the job can be left to the next daemon
//! from its `execute` on, and its process is held until its last word is safe.

mod conversation;

use std::collections::VecDeque;
use std::rc::Rc;
use std::time::Instant;

use receptor_proto::plugin::{ActionDescriptor, ExecuteRef, PluginHello, env, feature};
use receptor_proto::{ErrorBody, ErrorCode};
use tokio::sync::mpsc;
use tokio::task::yield_now;

use self::conversation::{Conversation, Stop};
use super::alarm::Alarm;
use super::api::{Job, Report};
use super::config::HostConfig;
use super::describe::{
    Executable, Parting, Purpose, host_hello, let_go, make_dir, own_config, put_down, read_hello,
    start_in_unit,
};
use super::holder::{Entry, LeftWork, Note, Parts, Remote, Resumed};
use super::job_dir::{Given, Handover};
use super::outcome::{Outcome, error};
use super::process::Process;
use super::running::{Control, Places, Running, Terms, Why};
use super::shared::Shared;
use super::stderr::Source;
use super::sweep;
use super::unseen::Unseen;

/// The payload's file in the job directory.
const PAYLOAD_FILE: &str = "payload";
/// Longest log message of a plugin that is logged, in bytes.
pub(super) const MAX_LOG: usize = 2048;

/// All that a job's task needs.
#[derive(Debug)]
pub(super) struct Task {
    /// For every task.
    pub shared: Rc<Shared>,
    /// As of the start of the job.
    pub config: Rc<HostConfig>,
    /// What to run.
    pub plugin: Executable,
    /// What it said when it was described.
    pub hello: Rc<PluginHello>,
    /// The action, out of that.
    pub action: ActionDescriptor,
    /// The work.
    pub job: Box<Job>,
    /// What the host says meanwhile.
    pub control: Rc<Control>,
    /// The process that an earlier daemon has left.
    pub resumed: Option<GoingOn>,
}

/// A process that was left to this daemon.
#[derive(Debug)]
pub(super) struct GoingOn {
    /// The process.
    pub remote: Remote,
    /// What was known of it.
    pub note: Note,
    /// And of the work.
    pub left: LeftWork,
    /// So many of the results that come first are the engine's already.
    pub repeats: u64,
}

/// What a job's task leaves.
#[derive(Debug)]
pub(super) struct Ended {
    /// What the plugin said of itself this time, if it did.
    pub hello: Option<PluginHello>,
    /// The next daemon goes on with it.
    pub left: bool,
}

/// Runs a job to its end, including the last report, or until it is left to the next daemon.
pub(super) async fn run(mut task: Task) -> Ended {
    let now = Instant::now();
    let own = own_config(&task.config, &task.plugin.name);
    let control = Rc::clone(&task.control);
    let mut running = Running::new(task.job.work, control, Terms::of(&task.action), &own, now);
    let places = Places {
        dir: task.config.jobs().join(&running.id),
        results: task.config.results(),
    };
    let mut ended = Ended {
        hello: None,
        left: false,
    };
    let goes_on = task.resumed.is_some();
    let (mut process, unseen, begun) = match task.resumed.take() {
        Some(GoingOn {
            remote,
            note,
            left,
            repeats,
        }) => {
            let source = Source {
                plugin: task.plugin.name.clone(),
                job: running.id.clone(),
            };
            running.go_on(left.entry.began(), left.mark, repeats);
            let process = Process::resumed(remote, places.dir.clone(), source);
            let mut unseen = Unseen::new(process.offset());
            unseen.go_on(&running);
            (process, unseen, Ok(note.hello))
        }
        None => match prepare(&task, &running).await {
            Ok((payload, mut process)) => {
                let mut unseen = Unseen::new(0);
                let begun = begin(&task, &mut running, &mut process, payload, &mut unseen).await;
                (process, unseen, begun)
            }
            Err(problem) => {
                sweep::remove(&places.dir);
                let report = running.done(Outcome::Failed(problem), &places).await;
                let _ = task.shared.reports.send(report).await;
                return ended;
            }
        },
    };
    if process.is_kept() {
        running.keep_files();
        let kept = Report::Kept { work: running.work };
        let _ = task.shared.reports.send(kept).await;
    } else {
        running.control.nothing_to_keep();
    }
    let control = Rc::clone(&running.control);
    let is_kept = process.is_kept();
    tokio::select! {
        biased;
        () = control.left(), if is_kept => ended.left = true,
        hello = finish(&task, &mut running, &mut process, &places, begun, unseen) => {
            // What a note holds of a hello is no news.
            ended.hello = hello.filter(|_| !goes_on);
        }
    }
    if ended.left {
        process.leave();
        return ended;
    }
    if is_kept {
        remove_files(&running.id, &places);
    }
    process.clear_away(&task.shared.sweeper).await;
    ended
}

/// Ends a process that was left and that nobody wants.
pub(super) async fn end(resumed: Resumed, places: Places, shared: Rc<Shared>) {
    let id = resumed.name().to_owned();
    let Ok(Parts {
        remote,
        note,
        works,
    }) = resumed.into_parts()
    else {
        return;
    };
    let source = Source {
        plugin: note.hello.name,
        job: id.clone(),
    };
    let mut process = Process::resumed(remote, places.dir.clone(), source);
    process.kill().await;
    for left in works {
        remove_files(&left.work.to_string(), &places);
    }
    process.clear_away(&shared.sweeper).await;
}

/// Removes result files that were taken and that nobody has put away.
pub(super) fn remove_files(id: &str, places: &Places) {
    let entries = std::fs::read_dir(&places.results);
    for entry in entries.into_iter().flatten().flatten() {
        let name = entry.file_name();
        let job = name.to_str().and_then(|name| name.split('.').next());
        if job == Some(id) {
            let _ = std::fs::remove_file(entry.path());
        }
    }
}

/// From the beginning of the job to the moment in which nothing of its process is wanted any more.
async fn finish(
    task: &Task,
    running: &mut Running,
    process: &mut Process,
    places: &Places,
    begun: Result<PluginHello, ErrorBody>,
    unseen: Unseen,
) -> Option<PluginHello> {
    let mut outbox = VecDeque::new();
    let (outcome, hello) = match begun {
        Ok(mut hello) => {
            let mut conversation = Conversation {
                task,
                running,
                process,
                places,
                outbox: &mut outbox,
                hello: &mut hello,
                stop: Stop::No,
                drained_at: None,
                unseen,
                alarm: Alarm::default(),
            };
            (conversation.run().await, Some(hello))
        }
        Err(problem) => (Outcome::Failed(problem), None),
    };
    outbox.push_back(running.done(outcome, places).await);
    let is_kept = process.is_kept();
    let id = running.id.clone();
    // The sender need not wait for the plugin's exit, nor the plugin for the sender.
    tokio::join!(
        flush(&task.shared.reports, outbox),
        clean_up(task, process, &id)
    );
    if is_kept {
        // Until its last word is safe the next daemon may have to hear it again.
        running.control.end_is_safe().await;
    }
    hello
}

/// Everything before the first byte to the plugin.
async fn prepare(task: &Task, running: &Running) -> Result<(Option<Given>, Process), ErrorBody> {
    let Task {
        shared,
        config,
        plugin,
        job,
        ..
    } = task;
    let dir = make_dir(config, plugin, &running.id)?;
    let handover = Handover {
        dir,
        file_name: PAYLOAD_FILE.to_owned(),
        reads_files: task.hello.has(feature::FILE),
        may_run_again: task.action.idempotent,
    };
    let file = handover.dir.join(PAYLOAD_FILE);
    let payload = job.payload.clone();
    let payload = handover
        .prepare(payload, job.content, task.action.payload)
        .await?;
    if !job.admitted {
        let started = Report::Started {
            work: job.work,
            idempotent: task.action.idempotent,
        };
        let _ = shared.reports.send(started).await;
    }
    let mut variables = vec![
        (env::JOB_ID, running.id.clone().into()),
        (env::ACTION, job.directive.action().into()),
        (env::SENDER, job.sender.as_str().into()),
    ];
    if let Some(Given::File(_)) = payload {
        variables.push((env::PAYLOAD_FILE, PAYLOAD_FILE.into()));
    }
    may_start(&running.control).await?;
    let purpose = Purpose {
        job: &running.id,
        variables,
    };
    let file = matches!(payload, Some(Given::File(_))).then_some(file);
    // What may be run again is, after a restart: what it has said before counts, and would have to be known.
    let keep = job.outlives && job.attempt == 1;
    let process = start_in_unit(shared, config, plugin, purpose, file.as_deref(), keep).await?;
    if !process.is_remote() {
        // The plugin takes a while to come up, in which the next one can be made ready.
        shared.spawner.park();
    }
    Ok((payload, process))
}

/// Waits until the start is on the disk. A plugin that acts without reading what it is told has
/// run when its process has, so there is none before: it would run twice if the node went down.
async fn may_start(control: &Control) -> Result<(), ErrorBody> {
    loop {
        if let Some(reason) = control.cancelled() {
            return Err(Why::Cancel(reason).error());
        }
        if control.may_start() {
            return Ok(());
        }
        control.changed().await;
    }
}

/// Hello, and the job itself.
async fn begin(
    task: &Task,
    running: &mut Running,
    process: &mut Process,
    payload: Option<Given>,
    unseen: &mut Unseen,
) -> Result<PluginHello, ErrorBody> {
    let control = Rc::clone(&running.control);
    // Gone before the next wait: of two that wait, a change would wake only this one.
    let hello = {
        let cancelled = async {
            loop {
                if let Some(reason) = control.cancelled() {
                    return reason;
                }
                control.changed().await;
            }
        };
        tokio::select! {
            hello = read_hello(process, &task.plugin, &task.config.times) => hello,
            reason = cancelled => Err(Why::Cancel(reason).error()),
        }
    };
    let hello = match hello {
        Ok(hello) => hello,
        Err(problem) => {
            process.kill_if_alive().await;
            return Err(problem);
        }
    };
    let Some(action) = hello.actions.get(task.job.directive.action()) else {
        process.kill_if_alive().await;
        let message = format!(
            "{} was replaced and has no such action any more",
            task.plugin.name
        );
        return Err(error(ErrorCode::NoSuchAction, message));
    };
    let execute = ExecuteRef {
        id: &running.id,
        action: task.job.directive.action(),
        sender: task.job.sender.as_str(),
        payload: payload.as_ref().map(Given::as_payload),
        timeout_ms: running.timeout_ms(),
        attempt: task.job.attempt,
    };
    let lines = host_hello(&task.config, &task.plugin.name)
        .to_line()
        .and_then(|mut lines| {
            execute.put_line(&mut lines)?;
            Ok(lines)
        });
    match lines {
        Ok(lines) => {
            process.outgoing().extend_from_slice(&lines);
            if process.is_kept() {
                process.note(&Note::new(&task.plugin, &hello));
                unseen.begin(running, Entry::new(action), process);
            }
            process.flush();
        }
        Err(problem) => {
            process.kill_if_alive().await;
            let message = format!("the payload does not fit a line: {problem}");
            return Err(error(ErrorCode::PayloadTooLarge, message));
        }
    }
    running.begin(Instant::now());
    Ok(hello)
}

async fn flush(reports: &mpsc::Sender<Report>, outbox: VecDeque<Report>) {
    for report in outbox {
        // Without an engine nobody is left to tell.
        if reports.send(report).await.is_err() {
            return;
        }
    }
}

/// Lets the process go whose job is over.
async fn clean_up(task: &Task, process: &mut Process, job: &str) {
    let times = &task.config.times;
    let plugin = &task.plugin.name;
    // The engine has its turn first: whoever waits for the end need not wait for this.
    yield_now().await;
    if process.status().is_none() && let_go(process, times.exit).await == Parting::Lingered {
        tracing::warn!(
            %plugin,
            %job,
            after = ?times.exit,
            "the plugin did not exit after its job: it is ended"
        );
        put_down(process, times.term_grace).await;
    }
    process.finish_stderr();
}
