//! A share that is used within a limit: content goes in pieces, each when it may; a question and its
//! answer count as a few hundred bytes, and go first.
//!
//! Every call is passed on; one that [`Share`] answers by itself where an implementation has nothing to say
//! must be passed on here too.

use std::io;
use std::ops::Range;
use std::sync::Arc;

use crate::limit::{Limit, Way};
use crate::path::Names;

use super::{
    Attr, Changes, Entry, ReadDone, SetAttr, Share, ShareFile, Special, Stamp, Statfs, Within,
};

/// What a question takes each way, roughly, with all that is around it, in bytes.
const QUESTION: u64 = 256;
/// What one name of a listing takes, roughly, in bytes.
const NAME: u64 = 128;

/// Wraps a share.
pub struct LimitedShare<S> {
    inner: S,
    limit: Arc<Limit>,
}

fn ask<T>(limit: &Limit, work: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
    limit.take_short(Way::Up, QUESTION);
    limit.take_short(Way::Down, QUESTION);
    work()
}

impl<S: Share> LimitedShare<S> {
    /// Wraps `inner`; what it carries keeps to `limit`.
    pub fn new(inner: S, limit: Arc<Limit>) -> Self {
        Self { inner, limit }
    }

    fn ask<T>(&self, work: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        ask(&self.limit, work)
    }

    fn wrap(&self, inner: Box<dyn ShareFile>) -> Box<dyn ShareFile> {
        Box::new(LimitedFile {
            inner,
            limit: self.limit.clone(),
        })
    }
}

impl<S: Share> Share for LimitedShare<S> {
    fn stat(&self, path: &str) -> io::Result<Attr> {
        self.ask(|| self.inner.stat(path))
    }
    fn list(&self, path: &str) -> io::Result<Vec<Entry>> {
        let entries = self.ask(|| self.inner.list(path))?;
        // Known only now: whoever comes next pays for it too.
        let mut left = entries.len() as u64 * NAME;
        while left > 0 {
            left -= self.limit.take(Way::Down, left).clamp(1, left);
        }
        Ok(entries)
    }
    fn read_link(&self, path: &str) -> io::Result<String> {
        self.ask(|| self.inner.read_link(path))
    }
    fn symlink(&self, path: &str, target: &str) -> io::Result<()> {
        self.ask(|| self.inner.symlink(path, target))
    }
    fn has_special(&self) -> bool {
        self.inner.has_special()
    }
    fn make_special(&self, path: &str, what: Special, mode: u32) -> io::Result<()> {
        self.ask(|| self.inner.make_special(path, what, mode))
    }
    fn has_links(&self) -> bool {
        self.inner.has_links()
    }
    fn link(&self, path: &str, to: &str) -> io::Result<()> {
        self.ask(|| self.inner.link(path, to))
    }
    fn list_xattr(&self, path: &str) -> io::Result<Vec<String>> {
        self.ask(|| self.inner.list_xattr(path))
    }
    fn get_xattr(&self, path: &str, name: &str) -> io::Result<Option<Vec<u8>>> {
        self.ask(|| self.inner.get_xattr(path, name))
    }
    fn set_xattr(&self, path: &str, name: &str, value: Option<&[u8]>) -> io::Result<()> {
        self.ask(|| self.inner.set_xattr(path, name, value))
    }
    fn names(&self) -> Names {
        self.inner.names()
    }
    fn has_locks(&self) -> bool {
        self.inner.has_locks()
    }
    fn may_tell(&self) -> bool {
        self.inner.may_tell()
    }
    fn heard(&self) -> Option<std::time::Instant> {
        self.inner.heard()
    }
    fn changes(&self) -> io::Result<Box<dyn Changes>> {
        self.ask(|| self.inner.changes())
    }
    fn open(&self, path: &str, write: bool) -> io::Result<Box<dyn ShareFile>> {
        self.ask(|| self.inner.open(path, write))
            .map(|f| self.wrap(f))
    }
    fn create(&self, path: &str, mode: u32) -> io::Result<Box<dyn ShareFile>> {
        self.ask(|| self.inner.create(path, mode))
            .map(|f| self.wrap(f))
    }
    fn rename(&self, from: &str, to: &str, replace: bool) -> io::Result<()> {
        self.ask(|| self.inner.rename(from, to, replace))
    }
    fn unlink(&self, path: &str) -> io::Result<()> {
        self.ask(|| self.inner.unlink(path))
    }
    fn mkdir(&self, path: &str, mode: u32) -> io::Result<()> {
        self.ask(|| self.inner.mkdir(path, mode))
    }
    fn rmdir(&self, path: &str) -> io::Result<()> {
        self.ask(|| self.inner.rmdir(path))
    }
    fn set_attr(&self, path: &str, set: &SetAttr) -> io::Result<()> {
        self.ask(|| self.inner.set_attr(path, set))
    }
    fn statfs(&self) -> io::Result<Statfs> {
        self.ask(|| self.inner.statfs())
    }
    /// Whether the share is there is never held back.
    fn probe(&self) -> io::Result<()> {
        self.inner.probe()
    }
    fn stamp(&self, path: &str) -> io::Result<Stamp> {
        self.ask(|| self.inner.stamp(path))
    }
}

struct LimitedFile {
    inner: Box<dyn ShareFile>,
    limit: Arc<Limit>,
}

impl LimitedFile {
    fn ask<T>(&self, work: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        ask(&self.limit, work)
    }

    /// How long the next piece of `left` bytes is, when it may go.
    fn piece(&self, way: Way, left: usize) -> usize {
        let granted = self.limit.take(way, left as u64);
        usize::try_from(granted).unwrap_or(left).clamp(1, left)
    }
}

impl ShareFile for LimitedFile {
    fn stat(&self) -> io::Result<Attr> {
        self.ask(|| self.inner.stat())
    }
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        let mut done = 0;
        while let Some(rest) = buf.get_mut(done..).filter(|rest| !rest.is_empty()) {
            let piece = self.piece(Way::Down, rest.len());
            let into = rest.get_mut(..piece).unwrap_or_default();
            let got = self.inner.read_at(offset + done as u64, into)?;
            done += got;
            if got < piece {
                break;
            }
        }
        Ok(done)
    }
    /// Within a limit a read waits, and for that it has a thread.
    fn begins_reads(&self, len: usize) -> bool {
        !self.limit.is_set(Way::Down) && self.inner.begins_reads(len)
    }
    fn begin_read(&self, offset: u64, len: usize, within: Within, done: ReadDone) {
        self.inner.begin_read(offset, len, within, done);
    }
    fn write_all_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut done = 0;
        while let Some(rest) = data.get(done..).filter(|rest| !rest.is_empty()) {
            let piece = self.piece(Way::Up, rest.len());
            let part = rest.get(..piece).unwrap_or_default();
            self.inner.write_all_at(offset + done as u64, part)?;
            done += piece;
        }
        Ok(())
    }
    fn set_len(&self, len: u64) -> io::Result<()> {
        self.ask(|| self.inner.set_len(len))
    }
    fn sync(&self) -> io::Result<()> {
        self.ask(|| self.inner.sync())
    }
    fn lock(&self, range: Range<u64>, exclusive: bool) -> io::Result<bool> {
        self.ask(|| self.inner.lock(range, exclusive))
    }
    fn unlock(&self, range: Range<u64>) -> io::Result<()> {
        self.ask(|| self.inner.unlock(range))
    }
    fn stamp(&self) -> io::Result<Stamp> {
        self.ask(|| self.inner.stamp())
    }
}

#[cfg(all(test, unix))]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;
    use crate::limit::Rates;
    use crate::share::dir::DirShare;

    #[test]
    fn content_goes_in_pieces_and_arrives_whole() {
        let temp = tempfile::tempdir().unwrap();
        let limit = Arc::new(Limit::default());
        let share = LimitedShare::new(DirShare::open(temp.path()).unwrap(), limit.clone());
        limit.set(Rates {
            up: Some(400_000),
            down: Some(400_000),
        });
        let data: Vec<u8> = (0..200_000_u32).map(|i| (i % 251) as u8).collect();
        let began = Instant::now();
        let file = share.create("a", 0o600).unwrap();
        file.write_all_at(0, &data).unwrap();
        let mut back = vec![0; 300_000];
        assert!(!file.begins_reads(10));
        assert_eq!(file.read_at(0, &mut back).unwrap(), data.len());
        assert!(back.get(..data.len()) == Some(&data[..]));
        // Each way what one burst does not cover.
        assert!(
            began.elapsed() > Duration::from_millis(300),
            "{:?}",
            began.elapsed()
        );
        assert_eq!(share.list("").unwrap().len(), 1);
    }

    /// A call with an answer of its own in the trait would be lost here without a word.
    #[test]
    fn every_call_of_the_traits_is_passed_on() {
        crate::share::measured::passes_on(
            include_str!("limited.rs"),
            "Share for LimitedShare<S> {",
            "\nimpl ShareFile for LimitedFile {",
        );
    }
}
