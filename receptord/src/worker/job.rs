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
    start,
};
use super::job_dir::{Given, Handover};
use super::outcome::{Outcome, error};
use super::process::Process;
use super::running::{Control, Places, Running, Terms, Why};
use super::shared::Shared;
use super::sweep;

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
}

/// What a job's task leaves.
#[derive(Debug)]
pub(super) struct Ended {
    /// What the plugin said of itself this time, if it did.
    pub hello: Option<PluginHello>,
}

/// Runs a job to its end, including the last report.
pub(super) async fn run(task: Task) -> Ended {
    let now = Instant::now();
    let own = own_config(&task.config, &task.plugin.name);
    let control = Rc::clone(&task.control);
    let mut running = Running::new(task.job.work, control, Terms::of(&task.action), &own, now);
    let places = Places {
        dir: task.config.jobs().join(&running.id),
        results: task.config.results(),
    };
    let mut ended = Ended { hello: None };
    let prepared = prepare(&task, &running).await;
    let (payload, mut process) = match prepared {
        Ok(prepared) => prepared,
        Err(problem) => {
            sweep::remove(&places.dir);
            let report = running.done(Outcome::Failed(problem), &places).await;
            let _ = task.shared.reports.send(report).await;
            return ended;
        }
    };
    let begun = begin(&task, &mut running, &mut process, payload).await;
    let mut outbox = VecDeque::new();
    let outcome = match begun {
        Ok(mut hello) => {
            let mut conversation = Conversation {
                task: &task,
                running: &mut running,
                process: &mut process,
                places: &places,
                outbox: &mut outbox,
                hello: &mut hello,
                stop: Stop::No,
                drained_at: None,
                alarm: Alarm::default(),
            };
            let outcome = conversation.run().await;
            ended.hello = Some(hello);
            outcome
        }
        Err(problem) => Outcome::Failed(problem),
    };
    outbox.push_back(running.done(outcome, &places).await);
    // The sender need not wait for the plugin's exit, nor the plugin for the sender.
    tokio::join!(
        flush(&task.shared.reports, outbox),
        clean_up(&task, &mut process, &running.id)
    );
    task.shared.sweeper.ended(process.root());
    ended
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
    let process = start(shared, config, plugin, purpose).await?;
    // The plugin takes a while to come up, in which the next one can be made ready.
    shared.spawner.park();
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
    if !hello.actions.contains_key(task.job.directive.action()) {
        process.kill_if_alive().await;
        let message = format!(
            "{} was replaced and has no such action any more",
            task.plugin.name
        );
        return Err(error(ErrorCode::NoSuchAction, message));
    }
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
        Ok(lines) => process.send(&lines),
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
