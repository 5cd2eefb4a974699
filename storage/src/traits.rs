//! The two traits that all random-access storage stands behind.
//!
//! Everything above (the PST engine, the cache, the redo log) is written against [`ReadAt`] and
//! [`WriteAt`], so that a crash-simulating or fault-injecting storage slots in anywhere.

use std::io;
use std::sync::Arc;

/// Random-access reads. Implementations are shared between threads.
pub trait ReadAt: Send + Sync {
    /// Current length in bytes.
    fn len(&self) -> io::Result<u64>;

    /// Whether the storage holds no bytes.
    fn is_empty(&self) -> io::Result<bool> {
        Ok(self.len()? == 0)
    }

    /// Reads up to `buf.len()` bytes at `offset`; returns how many were read. Fewer than asked
    /// only at the end of the storage; 0 at or past the end.
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize>;

    /// Fills `buf` from `offset`.
    ///
    /// # Errors
    /// [`io::ErrorKind::UnexpectedEof`] if the storage ends first.
    fn read_exact_at(&self, mut offset: u64, mut buf: &mut [u8]) -> io::Result<()> {
        while !buf.is_empty() {
            let n = self.read_at(offset, buf)?;
            if n == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            offset += n as u64;
            buf = buf.get_mut(n..).ok_or(io::ErrorKind::InvalidData)?;
        }
        Ok(())
    }
}

/// Random-access writes. A write is durable only after [`WriteAt::sync`] has returned.
pub trait WriteAt: ReadAt {
    /// Writes all of `data` at `offset`, growing the storage (zero-filled) where needed.
    fn write_all_at(&self, offset: u64, data: &[u8]) -> io::Result<()>;

    /// Cuts or grows (zero-filled) the storage to `len` bytes.
    fn set_len(&self, len: u64) -> io::Result<()>;

    /// Makes every earlier write and length change durable.
    fn sync(&self) -> io::Result<()>;
}

macro_rules! forward {
    ($($ty:ty),*) => {$(
        impl<T: ReadAt + ?Sized> ReadAt for $ty {
            fn len(&self) -> io::Result<u64> { (**self).len() }
            fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
                (**self).read_at(offset, buf)
            }
        }
        impl<T: WriteAt + ?Sized> WriteAt for $ty {
            fn write_all_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
                (**self).write_all_at(offset, data)
            }
            fn set_len(&self, len: u64) -> io::Result<()> { (**self).set_len(len) }
            fn sync(&self) -> io::Result<()> { (**self).sync() }
        }
    )*};
}
forward!(&T, Arc<T>, Box<T>);
