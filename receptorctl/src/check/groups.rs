//! The checks that need jobs: messages, payload, stopping, pressure, serve.
//!
//! Owns what each of them runs and how it judges what was seen. Runs no action that the plugin or the user has not
//! shown to be harmless: with an example in its hello, or named on the command line.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use receptor_proto::plugin::{
    ActionDescriptor, CANCEL_GRACE, DESCRIBE_EXIT, ErrorCode, Json, MAX_INLINE, Mode, OutputKind,
    Payload, PayloadKind, PluginHello, SHUTDOWN_GRACE, TERM_GRACE, feature,
};

use super::job::{Bench, Disturb, Final, Late, Order, Plan, Seen, ended};
use super::report::{Finding, Report};
use crate::args::CheckGroup;
use crate::exit::{Exit, Failure};
use crate::output::count;

/// How long the host does not read, to see that results wait.
const DEAF: Duration = Duration::from_secs(2);
/// A payload that no line can carry.
const LARGE: usize = 5 * 1024 * 1024;
/// The job's id in a run.
const ID: &str = "check-1";
/// The id of a second job.
const OTHER: &str = "check-2";

/// The groups that need jobs.
pub(super) struct Checks {
    pub(super) bench: Bench,
    pub(super) report: Report,
    pub(super) hello: PluginHello,
    /// Only these groups; all when there is none.
    pub(super) only: Vec<CheckGroup>,
}

/// How a process is told to end.
struct Stop {
    group: &'static str,
    check: &'static str,
    disturb: Disturb,
    /// How long it may take.
    patience: Duration,
    mend: &'static str,
}

/// An action with a payload that works.
#[derive(Debug, Clone)]
pub(super) struct Probe {
    pub(super) name: String,
    pub(super) action: ActionDescriptor,
    pub(super) payload: Vec<u8>,
}

impl Checks {
    pub(super) fn run(
        &mut self,
        wanted: Option<&str>,
        given: Option<Vec<u8>>,
    ) -> Result<(), Failure> {
        let probes = self.probes(wanted, given)?;
        if self.wants(CheckGroup::Messages) {
            for probe in &probes {
                self.example(probe)?;
                self.broken(probe)?;
            }
        }
        // One action is enough for what belongs to the process and not to what it does.
        let Some(probe) = probes.into_iter().next() else {
            return Ok(());
        };
        if self.wants(CheckGroup::Payload) {
            self.payload(&probe)?;
        }
        if self.wants(CheckGroup::Stopping) {
            self.stopping(&probe)?;
        }
        if self.wants(CheckGroup::Pressure) {
            self.pressure(&probe)?;
        }
        if self.wants(CheckGroup::Serve) && self.hello.mode == Mode::Serve {
            self.serve(&probe)?;
        }
        Ok(())
    }

    fn wants(&self, group: CheckGroup) -> bool {
        self.only.is_empty() || self.only.contains(&group)
    }

    /// The actions that may be run: those that the user named, and those with an example. Anything else could do
    /// what nobody asked for.
    fn probes(
        &mut self,
        wanted: Option<&str>,
        given: Option<Vec<u8>>,
    ) -> Result<Vec<Probe>, Failure> {
        if let Some(name) = wanted {
            let Some(action) = self.hello.actions.get(name) else {
                let text = format!("the plugin has no action {name:?}");
                return Err(Failure::new(Exit::Usage, text));
            };
            let example = action.example.as_ref().map(|json| example(action, json));
            let none = action.payload == PayloadKind::None;
            if let Some(payload) = given.or(example).or(none.then(Vec::new)) {
                let action = action.clone();
                let name = name.to_owned();
                return Ok(vec![Probe {
                    name,
                    action,
                    payload,
                }]);
            }
            let text = format!(
                "action {name} has no example: give --payload FILE, or add \"example\" to the hello"
            );
            self.report
                .add(Finding::unless_strict("messages", "example", text))?;
            return Ok(Vec::new());
        }
        if given.is_some() {
            return Err(Failure::new(Exit::Usage, "--payload needs --action"));
        }
        let mut probes = Vec::new();
        let mut without = Vec::new();
        for (name, action) in &self.hello.actions {
            match &action.example {
                Some(json) => probes.push(Probe {
                    name: name.clone(),
                    action: action.clone(),
                    payload: example(action, json),
                }),
                None => without.push(name.clone()),
            }
        }
        for name in without {
            let takes_none = self
                .hello
                .actions
                .get(&name)
                .is_some_and(|action| action.payload == PayloadKind::None);
            let text = if takes_none {
                format!("action {name} was not asked for: to run it give --action {name}")
            } else {
                format!(
                    "action {name} has no example: give --action {name} --payload FILE, or add \"example\" to the hello"
                )
            };
            self.report
                .add(Finding::unless_strict("messages", "example", text))?;
        }
        Ok(probes)
    }

    /// Runs one job in the ordinary way.
    fn try_order(&mut self, order: Order) -> Result<Seen, Failure> {
        self.disturbed(vec![order], Disturb::Nothing, self.bench.patience)
    }

    fn disturbed(
        &mut self,
        orders: Vec<Order>,
        disturb: Disturb,
        patience: Duration,
    ) -> Result<Seen, Failure> {
        self.bench.run(&Plan {
            hello: &self.hello,
            orders,
            disturb,
            newer: false,
            patience,
            home: None,
        })
    }

    /// A limit of the protocol, or less when the user wants it so.
    fn grace(&self, limit: Duration) -> Duration {
        limit.min(self.bench.patience)
    }

    fn order(&self, id: &str, probe: &Probe) -> Order {
        order(&self.hello, id, probe, &probe.payload)
    }

    // ---- messages

    fn example(&mut self, probe: &Probe) -> Result<(), Failure> {
        let orders = vec![self.order(ID, probe)];
        let patience = self.bench.patience;
        let seen = self.bench.run(&Plan {
            hello: &self.hello,
            orders,
            disturb: Disturb::Nothing,
            newer: true,
            patience,
            home: None,
        })?;
        let name = &probe.name;
        let finding = match wrong(&seen, &[ID]).or_else(|| bad_exit(&seen, &probe.action)) {
            Some((what, mend)) => {
                Finding::fail("messages", "example", format!("action {name}: {what}")).mend(mend)
            }
            None => Finding::ok(
                "messages",
                "example",
                format!(
                    "action {name}: {}, {}, in {} ms; messages of a newer host ignored",
                    count(seen.data, "result"),
                    end_text(seen.final_of(ID)),
                    seen.took.as_millis()
                ),
            ),
        };
        self.report.add(finding)
    }

    fn broken(&mut self, probe: &Probe) -> Result<(), Failure> {
        if probe.action.payload != PayloadKind::Json || probe.action.output != OutputKind::Json {
            return Ok(());
        }
        // JSON that the host lets pass and that is surely not what the action takes, unless it takes anything.
        let is_object = probe.payload.trim_ascii_start().starts_with(b"{");
        let wrong_kind: &[u8] = if is_object {
            b"\"x-receptor-check\""
        } else {
            b"{\"x-receptor-check\":1}"
        };
        let order = order(&self.hello, ID, probe, wrong_kind);
        let seen = self.try_order(order)?;
        let name = &probe.name;
        let text = format!("action {name}, given JSON of another kind");
        const MEND: &str =
            "check the payload first, and answer with an error of code \"invalid-payload\"";
        let finding = match (wrong(&seen, &[ID]), seen.final_of(ID)) {
            (Some((what, _)), _) => {
                Finding::fail("messages", "broken payload", format!("{text}: {what}")).mend(MEND)
            }
            (None, Some(Final::Error(code, message))) if *code != ErrorCode::InvalidPayload => {
                let what = format!("{text}: error {code}: {message}");
                Finding::fail("messages", "broken payload", what).mend(MEND)
            }
            (None, Some(end @ Final::Error(..))) => Finding::ok(
                "messages",
                "broken payload",
                format!("{text}: {}", end_text(Some(end))),
            ),
            (None, end) => Finding::ok(
                "messages",
                "broken payload",
                format!("{text}: it takes that too, {}", end_text(end)),
            ),
        };
        self.report.add(finding)
    }

    // ---- payload

    fn payload(&mut self, probe: &Probe) -> Result<(), Failure> {
        let kind = probe.action.payload;
        let name = &probe.name;
        if kind == PayloadKind::None {
            return Ok(());
        }
        let by_file = self.hello.has(feature::FILE) || kind == PayloadKind::File;
        if by_file {
            let order = Order::by_file(ID, name, probe.payload.clone());
            self.payload_check(probe, "by file", "the example by file", order, true)?;
        }
        let most = probe
            .action
            .max_payload
            .and_then(|most| usize::try_from(most).ok());
        if !by_file {
            self.report.add(Finding::unless_strict(
                "payload",
                "5 MiB",
                format!("the hello does not list the feature \"file\": receptord refuses payloads that are too large for a line (about {} KiB)", MAX_INLINE / 1024),
            ))?;
        } else if most.is_some_and(|most| most < LARGE) {
            self.report.add(Finding::ok(
                "payload",
                "5 MiB",
                "receptord refuses it, as \"max_payload\" says",
            ))?;
        } else {
            let mut large = probe.payload.clone();
            // Blanks around JSON mean nothing, so that the example stays what it is.
            let (filler, same) = match kind {
                PayloadKind::Json => (b' ', true),
                PayloadKind::Text | PayloadKind::Bytes | PayloadKind::File | PayloadKind::None => {
                    (b'x', false)
                }
            };
            large.resize(LARGE.max(large.len()), filler);
            let order = Order::by_file(ID, name, large);
            self.payload_check(probe, "5 MiB", "5 MiB by file", order, same)?;
        }
        if matches!(
            kind,
            PayloadKind::Text | PayloadKind::Bytes | PayloadKind::File
        ) {
            let order = order(&self.hello, ID, probe, b"");
            self.payload_check(probe, "empty", "an empty payload", order, false)?;
        }
        if matches!(kind, PayloadKind::Bytes | PayloadKind::File) {
            let order = order(&self.hello, ID, probe, b"\xff\xfe\x00\n\x80");
            self.payload_check(probe, "not UTF-8", "bytes that are not UTF-8", order, false)?;
        }
        Ok(())
    }

    /// A payload that must at least lead to an orderly end; with `same` to one that is no error about the payload.
    fn payload_check(
        &mut self,
        probe: &Probe,
        check: &'static str,
        what: &str,
        order: Order,
        same: bool,
    ) -> Result<(), Failure> {
        let seen = self.try_order(order)?;
        let text = format!("action {}, given {what}", probe.name);
        const MEND: &str = "read the payload from \"payload_file\", relative to the working directory, when that is in the message";
        let finding = match (wrong(&seen, &[ID]), seen.final_of(ID)) {
            (Some((what, mend)), _) => {
                Finding::fail("payload", check, format!("{text}: {what}")).mend(mend)
            }
            (None, Some(end @ Final::Error(ErrorCode::InvalidPayload, _))) if same => {
                Finding::fail("payload", check, format!("{text}: {}", end_text(Some(end))))
                    .mend(MEND)
            }
            (None, end) => Finding::ok("payload", check, format!("{text}: {}", end_text(end))),
        };
        self.report.add(finding)
    }

    // ---- stopping

    fn stopping(&mut self, probe: &Probe) -> Result<(), Failure> {
        if self.hello.has(feature::CANCEL) && probe.action.output == OutputKind::Json {
            let order = self.order(ID, probe);
            let seen = self.disturbed(vec![order], Disturb::Cancel, self.grace(CANCEL_GRACE))?;
            let finding = match wrong(&seen, &[ID]) {
                Some((what, _)) => Finding::fail("stopping", "cancel", format!("cancelled: {what}"))
                    .mend("end the job and its children when \"cancel\" comes, and send its final message; or do not list the feature \"cancel\""),
                None => Finding::ok(
                    "stopping",
                    "cancel",
                    format!("{}{}", end_text(seen.final_of(ID)), when(&seen)),
                ),
            };
            self.report.add(finding)?;
        }
        self.stop(
            probe,
            Stop {
                group: "stopping",
                check: "stdin closed",
                disturb: Disturb::CloseStdin,
                patience: SHUTDOWN_GRACE,
                mend: "leave the read loop at end of file, and end the children",
            },
        )?;
        self.stop(
            probe,
            Stop {
                group: "stopping",
                check: "SIGTERM",
                disturb: Disturb::Terminate,
                patience: TERM_GRACE,
                mend: "do not ignore SIGTERM: end the children and exit",
            },
        )?;
        self.files(probe)?;
        let left = std::mem::take(&mut self.bench.leftovers);
        self.report.add(if left.is_empty() {
            Finding::ok("stopping", "processes", "nothing outlived its job")
        } else {
            Finding::fail(
                "stopping",
                "processes",
                format!("outlived its job, and was killed: {}", left.join(", ")),
            )
            .mend("wait for every child before the final message, and end those that do not end")
        })
    }

    /// A job in whose middle the process must end.
    fn stop(&mut self, probe: &Probe, stop: Stop) -> Result<(), Failure> {
        let Stop {
            group,
            check,
            disturb,
            patience,
            mend,
        } = stop;
        let order = self.order(ID, probe);
        let seen = self.disturbed(vec![order], disturb, self.grace(patience))?;
        let finding = match seen.status {
            Some(_) if seen.late.is_none() => Finding::ok(
                group,
                check,
                format!("it {}{}", ended(seen.status), when(&seen)),
            ),
            Some(_) => Finding::fail(
                group,
                check,
                "it ended, but something holds its stdout open",
            )
            .mend(mend),
            None => {
                let text = format!(
                    "in the middle of a job: still running after {}; killed",
                    limit(seen.took)
                );
                Finding::fail(group, check, text).mend(mend)
            }
        };
        self.report.add(finding)
    }

    /// A job in a home of its own, to see what it leaves where.
    fn files(&mut self, probe: &Probe) -> Result<(), Failure> {
        let home = self.bench.new_dir("home")?;
        let beside = self.bench.program.parent().map(Path::to_owned);
        let list = |dir: Option<&Path>| -> BTreeSet<PathBuf> {
            let entries = dir.map(fs::read_dir).and_then(Result::ok);
            entries
                .into_iter()
                .flatten()
                .flatten()
                .map(|entry| entry.path())
                .collect()
        };
        let before = list(beside.as_deref());
        let orders = vec![self.order(ID, probe)];
        let patience = self.bench.patience;
        self.bench.run(&Plan {
            hello: &self.hello,
            orders,
            disturb: Disturb::Nothing,
            newer: false,
            patience,
            home: Some(home.clone()),
        })?;
        let after = list(beside.as_deref());
        let mut left: Vec<PathBuf> = after.difference(&before).cloned().collect();
        left.extend(self.bench.strays());
        let in_home = list(Some(&home));
        let names: Vec<String> = left
            .iter()
            .map(|path| path.display().to_string())
            .chain(in_home.iter().filter_map(|path| {
                let name = path.file_name()?.to_string_lossy();
                Some(format!("$HOME/{name}"))
            }))
            .collect();
        self.report.add(if names.is_empty() {
            Finding::ok("stopping", "files", "nothing left in $HOME, beside the job directory or beside the plugin")
        } else {
            Finding::fail("stopping", "files", format!("left outside of the job directory: {}", names.join(", ")))
                .mend("write below the working directory, which is also $TMPDIR and removed after the job")
        })
    }

    // ---- pressure

    fn pressure(&mut self, probe: &Probe) -> Result<(), Failure> {
        const MEND: &str =
            "write to stdout with blocking writes, and never drop what cannot be written yet";
        let patience = self.bench.patience;
        let order = self.order(ID, probe);
        let seen = self.disturbed(vec![order], Disturb::Deaf(DEAF), patience)?;
        let text = "after 2 s without a reader";
        if let Some((what, _)) = wrong(&seen, &[ID]) {
            let finding = Finding::fail("pressure", "slow host", format!("{text}: {what}"));
            return self.report.add(finding.mend(MEND));
        }
        // A job may make more results at one time than at another: twice more is no chance.
        let mut least = u64::MAX;
        for _ in 0..2 {
            let order = self.order(ID, probe);
            least = least.min(self.try_order(order)?.data);
            if least <= seen.data {
                break;
            }
        }
        let results = count(seen.data, "result");
        self.report.add(if seen.data < least {
            let what = format!("{text}: {results}, and {least} when somebody reads");
            Finding::fail("pressure", "slow host", what).mend(MEND)
        } else {
            let end = end_text(seen.final_of(ID));
            Finding::ok("pressure", "slow host", format!("{text}: {results}, {end}"))
        })
    }

    // ---- serve

    fn serve(&mut self, probe: &Probe) -> Result<(), Failure> {
        let patience = self.bench.patience;
        let both = || vec![self.order(ID, probe), self.order(OTHER, probe)];
        if self.hello.max_jobs != Some(1) {
            let orders = both();
            let cancelled = both();
            let seen = self.disturbed(orders, Disturb::Nothing, patience)?;
            let finding = match wrong(&seen, &[ID, OTHER]) {
                Some((what, mend)) => {
                    Finding::fail("serve", "two jobs", format!("two jobs at once: {what}"))
                        .mend(mend)
                }
                None => Finding::ok(
                    "serve",
                    "two jobs",
                    "two jobs at once, each with its own messages and end",
                ),
            };
            self.report.add(finding)?;
            let seen = self.disturbed(cancelled, Disturb::Cancel, patience)?;
            let finding = match (wrong(&seen, &[ID, OTHER]), seen.final_of(OTHER)) {
                (Some((what, mend)), _) => Finding::fail(
                    "serve",
                    "cancel one",
                    format!("one of two jobs cancelled: {what}"),
                )
                .mend(mend),
                (None, Some(Final::Error(ErrorCode::Canceled, _))) => Finding::fail(
                    "serve",
                    "cancel one",
                    "one of two jobs was cancelled, and both ended",
                )
                .mend("end only the job whose id \"cancel\" carries"),
                (None, _) => Finding::ok(
                    "serve",
                    "cancel one",
                    "one of two jobs was cancelled, the other went on",
                ),
            };
            self.report.add(finding)?;
        }
        let order = self.order(ID, probe);
        let seen = self.disturbed(vec![order], Disturb::Ping, self.grace(CANCEL_GRACE))?;
        self.report.add(if seen.pong {
            Finding::ok("serve", "ping", "answered")
        } else {
            Finding::fail("serve", "ping", "a ping was not answered")
                .mend("answer {\"type\":\"ping\",\"nonce\":N} with {\"type\":\"pong\",\"nonce\":N}, also while jobs run")
        })?;
        self.stop(
            probe,
            Stop {
                group: "serve",
                check: "shutdown",
                disturb: Disturb::Shutdown,
                patience: SHUTDOWN_GRACE,
                mend: "finish the running jobs when \"shutdown\" comes, and exit",
            },
        )
    }
}

/// A payload in the form in which the daemon hands it over.
/// A job for an action, with its payload in the form that the host would give it.
pub(super) fn order(hello: &PluginHello, id: &str, probe: &Probe, bytes: &[u8]) -> Order {
    let by_file = || Order::by_file(id, &probe.name, bytes.to_vec());
    let small = bytes.len() <= MAX_INLINE;
    let payload = match probe.action.payload {
        PayloadKind::None => None,
        PayloadKind::File => return by_file(),
        PayloadKind::Json if small => match Json::parse(bytes) {
            Ok(json) => Some(Payload::Json(json)),
            Err(_) => return by_file(),
        },
        PayloadKind::Text if small => match std::str::from_utf8(bytes) {
            Ok(text) => Some(Payload::Text(text.to_owned())),
            Err(_) => return by_file(),
        },
        PayloadKind::Bytes if small || !hello.has(feature::FILE) => {
            Some(Payload::Bytes(bytes.to_vec()))
        }
        PayloadKind::Json | PayloadKind::Text | PayloadKind::Bytes => return by_file(),
    };
    Order::new(id, &probe.name, payload)
}

/// The bytes of an action's example: what a string says where the action takes no JSON.
fn example(action: &ActionDescriptor, json: &Json) -> Vec<u8> {
    let text: Option<String> = match action.payload {
        PayloadKind::Json | PayloadKind::None => None,
        PayloadKind::Text | PayloadKind::Bytes | PayloadKind::File => json.to().ok(),
    };
    text.unwrap_or_else(|| json.get().to_owned()).into_bytes()
}

/// What was wrong with a run whatever the job is, and how to mend it.
fn wrong(seen: &Seen, ids: &[&str]) -> Option<(String, &'static str)> {
    if let Some(complaint) = seen.complaints.first() {
        return Some((
            complaint.clone(),
            "see \"Plugin to host\" in the text of the plugin protocol",
        ));
    }
    if let Some(id) = ids.iter().find(|id| seen.final_of(id).is_none()) {
        let which = if ids.len() > 1 {
            format!(" of job {id}")
        } else {
            String::new()
        };
        if seen.late == Some(Late::Job) {
            let what = format!(
                "no final message{which} within {}; killed",
                limit(seen.took)
            );
            return Some((
                what,
                "send \"done\" or \"error\" at the end of every job; or give more time with --timeout",
            ));
        }
        let mut what = format!("it {} without a final message{which}", ended(seen.status));
        if !seen.stderr.is_empty() {
            let lines: Vec<&str> = seen.stderr.lines().rev().take(3).collect();
            let lines: Vec<&str> = lines.into_iter().rev().collect();
            what.push_str(&format!("; on stderr: {}", lines.join(" / ")));
        }
        return Some((
            what,
            "catch every failure, and send \"error\" with its code and message",
        ));
    }
    match seen.late {
        None => None,
        Some(Late::Job) => Some((
            "it did not go on in time".to_owned(),
            "see the messages above",
        )),
        Some(Late::Exit) => Some((
            format!(
                "still running {} s after its stdin was closed",
                DESCRIBE_EXIT.as_secs()
            ),
            "leave the read loop at end of file, and exit",
        )),
        Some(Late::Stdout) => Some((
            "it ended, but something holds its stdout open".to_owned(),
            "end the children before the final message, or give them another stdout",
        )),
    }
}

/// An exit status that is not 0 after a job's final message.
fn bad_exit(seen: &Seen, action: &ActionDescriptor) -> Option<(String, &'static str)> {
    if action.output != OutputKind::Json || seen.status.and_then(|status| status.code()) == Some(0)
    {
        return None;
    }
    Some((
        format!("it {} after the job's final message", ended(seen.status)),
        "exit with status 0 once stdin has ended, whatever the job's code",
    ))
}

fn end_text(end: Option<&Final>) -> String {
    match end {
        Some(Final::Done(0)) => "done".to_owned(),
        Some(Final::Done(code)) => format!("done with code {code}"),
        Some(Final::Error(code, message)) => format!("error {code}: {message}"),
        None => "no end".to_owned(),
    }
}

/// How long it took, or that there was nothing to disturb.
fn when(seen: &Seen) -> String {
    if seen.undisturbed {
        return " (the job was over before)".to_owned();
    }
    format!(" after {} ms", seen.took.as_millis())
}

/// A time that was up, in whole seconds if it has any.
fn limit(took: Duration) -> String {
    let part = if took.as_secs() > 0 { 1000 } else { 100 };
    let ms = u64::try_from(took.as_millis()).unwrap_or(u64::MAX);
    humantime::format_duration(Duration::from_millis(ms / part * part)).to_string()
}
