//! A disk that fails below a real daemon: what cannot be kept is refused with its reason, nothing
//! that was accepted is lost, and the daemon goes on when the disk does.

use receptor_tests::power::{Dice, Power};
use receptor_tests::{Daemon, Mesh, wait_for};
use serde_json::{Value, json};

fn ask(at: &Daemon, command: &Value) -> Value {
    let mut control = at.control();
    control.write(format!("{command}\n"));
    control.reply()
}

fn send(at: &Daemon) -> Result<String, Value> {
    let reply = ask(
        at,
        &json!({
            "command": "send", "directive": "echo:discard", "recipient": "z", "text": "x",
            "detach": true, "wait": true,
        }),
    );
    match reply["id"].as_str() {
        Some(id) if reply["type"] == "accepted" => Ok(id.to_owned()),
        _ => Err(reply),
    }
}

fn spool_status(at: &Daemon) -> Value {
    at.control().json("status")["receptor"]["spool"].clone()
}

#[test]
fn what_a_failing_disk_cannot_keep_is_refused_and_the_rest_is_there() {
    for (seed, sort) in ["write", "sync"].into_iter().enumerate() {
        let mesh = Mesh::new();
        let (mut power, node) = Power::of(mesh.node("a"));
        let mut a = node.start();
        let mut ids: Vec<_> = (0..5).map(|_| send(&a).unwrap()).collect();
        for _ in 0..3 {
            power.break_down(Some(sort));
            for _ in 0..5 {
                let refusal = send(&a).unwrap_err();
                let text = refusal["error"]["message"].as_str().unwrap();
                assert!(text.contains("of the spool"), "{text}");
                assert!(text.contains("Input/output error"), "{text}");
            }
            let status = spool_status(&a);
            let error = status["error"].as_str().unwrap();
            assert!(error.contains("nothing new is kept"), "{error}");
            assert!(error.contains("mend or replace the disk"), "{error}");
            a.wait_ping("a");
            power.break_down(None);
            ids.push(wait_for("it is written again", || send(&a).ok()));
            assert_eq!(spool_status(&a)["error"], Value::Null);
        }
        // Nothing that a failed sync left behind was relied on.
        power.fail(&mut a, &mut Dice::new(seed as u64));
        a.restart();
        let kept = ask(&a, &json!({"command": "spool"}));
        let messages = kept["messages"].as_array().unwrap();
        for id in &ids {
            let is_there = messages.iter().any(|message| message["id"] == **id);
            assert!(is_there, "{id} is lost after {sort} failed: {kept}");
        }
        assert_eq!(
            kept["total"],
            ids.len(),
            "what was refused came back: {kept}"
        );
    }
}
