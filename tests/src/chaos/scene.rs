//! Meshes of any form, and everything that can happen to one: nodes killed, frozen, ended, replaced
//! and in crash loops, wires cut, dead and silent, one after the other and at once.
//!
//! Owns the daemons of one run and what is between them: [`Relay`]s on loopback, or wires between
//! network namespaces. Form, places and sorts of faults follow from the seed; the times do not.

mod mix;

use std::fmt;
use std::fs;
use std::io::{self, Write as _};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

pub use self::mix::Mix;
use super::{Campaign, Excused, Runs, Summary, Taste, leftovers, wait_plugins};
use crate::netns::Lab;
use crate::power::{Dice, Power};
use crate::relay::Relay;
use crate::volume::Volume;
use crate::works::wait_agreement;
use crate::{DEADLINE, Daemon, LOOK_EVERY, Mesh};

/// Silence is noticed soon, and works that cannot end hold nobody up for long.
const CONFIG: &str = "[shutdown]\ndrain-timeout = \"2s\"\n\
     [link]\nhold-time = \"1s\"\nconnect-timeout = \"1s\"";
/// Clients of each controller.
const CLIENTS: usize = 6;
/// Where nodes in namespaces listen.
const PORT: u16 = 8888;
/// Without a message that is accepted for so long, the next fault comes all the same.
const IMPATIENCE: Duration = Duration::from_secs(2);
/// The size of a disk that is filled.
const DISK_MIB: u32 = 64;
/// Outages that end before anybody has noticed, and ones that everybody notices: the hold time is
/// a second.
const OUTAGES_MS: [u64; 4] = [10, 100, 900, 2_500];

/// Nodes by number, and what is between them.
#[derive(Debug, Clone)]
pub struct Form {
    name: String,
    nodes: usize,
    /// Who dials whom.
    links: Vec<(usize, usize)>,
    /// Who has clients.
    controllers: Vec<usize>,
    /// Who has plugins.
    workers: Vec<usize>,
    /// Works that run at once on a worker.
    max_works: usize,
    /// What is done to it, when that is not everything.
    mix: Option<Mix>,
}

impl Form {
    /// One that follows from the dice.
    #[must_use]
    pub fn any(dice: &mut Dice) -> Self {
        let (name, nodes, mut links, controllers, workers) = match dice.throw(6) {
            0 => {
                let nodes = 3 + dice.index(4);
                let links = (1..nodes).map(|node| (node, node - 1)).collect();
                ("chain", nodes, links, vec![0], vec![nodes - 1])
            }
            1 => {
                let nodes = 4 + dice.index(3);
                let mut links: Vec<_> = (1..nodes).map(|node| (node, node - 1)).collect();
                links.push((nodes - 1, 0));
                (
                    "ring",
                    nodes,
                    links,
                    vec![0],
                    vec![nodes / 2, nodes / 2 + 1],
                )
            }
            2 => {
                let nodes = 4 + dice.index(3);
                let mut links = vec![(1, 0)];
                links.extend((2..nodes).map(|node| (node, 1)));
                ("star", nodes, links, vec![0], (2..nodes).collect())
            }
            3 => {
                let links = vec![(1, 0), (2, 0), (3, 1), (3, 2)];
                ("diamond", 4, links, vec![0], vec![3])
            }
            4 => {
                let links = vec![(1, 0), (2, 1), (3, 2), (4, 3)];
                ("two controllers", 5, links, vec![0, 4], vec![2])
            }
            _ => {
                let links = vec![(1, 0), (2, 1), (2, 0), (3, 1), (3, 2)];
                ("mesh", 4, links, vec![0, 1], vec![2, 3])
            }
        };
        for (from, to) in &mut links {
            if dice.throw(3) == 0 {
                std::mem::swap(from, to);
            }
        }
        let mut form = Self {
            name: name.to_owned(),
            nodes,
            links,
            controllers,
            workers,
            max_works: [2, 8, 16][dice.index(3)],
            mix: None,
        };
        if dice.throw(4) == 0 {
            // Two links between the same nodes.
            let link = form.links[dice.index(form.links.len())];
            form.links.push(link);
        }
        let other = dice.index(nodes);
        if dice.throw(4) == 0 && !form.controllers.contains(&other) {
            form.controllers.push(other);
        }
        form
    }

    /// How many nodes it has.
    #[must_use]
    pub fn nodes(&self) -> usize {
        self.nodes
    }

    /// Who listens: not those who only dial.
    fn listens(&self, node: usize) -> bool {
        self.links.iter().any(|(_, to)| *to == node)
    }
}

impl fmt::Display for Form {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of {} {:?}", self.name, self.nodes, self.links)
    }
}

/// What ends an outage.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mend {
    /// Start a node again.
    Start(usize),
    /// Let a node go on.
    Continue(usize),
    /// Let a wire carry again.
    Wire(usize),
    /// Let packets to a host pass again.
    Hear(usize),
    /// Plug a host in again.
    Plug(usize),
    /// Let packets pass again.
    Forward,
    /// Give room back on a disk.
    Relieve,
}

/// What is between the nodes.
#[derive(Debug)]
enum Wires {
    Relays(Vec<Relay>),
    Lab(Lab),
}

/// A mesh at work.
#[derive(Debug)]
pub struct Scene {
    form: Form,
    nodes: Vec<Daemon>,
    wires: Wires,
    runs: Vec<Runs>,
    /// Of each node, when they are not only killed.
    power: Vec<Power>,
    /// A disk that can be filled, when there is one.
    volume: Option<Volume>,
    mends: Vec<(Instant, Mend)>,
    strikes: usize,
    story: String,
    began: Instant,
    // Behind the daemons, so that it goes when they are gone.
    mesh: Mesh,
}

impl Scene {
    /// Starts a mesh of this form, in network namespaces of this lab if there is one. With
    /// `power` nodes that are killed lose what no sync has made sure.
    ///
    /// # Panics
    ///
    /// When it does not start.
    #[must_use]
    pub fn start(form: &Form, lab: Option<Lab>, has_power: bool) -> Self {
        let mesh = Mesh::new();
        let relays: Vec<Relay> = match &lab {
            Some(_) => Vec::new(),
            None => form.links.iter().map(|_| Relay::new()).collect(),
        };
        let mut nodes = Vec::new();
        let mut runs = Vec::new();
        let mut power = Vec::new();
        let small = form.mix.and_then(Mix::small_disk);
        let mut volume = None;
        for number in 0..form.nodes {
            let name = format!("n{number}");
            let mut node = mesh.node(&name).config(CONFIG);
            if let Some(lab) = &lab {
                let url = format!("rnp://{}:{PORT}", Lab::address(number));
                node = (node.netns(&lab.host(number)).listen(&url)).arg("--allow-plaintext");
            }
            if small == Some(number) {
                let made = Volume::new(&node.data_dir(), DISK_MIB).expect("a small disk");
                node = node.volume(&made);
                volume = Some(made);
            }
            if !form.listens(number) {
                node = node.quiet();
            }
            for (link, (from, to)) in form.links.iter().enumerate() {
                let again = lab.is_some() && form.links[..link].contains(&(*from, *to));
                if *from != number || again {
                    continue;
                }
                let url = relays.get(link).map(Relay::url);
                let url = url.unwrap_or_else(|| format!("rnp://{}:{PORT}", Lab::address(*to)));
                node = node.peer_url(&url);
            }
            if form.workers.contains(&number) {
                let (noted, with) = Runs::install(&mesh, node, &name);
                runs.push(noted);
                node = with.config(&format!("max-works = {}", form.max_works));
            }
            if has_power {
                let (of_node, with) = Power::of(node);
                power.push(of_node);
                node = with;
            }
            nodes.push(node.start());
        }
        for (relay, (_, to)) in relays.iter().zip(&form.links) {
            relay.leads_to(&nodes[*to].address());
        }
        let workers = names(&form.workers);
        for controller in &form.controllers {
            let workers: Vec<&str> = workers.iter().map(String::as_str).collect();
            wait_plugins(&nodes[*controller], &workers);
        }
        Self {
            form: form.clone(),
            nodes,
            wires: lab.map_or(Wires::Relays(relays), Wires::Lab),
            runs,
            power,
            volume,
            mends: Vec::new(),
            strikes: 0,
            story: String::new(),
            began: Instant::now(),
            mesh,
        }
    }

    /// From now on no sync below these paths of any node makes anything durable.
    pub fn forget_syncs(&mut self, below: &[&str]) {
        for power in &mut self.power {
            power.forget_syncs(below);
        }
    }

    /// Has so many messages sent while so many things happen to it, and demands that every one of
    /// them comes to its end and nothing is left.
    ///
    /// # Panics
    ///
    /// When that is not so; with what happened.
    #[must_use]
    pub fn run(mut self, messages: usize, faults: usize, dice: &mut Dice) -> Summary {
        let workers = names(&self.form.workers);
        let workers: Vec<&str> = workers.iter().map(String::as_str).collect();
        let controllers = self.form.controllers.iter();
        let sockets: Vec<_> = controllers
            .map(|at| self.nodes[*at].socket_path())
            .collect();
        let many = (CLIENTS, messages);
        let taste = self.form.mix.map_or(Taste::default(), Mix::taste);
        let campaign = Campaign::start(&sockets, &workers, many, taste, dice);
        for fault in 0..faults {
            // Somewhere in its own part of the run.
            let part = (messages / faults).max(1);
            let at = fault * part + dice.index(part);
            let mut moved = (Instant::now(), campaign.accepted());
            while campaign.accepted() < at && !campaign.is_done() {
                self.mend();
                if campaign.accepted() > moved.1 {
                    moved = (Instant::now(), campaign.accepted());
                }
                if moved.0.elapsed() > IMPATIENCE {
                    break;
                }
                std::thread::sleep(LOOK_EVERY);
            }
            self.strike(dice);
        }
        let end = Instant::now() + DEADLINE;
        while !self.mends.is_empty() {
            assert!(Instant::now() < end, "{:?}", self.mends);
            self.mend();
            std::thread::sleep(LOOK_EVERY);
        }
        self.tell("all is mended");
        let interrupted = self.form.mix.is_none_or(Mix::ends_workers);
        let excused = Excused { interrupted };
        let runs = std::mem::take(&mut self.runs);
        let summary = campaign.account(&runs, excused);
        self.tell("all is accounted for");
        wait_agreement(&self.nodes);
        leftovers::assert_quiet(&self.nodes);
        // Its holder is one of ours; who is on it stays there.
        drop(self.volume.take());
        let nodes = std::mem::take(&mut self.nodes);
        leftovers::assert_none_left(self.mesh.dir(), nodes);
        self.tell("nothing is left");
        summary
    }

    /// Ends the outages whose time is over.
    fn mend(&mut self) {
        let now = Instant::now();
        let due: Vec<_> = self.mends.extract_if(.., |(at, _)| *at <= now).collect();
        for (_, mend) in due {
            self.tell(&format!("{mend:?}"));
            match (mend, &self.wires) {
                (Mend::Start(node), _) => self.nodes[node].restart(),
                (Mend::Continue(node), _) => self.nodes[node].signal(Signal::SIGCONT),
                (Mend::Wire(wire), Wires::Relays(relays)) => {
                    relays[wire].block(false);
                    relays[wire].freeze(false);
                }
                (Mend::Hear(host), Wires::Lab(lab)) => lab.deafen(host, false),
                (Mend::Plug(host), Wires::Lab(lab)) => lab.unplug(host, false),
                (Mend::Forward, Wires::Lab(lab)) => lab.forward(true),
                (Mend::Relieve, _) => self.volume.iter().for_each(Volume::relieve),
                (Mend::Wire(_) | Mend::Hear(_) | Mend::Plug(_) | Mend::Forward, _) => {}
            }
        }
    }

    /// Whether nothing is being done to a node.
    fn is_up(&self, node: usize) -> bool {
        let of =
            |mend: &(Instant, Mend)| mend.1 == Mend::Start(node) || mend.1 == Mend::Continue(node);
        !self.mends.iter().any(of)
    }

    fn later(&mut self, outage: Duration, mend: Mend) {
        self.mends.push((Instant::now() + outage, mend));
    }

    /// Does something to it.
    fn strike(&mut self, dice: &mut Dice) {
        let outage = OUTAGES_MS[dice.index(OUTAGES_MS.len())];
        let outage = Duration::from_millis(dice.throw(outage));
        if let Some(mix) = self.form.mix {
            return self.strike_as(mix, outage, dice);
        }
        let victim = dice.index(self.nodes.len());
        let what = dice.throw(16);
        if what >= 11 {
            return self.strike_wires(what, outage, dice);
        }
        if !self.is_up(victim) {
            return;
        }
        match what {
            0..=3 => {
                self.tell(&format!("kill n{victim} for {outage:?}"));
                self.kill(victim, dice);
                self.later(outage, Mend::Start(victim));
            }
            4 | 5 => {
                let most = if what == 4 { 2 } else { self.nodes.len() };
                self.tell(&format!(
                    "kill {most} at once from n{victim} on for {outage:?}"
                ));
                for step in 0..most {
                    let node = (victim + step) % self.nodes.len();
                    if self.is_up(node) {
                        self.kill(node, dice);
                        self.later(outage, Mend::Start(node));
                    }
                }
            }
            6 => {
                self.tell(&format!("end n{victim} for {outage:?}"));
                self.nodes[victim].stop();
                self.later(outage, Mend::Start(victim));
            }
            7 => {
                self.tell(&format!("a crash loop of n{victim}"));
                for _ in 0..3 {
                    self.kill(victim, dice);
                    self.nodes[victim].restart();
                }
            }
            8 => {
                // Only those that are responsible for nothing.
                let form = &self.form;
                if form.controllers.contains(&victim) || form.workers.contains(&victim) {
                    return;
                }
                self.tell(&format!("an empty n{victim} after {outage:?}"));
                self.nodes[victim].kill();
                fs::remove_dir_all(self.nodes[victim].data_dir()).expect("a data directory");
                if let Some(power) = self.power.get_mut(victim) {
                    power.renew();
                }
                self.later(outage, Mend::Start(victim));
            }
            _ => {
                self.tell(&format!("freeze n{victim} for {outage:?}"));
                self.nodes[victim].signal(Signal::SIGSTOP);
                self.later(outage, Mend::Continue(victim));
            }
        }
    }

    fn kill(&mut self, node: usize, dice: &mut Dice) {
        match self.power.get_mut(node) {
            Some(power) => power.fail(&mut self.nodes[node], dice),
            None => self.nodes[node].kill(),
        }
    }

    fn strike_wires(&mut self, what: u64, outage: Duration, dice: &mut Dice) {
        let host = dice.index(self.nodes.len());
        let wire = dice.index(self.form.links.len());
        let mends = [
            Mend::Hear(host),
            Mend::Plug(host),
            Mend::Wire(wire),
            Mend::Forward,
        ];
        if (self.mends.iter()).any(|(_, mend)| mends.contains(mend)) {
            return;
        }
        self.tell(&format!("wires {what} at {wire} or n{host} for {outage:?}"));
        let mend = match (&self.wires, what) {
            (Wires::Relays(relays), 11) => {
                relays.iter().for_each(Relay::cut);
                return;
            }
            (Wires::Relays(relays), 12 | 13) => {
                relays[wire].block(true);
                relays[wire].cut();
                Mend::Wire(wire)
            }
            (Wires::Relays(relays), _) => {
                relays[wire].freeze(true);
                Mend::Wire(wire)
            }
            (Wires::Lab(lab), 11) => {
                lab.forward(false);
                Mend::Forward
            }
            (Wires::Lab(lab), 12) => {
                lab.unplug(host, true);
                Mend::Plug(host)
            }
            (Wires::Lab(lab), 13) => {
                // Packets are lost, again and again.
                for _ in 0..10 {
                    lab.deafen(host, true);
                    lab.deafen(host, false);
                }
                return;
            }
            (Wires::Lab(lab), _) => {
                lab.deafen(host, true);
                Mend::Hear(host)
            }
        };
        self.later(outage, mend);
    }

    fn tell(&mut self, what: &str) {
        let line = format!("{:>8.3?} {what}\n", self.began.elapsed());
        self.story.push_str(&line);
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let text = format!("{:?}\n{}", self.form, self.story);
            let _ = io::stderr().write_all(text.as_bytes());
        }
    }
}

fn names(nodes: &[usize]) -> Vec<String> {
    nodes.iter().map(|node| format!("n{node}")).collect()
}
