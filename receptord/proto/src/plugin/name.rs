//! What plugins, actions, jobs and their files may be called.

use super::MAX_JOB_ID;
use crate::directive::is_plugin_name;

/// Endings of files that package managers and editors leave beside the real one; an executable
/// `runner.bak` must not become a second `runner`.
const LEFTOVERS: &[&str] = &[
    "bak", "disabled", "new", "old", "orig", "part", "rej", "rpmnew", "rpmorig", "rpmsave", "save",
    "swp", "tmp",
];
/// Longest file name extension, in bytes.
const MAX_EXTENSION: usize = 16;

/// Whether this may be the name of a plugin or, in a hello, of an action: `^[a-z][a-z0-9_-]{0,63}$`.
pub fn is_name(name: &str) -> bool {
    is_plugin_name(name)
}

/// The plugin's name that a file name stands for: the file name without its one optional
/// extension of lower-case letters and digits. `None` when the file is no plugin: another form of
/// name, or a file that a package manager or editor left (`.bak`, `.rpmsave`, `.dpkg-new`, …).
pub fn plugin_name(file_name: &str) -> Option<&str> {
    let name = match file_name.split_once('.') {
        None => file_name,
        Some((name, extension)) => {
            let known = !extension.is_empty()
                && extension.len() <= MAX_EXTENSION
                && extension
                    .bytes()
                    .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit())
                && !LEFTOVERS.contains(&extension);
            if !known {
                return None;
            }
            name
        }
    };
    is_name(name).then_some(name)
}

/// Whether this may be a job's id: 1 to 128 of `[A-Za-z0-9._:-]`.
pub fn is_job_id(id: &str) -> bool {
    (1..=MAX_JOB_ID).contains(&id.len())
        && id
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b':' | b'-'))
}

/// Whether a path names something below the job directory: relative, with no empty, `.` or `..`
/// part and no NUL. Links on the way are for whoever opens it to refuse.
pub fn is_relative_path(path: &str) -> bool {
    !path.contains('\0')
        && path
            .split('/')
            .all(|part| !part.is_empty() && part != "." && part != "..")
}

#[cfg(test)]
mod tests {
    use alloc::string::String;

    use super::*;
    use crate::plugin::MAX_NAME;

    #[test]
    fn file_names_of_plugins() {
        assert_eq!(plugin_name("runner"), Some("runner"));
        assert_eq!(plugin_name("wordcount.py"), Some("wordcount"));
        assert_eq!(plugin_name("a_b-9.sh"), Some("a_b-9"));
        for bad in [
            "",
            ".",
            ".hidden",
            "Runner",
            "9lives",
            "a b",
            "runner.",
            "runner~",
            "runner.py~",
            "runner.bak",
            "runner.tar.gz",
            "runner.rpmsave",
            "runner.dpkg-new",
            "runner;65f0",
            "ä",
            "../runner",
        ] {
            assert_eq!(plugin_name(bad), None, "{bad:?}");
        }
        let longest: String = core::iter::repeat_n('a', MAX_NAME).collect();
        assert_eq!(plugin_name(&longest), Some(&*longest));
        let longer: String = core::iter::repeat_n('a', MAX_NAME + 1).collect();
        assert_eq!(plugin_name(&longer), None);
    }

    #[test]
    fn job_ids() {
        let longest: String = core::iter::repeat_n('x', MAX_JOB_ID).collect();
        for good in ["0", "01JDQ2", "a.b_c:d-e", &longest] {
            assert!(is_job_id(good), "{good:?}");
        }
        let longer: String = core::iter::repeat_n('x', MAX_JOB_ID + 1).collect();
        for bad in ["", "a b", "a/b", "a\n", "é", &longer] {
            assert!(!is_job_id(bad), "{bad:?}");
        }
    }

    #[test]
    fn paths_below_the_job_directory() {
        for good in ["payload", "out/artifacts.zip", "a/..b/c"] {
            assert!(is_relative_path(good), "{good:?}");
        }
        for bad in [
            "",
            "/etc/passwd",
            "../x",
            "a/../b",
            "a//b",
            "./a",
            "a/",
            "a\0b",
        ] {
            assert!(!is_relative_path(bad), "{bad:?}");
        }
    }
}
