//! Every target with the inputs that are known and a bounded number of mutations of them.
//!
//! `RECEPTOR_FUZZ=COUNT` takes so many of each target, `RECEPTOR_FUZZ_SEED=N` another sequence of them;
//! `RECEPTOR_FUZZ_TARGET=NAME` only that target. `RECEPTOR_FUZZ_SEEDS=DIR` writes out the inputs that
//! libFuzzer begins with.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use std::{env, fs};

use fastrand::Rng;
use receptor_fuzz::mutate::mutate;
use receptor_fuzz::seeds::seeds;
use receptor_fuzz::{Node, TARGETS, Target, corpus};

/// Mutations of each target: together some seconds of an unoptimized build.
const MUTATIONS: usize = 3_000;
/// No more of one target than this takes: the machine may have other things to do.
const TIME: Duration = Duration::from_secs(4);
/// Frames that one node takes from one neighbor.
const ENDLESS: usize = 3_000;
/// What all inputs that are kept may take, in bytes.
const CORPUS_MAX: u64 = 1 << 20;

fn number(name: &str) -> Option<u64> {
    let text = env::var(name).ok()?;
    Some(text.parse().expect("a number"))
}

/// Says which input it was.
struct Told<'a>(&'a str, &'a [u8]);

impl Drop for Told<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let Self(name, input) = self;
            let shown = input.escape_ascii();
            let path = env::temp_dir().join(format!("receptor-fuzz-{name}"));
            let kept = fs::write(&path, input).map(|()| path.display().to_string());
            panic_message(&format!("{name} fails with {kept:?}: b\"{shown}\""));
        }
    }
}

#[expect(clippy::print_stderr, reason = "a failed test tells its input")]
fn panic_message(text: &str) {
    eprintln!("{text}");
}

fn run(name: &str, target: Target, input: &[u8]) {
    let _told = Told(name, input);
    target(input);
}

fn kept(name: &str) -> Vec<Vec<u8>> {
    let mut paths: Vec<PathBuf> = fs::read_dir(corpus().join(name))
        .into_iter()
        .flatten()
        .map(|entry| entry.expect("the corpus can be listed").path())
        .collect();
    paths.sort();
    let read = |path: &PathBuf| fs::read(path).expect("the corpus can be read");
    paths.iter().map(read).collect()
}

/// One test, because memory is measured for the whole process.
#[test]
fn what_must_hold_for_all_bytes_holds() {
    let (count, time) = match number("RECEPTOR_FUZZ") {
        Some(count) => (usize::try_from(count).expect("a count"), Duration::MAX),
        None => (MUTATIONS, TIME),
    };
    let only = env::var("RECEPTOR_FUZZ_TARGET").ok();
    for (name, target) in TARGETS {
        if only.as_ref().is_some_and(|only| only != name) {
            continue;
        }
        let mut inputs = seeds(name);
        if let Ok(directory) = env::var("RECEPTOR_FUZZ_SEEDS") {
            write(&Path::new(&directory).join(name), &inputs);
        }
        inputs.extend(kept(name));
        for input in &inputs {
            run(name, target, input);
        }
        let began = Instant::now();
        let mut rng = Rng::with_seed(number("RECEPTOR_FUZZ_SEED").unwrap_or(1));
        for _ in 0..count {
            let [input, other] = [&inputs; 2].map(|inputs| &inputs[rng.usize(0..inputs.len())]);
            let input = mutate(&mut rng, input, other);
            run(name, target, &input);
            if began.elapsed() > time {
                break;
            }
        }
    }
    if only.is_none() {
        one_neighbor_for_long();
    }
}

/// What one neighbor sends adds up in one node: its bounds hold however long it goes on.
fn one_neighbor_for_long() {
    let mut inputs = seeds("neighbor");
    inputs.extend(kept("neighbor"));
    let mut rng = Rng::with_seed(2);
    let mut node = Node::new();
    for _ in 0..ENDLESS {
        let [input, other] = [&inputs; 2].map(|inputs| &inputs[rng.usize(0..inputs.len())]);
        let input = mutate(&mut rng, input, other);
        let _told = Told("neighbor", &input);
        node.take(&input);
    }
}

fn write(directory: &Path, inputs: &[Vec<u8>]) {
    fs::create_dir_all(directory).expect("a directory for the inputs");
    for (number, input) in inputs.iter().enumerate() {
        fs::write(directory.join(format!("seed-{number}")), input).expect("an input is written");
    }
}

#[test]
fn every_target_has_a_program_and_a_small_corpus() {
    let manifest = include_str!("../Cargo.toml");
    for (name, _) in TARGETS {
        let program = format!("name = \"fuzz_{name}\"\npath = \"targets/{name}.rs\"");
        assert!(manifest.contains(&program), "{name} has no program");
    }
    assert_eq!(manifest.matches("[[bin]]").count(), TARGETS.len());
    let mut bytes = 0;
    for directory in fs::read_dir(corpus()).expect("the corpora are there") {
        let directory = directory.expect("they can be listed").path();
        let name = directory.file_name().and_then(|name| name.to_str());
        let known = TARGETS.iter().any(|(target, _)| Some(*target) == name);
        assert!(known, "{} is the corpus of no target", directory.display());
        for input in fs::read_dir(directory).expect("a corpus is a directory") {
            bytes += input
                .and_then(|input| input.metadata())
                .map_or(0, |m| m.len());
        }
    }
    assert!(bytes <= CORPUS_MAX, "{bytes} bytes");
}
