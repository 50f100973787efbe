//! The codec: what is written reads back, and what breaks the protocol is refused.

use alloc::{collections::BTreeMap, format, vec};

use proptest::{collection, option, prelude::*};

use super::*;

fn id() -> impl Strategy<Value = String> {
    "[A-Za-z0-9._:-]{1,128}"
}

fn any_text() -> impl Strategy<Value = String> {
    any::<String>()
}

fn json() -> impl Strategy<Value = Json> {
    let leaf = prop_oneof![
        Just(serde_json::Value::Null),
        any::<bool>().prop_map(serde_json::Value::from),
        any::<i64>().prop_map(serde_json::Value::from),
        any_text().prop_map(serde_json::Value::from),
    ];
    leaf.prop_recursive(4, 32, 6, |inner| {
        prop_oneof![
            collection::vec(inner.clone(), 0..6).prop_map(serde_json::Value::from),
            collection::btree_map(any_text(), inner, 0..6)
                .prop_map(|m| serde_json::Value::Object(m.into_iter().collect())),
        ]
    })
    .prop_map(|value| Json::from_value(&value).unwrap())
}

/// A reader takes `null` for the absence of an optional field, except in payloads.
fn some_json() -> impl Strategy<Value = Option<Json>> {
    option::of(json().prop_filter("not null", |j| j.get() != "null"))
}

fn payload(named: bool) -> impl Strategy<Value = Payload> {
    let name = if named {
        option::of(any_text()).boxed()
    } else {
        Just(None).boxed()
    };
    let file = (
        any_text(),
        name,
        option::of(any::<u64>()),
        option::of(any_text()),
    )
        .prop_map(|(path, name, size, sha256)| FileRef {
            path,
            name,
            size,
            sha256,
        });
    prop_oneof![
        json().prop_map(Payload::Json),
        any_text().prop_map(Payload::Text),
        collection::vec(any::<u8>(), 0..300).prop_map(Payload::Bytes),
        file.prop_map(Payload::File),
    ]
}

fn action() -> impl Strategy<Value = ActionDescriptor> {
    let payload = prop_oneof![
        Just(PayloadKind::Json),
        Just(PayloadKind::Text),
        Just(PayloadKind::Bytes),
        Just(PayloadKind::File),
        Just(PayloadKind::None),
    ];
    let output = prop_oneof![
        Just(OutputKind::Json),
        Just(OutputKind::Text),
        Just(OutputKind::Bytes),
    ];
    (
        payload,
        output,
        option::of(any::<u64>()),
        option::of(any::<u64>()),
        option::of(any::<u64>()),
        some_json(),
        some_json(),
        option::of(any_text()),
        any::<bool>(),
    )
        .prop_map(
            |(p, o, timeout_s, idle_timeout_s, max_payload, schema, example, about, idempotent)| {
                ActionDescriptor {
                    payload: p,
                    output: o,
                    timeout_s,
                    idle_timeout_s,
                    max_payload,
                    schema,
                    example,
                    about,
                    idempotent,
                }
            },
        )
}

fn plugin_hello() -> impl Strategy<Value = PluginHello> {
    (
        any::<u32>(),
        any_text(),
        any_text(),
        option::of(any_text()),
        prop_oneof![Just(Mode::Job), Just(Mode::Serve)],
        option::of(any::<u32>()),
        collection::vec(any_text(), 0..4),
        any::<bool>(),
        option::of(any_text()),
        collection::btree_map(any_text(), action(), 0..3),
    )
        .prop_map(
            |(protocol, name, version, about, mode, max_jobs, features, ready, reason, actions)| {
                PluginHello {
                    protocol,
                    name,
                    version,
                    about,
                    mode,
                    max_jobs,
                    features,
                    ready,
                    reason,
                    actions,
                }
            },
        )
}

fn plugin_error() -> impl Strategy<Value = PluginError> {
    (
        any_text(),
        any_text(),
        collection::vec(any_text(), 0..3),
        any::<bool>(),
        some_json(),
    )
        .prop_map(
            |(code, message, caused_by, retryable, details)| PluginError {
                code: ErrorCode::from(&*code),
                message,
                caused_by,
                retryable,
                details,
            },
        )
}

fn plugin_message() -> impl Strategy<Value = PluginMessage> {
    let level = prop_oneof![
        Just(Level::Trace),
        Just(Level::Debug),
        Just(Level::Info),
        Just(Level::Warn),
        Just(Level::Error),
    ];
    prop_oneof![
        plugin_hello().prop_map(PluginMessage::Hello),
        (id(), payload(true)).prop_map(|(id, body)| PluginMessage::Data(Data { id, body })),
        (
            id(),
            option::of(any_text()),
            option::of(any_text()),
            option::of(any::<(u64, u64)>())
        )
            .prop_map(
                |(id, state, message, progress)| PluginMessage::Status(Status {
                    id,
                    state,
                    message,
                    progress
                })
            ),
        (id(), level, any_text()).prop_map(|(id, level, message)| PluginMessage::Log(Log {
            id,
            level,
            message
        })),
        (id(), any::<i64>(), some_json())
            .prop_map(|(id, code, result)| PluginMessage::Done(Done { id, code, result })),
        (id(), plugin_error()).prop_map(|(id, error)| PluginMessage::Error(JobError { id, error })),
        (any::<bool>(), option::of(any_text()))
            .prop_map(|(ready, reason)| PluginMessage::Ready(Ready { ready, reason })),
        any::<u64>().prop_map(|nonce| PluginMessage::Pong(Ping { nonce })),
    ]
}

fn host_message() -> impl Strategy<Value = HostMessage> {
    let hello = (
        any::<u32>(),
        any_text(),
        any_text(),
        any_text(),
        collection::vec(any_text(), 0..4),
        any::<(usize, usize)>(),
        some_json(),
    )
        .prop_map(
            |(protocol, host, version, node, features, (max_line, inline), config)| {
                HostMessage::Hello(HostHello {
                    protocol,
                    host,
                    version,
                    node,
                    features,
                    limits: Limits { max_line, inline },
                    config,
                })
            },
        );
    let execute = (
        id(),
        any_text(),
        any_text(),
        option::of(payload(false)),
        option::of(any::<u64>()),
        any::<u32>(),
    )
        .prop_map(|(id, action, sender, payload, timeout_ms, attempt)| {
            HostMessage::Execute(Execute {
                id,
                action,
                sender,
                payload,
                timeout_ms,
                attempt,
            })
        });
    prop_oneof![
        hello,
        execute,
        (id(), any_text(), any::<u64>()).prop_map(|(id, reason, grace_ms)| HostMessage::Cancel(
            Cancel {
                id,
                reason: CancelReason::from(&*reason),
                grace_ms
            }
        )),
        any::<u64>().prop_map(|nonce| HostMessage::Ping(Ping { nonce })),
        any::<u64>().prop_map(|grace_ms| HostMessage::Shutdown(Shutdown { grace_ms })),
    ]
}

/// One line, and nothing in it that would end it early.
fn is_line(line: &[u8]) -> bool {
    line.ends_with(b"\n")
        && !line[..line.len() - 1]
            .iter()
            .any(|b| matches!(b, b'\n' | b'\r'))
}

proptest! {
    #[test]
    fn plugin_messages_read_back(message in plugin_message()) {
        let line = message.to_line().unwrap();
        prop_assert!(is_line(&line));
        let mut lines = line.clone();
        message.put_line(&mut lines).unwrap();
        prop_assert_eq!(&lines[line.len()..], &line[..]);
        prop_assert_eq!(PluginMessage::decode(&line).unwrap(), message);
    }

    #[test]
    fn what_is_read_at_once_is_read_the_same_as_any_json(
        id in id(),
        action in any_text(),
        sender in any_text(),
        bytes: Vec<u8>,
        timeout_ms in option::of(any::<u64>()),
        attempt: u32,
        edit in option::of((any::<prop::sample::Index>(), "[ -~\n]{0,2}")),
    ) {
        let execute = ExecuteRef {
            id: &id,
            action: &action,
            sender: &sender,
            payload: Some(PayloadRef::Bytes(&bytes)),
            timeout_ms,
            attempt,
        };
        let mut line = Vec::new();
        execute.put_line(&mut line).unwrap();
        let mut line = String::from_utf8(line).unwrap();
        if let Some((at, text)) = &edit {
            let at = at.index(line.len());
            if line.is_char_boundary(at) && line.is_char_boundary(at + 1) {
                line.replace_range(at..=at, text);
            }
        }
        match payload::plain_execute(&line) {
            Some(read) => prop_assert_eq!(read, serde_json::from_str(&line).unwrap()),
            None => {
                let plain = |text: &str| !text.contains(|c| c < ' ' || c == '"' || c == '\\');
                prop_assert!(edit.is_some() || !plain(&action) || !plain(&sender));
            }
        }
    }

    #[test]
    fn host_messages_read_back(message in host_message()) {
        let line = message.to_line().unwrap();
        prop_assert!(is_line(&line));
        prop_assert_eq!(HostMessage::decode(&line).unwrap(), message);
    }

    #[test]
    fn no_bytes_are_a_crash(bytes in collection::vec(any::<u8>(), 0..200)) {
        let _ = PluginMessage::decode(&bytes);
        let _ = HostMessage::decode(&bytes);
        let _ = excerpt(&bytes);
    }

    /// The order of the fields does not matter, nor do fields from a newer protocol.
    #[test]
    fn order_and_unknown_fields_do_not_matter(message in plugin_message(), extra in json()) {
        let line = message.to_line().unwrap();
        let value: BTreeMap<String, serde_json::Value> = serde_json::from_slice(&line).unwrap();
        let mut shuffled = format!("{{\"zz_new\":{},", extra.get());
        for (key, value) in value.iter().rev() {
            let key = serde_json::to_string(key).unwrap();
            shuffled.push_str(&format!("{key}: {},", serde_json::to_string(value).unwrap()));
        }
        shuffled.pop();
        shuffled.push('}');
        prop_assert_eq!(PluginMessage::decode(shuffled.as_bytes()).unwrap(), message);
    }

    #[test]
    fn payload_json_passes_verbatim(value in json()) {
        let pretty: serde_json::Value = value.to().unwrap();
        let pretty = serde_json::to_string_pretty(&pretty).unwrap().replace('\n', "\r\n");
        let payload = Json::parse(pretty.as_bytes()).unwrap();
        prop_assert_eq!(payload.get(), pretty.replace(['\r', '\n'], " "));
    }
}

#[test]
fn unknown_types_are_kept_apart() {
    let message = PluginMessage::decode(br#"{"type":"ack","n":1}"#).unwrap();
    assert_eq!(message, PluginMessage::Unknown { kind: "ack".into() });
    assert!(matches!(message.to_line(), Err(EncodeError::Json(_))));
    let message = HostMessage::decode(br#"{"n":[1],"type":"d\u0061nce"}"#).unwrap();
    assert_eq!(
        message,
        HostMessage::Unknown {
            kind: "dance".into()
        }
    );
    let message = HostMessage::decode(br#"{"type":"\u0070ing","nonce":3}"#).unwrap();
    assert_eq!(message, HostMessage::Ping(Ping { nonce: 3 }));
}

#[test]
fn broken_lines_are_refused() {
    for bad in [
        "",
        "\n",
        "hello",
        "[]",
        "{}",
        r#"{"type":1}"#,
        r#"{"type":"ack""#,
        r#"{"type":"ack"} {"type":"ack"}"#,
        r#"{"type":"done","id":"a"}"#,
        r#"{"type":"done","id":"a","code":"0"}"#,
        r#"{"type":"done","code":0}"#,
        r#"{"type":"done","id":"a","id":"b","code":0}"#,
        r#"{"type":"done","id":"a b","code":0}"#,
        r#"{"type":"done","id":"","code":0}"#,
        r#"{"type":"done","id":"a","code":0,"result":NaN}"#,
        r#"{"type":"data","id":"a"}"#,
        r#"{"type":"data","id":"a","data":1,"text":"x"}"#,
        r#"{"type":"data","id":"a","base64":"!"}"#,
        r#"{"type":"data","id":"a","data":}"#,
    ] {
        let result = PluginMessage::decode(bad.as_bytes());
        assert!(result.is_err(), "{bad}: {result:?}");
    }
    assert!(matches!(
        PluginMessage::decode(b"{\"type\":\"\xff\"}"),
        Err(DecodeError::NotUtf8(_))
    ));
    assert!(matches!(
        HostMessage::decode(br#"{"kind":"ping"}"#),
        Err(DecodeError::NoType)
    ));
}

#[test]
fn null_is_a_payload() {
    let message = PluginMessage::decode(br#"{"type":"data","id":"a","data":null}"#).unwrap();
    let PluginMessage::Data(data) = message else {
        panic!("{message:?}")
    };
    assert_eq!(data.body, Payload::Json(Json::parse(b"null").unwrap()));
    let message =
        HostMessage::decode(br#"{"type":"execute","id":"a","action":"x","payload":null}"#).unwrap();
    let HostMessage::Execute(job) = message else {
        panic!("{message:?}")
    };
    assert_eq!(
        job.payload,
        Some(Payload::Json(Json::parse(b"null").unwrap()))
    );
    assert_eq!(job.attempt, 1);
}

#[test]
fn lines_have_a_limit() {
    let frame = r#"{"type":"data","id":"a","text":""}"#.len() + 1;
    let fits = PluginMessage::Data(Data {
        id: "a".into(),
        body: Payload::Text("x".repeat(MAX_LINE - frame)),
    });
    let line = fits.to_line().unwrap();
    assert_eq!(line.len(), MAX_LINE);
    assert_eq!(PluginMessage::decode(&line).unwrap(), fits);
    let over = PluginMessage::Data(Data {
        id: "a".into(),
        body: Payload::Text("x".repeat(MAX_LINE - frame + 1)),
    });
    assert!(
        matches!(over.to_line(), Err(EncodeError::TooLong { len, limit: MAX_LINE }) if len == MAX_LINE + 1)
    );
    assert!(matches!(
        PluginMessage::decode(&vec![b' '; MAX_LINE + 1]),
        Err(DecodeError::TooLong {
            limit: MAX_LINE,
            ..
        })
    ));
    let hello = format!(r#"{{"type":"hello","about":"{}"}}"#, "x".repeat(MAX_HELLO));
    assert!(matches!(
        PluginMessage::decode(hello.as_bytes()),
        Err(DecodeError::TooLong {
            limit: MAX_HELLO,
            ..
        })
    ));
}

#[test]
fn a_short_hello_is_enough() {
    let line = br#"{"type":"hello","protocol":1,"name":"uptime","version":"1.0.0","actions":{"execute":{"payload":"none","output":"text"}}}"#;
    let PluginMessage::Hello(hello) = PluginMessage::decode(line).unwrap() else {
        panic!("not a hello")
    };
    assert!(hello.ready);
    assert_eq!(hello.mode, Mode::Job);
    assert_eq!(hello.actions["execute"].payload, PayloadKind::None);
    assert_eq!(hello.actions["execute"].output, OutputKind::Text);
    assert_eq!(hello.validate("uptime"), Ok(()));
    assert_eq!(hello.validate("uptime.sh"), Ok(()));
}

#[test]
fn wrong_hellos_are_named() {
    let line =
        br#"{"type":"hello","protocol":1,"name":"a","version":"1","actions":{"execute":{}}}"#;
    let PluginMessage::Hello(good) = PluginMessage::decode(line).unwrap() else {
        panic!("not a hello")
    };
    assert_eq!(good.validate("a"), Ok(()));
    let problem = |change: &dyn Fn(&mut PluginHello)| {
        let mut hello = good.clone();
        change(&mut hello);
        hello.validate("a").unwrap_err()
    };
    assert_eq!(problem(&|h| h.protocol = 2), HelloProblem::Protocol(2));
    assert_eq!(
        problem(&|h| h.name = "b".into()),
        HelloProblem::Name {
            hello: "b".into(),
            file: "a".into()
        }
    );
    assert_eq!(
        good.validate("a.bak"),
        Err(HelloProblem::FileName("a.bak".into()))
    );
    assert_eq!(problem(&|h| h.version.clear()), HelloProblem::Version);
    assert_eq!(
        problem(&|h| h.about = Some("x".repeat(MAX_TEXT + 1))),
        HelloProblem::TooLong { field: "about" }
    );
    assert_eq!(problem(&|h| h.actions.clear()), HelloProblem::Actions(0));
    assert_eq!(
        problem(&|h| {
            h.actions.insert("No".into(), ActionDescriptor::default());
        }),
        HelloProblem::ActionName("No".into())
    );
    assert_eq!(problem(&|h| h.max_jobs = Some(0)), HelloProblem::MaxJobs(0));
    assert_eq!(problem(&|h| h.ready = false), HelloProblem::NoReason);
    assert_eq!(
        problem(&|h| {
            h.mode = Mode::Serve;
            h.actions.get_mut("execute").unwrap().output = OutputKind::Text;
        }),
        HelloProblem::OutputNeedsJobMode("execute".into())
    );
}

#[test]
fn contents_never_show_in_debug() {
    let line = br#"{"type":"execute","id":"a","action":"x","payload":{"password":"hunter2"}}"#;
    let message = HostMessage::decode(line).unwrap();
    assert!(!format!("{message:?}").contains("hunter2"));
    let data = PluginMessage::Data(Data {
        id: "a".into(),
        body: Payload::Text("hunter2".into()),
    });
    assert!(!format!("{data:?}").contains("hunter2"));
}

#[test]
fn excerpts_are_fit_for_a_log() {
    let line = [b"a\x1b[31m\n".as_slice(), &[b'x'; 500]].concat();
    let text = excerpt(&line);
    assert!(text.starts_with("a\u{fffd}[31m\u{fffd}x"));
    assert_eq!(text.chars().count(), EXCERPT);
}

#[test]
fn a_borrowed_execute_is_the_same_line() {
    let file = FileRef {
        size: Some(u64::MAX),
        sha256: Some("00ff".into()),
        ..FileRef::new("a \"b\"")
    };
    let payloads = [
        (None, None),
        (
            Some(Payload::Json(Json::parse(b"{\"a\": [1, null]}").unwrap())),
            Some(PayloadRef::Json(b"{\"a\": [1, null]}")),
        ),
        (
            Some(Payload::Text("a\n\"\u{1}ä\u{7f}".into())),
            Some(PayloadRef::Text("a\n\"\u{1}ä\u{7f}")),
        ),
        (
            Some(Payload::Bytes(b"12345".to_vec())),
            Some(PayloadRef::Bytes(b"12345")),
        ),
        (
            Some(Payload::Bytes(Vec::new())),
            Some(PayloadRef::Bytes(b"")),
        ),
        (
            Some(Payload::File(file.clone())),
            Some(PayloadRef::File(&file)),
        ),
    ];
    let mut lines = b"before\n".to_vec();
    let mut expected = lines.clone();
    for (number, (owned, payload)) in payloads.into_iter().enumerate() {
        let timeout_ms = [None, Some(0), Some(1234567890)][number % 3];
        let message = HostMessage::Execute(Execute {
            id: "0a.b".into(),
            action: "echo".into(),
            sender: "node-a:1@x".into(),
            payload: owned,
            timeout_ms,
            attempt: 10,
        });
        expected.extend(message.to_line().unwrap());
        let borrowed = ExecuteRef {
            id: "0a.b",
            action: "echo",
            sender: "node-a:1@x",
            payload,
            timeout_ms,
            attempt: 10,
        };
        borrowed.put_line(&mut lines).unwrap();
        assert_eq!(
            String::from_utf8_lossy(&lines),
            String::from_utf8_lossy(&expected)
        );
    }
    let long = vec![b'x'; MAX_LINE];
    let too_long = ExecuteRef {
        id: "a",
        action: "b",
        sender: "c",
        payload: Some(PayloadRef::Bytes(&long)),
        timeout_ms: None,
        attempt: 1,
    };
    assert!(matches!(
        too_long.put_line(&mut lines),
        Err(EncodeError::TooLong { .. })
    ));
    assert_eq!(lines, expected);
}
