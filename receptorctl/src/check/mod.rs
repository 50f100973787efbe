//! `plugin check`: does an executable keep the plugin protocol? Also one job of it without a daemon, `plugin run`.
//!
//! Owns which checks there are, in which order, and the words for what was seen. Runs the plugin as the
//! daemon would, in a temporary job directory, and leaves nothing alive and nothing behind.
//!
//! ```text
//! mod ── file, schema     what can be judged without a run
//!  ├──── groups           what needs jobs
//!  └──── job ── process   one run: the protocol's order, three pipes
//!         └──── tree      what descends from us, and its end
//! play                    one job for a person: `plugin run`
//! exec                    the plugin's side of the spawn
//! report                  a line a check
//! ```

pub(crate) mod exec;
mod file;
mod groups;
mod job;
mod play;
mod process;
mod report;
mod schema;
mod tree;

pub(crate) use self::play::{hello, run as play};

use std::fs;
use std::path::Path;
use std::time::Duration;

use receptor_proto::plugin::{DESCRIBE_EXIT, PluginHello};

use self::groups::Checks;
use self::job::{Bench, ended};
use self::report::{Finding, Report};
use crate::args::PluginCheck;
use crate::exit::{Exit, Failure};

/// How long a job may take when the user gave no `--timeout`.
const JOB_PATIENCE: Duration = Duration::from_secs(60);
/// The largest payload file that is read.
const MAX_PAYLOAD: u64 = 64 * 1024 * 1024;

/// Runs all checks.
pub(crate) fn run(
    args: &PluginCheck,
    json: bool,
    timeout: Option<Duration>,
) -> Result<Exit, Failure> {
    if !args.path.exists() {
        let text = format!("{} does not exist", args.path.display());
        return Err(Failure::new(Exit::Usage, text));
    }
    let given = args.payload.as_deref().map(read_payload).transpose()?;
    let mut report = Report::new(json, args.strict);
    if !file::check(&args.path, &mut report)? {
        return report.finish();
    }
    let mut bench = Bench::new(&args.path, timeout.unwrap_or(JOB_PATIENCE))?;
    let Some(hello) = describe(&mut bench, &args.path, &mut report)? else {
        return report.finish();
    };
    let mut checks = Checks {
        bench,
        report,
        hello,
        only: args.only.clone(),
    };
    checks.run(args.action.as_deref(), given)?;
    checks.report.finish()
}

fn read_payload(path: &Path) -> Result<Vec<u8>, Failure> {
    let cannot = |why: String| {
        Failure::new(
            Exit::Usage,
            format!("cannot read {}: {why}", path.display()),
        )
    };
    let size = fs::metadata(path).map_err(|e| cannot(e.to_string()))?.len();
    if size > MAX_PAYLOAD {
        return Err(cannot(format!(
            "it has {size} bytes, more than {MAX_PAYLOAD}"
        )));
    }
    fs::read(path).map_err(|e| cannot(e.to_string()))
}

/// The group `hello`; `None` when nothing more can be checked.
fn describe(
    bench: &mut Bench,
    path: &Path,
    report: &mut Report,
) -> Result<Option<PluginHello>, Failure> {
    let (greeted, seen) = match bench.describe()? {
        Ok(described) => described,
        Err((what, mend)) => {
            report.add(Finding::fail("hello", "said", what).mend(mend))?;
            return Ok(None);
        }
    };
    let hello = greeted.hello;
    let actions: Vec<&str> = hello.actions.keys().map(String::as_str).collect();
    report.add(Finding::ok(
        "hello",
        "said",
        format!(
            "after {} ms: {} {}, actions: {}",
            greeted.ms,
            hello.name,
            hello.version,
            actions.join(", ")
        ),
    ))?;
    let file_name = path.file_name().unwrap_or_default().to_string_lossy();
    let valid = hello.validate(&file_name);
    report.add(match &valid {
        Ok(()) => Finding::ok(
            "hello",
            "valid",
            "name, protocol, actions and limits are as they must be",
        ),
        Err(problem) => Finding::fail("hello", "valid", problem.to_string())
            .mend("see \"Plugin to host\" in the text of the plugin protocol"),
    })?;
    for (name, action) in &hello.actions {
        if let (Some(schema), Some(example)) = (&action.schema, &action.example) {
            report.add(match (schema.to(), example.to()) {
                (Ok(schema), Ok(example)) => match schema::problem(&schema, &example) {
                    None => Finding::ok(
                        "hello",
                        "example",
                        format!("action {name}: the example fits the schema"),
                    ),
                    Some(problem) => {
                        Finding::fail("hello", "example", format!("action {name}: {problem}"))
                            .mend("mend the example or the schema")
                    }
                },
                (Err(e), _) | (_, Err(e)) => {
                    Finding::fail("hello", "example", format!("action {name}: {e}"))
                }
            })?;
        }
    }
    report.add(match seen.complaints.first() {
        None => Finding::ok(
            "hello",
            "quiet",
            "nothing but messages on stdout without a job",
        ),
        Some(complaint) => Finding::fail("hello", "quiet", complaint.clone())
            .mend("send everything that is no message to stderr"),
    })?;
    let within = DESCRIBE_EXIT.as_secs();
    report.add(
        match (seen.late, seen.status.and_then(|status| status.code())) {
            (Some(_), _) => Finding::fail(
                "hello",
                "exit",
                format!("still running {within} s after its stdin was closed"),
            )
            .mend("leave the read loop at end of file, and exit"),
            (None, Some(0)) => Finding::ok(
                "hello",
                "exit",
                format!(
                    "status 0, {} ms after its stdin was closed",
                    seen.took.as_millis()
                ),
            ),
            (None, _) => Finding::fail(
                "hello",
                "exit",
                format!("it {} once its stdin was closed", ended(seen.status)),
            )
            .mend("exit with status 0 at end of file"),
        },
    )?;
    if valid.is_err() {
        return Ok(None);
    }
    let ready = match (&seen.ready, hello.ready) {
        (Some(ready), _) => ready.clone(),
        (None, true) => Ok(()),
        (None, false) => Err(hello.reason.clone().unwrap_or_default()),
    };
    if let Err(reason) = ready {
        report.add(Finding::unless_strict(
            "messages",
            "ready",
            format!("the plugin says that it is not ready, so no jobs were tried: {reason}"),
        ))?;
        return Ok(None);
    }
    Ok(Some(hello))
}
