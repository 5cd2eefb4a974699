//! Containers in a directory of this machine: opened beneath the root ([`Root`]), kept from others by
//! the system ([`Exclusivity`]).

use std::io;
use std::path::Path;
use std::sync::Arc;

use storage::{FileStorage, Leaves, Loaded, RangeSet, RedoError, RedoLog, WriteAt, WriteSet};
use sync::client::{Throttle, Way};
use sync::wire::Stamp;

use crate::container::stamp;
use crate::error::{AgentError, Fault};
use crate::exclusive::Exclusivity;
use crate::paced::{Pace, Paced};
use crate::platform::{self, Access};
use crate::root::{Place, Root};
use crate::site::{Container, Site};

/// A directory of this machine.
pub struct LocalSite {
    root: Root,
    exclusivity: Exclusivity,
    pace: Pace,
}

impl LocalSite {
    /// The containers beneath `root`; `exclusivity` says how others are kept away from them.
    ///
    /// # Errors
    /// [`AgentError::Root`].
    pub fn open(root: &Path, exclusivity: Exclusivity) -> Result<Self, AgentError> {
        Ok(Self {
            root: Root::open(root)?,
            exclusivity,
            pace: Pace::default(),
        })
    }

    /// Keeps to a limit from now on: the directory may be another machine's. (What a container is opened and
    /// looked at with is not counted.)
    #[must_use]
    pub fn throttled(mut self, limit: Arc<dyn Throttle>) -> Self {
        self.pace = Pace::within(limit);
        self
    }
}

impl Site for LocalSite {
    fn open(&self, path: &str, access: Access) -> Result<Box<dyn Container>, Fault> {
        let place = self.root.container(path, access)?;
        // The same open file: what a lease holds for, and nothing else is opened.
        let file = place.file.try_clone().map_err(|e| Fault::io(path, &e))?;
        Ok(Box::new(LocalContainer {
            place,
            storage: Arc::new(Paced::new(FileStorage::from(file), self.pace.clone())),
            exclusivity: self.exclusivity,
            pace: self.pace.clone(),
        }))
    }

    fn unfinished(&self) -> Vec<String> {
        self.root.unfinished()
    }
}

struct LocalContainer {
    place: Place,
    storage: Arc<Paced<FileStorage>>,
    exclusivity: Exclusivity,
    pace: Pace,
}

impl Container for LocalContainer {
    fn storage(&self) -> Arc<dyn WriteAt> {
        Arc::clone(&self.storage) as Arc<dyn WriteAt>
    }

    fn take(&self) -> Result<(), Fault> {
        self.exclusivity.take(&self.place)
    }

    fn undisturbed(&self) -> bool {
        self.exclusivity.undisturbed(&self.place.file)
    }

    fn is_current(&self) -> io::Result<bool> {
        self.place.is_current()
    }

    fn stamp(&self) -> io::Result<Stamp> {
        stamp(&self.storage.inner)
    }

    fn leaves(&self) -> io::Result<Leaves> {
        Leaves::hash(&*self.storage)
    }

    fn leaves_after(&self, _log: &RedoLog) -> io::Result<Leaves> {
        self.leaves()
    }

    fn forget_cached(&self, changed: &RangeSet) {
        for run in changed.iter() {
            platform::forget_cached(self.storage.inner.file(), run.start, run.end - run.start);
        }
    }

    fn available(&self) -> io::Result<u64> {
        self.place.available()
    }

    fn reserve(&self, len: u64, growth: u64) -> io::Result<()> {
        match growth {
            0 => Ok(()),
            growth => platform::reserve(self.storage.inner.file(), len, growth),
        }
    }

    fn has_log(&self) -> io::Result<bool> {
        self.place.has_sidecar()
    }

    fn load_log(&self) -> Result<Loaded, RedoError> {
        let path = self.place.sidecar();
        let bytes = std::fs::metadata(&path).map_or(0, |file| file.len());
        self.pace.all(Way::Down, bytes);
        RedoLog::load(&path)
    }

    fn write_log(&self, writes: &WriteSet, leaves: &Leaves, meta: &[u8]) -> Result<(), RedoError> {
        let path = self.place.sidecar();
        let prepared = self.place.prepare_sidecar();
        prepared.map_err(|source| RedoError::Io {
            path: path.clone(),
            source,
        })?;
        // It is written in one go, once there is room on the link for all of it.
        self.pace.all(Way::Up, writes.payload());
        RedoLog::create_with_leaves(&path, writes, &*self.storage, leaves, meta)
            .map(drop)
            .inspect_err(|e| {
                // Nothing of the container was touched: what there is of a log only takes room.
                if !matches!(e, RedoError::Exists(_)) {
                    let _ = RedoLog::drop_log(&path);
                }
            })
    }

    fn drop_log(&self) -> Result<(), RedoError> {
        RedoLog::drop_log(&self.place.sidecar())
    }

    fn set_log_aside(&self) -> io::Result<String> {
        self.place.set_sidecar_aside()
    }
}
