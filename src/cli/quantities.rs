//! Times, sizes and counts as people write them.

use std::num::{NonZeroU64, NonZeroUsize};
use std::time::Duration;

use crate::config::MOST_THREADS;

/// `90s`, `30m`, `8h`, `2d`, and sums like `1h30m`.
pub(super) fn parse_duration(text: &str) -> Result<Duration, String> {
    let expected = || format!("`{text}` is no time; write for example 90s, 30m, 1h30m or 8h");
    crate::config::parse_duration(text).filter(|duration| !duration.is_zero()).ok_or_else(expected)
}

/// `5GB`, `500MB`, `2GiB`, or plain bytes.
pub(super) fn parse_size(text: &str) -> Result<u64, String> {
    let digits = text.trim_end_matches(|character: char| character.is_ascii_alphabetic());
    let unit = &text[digits.len()..];
    let factor: u64 = match unit {
        "" => 1,
        "B" => {
            return Err(format!(
                "`{text}` is a billion to mergekit and one byte to others; write for example 2GB, or plain bytes"
            ));
        }
        "kB" | "KB" => 1_000,
        "MB" => 1_000_000,
        "GB" => 1_000_000_000,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        _ => return Err(format!("unknown unit `{unit}`; use kB, MB, GB, KiB, MiB or GiB, or none for bytes")),
    };
    let number: f64 = digits.trim().parse().map_err(|_| format!("`{text}` is no size; write for example 5GB"))?;
    let bytes = number * factor as f64;
    if bytes >= 1.0 && bytes < 2f64.powi(63) { Ok(bytes as u64) } else { Err(format!("`{text}` is no usable size")) }
}

/// A shard's size as mergekit reads it: `5B` is 5 billion bytes.
pub(super) fn parse_mergekit_size(text: &str) -> Result<u64, String> {
    let expected = || format!("`{text}` is no size; write for example 5B (5 billion bytes), 500M or plain bytes");
    let (digits, factor) = match text.char_indices().last() {
        Some((end, 'k' | 'K')) => (&text[..end], 1_000),
        Some((end, 'm' | 'M')) => (&text[..end], 1_000_000),
        Some((end, 'b' | 'B')) => (&text[..end], 1_000_000_000),
        _ => (text, 1),
    };
    let size = digits.parse::<u64>().ok().and_then(|number| number.checked_mul(factor));
    size.filter(|size| (1..1 << 63).contains(size)).ok_or_else(expected)
}

/// A whole number of at least 1.
pub(super) fn parse_count<N: TryFrom<NonZeroU64>>(text: &str) -> Result<N, String> {
    let number: u128 = text.parse().map_err(|_| "expected a whole number".to_owned())?;
    let number = u64::try_from(number).map_err(|_| "is too large".to_owned())?;
    let number = NonZeroU64::new(number).ok_or("must be at least 1")?;
    N::try_from(number).map_err(|_| "is too large".to_owned())
}

/// A number of threads.
pub(super) fn parse_threads(text: &str) -> Result<NonZeroUsize, String> {
    let threads: NonZeroUsize = parse_count(text)?;
    if threads.get() > MOST_THREADS { Err(format!("must be at most {MOST_THREADS}")) } else { Ok(threads) }
}

/// A duration for people: `3 s`, `2 min 05 s`, `1 h 20 min`.
pub(super) fn human(duration: Duration) -> String {
    let seconds = duration.as_secs();
    match seconds {
        0..60 => format!("{:.1} s", duration.as_secs_f64()),
        60..3600 => format!("{} min {:02} s", seconds / 60, seconds % 60),
        _ => format!("{} h {:02} min", seconds / 3600, seconds % 3600 / 60),
    }
}

/// Bytes for people.
pub(super) fn human_bytes(bytes: u64) -> String {
    let value = bytes as f64;
    match bytes {
        0..1_000 => format!("{bytes} B"),
        1_000..1_000_000 => format!("{:.1} kB", value / 1e3),
        1_000_000..1_000_000_000 => format!("{:.1} MB", value / 1e6),
        _ => format!("{:.2} GB", value / 1e9),
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU32;

    use super::*;

    #[test]
    fn sizes() {
        assert_eq!(parse_size("5GB"), Ok(5_000_000_000));
        assert_eq!(parse_size("2GiB"), Ok(2 << 30));
        assert_eq!(parse_size("1.5MB"), Ok(1_500_000));
        assert_eq!(parse_size("77"), Ok(77));
        assert!(parse_size("5 parsecs").is_err());
        assert!(parse_size("-1GB").is_err());
        assert!(parse_size("").is_err());
        assert!(parse_size("1B").unwrap_err().contains("a billion to mergekit"));
        assert_eq!(parse_mergekit_size("1B"), Ok(1_000_000_000));
        assert_eq!(parse_mergekit_size("500m"), Ok(500_000_000));
        assert_eq!(parse_mergekit_size("77"), Ok(77));
        for bad in ["", "B", "0", "5GB", "99999999999B", "1.5B"] {
            assert!(parse_mergekit_size(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn counts() {
        let count = |text: &str| parse_count::<NonZeroU32>(text).map(NonZeroU32::get);
        assert_eq!(count("4294967295"), Ok(u32::MAX));
        assert_eq!(count("0").unwrap_err(), "must be at least 1");
        for large in ["4294967296", "18446744073709551616"] {
            assert_eq!(count(large).unwrap_err(), "is too large");
        }
        for bad in ["", "x", "-1", "1.5"] {
            assert_eq!(count(bad).unwrap_err(), "expected a whole number");
        }
    }

    #[test]
    fn times_for_people() {
        assert_eq!(human(Duration::from_millis(3_210)), "3.2 s");
        assert_eq!(human(Duration::from_secs(125)), "2 min 05 s");
        assert_eq!(human(Duration::from_secs(4_800)), "1 h 20 min");
    }
}
