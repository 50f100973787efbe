//! Works that come in bundles: one work to the engine, a job each to a serving plugin.

use std::time::Duration;

use receptor_proto::MessageId;
use receptor_proto::bundle::BundleWriter;
use receptor_proto::packet::Content;
use receptord::worker::{Command, JobPayload, PluginConfig};
use tokio::sync::oneshot;

use crate::rig::{Rig, is_alive, run};

async fn send(rig: &mut Rig, directive: &str, parts: &[&str]) -> MessageId {
    let mut writer = BundleWriter::new(Content::Json);
    for part in parts {
        assert!(writer.push(part.as_bytes()));
    }
    let payload = JobPayload::Inline(writer.finish());
    rig.submit(directive, Content::Bundle, payload).await
}

#[test]
fn a_bundle_ends_with_its_last_part() {
    run(async {
        let mut rig = Rig::new(&["serve"], |config| config.max_works = 3).await;
        let many: Vec<String> = (0..500).map(|n| n.to_string()).collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        for _ in 0..3 {
            let first = send(&mut rig, "serve:good", &many).await;
            let second = send(&mut rig, "serve:good", &many).await;
            let single = rig.send("serve:good", "\"single\"").await;
            for bundle in [first, second] {
                let work = rig.finish(bundle).await;
                assert_eq!(work.result(), serde_json::Value::Null);
                assert!(work.data.is_empty(), "nobody wants the results");
            }
            assert_eq!(rig.finish(single).await.json(0), "single");
        }
        assert_eq!(rig.admission.used(), 0);
        rig.stop().await;
    });
}

#[test]
fn parts_that_cannot_be_run_fail_alone() {
    run(async {
        let mut rig = Rig::new(&["serve"], |_| {}).await;
        let work = send(&mut rig, "serve:good", &["1", "no JSON", "2"]).await;
        assert_eq!(rig.finish(work).await.code(), "invalid-payload");
        let long = format!("\"{}\"", "x".repeat(200));
        let work = send(&mut rig, "serve:small", &["\"short\"", &long]).await;
        assert_eq!(rig.finish(work).await.code(), "payload-too-large");
        let work = send(&mut rig, "serve:refuses", &["1", "2"]).await;
        assert_eq!(rig.finish(work).await.code(), "missing-dependency");
        let work = send(&mut rig, "serve:by-file", &["1", "2"]).await;
        rig.finish(work).await.result();
        let work = rig.submit(
            "serve:good",
            Content::Bundle,
            JobPayload::Inline("x".into()),
        );
        let work = work.await;
        assert_eq!(rig.finish(work).await.code(), "protocol-error");
        assert_eq!(rig.admission.used(), 0);
        rig.stop().await;
    });
}

#[test]
fn a_crash_ends_the_bundle_and_the_next_has_a_new_process() {
    run(async {
        let mut rig = Rig::new(&["serve"], |config| {
            config.max_works = 2;
            config.times.backoff = Duration::from_millis(50);
        })
        .await;
        let work = send(&mut rig, "serve:exit-three", &["1", "2", "3", "4", "5"]).await;
        let next = send(&mut rig, "serve:good", &["1", "2", "3"]).await;
        let last = send(&mut rig, "serve:good", &["1", "2", "3"]).await;
        assert_eq!(rig.finish(work).await.code(), "plugin-exit");
        // What the process had of them is lost with it, and told.
        for bundle in [next, last] {
            let work = rig.finish(bundle).await;
            if work.done.as_ref().is_some_and(|done| done.eof.code != 0) {
                assert_eq!(work.code(), "plugin-exit");
            }
        }
        let again = send(&mut rig, "serve:good", &["1", "2", "3"]).await;
        rig.finish(again).await.result();
        rig.stop().await;
    });
}

#[test]
fn a_bundle_is_cancelled_and_others_go_on() {
    run(async {
        let name = "serve-cancel-obedient";
        let mut rig = Rig::new(&[name], |config| config.max_works = 4).await;
        let bystander = rig.send(&format!("{name}:later"), "").await;
        rig.until_data(bystander, 1).await;
        let pid = rig.work(bystander).unwrap().pid();
        let bundle = send(&mut rig, &format!("{name}:later"), &["1"; 20]).await;
        rig.until(|rig| rig.work(bundle).is_some_and(|work| work.started.is_some()))
            .await;
        rig.cancel(bundle).await;
        assert_eq!(rig.finish(bundle).await.code(), "cancelled");
        rig.run(&format!("{name}:wake"), "").await.result();
        assert_eq!(rig.finish(bystander).await.result(), "later");
        assert!(is_alive(pid));
        assert_eq!(rig.admission.used(), 0);
        rig.stop().await;
    });
}

#[test]
fn a_place_that_a_bundle_gives_back_is_for_a_work_that_waits() {
    run(async {
        let mut rig = Rig::new(&["serve"], |config| config.max_works = 2).await;
        let files = ["one", "other"].map(|name| rig.root().join(name));
        let parts = files
            .each_ref()
            .map(|file| format!("\"{}\"", file.display()));
        let parts = parts.each_ref().map(String::as_str);
        let bundle = send(&mut rig, "serve:when-there", &parts).await;
        let admission = rig.admission.clone();
        rig.until_seen("it has both places", || admission.used() == 2)
            .await;
        let waits = rig.send("serve:good", "1").await;
        assert_eq!(rig.list().await["serve"].waiting, 1);
        std::fs::write(&files[0], "").unwrap();
        rig.finish(waits).await.result();
        assert!(rig.work(bundle).unwrap().done.is_none());
        std::fs::write(&files[1], "").unwrap();
        rig.finish(bundle).await.result();
        rig.stop().await;
    });
}

#[test]
fn a_place_that_an_earlier_process_gives_back_is_for_a_bundle() {
    run(async {
        let mut rig = Rig::new(&["serve"], |config| config.max_works = 2).await;
        let files = ["one", "two", "three"].map(|name| rig.root().join(name));
        let parts = files
            .each_ref()
            .map(|file| format!("\"{}\"", file.display()));
        let [old, one, other] = parts.each_ref().map(String::as_str);
        let old = rig.send("serve:when-there", old).await;
        rig.until(|rig| rig.work(old).is_some_and(|work| work.started.is_some()))
            .await;
        let (reply, answer) = oneshot::channel();
        let name = "serve".to_owned();
        rig.command(Command::RestartPlugin { name, reply }).await;
        assert!(answer.await.unwrap());
        let bundle = send(&mut rig, "serve:when-there", &[one, other]).await;
        rig.until(|rig| rig.work(bundle).is_some_and(|work| work.started.is_some()))
            .await;
        assert!(!rig.soon().await, "there is a place for one part");
        std::fs::write(&files[0], "").unwrap();
        rig.finish(old).await.result();
        let admission = rig.admission.clone();
        rig.until_seen("it has both places", || admission.used() == 2)
            .await;
        for file in &files[1..] {
            std::fs::write(file, "").unwrap();
        }
        rig.finish(bundle).await.result();
        rig.stop().await;
    });
}

#[test]
fn a_part_that_runs_too_long_is_ended() {
    run(async {
        let name = "serve-cancel-obedient";
        let mut rig = Rig::new(&[name], |config| {
            let own = PluginConfig {
                timeout: Some(Duration::from_millis(200)),
                ..PluginConfig::default()
            };
            config.plugins.insert(name.to_owned(), own);
        })
        .await;
        let bundle = send(&mut rig, &format!("{name}:later"), &["1", "2"]).await;
        assert_eq!(rig.finish(bundle).await.code(), "timeout");
        // One that ignores it costs the process.
        rig.stop().await;
        let mut rig = Rig::new(&["serve"], |config| {
            let own = PluginConfig {
                timeout: Some(Duration::from_millis(200)),
                ..PluginConfig::default()
            };
            config.plugins.insert("serve".to_owned(), own);
        })
        .await;
        let bundle = send(&mut rig, "serve:later", &["1", "2"]).await;
        assert_eq!(rig.finish(bundle).await.code(), "timeout");
        let good = send(&mut rig, "serve:good", &["1", "2"]).await;
        rig.finish(good).await.result();
        rig.stop().await;
    });
}

#[test]
fn a_bundle_for_a_plugin_with_one_process_a_job_comes_back() {
    run(async {
        let mut rig = Rig::new(&["plain"], |_| {}).await;
        let bundle = send(&mut rig, "plain:good", &["1", "2"]).await;
        rig.until(|rig| rig.returned.contains(&bundle)).await;
        assert_eq!(rig.admission.used(), 0);
        rig.stop().await;
    });
}

#[test]
fn a_node_that_stops_ends_its_bundles() {
    run(async {
        let mut rig = Rig::new(&["serve-cancel-obedient"], |_| {}).await;
        let directive = "serve-cancel-obedient:later";
        let bundle = send(&mut rig, directive, &["1"; 100]).await;
        rig.until(|rig| rig.work(bundle).is_some_and(|work| work.started.is_some()))
            .await;
        rig.command(Command::Shutdown {
            grace: Duration::ZERO,
        })
        .await;
        assert_eq!(rig.finish(bundle).await.code(), "interrupted");
        rig.stop().await;
    });
}

#[test]
fn a_node_that_stops_lets_go_of_bundles_that_may_run_again() {
    run(async {
        let mut rig = Rig::new(&["serve-cancel-obedient"], |_| {}).await;
        let directive = "serve-cancel-obedient:later-again";
        let bundle = send(&mut rig, directive, &["1"; 100]).await;
        rig.until(|rig| rig.work(bundle).is_some_and(|work| work.started.is_some()))
            .await;
        rig.command(Command::Shutdown {
            grace: Duration::ZERO,
        })
        .await;
        rig.until_left(bundle).await;
        rig.stop().await;
    });
}
