//! What a job of Ansible comes to, line by line.

use super::*;

fn report(options: Value) -> Report {
    Report::new(serde_json::from_value(options).unwrap(), false)
}

fn take(report: &mut Report, line: &Value) -> Step {
    let text = line.to_string();
    report.take(&Piece::Line {
        text: text.as_bytes(),
        cut: false,
    })
}

fn event(name: &str, data: Value) -> Value {
    json!({"event": name, "uuid": "u", "counter": 1, "stdout": "", "event_data": data})
}

#[test]
fn the_environment_never_leaves_with_a_status() {
    let mut report = report(json!({}));
    let step = take(
        &mut report,
        &json!({"status": "starting", "env": {"A": "canary"}, "command": ["ansible"]}),
    );
    assert_eq!(step.state.as_deref(), Some("starting"));
    let sent: Value = step.send.unwrap().to().unwrap();
    assert_eq!(sent, json!({"status": "starting", "command": ["ansible"]}));
}

#[test]
fn counts_and_task_are_for_people() {
    let mut report = report(json!({}));
    take(
        &mut report,
        &event("playbook_on_task_start", json!({"task": "install"})),
    );
    take(
        &mut report,
        &event("runner_on_ok", json!({"res": {"changed": true}})),
    );
    take(
        &mut report,
        &event("runner_on_ok", json!({"res": {"changed": "odd"}})),
    );
    take(
        &mut report,
        &event("runner_on_failed", json!({"ignore_errors": true})),
    );
    take(
        &mut report,
        &event("runner_on_failed", json!({"ignore_errors": null})),
    );
    let step = take(
        &mut report,
        &event("runner_on_unreachable", json!("strange")),
    );
    assert!(step.news);
    assert_eq!(
        report.summary(),
        "TASK [install] ok=3 changed=1 failed=1 unreachable=1"
    );
}

#[test]
fn events_are_chosen() {
    let events = [
        event("playbook_on_start", json!({})),
        event("runner_on_start", json!({})),
        event("runner_on_ok", json!({"res": {"changed": false}})),
        event("runner_item_on_ok", json!({"res": {"changed": true}})),
        event("runner_on_skipped", json!({})),
        event("runner_on_failed", json!({})),
        event("verbose", json!({})),
        event("playbook_on_stats", json!({"processed": {"a": 1}})),
    ];
    for (choice, wanted) in [
        ("all", "11111111"),
        ("results", "00111101"),
        ("changed", "00010101"),
        ("failed", "00000101"),
        ("none", "00000000"),
    ] {
        let mut report = report(json!({"events": choice}));
        let sent: String = events
            .iter()
            .map(|e| {
                if take(&mut report, e).send.is_some() {
                    '1'
                } else {
                    '0'
                }
            })
            .collect();
        assert_eq!(sent, wanted, "{choice}");
        assert_eq!(report.end(), None);
        take(&mut report, &json!({"status": "running"}));
        assert_eq!(report.end().is_some(), choice != "none");
    }
}

#[test]
fn no_host_is_noticed_in_every_form() {
    let mut one = report(json!({}));
    take(
        &mut one,
        &event("playbook_on_stats", json!({"processed": {}})),
    );
    assert!(one.no_hosts_matched());
    let mut two = report(json!({}));
    take(&mut two, &event("playbook_on_no_hosts_matched", json!({})));
    take(&mut two, &event("playbook_on_stats", json!({})));
    assert!(two.no_hosts_matched());
    // One play of several had hosts.
    take(
        &mut two,
        &event("playbook_on_stats", json!({"processed": {"a": 1}})),
    );
    assert!(!two.no_hosts_matched());
    // Nothing is known, so nothing is said.
    let mut three = report(json!({}));
    take(&mut three, &event("playbook_on_stats", json!({})));
    assert!(!three.no_hosts_matched());
}

#[test]
fn large_events_are_cut_to_the_limit_and_marked() {
    let lines: Vec<String> = (0..5_000).map(|n| format!("line {n}")).collect();
    let many: Map<String, Value> = (0..5_000).map(|n| (format!("k{n}"), json!(n))).collect();
    for (data, left) in [
        (
            json!({"res": {"stdout": "x".repeat(50_000)}, "host": "a"}),
            true,
        ),
        (json!({"res": {"stdout_lines": lines}, "host": "a"}), true),
        (json!({"res": many, "host": "a"}), false),
    ] {
        let mut report = report(json!({"max_event_bytes": 2048}));
        let step = take(&mut report, &event("runner_on_ok", data));
        let sent = step.send.unwrap();
        assert!(sent.get().len() <= 2048, "{}", sent.get().len());
        let sent: Value = sent.to().unwrap();
        assert_eq!(sent["receptor_cut"], true);
        assert_eq!(sent["event"], "runner_on_ok");
        assert_eq!(sent["event_data"]["host"] == "a", left);
        assert_eq!(report.result("failed", 0, 1.0, None)["events_cut"], 1);
    }
}

#[test]
fn a_small_event_passes_as_it_is() {
    let mut report = report(json!({}));
    let text = br#"{"event":"x","n":1.50,"big":12345678901234567890123}"#;
    let step = report.take(&Piece::Line { text, cut: false });
    assert_eq!(step.send.unwrap().get().as_bytes(), text);
}

#[test]
fn dropped_results_and_garbage_are_counted() {
    let mut report = report(json!({}));
    take(&mut report, &event("runner_on_ok", json!({"res": {}})));
    assert_eq!(report.dropped, 1);
    let half = r#"{"event":"verbose","stdout":"\ud83d"}"#;
    let step = report.take(&Piece::Line {
        text: half.as_bytes(),
        cut: false,
    });
    assert_eq!(step.send.unwrap().get(), half);
    for line in ["not json", "[]", "{}", "{\"event\":1}"] {
        report.take(&Piece::Line {
            text: line.as_bytes(),
            cut: false,
        });
    }
    assert_eq!(report.garbage, 4);
    let keepalive = json!({"event": "keepalive", "counter": 0, "uuid": 0});
    assert_eq!(take(&mut report, &keepalive), Step::default());
    take(&mut report, &json!({"eof": true}));
    assert!(report.eof);
}

#[test]
fn the_result_has_what_was_asked_for_and_fits() {
    let mut report = report(json!({}));
    take(
        &mut report,
        &json!({"event": "verbose", "stdout": "ERROR! no such file\r"}),
    );
    let stats = json!({"ok": {"a": 1}, "processed": {"a": 1}, "artifact_data": {"x": 1}, "pid": 5});
    take(&mut report, &event("playbook_on_stats", stats));
    let result = report.result("failed", 2, 1.234, Some("2.4.3"));
    assert_eq!(
        result,
        json!({
            "status": "failed", "rc": 2, "events": 2, "no_hosts_matched": false,
            "stats": {"ok": {"a": 1}, "processed": {"a": 1}}, "artifact_data": {"x": 1},
                "duration_s": 1.23, "ansible_runner": "2.4.3", "output": "ERROR! no such file",
            "message": "ERROR! no such file",
        })
    );
    let hosts: Map<String, Value> = (0..50_000).map(|n| (format!("h{n}"), json!(1))).collect();
    take(
        &mut report,
        &event("playbook_on_stats", json!({"processed": hosts})),
    );
    let result = report.result("successful", 0, 1.0, None);
    assert_eq!(result["stats"], Value::Null);
    assert_eq!(result["receptor_cut"], true);
}

#[test]
fn a_failure_is_told_in_words() {
    let failed = |name, res| {
        let data = json!({"host": "web1", "task": "copy", "res": res});
        event(name, data)
    };
    let mut nobody = report(json!({}));
    let mut report = report(json!({"events": "none"}));
    for line in [
        failed("runner_on_failed", json!({"msg": "disk is\nfull"})),
        failed(
            "runner_on_failed",
            json!({"msg": "non-zero return code", "rc": 2, "stderr": "a\nls: no such file\n", "stdout": "x"}),
        ),
        failed(
            "runner_on_unreachable",
            json!({"msg": "timed out", "unreachable": true}),
        ),
        failed("runner_item_on_failed", json!({"censored": "hidden"})),
        failed("runner_on_failed", json!({"msg": {"why": 1}, "rc": 0})),
        event(
            "runner_on_failed",
            json!({"ignore_errors": true, "res": {"msg": "no"}}),
        ),
        event("runner_on_failed", json!("strange")),
    ] {
        take(&mut report, &line);
    }
    let message = |report: &Report| report.result("failed", 2, 1.0, None)["message"].clone();
    assert_eq!(
        message(&report)
            .as_str()
            .unwrap()
            .lines()
            .collect::<Vec<_>>(),
        [
            "web1: TASK [copy]: disk is full",
            "web1: TASK [copy]: non-zero return code (rc 2): ls: no such file",
            "web1: TASK [copy] unreachable: timed out",
            "web1: TASK [copy] item: hidden",
            "web1: TASK [copy]: {\"why\":1}",
            "?: TASK [?]: no reason is given",
        ]
    );
    for _ in 0..20 {
        let long = json!({"msg": "x".repeat(10_000)});
        take(&mut report, &failed("runner_on_failed", long));
    }
    let told = message(&report);
    let told = told.as_str().unwrap();
    assert_eq!(told.lines().count(), MAX_TOLD + 1);
    assert!(told.ends_with("and 16 more failures"), "{told}");
    assert!(told.len() < (MAX_TOLD + 1) * MAX_WORDS);
    assert!(report.result("successful", 0, 1.0, None)["message"].is_null());

    take(
        &mut nobody,
        &event("playbook_on_no_hosts_matched", json!({})),
    );
    assert_eq!(message(&nobody), "no host matched, so nothing was done");
}

#[test]
fn a_tail_keeps_the_end() {
    let mut tail = Tail::new(8);
    tail.push(b"abc\n");
    tail.push(b"0123456789\nxyz\n");
    assert_eq!(tail.text(), "789\nxyz");
    assert_eq!(tail.last_line(), "xyz");
    assert_eq!(Tail::new(8).last_line(), "");
}
