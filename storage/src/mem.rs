//! Storage in memory: the model in tests, and the home of small files on their way somewhere.

use std::io;
use std::sync::{PoisonError, RwLock};

use crate::{ReadAt, WriteAt};

/// A growable byte vector behind a lock. [`WriteAt::sync`] has nothing to do.
///
/// An allocation that fails is an error of kind [`io::ErrorKind::OutOfMemory`], never an abort.
#[derive(Debug, Default)]
pub struct MemStorage {
    bytes: RwLock<Vec<u8>>,
}

impl MemStorage {
    /// Empty storage.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// A copy of the whole content.
    #[must_use]
    pub fn to_vec(&self) -> Vec<u8> {
        self.bytes
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// The content, without a copy.
    #[must_use]
    pub fn into_vec(self) -> Vec<u8> {
        self.bytes
            .into_inner()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

impl From<Vec<u8>> for MemStorage {
    fn from(bytes: Vec<u8>) -> Self {
        Self {
            bytes: RwLock::new(bytes),
        }
    }
}

impl From<&[u8]> for MemStorage {
    fn from(bytes: &[u8]) -> Self {
        Self::from(bytes.to_vec())
    }
}

impl ReadAt for MemStorage {
    fn len(&self) -> io::Result<u64> {
        Ok(self
            .bytes
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .len() as u64)
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        let bytes = self.bytes.read().unwrap_or_else(PoisonError::into_inner);
        Ok(read_slice(&bytes, offset, buf))
    }
}

impl WriteAt for MemStorage {
    fn write_all_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut bytes = self.bytes.write().unwrap_or_else(PoisonError::into_inner);
        write_vec(&mut bytes, offset, data)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut bytes = self.bytes.write().unwrap_or_else(PoisonError::into_inner);
        resize_vec(&mut bytes, len)
    }

    fn sync(&self) -> io::Result<()> {
        Ok(())
    }
}

/// Copies what `bytes` has at `offset` into `buf`; returns how much that was.
pub(crate) fn read_slice(bytes: &[u8], offset: u64, buf: &mut [u8]) -> usize {
    let tail = usize::try_from(offset)
        .ok()
        .and_then(|at| bytes.get(at..))
        .unwrap_or_default();
    let n = tail.len().min(buf.len());
    match (buf.get_mut(..n), tail.get(..n)) {
        (Some(to), Some(from)) => to.copy_from_slice(from),
        _ => return 0,
    }
    n
}

/// Writes `data` at `offset`, growing the vector zero-filled. An empty write does nothing.
pub(crate) fn write_vec(bytes: &mut Vec<u8>, offset: u64, data: &[u8]) -> io::Result<()> {
    if data.is_empty() {
        return Ok(());
    }
    let end = offset
        .checked_add(data.len() as u64)
        .ok_or(io::ErrorKind::InvalidInput)?;
    if end > bytes.len() as u64 {
        resize_vec(bytes, end)?;
    }
    let at = usize::try_from(offset).map_err(|_| io::ErrorKind::OutOfMemory)?;
    bytes
        .get_mut(at..)
        .and_then(|tail| tail.get_mut(..data.len()))
        .ok_or(io::ErrorKind::InvalidInput)?
        .copy_from_slice(data);
    Ok(())
}

/// Cuts or zero-fills the vector to `len` bytes.
pub(crate) fn resize_vec(bytes: &mut Vec<u8>, len: u64) -> io::Result<()> {
    let len = usize::try_from(len).map_err(|_| io::ErrorKind::OutOfMemory)?;
    if let Some(more) = len.checked_sub(bytes.len()) {
        bytes
            .try_reserve(more)
            .map_err(|_| io::ErrorKind::OutOfMemory)?;
    }
    bytes.resize(len, 0);
    Ok(())
}
