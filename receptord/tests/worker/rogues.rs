//! One test for each broken rule: what the sender is told, and that nothing is left.

use std::time::{Duration, Instant};

use bytes::Bytes;
use receptor_proto::packet::Content;
use receptord::worker::{JobPayload, PluginConfig};

use crate::rig::{Rig, Work, is_alive, run};

/// Runs one action of the rogue and hands over what came of it.
fn rogue(action: &'static str, check: impl FnOnce(Work)) {
    run(async move {
        let mut rig = Rig::new(&["rogue"], |_| {}).await;
        let work = rig.run(&format!("rogue:{action}"), "").await;
        check(work);
        // The host is unharmed.
        rig.run("rogue:good", "1").await.result();
        rig.stop().await;
    });
}

/// A plugin that cannot even be described.
fn bad_hello(name: &'static str, says: &'static [&'static str]) {
    run(async move {
        let mut rig = Rig::new(&[name], |config| {
            config.times.hello = Duration::from_millis(700);
        })
        .await;
        let reason = rig.why_not(name).await;
        for what in says {
            assert!(reason.contains(what), "{reason:?} lacks {what:?}");
        }
        assert_eq!(rig.advertised(), Vec::<&str>::new());
        let work = rig.run(&format!("{name}:good"), "1").await;
        assert_eq!(work.code(), "plugin-start");
        assert_eq!(work.error().message, reason);
        rig.stop().await;
    });
}

#[test]
fn no_hello() {
    bad_hello("no-hello", &["exited with status 0 before its hello"]);
}

#[test]
fn silence_instead_of_a_hello() {
    bad_hello("mute", &["no hello within 700ms"]);
}

#[test]
fn a_late_hello() {
    bad_hello("late-hello", &["no hello within 700ms"]);
}

#[test]
fn half_a_hello() {
    bad_hello("no-newline", &["no hello within 700ms"]);
}

#[test]
fn an_exit_before_the_hello_shows_the_last_line_of_stderr() {
    bad_hello("dies-early", &["status 3", "cannot import name frobnicate"]);
}

#[test]
fn a_hello_that_is_too_big() {
    bad_hello("huge-hello", &["longer than 65536 bytes"]);
}

#[test]
fn a_hello_that_does_not_end() {
    bad_hello("endless-hello", &["longer than 65536 bytes"]);
}

#[test]
fn a_wrong_name() {
    bad_hello("wrong-name", &["\"somebody\"", "\"wrong-name\""]);
}

#[test]
fn a_wrong_protocol() {
    bad_hello("wrong-protocol", &["protocol 2 is not spoken here"]);
}

#[test]
fn a_hello_without_actions() {
    bad_hello("no-actions", &["\"actions\" has 0 entries"]);
}

#[test]
fn a_hello_that_is_no_json() {
    bad_hello("bad-hello", &["no hello", "Hello, I am a plugin"]);
}

#[test]
fn a_hello_that_is_not_utf8() {
    bad_hello("raw-hello", &["not UTF-8"]);
}

#[test]
fn another_message_before_the_hello() {
    bad_hello("talks-first", &["first line is no hello", "here I come"]);
}

#[test]
fn a_plugin_that_does_not_exit_when_described_is_killed_and_used() {
    run(async {
        let mut rig = Rig::new(&["lingers"], |_| {}).await;
        rig.until_advertised(|c| c.len() == 1 && c[0].ready).await;
        rig.stop().await;
    });
}

#[test]
fn a_script_without_an_interpreter() {
    run(async {
        let mut rig = Rig::new(&[], |_| {}).await;
        crate::rig::put(&rig.dirs[0], "broken", "#!/no/such/interpreter\n");
        let reason = rig.why_not("broken").await;
        assert!(reason.contains("interpreter in its first line"), "{reason}");
        rig.stop().await;
    });
}

#[test]
fn a_plugin_that_is_not_ready_answers_for_itself() {
    run(async {
        let mut rig = Rig::new(&["not-ready", "not-ready-mute"], |_| {}).await;
        rig.until_advertised(|c| c.len() == 2 && !c[0].ready && !c[1].ready)
            .await;
        assert_eq!(
            rig.why_not("not-ready").await,
            "frobnicate is not installed"
        );
        let work = rig.run("not-ready:good", "1").await;
        assert_eq!(work.code(), "missing-dependency");
        let work = rig.run("not-ready-mute:good", "1").await;
        assert_eq!(work.code(), "not-ready");
        let message = &work.error().message;
        assert!(message.contains("frobnicate is not installed"), "{message}");
        rig.stop().await;
    });
}

#[test]
fn a_line_that_is_no_json() {
    rogue("bad-json", |work| {
        assert_eq!(work.code(), "protocol-error");
        let line = work.error().detail["line"].as_str().unwrap();
        assert!(
            line.starts_with("TASK [install] ***") && line.len() == 200,
            "{line}"
        );
    });
}

#[test]
fn a_line_that_is_not_utf8() {
    rogue("not-utf8", |work| {
        assert_eq!(work.code(), "protocol-error");
        assert!(work.error().message.contains("not UTF-8"));
    });
}

#[test]
fn a_line_that_is_too_long() {
    rogue("long-line", |work| {
        assert_eq!(work.code(), "protocol-error");
        assert!(work.error().message.contains("longer than 1048576 bytes"));
    });
}

#[test]
fn a_line_that_does_not_end() {
    rogue("endless-line", |work| {
        assert_eq!(work.code(), "protocol-error");
    });
}

#[test]
fn an_unknown_id() {
    rogue("unknown-id", |work| {
        assert_eq!(work.code(), "protocol-error");
        assert!(work.error().message.contains("somebody-else"));
        assert_eq!(work.data.len(), 0);
    });
}

#[test]
fn a_second_hello() {
    rogue("second-hello", |work| {
        assert_eq!(work.code(), "protocol-error");
    });
}

#[test]
fn data_after_done() {
    rogue("data-after-done", |work| {
        assert_eq!(work.result(), "first");
        assert_eq!(work.data.len(), 0);
    });
}

#[test]
fn two_dones() {
    // A second final report would fail the test where it comes in.
    rogue("two-dones", |work| assert_eq!(work.result(), "first"));
}

#[test]
fn no_exit_after_done() {
    run(async {
        let mut rig = Rig::new(&["rogue"], |config| config.max_works = 1).await;
        rig.run("rogue:no-exit", "").await.result();
        // Its place is taken until it is gone.
        assert_eq!(rig.admission.used(), 1);
        rig.run("rogue:good", "1").await.result();
        rig.stop().await;
    });
}

#[test]
fn an_exit_without_a_final_message() {
    rogue("no-answer", |work| {
        assert_eq!(work.code(), "plugin-exit");
        assert_eq!(work.error().detail["exit_status"], 0);
        assert_eq!(work.data.len(), 1);
    });
}

#[test]
fn an_exit_status_and_the_last_words() {
    rogue("exit-three", |work| {
        assert_eq!(work.code(), "plugin-exit");
        let error = work.error();
        assert_eq!(error.detail["exit_status"], 3);
        assert_eq!(error.detail["stderr"], "first line\nthe disk is on fire");
        assert!(error.message.contains("the disk is on fire"));
        assert_eq!(error.detail["retryable"], true);
    });
}

#[test]
fn death_by_a_signal_in_the_middle_of_a_line() {
    rogue("crash", |work| {
        assert_eq!(work.code(), "plugin-exit");
        assert_eq!(work.error().detail["signal"], "SIGKILL");
    });
}

#[test]
fn a_last_line_without_its_newline_still_counts() {
    rogue("no-newline", |work| drop(work.result()));
}

#[test]
fn a_closed_stdout() {
    rogue("closes-stdout", |work| {
        assert_eq!(work.code(), "plugin-exit");
        let message = &work.error().message;
        assert!(message.contains("closed its stdout"), "{message}");
    });
}

#[test]
fn a_grandchild_that_holds_stdout_open() {
    run(async {
        let mut rig = Rig::new(&["rogue"], |_| {}).await;
        let begin = Instant::now();
        let work = rig.run("rogue:hold-stdout", "").await;
        assert_eq!(work.code(), "plugin-exit");
        assert!(begin.elapsed() < Duration::from_secs(20));
        let pid = work.pid();
        rig.until_seen("the grandchild is dead", || !is_alive(pid))
            .await;
        rig.stop().await;
    });
}

#[test]
fn a_flood_on_stdout_is_held_up_and_can_be_cancelled() {
    run(async {
        let mut rig = Rig::new(&["rogue"], |_| {}).await;
        let work = rig.send("rogue:flood-stdout", "").await;
        rig.until_data(work, 1000).await;
        rig.takes.set(false);
        while rig.soon().await {}
        let held = rig.work(work).unwrap().data.len();
        rig.cancel(work).await;
        let ended = rig.finish(work).await;
        assert_eq!(ended.code(), "cancelled");
        assert_eq!(ended.data.len(), held);
        rig.stop().await;
    });
}

#[test]
fn a_flood_on_stderr_holds_nobody_up() {
    rogue("flood-stderr", |work| drop(work.result()));
}

#[test]
fn a_result_file_beyond_the_quota() {
    run(async {
        let mut rig = Rig::new(&["rogue"], |config| {
            let quota = PluginConfig {
                max_results: Some(1 << 20),
                ..PluginConfig::default()
            };
            config.plugins.insert("rogue".into(), quota);
        })
        .await;
        let work = rig.run("rogue:huge-file", "").await;
        assert_eq!((work.code().as_str(), work.data.len()), ("result-quota", 0));
        let results = rig.root().join("data/results");
        assert_eq!(crate::rig::entries(&results), Vec::<String>::new());
        rig.stop().await;
    });
}

#[test]
fn a_link_out_of_the_job_directory() {
    for action in ["link-out", "link-on-the-way"] {
        run(async {
            let mut rig = Rig::new(&["rogue"], |_| {}).await;
            let secret = rig.root().join("secret");
            std::fs::write(&secret, "secret").unwrap();
            let path = Bytes::from(secret.to_str().unwrap().to_owned());
            let payload = JobPayload::Inline(path);
            let id = rig
                .submit(&format!("rogue:{action}"), Content::Text, payload)
                .await;
            let work = rig.finish(id).await;
            assert_eq!(
                (work.code().as_str(), work.data.len()),
                ("protocol-error", 0)
            );
            assert!(work.error().message.contains("symbolic link"), "{work:?}");
            assert_eq!(std::fs::read(&secret).unwrap(), b"secret");
            rig.stop().await;
        });
    }
}

#[test]
fn a_result_file_of_another_size_than_said() {
    rogue("wrong-size", |work| {
        assert_eq!(work.code(), "protocol-error");
        assert!(work.error().message.contains("3 bytes and not 4"));
    });
}

#[test]
fn a_result_file_with_another_sum_than_said() {
    rogue("wrong-sum", |work| {
        assert_eq!(work.code(), "protocol-error");
        assert!(work.error().message.contains("SHA-256"), "{work:?}");
        assert_eq!(work.data.len(), 1, "the right one came before");
    });
}

#[test]
fn an_untidy_job_directory_is_removed() {
    run(async {
        let mut rig = Rig::new(&["rogue"], |_| {}).await;
        rig.run("rogue:untidy", "").await.result();
        let jobs = rig.root().join("data/jobs");
        rig.until_seen("the directory is gone", || {
            crate::rig::entries(&jobs).is_empty()
        })
        .await;
        assert!(std::path::Path::new("/etc/passwd").exists());
        rig.stop().await;
    });
}

#[test]
fn a_plugin_that_never_reads() {
    run(async {
        let mut rig = Rig::new(&["never-reads-cancel", "never-reads"], |config| {
            let timeout = PluginConfig {
                timeout: Some(Duration::from_millis(300)),
                ..PluginConfig::default()
            };
            config.plugins.insert("never-reads".into(), timeout);
        })
        .await;
        // More than a pipe holds, so that the job itself is stuck.
        let payload = format!("\"{}\"", "x".repeat(65_000));
        let work = rig.run("never-reads:good", &payload).await;
        assert_eq!(work.code(), "timeout");
        rig.stop().await;
    });
}

#[test]
fn a_cancel_without_the_feature_is_a_signal() {
    run(async {
        let mut rig = Rig::new(&["rogue"], |config| {
            config.times.cancel_grace = Duration::from_secs(60);
            config.times.term_grace = Duration::from_secs(60);
        })
        .await;
        let work = rig.send("rogue:sleepy", "").await;
        rig.until_data(work, 1).await;
        rig.cancel(work).await;
        let ended = rig.finish(work).await;
        assert_eq!(ended.code(), "cancelled");
        assert!(!is_alive(ended.pid()));
        rig.stop().await;
    });
}

#[test]
fn an_ignored_cancel() {
    run(async {
        let mut rig = Rig::new(&["rogue-cancel"], |config| {
            config.times.term_grace = Duration::from_secs(60);
        })
        .await;
        let work = rig.send("rogue-cancel:sleepy", "").await;
        rig.until_data(work, 1).await;
        let begin = Instant::now();
        rig.cancel(work).await;
        let ended = rig.finish(work).await;
        assert!(begin.elapsed() >= Duration::from_millis(300));
        assert_eq!(ended.code(), "cancelled");
        assert!(!is_alive(ended.pid()));
        rig.stop().await;
    });
}

#[test]
fn an_ignored_sigterm() {
    run(async {
        let mut rig = Rig::new(&["rogue"], |_| {}).await;
        let work = rig.send("rogue:ignore-term", "").await;
        rig.until_data(work, 1).await;
        rig.cancel(work).await;
        let ended = rig.finish(work).await;
        assert_eq!(ended.code(), "cancelled");
        assert!(!is_alive(ended.pid()));
        rig.stop().await;
    });
}

#[test]
fn a_job_that_finishes_when_it_is_cancelled_has_finished() {
    run(async {
        let mut rig = Rig::new(&["rogue-cancel"], |_| {}).await;
        let work = rig.send("rogue-cancel:finish-when-cancelled", "").await;
        rig.until(|rig| rig.work(work).is_some_and(|w| w.started.is_some()))
            .await;
        // Until it has the job a cancel ends it without asking.
        rig.until_seen("the plugin waits for a line", || {
            std::fs::read_dir("/proc").unwrap().flatten().any(|entry| {
                let at = entry.path();
                let line = std::fs::read_to_string(at.join("cmdline")).unwrap_or_default();
                let call = std::fs::read_to_string(at.join("wchan")).unwrap_or_default();
                line.contains("rogue-cancel") && call.contains("pipe_read")
            })
        })
        .await;
        rig.cancel(work).await;
        let ended = rig.finish(work).await;
        assert!(ended.done.is_some());
        rig.stop().await;
    });
}

#[test]
fn a_grandchild_in_a_session_of_its_own() {
    run(async {
        let mut rig = Rig::new(&["rogue"], |_| {}).await;
        let work = rig.send("rogue:escape", "").await;
        rig.until_data(work, 1).await;
        let pid = rig.work(work).unwrap().pid();
        assert!(is_alive(pid));
        rig.cancel(work).await;
        assert_eq!(rig.finish(work).await.code(), "cancelled");
        rig.until_seen("the grandchild is dead", || !is_alive(pid))
            .await;
        rig.stop().await;
    });
}

#[test]
fn a_grandchild_after_the_end() {
    run(async {
        let mut rig = Rig::new(&["rogue"], |_| {}).await;
        let work = rig.run("rogue:escape-and-end", "").await;
        work.result();
        let pid = work.pid();
        rig.until_seen("the grandchild is dead", || !is_alive(pid))
            .await;
        rig.stop().await;
    });
}

#[test]
fn a_grandchild_that_hides() {
    run(async {
        let mut rig = Rig::new(&["rogue"], |_| {}).await;
        let work = rig.run("rogue:vanish", "").await;
        work.result();
        let pid = work.pid();
        rig.until_seen("the grandchild is dead", || !is_alive(pid))
            .await;
        // And nobody has to reap it later.
        let gone = format!("/proc/{pid}");
        rig.until_seen("it is reaped", || !std::path::Path::new(&gone).exists())
            .await;
        rig.stop().await;
    });
}

#[test]
fn a_grandchild_that_stays_in_the_directory_while_an_older_plugin_runs() {
    run(async {
        let mut rig = Rig::new(&["rogue"], |_| {}).await;
        let older = rig.send("rogue:sleepy", "").await;
        rig.until_data(older, 1).await;
        let work = rig.run("rogue:nameless", "").await;
        work.result();
        let pid = work.pid();
        rig.until_seen("the grandchild is dead", || !is_alive(pid))
            .await;
        assert!(rig.work(older).unwrap().done.is_none());
        rig.stop().await;
    });
}

#[test]
fn a_whole_tree_that_ignores_sigterm() {
    run(async {
        let mut rig = Rig::new(&["rogue"], |_| {}).await;
        let work = rig.send("rogue:stubborn-tree", "").await;
        rig.until_data(work, 1).await;
        let pids = rig.work(work).unwrap().json(0)["pids"].clone();
        let pids: Vec<i32> = serde_json::from_value(pids).unwrap();
        assert_eq!(pids.len(), 5);
        assert!(pids.iter().all(|pid| is_alive(*pid)));
        rig.cancel(work).await;
        assert_eq!(rig.finish(work).await.code(), "cancelled");
        rig.until_seen("all are dead", || !pids.iter().any(|pid| is_alive(*pid)))
            .await;
        rig.stop().await;
    });
}

#[test]
fn what_a_dead_daemon_left_behind_is_ended_at_the_start() {
    run(async {
        let mut rig = Rig::prepared(&[], |config| {
            let dir = config.data_dir.join("jobs/left");
            std::fs::create_dir_all(dir.join("deep")).unwrap();
        });
        // The host is not running yet: nothing was awaited.
        let dir = rig.root().join("data/jobs/left");
        let mut child = std::process::Command::new("/bin/sleep")
            .arg("3600")
            .env("RECEPTOR_JOB_DIR", &dir)
            .spawn()
            .unwrap();
        rig.until(|rig| rig.capabilities.is_some()).await;
        let status = child.wait().unwrap();
        assert!(!status.success());
        assert!(!dir.exists());
        rig.stop().await;
    });
}
