//! The drive itself: vfs over the share, cache and journal, and the sync engine beside it.

use std::sync::Arc;

use super::paths::StateDir;
use super::{DriveOptions, Stop};
use crate::control::DriveControl;
use crate::error::UserError;

/// Mounts the drive. When this returns `Ok` it answers.
///
/// # Errors
/// The share, the state directory or FUSE refuses.
pub fn open(
    options: &DriveOptions,
    _state: StateDir,
    _stop: Stop,
) -> Result<Arc<dyn DriveControl>, UserError> {
    Err(UserError::not_in_this_version(
        &format!("mounting a drive at {}", options.mountpoint.display()),
        "use the pst commands",
    ))
}
