//! What holds for every line of a control client.

use receptor_proto::ErrorCode;
use receptor_proto::control::{ResultsCommand, SendCommand, TAG_MAX};

use super::command::{Form, from_json, parse, request};

/// A line is a command or an error, a tag fits the line that it comes back in, and what is said to
/// be a good send has a payload of the size it says.
///
/// # Panics
///
/// When that does not hold.
pub fn command_line(line: &[u8]) {
    let Ok(command) = parse(line) else {
        return;
    };
    if let Some(tag) = &command.tag {
        let text = tag.get();
        assert!(text.len() <= TAG_MAX && !text.contains(['\n', '\r']));
        assert!(serde_json::from_str::<serde_json::Value>(text).is_ok());
    }
    if let Form::Json(line) = command.form {
        if let Ok(send) = from_json::<SendCommand>(line) {
            let again = serde_json::to_string(&send).expect("a command has a JSON form");
            let again: SendCommand = from_json(&again).expect("which reads in again");
            // A refusal must not depend on how the line was written.
            assert_eq!(send.check().is_ok(), again.check().is_ok());
        }
        let _ = from_json::<ResultsCommand>(line);
    }
    if let Err(error) = request(&command.name, command.form) {
        let known = [ErrorCode::InvalidRequest, ErrorCode::UnknownCommand];
        assert!(known.contains(&error.code), "{error:?}");
    }
}
