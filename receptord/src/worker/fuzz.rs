//! What holds for every byte that a plugin writes, and for every instruction to the helper.

use std::path::Path;

use receptor_proto::plugin::{HostMessage, MAX_LINE, PluginMessage, excerpt};

use super::describe::{Executable, read};
use super::exec::Instruction;
use super::holder;
use super::lines::Lines;

/// The longest line here: short, so that small inputs reach it.
const LINE: usize = 64;

/// Lines come out as they went in, however they are cut, and none is longer than its limit; what
/// is a message is one again when it is written out.
///
/// # Panics
///
/// When that does not hold.
pub fn plugin_output(bytes: &[u8]) {
    let Some((&cut, output)) = bytes.split_first() else {
        return;
    };
    let whole = lines(output, output.len().max(1));
    assert_eq!(lines(output, usize::from(cut).max(1)), whole);
    for line in output.split(|byte| *byte == b'\n') {
        message(line);
    }
}

/// The lines, or those before one that is too long.
fn lines(output: &[u8], cut: usize) -> (Vec<Vec<u8>>, bool) {
    let (mut lines, mut found) = (Lines::default(), Vec::new());
    for part in output.chunks(cut) {
        lines.buffer().extend_from_slice(part);
        loop {
            match lines.next(LINE) {
                Ok(Some(line)) => {
                    assert!(line.len() <= LINE && line.ends_with(b"\n"));
                    found.push(line.to_vec());
                }
                Ok(None) => break,
                Err(long) => {
                    assert!(long.start.len() <= LINE);
                    return (found, true);
                }
            }
        }
    }
    (found, false)
}

fn message(line: &[u8]) {
    // Shown in logs: short, and without what a terminal would act on.
    let shown = excerpt(line);
    assert!(!shown.contains(char::is_control), "{shown:?}");
    if let Ok(message) = PluginMessage::decode(line)
        && !matches!(message, PluginMessage::Unknown { .. })
        && let Ok(again) = message.to_line()
    {
        assert!(again.len() <= MAX_LINE);
        let again = PluginMessage::decode(&again).expect("what was written reads in");
        assert_eq!(again, message);
    }
    if let Ok(message) = HostMessage::decode(line)
        && !matches!(message, HostMessage::Unknown { .. })
        && let Ok(again) = message.to_line()
    {
        let again = HostMessage::decode(&again).expect("what was written reads in");
        assert_eq!(again, message);
    }
    let plugin = Executable {
        name: "echo".to_owned(),
        file_name: "echo.sh".to_owned(),
        path: Path::new("/plugins/echo.sh").to_owned(),
    };
    if let Ok(hello) = read(line, &plugin) {
        assert_eq!(hello.name, plugin.name);
    }
}

/// An instruction that is understood says the same when it is written again.
///
/// # Panics
///
/// When that does not hold.
pub fn instruction(bytes: &[u8]) {
    if let Ok(instruction) = Instruction::decode(bytes) {
        let again = instruction.encode();
        assert_eq!(Instruction::decode(&again[4..]), Ok(instruction));
    }
}

/// A packet between daemon and holder that is understood says the same when it is written again.
///
/// # Panics
///
/// When that does not hold.
pub fn holder_packet(bytes: &[u8]) {
    holder::fuzz_packet(bytes);
}
