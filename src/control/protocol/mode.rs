//! What the user asks of a drive, and what it then does.

use std::fmt;

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

/// Mode policy: what the user asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Policy {
    /// By the measured link
    Auto,
    /// By the user's rules
    Rules,
    /// Pass through to the share
    Online,
    /// Journal, and ship change lists
    Cached,
    /// Journal, and leave the share alone
    Offline,
}

impl fmt::Display for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::Rules => "rules",
            Self::Online => "online",
            Self::Cached => "cached",
            Self::Offline => "offline",
        })
    }
}

/// Effective state of a drive.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// Passes through to the share.
    Online,
    /// Journals, and ships change lists.
    Cached,
    /// Journals; no link, or told to leave it alone.
    Offline,
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Online => "online",
            Self::Cached => "cached",
            Self::Offline => "offline",
        })
    }
}
