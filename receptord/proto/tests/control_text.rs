//! Holds the text of the control protocol against the types.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeSet;

use receptor_proto::ErrorCode;
use receptor_proto::control::{
    CancelCommand, CancelReply, CapabilitiesReply, DeadLetterCommand, DeadLettersReply,
    DescribeReply, DropReply, Envelope, ErrorReply, KEY_MAX, LINE_MAX, LinksReply, LogLevelCommand,
    LogLevelReply, NodesReply, PingCommand, PingReply, PluginRestartCommand, PluginStatus,
    PluginsReply, PolicyCommand, PolicyReply, ReleaseCommand, ReleaseReply, ReloadReply,
    ResultsCommand, RetryReply, RoutesReply, SendCommand, SendReply, SpoolCommand,
    SpoolDropCommand, SpoolReply, StatusCommand, StatusReply, TAG_MAX, TEXT, TraceHop,
    TracerouteCommand, WorkState, WorksCommand, WorksReply, commands, keyed_id, parse_greeting,
};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

/// The lines of all blocks whose info string begins so, with its rest.
fn examples(info: &str) -> Vec<(&'static str, &'static str)> {
    let mut found = Vec::new();
    let mut inside = None;
    for line in TEXT.lines() {
        match line.strip_prefix("```") {
            Some(fence) if inside.is_none() => {
                inside = Some(fence.strip_prefix(info).map(str::trim));
            }
            Some(_) => inside = None,
            None => {
                if let Some(Some(name)) = inside {
                    found.push((name, line));
                }
            }
        }
    }
    found
}

/// Reads an example and writes it again: every key of it has a meaning.
fn same<T: Serialize + DeserializeOwned>(example: &str) {
    let value: T = serde_json::from_str(example).unwrap_or_else(|e| panic!("{example}: {e}"));
    let written = serde_json::to_value(value).unwrap();
    contains(&written, &serde_json::from_str(example).unwrap());
}

fn contains(written: &Value, example: &Value) {
    match (written, example) {
        (Value::Object(written), Value::Object(example)) => {
            for (key, value) in example {
                match written.get(key) {
                    Some(found) => contains(found, value),
                    // Written out in the text to show that it is there, and left out when it says nothing.
                    None => assert!(is_default(value), "{key} is lost"),
                }
            }
        }
        (Value::Array(written), Value::Array(example)) => {
            assert_eq!(written.len(), example.len());
            for (written, example) in written.iter().zip(example) {
                contains(written, example);
            }
        }
        _ => assert_eq!(written, example),
    }
}

fn is_default(value: &Value) -> bool {
    matches!(value, Value::Null | Value::Bool(false))
}

#[test]
fn every_command_is_understood_and_shown() {
    let mut seen = BTreeSet::new();
    for (_, example) in examples("json client") {
        let mut command: Value = serde_json::from_str(example).unwrap();
        let envelope: Envelope = serde_json::from_str(example).unwrap();
        // The other types know nothing of what all commands have.
        let fields = command.as_object_mut().unwrap();
        fields.remove("command");
        fields.remove("tag");
        let rest = command.to_string();
        match &*envelope.command {
            "ping" => same::<PingCommand>(&rest),
            "traceroute" => same::<TracerouteCommand>(&rest),
            "status" => same::<StatusCommand>(&rest),
            "send" => {
                same::<SendCommand>(&rest);
                serde_json::from_str::<SendCommand>(example)
                    .unwrap()
                    .check()
                    .unwrap();
            }
            "cancel" => same::<CancelCommand>(&rest),
            "results" => same::<ResultsCommand>(&rest),
            "release" => same::<ReleaseCommand>(&rest),
            "works" => same::<WorksCommand>(&rest),
            "spool" => same::<SpoolCommand>(&rest),
            "spool-drop" => same::<SpoolDropCommand>(&rest),
            "dead-letter-retry" | "dead-letter-drop" => same::<DeadLetterCommand>(&rest),
            "plugin-restart" => same::<PluginRestartCommand>(&rest),
            "log-level" => same::<LogLevelCommand>(&rest),
            "policy" => same::<PolicyCommand>(&rest),
            "nodes" | "routes" | "links" | "capabilities" | "plugins" | "reload"
            | "dead-letters" | "describe" => {
                assert_eq!(rest, "{}", "{example}");
            }
            other => panic!("{other} is not known"),
        }
        seen.insert(envelope.command);
    }
    let all: BTreeSet<_> = commands().map(str::to_owned).collect();
    assert_eq!(
        seen, all,
        "a section without an example, or an example without"
    );
}

#[test]
fn every_reply_is_understood_and_shown() {
    let mut seen = BTreeSet::new();
    for (name, example) in examples("json daemon") {
        match name {
            "error" => same::<ErrorReply>(example),
            "send" => same::<SendReply>(example),
            "cancel" => same::<CancelReply>(example),
            "release" => same::<ReleaseReply>(example),
            "works" => same::<WorksReply>(example),
            "spool" => same::<SpoolReply>(example),
            "drop" => same::<DropReply>(example),
            "dead-letters" => same::<DeadLettersReply>(example),
            "dead-letter-retry" => same::<RetryReply>(example),
            "ping" => same::<PingReply>(example),
            "traceroute" => same::<TraceHop>(example),
            "status" => same::<StatusReply>(example),
            "nodes" => same::<NodesReply>(example),
            "routes" => same::<RoutesReply>(example),
            "links" => same::<LinksReply>(example),
            "capabilities" => same::<CapabilitiesReply>(example),
            "plugins" => same::<PluginsReply>(example),
            "plugin-restart" => same::<PluginStatus>(example),
            "reload" => same::<ReloadReply>(example),
            "log-level" => same::<LogLevelReply>(example),
            "policy" => same::<PolicyReply>(example),
            "describe" => same::<DescribeReply>(example),
            other => panic!("{other} is not known"),
        }
        seen.insert(name);
    }
    assert_eq!(seen.len(), 22, "{seen:?}");
}

#[test]
fn the_greeting_is_the_one_in_the_text() {
    let line = TEXT
        .lines()
        .find(|line| line.starts_with("Receptor Control"))
        .unwrap();
    assert_eq!(parse_greeting(line).unwrap().as_str(), "controller");
}

#[test]
fn every_key_of_send_is_in_its_table() {
    let table = TEXT.split_once("| key | |").unwrap().1;
    let table = table.split_once("\n\n").unwrap().0;
    let full = SendCommand {
        quiet: true,
        directive: "a:b".into(),
        recipient: Some("c".into()),
        any: true,
        metadata: [("k".into(), "v".into())].into(),
        payload: Some(serde_json::value::to_raw_value(&1).unwrap()),
        text: Some(String::new()),
        size: Some(1),
        stream: true,
        content: Some(receptor_proto::packet::Content::Bytes),
        volatile: true,
        respond: false,
        detach: true,
        key: Some("k".into()),
        expires_ms: Some(1),
        wait: true,
    };
    let value = serde_json::to_value(full).unwrap();
    for key in value.as_object().unwrap().keys() {
        assert!(table.contains(&format!("`{key}`")), "{key}");
    }
}

#[test]
fn error_codes_and_limits_are_those_of_the_types() {
    let table = TEXT.split_once("| code | meaning |").unwrap().1;
    let table = table.split_once("\n\n").unwrap().0;
    let told: BTreeSet<&str> = table
        .lines()
        .skip(2)
        .map(|row| row.split('`').nth(1).unwrap())
        .collect();
    // Codes of links are the last of the list and are told in one sentence.
    let known: BTreeSet<&str> = ErrorCode::ALL
        .iter()
        .take_while(|code| **code != ErrorCode::UnsupportedVersion)
        .map(ErrorCode::as_str)
        .collect();
    assert_eq!(told, known);
    assert_eq!(LINE_MAX, 1_048_576);
    assert!(TEXT.contains("1,048,576 bytes"));
    assert!(TEXT.contains(&format!("at most {TAG_MAX} bytes")));
}

#[test]
fn a_payload_of_null_is_not_the_same_as_none() {
    let line = r#"{"directive":"a:b","recipient":"n","payload":null}"#;
    let command: SendCommand = serde_json::from_str(line).unwrap();
    assert_eq!(command.payload.unwrap().get(), "null");
    let reply = r#"{"type":"response","id":"00000000-0000-0000-0000-000000000001","from":"n","serial":1,"data":null}"#;
    let SendReply::Response(response) = serde_json::from_str(reply).unwrap() else {
        panic!("a response");
    };
    assert_eq!(response.data.unwrap().get(), "null");
}

#[test]
fn every_state_of_a_work_is_in_its_table() {
    let table = TEXT.split_once("| state | meaning |").unwrap().1;
    let table = table.split_once("\n\n").unwrap().0;
    let told: Vec<&str> = table
        .lines()
        .skip(2)
        .map(|row| row.split('`').nth(1).unwrap())
        .collect();
    let all = [
        WorkState::Accepted,
        WorkState::Sent,
        WorkState::Queued,
        WorkState::Running,
        WorkState::Succeeded,
        WorkState::Failed,
        WorkState::Cancelled,
        WorkState::Expired,
        WorkState::Refused,
        WorkState::Interrupted,
        WorkState::Lost,
    ];
    assert_eq!(told, all.map(WorkState::as_str));
    for state in all {
        assert_eq!(serde_json::to_value(state).unwrap(), state.as_str());
    }
    assert_eq!(all.iter().filter(|state| state.is_final()).count(), 7);
}

#[test]
fn the_id_of_a_key_is_the_one_that_the_text_promises() {
    assert!(TEXT.contains("6f0b3d0e-6a5c-4c55-9d43-2f6f7a1c5e1b"));
    assert!(TEXT.contains(&format!("at most {KEY_MAX} bytes")));
    // As Python's uuid.uuid5(uuid.uuid5(namespace, "controller"), "nightly") has it.
    let id = keyed_id(&"controller".parse().unwrap(), "nightly");
    assert_eq!(id.to_string(), "ef8abb05aed853c0832f671999bd0ffd");
}
