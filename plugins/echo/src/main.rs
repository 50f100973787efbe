//! A serving plugin that gives back what it is given: the first thing to try on a new mesh, and
//! what latency and throughput are measured with. Its other actions behave in the ways a
//! daemon has to cope with: slow, large, failing, dying.
//!
//! Installed under another name, it goes by that name; and with one process a job when the name
//! ends in `-once`, so that both modes can be tried with the same actions.
//!
//! It never looks into payloads beyond what an action needs, and reads or writes no file outside
//! of its job directory.

use std::{
    path::PathBuf,
    process::ExitCode,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use receptor_plugin::{Action, Error, ErrorCode, Job, Json, Outcome, Payload, Plugin, Result};
use serde::Deserialize;
use serde_json::json;

/// Sleeping jobs hold a thread each, and that is all they hold.
const MAX_JOBS: u32 = 1024;
/// Largest single result of `flood`, in bytes: what still fits a line.
const MAX_FLOOD_SIZE: usize = 1_000_000;

/// How many `discard`s this process has done: one-way senders have no other way to know.
static DISCARDED: AtomicU64 = AtomicU64::new(0);

fn main() -> ExitCode {
    let name = own_name();
    let plugin = Plugin::new(name.as_str(), env!("CARGO_PKG_VERSION"));
    let plugin = if name.ends_with("-once") {
        plugin
    } else {
        plugin.serve(MAX_JOBS)
    };
    plugin
        .about("Gives back what it is given; for trying and measuring a mesh")
        .cancelable()
        .action(
            "echo",
            Action::json()
                .about("Answers with the payload")
                .example(&json!({"hello": "mesh"}))
                .inline(),
            echo,
        )
        .action(
            "text",
            Action::text()
                .about("Answers with the payload, a text")
                .inline(),
            echo,
        )
        .action(
            "bytes",
            Action::bytes().about("Answers with the payload, by file"),
            bytes,
        )
        .action(
            "discard",
            Action::bytes()
                .about("Takes the payload and answers nothing")
                .inline(),
            |_| {
                DISCARDED.fetch_add(1, Ordering::Relaxed);
                Ok(Outcome::ok())
            },
        )
        .action(
            "discarded",
            Action::no_payload()
                .about("Answers how often this process was told to discard")
                .inline(),
            |job| {
                job.data(&DISCARDED.load(Ordering::Relaxed))?;
                Ok(Outcome::ok())
            },
        )
        .action(
            "sleep",
            Action::json()
                .about("Ends after \"ms\"")
                .example(&json!({"ms": 10})),
            sleep,
        )
        .action(
            "sleep-idempotent",
            Action::json()
                .about("Ends after \"ms\", and may be run again")
                .example(&json!({"ms": 10}))
                .idempotent(),
            sleep,
        )
        .action(
            "flood",
            Action::json()
                .about("Answers with \"count\" results of \"size\" bytes")
                .example(&json!({"count": 3, "size": 10})),
            flood,
        )
        .action(
            "fail",
            Action::json()
                .about("Runs, and ends with \"code\"")
                .example(&json!({"code": 2}))
                .inline(),
            fail,
        )
        .action(
            "error",
            Action::json()
                .about("Cannot run: ends with an error of \"code\" and \"message\"")
                .example(&json!({"code": "x-example", "message": "as asked"}))
                .inline(),
            error,
        )
        .action(
            "exit",
            Action::json().about("Ends the whole process with \"status\", without an answer"),
            exit,
        )
        .run()
}

/// The name of the file this was started as, without its extension.
fn own_name() -> String {
    let file = std::env::args_os().next().map(PathBuf::from);
    let name = file.as_ref().and_then(|file| file.file_stem()?.to_str());
    name.unwrap_or("echo").to_owned()
}

fn echo(job: &Job) -> Result<Outcome> {
    match job.payload() {
        None => job.data(&())?,
        Some(Payload::Json(json)) => job.data_json(json.clone())?,
        Some(Payload::Text(text)) => job.data_text(text.as_str())?,
        Some(Payload::Bytes(bytes)) => job.data_bytes(bytes.as_slice())?,
        // The file itself goes back: it is the daemon's already, and nothing has to be copied.
        Some(Payload::File(file)) => job.data_file(&job.dir().join(&file.path), None)?,
    }
    Ok(Outcome::ok())
}

fn bytes(job: &Job) -> Result<Outcome> {
    let path = job.dir().join(format!("{}.bytes", job.id()));
    let mut file = std::fs::File::create_new(&path)?;
    std::io::copy(&mut job.reader()?, &mut file)?;
    job.data_file(&path, Some("bytes"))?;
    Ok(Outcome::ok())
}

#[derive(Deserialize)]
struct Sleep {
    ms: u64,
}

fn sleep(job: &Job) -> Result<Outcome> {
    let Sleep { ms } = job.json()?;
    job.status("sleeping", &format!("{ms} ms"))?;
    job.sleep(Duration::from_millis(ms));
    job.check_canceled()?;
    Ok(Outcome::ok())
}

#[derive(Deserialize)]
struct Flood {
    count: u64,
    size: usize,
}

fn flood(job: &Job) -> Result<Outcome> {
    let Flood { count, size } = job.json()?;
    if size > MAX_FLOOD_SIZE {
        return Err(Error::invalid_payload(format!(
            "\"size\" is over {MAX_FLOOD_SIZE}"
        )));
    }
    let fill = Json::from_value(&"x".repeat(size))?;
    for _ in 0..count {
        job.check_canceled()?;
        job.data_json(fill.clone())?;
    }
    Ok(Outcome::ok())
}

#[derive(Deserialize)]
struct Fail {
    code: i64,
}

fn fail(job: &Job) -> Result<Outcome> {
    let Fail { code } = job.json()?;
    Outcome::code(code).with_result(&json!({"code": code}))
}

#[derive(Deserialize)]
struct Failure {
    #[serde(default = "own_code")]
    code: String,
    #[serde(default)]
    message: String,
}

fn own_code() -> String {
    "x-example".to_owned()
}

fn error(job: &Job) -> Result<Outcome> {
    let Failure { code, message } = job.json()?;
    Err(Error::new(ErrorCode::from(&*code), message))
}

#[derive(Deserialize)]
struct Exit {
    #[serde(default)]
    status: i32,
}

fn exit(job: &Job) -> Result<Outcome> {
    let Exit { status } = job.json()?;
    std::process::exit(status)
}
