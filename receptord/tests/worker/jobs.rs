//! Works of plugins that keep the rules, in a process of their own.

use std::time::Duration;

use bytes::Bytes;
use receptor_proto::MessageId;
use receptor_proto::packet::Content;
use receptord::worker::exec::Limit;
use receptord::worker::{Command, JobPayload, PluginConfig, Report};
use serde_json::{Value, json};

use crate::rig::{PATIENCE, Rig, install, run};

#[test]
fn a_job_runs() {
    run(async {
        let mut rig = Rig::new(&["rogue"], |_| {}).await;
        let work = rig.run("rogue:good", r#"{"module": "ping"}"#).await;
        assert_eq!(work.started, Some(false));
        assert_eq!(work.data.len(), 1);
        assert_eq!(work.data[0].content, Content::Json);
        // JSON is passed on as the text it was, as Python wrote it.
        assert_eq!(work.data[0].bytes, &br#"{"module": "ping"}"#[..]);
        assert_eq!(work.result(), json!({"status": "successful"}));
        let admission = rig.admission.clone();
        rig.until_seen("the place is free", || admission.used() == 0)
            .await;
        rig.stop().await;
    });
}

#[test]
fn a_bad_answer_and_an_error_are_told_apart() {
    run(async {
        let mut rig = Rig::new(&["rogue"], |_| {}).await;
        let work = rig.run("rogue:failed", "").await;
        let done = work.done.unwrap();
        assert_eq!((done.eof.code, done.eof.error), (1, None));
        let answer: Value = serde_json::from_slice(&done.bytes).unwrap();
        assert_eq!(answer, json!({"code": 2, "result": {"failed": ["db1"]}}));
        let work = rig.run("rogue:refuses", "").await;
        assert_eq!(work.code(), "missing-dependency");
        assert_eq!(work.error().detail["command"], "frobnicate");
        assert_eq!(work.error().detail["caused_by"], json!(["no such file"]));
        rig.stop().await;
    });
}

#[test]
fn what_cannot_run_is_refused_with_what_can() {
    run(async {
        let mut rig = Rig::new(&["rogue"], |_| {}).await;
        let work = rig.run("nobody:good", "{}").await;
        assert_eq!(work.code(), "no-such-plugin");
        assert_eq!(work.error().detail["plugins"], json!(["rogue"]));
        assert!(work.error().message.contains("node-b"), "{work:?}");
        let work = rig.run("rogue:nothing", "{}").await;
        assert_eq!(work.code(), "no-such-action");
        assert!(work.error().message.contains("good"), "{work:?}");
        let work = rig.run("rogue:good", "{not json").await;
        assert_eq!(work.code(), "invalid-payload");
        let none = JobPayload::Inline(Bytes::new());
        let id = rig.submit("rogue:good", Content::None, none).await;
        assert_eq!(rig.finish(id).await.code(), "invalid-payload");
        let long = JobPayload::Inline(vec![b'x'; 101].into());
        let id = rig.submit("rogue:small", Content::Text, long).await;
        assert_eq!(rig.finish(id).await.code(), "payload-too-large");
        let bytes = JobPayload::Inline(Bytes::from_static(b"\xff"));
        let id = rig.submit("rogue:small", Content::Bytes, bytes).await;
        assert_eq!(rig.finish(id).await.code(), "invalid-payload");
        rig.stop().await;
    });
}

#[test]
fn payloads_go_by_file_when_they_are_large_or_asked_for() {
    run(async {
        let mut rig = Rig::new(&["rogue", "plain"], |_| {}).await;
        let small = JobPayload::Inline(Bytes::from_static(b"\x00\xff"));
        let id = rig.submit("rogue:by-file", Content::Bytes, small).await;
        let work = rig.finish(id).await;
        let mode = if crate::IN_UNITS { "0o666" } else { "0o600" };
        let seen = json!({"size": 2, "path": "payload", "mode": mode, "sum": true});
        assert_eq!(work.json(0), seen);

        let path = rig.root().join("stored");
        let text = format!("\"{}\"", "x".repeat(300_000));
        std::fs::write(&path, &text).unwrap();
        crate::rig::chmod(&path, 0o600);
        let size = u64::try_from(text.len()).unwrap();
        let file = JobPayload::File {
            path: path.clone(),
            size,
            sha256: None,
        };
        let id = rig
            .submit("rogue:by-file", Content::Json, file.clone())
            .await;
        let work = rig.finish(id).await;
        assert_eq!(work.json(0)["size"], size);
        assert_eq!(work.json(0)["sum"], true);
        // A sum that is known is not made again.
        let known = JobPayload::File {
            path: path.clone(),
            size,
            sha256: Some([0; 32]),
        };
        let id = rig.submit("rogue:by-file", Content::Json, known).await;
        assert_eq!(rig.finish(id).await.json(0)["sum"], false);
        // The action takes JSON in the line as well as by file, and gets the name of the file here.
        let id = rig.submit("rogue:good", Content::Json, file.clone()).await;
        assert_eq!(rig.finish(id).await.json(0), "payload");
        std::fs::write(&path, &text[1..]).unwrap();
        let id = rig.submit("rogue:good", Content::Json, file).await;
        assert_eq!(rig.finish(id).await.code(), "invalid-payload");
        assert!(path.exists(), "the engine's file stays");

        // A plugin that does not name the feature gets in the line what fits one, and only that.
        for (size, seen) in [(300_000, false), (1_100_000, true)] {
            let text = format!("\"{}\"", "x".repeat(size));
            std::fs::write(&path, &text).unwrap();
            let size = u64::try_from(text.len()).unwrap();
            let path = path.clone();
            let file = JobPayload::File {
                path,
                size,
                sha256: None,
            };
            let id = rig.submit("plain:good", Content::Json, file).await;
            let work = rig.finish(id).await;
            assert_eq!(work.data[0].bytes == b"\"payload\""[..], seen, "{size}");
        }

        // Between a segment and a line: read and put into the line.
        let text = format!("[\"{}\"]", "y".repeat(100_000));
        std::fs::write(&path, &text).unwrap();
        let size = u64::try_from(text.len()).unwrap();
        let file = JobPayload::File {
            path,
            size,
            sha256: None,
        };
        let id = rig.submit("rogue:good", Content::Json, file).await;
        let work = rig.finish(id).await;
        assert_eq!(work.data[0].bytes, text.as_bytes());
        assert!(work.data[0].by_file);
        rig.stop().await;
    });
}

#[test]
fn a_plugin_sees_only_what_is_meant_for_it() {
    run(async {
        let mut rig = Rig::new(&["rogue"], |config| {
            let own = PluginConfig {
                limits: vec![(Limit::OpenFiles, 77), (Limit::Core, 0)],
                ..PluginConfig::default()
            };
            config.plugins.insert("rogue".into(), own);
        })
        .await;
        let work = rig.run("rogue:surroundings", "").await;
        let seen = work.json(0);
        let dir = seen["cwd"].as_str().unwrap();
        let environment = seen["environment"].as_object().unwrap();
        for (name, value) in [
            ("RECEPTOR_PLUGIN_PROTOCOL", "1"),
            ("RECEPTOR_NODE", "node-b"),
            ("RECEPTOR_ACTION", "surroundings"),
            ("RECEPTOR_SENDER", "controller"),
            ("RECEPTOR_JOB_DIR", dir),
            ("TMPDIR", dir),
            ("LC_ALL", "C.UTF-8"),
            ("PYTHONUNBUFFERED", "1"),
        ] {
            assert_eq!(environment[name], value, "{name}");
        }
        // A wrapper around the interpreter may have put something in front.
        let path = environment["PATH"].as_str().unwrap();
        assert!(path.ends_with(&std::env::var("PATH").unwrap()), "{path}");
        for name in environment.keys() {
            let known = [
                "RECEPTOR_JOB_ID",
                "PATH",
                "HOME",
                "LANG",
                "TZ",
                "RECEPTOR_PLUGIN_PROTOCOL",
                "RECEPTOR_NODE",
                "RECEPTOR_ACTION",
                "RECEPTOR_SENDER",
                "RECEPTOR_JOB_DIR",
                "TMPDIR",
                "LC_ALL",
                "PYTHONUNBUFFERED",
            ];
            assert!(known.contains(&name.as_str()), "{name}");
        }
        // In a unit it is another user's, who has a group in common with the daemon.
        let (umask, mode) = if crate::IN_UNITS {
            (0o007, 0o770)
        } else {
            (0o077, 0o700)
        };
        assert_eq!(seen["umask"], umask);
        assert_eq!(seen["mode"], mode);
        assert_eq!(seen["session"], true);
        assert_eq!(seen["no_new_privs"], "1");
        assert_eq!(seen["blocked"], "0000000000000000");
        assert_eq!(seen["descriptors"], json!([0, 1, 2]));
        assert_eq!(seen["open_files"], json!([77, 77]));
        assert_eq!(seen["core"], json!([0, 0]));
        rig.stop().await;
    });
}

#[test]
fn result_files_are_handed_over() {
    run(async {
        let mut rig = Rig::new(&["rogue"], |_| {}).await;
        let work = rig.run("rogue:result-file", "").await;
        assert_eq!(work.data[0].name.as_deref(), Some("artifacts.zip"));
        assert_eq!(work.data[0].content, Content::Bytes);
        assert!(work.data[0].by_file);
        assert_eq!(work.data[0].bytes, vec![b'x'; 100_000]);
        assert_eq!(work.data[1].bytes, &[0, 1, 2, 3][..]);
        assert!(!work.data[1].by_file);
        assert_eq!(work.data[2].name.as_deref(), Some("small"));
        assert_eq!(work.data[2].bytes, "12345");
        assert!(!work.data[2].by_file, "it fits a segment");
        rig.stop().await;
    });
}

#[test]
fn text_and_bytes_are_results_until_the_exit() {
    run(async {
        let mut rig = Rig::new(&["rogue"], |_| {}).await;
        let work = rig.run("rogue:text", "").await;
        let lines: Vec<_> = work.data.iter().map(|d| d.bytes.clone()).collect();
        let last = "last without newline";
        assert_eq!(lines, ["one", "", "two \u{fffd}", last]);
        assert!(work.data.iter().all(|d| d.content == Content::Text));
        let done = work.done.unwrap();
        assert_eq!(done.eof.code, 1);
        assert_eq!(done.bytes, &br#"{"code":4,"result":null}"#[..]);

        let work = rig.run("rogue:stream", "").await;
        let bytes: Vec<u8> = work.data.iter().flat_map(|d| d.bytes.to_vec()).collect();
        assert_eq!(bytes, b"\x00\xff\n".repeat(50_000));
        assert_eq!(work.result(), Value::Null);
        rig.stop().await;
    });
}

#[test]
fn statuses_are_thinned_and_the_latest_wins() {
    run(async {
        let mut rig = Rig::new(&["rogue"], |_| {}).await;
        let work = rig.run("rogue:statuses", "").await;
        let count = work.statuses.len();
        assert!((2..=6).contains(&count), "{count} statuses");
        let texts = work.statuses.iter().map(|report| match report {
            Report::Status { message, .. } => message.clone().unwrap_or_default(),
            Report::Started { .. }
            | Report::Data { .. }
            | Report::Done { .. }
            | Report::Left { .. }
            | Report::Room
            | Report::Returned(_)
            | Report::Kept { .. }
            | Report::Capabilities(_) => panic!("{report:?}"),
        });
        let texts: Vec<String> = texts.collect();
        assert!(texts.contains(&"step 999".to_owned()), "{texts:?}");
        assert!(texts.iter().all(|text| text.len() <= 1024));
        rig.stop().await;
    });
}

#[test]
fn works_wait_in_order() {
    run(async {
        let mut rig = Rig::new(&["two-at-once"], |_| {}).await;
        let mut works = Vec::new();
        for _ in 0..2 {
            works.push(rig.send("two-at-once:sleepy", "").await);
        }
        for _ in 0..3 {
            works.push(rig.send("two-at-once:slow", "").await);
        }
        rig.until_data(works[0], 1).await;
        rig.until_data(works[1], 1).await;
        assert_eq!(rig.admission.used(), 2);
        let info = rig.list().await;
        assert_eq!(
            (info["two-at-once"].running, info["two-at-once"].waiting),
            (2, 3)
        );
        // One that waits can be cancelled without ever having been started.
        rig.cancel(works[3]).await;
        let cancelled = rig.finish(works[3]).await;
        assert_eq!(
            (cancelled.code().as_str(), cancelled.started),
            ("cancelled", None)
        );
        rig.cancel(works[0]).await;
        rig.finish(works[2]).await.result();
        assert!(rig.work(works[4]).is_none_or(|w| w.done.is_none()));
        rig.finish(works[4]).await.result();
        rig.cancel(works[1]).await;
        rig.finish(works[0]).await;
        rig.finish(works[1]).await;
        rig.stop().await;
    });
}

#[test]
fn the_node_s_own_limit_holds_over_all_plugins() {
    run(async {
        let mut rig = Rig::new(&["rogue", "other"], |config| config.max_works = 1).await;
        let first = rig.send("rogue:slow", "").await;
        let second = rig.send("other:slow", "").await;
        let third = rig.send("rogue:slow", "").await;
        rig.finish(first).await.result();
        assert!(rig.work(third).is_none());
        rig.finish(second).await.result();
        rig.finish(third).await.result();
        rig.stop().await;
    });
}

#[test]
fn a_serving_plugin_takes_one_place_however_many_works_it_runs() {
    run(async {
        let mut rig = Rig::new(&["rogue", "serve"], |config| config.max_works = 2).await;
        let own = PluginConfig {
            max_works: Some(3),
            ..PluginConfig::default()
        };
        let mut config = rig.config.clone();
        config.plugins.insert("serve".into(), own);
        rig.command(Command::SetConfig(Box::new(config))).await;
        let mut works = Vec::new();
        for _ in 0..4 {
            works.push(rig.send("serve:later", "").await);
        }
        for work in &works[..3] {
            rig.until_data(*work, 1).await;
        }
        assert_eq!(rig.list().await["serve"].waiting, 1);
        // The other place is still free, and the last one waits for its plugin alone.
        rig.run("rogue:good", "1").await.result();
        assert!(rig.work(works[3]).is_none());
        rig.cancel(works[3]).await;
        rig.run("rogue:good", "1").await.result();
        for work in works {
            rig.cancel(work).await;
            rig.finish(work).await;
        }
        rig.stop().await;
    });
}

#[test]
fn an_admitted_work_needs_no_question() {
    run(async {
        let mut rig = Rig::new(&["rogue"], |config| config.max_works = 1).await;
        let payload = JobPayload::Inline(Bytes::from_static(b"1"));
        let mut job = rig.job("rogue:good", Content::Json, payload);
        assert!(rig.admission.try_admit(&job.directive).is_some());
        assert!(rig.admission.try_admit(&job.directive).is_none());
        job.admitted = true;
        let work = job.work;
        rig.command(Command::Run(Box::new(job))).await;
        rig.command(Command::Start { work }).await;
        let work = rig.finish(work).await;
        assert_eq!((work.started, work.json(0)), (None, json!(1)));
        rig.until_seen("the place is given back", || true).await;
        rig.stop().await;
    });
}

#[test]
fn nothing_is_handed_over_before_its_start_is_on_the_disk() {
    // One that acts before it reads anything.
    const EAGER: &str = r#"#!/bin/sh
echo '{"type":"hello","protocol":1,"name":"eager","version":"1","actions":{"act":{"output":"text"}}}'
if [ -n "$RECEPTOR_JOB_ID" ]; then echo "$RECEPTOR_JOB_ID" >>RUNS; fi
"#;
    run(async {
        let mut rig = Rig::prepared(&[], |config| config.max_works = 2);
        let noted = rig.root().join("noted");
        let text = EAGER.replace("RUNS", noted.to_str().unwrap());
        std::fs::write(rig.dirs[0].join("eager"), text).unwrap();
        crate::rig::chmod(&rig.dirs[0].join("eager"), 0o755);
        rig.until(|rig| rig.capabilities.as_ref().is_some_and(|all| !all.is_empty()))
            .await;
        let payload = JobPayload::Inline(Bytes::from_static(b"1"));
        let mut job = rig.job("eager:act", Content::Json, payload);
        assert!(rig.admission.try_admit(&job.directive).is_some());
        job.admitted = true;
        let work = job.work;
        rig.command(Command::Run(Box::new(job))).await;
        // Another one that came later has come and gone.
        rig.run("eager:act", "2").await;
        assert!(!rig.soon().await, "it must wait");
        rig.cancel(work).await;
        let work = rig.finish(work).await;
        assert_eq!((work.code().as_str(), work.data.len()), ("cancelled", 0));
        let noted = std::fs::read_to_string(noted).unwrap();
        assert_eq!(noted.lines().count(), 1, "{noted}");
        rig.stop().await;
    });
}

#[test]
fn results_stop_while_nobody_takes_them() {
    run(async {
        let mut rig = Rig::new(&["rogue"], |_| {}).await;
        rig.takes.set(false);
        let work = rig.send("rogue:many", r#"{"count": 1000}"#).await;
        let window = receptord::worker::WINDOW_RESULTS;
        rig.until_data(work, window).await;
        assert!(!rig.soon().await, "more than the window");
        assert_eq!(rig.work(work).unwrap().data.len(), window);
        rig.takes.set(true);
        let results = window;
        rig.command(Command::Taken { work, results }).await;
        let work = rig.finish(work).await;
        assert_eq!(work.data.len(), 1000);
        for (at, datum) in work.data.iter().enumerate() {
            let value: Value = serde_json::from_slice(&datum.bytes).unwrap();
            assert_eq!(value["n"], at);
        }
        rig.stop().await;
    });
}

#[test]
fn the_window_counts_bytes_as_well() {
    run(async {
        let mut rig = Rig::new(&["rogue"], |_| {}).await;
        rig.takes.set(false);
        let work = rig
            .send("rogue:many", r#"{"count": 100, "size": 60000}"#)
            .await;
        rig.until_data(work, 5).await;
        while rig.soon().await {}
        let held: usize = rig
            .work(work)
            .unwrap()
            .data
            .iter()
            .map(|d| d.bytes.len())
            .sum();
        assert!(held < receptord::worker::WINDOW_BYTES + 65_536, "{held}");
        rig.cancel(work).await;
        assert_eq!(rig.finish(work).await.code(), "cancelled");
        rig.stop().await;
    });
}

#[test]
fn limits_of_time_and_size_come_from_the_configuration() {
    run(async {
        let mut rig = Rig::new(&["rogue", "idler", "hoarder"], |config| {
            let timeout = PluginConfig {
                timeout: Some(Duration::from_secs(1)),
                ..PluginConfig::default()
            };
            let idle = PluginConfig {
                idle_timeout: Some(Duration::from_secs(1)),
                ..PluginConfig::default()
            };
            let quota = PluginConfig {
                max_results: Some(10_000),
                ..PluginConfig::default()
            };
            config.plugins.insert("rogue".into(), timeout);
            config.plugins.insert("idler".into(), idle);
            config.plugins.insert("hoarder".into(), quota);
        })
        .await;
        assert_eq!(rig.run("rogue:sleepy", "").await.code(), "timeout");
        let work = rig.run("idler:sleepy", "").await;
        assert_eq!((work.code().as_str(), work.data.len()), ("idle-timeout", 1));
        let work = rig
            .run("hoarder:many", r#"{"count": 100, "size": 1000}"#)
            .await;
        assert_eq!(work.code(), "result-quota");
        assert!(work.data.len() < 10);
        rig.stop().await;
    });
}

/// Hands a work over whose key was used before, with a place as the engine gives it.
async fn send_once_more(rig: &mut Rig, directive: &str, work: MessageId) {
    let payload = JobPayload::Inline(Bytes::from_static(b"1"));
    let mut job = rig.job(directive, Content::Json, payload);
    assert!(rig.admission.try_admit(&job.directive).is_some());
    (job.work, job.admitted, job.start) = (work, true, true);
    rig.command(Command::Run(Box::new(job))).await;
}

#[test]
fn a_key_that_is_used_again_before_the_first_plugin_is_gone_meets_nothing_of_it() {
    run(async {
        let mut rig = Rig::new(&["rogue", "serve"], |_| {}).await;
        let work = MessageId::from_u128(1 << 64);
        // Its end is told, and then it stays; or it goes, and its directory stays for a moment.
        for directive in ["rogue:no-exit", "rogue:good", "serve:good"] {
            let mut results = Vec::new();
            for _ in 0..3 {
                send_once_more(&mut rig, directive, work).await;
                results.push(rig.finish(work).await.result());
            }
            results.dedup();
            assert_eq!(results.len(), 1, "{directive}: {results:?}");
        }
        send_once_more(&mut rig, "rogue:no-exit", work).await;
        rig.finish(work).await;
        // One that waits for that can be cancelled, and one more comes after it.
        send_once_more(&mut rig, "rogue:sleepy", work).await;
        rig.cancel(work).await;
        assert_eq!(rig.finish(work).await.code(), "cancelled");
        send_once_more(&mut rig, "rogue:good", work).await;
        rig.finish(work).await.result();
        let admission = rig.admission.clone();
        rig.until_seen("every place is given back", || admission.used() == 0)
            .await;
        rig.stop().await;
    });
}

#[test]
fn a_cancel_is_a_message_for_those_who_listen() {
    run(async {
        let mut rig = Rig::new(&["rogue-cancel"], |_| {}).await;
        let work = rig.send("rogue-cancel:cancel-message", "").await;
        rig.until(|rig| rig.work(work).is_some_and(|w| w.started.is_some()))
            .await;
        rig.cancel(work).await;
        let ended = rig.finish(work).await;
        assert_eq!(ended.code(), "cancelled");
        // Cancelled before the plugin had the job, it is not told.
        if let Some(message) = ended.data.first() {
            let message: Value = serde_json::from_slice(&message.bytes).unwrap();
            assert_eq!(
                (&message["reason"], &message["grace_ms"]),
                (&json!("user"), &json!(300))
            );
            assert_eq!(ended.error().message, "as you wish");
        }
        rig.stop().await;
    });
}

#[test]
fn a_shut_down_host_ends_what_runs_and_forgets_what_waits() {
    run(async {
        let mut rig = Rig::new(&["rogue"], |config| config.max_works = 1).await;
        let running = rig.send("rogue:sleepy", "").await;
        rig.until_data(running, 1).await;
        let waiting = rig.send("rogue:good", "1").await;
        let grace = Duration::from_millis(100);
        rig.command(Command::Shutdown { grace }).await;
        let ended = rig.finish(running).await;
        assert_eq!(ended.code(), "interrupted");
        assert!(rig.work(waiting).is_none());
        rig.stop().await;
    });
}

/// Asks the host to stop at once.
async fn shut_down(rig: &mut Rig) {
    let grace = Duration::ZERO;
    rig.command(Command::Shutdown { grace }).await;
}

#[test]
fn a_stopping_host_lets_go_of_what_may_run_again() {
    run(async {
        let mut rig = Rig::new(&["rogue"], |_| {}).await;
        let again = rig.send("rogue:sleepy-again", "").await;
        rig.until_data(again, 1).await;
        let once = rig.send("rogue:sleepy", "").await;
        rig.until_data(once, 1).await;
        shut_down(&mut rig).await;
        assert_eq!(rig.finish(once).await.code(), "interrupted");
        rig.until_left(again).await;
        rig.stop().await;
    });
}

#[test]
fn a_stopping_host_lets_go_of_what_no_plugin_has_seen() {
    run(async {
        let mut rig = Rig::new(&["rogue", "serve"], |_| {}).await;
        for directive in ["rogue:good", "serve:good"] {
            let payload = JobPayload::Inline(Bytes::from_static(b"1"));
            let mut job = rig.job(directive, Content::Json, payload);
            assert!(rig.admission.try_admit(&job.directive).is_some());
            job.admitted = true;
            rig.command(Command::Run(Box::new(job))).await;
        }
        let served = rig.root().join("data/jobs");
        rig.until_seen("it is there for the job and the server", || {
            crate::rig::entries(&served).len() == 2
        })
        .await;
        shut_down(&mut rig).await;
        for number in [1, 2] {
            let work = MessageId::from_u128(number);
            rig.until_left(work).await;
        }
        rig.stop().await;
    });
}

#[test]
fn a_work_that_was_admitted_before_the_stop_runs_after_it() {
    run(async {
        let mut rig = Rig::new(&["rogue", "serve"], |_| {}).await;
        let mut jobs = Vec::new();
        for directive in ["rogue:good", "serve:good", "serve:good"] {
            let payload = JobPayload::Inline(Bytes::from_static(b"1"));
            let mut job = rig.job(directive, Content::Json, payload);
            assert!(rig.admission.try_admit(&job.directive).is_some());
            (job.admitted, job.start) = (true, true);
            jobs.push(job);
        }
        let grace = 4 * PATIENCE;
        rig.command(Command::Shutdown { grace }).await;
        for job in jobs {
            let work = job.work;
            rig.command(Command::Run(Box::new(job))).await;
            assert_eq!(rig.finish(work).await.json(0), json!(1));
        }
        // With the last of them it is over, long before the time for works is.
        rig.ended().await;
    });
}

#[test]
fn a_work_that_ended_well_has_ended_though_the_host_stops() {
    run(async {
        let mut rig = Rig::new(&["rogue-cancel"], |config| {
            config.times.cancel_grace = Duration::from_secs(20);
        })
        .await;
        let work = rig.send("rogue-cancel:finish-again", "").await;
        rig.until_data(work, 1).await;
        shut_down(&mut rig).await;
        assert_eq!(rig.finish(work).await.result(), "just done");
        rig.stop().await;
    });
}

#[test]
fn a_plugin_that_changes_its_payload_changes_its_own_copy() {
    run(async {
        let mut rig = Rig::new(&["rogue", "serve"], |_| {}).await;
        let path = rig.root().join("stored");
        for size in [10, 300_000] {
            let stored = vec![b'x'; size];
            std::fs::write(&path, &stored).unwrap();
            let size = u64::try_from(size).unwrap();
            for directive in ["rogue:scribble", "serve:scribble"] {
                let path = path.clone();
                let file = JobPayload::File {
                    path,
                    size,
                    sha256: None,
                };
                let id = rig.submit(directive, Content::Bytes, file).await;
                assert_eq!(rig.finish(id).await.result(), size + 8);
                assert!(std::fs::read(rig.root().join("stored")).unwrap() == stored);
            }
        }
        rig.stop().await;
    });
}

#[test]
fn a_work_whose_plugin_is_replaced_before_its_start_waits_for_the_new_one() {
    // One that takes its time to say what it is.
    const SLOW: &str = r#"#!/bin/sh
until [ -e GO ]; do sleep 0.01; done
echo '{"type":"hello","protocol":1,"name":"rogue","version":"2","actions":{"good":{"output":"text"}}}'
[ -z "$RECEPTOR_JOB_ID" ] || echo new
"#;
    run(async {
        let mut rig = Rig::new(&["rogue"], |_| {}).await;
        let mut jobs = Vec::new();
        for start in [true, false] {
            let payload = JobPayload::Inline(Bytes::from_static(b"1"));
            let mut job = rig.job("rogue:good", Content::Json, payload);
            assert!(rig.admission.try_admit(&job.directive).is_some());
            (job.admitted, job.start) = (true, start);
            jobs.push(job);
        }
        std::fs::remove_file(rig.dirs[0].join("rogue")).unwrap();
        rig.until_advertised(|all| all.is_empty()).await;
        let go = rig.root().join("go");
        let slow = SLOW.replace("GO", go.to_str().unwrap());
        crate::rig::put(&rig.dirs[0], "rogue", &slow);
        let reason = loop {
            if let Some(info) = rig.list().await.remove("rogue") {
                break info.reason;
            }
            rig.soon().await;
        };
        assert_eq!(reason.as_deref(), Some("it has not said its hello yet"));
        let works: Vec<_> = jobs.iter().map(|job| job.work).collect();
        for job in jobs {
            rig.command(Command::Run(Box::new(job))).await;
        }
        let work = works[1];
        rig.command(Command::Start { work }).await;
        rig.list().await;
        assert_eq!(rig.admission.used(), 0, "nobody holds a place");
        std::fs::write(go, "").unwrap();
        for work in works {
            let work = rig.finish(work).await;
            assert_eq!(work.started, None, "the engine knows");
            assert_eq!(work.data[0].bytes, "new");
        }
        rig.stop().await;
    });
}

#[test]
fn a_reload_changes_limits_and_places() {
    run(async {
        let mut rig = Rig::new(&["rogue"], |config| config.max_works = 1).await;
        let mut config = rig.config.clone();
        config.max_works = 2;
        config.dirs.remove(0);
        install(&rig.dirs[1], "other");
        rig.command(Command::SetConfig(Box::new(config))).await;
        rig.until_advertised(|c| c.len() == 1 && c[0].plugin == "other")
            .await;
        let work = rig.run("rogue:good", "1").await;
        assert_eq!(work.code(), "no-such-plugin");
        let works = [
            rig.send("other:slow", "").await,
            rig.send("other:slow", "").await,
        ];
        rig.until(|rig| {
            works
                .iter()
                .all(|w| rig.work(*w).is_some_and(|w| w.started.is_some()))
        })
        .await;
        assert_eq!(rig.admission.used(), 2);
        for work in works {
            rig.finish(work).await.result();
        }
        rig.stop().await;
    });
}

/// The system ends a plugin when the thread that started it ends, so that must not be one of
/// those which the runtime ends when they are idle (in these tests after a millisecond).
#[test]
fn a_plugin_outlives_the_pause_after_its_start() {
    run(async {
        let mut rig = Rig::new(&["rogue"], |_| {}).await;
        let work = rig.run("rogue:statuses", "").await;
        assert_eq!(work.done.unwrap().eof.code, 0);
        rig.stop().await;
    });
}
