//! Changes of names and attributes that the share refuses, as users see them.

use vfs::RefusedChange;

use crate::control::{Binding, FileOutcome, FileReport, FileStatus, SyncState};
use crate::error::UserError;

/// What can be done about it.
const NEXT: &str = "give yourself the right on the share, or choose another name or place on the drive, \
                    then `pstsyncd sync now`";

/// Says it of the file, where that is shown, or shows the file for it.
pub(super) fn show(refused: &[RefusedChange], files: &mut Vec<FileStatus>) {
    for change in refused {
        let note = Some(format!(
            "the share refuses to {} ({}): {NEXT}",
            change.what, change.why
        ));
        match files.iter_mut().find(|f| f.path == change.path) {
            Some(file) => (file.sync, file.note) = (SyncState::Failed, note),
            None => files.push(FileStatus {
                path: change.path.clone(),
                container: false,
                binding: Binding::Cache,
                sync: SyncState::Failed,
                size: 0,
                fully_cached: true,
                pending_bytes: 0,
                verified_at: None,
                note,
            }),
        }
    }
}

/// What a sync says of it.
pub(super) fn report(change: &RefusedChange) -> FileReport {
    FileReport {
        path: change.path.clone(),
        outcome: FileOutcome::Failed,
        added: 0,
        updated: 0,
        moved: 0,
        deleted: 0,
        drift: 0,
        held_deletes: 0,
        shipped_bytes: 0,
        file_bytes: 0,
        verified_at: None,
        error: Some(UserError::new(
            "share-refuses",
            format!("the share refuses to {} ({})", change.what, change.why),
            format!("{NEXT}; everything is kept in the journal"),
        )),
    }
}
