//! Points in time as people read them. Owns nothing.

use x509_parser::time::ASN1Time;

/// Seconds since 1970 as `2026-11-22T20:53:15Z`; a time that no calendar holds as the number.
#[must_use]
pub fn date(unix: u64) -> String {
    let time = i64::try_from(unix)
        .ok()
        .and_then(|unix| ASN1Time::from_timestamp(unix).ok());
    let Some(time) = time else {
        return unix.to_string();
    };
    let (date, time) = (time.to_datetime().date(), time.to_datetime().time());
    let (hour, minute, second) = time.as_hms();
    format!(
        "{:04}-{:02}-{:02}T{hour:02}:{minute:02}:{second:02}Z",
        date.year(),
        u8::from(date.month()),
        date.day()
    )
}

#[cfg(test)]
mod tests {
    use super::date;

    #[test]
    fn dates_are_those_of_the_calendar() {
        assert_eq!(date(0), "1970-01-01T00:00:00Z");
        assert_eq!(date(1_795_380_795), "2026-11-22T20:53:15Z");
        assert_eq!(date(253_402_300_799), "9999-12-31T23:59:59Z");
        assert_eq!(date(u64::MAX), u64::MAX.to_string());
    }
}
