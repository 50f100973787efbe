//! A plugin as its author describes it.

use std::{
    collections::BTreeMap,
    fmt,
    io::{Read, Write},
    path::PathBuf,
    process::ExitCode,
    sync::Arc,
};

use receptor_proto::plugin::{
    ActionDescriptor, HostHello, Json, Mode, OutputKind, PROTOCOL_VERSION, PayloadKind,
    PluginHello, env, feature,
};

use crate::{
    Job, Outcome, Result,
    serve::{Handler, IsReady, Leave, ServeError, serve},
};

/// Exit status when the plugin was started by hand.
const EXIT_USAGE: u8 = 64;
/// Exit status when the daemon broke the protocol or the pipe.
const EXIT_PROTOCOL: u8 = 70;

/// One thing a plugin can do.
#[derive(Debug, Clone, Default)]
pub struct Action {
    descriptor: ActionDescriptor,
    inline: bool,
}

impl Action {
    /// An action that takes a JSON value.
    pub fn json() -> Self {
        Self::taking(PayloadKind::Json)
    }

    /// An action that takes UTF-8 text.
    pub fn text() -> Self {
        Self::taking(PayloadKind::Text)
    }

    /// An action that takes any bytes.
    pub fn bytes() -> Self {
        Self::taking(PayloadKind::Bytes)
    }

    /// An action that takes any bytes, always by file.
    pub fn file() -> Self {
        Self::taking(PayloadKind::File)
    }

    /// An action that takes nothing.
    pub fn no_payload() -> Self {
        Self::taking(PayloadKind::None)
    }

    fn taking(payload: PayloadKind) -> Self {
        Self {
            descriptor: ActionDescriptor {
                payload,
                output: OutputKind::Json,
                ..ActionDescriptor::default()
            },
            inline: false,
        }
    }

    /// One line for people.
    #[must_use]
    pub fn about(mut self, about: impl Into<String>) -> Self {
        self.descriptor.about = Some(about.into());
        self
    }

    /// A payload that works, for help and for `receptorctl plugin check`.
    #[must_use]
    pub fn example<T: serde::Serialize + ?Sized>(mut self, example: &T) -> Self {
        self.descriptor.example = Json::from_value(example).ok();
        self
    }

    /// Seconds after which the daemon ends a job, unless the node's configuration says otherwise.
    #[must_use]
    pub fn timeout_s(mut self, seconds: u64) -> Self {
        self.descriptor.timeout_s = Some(seconds);
        self
    }

    /// Seconds of silence after which the daemon ends a job.
    #[must_use]
    pub fn idle_timeout_s(mut self, seconds: u64) -> Self {
        self.descriptor.idle_timeout_s = Some(seconds);
        self
    }

    /// Largest payload in bytes.
    #[must_use]
    pub fn max_payload(mut self, bytes: u64) -> Self {
        self.descriptor.max_payload = Some(bytes);
        self
    }

    /// A job cut short may be run again without harm.
    #[must_use]
    pub fn idempotent(mut self) -> Self {
        self.descriptor.idempotent = true;
        self
    }

    /// Run the function on the thread that reads from the daemon, which saves microseconds a job.
    /// Only for functions that never wait: until one returns no other job starts and none can be
    /// cancelled. Serving plugins only.
    #[must_use]
    pub fn inline(mut self) -> Self {
        self.inline = true;
        self
    }
}

/// A plugin: who it is and what it can do.
pub struct Plugin {
    hello: PluginHello,
    actions: BTreeMap<String, Handler>,
    ready: Option<Box<IsReady>>,
}

impl Plugin {
    /// A plugin with one process a job. `name` must be the name of its executable.
    pub fn new(name: impl Into<String>, version: impl Into<String>) -> Self {
        Self {
            hello: PluginHello {
                protocol: PROTOCOL_VERSION,
                name: name.into(),
                version: version.into(),
                about: None,
                mode: Mode::Job,
                max_jobs: None,
                features: vec![feature::STATUS.to_owned(), feature::FILE.to_owned()],
                ready: true,
                reason: None,
                actions: BTreeMap::new(),
            },
            actions: BTreeMap::new(),
            ready: None,
        }
    }

    /// One line for people.
    #[must_use]
    pub fn about(mut self, about: impl Into<String>) -> Self {
        self.hello.about = Some(about.into());
        self
    }

    /// One process for up to `max_jobs` jobs at once, each on a thread of its own.
    #[must_use]
    pub fn serve(mut self, max_jobs: u32) -> Self {
        self.hello.mode = Mode::Serve;
        self.hello.max_jobs = Some(max_jobs);
        self
    }

    /// With one process a job: how many at once the plugin can bear.
    #[must_use]
    pub fn max_jobs(mut self, max_jobs: u32) -> Self {
        self.hello.max_jobs = Some(max_jobs);
        self
    }

    /// The actions' functions end in time when their job is cancelled. Without this the daemon
    /// goes straight to signals.
    #[must_use]
    pub fn cancelable(mut self) -> Self {
        self.hello.features.push(feature::CANCEL.to_owned());
        self
    }

    /// Whether jobs have a chance, and if not, why not. The function is asked before the hello,
    /// without the daemon's word, and again when the daemon has sent its hello with the plugin's
    /// configuration.
    #[must_use]
    pub fn ready_if<F>(mut self, ready: F) -> Self
    where
        F: Fn(Option<&HostHello>) -> std::result::Result<(), String> + Send + 'static,
    {
        self.ready = Some(Box::new(ready));
        self
    }

    /// Something the plugin can do. The function gets the job; what it returns is the job's one
    /// final message.
    #[must_use]
    pub fn action<F>(mut self, name: impl Into<String>, action: Action, run: F) -> Self
    where
        F: Fn(&Job) -> Result<Outcome> + Send + Sync + 'static,
    {
        let name = name.into();
        let handler = Handler {
            inline: action.inline,
            max_payload: action.descriptor.max_payload,
            run: Arc::new(run),
        };
        self.hello.actions.insert(name.clone(), action.descriptor);
        self.actions.insert(name, handler);
        self
    }

    /// The first line that the plugin says.
    pub fn hello(&self) -> &PluginHello {
        &self.hello
    }

    /// Speaks with the daemon on stdin and stdout until there is nothing more to do.
    #[expect(
        clippy::print_stderr,
        reason = "stderr is where a plugin speaks to people"
    )]
    pub fn run(self) -> ExitCode {
        let name = self.hello.name.clone();
        if std::env::var_os(env::PROTOCOL).is_none() {
            eprintln!(
                "{name} {} is a Receptor plugin, which receptord starts by itself; try: receptorctl plugin check {}",
                self.hello.version,
                std::env::args().next().unwrap_or(name.clone()),
            );
            return ExitCode::from(EXIT_USAGE);
        }
        let dir = std::env::var_os(env::JOB_DIR)
            .map(Into::into)
            .or_else(|| std::env::current_dir().ok())
            .unwrap_or_default();
        let conclude = move |ended| match ended {
            Ok(()) => 0,
            Err(e) => {
                let e: ServeError = e;
                eprintln!("<3>{name}: {e}");
                EXIT_PROTOCOL
            }
        };
        let leave = conclude.clone();
        let leave = Box::new(move |ended| std::process::exit(leave(ended).into()));
        let (input, output) = (std::io::stdin(), Box::new(std::io::stdout()));
        ExitCode::from(conclude(self.run_on(dir, input, output, leave)))
    }
}

impl Plugin {
    /// Speaks with a daemon on any two streams.
    pub(crate) fn run_on(
        self,
        dir: PathBuf,
        input: impl Read + Send + 'static,
        output: Box<dyn Write + Send>,
        leave: Box<Leave>,
    ) -> std::result::Result<(), ServeError> {
        let Self {
            hello,
            actions,
            ready,
        } = self;
        serve(hello, actions, ready, dir, input, output, leave)
    }
}

impl fmt::Debug for Plugin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Plugin")
            .field("hello", &self.hello)
            .finish_non_exhaustive()
    }
}
