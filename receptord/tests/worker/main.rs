//! The plugin host against plugins that keep the rules and one that breaks each of them.

mod discovery;
mod jobs;
mod rig;
mod rogues;
mod serving;
