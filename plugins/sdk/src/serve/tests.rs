//! What no well-behaved plugin shows: limits, panics and broken hosts.

use std::{
    io::{BufRead, BufReader, PipeReader, PipeWriter, pipe},
    sync::mpsc::{Receiver, sync_channel},
};

use receptor_proto::plugin::{MAX_LINE as LIMIT, Payload, PluginMessage as M};

use super::*;
use crate::{Action, Plugin};

/// A conversation with a plugin on a thread.
struct Talk {
    input: Option<PipeWriter>,
    output: BufReader<PipeReader>,
    ended: Receiver<std::result::Result<(), ServeError>>,
}

impl Talk {
    fn with(plugin: Plugin) -> Self {
        let (plugin_reads, input) = pipe().unwrap();
        let (output, plugin_writes) = pipe().unwrap();
        let (end, ended) = sync_channel(1);
        thread::spawn(move || {
            let left = end.clone();
            let leave = Box::new(move |ended| left.send(ended).unwrap_or_default());
            let output = Box::new(plugin_writes);
            end.send(plugin.run_on("/nonexistent".into(), plugin_reads, output, leave))
        });
        let mut talk = Self {
            input: Some(input),
            output: BufReader::new(output),
            ended,
        };
        assert!(matches!(talk.hear(), M::Hello(_)));
        talk
    }

    fn say(&mut self, line: &str) {
        writeln!(self.input.as_ref().unwrap(), "{line}").unwrap();
    }

    fn execute(&mut self, id: &str, action: &str) {
        self.say(&format!(
            r#"{{"type":"execute","id":"{id}","action":"{action}","payload":1}}"#
        ));
    }

    fn hear(&mut self) -> M {
        let mut line = Vec::new();
        self.output.read_until(b'\n', &mut line).unwrap();
        M::decode(&line).unwrap()
    }

    fn hear_error(&mut self, id: &str) -> ErrorCode {
        let message = self.hear();
        let M::Error(error) = message else {
            panic!("{message:?}")
        };
        assert_eq!(error.id, id);
        error.error.code
    }

    fn end(&mut self) -> std::result::Result<(), ServeError> {
        self.input = None;
        self.ended.recv_timeout(Duration::from_secs(60)).unwrap()
    }
}

fn plugin() -> Plugin {
    Plugin::new("test", "1")
        .action("wait", Action::json(), |job| {
            job.status("waiting", "")?;
            job.sleep(Duration::from_secs(600));
            job.check_canceled()?;
            Ok(Outcome::ok())
        })
        .action("panic", Action::json(), |_| panic!("on purpose"))
        .action("panic-inline", Action::json().inline(), |_| {
            panic!("on purpose")
        })
        .action("large", Action::json(), |job| {
            // This host takes no files, and the line has no room for it.
            job.data_text("x".repeat(LIMIT))?;
            Ok(Outcome::ok())
        })
        .action("large-end", Action::json(), |_| {
            Outcome::ok().with_result(&"x".repeat(LIMIT))
        })
}

#[test]
fn more_jobs_than_it_can_bear_are_refused() {
    let mut talk = Talk::with(plugin().serve(2).cancelable());
    for id in ["1", "2"] {
        talk.execute(id, "wait");
        assert!(matches!(talk.hear(), M::Status(s) if s.id == id));
    }
    talk.execute("3", "wait");
    assert_eq!(talk.hear_error("3"), ErrorCode::Busy);
    // An id that is taken is not answered: the answer would be taken for that of the first.
    talk.execute("1", "wait");
    talk.say(r#"{"type":"cancel","id":"1","reason":"user","grace_ms":1}"#);
    assert_eq!(talk.hear_error("1"), ErrorCode::Canceled);
    talk.execute("3", "wait");
    assert!(matches!(talk.hear(), M::Status(s) if s.id == "3"));
    talk.say(r#"{"type":"cancel","id":"3","reason":"timeout","grace_ms":1}"#);
    assert_eq!(talk.hear_error("3"), ErrorCode::Timeout);
    talk.end().unwrap();
    assert_eq!(talk.hear_error("2"), ErrorCode::Canceled);
}

#[test]
fn a_panic_is_the_end_of_its_job_only() {
    let mut talk = Talk::with(plugin().serve(4));
    for action in ["panic", "panic-inline", "panic"] {
        talk.execute("1", action);
        assert_eq!(talk.hear_error("1"), ErrorCode::Internal);
    }
    talk.end().unwrap();
}

#[test]
fn what_does_not_fit_a_line_is_an_error_of_its_job() {
    let mut talk = Talk::with(plugin().serve(4));
    talk.execute("1", "large");
    assert_eq!(talk.hear_error("1"), ErrorCode::Internal);
    talk.execute("2", "large-end");
    assert_eq!(talk.hear_error("2"), ErrorCode::ResultQuota);
    talk.end().unwrap();
}

#[test]
fn a_plugin_that_does_not_listen_does_not_hold_up_the_end() {
    let mut talk = Talk::with(plugin().serve(4));
    talk.execute("1", "wait");
    assert!(matches!(talk.hear(), M::Status(_)));
    talk.end().unwrap();
}

#[test]
fn the_only_job_does_not_hold_up_the_end_and_can_be_cancelled() {
    let mut talk = Talk::with(plugin());
    talk.execute("1", "wait");
    assert!(matches!(talk.hear(), M::Status(_)));
    talk.execute("2", "wait");
    assert_eq!(talk.hear_error("2"), ErrorCode::Busy);
    talk.end().unwrap();
    let mut talk = Talk::with(plugin().cancelable());
    talk.execute("1", "wait");
    assert!(matches!(talk.hear(), M::Status(_)));
    talk.say(r#"{"type":"cancel","id":"1","reason":"user","grace_ms":1}"#);
    assert_eq!(talk.hear_error("1"), ErrorCode::Canceled);
    let ended = talk.ended.recv_timeout(Duration::from_secs(60));
    ended.unwrap().unwrap();
}

#[test]
fn one_job_is_the_end_in_job_mode() {
    let plugin = Plugin::new("test", "1").action("give", Action::json(), |job| {
        job.data_bytes([0, 1])?;
        Ok(Outcome::code(3))
    });
    let mut talk = Talk::with(plugin);
    talk.execute("1", "give");
    assert!(matches!(talk.hear(), M::Data(d) if d.body == Payload::Bytes(vec![0, 1])));
    assert!(matches!(talk.hear(), M::Done(done) if done.code == 3));
    // The daemon has not closed anything yet.
    talk.ended
        .recv_timeout(Duration::from_secs(60))
        .unwrap()
        .unwrap();
}

#[test]
fn readiness_follows_the_configuration() {
    let plugin = plugin().ready_if(|host| match host.and_then(|h| h.config.as_ref()) {
        None => Err("no configuration".to_owned()),
        Some(_) => Ok(()),
    });
    assert!(plugin.hello().ready);
    let mut talk = Talk::with(plugin);
    talk.say(r#"{"type":"hello","protocol":1,"config":{}}"#);
    assert!(matches!(talk.hear(), M::Ready(ready) if ready.ready && ready.reason.is_none()));
    talk.end().unwrap();
}

#[test]
fn a_broken_host_ends_it() {
    let mut talk = Talk::with(plugin());
    talk.say(r#"{"type":"hello","protocol":2}"#);
    assert!(matches!(talk.end(), Err(ServeError::Protocol(2))));
    let mut talk = Talk::with(plugin());
    talk.say(r#"{"type":"execute","id":"a b","action":"wait"}"#);
    assert!(matches!(talk.end(), Err(ServeError::Decode("job id"))));
    let mut talk = Talk::with(plugin());
    // The plugin may be gone before the whole of it is written.
    let _ = talk
        .input
        .as_ref()
        .unwrap()
        .write_all("x".repeat(LIMIT + 1).as_bytes());
    assert!(matches!(talk.end(), Err(ServeError::TooLong)));
}
