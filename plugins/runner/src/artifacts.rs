//! What ansible-runner keeps of a job, packed for the sender.
//!
//! Reads the directory and not the archive that the worker sends: that one has the environment of the
//! job in it, which never leaves the node. Follows no link and opens nothing but regular files.

use std::{
    fs::{self, File},
    io::{self, Read, Write},
    path::Path,
};

use serde_json::Value;
use zip::{CompressionMethod, ZipWriter, write::SimpleFileOptions};

/// Most files that are packed; a job has about ten, and a fact cache one for each host.
const MAX_FILES: usize = 10_000;
/// Most bytes that are packed, before they become less.
const MAX_BYTES: u64 = 1 << 30;
/// Largest `command` file; it holds one command line and the environment.
const MAX_COMMAND: u64 = 4 << 20;
/// The command line, the working directory and the environment of the job.
const COMMAND: &str = "command";
/// The environment again, for containers.
const LEFT_OUT: &str = "env.list";

/// Packs a directory of artifacts into a zip archive.
pub(crate) fn pack(directory: &Path, to: &File) -> io::Result<()> {
    let mut zip = ZipWriter::new(to);
    let mut files = 0;
    let mut left = MAX_BYTES;
    let mut waiting = vec![String::new()];
    while let Some(below) = waiting.pop() {
        let mut entries = Vec::new();
        for entry in fs::read_dir(directory.join(&below))? {
            let entry = entry?;
            // A name that is no text is nothing that ansible-runner makes.
            if let Ok(name) = entry.file_name().into_string() {
                entries.push((name, entry.file_type()?));
            }
        }
        entries.sort_by(|(a, _), (b, _)| a.cmp(b));
        for (name, kind) in entries {
            let path = if below.is_empty() {
                name
            } else {
                format!("{below}/{name}")
            };
            if kind.is_dir() {
                waiting.push(path);
            } else if kind.is_file() && path != LEFT_OUT {
                files += 1;
                if files > MAX_FILES {
                    return Err(io::Error::other(format!("more than {MAX_FILES} files")));
                }
                add(&mut zip, directory, &path, &mut left)?;
            }
        }
    }
    zip.finish()?;
    Ok(())
}

fn add(zip: &mut ZipWriter<&File>, directory: &Path, path: &str, left: &mut u64) -> io::Result<()> {
    let options = SimpleFileOptions::default()
        .compression_method(CompressionMethod::Deflated)
        .unix_permissions(0o600);
    let file = File::open(directory.join(path))?;
    if path == COMMAND {
        let Some(text) = without_environment(file)? else {
            return Ok(());
        };
        zip.start_file(path, options)?;
        return zip.write_all(text.as_bytes());
    }
    zip.start_file(path, options)?;
    let copied = io::copy(&mut file.take(*left + 1), zip)?;
    *left = left
        .checked_sub(copied)
        .ok_or_else(|| io::Error::other(format!("more than {MAX_BYTES} bytes")))?;
    Ok(())
}

/// The file `command` as far as the sender may know it; nothing of one that is not understood.
fn without_environment(file: File) -> io::Result<Option<String>> {
    let mut text = Vec::new();
    file.take(MAX_COMMAND).read_to_end(&mut text)?;
    let Ok(Value::Object(mut command)) = serde_json::from_slice(&text) else {
        return Ok(None);
    };
    command.remove("env");
    Ok(Some(Value::Object(command).to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn everything_but_the_environment_is_packed() {
        let dir = tempfile::tempdir().unwrap();
        let from = dir.path().join("job");
        fs::create_dir_all(from.join("fact_cache/deep")).unwrap();
        let secret = dir.path().join("secret");
        fs::write(&secret, "canary").unwrap();
        for (path, text) in [
            ("rc", "0"),
            ("stdout", "hello\n"),
            ("fact_cache/web1", "{}"),
            ("fact_cache/deep/command", "not json"),
            (
                "command",
                r#"{"command":["ansible"],"cwd":"/x","env":{"A":"canary"}}"#,
            ),
            ("env.list", "A=canary"),
        ] {
            fs::write(from.join(path), text).unwrap();
        }
        symlink(&secret, from.join("link")).unwrap();
        nix::unistd::mkfifo(&from.join("ssh_key_data"), nix::sys::stat::Mode::S_IRUSR).unwrap();
        let archive = dir.path().join("artifacts.zip");
        pack(&from, &File::create_new(&archive).unwrap()).unwrap();

        let mut zip = zip::ZipArchive::new(File::open(&archive).unwrap()).unwrap();
        let mut found = Vec::new();
        for index in 0..zip.len() {
            let mut member = zip.by_index(index).unwrap();
            let mut text = String::new();
            member.read_to_string(&mut text).unwrap();
            found.push((member.name().unwrap().into_owned(), text));
        }
        found.sort();
        let text = |(name, text): &(String, String)| format!("{name}: {}", text.trim());
        assert_eq!(
            found.iter().map(text).collect::<Vec<_>>(),
            [
                r#"command: {"command":["ansible"],"cwd":"/x"}"#,
                "fact_cache/deep/command: not json",
                "fact_cache/web1: {}",
                "rc: 0",
                "stdout: hello",
            ]
        );
    }

    #[test]
    fn a_command_that_is_not_understood_stays_here() {
        let dir = tempfile::tempdir().unwrap();
        let from = dir.path().join("job");
        fs::create_dir(&from).unwrap();
        fs::write(from.join("command"), "A=canary").unwrap();
        let archive = dir.path().join("artifacts.zip");
        pack(&from, &File::create_new(&archive).unwrap()).unwrap();
        let zip = zip::ZipArchive::new(File::open(&archive).unwrap()).unwrap();
        assert_eq!(zip.len(), 0);
    }
}
