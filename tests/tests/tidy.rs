//! Keeps the words of ARCHITECTURE.md and the layout true: which crate may depend on which,
//! how modules open, what must not stand in the tree, and that documents speak only of files and
//! commands that are there.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("tests/ lies in the root")
        .to_owned()
}

/// Normal (not dev) dependencies of every workspace package.
fn dependencies() -> BTreeMap<String, BTreeSet<String>> {
    let output = Command::new(env!("CARGO"))
        .args([
            "metadata",
            "--format-version=1",
            "--no-deps",
            "--offline",
            "--manifest-path",
        ])
        .arg(root().join("Cargo.toml"))
        .output()
        .expect("cargo runs");
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let metadata: Value = serde_json::from_slice(&output.stdout).expect("cargo prints JSON");
    let text = |value: &Value| value.as_str().expect("a string").to_owned();
    metadata["packages"]
        .as_array()
        .expect("packages")
        .iter()
        .map(|package| {
            let dependencies = package["dependencies"].as_array().expect("dependencies");
            let normal = dependencies.iter().filter(|d| d["kind"].is_null());
            (
                text(&package["name"]),
                normal.map(|d| text(&d["name"])).collect(),
            )
        })
        .collect()
}

/// Every file that git knows, or would take in, below the root.
fn files() -> Vec<PathBuf> {
    let output = Command::new("git")
        .args(["ls-files", "--cached", "--others", "--exclude-standard"])
        .current_dir(root())
        .output()
        .expect("git runs");
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let text = String::from_utf8(output.stdout).expect("file names are UTF-8");
    text.lines()
        .map(|line| root().join(line))
        .filter(|path| path.is_file())
        .collect()
}

/// Packages of this workspace, tokio and the like: the edges that ARCHITECTURE.md speaks of.
const WATCHED: [&str; 10] = [
    "receptor-identity",
    "receptor-mesh",
    "receptor-plugin",
    "receptor-proto",
    "receptor-sim",
    "receptor-spool",
    "receptorctl",
    "receptord",
    "tokio",
    "socket2",
];

#[test]
fn crates_depend_only_on_what_they_may() {
    let may: BTreeMap<&str, &[&str]> = BTreeMap::from([
        ("receptor-proto", &[][..]),
        ("receptor-identity", &["receptor-proto"]),
        // Preloaded into daemons: nothing of theirs.
        ("receptor-power", &[]),
        ("receptor-mesh", &["receptor-proto"]),
        (
            "receptor-fuzz",
            &[
                "receptor-mesh",
                "receptor-proto",
                "receptor-spool",
                "receptord",
            ],
        ),
        ("receptor-pages", &[]),
        ("receptor-plugin", &["receptor-proto"]),
        ("receptor-plugin-echo", &["receptor-plugin"]),
        ("receptor-plugin-runner", &["receptor-plugin"]),
        (
            "receptor-sim",
            &["receptor-mesh", "receptor-proto", "receptor-spool"],
        ),
        ("receptor-spool", &["receptor-proto"]),
        (
            "receptorctl",
            &["receptor-identity", "receptor-proto", "receptor-spool"],
        ),
        (
            "receptord",
            &[
                "receptor-identity",
                "receptor-mesh",
                "receptor-proto",
                "receptor-spool",
                "socket2",
                "tokio",
            ],
        ),
        ("receptor-tests", &["receptor-identity", "receptor-proto"]),
    ]);
    for (package, dependencies) in dependencies() {
        let Some(may) = may.get(package.as_str()) else {
            panic!("{package} is new: say here what it may depend on");
        };
        for dependency in dependencies {
            let watched = WATCHED.contains(&dependency.as_str());
            let allowed = !watched || may.contains(&dependency.as_str());
            assert!(allowed, "{package} must not depend on {dependency}");
        }
    }
}

#[test]
fn the_crates_without_std_use_crates_without_std() {
    let may: BTreeMap<&str, &[&str]> = BTreeMap::from([
        (
            "receptor-proto",
            &[
                "base64-simd",
                "bytes",
                "memchr",
                "serde",
                "serde_json",
                "thiserror",
                "uuid",
            ][..],
        ),
        (
            "receptor-mesh",
            &[
                "bytes",
                "fastrand",
                "foldhash",
                "hashbrown",
                "receptor-proto",
                "thiserror",
                "tracing",
            ],
        ),
    ]);
    let all = dependencies();
    for (package, may) in may {
        let more: Vec<_> = all[package]
            .iter()
            .filter(|d| !may.contains(&d.as_str()))
            .collect();
        assert!(
            more.is_empty(),
            "{package}: check that {more:?} needs no std, then allow it here"
        );
    }
}

#[test]
fn every_module_says_what_it_owns() {
    for file in files() {
        let path = file.to_string_lossy();
        if !path.ends_with(".rs") {
            continue;
        }
        let text = std::fs::read_to_string(&file).expect("sources are UTF-8");
        assert!(
            text.starts_with("//!"),
            "{path} must open with a //! paragraph"
        );
    }
}

#[test]
fn nothing_is_left_undone_in_silence() {
    // Split so that this file does not find itself.
    let forbidden = [
        concat!("todo", "!("),
        concat!("unimplemented", "!("),
        concat!("#[", "ignore"),
        concat!("FIX", "ME"),
        concat!("TO", "DO"),
        concat!("#[", "allow("),
        concat!("#![", "allow("),
    ];
    for file in files() {
        let path = file.to_string_lossy();
        if !(path.ends_with(".rs") || path.ends_with(".py") || path.ends_with(".sh")) {
            continue;
        }
        let text = std::fs::read_to_string(&file).expect("sources are UTF-8");
        for word in forbidden {
            assert!(!text.contains(word), "{path} contains {word}");
        }
    }
}

#[test]
fn unsafe_code_is_where_it_is_said_to_be() {
    let may = BTreeMap::from([
        (
            "receptord/src/raw.rs",
            "descriptors that the service manager passes, groups of a socket's peer",
        ),
        (
            "tests/power/src/lib.rs",
            "takes the place of functions of the C library",
        ),
        (
            "receptord/mesh/tests/backlog.rs",
            "an allocator that counts",
        ),
    ]);
    let is_code = |line: &str| {
        let code = line.split("//").next().unwrap_or_default();
        code.match_indices("unsafe").any(|(at, word)| {
            let before = code[..at].chars().next_back();
            let starts = before.is_none_or(|c| !(c.is_alphanumeric() || "_-".contains(c)));
            // What follows where it is the language's word: a block, an item, an attribute's list.
            let follows = ["{", "fn ", "impl ", "extern ", "trait ", "("];
            let after = code[at + word.len()..].trim_start();
            starts && (after.is_empty() || follows.iter().any(|word| after.starts_with(word)))
        })
    };
    let mut found = BTreeSet::new();
    for file in files() {
        if file.extension().is_none_or(|name| name != "rs") {
            continue;
        }
        let text = std::fs::read_to_string(&file).expect("sources are UTF-8");
        let path = file.strip_prefix(root()).expect("it is below the root");
        let path = path.to_string_lossy().into_owned();
        if path != "tests/tests/tidy.rs" && text.lines().any(is_code) {
            assert!(may.contains_key(&*path), "{path} has code that is not safe");
            found.insert(path);
        }
    }
    assert_eq!(found.len(), may.len(), "some have none any more: {found:?}");
}

#[test]
fn the_core_knows_no_std() {
    let text = std::fs::read_to_string(root().join("receptord/mesh/src/lib.rs")).expect("exists");
    assert!(text.contains("#![no_std]"));
    let text = std::fs::read_to_string(root().join("receptord/proto/src/lib.rs")).expect("exists");
    assert!(text.contains("#![no_std]"));
}

/// Documents and shipped configuration, with their text.
fn documents() -> Vec<(PathBuf, String)> {
    let shown = |path: &PathBuf| {
        let name = path.extension().and_then(|name| name.to_str());
        matches!(name, Some("md" | "toml")) && !path.ends_with("Cargo.toml")
    };
    let files = files().into_iter().filter(shown);
    let read = |path: PathBuf| {
        let text = std::fs::read_to_string(&path).expect("documents are UTF-8");
        (path, text)
    };
    files.map(read).collect()
}

#[test]
fn documents_link_only_to_files_that_are_there() {
    let mut links = 0;
    for (path, text) in documents() {
        for target in text.split("](").skip(1) {
            let target = target.split(')').next().unwrap_or_default();
            if target.contains("://") {
                continue;
            }
            links += 1;
            let linked = path.with_file_name(target);
            assert!(linked.exists(), "{} links to {target}", path.display());
        }
    }
    assert!(links >= 6, "only {links} links were found");
}

#[test]
fn what_is_claimed_of_safety_is_tested() {
    let is_source = |path: &PathBuf| path.extension().is_some_and(|name| name == "rs");
    let sources: Vec<String> = files()
        .into_iter()
        .filter(is_source)
        .map(|path| std::fs::read_to_string(path).expect("sources are UTF-8"))
        .collect();
    let model = std::fs::read_to_string(root().join("THREAT-MODEL.md")).expect("it is there");
    let claims = model
        .split("## What is protected")
        .nth(1)
        .and_then(|rest| rest.split("\n## ").next())
        .expect("a table of claims");
    let mut count = 0;
    for row in claims.lines().filter(|line| line.starts_with("| ")).skip(2) {
        let column = row.split(" | ").nth(2).unwrap_or_default();
        let mut named = column.split('`').skip(1).step_by(2).peekable();
        assert!(named.peek().is_some(), "no test is named for: {row}");
        for name in named {
            let function = format!("fn {name}(");
            let is_there = if name.contains('/') {
                root().join(name).exists()
            } else {
                sources.iter().any(|source| source.contains(&function))
            };
            assert!(is_there, "there is no {name}");
        }
        count += 1;
    }
    assert!(count >= 15, "only {count} claims were found");
}

#[test]
fn documents_name_only_commands_that_are_there() {
    // The reviewed help begins the page of each command with the line that asks for it.
    let help = root().join("receptorctl/tests/cli/snapshots/cli__help__help.snap");
    let help = std::fs::read_to_string(help).expect("the help is a snapshot");
    let commands: BTreeSet<&str> = help
        .lines()
        .filter_map(|line| line.strip_prefix("$ receptorctl ")?.strip_suffix(" --help"))
        .collect();
    let groups = ["config", "plugin", "work"];
    // What follows the program's name where it is not called.
    let prose = ["and", "is"];
    let mut named = 0;
    for (path, text) in documents() {
        for after in text.split("receptorctl ").skip(1) {
            let mut words = after.split(' ').map(|word| {
                let letter = |c: char| c.is_ascii_lowercase() || c == '-';
                word.split(|c| !letter(c)).next().unwrap_or_default()
            });
            let mut command = words.next().unwrap_or_default().to_owned();
            if command.is_empty() || prose.contains(&&*command) {
                continue;
            }
            if groups.contains(&&*command) {
                command = format!("{command} {}", words.next().unwrap_or_default());
            }
            named += 1;
            let known = commands.contains(&*command);
            assert!(known, "{}: receptorctl {command}", path.display());
        }
    }
    assert!(named >= 10, "only {named} commands were found");
}
