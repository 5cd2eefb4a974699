//! Files whose cache file may be read in the drive's place.

use std::fs::File;

use super::Drive;
use crate::file::Binding;

impl Drive {
    /// The cache file of an open handle, where it holds all that a reader would see, now and for as long as
    /// nobody writes: an opaque file, served from the cache, wholly there, with nothing waiting to be
    /// laid over it. `None`: reads must go through the drive.
    #[must_use]
    pub fn backing(&self, handle: u64) -> Option<File> {
        let h = self.handle(handle).ok()?;
        if h.write || self.is_container(&self.tree().path(h.node)) {
            return None;
        }
        let st = h.file.read();
        let whole = matches!(st.binding, Some(Binding::Cache))
            && st.valid.contains_range(0..st.size)
            && st.unwritten.is_empty()
            && h.file.poison.get().is_none()
            && h.file.data.len().is_ok_and(|len| len == st.size);
        if !whole {
            return None;
        }
        let path = crate::cache::data_path(h.node);
        self.dir.disk().system_file(&path)?.ok()
    }
}
