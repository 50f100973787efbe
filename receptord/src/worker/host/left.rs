//! Processes that an earlier daemon has left, and what becomes of them.
//!
//! Owns them until it is known which of their works go on: what a process says must not be heard before, or the words
//! about a work that is asked for next would be nobody's. Then each goes to the task that its kind of process has, or
//! is ended.

use std::fs;
use std::path::Path;
use std::rc::Rc;

use receptor_proto::ErrorCode;
use receptor_proto::plugin::ActionDescriptor;

use super::{Host, Work, run_job, run_server};
use crate::by_id::ById;
use crate::task;
use crate::worker::api::Job;
use crate::worker::holder::{LeftWork, Parts, Resumed, Whose};
use crate::worker::job;
use crate::worker::outcome::error;
use crate::worker::running::{Control, Places, Terms};
use crate::worker::serve::{self, NewJob, Server};

/// A process that an earlier daemon has left.
#[derive(Debug)]
pub(super) struct Left {
    resumed: Resumed,
    server: Rc<Server>,
    /// Those of its works that go on, and how many of the results that come first are the engine's already.
    jobs: Vec<(NewJob, u64)>,
}

impl Host {
    /// Has these processes ready for [`crate::worker::Command::GoOn`].
    pub fn hold(&mut self, left: Vec<Resumed>) {
        for resumed in left {
            self.spared.insert(resumed.name().to_owned());
            let works = resumed.works().map(|(work, ..)| work.to_string());
            self.spared.extend(works);
            let number = self.shared.next_number();
            let server = Server::left(number, resumed.name().to_owned());
            self.left.push(Left {
                resumed,
                server: Rc::new(server),
                jobs: Vec::new(),
            });
        }
    }

    /// A work whose process was left goes on, once it is known which others do. It has a place, whether there is one
    /// or not.
    pub(super) fn go_on(&mut self, job: Box<Job>, repeats: u64) {
        if self.stopping.is_some() {
            // It is left already.
            return;
        }
        let (work, directive) = (job.work, job.directive.clone());
        // A plugin's user could forge whose works its process has.
        let has = |left: &&mut Left| {
            let resumed = &left.resumed;
            resumed.plugin() == directive.plugin() && resumed.works().any(|(its, ..)| its == work)
        };
        let Some(left) = self.left.iter_mut().find(has) else {
            let text = "its node was restarted while the work ran";
            return self.refuse(work, error(ErrorCode::Interrupted, text));
        };
        tracing::info!(%work, %directive, "a work goes on that was running before the restart");
        self.admission.take_anyway(directive.plugin());
        let control = Rc::new(Control::new(work, left.server.changes()));
        control.start();
        let new = NewJob {
            job,
            terms: Terms::of(&ActionDescriptor::default()),
            control: Rc::clone(&control),
        };
        left.jobs.push((new, repeats));
        let server = match left.resumed.whose() {
            Whose::Work(_) => None,
            Whose::Plugin(_) => Some(left.server.number),
        };
        self.works.insert(
            work,
            Work::Running {
                directive,
                control,
                server,
            },
        );
    }

    /// Nobody asks for the other works of the processes that were left.
    pub(super) fn end_others(&mut self) {
        for left in std::mem::take(&mut self.left) {
            if left.jobs.is_empty() {
                self.end_left(left.resumed);
            } else {
                self.go_on_with(left);
            }
        }
    }

    /// Goes on with a process that was left, of whose works at least one is wanted.
    fn go_on_with(&mut self, left: Left) {
        let Left {
            resumed,
            server,
            jobs,
        } = left;
        let whose = resumed.whose().clone();
        let Parts {
            remote,
            note,
            works,
        } = match resumed.into_parts() {
            Ok(parts) => parts,
            Err(problem) => {
                for (new, _) in jobs {
                    let text =
                        format!("its node was restarted and cannot go on with it: {problem}");
                    self.admission.give_back(new.job.directive.plugin());
                    self.refuse(new.job.work, error(ErrorCode::Interrupted, text));
                }
                return;
            }
        };
        let is_wanted = |work| jobs.iter().any(|(new, _)| new.job.work == work);
        let files = works.iter().map(|left| {
            let seen = is_wanted(left.work).then_some(left.mark.files);
            (left.work, seen.unwrap_or(u32::MAX))
        });
        remove_seen(&self.config.results(), &files.collect());
        let mut works: ById<LeftWork> = works.into_iter().map(|left| (left.work, left)).collect();
        let mut jobs: Vec<_> = jobs
            .into_iter()
            .filter_map(|(mut new, repeats)| {
                let left = works.remove(&new.job.work)?;
                new.terms = Terms::of(&left.entry.action);
                Some((new, left, repeats))
            })
            .collect();
        let shared = Rc::clone(&self.shared);
        let config = Rc::clone(&self.config);
        let plugin = note.plugin();
        match whose {
            Whose::Work(_) => {
                let Some((new, left, repeats)) = jobs.pop() else {
                    return;
                };
                run_job(job::Task {
                    shared,
                    config,
                    plugin,
                    hello: Rc::new(note.hello.clone()),
                    action: left.entry.action.clone(),
                    job: new.job,
                    control: new.control,
                    resumed: Some(job::GoingOn {
                        remote,
                        note,
                        left,
                        repeats,
                    }),
                });
            }
            Whose::Plugin(name) => {
                // Its file may be gone by now.
                self.plugins.entry(name).or_default().servers += 1;
                run_server(serve::Task {
                    shared,
                    config,
                    plugin,
                    server,
                    resumed: Some(serve::GoingOn { remote, note, jobs }),
                });
            }
        }
    }

    /// Ends a process that was left and that nobody has asked for.
    fn end_left(&mut self, resumed: Resumed) {
        self.spared.remove(resumed.name());
        let name = resumed.name().to_owned();
        tracing::info!(name, "a plugin is ended whose works are over");
        let places = Places {
            dir: self.config.jobs().join(name),
            results: self.config.results(),
        };
        let shared = Rc::clone(&self.shared);
        task::spawn("end of a left plugin", job::end(resumed, places, shared));
    }

    /// Leaves to the next daemon what was left to this one and has not begun here.
    pub(super) fn leave_again(&mut self) {
        for left in std::mem::take(&mut self.left) {
            for (new, _) in left.jobs {
                self.works.remove(&new.job.work);
                self.admission.give_back(new.job.directive.plugin());
            }
            left.resumed.leave();
        }
    }
}

/// Removes result files up to these numbers, which the earlier daemon had not come to.
fn remove_seen(results: &Path, seen: &ById<u32>) {
    for entry in fs::read_dir(results).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let mut parts = name.to_str().unwrap_or_default().split('.');
        let work = parts.next().and_then(|work| work.parse().ok());
        let number: Option<u32> = parts.next().and_then(|number| number.parse().ok());
        if let (Some(work), Some(number)) = (work, number)
            && seen.get(&work).is_some_and(|seen| number <= *seen)
        {
            let _ = fs::remove_file(entry.path());
        }
    }
}
