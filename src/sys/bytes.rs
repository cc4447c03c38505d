//! Sizes as people read them.

use std::fmt;

/// A number of bytes: in the largest unit of which there is one, and exactly.
pub(crate) struct Bytes(pub(crate) u64);

const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(bytes) = *self;
        let Some(unit) = bytes.checked_ilog2().and_then(|log| (log as usize / 10).checked_sub(1)) else {
            return write!(f, "{bytes} bytes");
        };
        let scaled = bytes as f64 / (1_u64 << (10 * (unit + 1))) as f64;
        write!(f, "{scaled:.1} {} ({bytes} bytes)", UNITS[unit])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn size_is_told_in_its_unit_and_exactly() {
        let told = |bytes| Bytes(bytes).to_string();
        assert_eq!([told(0), told(1023)], ["0 bytes", "1023 bytes"]);
        assert_eq!(told(1024), "1.0 KiB (1024 bytes)");
        assert_eq!(told(600_000_000), "572.2 MiB (600000000 bytes)");
        assert_eq!(told(1 << 42), "4.0 TiB (4398046511104 bytes)");
        assert_eq!(told(u64::MAX), "16.0 EiB (18446744073709551615 bytes)");
    }
}
