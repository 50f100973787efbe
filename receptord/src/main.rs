//! The daemon `receptord`.
//!
//! Owns the order of the steps of a start, which is the order of the lines in [`start`],
//! and how a failed one is told: one line for each cause on standard error or in the
//! journal, and an exit code.

use std::error::Error;
use std::io::{self, Write as _};

use clap::{CommandFactory as _, Parser as _};
use nix::sys::stat::{Mode, umask};
use receptord::cli::{Cli, Inspect};
use receptord::config::{ConfigError, Environment, Loaded, load};
use receptord::data_dir::DataDir;
use receptord::exit::Exit;
use receptord::keyring::Keys;
use receptord::log;
use receptord::policy::explain;
use receptord::run::{Handles, run};
use receptord::systemd::{Notifier, Passed};
use receptord::task;
use tokio::task::LocalSet;

fn main() -> Exit {
    receptord::worker::exec::intercept();
    receptord::worker::holder::program::intercept();
    let cli = Cli::parse();
    let taken = Passed::take_all().and_then(|passed| Ok((passed.waiting()?, passed)));
    let (waiting, passed) = match taken {
        Ok(taken) => taken,
        Err(error) => return tell(Exit::Unavailable, &error),
    };
    match start(cli, passed) {
        Ok(Exit::Ok) => Exit::Ok,
        Ok(exit) | Err(exit) => {
            waiting.send_away(exit);
            exit
        }
    }
}

fn start(cli: Cli, passed: Passed) -> Result<Exit, Exit> {
    if let Some(dir) = &cli.pages {
        receptor_pages::write(Cli::command(), "8", dir)
            .map_err(|error| tell(Exit::Unavailable, &error))?;
        return Ok(Exit::Ok);
    }
    let environment = Environment::of_process();
    let loaded = load(&cli, &environment).map_err(|error| tell(Exit::Configuration, &error))?;
    let Inspect {
        check_config,
        print_config,
        test_policy,
    } = &cli.inspect;
    let inspects = *check_config || *print_config || test_policy.is_some();
    let keys = keys(&loaded, inspects).map_err(|error| tell(Exit::Configuration, &error))?;
    if inspects {
        return Ok(inspect(&cli, &loaded));
    }
    let Loaded {
        settings,
        warnings,
        files,
        ..
    } = loaded;

    let log = log::init(&settings.log.level).map_err(|error| tell(Exit::Internal, &error))?;
    for warning in warnings {
        tracing::warn!("{warning}");
    }
    tracing::debug!(?files, "configuration read");
    for name in passed.names() {
        tracing::debug!(name, "descriptor passed by the service manager");
    }

    // Whatever the daemon writes is for its own user, unless something says otherwise.
    umask(Mode::from_bits_truncate(0o077));
    let data_dir =
        DataDir::open(&settings.data_dir).map_err(|error| log_error(error.exit(), &error))?;
    let node_id = data_dir
        .node_id(settings.node_id.as_ref())
        .map_err(|error| log_error(error.exit(), &error))?;
    log.name_node(&node_id);

    if let (Some(keys), Some(tls)) = (&keys, &settings.tls) {
        keys.check_node(tls, &node_id)
            .map_err(|problem| log_error(Exit::Configuration, &problem))?;
    }

    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| log_error(Exit::Unavailable, &error))?;
    let notifier = Notifier;
    let handles = Handles {
        node_id,
        data_dir,
        passed,
        notifier,
        log,
        cli,
        environment,
        keys,
    };
    // As a task like the others: what `block_on` is given is polled whenever any task is woken.
    let exit = LocalSet::new().block_on(&runtime, async {
        match task::spawn("main", run(settings, handles)).await {
            Ok(exit) => exit,
            Err(error) => log_error(Exit::Internal, &error),
        }
    });
    tracing::debug!(tasks = ?task::running(), "stopped");
    Ok(exit)
}

/// Reads the files that `[tls]` names. Whoever only inspects a configuration may not see what the service will.
fn keys(loaded: &Loaded, inspects: bool) -> Result<Option<Keys>, ConfigError> {
    let Some(tls) = &loaded.settings.tls else {
        return Ok(None);
    };
    match Keys::read(tls) {
        Ok(keys) => Ok(Some(keys)),
        Err(problem) if inspects && problem.may_be_credential => {
            complain(&format!(
                "warning: {problem}; it is not checked, because it may be a credential of the service"
            ));
            Ok(None)
        }
        Err(problem) => {
            let problem = loaded.problem(problem.key, problem.message());
            Err(ConfigError {
                problems: vec![problem],
            })
        }
    }
}

/// `--check-config`, `--print-config` and `--test-policy`, after the configuration was found to be right.
fn inspect(cli: &Cli, loaded: &Loaded) -> Exit {
    for warning in &loaded.warnings {
        complain(&format!("warning: {warning}"));
    }
    if cli.inspect.print_config {
        return print(&loaded.print());
    }
    if let Some(question) = &cli.inspect.test_policy {
        let settings = &loaded.settings;
        let answer = serde_json::from_str(question)
            .map_err(|error| error.to_string())
            .and_then(|question| {
                // As which user the daemon would run is not known.
                let answer = explain(&settings.rules, settings.node_id.as_ref(), 0, &question);
                answer.map_err(|error| error.message)
            })
            .and_then(|answer| serde_json::to_string(&answer).map_err(|error| error.to_string()));
        return match answer {
            Ok(line) => print(&format!("{line}\n")),
            Err(error) => {
                complain(&format!("--test-policy: {error}"));
                Exit::Usage
            }
        };
    }
    Exit::Ok
}

fn print(text: &str) -> Exit {
    match io::stdout().write_all(text.as_bytes()) {
        // A reader that has seen enough, such as `head`, is no failure.
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => tell(Exit::Unavailable, &error),
        Ok(()) | Err(_) => Exit::Ok,
    }
}

/// Tells a failure before there is a log.
fn tell(exit: Exit, error: &dyn Error) -> Exit {
    for cause in chain(error) {
        complain(&cause);
    }
    exit
}

/// Tells a failure of the start once there is a log.
fn log_error(exit: Exit, error: &dyn Error) -> Exit {
    tracing::error!("{}", chain(error).join(": "));
    exit
}

fn chain(error: &dyn Error) -> Vec<String> {
    std::iter::successors(Some(error), |error| (*error).source())
        .map(ToString::to_string)
        .collect()
}

#[expect(
    clippy::print_stderr,
    reason = "there is no log before the configuration is known"
)]
fn complain(text: &str) {
    for line in text.lines() {
        eprintln!("receptord: {line}");
    }
}
