//! How much to log.
//!
//! Owns the check of log directives, because the filter of `tracing-subscriber` takes any
//! word for the name of a module: with it `inof` would log nothing and say nothing. Never
//! applies them: that is `log`.

use std::fmt;
use std::str::FromStr;

use tracing_subscriber::EnvFilter;

use super::error::did_you_mean;

const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];

/// Longest text of directives.
const MAX_LEN: usize = 1000;

/// Log directives that are known to parse: a level, or a list such as
/// `info,receptord::link=debug`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogLevel(String);

impl LogLevel {
    /// The directives as written.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The filter that does what the directives say.
    #[must_use]
    pub fn filter(&self) -> EnvFilter {
        // Checked when it was made; what cannot be parsed would be left out.
        EnvFilter::new(&self.0)
    }
}

impl Default for LogLevel {
    fn default() -> Self {
        Self("info".to_owned())
    }
}

impl fmt::Display for LogLevel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for LogLevel {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let expected = || {
            format!(
                "expected {} or a list such as info,receptord::link=debug",
                LEVELS.join(", ")
            )
        };
        let directives: Vec<&str> = text.split(',').map(str::trim).collect();
        for directive in &directives {
            let level = directive
                .rsplit_once('=')
                .map_or(*directive, |(_, level)| level);
            if !LEVELS.iter().any(|known| known.eq_ignore_ascii_case(level)) {
                let hint = did_you_mean(&level.to_ascii_lowercase(), LEVELS)
                    .map_or_else(String::new, |known| format!("; did you mean {known}?"));
                return Err(format!("{}{hint}", expected()));
            }
        }
        let text = directives.join(",");
        if text.len() > MAX_LEN || EnvFilter::builder().parse(&text).is_err() {
            return Err(expected());
        }
        Ok(Self(text))
    }
}

#[cfg(test)]
mod tests {
    use super::LogLevel;

    #[test]
    fn levels_and_directives() {
        for good in [
            "info",
            "WARN",
            "off",
            "info,receptord::link=debug",
            "info, receptor_mesh=trace",
            "receptord[link{peer=a}]=debug",
        ] {
            assert!(good.parse::<LogLevel>().is_ok(), "{good}");
        }
        for bad in [
            "",
            "inof",
            "receptord",
            "receptord=",
            "=info=",
            "info,receptord=loud",
            "info;debug",
        ] {
            assert!(bad.parse::<LogLevel>().is_err(), "{bad}");
        }
        let error = "inof".parse::<LogLevel>().unwrap_err();
        assert!(error.ends_with("did you mean info?"), "{error}");
    }
}
