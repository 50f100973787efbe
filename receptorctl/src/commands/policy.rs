//! `policy test`: what the rules permit, and which of them says so.
//!
//! Owns the question and the form of the answer. The rules are the daemon's, or those that its program
//! reads from a file; names of users are looked up here, so that no daemon waits for a directory service.

use std::ffi::CString;
use std::process::Stdio;

use nix::unistd::{Uid, User, getgrouplist};
use receptor_proto::control::{PolicyCommand, PolicyReply, PolicyUser};

use super::config::{cannot_run, daemon};
use super::{Context, With};
use crate::args::PolicyTest;
use crate::client::{Answer, PATIENCE};
use crate::exit::{Exit, Failure};
use crate::output::{Out, printable};

pub(super) fn test(context: &Context, args: &PolicyTest) -> Result<Exit, Failure> {
    let question = PolicyCommand {
        from: args.from.clone(),
        directive: args.directive.clone(),
        to: args.to.clone(),
        link: args.link.clone(),
        user: args.user.as_deref().map(user).transpose()?,
    };
    let (line, reply) = match &args.config {
        None => {
            let mut connection = context.connect()?;
            connection.set_deadline(context.deadline.or(PATIENCE));
            let command = With {
                command: "policy",
                fields: question,
            };
            let answer: Answer<PolicyReply> = connection.ask(&command)?;
            (answer.line, answer.value)
        }
        Some(file) => {
            let question = serde_json::to_string(&question).map_err(internal)?;
            let mut command = daemon();
            command.arg("--test-policy").arg(question);
            command.arg("--config").arg(file).stderr(Stdio::inherit());
            let output = command.output();
            let output = output.map_err(|error| cannot_run(&command, &error))?;
            if !output.status.success() {
                let text = "the rules could not be asked; see above";
                return Err(Failure::new(Exit::Configuration, text));
            }
            let line = output.stdout.trim_ascii_end();
            (line.into(), serde_json::from_slice(line).map_err(internal)?)
        }
    };
    let mut out = Out::new();
    if context.global.json {
        out.line(&line)?;
    } else {
        let says = match (&reply.right, reply.permitted) {
            (Some(right), _) => format!("may {}", printable(right)),
            (None, true) => "permitted".to_owned(),
            (None, false) => "denied".to_owned(),
        };
        out.line(format!("{says}: {}", printable(&reply.because)))?;
    }
    out.flush()?;
    Ok(if reply.permitted {
        Exit::Done
    } else {
        Exit::Failed
    })
}

fn internal(error: serde_json::Error) -> Failure {
    Failure::new(Exit::Internal, error.to_string())
}

/// A user of this host with its groups; one that has only a number has none.
fn user(text: &str) -> Result<PolicyUser, Failure> {
    let number = text.parse::<u32>().ok();
    let known = match number {
        Some(uid) => User::from_uid(Uid::from_raw(uid)),
        None => User::from_name(text),
    };
    match (known, number) {
        (Ok(Some(user)), _) => {
            let name = CString::new(user.name.as_str()).unwrap_or_default();
            let groups = getgrouplist(&name, user.gid).unwrap_or_else(|_| vec![user.gid]);
            Ok(PolicyUser {
                uid: user.uid.as_raw(),
                gids: groups.into_iter().map(nix::unistd::Gid::as_raw).collect(),
            })
        }
        (Ok(None) | Err(_), Some(uid)) => Ok(PolicyUser {
            uid,
            gids: Vec::new(),
        }),
        (Ok(None), None) => {
            let text = format!("this host has no user {}", printable(text));
            Err(Failure::new(Exit::Usage, text))
        }
        (Err(error), None) => {
            let text = format!("the user {} cannot be looked up: {error}", printable(text));
            Err(Failure::new(Exit::Unavailable, text))
        }
    }
}
