//! Works of plugins that serve: many in one process.

use std::time::Duration;

use bytes::Bytes;
use receptor_proto::packet::Content;
use receptor_proto::plugin::Json;
use receptord::worker::{Command, JobPayload, PluginConfig};
use serde_json::json;
use tokio::sync::oneshot;
use tokio::time::Instant;

use crate::rig::{PATIENCE, Rig, install, is_alive, run};

/// Sends works to `serve:later` until one comes to another process than this; all others end
/// with that process.
async fn until_other_process(rig: &mut Rig, pid: i32) {
    let deadline = Instant::now() + PATIENCE;
    loop {
        assert!(Instant::now() < deadline, "no other process");
        let work = rig.send("serve:later", "").await;
        rig.until_data(work, 1).await;
        let is_other = rig.work(work).expect("a work that runs").pid() != pid;
        if is_other {
            rig.run("serve:wake", "").await;
            rig.finish(work).await;
            return;
        }
        rig.soon().await;
    }
}

#[test]
fn many_works_share_a_process() {
    run(async {
        let mut rig = Rig::new(&["serve"], |config| config.max_works = 32).await;
        let first = rig.send("serve:later", "").await;
        let second = rig.send("serve:later", "").await;
        rig.until_data(first, 1).await;
        rig.until_data(second, 1).await;
        let pid = rig.work(first).unwrap().pid();
        assert_eq!(rig.work(second).unwrap().pid(), pid);
        for n in 0..20 {
            let work = rig.run("serve:good", &n.to_string()).await;
            assert_eq!(work.json(0), n);
            assert_eq!(work.started, Some(false));
        }
        rig.run("serve:wake", "").await.result();
        assert_eq!(rig.finish(first).await.result(), "later");
        assert_eq!(rig.finish(second).await.result(), "later");
        assert!(is_alive(pid), "it stays for the next");
        rig.stop().await;
        assert!(!is_alive(pid));
    });
}

#[test]
fn a_stopping_host_lets_go_of_served_works_that_may_run_again() {
    run(async {
        // One ends its works when it is told to, the other is ended with them.
        let mut rig = Rig::new(&["serve", "serve-cancel-obedient"], |_| {}).await;
        let mut works = Vec::new();
        for plugin in ["serve", "serve-cancel-obedient"] {
            for action in ["later-again", "later"] {
                let work = rig.send(&format!("{plugin}:{action}"), "").await;
                rig.until_data(work, 1).await;
                works.push(work);
            }
        }
        let grace = Duration::ZERO;
        rig.command(Command::Shutdown { grace }).await;
        for pair in works.chunks(2) {
            rig.until_left(pair[0]).await;
            assert_eq!(rig.finish(pair[1]).await.code(), "interrupted");
        }
        rig.stop().await;
    });
}

#[test]
fn a_serving_process_without_works_is_stopped() {
    run(async {
        let mut rig = Rig::new(&["serve"], |config| {
            config.times.serve_idle = Duration::from_millis(300);
        })
        .await;
        let work = rig.send("serve:later", "").await;
        rig.until_data(work, 1).await;
        let pid = rig.work(work).unwrap().pid();
        assert!(!rig.soon().await, "a job runs, though it is silent");
        assert!(!rig.soon().await);
        assert!(is_alive(pid));
        rig.run("serve:wake", "").await.result();
        rig.until_seen("it is stopped", || !is_alive(pid)).await;
        let jobs = rig.root().join("data/jobs");
        rig.until_seen("its directory is gone", || {
            crate::rig::entries(&jobs).is_empty()
        })
        .await;
        // And started again for the next.
        rig.run("serve:good", "1").await.result();
        rig.stop().await;
    });
}

#[test]
fn files_of_served_works() {
    run(async {
        let mut rig = Rig::new(&["serve"], |_| {}).await;
        let payload = JobPayload::Inline(Bytes::from_static(b"12345"));
        let id = rig.submit("serve:by-file", Content::Bytes, payload).await;
        let work = rig.finish(id).await;
        let path = format!("{id}.payload");
        let seen = json!({"size": 5, "path": path, "mode": "0o600", "sum": true});
        assert_eq!(work.json(0), seen);

        let path = rig.root().join("stored");
        let size = 300_000;
        std::fs::write(&path, vec![b' '; 300_000]).unwrap();
        let file = JobPayload::File {
            path,
            size,
            sha256: None,
        };
        let id = rig.submit("serve:good", Content::Json, file.clone()).await;
        assert_eq!(rig.finish(id).await.code(), "invalid-payload");
        let id = rig.submit("serve:by-file", Content::Bytes, file).await;
        assert_eq!(rig.finish(id).await.json(0)["size"], size);
        let work = rig.run("serve:result-file", "").await;
        assert_eq!(work.data[0].bytes.len(), 100_000);
        // Payloads are removed with their works, not with the process.
        let jobs = rig.root().join("data/jobs");
        let left = walk(&jobs);
        assert!(
            !left.iter().any(|name| name.ends_with("payload")),
            "{left:?}"
        );
        rig.stop().await;
    });
}

fn walk(dir: &std::path::Path) -> Vec<String> {
    let mut names = Vec::new();
    for name in crate::rig::entries(dir) {
        let path = dir.join(&name);
        if path.is_dir() {
            names.extend(walk(&path));
        }
        names.push(name);
    }
    names
}

#[test]
fn a_crash_takes_its_works_along_and_a_new_process_comes_after_a_pause() {
    run(async {
        let mut rig = Rig::new(&["serve"], |config| {
            config.times.backoff = Duration::from_millis(200);
        })
        .await;
        let bystander = rig.send("serve:later", "").await;
        rig.until_data(bystander, 1).await;
        let culprit = rig.send("serve:exit-three", "").await;
        let ended = rig.finish(culprit).await;
        assert_eq!(ended.code(), "plugin-exit");
        assert_eq!(ended.error().detail["exit_status"], 3);
        let stderr = ended.error().detail["stderr"].as_str().unwrap();
        assert!(stderr.contains("the disk is on fire"));
        assert_eq!(rig.finish(bystander).await.code(), "plugin-exit");
        // The next one waits for the end of the pause and is not refused.
        rig.run("serve:good", "1").await.result();
        rig.stop().await;
    });
}

#[test]
fn one_that_crashes_again_and_again_is_stopped_until_somebody_cares() {
    run(async {
        let mut rig = Rig::new(&["serve"], |config| {
            config.times.backoff = Duration::from_millis(1);
        })
        .await;
        for _ in 0..5 {
            assert_eq!(rig.run("serve:crash", "").await.code(), "plugin-exit");
        }
        rig.until_advertised(|c| !c[0].ready).await;
        let work = rig.run("serve:good", "1").await;
        assert_eq!(work.code(), "not-ready");
        let message = &work.error().message;
        assert!(message.contains("5 crashes"), "{message}");
        assert!(message.contains("plugin restart serve"), "{message}");
        assert_eq!(&rig.why_not("serve").await, message);

        let (reply, answer) = oneshot::channel();
        let name = "serve".to_owned();
        rig.command(Command::RestartPlugin { name, reply }).await;
        assert_eq!(answer.await, Ok(true));
        rig.until_advertised(|c| c[0].ready).await;
        rig.run("serve:good", "1").await.result();

        // A new file is a new chance as well.
        for _ in 0..5 {
            rig.run("serve:crash", "").await.code();
        }
        rig.until_advertised(|c| !c[0].ready).await;
        install(&rig.dirs[0], "serve");
        rig.until_advertised(|c| c[0].ready).await;
        rig.run("serve:good", "1").await.result();
        rig.stop().await;
    });
}

#[test]
fn a_process_that_leaves_by_itself_has_not_crashed() {
    run(async {
        let mut rig = Rig::new(&["serve"], |config| {
            config.times.backoff = Duration::from_secs(3600);
        })
        .await;
        for _ in 0..8 {
            rig.run("serve:exit-clean", "").await.result();
            let info = rig.list().await;
            assert!(info["serve"].ready);
            // A work that comes in the moment of the exit would be lost with the process.
            let jobs = rig.root().join("data/jobs");
            rig.until_seen("the process is cleared away", || {
                crate::rig::entries(&jobs).is_empty()
            })
            .await;
        }
        rig.stop().await;
    });
}

#[test]
fn a_served_work_is_cancelled_alone() {
    run(async {
        let mut rig = Rig::new(&["serve-cancel-obedient"], |_| {}).await;
        let name = "serve-cancel-obedient";
        let first = rig.send(&format!("{name}:later"), "").await;
        let second = rig.send(&format!("{name}:later"), "").await;
        rig.until_data(first, 1).await;
        rig.until_data(second, 1).await;
        rig.cancel(first).await;
        let ended = rig.finish(first).await;
        assert_eq!(ended.code(), "cancelled");
        assert_eq!(ended.error().message, "stopped");
        rig.run(&format!("{name}:wake"), "").await.result();
        assert_eq!(rig.finish(second).await.result(), "later");
        rig.stop().await;
    });
}

#[test]
fn works_wait_at_the_host_while_the_plugin_does_not_read() {
    run(async {
        let mut rig = Rig::new(&["serve-many", "plain"], |config| {
            config.times.cancel_grace = Duration::from_secs(3600);
        })
        .await;
        let held = rig.send("serve-many:hold", "").await;
        rig.until_data(held, 1).await;
        let directory = rig.work(held).unwrap().json(0)["directory"].clone();
        // Fewer than it takes at once, and more than the pipe and the host's queue for it hold.
        let mut works = Vec::new();
        for n in 0..10 {
            let payload = format!("\"{n} {}\"", "x".repeat(60_000));
            works.push(rig.send("serve-many:good", &payload).await);
        }
        let last = works.pop().unwrap();
        rig.until(|rig| rig.work(last).is_some_and(|work| work.started.is_some()))
            .await;
        // Meanwhile the others are handed over, as far as they are.
        rig.run("plain:good", "1").await.result();
        // The plugin does not know of it: nobody has to be asked or ended.
        rig.cancel(last).await;
        assert_eq!(rig.finish(last).await.code(), "cancelled");
        assert!(rig.work(works[0]).unwrap().done.is_none());
        let go = std::path::Path::new(directory.as_str().unwrap()).join("go");
        std::fs::write(go, "").unwrap();
        for (n, work) in works.into_iter().enumerate() {
            let work = rig.finish(work).await;
            let payload = work.json(0).as_str().unwrap().to_owned();
            assert_eq!(payload.split(' ').next(), Some(n.to_string().as_str()));
            assert_eq!(payload.trim_matches(char::is_numeric).len(), 60_001);
        }
        rig.finish(held).await.result();
        rig.stop().await;
    });
}

#[test]
fn a_cancel_that_is_ignored_costs_the_process() {
    run(async {
        let mut rig = Rig::new(&["serve-cancel"], |config| {
            config.times.backoff = Duration::from_secs(3600);
        })
        .await;
        let culprit = rig.send("serve-cancel:later", "").await;
        let bystander = rig.send("serve-cancel:later", "").await;
        rig.until_data(culprit, 1).await;
        rig.until_data(bystander, 1).await;
        let pid = rig.work(culprit).unwrap().pid();
        rig.cancel(culprit).await;
        assert_eq!(rig.finish(culprit).await.code(), "cancelled");
        let other = rig.finish(bystander).await;
        assert_eq!(other.code(), "plugin-exit");
        assert!(other.error().message.contains("ignored its cancel"));
        assert!(!is_alive(pid));
        // The host ended it, so it is no crash, and no pause comes after it.
        rig.run("serve-cancel:good", "1").await.result();
        rig.stop().await;
    });
}

#[test]
fn a_served_work_without_the_feature_is_waited_for_unless_it_is_alone() {
    run(async {
        let mut rig = Rig::new(&["serve"], |config| {
            config.times.cancel_grace = Duration::from_secs(3600);
        })
        .await;
        let first = rig.send("serve:later", "").await;
        let second = rig.send("serve:later", "").await;
        rig.until_data(first, 1).await;
        rig.until_data(second, 1).await;
        rig.cancel(first).await;
        assert!(!rig.soon().await, "the other one is spared");
        rig.run("serve:wake", "").await.result();
        assert_eq!(rig.finish(first).await.result(), "later");
        assert_eq!(rig.finish(second).await.result(), "later");
        let alone = rig.send("serve:later", "").await;
        rig.until_data(alone, 1).await;
        rig.cancel(alone).await;
        assert_eq!(rig.finish(alone).await.code(), "cancelled");
        rig.stop().await;
    });
}

#[test]
fn a_served_work_whose_results_nobody_takes_is_cancelled_and_the_others_go_on() {
    run(async {
        let mut rig = Rig::new(&["serve-cancel"], |config| {
            config.times.serve_stall = Duration::from_millis(300);
            config.times.cancel_grace = Duration::from_secs(3600);
        })
        .await;
        rig.takes.set(false);
        let hog = rig.send("serve-cancel:many", r#"{"count": 1000}"#).await;
        rig.until_data(hog, receptord::worker::WINDOW_RESULTS).await;
        // It is single-minded and says done at last, but not all of its results were delivered.
        let other = rig.send("serve-cancel:failed", "").await;
        let ended = rig.finish(hog).await;
        assert_eq!(ended.code(), "result-quota");
        assert_eq!(ended.data.len(), receptord::worker::WINDOW_RESULTS);
        assert_eq!(rig.finish(other).await.done.unwrap().eof.code, 1);
        rig.stop().await;
    });
}

#[test]
fn a_served_work_that_times_out_while_its_results_wait_is_heard_at_once() {
    run(async {
        let mut rig = Rig::new(&["serve-cancel"], |config| {
            let own = PluginConfig {
                timeout: Some(Duration::from_millis(300)),
                ..PluginConfig::default()
            };
            config.plugins.insert("serve-cancel".into(), own);
            config.times.serve_stall = Duration::from_secs(3600);
            config.times.cancel_grace = Duration::from_secs(3600);
            config.times.ping_after = Duration::from_secs(3600);
        })
        .await;
        rig.takes.set(false);
        let hog = rig
            .send("serve-cancel:many", r#"{"count": 1000, "size": 1000}"#)
            .await;
        assert_eq!(rig.finish(hog).await.code(), "timeout");
        rig.stop().await;
    });
}

#[test]
fn broken_rules_of_a_served_plugin() {
    run(async {
        let mut rig = Rig::new(&["serve"], |config| {
            config.times.backoff = Duration::from_millis(1);
            config.times.crashes = 100;
        })
        .await;
        for action in [
            "bad-json",
            "not-utf8",
            "long-line",
            "endless-line",
            "unknown-id",
        ] {
            let bystander = rig.send("serve:later", "").await;
            rig.until_data(bystander, 1).await;
            let work = rig.run(&format!("serve:{action}"), "").await;
            assert_eq!(work.code(), "protocol-error", "{action}");
            assert_eq!(rig.finish(bystander).await.code(), "protocol-error");
        }
        // A word too many about a work that has ended harms nobody.
        let bystander = rig.send("serve:later", "").await;
        rig.until_data(bystander, 1).await;
        for action in ["about-ended", "two-dones"] {
            rig.run(&format!("serve:{action}"), "").await.result();
        }
        rig.run("serve:wake", "").await.result();
        assert_eq!(rig.finish(bystander).await.result(), "later");
        rig.stop().await;
    });
}

#[test]
fn a_served_file_outside_of_the_directory_fails_its_work_alone() {
    run(async {
        let mut rig = Rig::new(&["serve-cancel"], |_| {}).await;
        let secret = rig.root().join("secret");
        std::fs::write(&secret, "secret").unwrap();
        let payload = Bytes::from(secret.to_str().unwrap().to_owned());
        let payload = JobPayload::Inline(payload);
        let id = rig
            .submit("serve-cancel:link-out", Content::Text, payload)
            .await;
        let work = rig.finish(id).await;
        assert_eq!(
            (work.code().as_str(), work.data.len()),
            ("protocol-error", 0)
        );
        rig.stop().await;
    });
}

#[test]
fn works_for_a_serving_plugin_that_cannot_start() {
    run(async {
        let mut rig = Rig::new(&["serve"], |config| {
            config.times.backoff = Duration::from_millis(1);
            config.times.hello = Duration::from_secs(5);
        })
        .await;
        // It said hello when it was described, and then its interpreter goes.
        let path = rig.dirs[0].join("serve");
        let text = std::fs::read_to_string(&path).unwrap();
        let gone = rig.root().join("once");
        let once = format!(
            "#!/bin/sh\nif test -e {0}; then exit 9; fi\ntouch {0}\nexec /usr/bin/env python3 -c '{1}' \"$@\"\n",
            gone.display(),
            "import os; os.write(1, b\"{\\\"type\\\":\\\"hello\\\",\\\"protocol\\\":1,\\\"name\\\":\\\"once\\\",\\\"version\\\":\\\"1\\\",\\\"mode\\\":\\\"serve\\\",\\\"actions\\\":{\\\"a\\\":{\\\"payload\\\":\\\"none\\\"}}}\\n\")",
        );
        assert!(text.contains("hello"));
        crate::rig::put(&rig.dirs[0], "once", &once);
        rig.until_advertised(|c| c.len() == 2).await;
        let works = [rig.send("once:a", "").await, rig.send("once:a", "").await];
        for work in works {
            let ended = rig.finish(work).await;
            assert_eq!(ended.code(), "plugin-start");
            assert!(ended.error().message.contains("status 9"), "{ended:?}");
        }
        rig.stop().await;
    });
}

#[test]
fn limits_of_time_hold_for_served_works() {
    run(async {
        let mut rig = Rig::new(&["serve-cancel-obedient"], |config| {
            let own = PluginConfig {
                timeout: Some(Duration::from_millis(300)),
                ..PluginConfig::default()
            };
            config.plugins.insert("serve-cancel-obedient".into(), own);
        })
        .await;
        let work = rig.run("serve-cancel-obedient:later", "").await;
        assert_eq!(work.code(), "timeout");
        rig.run("serve-cancel-obedient:good", "1").await.result();
        rig.stop().await;
    });
}

#[test]
fn a_silent_work_is_pinged_and_lives() {
    run(async {
        let mut rig = Rig::new(&["serve-pong", "serve"], |config| {
            config.times.ping_after = Duration::from_millis(50);
        })
        .await;
        for name in ["serve-pong", "serve"] {
            let work = rig.send(&format!("{name}:later"), "").await;
            rig.until_data(work, 1).await;
            assert!(!rig.soon().await);
            rig.run(&format!("{name}:wake"), "").await.result();
            assert_eq!(rig.finish(work).await.result(), "later");
        }
        rig.stop().await;
    });
}

#[test]
fn a_replaced_plugin_finishes_its_works_and_new_ones_get_the_new_one() {
    run(async {
        let mut rig = Rig::new(&["serve"], |_| {}).await;
        let old = rig.send("serve:later", "").await;
        rig.until_data(old, 1).await;
        let pid = rig.work(old).unwrap().pid();
        install(&rig.dirs[0], "serve");
        let rigs = rig.dirs[0].join("serve");
        assert!(rigs.exists());
        // A work that waits for the new description comes to the new process.
        until_other_process(&mut rig, pid).await;
        assert!(is_alive(pid), "it still has a work");
        rig.cancel(old).await;
        assert_eq!(rig.finish(old).await.code(), "cancelled");
        rig.until_seen("the old process is gone", || !is_alive(pid))
            .await;
        rig.stop().await;
    });
}

/// The engine keeps the works for which a serving plugin has no place, and asks no further until it hears of one.
#[test]
fn the_engine_hears_of_places_that_a_new_configuration_brings() {
    run(async {
        let mut rig = Rig::new(&["serve"], |config| config.max_works = 1).await;
        let first = rig.send("serve:later", "").await;
        rig.until_data(first, 1).await;
        assert_eq!(rig.admission.may_wait("serve"), 0);
        let before = rig.rooms;
        let mut config = rig.config.clone();
        config.max_works = 2;
        rig.command(Command::SetConfig(Box::new(config))).await;
        rig.until(|rig| rig.rooms > before).await;
        rig.run("serve:wake", "").await.result();
        rig.finish(first).await.result();
        rig.stop().await;
    });
}

#[test]
fn a_plugin_has_second_thoughts_when_it_sees_its_configuration() {
    run(async {
        let mut rig = Rig::new(&["thinks-twice"], |config| {
            let own = PluginConfig {
                config: Json::parse(br#"{"command": "frobnicate"}"#).ok(),
                ..PluginConfig::default()
            };
            config.plugins.insert("thinks-twice".into(), own);
        })
        .await;
        rig.until_advertised(|c| c.len() == 1 && !c[0].ready).await;
        assert_eq!(
            rig.why_not("thinks-twice").await,
            "frobnicate was not found"
        );
        let mut config = rig.config.clone();
        config.plugins.clear();
        rig.command(Command::SetConfig(Box::new(config))).await;
        rig.until_advertised(|c| c.len() == 1 && c[0].ready).await;
        rig.run("thinks-twice:good", "1").await.result();
        rig.stop().await;
    });
}
