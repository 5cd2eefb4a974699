//! How large a file may grow.
//!
//! Outlook stops writing to a file at a size that an administrator can set, and warns below it
//! (`MaxLargeFileSize` and `WarnLargeFileSize` for Unicode files, `MaxFileSize` and `WarnFileSize` for
//! ANSI files). A file that outgrows them opens, but not for writing; an ANSI file of 2 GB cannot
//! be opened at all. So an edit that would let a file grow past the limit is refused before anything is
//! written, and who shows files to people can ask early.

use super::Ndb;
use super::format::Format;

/// Sizes of a file in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SizeLimits {
    /// From here on people should be told.
    pub warn: u64,
    /// No edit lets the file grow past this.
    pub max: u64,
}

impl SizeLimits {
    /// Outlook's defaults for a format: 50 GB with a warning at 95 % of it, or for ANSI files
    /// 2,075,149,312 bytes with a warning at 1,950,368,768.
    #[must_use]
    pub const fn of(format: &Format) -> Self {
        if format.bid_size == 4 {
            Self {
                warn: 0x7440_4400,
                max: 0x7BB0_4400,
            }
        } else {
            Self {
                warn: 48_640 << 20,
                max: 51_200 << 20,
            }
        }
    }

    /// A limit of `max` bytes with a warning at 95 % of it.
    #[must_use]
    pub const fn up_to(max: u64) -> Self {
        Self {
            warn: max - max / 20,
            max,
        }
    }

    /// What a file of `len` bytes comes to.
    #[must_use]
    pub const fn judge(&self, len: u64) -> SizeState {
        if len >= self.max {
            SizeState::Full
        } else if len >= self.warn {
            SizeState::Near
        } else {
            SizeState::Fine
        }
    }
}

/// How near a file is to its limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum SizeState {
    /// Below the warning.
    Fine,
    /// At or above the warning: mail should be moved out of the file.
    Near,
    /// At the limit: only what fits into free space can be written.
    Full,
}

impl Ndb {
    /// How near the file is to the limits of its format ([`SizeLimits::of`]), free space included: a
    /// file does not shrink by deleting.
    #[must_use]
    pub fn size_state(&self) -> SizeState {
        SizeLimits::of(self.format()).judge(self.header().file_eof)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ndb::format::{ANSI, UNICODE};

    #[test]
    fn the_defaults_are_those_of_outlook() {
        let unicode = SizeLimits::of(&UNICODE);
        assert_eq!(unicode, SizeLimits::up_to(50 << 30));
        assert_eq!(SizeLimits::of(&ANSI).max, 2_075_149_312);
        assert_eq!(SizeLimits::of(&ANSI).warn, 1_950_368_768);
        assert_eq!(unicode.judge(47 << 30), SizeState::Fine);
        assert_eq!(unicode.judge(unicode.warn), SizeState::Near);
        assert_eq!(unicode.judge(50 << 30), SizeState::Full);
    }
}
