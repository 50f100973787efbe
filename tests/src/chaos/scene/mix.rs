//! Faults of a few sorts at once, on a form and with messages that they are hard for.
//!
//! Owns what each mix does. How it is done, and what must hold at the end, is the scene's.

use std::time::Duration;

use nix::sys::signal::Signal;

use super::{Form, Mend, Scene, Wires};
use crate::chaos::Taste;
use crate::power::Dice;
use crate::volume::Volume;

/// The router with a small disk, and the worker behind it, of [`Mix::FullRouter`].
const SMALL: usize = 1;
const BEHIND: usize = 2;
/// Of that disk so much may be left.
const LEFT: usize = 64 << 10;

/// What is done to a mesh, while every third message is cancelled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mix {
    /// Two controllers send to any of three workers, which are killed, up to all at once.
    KilledWorkers,
    /// The links of a ring are cut one after the other, and overlapping, while large payloads
    /// travel. No node comes to harm, so no work does.
    CutRing,
    /// A router whose disk is full is frozen, while the worker behind it is killed and messages
    /// go into custody. It is not killed: a node without any room does not start.
    FullRouter,
}

impl Mix {
    /// The mesh that it is done to.
    #[must_use]
    pub fn form(self, dice: &mut Dice) -> Form {
        let (name, nodes, links, controllers, workers) = match self {
            Self::KilledWorkers => {
                let links = vec![(0, 2), (1, 2), (3, 2), (4, 2), (5, 2)];
                ("star", 6, links, vec![0, 1], vec![3, 4, 5])
            }
            Self::CutRing => {
                let links = vec![(1, 0), (2, 1), (3, 2), (4, 3), (0, 4)];
                ("ring", 5, links, vec![0], vec![2, 3])
            }
            Self::FullRouter => {
                let links = vec![(0, SMALL), (BEHIND, SMALL), (3, 0), (3, BEHIND)];
                ("diamond", 4, links, vec![0], vec![BEHIND])
            }
        };
        Form {
            name: format!("{name}, {self:?}"),
            nodes,
            links,
            controllers,
            workers,
            max_works: [2, 8, 16][dice.index(3)],
            mix: Some(self),
        }
    }

    pub(super) fn taste(self) -> Taste {
        Taste {
            any: self == Self::KilledWorkers,
            large: self == Self::CutRing,
            cancels: true,
        }
    }

    /// Whose disk can be filled.
    pub(super) fn small_disk(self) -> Option<usize> {
        match self {
            Self::KilledWorkers | Self::CutRing => None,
            Self::FullRouter => Some(SMALL),
        }
    }

    /// Whether works are cut short.
    pub(super) fn ends_workers(self) -> bool {
        match self {
            Self::KilledWorkers | Self::FullRouter => true,
            Self::CutRing => false,
        }
    }
}

impl Scene {
    pub(super) fn strike_as(&mut self, mix: Mix, outage: Duration, dice: &mut Dice) {
        self.strikes += 1;
        match mix {
            Mix::KilledWorkers => {
                let workers = self.form.workers.clone();
                let most = 1 + dice.index(workers.len());
                for step in 0..most {
                    self.kill_for(workers[(self.strikes + step) % workers.len()], outage, dice);
                }
            }
            Mix::CutRing => {
                let wire = self.strikes % self.form.links.len();
                if let Wires::Relays(relays) = &self.wires
                    && !self.awaits(Mend::Wire(wire))
                {
                    relays[wire].block(true);
                    relays[wire].cut();
                    self.tell(&format!("wire {wire} is cut for {outage:?}"));
                    self.later(outage, Mend::Wire(wire));
                }
            }
            Mix::FullRouter => {
                if !self.awaits(Mend::Relieve) {
                    let left = dice.index(LEFT);
                    self.volume
                        .iter()
                        .for_each(|volume: &Volume| volume.fill(left));
                    self.tell(&format!("{left} bytes are left on the disk of n{SMALL}"));
                    self.later(outage * 2, Mend::Relieve);
                }
                if self.is_up(SMALL) {
                    self.tell(&format!("freeze n{SMALL} for {outage:?}"));
                    self.nodes[SMALL].signal(Signal::SIGSTOP);
                    self.later(outage, Mend::Continue(SMALL));
                }
                self.kill_for(BEHIND, outage * 2, dice);
            }
        }
    }

    fn kill_for(&mut self, node: usize, outage: Duration, dice: &mut Dice) {
        if self.is_up(node) {
            self.tell(&format!("kill n{node} for {outage:?}"));
            self.kill(node, dice);
            self.later(outage, Mend::Start(node));
        }
    }

    fn awaits(&self, mend: Mend) -> bool {
        self.mends.iter().any(|(_, other)| *other == mend)
    }
}
