//! What `make install` puts where, and that the manual says what the programs and their settings are.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use receptor_tests::program;
use tempfile::TempDir;

/// A directory that `make install` has put everything into.
struct Staged {
    dir: TempDir,
}

impl Staged {
    fn new(variables: &[&str]) -> Self {
        let staged = Self {
            dir: TempDir::new().expect("a temporary directory"),
        };
        staged.install(variables);
        staged
    }

    fn install(&self, variables: &[&str]) {
        let build = program("receptord");
        let build = build.parent().expect("programs lie in a directory");
        let output = Command::new("make")
            .args(["-s", "install"])
            .arg(format!("DESTDIR={}", self.root().display()))
            .arg(format!("BUILD={}", build.display()))
            .arg(format!("PAGES={}/pages", self.dir.path().display()))
            .args(variables)
            .current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join(".."))
            // Of a make that runs the tests.
            .env_remove("MAKEFLAGS")
            .env_remove("MAKELEVEL")
            .output()
            .expect("make runs");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{said}");
    }

    fn root(&self) -> PathBuf {
        self.dir.path().join("root")
    }

    fn read(&self, path: &str) -> String {
        let path = self.root().join(path);
        fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
    }

    /// Every file, from the root.
    fn files(&self) -> BTreeSet<String> {
        let mut files = BTreeSet::new();
        let mut dirs = vec![self.root()];
        while let Some(dir) = dirs.pop() {
            for entry in fs::read_dir(dir).expect("a directory") {
                let entry = entry.expect("an entry");
                if entry.file_type().expect("a type").is_dir() {
                    dirs.push(entry.path());
                } else {
                    let path = entry.path();
                    let path = path.strip_prefix(self.root()).expect("it is below");
                    files.insert(path.to_string_lossy().into_owned());
                }
            }
        }
        files
    }
}

#[test]
fn everything_is_where_the_system_looks_for_it() {
    let staged = Staged::new(&["PREFIX=/usr"]);
    let files = staged.files();
    for file in [
        "etc/receptor/receptord.toml",
        "usr/bin/receptorctl",
        "usr/bin/receptord",
        "usr/lib/receptor/plugins/echo",
        "usr/lib/receptor/plugins/runner",
        "usr/share/bash-completion/completions/receptorctl",
        "usr/share/doc/receptorctl/THIRD-PARTY-LICENSES",
        "usr/share/fish/vendor_completions.d/receptord.fish",
        "usr/share/man/man1/receptorctl-work-list.1",
        "usr/share/man/man5/receptord.toml.5",
        "usr/share/man/man7/receptor-plugin.7",
        "usr/share/man/man8/receptord.8",
        "usr/share/zsh/site-functions/_receptorctl",
    ] {
        assert!(files.contains(file), "{file} is missing: {files:#?}");
    }
    assert!(
        files
            .iter()
            .all(|file| { file.starts_with("usr/") || file == "etc/receptor/receptord.toml" })
    );
}

#[test]
fn directories_can_be_chosen() {
    let staged = Staged::new(&["PREFIX=/opt/mesh", "plugindir=/opt/mesh/libexec/plugins"]);
    let files = staged.files();
    assert!(files.contains("opt/mesh/bin/receptord"));
    assert!(files.contains("opt/mesh/libexec/plugins/runner"));
    for unit in files.iter().filter(|file| file.ends_with(".service")) {
        assert!(!staged.read(unit).contains("/usr/bin/receptor"), "{unit}");
    }
}

#[test]
fn the_administrators_configuration_stays() {
    let staged = Staged::new(&["PREFIX=/usr"]);
    let file = staged.root().join("etc/receptor/receptord.toml");
    fs::write(&file, "node-id = \"mine\"\n").expect("it is written");
    staged.install(&["PREFIX=/usr"]);
    assert_eq!(
        staged.read("etc/receptor/receptord.toml"),
        "node-id = \"mine\"\n"
    );
}

#[test]
fn every_command_has_a_page() {
    fn walk(command: &[&str], pages: &BTreeSet<String>) {
        let page = format!("{}.1", command.join("-"));
        assert!(pages.contains(&page), "{page}: {pages:?}");
        let output = Command::new(program(command[0]))
            .args(&command[1..])
            .arg("--help")
            .output()
            .expect("it runs");
        let help = String::from_utf8(output.stdout).expect("help is UTF-8");
        let commands = help
            .split_once("Commands:\n")
            .and_then(|(_, rest)| rest.split("\n\n").next());
        for line in commands.unwrap_or_default().lines() {
            let Some(name) = line.split_whitespace().next() else {
                continue;
            };
            // Lines that go on are indented further.
            if line.starts_with("  ") && !line.starts_with("   ") && name != "help" {
                walk(&[command, &[name]].concat(), pages);
            }
        }
    }
    let staged = Staged::new(&["PREFIX=/usr"]);
    let pages: BTreeSet<String> = staged
        .files()
        .iter()
        .filter_map(|file| file.strip_prefix("usr/share/man/man1/"))
        .map(ToOwned::to_owned)
        .collect();
    walk(&["receptorctl"], &pages);
    assert!(pages.len() > 30, "{pages:?}");
}

/// `key = value` of a page's headings, as `table.key`, with the value.
fn keys_of(page: &str) -> BTreeSet<String> {
    let mut table = String::new();
    let mut keys = BTreeSet::new();
    for line in page.lines() {
        if let Some(name) = line.strip_prefix(".SS [") {
            table = name.trim_matches(['[', ']']).to_owned() + ".";
        }
        let heading = line
            .strip_prefix("\\fB")
            .and_then(|line| line.strip_suffix("\\fR"));
        if let Some((key, value)) = heading.and_then(|heading| heading.split_once(" = ")) {
            keys.insert(format!("{table}{key} = {value}").replace("\\-", "-"));
        }
    }
    keys
}

#[test]
fn the_manual_has_every_setting_with_its_default_and_no_other() {
    let staged = Staged::new(&["PREFIX=/usr"]);
    let output = Command::new(program("receptord"))
        .args(["--print-config", "--root"])
        .arg(staged.root())
        .env_clear()
        .output()
        .expect("receptord runs");
    let printed = String::from_utf8(output.stdout).expect("it prints UTF-8");
    let mut table = String::new();
    let mut defaults = BTreeSet::new();
    for line in printed.lines() {
        if let Some(name) = line.strip_prefix('[') {
            table = name.trim_end_matches(']').to_owned() + ".";
        }
        let line = line.trim_start_matches("# ");
        if let Some((setting, _)) = line.split_once("# default") {
            defaults.insert(format!("{table}{}", setting.trim_end()));
        }
    }
    assert!(defaults.len() > 25, "{printed}");
    assert_eq!(
        keys_of(&staged.read("usr/share/man/man5/receptord.toml.5")),
        defaults
    );
}

#[test]
fn the_manual_of_plugins_is_the_protocol() {
    let staged = Staged::new(&["PREFIX=/usr"]);
    let page = staged.read("usr/share/man/man7/receptor-plugin.7");
    for word in [
        "execute",
        "payload_sha256",
        "cancel",
        "missing\\-dependency",
        "RECEPTOR_JOB_DIR",
    ] {
        assert!(page.contains(word), "{word}");
    }
    // Nothing of Markdown is left.
    assert!(
        !page.contains("](") && !page.contains("**") && !page.contains("\n| "),
        "{page}"
    );
}
