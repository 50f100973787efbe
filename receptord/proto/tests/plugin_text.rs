//! Holds the text of the plugin protocol against the types.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use receptor_proto::plugin::{self, ErrorCode, HostMessage, PluginMessage};
use serde_json::Value;

const TEXT: &str = include_str!("../PROTOCOL-plugin.md");

/// The lines of all blocks with this info string.
fn examples(info: &str) -> Vec<&'static str> {
    let mut found = Vec::new();
    let mut inside = false;
    for line in TEXT.lines() {
        match line.strip_prefix("```") {
            Some(fence) => inside = !inside && fence == info,
            None if inside => found.push(line),
            None => {}
        }
    }
    found
}

/// Every field of the example has a meaning: it survives being read and written.
fn same(example: &str, written: &[u8]) {
    let example: Value = serde_json::from_str(example).unwrap();
    let written: Value = serde_json::from_slice(written).unwrap();
    contains(&written, &example);
}

fn contains(written: &Value, example: &Value) {
    if let (Value::Object(written), Value::Object(example)) = (written, example) {
        for (key, value) in example {
            let found = written.get(key);
            contains(found.unwrap_or_else(|| panic!("{key} is lost")), value);
        }
        return;
    }
    assert_eq!(written, example);
}

#[test]
fn every_host_message_is_understood_and_shown() {
    let mut kinds = std::collections::BTreeSet::new();
    for example in examples("json host") {
        let message = HostMessage::decode(example.as_bytes()).unwrap();
        kinds.insert(match &message {
            HostMessage::Hello(_) => "hello",
            HostMessage::Execute(_) => "execute",
            HostMessage::Cancel(_) => "cancel",
            HostMessage::Ping(_) => "ping",
            HostMessage::Shutdown(_) => "shutdown",
            HostMessage::Unknown { kind } => panic!("{kind}"),
        });
        same(example, &message.to_line().unwrap());
    }
    assert_eq!(kinds.len(), 5, "{kinds:?}");
}

#[test]
fn every_plugin_message_is_understood_and_shown() {
    let mut kinds = std::collections::BTreeSet::new();
    for example in examples("json plugin") {
        let message = PluginMessage::decode(example.as_bytes()).unwrap();
        kinds.insert(match &message {
            PluginMessage::Hello(hello) => {
                assert_eq!(hello.validate(&hello.name), Ok(()));
                "hello"
            }
            PluginMessage::Data(_) => "data",
            PluginMessage::Status(_) => "status",
            PluginMessage::Log(_) => "log",
            PluginMessage::Done(_) => "done",
            PluginMessage::Error(_) => "error",
            PluginMessage::Ready(_) => "ready",
            PluginMessage::Pong(_) => "pong",
            PluginMessage::Unknown { kind } => panic!("{kind}"),
        });
        same(example, &message.to_line().unwrap());
    }
    assert_eq!(kinds.len(), 8, "{kinds:?}");
}

#[test]
fn every_error_code_of_the_table_is_known() {
    let table = TEXT.split_once("| error code |").unwrap().1;
    let table = table.split_once("\n\n").unwrap().0;
    let mut codes = 0;
    for row in table.lines().skip(2) {
        let columns: Vec<&str> = row.split('|').collect();
        let retry = columns[3].trim();
        for code in columns[1].split('`').skip(1).step_by(2) {
            if code.starts_with("x-") {
                continue;
            }
            let known = ErrorCode::from(code);
            assert!(!matches!(known, ErrorCode::Other(_)), "{code}");
            assert_eq!(known.is_retryable(), retry == "yes", "{code}");
            codes += 1;
        }
    }
    assert_eq!(codes, 16);
}

#[test]
fn limits_and_names_in_the_text_are_those_of_the_types() {
    let group = |n: usize| {
        let digits = n.to_string();
        let mut grouped = String::new();
        for (i, digit) in digits.chars().enumerate() {
            if i > 0 && (digits.len() - i).is_multiple_of(3) {
                grouped.push(',');
            }
            grouped.push(digit);
        }
        grouped
    };
    for limit in [
        plugin::MAX_LINE,
        plugin::MAX_HELLO,
        plugin::MAX_INLINE,
        plugin::STDERR_SHOWN,
    ] {
        assert!(
            TEXT.contains(&format!("{} bytes", group(limit)))
                || TEXT.contains(&format!("{}.", group(limit))),
            "{limit}"
        );
    }
    for (name, time) in [
        ("hello |", plugin::HELLO_TIMEOUT),
        (
            "exit after stdin closes, without a job |",
            plugin::DESCRIBE_EXIT,
        ),
        (
            "cancel to signals, shutdown to signals |",
            plugin::CANCEL_GRACE,
        ),
        (
            "cancel to signals, shutdown to signals |",
            plugin::SHUTDOWN_GRACE,
        ),
        ("SIGTERM to SIGKILL |", plugin::TERM_GRACE),
        ("can hold it) |", plugin::DRAIN_AFTER_EXIT),
    ] {
        let row = format!("{name} {} s", time.as_secs());
        assert!(TEXT.contains(&row), "{row}");
    }
    assert!(TEXT.contains(&format!(
        "without a job for {} s",
        plugin::SERVE_IDLE.as_secs()
    )));
    assert!(TEXT.contains(&format!("silent for {} s", plugin::PING_AFTER.as_secs())));
    for name in [
        plugin::env::PROTOCOL,
        plugin::env::NODE,
        plugin::env::JOB_ID,
        plugin::env::JOB_DIR,
        plugin::env::ACTION,
        plugin::env::SENDER,
        plugin::env::PAYLOAD_FILE,
    ] {
        assert!(TEXT.contains(&format!("`{name}")), "{name}");
    }
}
