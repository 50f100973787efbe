//! Manual pages and completions of a program, made from its command line when it is packaged.
//!
//! Owns the form of both, so that the programs look alike. Never says anything of its own: every word
//! is the help of an option or a command. What no command line knows (files, signals, other pages) is in
//! `packaging/man`, and the Makefile appends it.

#![forbid(unsafe_code)]

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::Path;

use clap::Command;
use clap_complete::{generate, shells};
use clap_mangen::Man;
use clap_mangen::roff::{Roff, bold, roman};

/// What is printed at the foot of every page.
const MANUAL: &str = "Receptor";

/// Writes the pages of `command` and of all its sub-commands to `dir/man`, and completions to
/// `dir/bash`, `dir/zsh` and `dir/fish`, each named as the shells want it.
///
/// # Errors
///
/// When a directory or file cannot be written.
pub fn write(command: Command, section: &str, dir: &Path) -> io::Result<()> {
    completions(command.clone(), dir)?;
    let man = dir.join("man");
    fs::create_dir_all(&man)?;
    let mut command = command.disable_help_subcommand(true);
    // Only a built command knows the whole names of its sub-commands.
    command.build();
    let version = command.get_version().unwrap_or_default().to_owned();
    pages(&command, None, section, &version, &man)
}

fn completions(mut command: Command, dir: &Path) -> io::Result<()> {
    let name = command.get_name().to_owned();
    let file = |shell: &str, name: String| {
        let dir = dir.join(shell);
        fs::create_dir_all(&dir)?;
        File::create(dir.join(name))
    };
    let mut bash = file("bash", name.clone())?;
    let mut zsh = file("zsh", format!("_{name}"))?;
    let mut fish = file("fish", format!("{name}.fish"))?;
    generate(shells::Bash, &mut command, &name, &mut bash);
    generate(shells::Zsh, &mut command, &name, &mut zsh);
    generate(shells::Fish, &mut command, &name, &mut fish);
    Ok(())
}

fn pages(
    command: &Command,
    parent: Option<&str>,
    section: &str,
    version: &str,
    dir: &Path,
) -> io::Result<()> {
    let name = command.get_display_name().unwrap_or(command.get_name());
    for sub in command.get_subcommands().filter(|sub| !sub.is_hide_set()) {
        pages(sub, Some(name), section, version, dir)?;
    }
    let mut page = File::create(dir.join(format!("{name}.{section}")))?;
    let man = Man::new(command.clone()).section(section);
    // Without a date: the version says how old it is, and two builds are the same. clap_mangen would leave out the field.
    let title = name.to_uppercase().replace('-', "\\-");
    writeln!(
        page,
        ".TH {title} {section} \"\" \"{MANUAL} {version}\" \"{MANUAL}\""
    )?;
    man.render_name_section(&mut page)?;
    man.render_synopsis_section(&mut page)?;
    man.render_description_section(&mut page)?;
    if command
        .get_arguments()
        .any(|argument| !argument.is_hide_set())
    {
        man.render_options_section(&mut page)?;
    }
    if command.get_subcommands().any(|sub| !sub.is_hide_set()) {
        man.render_subcommands_section(&mut page)?;
    }
    let after = command
        .get_after_long_help()
        .or_else(|| command.get_after_help())
        .map(ToString::to_string);
    let mut rest = Roff::new();
    for paragraph in after.iter().flat_map(|text| text.split("\n\n")) {
        after_help(paragraph, &mut rest);
    }
    if let Some(parent) = parent {
        rest.control("SH", ["SEE ALSO"]);
        rest.text([bold(parent), roman(format!("({section})"))]);
    }
    rest.to_writer(&mut page)?;
    page.flush()
}

/// The heading of a manual for what stands before the colon in a help text.
const HEADINGS: [(&str, &str); 4] = [
    ("Example", "EXAMPLES"),
    ("Examples", "EXAMPLES"),
    ("Environment", "ENVIRONMENT"),
    ("Exit codes", "EXIT STATUS"),
];

/// A paragraph of the text after the options: a section, when it begins with one of the words that have a heading.
fn after_help(paragraph: &str, page: &mut Roff) {
    let (first, lines) = paragraph.split_once('\n').unwrap_or((paragraph, ""));
    let heading = first.split_once(':').and_then(|(title, rest)| {
        let (_, heading) = HEADINGS.iter().find(|(known, _)| *known == title)?;
        Some((*heading, rest.trim()))
    });
    let Some((heading, rest)) = heading else {
        page.control("PP", []);
        page.text([roman(paragraph)]);
        return;
    };
    page.control("SH", [heading]);
    if !rest.is_empty() {
        page.text([roman(rest)]);
    }
    if heading == "EXAMPLES" {
        page.control("EX", []);
        for line in lines.lines() {
            page.text([roman(line.trim_start())]);
        }
        page.control("EE", []);
        return;
    }
    for line in lines.lines() {
        // Two spaces part the columns of a table.
        match line.trim_start().split_once("  ") {
            Some((term, about)) => {
                page.control("TP", []);
                page.text([bold(term)]);
                page.text([roman(about.trim_start())]);
            }
            None => {
                page.control("PP", []);
                page.text([roman(line.trim_start())]);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_stands_after_the_options_becomes_sections() {
        let mut page = Roff::new();
        for paragraph in [
            "Examples:\n  program send -\n  .program",
            "Environment:\n  A_LONG_NAME  what it is\n  B            it too\nLists take commas.",
            "Exit codes: those of all\n  75  try again",
            "And this.",
        ] {
            after_help(paragraph, &mut page);
        }
        assert_eq!(
            page.to_roff().lines().collect::<Vec<_>>(),
            [
                ".SH EXAMPLES",
                ".EX",
                "program send \\-",
                "\\&.program",
                ".EE",
                ".SH ENVIRONMENT",
                ".TP",
                "\\fBA_LONG_NAME\\fR",
                "what it is",
                ".TP",
                "\\fBB\\fR",
                "it too",
                ".PP",
                "Lists take commas.",
                ".SH \"EXIT STATUS\"",
                "those of all",
                ".TP",
                "\\fB75\\fR",
                "try again",
                ".PP",
                "And this.",
            ]
        );
    }
}
