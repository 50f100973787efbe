//! A disk that gives back something else than was written: whoever sent what is damaged is told,
//! no plugin sees it, and the operator finds out.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::fs;
use std::path::{Path, PathBuf};

use receptor_tests::{Daemon, Mesh, wait_for};
use serde_json::{Value, json};

/// Larger than a segment, so that it is a file of its own, and no multiple of one.
const SIZE: usize = 300_001;

/// Sends that many bytes, durably; the id.
fn send(at: &Daemon, directive: &str, recipient: &str) -> String {
    let command = json!({
        "command": "send", "directive": directive, "recipient": recipient, "size": SIZE,
        "detach": true, "wait": true,
    });
    let mut control = at.control();
    control.write(format!("{command}\n"));
    control.write(vec![b'x'; SIZE]);
    let reply = control.reply();
    assert_eq!(reply["type"], "accepted", "{reply}");
    reply["id"].as_str().unwrap().to_owned()
}

fn ask(at: &Daemon, command: &Value) -> Value {
    let mut control = at.control();
    control.write(format!("{command}\n"));
    control.reply()
}

/// The one payload in a directory, not its checksums.
fn payload_in(dir: &Path) -> Option<PathBuf> {
    let files = fs::read_dir(dir).ok()?.map(|entry| entry.unwrap().path());
    let mut files = files.filter(|file| {
        file.extension()
            .is_none_or(|kind| kind != "sums" && kind != "part")
            && fs::metadata(file).is_ok_and(|data| data.len() == SIZE as u64)
    });
    files.next()
}

/// Changes one bit in place, as a disk would.
fn damage(file: &Path) {
    use std::os::unix::fs::FileExt as _;
    let file = fs::File::options().write(true).open(file).unwrap();
    file.write_all_at(b"y", SIZE as u64 / 2).unwrap();
}

/// The error that a work ends with.
fn error_of(at: &Daemon, id: &str) -> Value {
    wait_for("the work has ended", || {
        let reply = ask(at, &json!({"command": "works", "id": id}));
        let work = &reply["works"][0];
        let ended = work["ended_ms"].is_u64();
        ended.then(|| work["error"].clone())
    })
}

/// The operator finds one damaged part, set aside.
fn assert_reported(at: &Daemon) {
    at.wait_log("a stored payload is damaged");
    let status = at.control().json("status");
    assert_eq!(status["receptor"]["spool"]["damaged"], 1, "{status}");
    let spool = ask(at, &json!({"command": "spool"}));
    let damaged = spool["damaged"].as_array().unwrap();
    assert_eq!(damaged.len(), 1, "{spool}");
    let text = damaged[0]["message"].as_str().unwrap();
    assert!(text.contains("they are kept in corrupt/"), "{text}");
    let aside = at.data_dir().join("spool/corrupt");
    assert!(
        payload_in(&aside).is_some(),
        "it is not in {}",
        aside.display()
    );
}

#[test]
fn a_payload_that_is_damaged_before_it_is_sent_is_not_sent() {
    let mesh = Mesh::new();
    let mut a = mesh.node("a").start();
    let id = send(&a, "echo:discard", "z");
    damage(&payload_in(&a.data_dir().join("spool/payloads")).unwrap());
    let z = mesh.node("z").peer(&a).start();
    let error = error_of(&a, &id);
    assert_eq!(error["code"], "damaged", "{error}");
    let text = error["message"].as_str().unwrap();
    assert!(
        text.contains("the disk gives back something else"),
        "{text}"
    );
    assert_reported(&a);
    let works = ask(&z, &json!({"command": "works"}));
    assert_eq!(works["works"], json!([]), "nothing was run");
    // It is not forgotten with a restart, and what is new is not held up.
    a.stop();
    a.restart();
    let status = a.control().json("status");
    assert_eq!(status["receptor"]["spool"]["damaged"], 1, "{status}");
    assert_eq!(error_of(&a, &send(&a, "echo:discard", "z")), Value::Null);
    wait_for("no payload is left", || {
        let payloads = a.data_dir().join("spool/payloads");
        fs::read_dir(payloads)
            .unwrap()
            .next()
            .is_none()
            .then_some(())
    });
}

#[test]
fn a_payload_that_is_gone_at_a_start_is_answered() {
    let mesh = Mesh::new();
    let mut a = mesh.node("a").start();
    let id = send(&a, "echo:discard", "z");
    a.kill();
    fs::remove_file(payload_in(&a.data_dir().join("spool/payloads")).unwrap()).unwrap();
    a.restart();
    let _z = mesh.node("z").peer(&a).start();
    let error = error_of(&a, &id);
    assert_eq!(error["code"], "damaged", "{error}");
}

/// Changes a byte of the one place in the segments where this stands.
fn damage_record(at: &Daemon, text: &str) {
    use std::os::unix::fs::FileExt as _;
    let segments = fs::read_dir(at.data_dir().join("spool/segments")).unwrap();
    let mut found = 0;
    for segment in segments.map(|entry| entry.unwrap().path()) {
        let bytes = fs::read(&segment).unwrap();
        let place = bytes.windows(text.len()).position(|w| w == text.as_bytes());
        if let Some(place) = place {
            let file = fs::File::options().write(true).open(&segment).unwrap();
            file.write_all_at(b"?", place as u64).unwrap();
            found += 1;
        }
    }
    assert_eq!(found, 1, "it stands in one segment");
}

#[test]
fn a_small_message_that_is_damaged_before_it_is_sent_ends_its_work() {
    let mesh = Mesh::new();
    let mut a = mesh.node("a").start();
    let text = |text: &str| {
        json!({
            "command": "send", "directive": "echo:discard", "recipient": "z", "text": text,
            "detach": true, "wait": true,
        })
    };
    let whole = ask(&a, &text("whole"))["id"].as_str().unwrap().to_owned();
    let id = ask(&a, &text("fragile"))["id"].as_str().unwrap().to_owned();
    // So that it is known to have been complete.
    ask(&a, &text("behind it"));
    a.kill();
    damage_record(&a, "fragile");
    a.restart();
    let error = error_of(&a, &id);
    assert_eq!(error["code"], "damaged", "{error}");
    let status = a.control().json("status");
    assert_eq!(status["receptor"]["spool"]["damaged"], 1, "{status}");
    // Whoever asks is told, also later, until somebody releases it; then it does not come back.
    let results = json!({"command": "results", "id": id, "follow": true});
    assert_eq!(ask(&a, &results)["error"]["code"], "damaged");
    a.kill();
    a.restart();
    assert_eq!(error_of(&a, &id)["code"], "damaged");
    assert_eq!(ask(&a, &results)["error"]["code"], "damaged");
    ask(&a, &json!({"command": "release", "id": id}));
    let _z = mesh.node("z").peer(&a).start();
    assert_eq!(error_of(&a, &whole), Value::Null);
    a.stop();
    a.restart();
    let works = ask(&a, &json!({"command": "works"}));
    assert!(!works.to_string().contains(&id), "{works}");
}

#[test]
fn a_payload_that_is_damaged_at_its_recipient_reaches_no_plugin() {
    let mesh = Mesh::new();
    let a = mesh.node("a").start();
    let b = mesh
        .node("b")
        .config("[plugins.echo]\nmax-works = 1\n")
        .peer(&a)
        .start();
    a.wait_reachable("b");
    let first = json!({
        "command": "send", "directive": "echo:sleep", "recipient": "b", "detach": true,
        "payload": {"ms": 600_000},
    });
    let first = ask(&a, &first)["id"].as_str().unwrap().to_owned();
    b.wait_log("work");
    wait_for("it runs", || {
        let works = ask(&b, &json!({"command": "works"}));
        (works["works"][0]["state"] == "running").then_some(())
    });
    let id = send(&a, "echo:bytes", "b");
    let file = wait_for("it waits at b", || {
        let works = ask(&b, &json!({"command": "works", "id": id}));
        (works["works"][0]["state"] == "queued").then_some(())?;
        payload_in(&b.data_dir().join("spool/payloads"))
    });
    damage(&file);
    ask(&a, &json!({"command": "cancel", "id": first}));
    let error = error_of(&a, &id);
    assert_eq!(error["code"], "damaged", "{error}");
    let text = error["message"].as_str().unwrap();
    assert!(text.contains("nothing was run"), "{text}");
    assert_reported(&b);
    let status = a.control().json("status");
    assert_eq!(status["receptor"]["spool"]["damaged"], 0, "{status}");
}

#[test]
fn a_kept_response_that_is_damaged_is_not_given() {
    let mesh = Mesh::new();
    let mut a = mesh.node("a").start();
    let b = mesh.node("b").peer(&a).start();
    a.wait_reachable("b");
    let id = send(&a, "echo:bytes", "b");
    assert_eq!(error_of(&a, &id), Value::Null);
    let kept = wait_for("it is kept", || payload_in(&a.data_dir().join("kept")));
    let name = format!("{}.sums", kept.display());
    assert_eq!(
        fs::metadata(name).unwrap().len(),
        4 * (SIZE as u64).div_ceil(65_536),
        "its checksums came along"
    );
    let results = json!({"command": "results", "id": id, "follow": true});
    let line = ask(&a, &results);
    assert_eq!(line["size"], SIZE, "{line}");
    // Over a restart as well.
    a.stop();
    a.restart();
    assert_eq!(ask(&a, &results)["size"], SIZE);
    damage(&kept);
    let line = ask(&a, &results);
    assert_eq!(line["error"]["code"], "damaged", "{line}");
    ask(&a, &json!({"command": "release", "id": id}));
    wait_for("nothing of it is left", || {
        let files = fs::read_dir(a.data_dir().join("kept")).unwrap();
        (files.count() == 0).then_some(())
    });
    drop(b);
}
