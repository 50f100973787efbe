//! What the lines of a job add up to: what goes to the sender, what a person is shown meanwhile,
//! and the result. Decides only; sends nothing.

use receptor_plugin::Json;
use serde::Deserialize;
use serde_json::{Map, Value, json, value::RawValue};

use crate::{
    payload::{Events, Options},
    stream::Piece,
    tail::Tail,
};

/// Bytes kept of what Ansible says outside of events; its errors are at the end.
const OUTPUT_KEPT: usize = 8_192;
/// Largest result in the final message. Statistics of thousands of hosts are left out of it, they
/// went as an event before.
const MAX_RESULT: usize = 262_144;
/// Bytes of a task's name that a person is shown.
const MAX_TASK: usize = 120;
/// Failures that the result tells in words; all of them went as events before.
const MAX_TOLD: usize = 10;
/// Characters of each of them.
const MAX_WORDS: usize = 400;

/// What became of a job so far.
#[derive(Debug)]
pub(crate) struct Report {
    options: Options,
    /// The argument `omit_event_data` or its like: an empty result means nothing then.
    omits: bool,
    task: String,
    ok: u64,
    changed: u64,
    failed: u64,
    unreachable: u64,
    events: u64,
    /// Lines that were no JSON.
    pub(crate) garbage: u64,
    /// Events whose result ansible-runner has dropped.
    pub(crate) dropped: u64,
    cut: u64,
    no_hosts: bool,
    /// The first failures, a line each.
    told: Vec<String>,
    untold: u64,
    stats: Option<Map<String, Value>>,
    artifact_data: Option<Value>,
    output: Tail,
    /// The last word of ansible-runner on the job.
    pub(crate) status: Option<String>,
    /// What it said beside it.
    pub(crate) explanation: Option<String>,
    /// The stream has ended as it should.
    pub(crate) eof: bool,
}

/// What to do about a line.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Step {
    /// A result for the sender.
    pub(crate) send: Option<Json>,
    /// ansible-runner's new state.
    pub(crate) state: Option<String>,
    /// A person should be shown [`Report::summary`].
    pub(crate) news: bool,
}

/// The parts of a line that matter, whatever its kind.
#[derive(Deserialize)]
struct Line<'a> {
    status: Option<String>,
    job_explanation: Option<String>,
    event: Option<String>,
    #[serde(default)]
    eof: bool,
    /// Looked at only where it matters: it may hold what no text may.
    #[serde(borrow)]
    stdout: Option<&'a RawValue>,
    #[serde(borrow)]
    event_data: Option<&'a RawValue>,
}

/// The parts of an event that matter. Values are looked at one by one, so that a strange one of a
/// module does not hide the others.
#[derive(Default, Deserialize)]
struct EventData<'a> {
    host: Option<Value>,
    task: Option<Value>,
    ignore_errors: Option<Value>,
    #[serde(borrow)]
    res: Option<&'a RawValue>,
}

#[derive(Default, Deserialize)]
struct Res {
    changed: Option<Value>,
    msg: Option<Value>,
    /// In place of everything else where a task says `no_log`.
    censored: Option<Value>,
    rc: Option<Value>,
    stderr: Option<Value>,
    module_stderr: Option<Value>,
    stdout: Option<Value>,
}

impl Res {
    /// Why it failed, on one line.
    fn why(&self) -> String {
        let text = |value: &Option<Value>| match value {
            Some(Value::String(text)) => text.trim().to_owned(),
            Some(value @ (Value::Number(_) | Value::Array(_) | Value::Object(_))) => {
                value.to_string()
            }
            Some(Value::Null | Value::Bool(_)) | None => String::new(),
        };
        let mut why = [&self.msg, &self.censored]
            .map(text)
            .into_iter()
            .find(|text| !text.is_empty())
            .unwrap_or_else(|| "no reason is given".to_owned());
        let rc = text(&self.rc);
        if !rc.is_empty() && rc != "0" {
            why.push_str(&format!(" (rc {rc})"));
        }
        let said = [&self.stderr, &self.module_stderr, &self.stdout]
            .map(text)
            .into_iter()
            .find(|text| !text.is_empty());
        if let Some(line) = said.as_deref().and_then(|said| said.lines().last())
            && !why.contains(line.trim())
        {
            why.push_str(": ");
            why.push_str(line.trim());
        }
        why
    }
}

impl Report {
    pub(crate) fn new(options: Options, omits: bool) -> Self {
        Self {
            options,
            omits,
            task: String::new(),
            ok: 0,
            changed: 0,
            failed: 0,
            unreachable: 0,
            events: 0,
            garbage: 0,
            dropped: 0,
            cut: 0,
            no_hosts: false,
            told: Vec::new(),
            untold: 0,
            stats: None,
            artifact_data: None,
            output: Tail::new(OUTPUT_KEPT),
            status: None,
            explanation: None,
            eof: false,
        }
    }

    /// Takes a piece of the stream.
    pub(crate) fn take(&mut self, piece: &Piece<'_>) -> Step {
        let (text, cut) = match piece {
            Piece::Line { text, cut } => (*text, *cut),
            Piece::Overlong => {
                self.cut += 1;
                return self.sending(cut_mark());
            }
        };
        let Ok(line) = serde_json::from_slice::<Line<'_>>(text) else {
            self.garbage += 1;
            return Step::default();
        };
        if line.eof {
            self.eof = true;
            return Step::default();
        }
        if let Some(status) = line.status {
            return self.take_status(status, line.job_explanation, text);
        }
        match line.event.as_deref() {
            Some("keepalive") => Step::default(),
            Some(event) => {
                let (wanted, news) = self.take_event(event, line.stdout, line.event_data);
                let send = wanted.then(|| self.shortened(text, cut)).flatten();
                Step {
                    news,
                    ..self.sending(send)
                }
            }
            None => {
                self.garbage += 1;
                Step::default()
            }
        }
    }

    /// The last result of all, with which the results are a whole stream again.
    pub(crate) fn end(&self) -> Option<Json> {
        let end = Json::from_value(&json!({"eof": true})).ok();
        end.filter(|_| self.options.events != Events::None && self.status.is_some())
    }

    /// One line for people.
    pub(crate) fn summary(&self) -> String {
        let Self {
            task,
            ok,
            changed,
            failed,
            unreachable,
            ..
        } = self;
        let counts = format!("ok={ok} changed={changed} failed={failed} unreachable={unreachable}");
        if task.is_empty() {
            return counts;
        }
        format!("TASK [{task}] {counts}")
    }

    /// Ansible has run and had nothing to do it to.
    pub(crate) fn no_hosts_matched(&self) -> bool {
        let processed = self.stats.as_ref().and_then(|stats| stats.get("processed"));
        match processed {
            Some(Value::Object(hosts)) => hosts.is_empty(),
            _ => self.no_hosts,
        }
    }

    /// What Ansible said outside of events.
    pub(crate) fn output(&self) -> String {
        self.output.text()
    }

    /// The result in the final message.
    pub(crate) fn result(
        &self,
        status: &str,
        rc: i64,
        seconds: f64,
        version: Option<&str>,
    ) -> Value {
        let mut result = json!({
            "status": status,
            "rc": rc,
            "events": self.events,
            "no_hosts_matched": self.no_hosts_matched(),
            "stats": self.stats,
            "artifact_data": self.artifact_data,
            "duration_s": (seconds * 100.0).round() / 100.0,
            "ansible_runner": version,
        });
        if self.cut > 0 {
            result["events_cut"] = self.cut.into();
        }
        if self.dropped > 0 {
            result["results_dropped"] = self.dropped.into();
        }
        if rc != 0 {
            result["output"] = self.output().into();
            result["message"] = self.message().into();
        }
        for large in ["artifact_data", "stats"] {
            if result.to_string().len() > MAX_RESULT {
                result[large] = Value::Null;
                result["receptor_cut"] = true.into();
            }
        }
        result
    }

    /// Why the job failed, for a person: a line for each of the first failures.
    fn message(&self) -> String {
        let mut lines = self.told.clone();
        if self.untold > 0 {
            lines.push(format!("and {} more failures", self.untold));
        }
        if lines.is_empty() && self.no_hosts_matched() {
            lines.push("no host matched, so nothing was done".to_owned());
        }
        if lines.is_empty() {
            lines.push(self.output());
        }
        lines.join("\n")
    }

    /// Keeps a failure for the result.
    fn keep_failure(&mut self, parts: &EventData<'_>, res: &Res, kind: &str) {
        if self.told.len() >= MAX_TOLD {
            self.untold += 1;
            return;
        }
        let text = |value: &Option<Value>| match value {
            Some(Value::String(text)) => text.clone(),
            Some(_) | None => "?".to_owned(),
        };
        let host = text(&parts.host);
        let task = text(&parts.task);
        let line = format!("{host}: TASK [{task}]{kind}: {}", res.why());
        let line = line.split_whitespace().collect::<Vec<_>>().join(" ");
        self.told.push(line.chars().take(MAX_WORDS).collect());
    }

    fn take_status(&mut self, status: String, explanation: Option<String>, text: &[u8]) -> Step {
        let send = match serde_json::from_slice::<Map<String, Value>>(text) {
            Ok(mut whole) => {
                // The environment that it runs in, with all that is secret there.
                whole.remove("env");
                Json::from_value(&whole).ok()
            }
            Err(_) => None,
        };
        self.explanation = explanation.or(self.explanation.take());
        self.status = Some(status.clone());
        Step {
            state: Some(status),
            ..self.sending(send)
        }
    }

    /// Counts an event. Returns whether the sender wants it and whether a person should see it.
    fn take_event(
        &mut self,
        event: &str,
        stdout: Option<&RawValue>,
        data: Option<&RawValue>,
    ) -> (bool, bool) {
        self.events += 1;
        let data = data.map_or("{}", RawValue::get);
        let parts: EventData<'_> = serde_json::from_str(data).unwrap_or_default();
        let res: Res = parts
            .res
            .and_then(|res| serde_json::from_str(res.get()).ok())
            .unwrap_or_default();
        let changed = res.changed == Some(Value::Bool(true));
        let is_result = event.starts_with("runner_on_") || event.starts_with("runner_item_on_");
        if is_result
            && !self.omits
            && event != "runner_on_start"
            && parts.res.is_some_and(|res| res.get().trim() == "{}")
        {
            self.dropped += 1;
        }

        // What tasks came to, and whether it changed or failed something.
        let mut result = true;
        let mut failed = false;
        match event {
            "runner_on_ok" => {
                self.ok += 1;
                self.changed += u64::from(changed);
            }
            "runner_on_failed" if parts.ignore_errors == Some(Value::Bool(true)) => self.ok += 1,
            "runner_on_failed" => {
                self.failed += 1;
                failed = true;
                self.keep_failure(&parts, &res, "");
            }
            "runner_on_unreachable" => {
                self.unreachable += 1;
                failed = true;
                self.keep_failure(&parts, &res, " unreachable");
            }
            "runner_item_on_failed" => {
                failed = true;
                self.keep_failure(&parts, &res, " item");
            }
            "runner_on_async_failed" | "error" => failed = true,
            "playbook_on_no_hosts_matched" => {
                self.no_hosts = true;
                failed = true;
            }
            "playbook_on_stats" => {
                self.take_stats(data);
                failed = true;
            }
            // A module alone has no task of its own, only the start on each host.
            "playbook_on_task_start" | "playbook_on_handler_task_start" | "runner_on_start" => {
                if let Some(Value::String(task)) = parts.task {
                    self.task = task.chars().take(MAX_TASK).collect();
                }
                result = false;
            }
            "verbose" => {
                let text = stdout.and_then(|text| serde_json::from_str(text.get()).ok());
                self.output.line(text.unwrap_or_default());
                result = false;
            }
            _ => result = is_result,
        }
        let news = result || event == "playbook_on_task_start";
        let wanted = match self.options.events {
            Events::All => true,
            Events::Results => result,
            Events::Changed => result && (changed || failed),
            Events::Failed => failed,
            Events::None => false,
        };
        (wanted, news)
    }

    fn take_stats(&mut self, data: &str) {
        const SHOWN: &[&str] = &[
            "ok",
            "changed",
            "failures",
            "dark",
            "skipped",
            "ignored",
            "rescued",
            "processed",
        ];
        let Ok(mut data) = serde_json::from_str::<Map<String, Value>>(data) else {
            return;
        };
        self.artifact_data = data.remove("artifact_data");
        data.retain(|key, _| SHOWN.contains(&key.as_str()));
        // None with `omit_event_data`, and then nothing is known about hosts.
        self.stats = (!data.is_empty()).then_some(data);
    }

    /// An event as the sender gets it.
    fn shortened(&mut self, text: &[u8], cut: bool) -> Option<Json> {
        let limit = self.options.max_event_bytes;
        if !cut && text.len() <= limit {
            return Json::parse(text).ok();
        }
        self.cut += 1;
        let Ok(mut event) = serde_json::from_slice::<Map<String, Value>>(text) else {
            return cut_mark();
        };
        event.insert("receptor_cut".to_owned(), true.into());
        let mut event = Value::Object(event);
        let mut strings = limit / 4;
        while event.to_string().len() > limit {
            if strings < 64 {
                // Something that is large in spite of short strings: the head of the event is left.
                for key in ["stdout", "event_data"] {
                    event.as_object_mut()?.remove(key);
                }
                break;
            }
            cut_strings(&mut event, strings);
            strings /= 4;
        }
        Json::from_value(&event).ok()
    }

    fn sending(&self, send: Option<Json>) -> Step {
        Step {
            send: send.filter(|_| self.options.events != Events::None),
            ..Step::default()
        }
    }
}

/// In place of an event of which nothing could be kept.
fn cut_mark() -> Option<Json> {
    Json::from_value(&json!({"receptor_cut": true})).ok()
}

/// Shortens every string, and lists to as many parts as short strings would fill.
fn cut_strings(value: &mut Value, limit: usize) {
    match value {
        Value::String(text) => {
            if text.len() > limit {
                let end = (0..=limit).rev().find(|at| text.is_char_boundary(*at));
                text.truncate(end.unwrap_or(0));
                text.push_str(" ...[cut]");
            }
        }
        Value::Array(parts) => {
            parts.truncate(limit / 16);
            parts.iter_mut().for_each(|part| cut_strings(part, limit));
        }
        Value::Object(parts) => parts.values_mut().for_each(|part| cut_strings(part, limit)),
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

#[cfg(test)]
mod tests;
