//! One file a command: asks the daemon and shows the answer.

mod cert;
mod completions;
mod config;
mod lists;
mod new;
mod offline;
mod ops;
mod ping;
mod plugin;
mod policy;
mod send;
mod spool;
mod status;
mod traceroute;
mod work;

use receptor_proto::control::Envelope;
use serde::Deserialize;

use crate::args::{Cert, Cli, Command, Config, DeadLetter, Global, Plugin, Policy, Spool, Work};
use crate::client::{Answer, Connection, Deadline, PATIENCE};
use crate::exit::{Exit, Failure};
use crate::output::Out;

/// Does what the command line asks for.
pub(crate) fn run(cli: Cli) -> Result<Exit, Failure> {
    let context = Context {
        deadline: Deadline::after(cli.global.timeout),
        global: cli.global.without_empty()?,
    };
    match cli.command {
        Command::Ping(args) => ping::run(&context, &args),
        Command::Send(args) => send::run(&context, *args),
        Command::Status => status::run(&context),
        Command::Nodes => lists::nodes(&context),
        Command::Routes => lists::routes(&context),
        Command::Links => lists::links(&context),
        Command::Capabilities => lists::capabilities(&context),
        Command::Traceroute(args) => traceroute::run(&context, &args),
        Command::Work(Work::List) => work::list(&context),
        Command::Work(Work::Show { work }) => work::show(&context, work.id),
        Command::Work(Work::Results { work, follow }) => send::results(&context, work.id, follow),
        Command::Work(Work::Cancel { work }) => work::cancel(&context, work.id),
        Command::Work(Work::Release { work }) => work::release(&context, work.id),
        Command::Spool(Spool::List { stopped }) => spool::list(&context, None, &stopped),
        Command::Spool(Spool::Show { work, stopped }) => {
            spool::list(&context, Some(work.id), &stopped)
        }
        Command::Spool(Spool::Drop { work }) => spool::drop(&context, work.id),
        Command::DeadLetter(DeadLetter::List { stopped }) => spool::letters(&context, &stopped),
        Command::DeadLetter(DeadLetter::Retry { work, expires }) => {
            spool::retry(&context, work.id, expires)
        }
        Command::DeadLetter(DeadLetter::Drop { work }) => spool::drop_letter(&context, work.id),
        Command::Plugin(Plugin::List) => plugin::list(&context),
        Command::Plugin(Plugin::Describe(args)) => plugin::describe(&context, &args.name),
        Command::Plugin(Plugin::Run(args)) => {
            crate::check::play(&args, context.global.json, context.global.timeout)
        }
        Command::Plugin(Plugin::New(args)) => new::run(&args),
        Command::Plugin(Plugin::Check(args)) => {
            crate::check::run(&args, context.global.json, context.global.timeout)
        }
        Command::Plugin(Plugin::Restart { name }) => plugin::restart(&context, name),
        Command::Cert(Cert::InitCa(args)) => cert::init_ca(&args),
        Command::Cert(Cert::Issue(args)) => cert::issue(&args),
        Command::Cert(Cert::Show { file }) => cert::show(&file, context.global.json),
        Command::Policy(Policy::Test(args)) => policy::test(&context, &args),
        Command::Config(Config::Check { file }) => config::check(file.as_deref()),
        Command::Reload => ops::reload(&context),
        Command::LogLevel(args) => ops::log_level(&context, args.level),
        Command::Completions(args) => completions::run(args.shell),
        Command::Pages { dir } => match receptor_pages::write(crate::command(), "1", &dir) {
            Ok(()) => Ok(Exit::Done),
            Err(error) => Err(Failure::system("write the pages", &error)),
        },
    }
}

/// What every command needs.
#[derive(Debug)]
struct Context {
    global: Global,
    deadline: Deadline,
}

impl Context {
    fn connect(&self) -> Result<Connection, Failure> {
        Connection::open(&self.global.socket_path, self.deadline)
    }

    /// Asks for something that the daemon knows by itself, and shows the line with `--json`, or else
    /// what `show` makes of it.
    fn query<T: for<'a> Deserialize<'a>>(
        &self,
        command: &impl serde::Serialize,
        show: impl FnOnce(&mut Out, &T) -> Result<(), Failure>,
    ) -> Result<Exit, Failure> {
        let mut connection = self.connect()?;
        connection.set_deadline(self.deadline.or(PATIENCE));
        let answer: Answer<T> = connection.ask(command)?;
        let mut out = Out::new();
        if self.global.json {
            out.line(&answer.line)?;
        } else {
            show(&mut out, &answer.value)?;
        }
        out.flush()?;
        Ok(Exit::Done)
    }
}

/// A command that has nothing but its name.
fn plain(command: &str) -> Envelope {
    Envelope {
        command: command.to_owned(),
        tag: None,
    }
}

/// A command with its fields.
#[derive(serde::Serialize)]
struct With<'a, T> {
    command: &'a str,
    #[serde(flatten)]
    fields: T,
}
