//! Small commands that change something: `reload`, `log-level`.

use receptor_proto::control::{LogLevelCommand, LogLevelReply, ReloadReply};

use super::{Context, With, plain};
use crate::client::{Answer, PATIENCE};
use crate::exit::{Exit, Failure};
use crate::output::{Out, note, printable};

pub(super) fn log_level(context: &Context, level: Option<String>) -> Result<Exit, Failure> {
    let command = With {
        command: "log-level",
        fields: LogLevelCommand { level },
    };
    context.query(&command, |out, reply: &LogLevelReply| {
        out.line(&*printable(&reply.level))
    })
}

pub(super) fn reload(context: &Context) -> Result<Exit, Failure> {
    let mut connection = context.connect()?;
    connection.set_deadline(context.deadline.or(PATIENCE));
    let answer: Answer<ReloadReply> = connection.ask(&plain("reload"))?;
    let reply = answer.value;
    let mut out = Out::new();
    if context.global.json {
        out.line(&answer.line)?;
    } else if reply.success {
        for key in &reply.applied {
            out.line(format!("applied: {}", printable(key)))?;
        }
        for key in &reply.needs_restart {
            out.line(format!("needs a restart: {}", printable(key)))?;
        }
        if reply.applied.is_empty() && reply.needs_restart.is_empty() {
            note("reloaded; nothing has changed");
        }
    }
    out.flush()?;
    if !reply.success {
        let why = reply.error.as_deref().unwrap_or("no reason given");
        let text = format!("the configuration was not reloaded; the old one stays in force\n{why}");
        return Err(Failure::new(Exit::Configuration, text));
    }
    Ok(Exit::Done)
}
