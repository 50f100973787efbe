//! The plugins of a chaotic worker: every sort of good and bad behaviour that a plugin can have.
//!
//! Owns their scripts, what each answers when nothing disturbs it, and the file in which each
//! notes a run before it does anything else.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;

use crate::power::Dice;
use crate::{Daemon, Mesh, Node, wait_for};

/// Responses of `flood`.
const FLOOD: usize = 10_000;
/// What a line of a plugin may have, with its newline.
const LINE_MAX: usize = 1 << 20;
/// Bytes of the large responses of `serve`.
pub(super) const LARGE_RESPONSE: usize = 300_000;

/// The beginning of the plugins in shell.
const SHELL: &str = r#"#!/bin/sh
echo '{"type":"hello","protocol":1,"name":"NAME","version":"1","max_jobs":JOBS,"features":["file"],"actions":{"add":{"payload":"PAYLOAD","output":"OUTPUT","idempotent":AGAIN}}}'
if [ -n "$RECEPTOR_JOB_ID" ]; then printf '%s\n' "NAME $RECEPTOR_JOB_ID" >>'RUNS'; fi
"#;

/// What those do that read what they are told.
const READ: &str = "read -r hello || exit 0\nread -r job || exit 0\n";

/// One that stays and answers with several responses.
const SERVE: &str = r#"#!/usr/bin/env python3
import base64, json, os, sys
def say(**m): print(json.dumps(m), flush=True)
say(type="hello", protocol=1, name="serve", version="1", mode="serve", max_jobs=4, features=["file"],
    actions={"add": {"payload": "text", "output": "json"}})
for line in sys.stdin:
    m = json.loads(line)
    if m["type"] != "execute": continue
    with open("RUNS", "a") as f: f.write("serve " + m["id"] + "\n")
    if "payload_file" in m:
        with open(m["payload_file"]) as f: text = f.read()
    else:
        text = m.get("payload_text", "")
    words = text.split(";")
    for i in range(int(words[1])):
        say(type="data", id=m["id"], data={"i": i})
    if words[2] == "large":
        say(type="data", id=m["id"], text="y" * LARGE)
    say(type="done", id=m["id"], code=0, result={"length": len(text)})
"#;

/// A sort of plugin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Plugin {
    /// Answers with the checksum of its payload.
    Once,
    /// Takes its time, two at once and no more.
    Slow,
    /// May be run again.
    Again,
    /// Dies after its first response.
    Crash,
    /// Stays and serves.
    Serve,
    /// Ends before it reads anything, with a code of its own.
    Dies,
    /// Never reads what it is told, and is done well.
    Deaf,
    /// Ends without the end of its last line.
    Torn,
    /// Ends without a word although it speaks JSON.
    Mute,
    /// Writes the longest line that there may be.
    Wide,
    /// Writes a longer one.
    Over,
    /// Writes thousands of lines.
    Flood,
}

/// Each with how often it is asked, in hundredths.
const ALL: [(Plugin, u64); 12] = [
    (Plugin::Once, 22),
    (Plugin::Slow, 14),
    (Plugin::Again, 12),
    (Plugin::Crash, 8),
    (Plugin::Serve, 24),
    (Plugin::Dies, 4),
    (Plugin::Deaf, 5),
    (Plugin::Torn, 4),
    (Plugin::Mute, 3),
    (Plugin::Wide, 2),
    (Plugin::Over, 1),
    (Plugin::Flood, 1),
];

/// What a plugin answers when nothing disturbs it.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Ending {
    /// It is done, with this code of its own.
    Done(i64),
    /// It failed, with this error.
    Failed(&'static str),
}

impl Plugin {
    pub(super) fn any(dice: &mut Dice) -> Self {
        let mut left = dice.throw(ALL.iter().map(|(_, share)| share).sum());
        for (plugin, share) in ALL {
            if left < share {
                return plugin;
            }
            left -= share;
        }
        Self::Once
    }

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Once => "once",
            Self::Slow => "slow",
            Self::Again => "again",
            Self::Crash => "crash",
            Self::Serve => "serve",
            Self::Dies => "dies",
            Self::Deaf => "deaf",
            Self::Torn => "torn",
            Self::Mute => "mute",
            Self::Wide => "wide",
            Self::Over => "over",
            Self::Flood => "flood",
        }
    }

    fn script(self, runs: &str, slots: &str) -> String {
        let read = |end: &str| format!("{READ}{end}");
        let end = match self {
            Self::Serve => {
                return SERVE
                    .replace("LARGE", &LARGE_RESPONSE.to_string())
                    .replace("RUNS", runs);
            }
            Self::Once => read("cksum <\"$RECEPTOR_PAYLOAD_FILE\"\n"),
            Self::Slow => {
                let mut end = read("");
                let _ = write!(
                    end,
                    "exec 8>'{slots}1' 9>'{slots}2'\n\
                     flock -n 8 || flock -n 9 || echo too-many >>'{runs}'\n\
                     sleep 0.03\necho done\n"
                );
                end
            }
            Self::Again => read("echo one\nsleep 0.01\necho two\n"),
            Self::Crash => read("echo one\nkill -9 $$\n"),
            Self::Dies => "exit 3\n".to_owned(),
            Self::Deaf => "echo deaf\n".to_owned(),
            Self::Torn => read("echo whole\nprintf torn\n"),
            Self::Mute => read(""),
            Self::Wide => read(&format!(
                "head -c {} /dev/zero | tr '\\0' w\necho\n",
                LINE_MAX - 1
            )),
            Self::Over => read(&format!(
                "head -c {} /dev/zero | tr '\\0' w\necho\n",
                LINE_MAX + 1
            )),
            Self::Flood => read(&format!("seq 1 {FLOOD}\n")),
        };
        let jobs = if self == Self::Slow { "2" } else { "4" };
        let again = if self == Self::Again { "true" } else { "false" };
        let payload = if self == Self::Deaf { "text" } else { "file" };
        let output = if self == Self::Mute { "json" } else { "text" };
        let text = SHELL.replace("NAME", self.name()).replace("JOBS", jobs);
        let text = text
            .replace("AGAIN", again)
            .replace("PAYLOAD\"", &format!("{payload}\""));
        text.replace("OUTPUT", output).replace("RUNS", runs) + &end
    }

    /// How it ends when nothing disturbs it.
    pub(super) fn ending(self) -> Ending {
        match self {
            Self::Once
            | Self::Slow
            | Self::Again
            | Self::Serve
            | Self::Deaf
            | Self::Torn
            | Self::Wide
            | Self::Flood => Ending::Done(0),
            Self::Dies => Ending::Done(3),
            Self::Crash | Self::Mute => Ending::Failed("plugin-exit"),
            Self::Over => Ending::Failed("protocol-error"),
        }
    }

    /// The lines of text that it answers with when nothing disturbs it; those of [`Self::Serve`]
    /// are not text.
    pub(super) fn lines(self, payload: impl FnOnce() -> Vec<u8>) -> Vec<String> {
        let one = |text: &str| vec![text.to_owned()];
        match self {
            Self::Once => {
                let payload = payload();
                vec![format!("{} {}", cksum(&payload), payload.len())]
            }
            Self::Slow => one("done"),
            Self::Again => ["one", "two"].map(str::to_owned).to_vec(),
            Self::Crash => one("one"),
            Self::Deaf => one("deaf"),
            Self::Torn => ["whole", "torn"].map(str::to_owned).to_vec(),
            Self::Wide => vec!["w".repeat(LINE_MAX - 1)],
            Self::Flood => (1..=FLOOD).map(|number| number.to_string()).collect(),
            Self::Serve | Self::Dies | Self::Mute | Self::Over => Vec::new(),
        }
    }
}

/// The checksum that `cksum` of POSIX prints.
fn cksum(bytes: &[u8]) -> u32 {
    // Bit by bit, eight at once.
    let table: Vec<u32> = (0..256_u32)
        .map(|index| {
            (0..8).fold(index << 24, |value, _| {
                let carry = value & 0x8000_0000 != 0;
                (value << 1) ^ if carry { 0x04c1_1db7 } else { 0 }
            })
        })
        .collect();
    let step = |sum: u32, byte: u8| {
        let [first, ..] = sum.to_be_bytes();
        (sum << 8) ^ table[usize::from(first ^ byte)]
    };
    let mut sum = bytes.iter().copied().fold(0, step);
    let mut length = bytes.len();
    while length > 0 {
        let [last, ..] = length.to_le_bytes();
        sum = step(sum, last);
        length >>= 8;
    }
    !sum
}

/// Where a chaotic worker notes its runs.
#[derive(Debug, Clone)]
pub struct Runs(PathBuf);

impl Runs {
    /// Gives a node that is to be started the plugins.
    ///
    /// # Panics
    ///
    /// When they cannot be written.
    #[must_use]
    pub fn install(mesh: &Mesh, node: Node, name: &str) -> (Self, Node) {
        let dir = mesh.dir().join(format!("plugins-of-{name}"));
        fs::create_dir(&dir).expect("a directory for the plugins");
        let runs = mesh.dir().join(format!("runs-of-{name}"));
        fs::write(&runs, "").expect("a file for the runs");
        let path = runs.to_str().expect("a path of letters");
        let slots = mesh.dir().join(format!("slots-of-{name}-"));
        let slots = slots.to_str().expect("a path of letters");
        for (plugin, _) in ALL {
            let file = dir.join(plugin.name());
            fs::write(&file, plugin.script(path, slots)).expect("a plugin");
            fs::set_permissions(&file, fs::Permissions::from_mode(0o755)).expect("a plugin");
        }
        let node = node
            .config("[plugins]\nallow-unsafe = true")
            .arg("--plugins-dir")
            .arg(dir.to_str().expect("a path of letters"));
        (Self(runs), node)
    }

    /// Adds where each message was run, under its plugin and id.
    pub(super) fn add_to(&self, all: &mut BTreeMap<String, Vec<PathBuf>>) {
        for line in fs::read_to_string(&self.0).expect("the runs").lines() {
            assert_ne!(line, "too-many", "more works at once than the plugin takes");
            all.entry(line.to_owned()).or_default().push(self.0.clone());
        }
    }
}

/// Waits until a node knows all plugins of these workers.
pub fn wait_plugins(at: &Daemon, workers: &[&str]) {
    wait_for(&format!("the plugins at {}", at.name()), || {
        let reply = at.control().json("capabilities");
        let nodes = reply["nodes"].as_array()?;
        let known = |worker: &&str| {
            nodes.iter().any(|node| {
                let plugins = node["plugins"].as_array();
                let known = |(plugin, _): &(Plugin, u64)| {
                    let name = plugin.name();
                    plugins.is_some_and(|all| all.iter().any(|plugin| plugin["plugin"] == name))
                };
                node["node"] == *worker && node["reachable"] == true && ALL.iter().all(known)
            })
        };
        workers.iter().all(known).then_some(())
    });
}

#[cfg(test)]
mod tests {
    use super::cksum;

    #[test]
    fn the_checksum_is_that_of_posix() {
        assert_eq!(cksum(b""), 4_294_967_295);
        assert_eq!(cksum(b"123456789"), 930_766_865);
    }
}
