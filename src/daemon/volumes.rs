//! Which removable volume holds a share's cache: so that a drive that is not plugged in is not taken for one
//! that never was, and a fresh cache made where its mountpoint is empty.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::paths::state_base;
use crate::error::UserError;

#[derive(Serialize, Deserialize)]
struct Known {
    /// The share.
    share: PathBuf,
    /// Where its cache was last.
    dir: PathBuf,
    /// The volume's name, as the cache itself gives it.
    volume: String,
}

/// Where it is noted; one note for a share.
fn note(share: &Path) -> Option<PathBuf> {
    use std::os::unix::ffi::OsStrExt;
    let hash = blake3::hash(share.as_os_str().as_bytes()).to_hex();
    let name = format!("{}.json", hash.get(..16)?);
    Some(state_base().ok()?.join("volumes").join(name))
}

fn volume(state_dir: &Path) -> Option<String> {
    let text = fs::read_to_string(state_dir.join("drive/volume")).ok()?;
    text.lines().nth(1).map(str::to_owned)
}

/// Notes that the cache of `share` lies in `state_dir`, on the volume that it names.
pub fn remember(share: &Path, state_dir: &Path) {
    let write = || -> io::Result<()> {
        let at = note(share).ok_or(io::ErrorKind::NotFound)?;
        let known = Known {
            share: share.to_owned(),
            dir: state_dir.to_owned(),
            volume: volume(state_dir).ok_or(io::ErrorKind::NotFound)?,
        };
        let text = serde_json::to_vec(&known)?;
        if fs::read(&at).is_ok_and(|old| old == text) {
            return Ok(());
        }
        if let Some(dir) = at.parent() {
            super::paths::private_dir(dir).map_err(io::Error::other)?;
        }
        let fresh = at.with_extension("new");
        fs::write(&fresh, &text)?;
        fs::rename(&fresh, &at)
    };
    if let Err(error) = write() {
        // A convenience that is missed the next time, nothing more.
        tracing::warn!(%error, "which volume holds the cache could not be noted");
    }
}

/// Refuses to begin a cache anew in `state_dir` while another volume is known to hold this share's.
///
/// # Errors
/// It would.
pub fn check_plugged_in(share: &Path, state_dir: &Path) -> Result<(), UserError> {
    if volume(state_dir).is_some() {
        return Ok(());
    }
    let known = note(share)
        .and_then(|at| fs::read(at).ok())
        .and_then(|bytes| serde_json::from_slice::<Known>(&bytes).ok());
    let Some(known) = known.filter(|k| k.share == share) else {
        return Ok(());
    };
    let short = known.volume.get(..8).unwrap_or(&known.volume);
    Err(UserError::new(
        "volume-missing",
        format!(
            "there is no cache in {}, and that of this share is on volume {short}, last seen at {}",
            state_dir.display(),
            known.dir.display()
        ),
        "plug that volume in, or begin a new cache with --new-cache; what was not synced stays on \
         the other",
    ))
}
