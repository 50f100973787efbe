//! Every help text and the completions, as they are.

use crate::fake::program;

fn output(args: &[&str]) -> String {
    let output = program().args(args).output().unwrap();
    assert!(output.status.success(), "{args:?}");
    assert!(output.stderr.is_empty(), "{args:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// Every command with its sub-commands, found in the definition itself.
fn commands() -> Vec<Vec<String>> {
    fn walk(command: &clap::Command, path: &[String], all: &mut Vec<Vec<String>>) {
        all.push(path.to_vec());
        for sub in command.get_subcommands() {
            let mut path = path.to_vec();
            path.push(sub.get_name().to_owned());
            walk(sub, &path, all);
        }
    }
    let mut all = Vec::new();
    walk(&receptorctl::command(), &[], &mut all);
    all
}

#[test]
fn every_command_has_help() {
    let mut text = String::new();
    for path in commands() {
        let mut args: Vec<&str> = path.iter().map(String::as_str).collect();
        args.push("--help");
        text.push_str(&format!("$ receptorctl {}\n", args.join(" ")));
        text.push_str(&output(&args));
        text.push('\n');
    }
    insta::assert_snapshot!("help", text);
}

#[test]
fn every_command_and_option_is_described() {
    fn walk(command: &clap::Command) {
        let name = command.get_name().to_owned();
        assert!(command.get_about().is_some(), "{name} has no description");
        for arg in command.get_arguments() {
            assert!(
                arg.get_help().is_some(),
                "{name} {} has no help",
                arg.get_id()
            );
        }
        command.get_subcommands().for_each(walk);
    }
    walk(&receptorctl::command());
}

#[test]
fn completions_know_the_commands() {
    for shell in ["bash", "zsh", "fish"] {
        let script = output(&["completions", shell]);
        for word in ["ping", "send", "traceroute", "directive", "socket-path"] {
            assert!(script.contains(word), "{shell}: {word}");
        }
    }
}

#[test]
fn bash_completes() {
    let complete = |line: &str| {
        // As bash does when the tab key is pressed.
        let script = r#"eval "$1"; shift; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1))
            _receptorctl receptorctl "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD - 1]}"
            printf '%s\n' "${COMPREPLY[@]}""#;
        let output = std::process::Command::new("bash")
            .args(["--norc", "-c", script, "bash"])
            .arg(output(&["completions", "bash"]))
            .args(line.split(' '))
            .output()
            .unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.success() && said.is_empty(), "{said}");
        String::from_utf8(output.stdout).unwrap()
    };
    assert_eq!(complete("receptorctl pi"), "ping\n");
    assert_eq!(complete("receptorctl send --rec"), "--recipient\n");
    assert_eq!(complete("receptorctl plugin d"), "describe\n");
    assert_eq!(complete("receptorctl plugin new x --lang p"), "python\n");
    assert_eq!(complete("receptorctl completions z"), "zsh\n");
}

#[test]
fn usage_errors_are_2_and_help_is_0() {
    for args in [
        &["nonsense"][..],
        &["ping"],
        &["ping", "-x"],
        &["ping", "no/node"],
        &["send", "--directive", "runner:execute"],
        &["send", "--directive", "runner", "--recipient", "b"],
        &["send", "--directive", "a:b", "--recipient", "b", "--any"],
        &[
            "send",
            "--directive",
            "a:b",
            "--recipient",
            "b",
            "--where",
            "a=b",
        ],
        &["send", "--directive", "a:b", "--any", "--where", "nothing"],
        &["ping", "b", "--timeout", "soon"],
        &["ping", "b", "--count", "0"],
        &["work", "cancel", "1"],
        &[],
    ] {
        let output = program().args(args).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{args:?}");
        assert!(output.stdout.is_empty(), "{args:?}");
        assert!(!output.stderr.is_empty(), "{args:?}");
    }
    let version = output(&["--version"]);
    assert_eq!(
        version,
        format!("receptorctl {}\n", env!("CARGO_PKG_VERSION"))
    );
}
