//! Receptor.
fn main() {}
