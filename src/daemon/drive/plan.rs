//! How what waits would be synced now: what `sync --plan` shows.

use vfs::ContainerStatus;

use super::Mounted;
use crate::control::protocol::MAX_FILES;
use crate::control::{PlannedFile, PlannedWay, SyncPlan};
use crate::daemon::place::Way;
use crate::daemon::syncer::is_physical;

impl Mounted {
    /// How what waits would be synced now.
    pub(super) fn planned(&self) -> SyncPlan {
        let mut files = Vec::new();
        for path in self.drive.pending_namespace() {
            files.push(PlannedFile {
                path,
                way: PlannedWay::Bytes,
                why: "its name or its attributes changed".to_owned(),
                pending_bytes: 0,
            });
        }
        for container in self.waiting() {
            let (way, why) = self.way_of(&container);
            files.push(PlannedFile {
                pending_bytes: self.file_status(&container).pending_bytes,
                path: container.path,
                way,
                why: why.to_owned(),
            });
        }
        for file in self.waiting_opaque() {
            files.push(PlannedFile {
                path: file.path,
                way: PlannedWay::Bytes,
                why: "what is in it is not understood".to_owned(),
                pending_bytes: file.unsynced,
            });
        }
        if self.drive.state() == vfs::State::Offline {
            for file in &mut files {
                file.way = PlannedWay::Waits;
                "the drive is offline".clone_into(&mut file.why);
            }
        }
        let more_files = files.len().saturating_sub(MAX_FILES) as u64;
        files.truncate(MAX_FILES);
        SyncPlan {
            state: self.governor.standing().1,
            files,
            more_files,
        }
    }

    fn way_of(&self, container: &ContainerStatus) -> (PlannedWay, &'static str) {
        if container.share_path.is_none() {
            return (PlannedWay::Waits, "the share has not seen it yet");
        }
        if container.in_doubt {
            return (
                PlannedWay::Waits,
                "calls to the share may still take effect there",
            );
        }
        if container.attached && is_physical(container) {
            return (
                PlannedWay::Bytes,
                "the share's file may be in the middle of a change, or holds nothing yet",
            );
        }
        let choice = self.syncer.choose(container);
        let way = match choice.way {
            Way::Local => PlannedWay::Local,
            Way::Split => PlannedWay::Split,
        };
        (way, choice.why)
    }
}
