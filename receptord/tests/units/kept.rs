//! Serving plugins whose processes the service manager keeps for the next daemon.

use std::os::unix::net::UnixDatagram;
use std::process::Command as Program;
use std::time::Duration;

use bytes::Bytes;
use receptor_proto::MessageId;
use receptor_proto::packet::Content;
use receptord::worker::{Command, JobPayload};

use crate::rig::{Rig, run};

/// Works with which a process gets no further one.
const MAX_WORKS: usize = 2048;
/// Says that there is a service manager.
const KEEPER: &str = "RECEPTOR_TEST_KEEPER";

/// Runs a test in a process of its own that has a service manager.
fn run_kept<F: Future<Output = ()>>(name: &str, test: F) {
    if std::env::var_os(KEEPER).is_some() {
        return run(test);
    }
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("notify");
    let socket = UnixDatagram::bind(&path).expect("a socket");
    // What is given to it is closed: it is nobody's but the daemon's.
    std::thread::spawn(move || while socket.recv(&mut [0; 4096]).is_ok() {});
    let status = Program::new(std::env::current_exe().expect("its own name"))
        .args(["--exact", &format!("kept::{name}")])
        .env("NOTIFY_SOCKET", &path)
        .env_remove("FDSTORE")
        .env(KEEPER, "")
        .status()
        .expect("it starts");
    assert!(status.success());
}

async fn send(rig: &mut Rig, directive: &str, payload: &str, start: bool) -> MessageId {
    let payload = JobPayload::Inline(Bytes::copy_from_slice(payload.as_bytes()));
    let mut job = rig.job(directive, Content::Json, payload);
    job.outlives = true;
    job.start = start;
    let work = job.work;
    rig.command(Command::Run(Box::new(job))).await;
    work
}

async fn end_is_safe(rig: &mut Rig, work: MessageId) {
    let (results, end) = (0, true);
    rig.command(Command::Safe { work, results, end }).await;
}

#[test]
fn a_work_that_waits_for_the_end_of_another_to_be_safe_begins_then() {
    run_kept(
        "a_work_that_waits_for_the_end_of_another_to_be_safe_begins_then",
        async {
            let mut rig = Rig::new(&["serve"], |config| {
                config.max_works = 2 * MAX_WORKS;
                config.times.ping_after = Duration::from_secs(3600);
            })
            .await;
            let mut works = Vec::new();
            for _ in 0..MAX_WORKS {
                works.push(send(&mut rig, "serve:failed", "", false).await);
            }
            for work in &works {
                let ended = rig.finish(*work).await;
                assert!(ended.kept, "it is not kept");
            }
            let file = rig.root().join("file");
            let payload = format!("\"{}\"", file.display());
            // It is told to start twice, as far as the process's task can tell.
            let late = send(&mut rig, "serve:when-there", &payload, true).await;
            rig.until(|rig| rig.work(late).is_some_and(|work| work.started.is_some()))
                .await;
            assert!(!rig.soon().await, "there is no room for it");
            end_is_safe(&mut rig, works[0]).await;
            rig.until(|rig| rig.work(late).is_some_and(|work| work.kept))
                .await;
            end_is_safe(&mut rig, works[1]).await;
            let last = send(&mut rig, "serve:failed", "", false).await;
            assert!(rig.finish(last).await.kept);
            std::fs::write(&file, "").unwrap();
            rig.finish(late).await.result();
            for work in works.into_iter().skip(2).chain([last, late]) {
                end_is_safe(&mut rig, work).await;
            }
            rig.stop().await;
        },
    );
}

#[test]
fn a_place_of_a_work_whose_end_is_not_safe_is_for_one_that_waits_at_the_host() {
    run_kept(
        "a_place_of_a_work_whose_end_is_not_safe_is_for_one_that_waits_at_the_host",
        async {
            let mut rig = Rig::new(&["serve"], |config| {
                config.max_works = 1;
                config.times.ping_after = Duration::from_secs(3600);
            })
            .await;
            let file = rig.root().join("file");
            let payload = format!("\"{}\"", file.display());
            let first = send(&mut rig, "serve:when-there", &payload, false).await;
            rig.until(|rig| rig.work(first).is_some_and(|work| work.kept))
                .await;
            let second = send(&mut rig, "serve:failed", "", false).await;
            assert_eq!(rig.list().await["serve"].waiting, 1);
            std::fs::write(&file, "").unwrap();
            rig.finish(first).await.result();
            assert!(rig.finish(second).await.kept);
            for work in [first, second] {
                end_is_safe(&mut rig, work).await;
            }
            rig.stop().await;
        },
    );
}
