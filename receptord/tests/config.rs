//! The configuration as its users meet it: layers of files, messages, and printing back.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use clap::Parser as _;
use proptest::prelude::*;
use receptord::cli::Cli;
use receptord::config::{self, Apply, ConfigError, DEFAULT_FILE, Environment, Loaded, Settings};
use receptord::policy::{Person, Right};

const ETC: &str = "/etc/receptor/receptord.toml.d";
const RUN: &str = "/run/receptor/receptord.toml.d";
const USR: &str = "/usr/lib/receptor/receptord.toml.d";

/// A file system root with configuration files in it.
struct Root(tempfile::TempDir);

impl Root {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn with(self, path: &str, text: &str) -> Self {
        let path = self.0.path().join(path.trim_start_matches('/'));
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
        self
    }

    fn masked(self, path: &str) -> Self {
        let path = self.0.path().join(path.trim_start_matches('/'));
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        symlink("/dev/null", path).unwrap();
        self
    }

    fn load(&self, flags: &str, env: &[(&str, &str)]) -> Result<Loaded, ConfigError> {
        let root = self.0.path().to_str().unwrap();
        let words = ["receptord", "--print-config", "--root", root];
        let cli = Cli::try_parse_from(words.into_iter().chain(flags.split_whitespace())).unwrap();
        config::load(&cli, &Environment::from_vars(env.iter().copied()))
    }

    fn settings(&self) -> Settings {
        self.load("", &[])
            .unwrap_or_else(|error| panic!("{error}"))
            .settings
    }
}

/// The line of `--print-config` for a key of the last table with that header.
fn printed(loaded: &Loaded, header: &str, key: &str) -> String {
    let text = loaded.print();
    let table = if header.is_empty() {
        text.as_str()
    } else {
        text.split_once(&format!("\n{header}\n"))
            .unwrap_or_else(|| panic!("no {header} in {text}"))
            .1
    };
    let line = table
        .lines()
        .find(|line| line.starts_with(&format!("{key} = ")));
    line.unwrap_or_else(|| panic!("no {key} in {text}"))
        .to_owned()
}

#[test]
fn without_anything_the_built_in_defaults_are_in_force() {
    assert_eq!(Root::new().settings(), Settings::builtin());
}

#[test]
fn drop_ins_win_over_the_main_file_in_the_order_of_their_names() {
    let root = Root::new()
        .with(
            DEFAULT_FILE,
            "node-id = \"main\"\n[link]\nhold-time = \"1s\"\nmax-links = 1\n",
        )
        .with(&format!("{USR}/90-z.toml"), "[link]\nhold-time = \"3s\"\n")
        .with(
            &format!("{ETC}/10-a.toml"),
            "[link]\nhold-time = \"2s\"\nmax-links = 2\n",
        );
    let loaded = root.load("", &[]).unwrap();
    assert_eq!(
        printed(&loaded, "", "node-id"),
        format!("node-id = \"main\"  # {DEFAULT_FILE}:1")
    );
    assert_eq!(
        printed(&loaded, "[link]", "hold-time"),
        format!("hold-time = \"3s\"  # {USR}/90-z.toml:2")
    );
    assert_eq!(
        printed(&loaded, "[link]", "max-links"),
        format!("max-links = 2  # {ETC}/10-a.toml:3")
    );
}

#[test]
fn of_one_name_etc_wins_over_run_and_run_over_usr() {
    let text = |n: u32| format!("[link]\nmax-links = {n}\n");
    let root = Root::new().with(&format!("{USR}/50-x.toml"), &text(1));
    assert_eq!(root.settings().link.max_links, 1);
    let root = root.with(&format!("{RUN}/50-x.toml"), &text(2));
    assert_eq!(root.settings().link.max_links, 2);
    let root = root.with(&format!("{ETC}/50-x.toml"), &text(3));
    assert_eq!(root.settings().link.max_links, 3);
    assert_eq!(root.load("", &[]).unwrap().files.len(), 1);
}

#[test]
fn a_link_to_dev_null_masks() {
    let root = Root::new()
        .with(&format!("{USR}/50-x.toml"), "[link]\nmax-links = 1\n")
        .masked(&format!("{ETC}/50-x.toml"));
    assert_eq!(root.settings(), Settings::builtin());
    assert!(root.load("", &[]).unwrap().files.is_empty());
}

#[test]
fn other_names_beside_the_drop_ins_are_left_alone() {
    let root = Root::new()
        .with(&format!("{ETC}/50-x.toml.bak"), "no = such = thing")
        .with(&format!("{ETC}/.50-x.toml"), "no = such = thing")
        .with(&format!("{ETC}/README"), "no = such = thing");
    assert_eq!(root.settings(), Settings::builtin());
}

#[test]
fn a_chosen_file_has_its_own_drop_ins_and_no_others() {
    let root = Root::new()
        .with(DEFAULT_FILE, "node-id = \"installed\"")
        .with(&format!("{ETC}/50-x.toml"), "router = false")
        .with("/srv/b.toml", "[link]\nmax-links = 7\n")
        .with("/srv/b.toml.d/1.toml", "[link]\nhold-time = \"7s\"\n");
    for (flags, env) in [
        ("--config /srv/b.toml", None),
        ("", Some(("RECEPTOR_CONFIG", "/srv/b.toml"))),
    ] {
        let settings = root.load(flags, env.as_slice()).unwrap().settings;
        assert_eq!((settings.node_id, settings.router), (None, true));
        assert_eq!(
            (settings.link.max_links, settings.link.hold_time.as_secs()),
            (7, 7)
        );
    }
    let error = root.load("--config /srv/missing.toml", &[]).unwrap_err();
    assert!(
        error
            .to_string()
            .starts_with("/srv/missing.toml: cannot be read"),
        "{error}"
    );
}

#[test]
fn the_service_manager_can_move_the_configuration() {
    let other = |directory: &str| format!("{directory}/receptord.toml");
    let text = |n: u32| format!("[link]\nmax-links = {n}\n");
    let root = Root::new()
        .with(DEFAULT_FILE, "node-id = \"installed\"")
        .with(&format!("{ETC}/50-x.toml"), "router = false")
        .with(
            &other("/etc/receptor@b"),
            "[tls]\nca = \"a\"\nkey = \"b\"\ncertificate = \"c\"",
        )
        .with("/usr/lib/receptor@b/receptord.toml.d/1.toml", &text(7))
        .with("/run/receptor@b/receptord.toml.d/2.toml", &text(8))
        .masked("/etc/receptor@b/receptord.toml.d/2.toml")
        .with(&other("/home/u/.config/receptor"), &text(9));
    let load = |directory| {
        let environment = [("CONFIGURATION_DIRECTORY", directory)];
        root.load("", &environment).unwrap().settings
    };
    let instance = load("/etc/receptor@b");
    assert_eq!((&instance.node_id, instance.router), (&None, true));
    assert_eq!(instance.link.max_links, 7);
    let ca = instance.tls.unwrap().ca.path;
    assert_eq!(ca, Path::new("/etc/receptor@b/tls/a"));
    assert_eq!(load("/home/u/.config/receptor").link.max_links, 9);
    assert!(!load("/etc/receptor").router);
}

#[test]
fn flags_win_over_the_environment_and_that_over_files() {
    let root = Root::new().with(
        DEFAULT_FILE,
        "node-id = \"file\"\ndata-dir = \"/file\"\n[log]\nlevel = \"error\"\n",
    );
    let env = [("RECEPTOR_NODE_ID", "env"), ("RECEPTOR_DATA_DIR", "/env")];
    let loaded = root.load("--node-id flag", &env).unwrap();
    assert_eq!(
        printed(&loaded, "", "node-id"),
        "node-id = \"flag\"  # flag --node-id"
    );
    assert_eq!(
        printed(&loaded, "", "data-dir"),
        "data-dir = \"/env\"  # environment RECEPTOR_DATA_DIR"
    );
    assert_eq!(
        printed(&loaded, "[log]", "level"),
        format!("level = \"error\"  # {DEFAULT_FILE}:4")
    );
}

#[test]
fn every_variable_sets_what_it_says() {
    let env = [
        ("RECEPTOR_NODE_ID", "n"),
        ("RECEPTOR_DATA_DIR", "/d"),
        ("RECEPTOR_ROUTER", "false"),
        ("RECEPTOR_SOCKET_PATH", "/s"),
        ("RECEPTOR_LISTEN", "unix:///m, 0.0.0.0:1"),
        ("RECEPTOR_LISTEN_PORT", "2 3"),
        ("RECEPTOR_PEER", "a:1,b:2\n c:3"),
        ("RECEPTOR_ALLOW_PLAINTEXT", "true"),
        ("RECEPTOR_PLUGINS_DIR", "/p /q"),
        ("RECEPTOR_LOG_LEVEL", "warn,receptord=debug"),
        ("RECEPTOR_CONFIG", "/dev/null"),
    ];
    let named: Vec<_> = config::VARIABLES
        .iter()
        .map(|variable| variable.name)
        .collect();
    assert!(
        named
            .iter()
            .all(|name| env.iter().any(|(other, _)| other == name)),
        "{named:?}"
    );

    let loaded = Root::new().with("/dev/null", "").load("", &env).unwrap();
    let settings = loaded.settings;
    assert_eq!(settings.node_id, Some("n".parse().unwrap()));
    assert_eq!(settings.data_dir, Path::new("/d"));
    assert!(!settings.router);
    assert_eq!(settings.control.socket_path, Path::new("/s"));
    let urls = |urls: Vec<String>| urls.join(" ");
    assert_eq!(
        urls(
            settings
                .listen
                .iter()
                .map(|listen| listen.url.to_string())
                .collect()
        ),
        "unix:///m rnp://0.0.0.0:1 rnp://localhost:2 rnp://localhost:3"
    );
    assert_eq!(
        urls(
            settings
                .peer
                .iter()
                .map(|peer| peer.url.to_string())
                .collect()
        ),
        "rnp://a:1 rnp://b:2 rnp://c:3"
    );
    assert_eq!(settings.plugins.dirs, [Path::new("/p"), Path::new("/q")]);
    assert_eq!(settings.log.level.as_str(), "warn,receptord=debug");
    assert_eq!(loaded.warnings, []);
}

#[test]
fn an_unknown_variable_is_a_warning_and_other_programs_variables_are_none() {
    let env = [
        ("RECEPTOR_NODEID", "x"),
        ("RECEPTOR_SOCKET", "/s"),
        ("RECEPTOR_JOB_ID", "1"),
    ];
    let loaded = Root::new().load("", &env).unwrap();
    let warnings: Vec<String> = loaded.warnings.iter().map(ToString::to_string).collect();
    assert_eq!(
        warnings,
        [
            "environment RECEPTOR_NODEID: is not a variable that receptord reads; did you mean RECEPTOR_NODE_ID?"
        ]
    );
}

#[test]
fn the_service_managers_directories_move_the_defaults() {
    let env = [
        ("STATE_DIRECTORY", "/var/lib/receptor/b:/x"),
        ("RUNTIME_DIRECTORY", "/run/b"),
    ];
    let loaded = Root::new().load("", &env).unwrap();
    assert_eq!(
        printed(&loaded, "", "data-dir"),
        "data-dir = \"/var/lib/receptor/b\"  # default, $STATE_DIRECTORY"
    );
    assert_eq!(
        printed(&loaded, "[control]", "socket-path"),
        "socket-path = \"/run/b/receptord.sock\"  # default, $RUNTIME_DIRECTORY"
    );
}

#[test]
fn blocks_add_up_over_files_and_a_known_url_changes_its_block() {
    let root = Root::new()
        .with(
            DEFAULT_FILE,
            "[[peer]]\nurl = \"unix:///a\"\n[[peer]]\nurl = \"localhost:1\"\ncost = 5\n",
        )
        .with(
            &format!("{ETC}/1.toml"),
            "[[peer]]\nurl = \"rnp://LOCALHOST:1\"\ncost = 6\n[[peer]]\nurl = \"unix:///b\"\n",
        );
    let peers = root.settings().peer;
    let peers: Vec<_> = peers
        .iter()
        .map(|peer| (peer.url.to_string(), peer.cost))
        .collect();
    assert_eq!(
        peers,
        [
            ("unix:///a".to_owned(), 10),
            ("rnp://localhost:1".to_owned(), 6),
            ("unix:///b".to_owned(), 10)
        ]
    );
}

#[test]
fn listeners_and_peers_of_flags_replace_those_of_the_environment_and_of_files() {
    let root = Root::new().with(
        DEFAULT_FILE,
        "[[listen]]\nurl = \"localhost:1\"\n[[peer]]\nurl = \"localhost:2\"\n[plugins]\ndirs = [\"/a\"]\n",
    );
    let env = [("RECEPTOR_LISTEN", "localhost:3")];
    let first = |loaded: &Loaded| loaded.settings.listen[0].url.to_string();

    let loaded = root.load("", &env).unwrap();
    assert_eq!(
        (loaded.settings.listen.len(), first(&loaded)),
        (1, "rnp://localhost:3".to_owned())
    );
    assert_eq!(loaded.settings.peer[0].url.to_string(), "rnp://localhost:2");

    let loaded = root.load("--listen-port 4 --plugins-dir /b", &env).unwrap();
    assert_eq!(
        (loaded.settings.listen.len(), first(&loaded)),
        (1, "rnp://localhost:4".to_owned())
    );
    assert_eq!(loaded.settings.plugins.dirs, [Path::new("/b")]);
}

#[test]
fn the_word_node_serves_no_control_socket_unless_one_is_named() {
    let none = Root::new();
    let named = || Root::new().with(DEFAULT_FILE, "[control]\nsocket-path = \"/s\"\n");
    let off = || Root::new().with(DEFAULT_FILE, "[control]\nenabled = false\n");
    let env = [("RECEPTOR_SOCKET_PATH", "/s")];
    let table = [
        (&none, "", &[][..], true),
        (&none, "controller", &[], true),
        (&none, "node", &[], false),
        (&none, "node --socket-path /s", &[], true),
        (&none, "node", &env, true),
        (&named(), "node", &[], true),
        (&off(), "", &[], false),
        (&off(), "node", &[], false),
        (&off(), "controller", &[], true),
    ];
    for (index, (root, flags, env, expected)) in table.into_iter().enumerate() {
        let settings = root.load(flags, env).unwrap().settings;
        assert_eq!(settings.control.enabled, expected, "case {index}: {flags}");
    }
}

#[test]
fn relative_paths_of_flags_are_taken_from_where_the_daemon_was_started() {
    let settings = Root::new()
        .load("-d here --socket-path s", &[])
        .unwrap()
        .settings;
    let here = std::env::current_dir().unwrap();
    assert_eq!(settings.data_dir, here.join("here"));
    assert_eq!(settings.control.socket_path, here.join("s"));
}

#[test]
fn bare_tls_names_are_credentials_first() {
    let credentials = tempfile::tempdir().unwrap();
    fs::write(credentials.path().join("n.key"), "").unwrap();
    let root = Root::new().with(
        DEFAULT_FILE,
        "[tls]\ncertificate = \"n.pem\"\nkey = \"n.key\"\nca = \"/x/ca.pem\"\n",
    );
    let env = [(
        "CREDENTIALS_DIRECTORY",
        credentials.path().to_str().unwrap(),
    )];
    let tls = root.load("", &env).unwrap().settings.tls.unwrap();
    assert_eq!(tls.certificate.path, Path::new("/etc/receptor/tls/n.pem"));
    assert_eq!(tls.key.path, credentials.path().join("n.key"));
    assert_eq!(tls.ca.path, Path::new("/x/ca.pem"));
}

/// Each text is a main file; the snapshot shows what its author is told.
#[test]
fn what_is_wrong_is_told_with_file_line_key_value_and_what_was_expected() {
    let table = [
        ("unknown key", "nod-id = \"a\"\n"),
        ("unknown key in a table", "[link]\nhold_time = \"4s\"\n"),
        ("unknown table", "[spol]\nmax-bytes = \"1GiB\"\n"),
        (
            "unknown key in a block",
            "[[peer]]\nurl = \"localhost:1\"\ncots = 2\n",
        ),
        ("key of another table", "socket-path = \"/s\"\n"),
        ("bad node id", "node-id = \".a\"\n"),
        ("number for text", "node-id = 7\n"),
        ("text for a boolean", "router = \"yes\"\n"),
        ("relative path", "data-dir = \"state\"\n"),
        ("time without a unit", "[link]\nhold-time = 4\n"),
        ("time out of range", "[link]\nhold-time = \"1h\"\n"),
        ("size out of range", "[spool]\nmax-bytes = \"1KiB\"\n"),
        ("size in words", "[spool]\nmax-bytes = \"plenty\"\n"),
        ("number out of range", "[routing]\nhop-limit = 256\n"),
        ("negative number", "[plugins]\nmax-works = -1\n"),
        (
            "huge number",
            "[plugins]\nmax-works = 99999999999999999999\n",
        ),
        ("mode as a number", "[control]\nmode = 660\n"),
        (
            "long socket path",
            &format!("[control]\nsocket-path = \"/{}\"\n", "x".repeat(120)),
        ),
        (
            "contradiction",
            "[link]\nreconnect-min = \"2s\"\nreconnect-max = \"1s\"\n",
        ),
        (
            "more clients a user than in all",
            "[control]\nmax-clients = 2\nmax-clients-per-user = 3\n",
        ),
        ("block without url", "[[listen]]\ncost = 1\n"),
        ("table for blocks", "[listen]\nurl = \"localhost:1\"\n"),
        (
            "listener by name",
            "[[listen]]\nurl = \"rnps://relay.example.com:8899\"\n",
        ),
        (
            "peer without port",
            "[[peer]]\nurl = \"rnps://relay.example.com\"\n",
        ),
        (
            "other scheme",
            "[[peer]]\nurl = \"http://relay.example.com:8899\"\n",
        ),
        (
            "twice the same",
            "[[listen]]\nurl = \"localhost:1\"\n\n[[listen]]\nurl = \"rnp://localhost:1\"\n",
        ),
        ("plain listener", "[[listen]]\nurl = \"rnp://[::]:8888\"\n"),
        (
            "plain peer",
            "[[peer]]\nurl = \"ws://relay.example.com/\"\n",
        ),
        (
            "tls without a table",
            "[[peer]]\nurl = \"rnps://relay.example.com:8899\"\n",
        ),
        (
            "tls with half a table",
            "[[peer]]\nurl = \"rnps://relay.example.com:8899\"\n[tls]\nca = \"ca.pem\"\n",
        ),
        (
            "tls in a folder nobody knows",
            "[tls]\ncertificate = \"a/b.pem\"\nkey = \"..\"\nca = \"\"\n",
        ),
        ("list for text", "[capabilities]\nsite = [\"a\"]\n"),
        (
            "rule without senders",
            "[[allow]]\ndirective = [\"runner:*\"]\n",
        ),
        (
            "rule with half a directive",
            "[[allow]]\nfrom = [\"a b\", \"*\"]\ndirective = [\"runner\"]\n",
        ),
        ("empty rules", "allow = []\n"),
        (
            "rule that fits nothing",
            "[[allow]]\nfrom = []\ndirective = [\"*\"]\n",
        ),
        (
            "rules with wrong keys and patterns",
            "[[allow-link]]\nnodes = [\"a\"]\n\n[[allow-transit]]\nfrom = [\"a b\"]\nto = []\n",
        ),
        (
            "rule about nobody",
            "[[allow-control]]\nmay = \"look\"\n\n[[allow-control]]\nuser = []\nmay = \"all\"\n",
        ),
        (
            "rules by the name of the settings",
            "[[link]]\nnode = [\"a\"]\n\n[[control]]\nuser = [\"0\"]\n",
        ),
        ("text for a list", "[plugins]\ndirs = \"/opt/plugins\"\n"),
        ("plugin name", "[plugins.Runner]\na = 1\n"),
        ("plugin's time", "[plugins.runner]\ntimeout = 60\n"),
        ("plugin's number", "[plugins.runner]\nrate = inf\n"),
        ("log level", "[log]\nlevel = \"inof\"\n"),
        (
            "several at once",
            "router = 1\n[link]\nhold-time = \"x\"\nmax-link = 3\n[spool]\nmax-entries = 0\n",
        ),
        ("syntax", "node-id = \"a\"\n[link\nhold-time = 4s\n"),
        ("key given twice", "node-id = \"a\"\nnode-id = \"b\"\n"),
        ("unlike any other", "colour = [1]\n[spool]\nquota = 3\n"),
        ("line break in a value", "node-id = \"a\\nb\\u001b[2J\"\n"),
    ];
    let mut shown = String::new();
    for (name, text) in table {
        let error = Root::new()
            .with(DEFAULT_FILE, text)
            .load("", &[])
            .unwrap_err();
        shown.push_str(&format!("{name}\n"));
        for line in text.lines() {
            shown.push_str(&format!("    | {}\n", &line[..line.len().min(100)]));
        }
        for problem in &error.problems {
            shown.push_str(&format!("    {problem}\n"));
        }
        shown.push('\n');
        let lines = error.to_string().lines().count();
        assert_eq!(lines, error.problems.len(), "one line each: {name}");
    }
    insta::assert_snapshot!("what_is_wrong", shown);
}

#[test]
fn a_runtime_directory_too_long_for_a_socket_is_told() {
    let long = format!("/run/{}", "x".repeat(100));
    let error = Root::new().load("", &[("RUNTIME_DIRECTORY", &long)]);
    let error = error.unwrap_err().to_string();
    assert!(error.contains("control.socket-path"), "{error}");
    assert!(error.contains("RUNTIME_DIRECTORY"), "{error}");
    assert!(error.contains("at most 107 bytes"), "{error}");
}

#[test]
fn problems_of_flags_and_variables_name_them() {
    let told =
        |flags: &str, env: &[(&str, &str)]| Root::new().load(flags, env).unwrap_err().to_string();
    let mut shown = String::new();
    for (flags, env) in [
        ("--listen 0.0.0.0:8888", None),
        ("--peer relay.example.com:8888", None),
        ("--peer rnps://relay.example.com:8899", None),
        ("", Some(("RECEPTOR_PEER", "relay.example.com:8888"))),
        ("", Some(("RECEPTOR_LISTEN_PORT", "8888;8889"))),
        ("", Some(("RECEPTOR_NODE_ID", "a b"))),
        ("", Some(("RECEPTOR_ROUTER", "no"))),
        ("", Some(("RECEPTOR_ALLOW_PLAINTEXT", "1"))),
    ] {
        shown.push_str(&format!(
            "{flags}{env:?}\n    {}\n",
            told(flags, env.as_slice())
        ));
    }
    insta::assert_snapshot!("flags_and_variables", shown);
}

#[test]
fn files_that_cannot_be_read_are_told() {
    let root = Root::new();
    fs::create_dir_all(root.0.path().join("etc/receptor/receptord.toml")).unwrap();
    let error = root.load("", &[]).unwrap_err();
    assert_eq!(error.to_string(), format!("{DEFAULT_FILE}: is not a file"));

    let root = Root::new().with(DEFAULT_FILE, &"#\n".repeat(1 << 20));
    let error = root.load("", &[]).unwrap_err();
    assert!(error.to_string().contains("larger than 1 MiB"), "{error}");

    let root = Root::new().with(DEFAULT_FILE, "");
    fs::write(
        root.0.path().join("etc/receptor/receptord.toml"),
        b"a = 1\nb = \"\xff\"\n",
    )
    .unwrap();
    let error = root.load("", &[]).unwrap_err();
    assert_eq!(
        error.to_string(),
        format!("{DEFAULT_FILE}:2: is not UTF-8 text")
    );

    let root = Root::new()
        .with(&format!("{ETC}/a.toml/x"), "")
        .with(&format!("{ETC}/b.toml"), "x");
    let error = root.load("", &[]).unwrap_err();
    assert_eq!(error.problems.len(), 2, "both files are told: {error}");
}

#[test]
fn a_private_key_is_never_shown() {
    let key = "-----BEGIN PRIVATE KEY-----\\nMC4CAQAwBQYDK2Vw";
    for text in [
        format!("[tls]\nkey = \"{key}\"\n"),
        format!("[tls]\npem = \"{key}\"\n"),
        format!("[tls]\nkey = \"{key}\" x\n"),
        format!("[tls]\nkey = '{key}\n"),
    ] {
        let error = Root::new().with(DEFAULT_FILE, &text).load("", &[]);
        let error = error.unwrap_err().to_string();
        assert!(!error.contains("MC4C"), "{text}: {error}");
    }
}

#[test]
fn a_file_of_nonsense_does_not_fill_the_journal() {
    let text: String = (0..500).map(|n| format!("key{n} = 1\n")).collect();
    let error = Root::new()
        .with(DEFAULT_FILE, &text)
        .load("", &[])
        .unwrap_err();
    assert_eq!(error.problems.len(), 500);
    assert!(error.to_string().lines().count() < 60);
    assert!(error.to_string().ends_with("and 450 more problems"));
}

#[test]
fn plugins_have_limits() {
    let text = "[plugins.runner]\nmax-results = \"1GiB\"\nmax-memory = \"512MiB\"\nmax-file-size = 1000\nmax-open-files = 64\nmax-processes = 100\nnew-privileges = true\n";
    let settings = Root::new().with(DEFAULT_FILE, text).settings();
    let runner = &settings.plugins.plugin["runner"];
    assert_eq!(runner.max_results, Some(1 << 30));
    assert_eq!(runner.max_memory, Some(512 << 20));
    assert_eq!(runner.max_file_size, Some(1000));
    assert_eq!(runner.max_open_files, Some(64));
    assert_eq!(runner.max_processes, Some(100));
    assert!(runner.new_privileges);
}

#[test]
fn plugins_get_their_table_as_json() {
    let text = "[plugins.runner]\ncommand = \"/x\"\ntimeout = \"1h\"\nmax-works = 2\nnested = { list = [1, 2.5, true], when = 2026-01-02 }\n";
    let settings = Root::new().with(DEFAULT_FILE, text).settings();
    let runner = &settings.plugins.plugin["runner"];
    assert_eq!(
        (runner.timeout.unwrap().as_secs(), runner.max_works),
        (3600, Some(2))
    );
    assert_eq!(
        serde_json::to_string(&runner.config).unwrap(),
        r#"{"command":"/x","max-works":2,"nested":{"list":[1,2.5,true],"when":"2026-01-02"},"timeout":"1h"}"#
    );
}

/// The example of the project's documentation, every part of it.
const WHOLE: &str = r#"
node-id = "node-b"
router = true

[[listen]]
url = "rnps://[::]:8899"

[[peer]]
url = "rnps://relay.example.com:8899"
cost = 10

[tls]
certificate = "node-b.pem"
key = "node-b.key"
ca = "ca.pem"

[control]
socket-path = "/run/receptor/receptord.sock"
group = "receptor"

[capabilities]
site = "berlin"

[plugins]
dirs = ["/opt/acme/receptor-plugins"]
max-works = 8

[plugins.runner]
command = "/opt/ansible/bin/ansible-runner"
timeout = "1h"

[[allow]]
from = ["controller*"]
directive = ["runner:*"]

[spool]
max-bytes = "10GiB"
default-expiry = "24h"
"#;

/// Prints the configuration of a main file and reads it in again.
fn printed_and_read_again(text: &str) -> (Settings, Settings) {
    let loaded = Root::new().with(DEFAULT_FILE, text).load("", &[]);
    let loaded = loaded.unwrap_or_else(|error| panic!("{error} in {text}"));
    let printed = loaded.print();
    let again = Root::new()
        .with("/again.toml", &printed)
        .load("--config /again.toml", &[]);
    let again = again.unwrap_or_else(|error| panic!("{error} in {printed}"));
    (loaded.settings, again.settings)
}

#[test]
fn the_documented_example_is_right_and_prints_back() {
    let (settings, again) = printed_and_read_again(WHOLE);
    assert_eq!(settings, again);
    assert_eq!(settings.control.group.as_deref(), Some("receptor"));
    assert_eq!(settings.spool.default_expiry.as_secs(), 24 * 3600);
}

fn any_text() -> impl Strategy<Value = String> {
    "[a-z\"\\\\#=\\[\\]{}' ä\u{1F600}]{0,12}"
}

fn quoted(text: &str) -> String {
    // For these characters JSON and TOML agree.
    serde_json::to_string(text).unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn what_is_printed_reads_in_as_the_same(
        router in any::<bool>(),
        hold in 400u64..300_000,
        bytes in 1u64 << 20..1 << 50,
        works in 1u32..65_536,
        mode in 0u32..0o777,
        ports in proptest::collection::btree_set(1u16.., 0..4),
        metadata in proptest::collection::btree_map("[a-z. ]{1,6}", any_text(), 0..4),
        plugin in proptest::collection::btree_map(any_text(), (any_text(), any::<i64>(), -1e9..1e9), 0..4),
        patterns in proptest::collection::vec("[a-z*?]{1,6}", 1..3),
        denies in any::<bool>(),
        may in "nothing|look|send|administer",
    ) {
        let mut text = format!("router = {router}\n");
        for port in ports {
            text += &format!("[[listen]]\nurl = \"localhost:{port}\"\ncost = {port}\n[[peer]]\nurl = \"10.0.0.1:{port}\"\nallow-plaintext = true\n");
        }
        text += &format!("[link]\nhold-time = \"{hold}ms\"\n[spool]\nmax-bytes = {bytes}\n[control]\nmode = \"{mode:o}\"\n[capabilities]\n");
        for (key, value) in metadata {
            text += &format!("{} = {}\n", quoted(&key), quoted(&value));
        }
        text += &format!("[plugins]\nmax-works = {works}\n[plugins.runner]\n");
        for (key, (value, integer, float)) in plugin {
            text += &format!("{k} = {{ {k} = [{}, {integer}, {float:?}, []] }}\n", quoted(&value), k = quoted(&key));
        }
        text += "[[allow]]\nfrom = [";
        text += &patterns.iter().map(|pattern| quoted(pattern)).collect::<Vec<_>>().join(", ");
        text += &format!("]\ndirective = [\"*\"]\ndeny = {denies}\n");
        for rule in ["[[allow-link]]\nnode", "[[allow-transit]]\nfrom = [\"*\"]\nto"] {
            text += &format!("{rule} = [{}]\ndeny = {denies}\n", quoted(&patterns[0]));
        }
        text += &format!("[[allow-control]]\nuser = [\"0\", \"*\"]\nmay = \"{may}\"\n[[allow-control]]\ngroup = [\"0\"]\nmay = \"{may}\"\n");

        let (settings, again) = printed_and_read_again(&text);
        prop_assert_eq!(settings, again);
    }

    #[test]
    fn no_file_is_a_panic(text in "([a-z\\[\\]=\"'.#{},0-9 -]{0,20}\n){0,8}") {
        let _ = Root::new().with(DEFAULT_FILE, &text).load("", &[]);
    }
}

#[test]
fn a_change_says_whether_it_needs_a_restart() {
    let old = Root::new().with(DEFAULT_FILE, WHOLE).settings();
    assert_eq!(Settings::diff(&old, &old), []);
    let new = WHOLE
        .replace("node-b\"", "node-c\"")
        .replace("cost = 10", "cost = 20")
        .replace("site = \"berlin\"", "rack = \"7\"")
        .replace("timeout = \"1h\"", "timeout = \"2h\"")
        .replace("group = \"receptor\"", "");
    let new = Root::new().with(DEFAULT_FILE, &new).settings();
    let changes = Settings::diff(&old, &new);
    let changes: Vec<_> = changes
        .iter()
        .map(|change| {
            format!(
                "{} {:?}: {} -> {}",
                change.key, change.apply, change.old, change.new
            )
        })
        .collect();
    assert_eq!(
        changes,
        [
            "node-id Restart: \"node-b\" -> \"node-c\"",
            "peer AtOnce: { url = \"rnps://relay.example.com:8899\", cost = 10, allow-plaintext = false } -> { url = \"rnps://relay.example.com:8899\", cost = 20, allow-plaintext = false }",
            "control.group Restart: \"receptor\" -> ",
            "capabilities.site AtOnce: \"berlin\" -> ",
            "plugins.runner.timeout AtOnce: \"1h\" -> \"2h\"",
            "capabilities.rack AtOnce:  -> \"7\"",
        ]
    );
}

#[test]
fn only_what_cannot_change_in_a_running_daemon_needs_a_restart() {
    let builtin = Settings::builtin();
    let mut other = builtin.clone();
    other.data_dir = "/d".into();
    other.router = false;
    other.control.enabled = false;
    other.control.socket_path = "/s".into();
    other.control.mode = 0o600;
    other.control.group = Some("wheel".to_owned());
    other.node_id = Some("a".parse().unwrap());
    other.link.hold_time *= 2;
    other.routing.hop_limit = 7;
    other.routing.dead_node_retention *= 2;
    other.spool.max_bytes *= 2;
    other.spool.max_entries *= 2;
    let restart = Settings::diff(&builtin, &other);
    assert!(
        restart.iter().all(|change| change.apply == Apply::Restart),
        "{restart:?}"
    );
    assert_eq!(restart.len(), 12);
    other.control.max_clients = 300;
    other.link.max_links = 3;
    let changes = Settings::diff(&builtin, &other.keeping_what_needs_a_restart(&builtin));
    let keys: Vec<_> = changes.iter().map(|change| change.key.as_str()).collect();
    assert_eq!(keys, ["link.max-links", "control.max-clients"]);
}

#[test]
fn the_example_in_the_readme_is_right() {
    let readme = include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/../README.md"));
    let (_, section) = readme.split_once("## Configure it").unwrap();
    let (section, _) = section.split_once("\n## ").unwrap();
    let lines = section.lines().filter_map(|line| line.strip_prefix("    "));
    let text = lines.collect::<Vec<_>>().join("\n");
    let settings = Root::new().with(DEFAULT_FILE, &text).settings();
    assert!(settings.node_id.is_some() && settings.peer[0].allow_plaintext);
    assert_eq!(settings.capabilities["site"], "berlin");
    let without = text.replace("allow-plaintext = true", "");
    let error = Root::new().with(DEFAULT_FILE, &without).load("", &[]);
    assert!(error.unwrap_err().to_string().contains("allow-plaintext"));
}

#[test]
fn a_rule_about_a_user_whom_this_host_does_not_know_is_told_and_fits_nobody() {
    let text = "[[allow-control]]\nuser = [\"no such user\", \"7\"]\nmay = \"send\"\n";
    let loaded = Root::new().with(DEFAULT_FILE, text).load("", &[]).unwrap();
    let warnings: Vec<_> = loaded.warnings.iter().map(ToString::to_string).collect();
    assert_eq!(warnings.len(), 1, "{warnings:?}");
    let begin = "/etc/receptor/receptord.toml:2: allow-control[0].user: \"no such user\": this host has no such user";
    assert!(warnings[0].starts_with(begin), "{warnings:?}");
    let right = |uid| {
        let gids = Vec::new();
        loaded.settings.rules.right(&Person { uid, gids }, 1).says
    };
    assert_eq!((right(7), right(8)), (Right::Send, Right::Nothing));
}

#[test]
fn a_socket_for_everybody_is_no_worry_where_rules_say_who_may_what() {
    let open = "[control]\nmode = \"0666\"\n";
    let warnings = |text: &str| {
        let loaded = Root::new().with(DEFAULT_FILE, text).load("", &[]);
        loaded.unwrap().warnings.len()
    };
    assert_eq!(warnings(open), 1);
    let rule = "[[allow-control]]\nuser = [\"0\"]\nmay = \"send\"\n";
    assert_eq!(warnings(&format!("{open}{rule}")), 0);
}

#[test]
fn the_rules_in_the_readme_say_what_it_says() {
    let readme = include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/../README.md"));
    let (_, section) = readme.split_once("## Say who may do what").unwrap();
    let (section, _) = section.split_once("\n## ").unwrap();
    let lines = section.lines().filter_map(|line| line.strip_prefix("    "));
    let lines = lines.filter(|line| !line.starts_with("receptorctl"));
    let text = lines.collect::<Vec<_>>().join("\n");
    let rules = Root::new().with(DEFAULT_FILE, &text).settings().rules;
    assert!(!rules.may_use("controller-old", "runner:execute").says);
    assert!(rules.may_use("controller-1", "runner:execute").says);
    assert!(!rules.may_use("controller-1", "shell:run").says);
    assert!(rules.may_link("relay-1").says && !rules.may_link("edge-1").says);
    assert!(rules.may_pass("edge-1", "controller").says);
    let right = |uid, gids: &[u32]| {
        let gids = gids.to_vec();
        rules.right(&Person { uid, gids }, 1).says
    };
    assert_eq!(right(1000, &[0]), Right::Administer);
    assert_eq!(right(1000, &[1000]), Right::Look);
}

/// The file that packages install, and what its comments promise.
mod shipped {
    use super::*;

    const SHIPPED: &str = include_str!(concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../packaging/receptord.toml"
    ));

    #[test]
    fn as_it_is_it_changes_nothing() {
        assert_eq!(
            Root::new().with(DEFAULT_FILE, SHIPPED).settings(),
            Settings::builtin()
        );
    }

    #[test]
    fn its_commented_values_are_the_built_in_defaults_and_none_is_left_out() {
        let uncommented = |line: &str| {
            let value = line
                .strip_prefix('#')
                .filter(|rest| rest.starts_with(|c: char| !c.is_whitespace()));
            value.unwrap_or(line).to_owned()
        };
        let text: Vec<String> = SHIPPED.lines().map(uncommented).collect();
        let loaded = Root::new()
            .with(DEFAULT_FILE, &text.join("\n"))
            .load("", &[]);
        let loaded = loaded.unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(loaded.settings, Settings::builtin());
        let missing: Vec<String> = loaded
            .print()
            .lines()
            .filter(|line| line.ends_with("# default"))
            .map(ToOwned::to_owned)
            .collect();
        assert_eq!(
            missing, [""; 0],
            "keys without a line in packaging/receptord.toml"
        );
    }

    #[test]
    fn its_examples_are_right() {
        let examples: Vec<&str> = SHIPPED
            .lines()
            .filter_map(|line| line.strip_prefix("#     "))
            .collect();
        let settings = Root::new()
            .with(DEFAULT_FILE, &examples.join("\n"))
            .settings();
        assert_eq!(settings.listen.len(), 2);
        assert_eq!(settings.control.group.as_deref(), Some("receptor"));
        assert!(
            settings.node_id.is_some()
                && settings.tls.is_some()
                && !settings.rules.allow.is_empty()
        );
        assert_eq!(settings.plugins.plugin.len(), 1);
    }
}
