//! Where a drive and its files stand: what `status` shows, and what waits.

use vfs::ContainerStatus;

use super::{Mounted, refused};
use crate::control::protocol::MAX_FILES;
use crate::control::{
    AgentStatus, Binding, CacheStatus, DriveStatus, FileStatus, PartOf, SyncState, TreeStatus,
};

impl Mounted {
    /// Whether the share lacks something of this container.
    pub(super) fn waits(container: &ContainerStatus) -> bool {
        container.dirty || (!container.attached && container.written > 0)
    }

    pub(super) fn file_status(&self, container: &ContainerStatus) -> FileStatus {
        let failure = self.syncer.failure(&container.path);
        let waits = Self::waits(container);
        let sync = match (&failure, waits) {
            (Some(_), true) => SyncState::Failed,
            _ if container.share_changed => SyncState::Conflict,
            (None, true) => SyncState::Pending,
            (_, false) => SyncState::Synced,
        };
        let note = if let Some(why) = &container.poisoned {
            Some(format!("writes are refused: {why}"))
        } else if let (Some(error), true) = (failure, waits) {
            Some(error.message)
        } else if container.share_changed {
            Some("it was changed on the share too; sync keeps both".to_owned())
        } else if !container.attached {
            Some("served from the cache: the share holds the same mail in other bytes".to_owned())
        } else {
            None
        };
        FileStatus {
            path: container.path.clone(),
            container: true,
            binding: if container.passed_through {
                Binding::Share
            } else {
                Binding::Cache
            },
            sync,
            size: container.size,
            fully_cached: container.fully_cached,
            pending_bytes: if container.attached {
                container.unsynced
            } else {
                container.written
            },
            verified_at: self.syncer.verified_at(container),
            note,
        }
    }

    pub(super) fn waiting(&self) -> Vec<ContainerStatus> {
        self.drive
            .containers()
            .into_iter()
            .filter(Self::waits)
            .collect()
    }

    pub(super) fn waiting_opaque(&self) -> Vec<ContainerStatus> {
        let paths = self.drive.status().dirty_opaque;
        paths
            .iter()
            .filter_map(|path| self.drive.file_status(path).ok())
            .collect()
    }

    /// Paths of all files that the share lacks something of, and how many bytes.
    pub(super) fn pending(&self) -> (Vec<String>, u64) {
        let containers = self.waiting();
        let status = self.drive.status();
        let bytes = containers
            .iter()
            .map(|c| self.file_status(c).pending_bytes)
            .sum::<u64>();
        let mut paths: Vec<String> = containers.into_iter().map(|c| c.path).collect();
        paths.extend(status.dirty_opaque);
        paths.extend(self.drive.pending_namespace());
        (paths, bytes.max(status.unsynced_bytes))
    }

    /// What the drive does, and what waits.
    pub(super) fn standing(&self) -> DriveStatus {
        let status = self.drive.status();
        let (_, pending_bytes) = self.pending();
        let mut files: Vec<FileStatus> = self
            .drive
            .containers()
            .iter()
            .map(|c| self.file_status(c))
            .collect();
        files.extend(status.dirty_opaque.iter().map(|path| FileStatus {
            path: path.clone(),
            container: false,
            binding: Binding::Cache,
            sync: SyncState::Pending,
            size: self.drive.file_status(path).map_or(0, |f| f.size),
            fully_cached: true,
            pending_bytes: self.drive.file_status(path).map_or(0, |f| f.unsynced),
            verified_at: None,
            note: None,
        }));
        refused::show(&status.refused, &mut files);
        for path in &status.refusing {
            if files.iter().any(|f| f.path == *path) {
                continue;
            }
            files.extend(self.drive.file_status(path).ok().map(|f| FileStatus {
                container: false,
                sync: SyncState::Failed,
                ..self.file_status(&f)
            }));
        }
        let cache = self.drive.cache_status();
        // Whatever is not safe is said first, should the list be cut.
        files.sort_by_key(|f| f.sync == SyncState::Synced && f.fully_cached);
        let more_files = files.len().saturating_sub(MAX_FILES) as u64;
        files.truncate(MAX_FILES);
        let (policy, state, reason, changes) = self.governor.standing();
        DriveStatus {
            cache: CacheStatus {
                tree: tree_status(self.drive.tree_status()),
                ..cache_status(cache)
            },
            auto_sync: self.auto.status(),
            limit: self.limiter.status(),
            mountpoint: self.mountpoint.clone(),
            share: self.share.clone(),
            policy,
            state,
            reason,
            changes,
            share_reachable: status.link_up && self.governor.reachable(),
            agent: self.agent_url.clone().map(|url| AgentStatus {
                url,
                reachable: self.syncer.reachable(),
            }),
            journal_bytes: status.journal_bytes,
            pending_bytes,
            files,
            more_files,
        }
    }
}

fn cache_status(cache: vfs::CacheStatus) -> CacheStatus {
    let more_incomplete = cache.incomplete.len().saturating_sub(MAX_FILES) as u64;
    CacheStatus {
        limit: cache.limit,
        used: cache.used,
        pinned: cache.pinned,
        pinned_files: cache.pinned_files as u64,
        incomplete: cache
            .incomplete
            .into_iter()
            .take(MAX_FILES)
            .map(|i| PartOf {
                path: i.path,
                cached: i.cached,
                size: i.size,
            })
            .collect(),
        more_incomplete,
        filling: cache.filling.map(|f| PartOf {
            path: f.path,
            cached: f.cached,
            size: f.size,
        }),
        trouble: cache.trouble,
        volume: cache.volume,
        tree: TreeStatus::default(),
    }
}

fn tree_status(tree: vfs::TreeStatus) -> TreeStatus {
    TreeStatus {
        names: tree.names as u64,
        listed: tree.listed as u64,
        unlisted: tree.unlisted as u64,
        waiting: tree.waiting as u64,
        trouble: tree.trouble,
    }
}
