//! What the user asks of a drive, and what it then does.

use std::fmt;

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

use crate::error::UserError;

/// Mode policy: what the user asked for. Only the last three are carried out in this version.
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

impl Policy {
    /// This policy, if it is one that is set by hand: the others are not in this version.
    ///
    /// # Errors
    /// It is not; what to use instead.
    pub fn by_hand(self) -> Result<Self, UserError> {
        match self {
            Self::Online | Self::Cached | Self::Offline => Ok(self),
            Self::Auto | Self::Rules => Err(UserError::not_in_this_version(
                &format!("the policy '{self}'"),
                "set the mode by hand: online, cached or offline",
            )),
        }
    }
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
