//! Values with a unit: times, sizes and file modes.
//!
//! Owns how they are read and how they are written back, so that what is printed reads in
//! as the same value. Never accepts a bare number for a time: nobody can tell seconds from
//! milliseconds by looking.

use std::ops::RangeInclusive;
use std::time::Duration;

use bytesize::ByteSize;

const UNITS: [(u64, &str); 4] = [
    (1 << 40, "TiB"),
    (1 << 30, "GiB"),
    (1 << 20, "MiB"),
    (1 << 10, "KiB"),
];

const TIMES: [(u128, &str); 6] = [
    (1_000, "us"),
    (1_000_000, "ms"),
    (1_000_000_000, "s"),
    (60 * 1_000_000_000, "m"),
    (3600 * 1_000_000_000, "h"),
    (24 * 3600 * 1_000_000_000, "days"),
];

/// Reads a time such as `4s`, `1h 30m` or `200ms`, within the range.
pub(super) fn parse_duration(
    text: &str,
    range: &RangeInclusive<Duration>,
) -> Result<Duration, String> {
    humantime::parse_duration(text)
        .ok()
        .filter(|duration| range.contains(duration))
        .ok_or_else(|| expected_duration(range))
}

fn expected_duration(range: &RangeInclusive<Duration>) -> String {
    format!(
        "expected a time with its unit, from \"{}\" to \"{}\"",
        format_duration(*range.start()),
        format_duration(*range.end())
    )
}

/// Writes a time in the largest unit that holds it exactly. `24h` is not `1day`, because
/// that is how people write it.
pub(super) fn format_duration(duration: Duration) -> String {
    let nanos = duration.as_nanos();
    let mut result = format!("{nanos}ns");
    for (unit, name) in TIMES {
        let enough = nanos >= unit && (name != "days" || nanos >= 2 * unit);
        if enough && nanos.is_multiple_of(unit) {
            result = format!("{}{name}", nanos / unit);
        }
    }
    if nanos == 0 { "0s".to_owned() } else { result }
}

/// Reads a size such as `10GiB`, `500MB` or `4096`, within the range.
pub(super) fn parse_bytes(text: &str, range: &RangeInclusive<u64>) -> Result<u64, String> {
    text.trim()
        .parse::<ByteSize>()
        .ok()
        .map(|size| size.as_u64())
        .filter(|size| range.contains(size))
        .ok_or_else(|| expected_bytes(range))
}

fn expected_bytes(range: &RangeInclusive<u64>) -> String {
    format!(
        "expected a size with its unit, from \"{}\" to \"{}\"",
        format_bytes(*range.start()),
        format_bytes(*range.end())
    )
}

/// Writes a size in the largest unit that holds it exactly.
pub(super) fn format_bytes(bytes: u64) -> String {
    UNITS
        .iter()
        .find(|(unit, _)| bytes > 0 && bytes.is_multiple_of(*unit))
        .map_or_else(
            || format!("{bytes}B"),
            |(unit, name)| format!("{}{name}", bytes / unit),
        )
}

/// Reads a file mode such as `0660`: octal digits in a string, as `chmod` takes them.
pub(super) fn parse_mode(text: &str) -> Result<u32, String> {
    u32::from_str_radix(text, 8)
        .ok()
        .filter(|mode| *mode <= 0o777 && text.len() <= 4 && !text.starts_with('+'))
        .ok_or_else(|| EXPECTED_MODE.to_owned())
}

const EXPECTED_MODE: &str = "expected octal digits in quotes, such as \"0660\"";

/// Writes a file mode so that [`parse_mode`] reads the same.
pub(super) fn format_mode(mode: u32) -> String {
    format!("{mode:04o}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn what_is_written_reads_in_the_same(bytes in 0u64..=1 << 50, ns in any::<u64>(), mode in 0u32..=0o777) {
            prop_assert_eq!(parse_bytes(&format_bytes(bytes), &(0..=u64::MAX)), Ok(bytes));
            let time = Duration::from_nanos(ns);
            let all = Duration::ZERO..=Duration::MAX;
            prop_assert_eq!(parse_duration(&format_duration(time), &all), Ok(time));
            prop_assert_eq!(parse_mode(&format_mode(mode)), Ok(mode));
        }
    }

    #[test]
    fn times_are_written_as_people_do() {
        for text in ["0s", "200ms", "4s", "90s", "10m", "24h", "7days", "365days"] {
            let time = parse_duration(text, &(Duration::ZERO..=Duration::MAX)).unwrap();
            assert_eq!(format_duration(time), text);
        }
    }

    #[test]
    fn sizes_and_modes_as_people_write_them() {
        let all = 0..=u64::MAX;
        assert_eq!(parse_bytes("10GiB", &all), Ok(10 << 30));
        assert_eq!(parse_bytes("10 GiB", &all), Ok(10 << 30));
        assert_eq!(parse_bytes("500MB", &all), Ok(500_000_000));
        assert_eq!(parse_bytes("1.5KiB", &all), Ok(1536));
        assert_eq!(parse_bytes("4096", &all), Ok(4096));
        assert!(parse_bytes("-1", &all).is_err());
        assert!(parse_bytes("ten", &all).is_err());
        assert_eq!(parse_mode("660"), Ok(0o660));
        assert!(parse_mode("0o660").is_err());
        assert!(parse_mode("1777").is_err());
        assert!(parse_mode("+660").is_err());
        assert!(parse_mode("888").is_err());
    }
}
