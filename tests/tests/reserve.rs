//! What clients hear while the room that a spool has for answers is taken: their answers come, and
//! whoever took the room is heard of again when it is free.

use receptor_tests::works::wait_agreement;
use receptor_tests::{Daemon, Mesh, wait_for};
use serde_json::{Value, json};

fn ask(at: &Daemon, command: &Value) -> Value {
    let mut control = at.control();
    control.write(format!("{command}\n"));
    control.reply()
}

fn work(at: &Daemon, id: &str) -> Option<Value> {
    let reply = ask(at, &json!({"command": "works", "id": id}));
    reply["works"].get(0).cloned()
}

#[test]
fn a_client_that_does_not_read_takes_the_room_of_nobody_else() {
    let mesh = Mesh::new();
    let a = mesh.node("a").config("[spool]\nmax-entries = 64").start();
    let b = mesh.node("b").peer(&a).start();
    wait_for("the plugin on b", || {
        let send = json!({
            "command": "send", "directive": "echo:echo", "recipient": "b", "payload": 1,
            "respond": false,
        });
        (a.control().json("ping b")["Success"] == true && ask(&a, &send)["type"] == "accepted")
            .then_some(())
    });
    // More than a socket, its mailbox and the spool hold.
    let flood = json!({
        "command": "send", "directive": "echo:flood", "recipient": "b",
        "payload": {"count": 20_000, "size": 3000},
    });
    let mut slow = a.control();
    slow.write(format!("{flood}\n"));
    let id = slow.reply()["id"].as_str().unwrap().to_owned();
    wait_for("responses that a has no room for", || {
        let spool = ask(&b, &json!({"command": "spool", "id": id}));
        (spool["total"].as_u64()? > 64).then_some(())
    });

    // Others are told what they wait for.
    for _ in 0..3 {
        wait_for("the answer to another client", || {
            let mut control = a.control();
            control.write("{\"command\":\"send\",\"directive\":\"echo:echo\",\"recipient\":\"b\",\"payload\":\"x\"}\n");
            let accepted = control.reply();
            if accepted["type"] == "error" {
                assert_eq!(accepted["error"]["code"], "busy", "{accepted}");
                return None;
            }
            assert_eq!(control.reply()["data"], "x");
            Some(())
        });
    }
    let cancelled = ask(&a, &json!({"command": "cancel", "id": id}));
    assert_eq!(cancelled["cancelling"], *id, "{cancelled}");
    let first = ask(
        &a,
        &json!({"command": "results", "id": id, "follow": false}),
    );
    assert_eq!(first["serial"], 1, "{first}");

    drop(slow);
    wait_for("the end of the work whose client was slow", || {
        (!work(&a, &id)?["ended_ms"].is_null()).then_some(())
    });
    wait_agreement([&a, &b]);
}
