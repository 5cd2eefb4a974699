//! A share whose calls are measured: when each begins and ends, how many bytes it carries and
//! whether the link failed. What is made of that is the [`Meter`]'s affair; the drive knows nothing
//! of it.
//!
//! Measured is what the calls to the share take, on the thread that makes them: no waiting for a
//! thread, no work of the drive. Every call is passed on; one that [`Share`] answers by itself where
//! an implementation has nothing to say must be passed on here too.

use std::io;
use std::ops::Range;
use std::sync::Arc;

use crate::error::is_link_error;
use crate::path::Names;

use super::{
    Attr, Changes, Entry, ReadDone, SetAttr, Share, ShareFile, Special, Stamp, Statfs, Within,
};

/// How a call uses the link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Use {
    /// One question and its answer, with the bytes that it carries.
    Exchange,
    /// Possibly several questions, one after the other.
    Several,
    /// Mostly the server's own work, as a flush.
    Work,
}

/// What a call carries, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Payload {
    /// To the share.
    pub up: u64,
    /// From the share; before the call ends: at most.
    pub down: u64,
}

/// How a call ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// The share answered, be it with an error of its own.
    Answered,
    /// The link failed, or fell silent.
    Failed,
}

/// Hears of every call. Must not block: it is called in the path of every call to the share.
pub trait Meter: Send + Sync {
    /// A call begins; the number names it when it ends.
    fn begin(&self, with: Payload, how: Use) -> u64;
    /// It ended, with so many bytes carried.
    fn end(&self, call: u64, carried: Payload, how: Ended);
}

/// One call that runs; a panic ends it too.
struct Running {
    meter: Arc<dyn Meter>,
    call: u64,
    end: (Payload, Ended),
}

impl Running {
    fn begin(meter: Arc<dyn Meter>, with: Payload, how: Use) -> Self {
        Self {
            call: meter.begin(with, how),
            meter,
            end: (Payload::default(), Ended::Failed),
        }
    }

    fn ended<T>(&mut self, answer: &io::Result<T>, carried: impl FnOnce(&T) -> Payload) {
        self.end = match answer {
            Ok(value) => (carried(value), Ended::Answered),
            Err(e) if is_link_error(e) => (Payload::default(), Ended::Failed),
            Err(_) => (Payload::default(), Ended::Answered),
        };
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.meter.end(self.call, self.end.0, self.end.1);
    }
}

fn measure<T>(
    meter: &Arc<dyn Meter>,
    with: Payload,
    how: Use,
    work: impl FnOnce() -> io::Result<T>,
    carried: impl FnOnce(&T) -> Payload,
) -> io::Result<T> {
    let mut running = Running::begin(meter.clone(), with, how);
    let answer = work();
    running.ended(&answer, carried);
    answer
}

/// Wraps a share.
pub struct MeasuredShare<S> {
    inner: S,
    meter: Arc<dyn Meter>,
}

impl<S: Share> MeasuredShare<S> {
    /// Wraps `inner`; `meter` hears of every call.
    pub fn new(inner: S, meter: Arc<dyn Meter>) -> Self {
        Self { inner, meter }
    }

    fn several<T>(&self, work: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        self.run(Use::Several, work)
    }

    fn run<T>(&self, how: Use, work: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        measure(&self.meter, Payload::default(), how, work, |_| {
            Payload::default()
        })
    }

    fn wrap(&self, inner: Box<dyn ShareFile>) -> Box<dyn ShareFile> {
        Box::new(MeasuredFile {
            inner,
            meter: self.meter.clone(),
        })
    }
}

impl<S: Share> Share for MeasuredShare<S> {
    fn stat(&self, path: &str) -> io::Result<Attr> {
        self.several(|| self.inner.stat(path))
    }
    fn list(&self, path: &str) -> io::Result<Vec<Entry>> {
        self.several(|| self.inner.list(path))
    }
    fn read_link(&self, path: &str) -> io::Result<String> {
        self.several(|| self.inner.read_link(path))
    }
    fn symlink(&self, path: &str, target: &str) -> io::Result<()> {
        self.several(|| self.inner.symlink(path, target))
    }
    fn has_special(&self) -> bool {
        self.inner.has_special()
    }
    fn make_special(&self, path: &str, what: Special, mode: u32) -> io::Result<()> {
        self.several(|| self.inner.make_special(path, what, mode))
    }
    fn has_links(&self) -> bool {
        self.inner.has_links()
    }
    fn link(&self, path: &str, to: &str) -> io::Result<()> {
        self.several(|| self.inner.link(path, to))
    }
    fn list_xattr(&self, path: &str) -> io::Result<Vec<String>> {
        self.several(|| self.inner.list_xattr(path))
    }
    fn get_xattr(&self, path: &str, name: &str) -> io::Result<Option<Vec<u8>>> {
        self.several(|| self.inner.get_xattr(path, name))
    }
    fn set_xattr(&self, path: &str, name: &str, value: Option<&[u8]>) -> io::Result<()> {
        self.several(|| self.inner.set_xattr(path, name, value))
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
    /// What is heard later is waited for: that time is nobody's measure.
    fn changes(&self) -> io::Result<Box<dyn Changes>> {
        self.several(|| self.inner.changes())
    }
    fn open(&self, path: &str, write: bool) -> io::Result<Box<dyn ShareFile>> {
        self.several(|| self.inner.open(path, write))
            .map(|f| self.wrap(f))
    }
    fn create(&self, path: &str, mode: u32) -> io::Result<Box<dyn ShareFile>> {
        self.several(|| self.inner.create(path, mode))
            .map(|f| self.wrap(f))
    }
    fn rename(&self, from: &str, to: &str, replace: bool) -> io::Result<()> {
        self.several(|| self.inner.rename(from, to, replace))
    }
    fn unlink(&self, path: &str) -> io::Result<()> {
        self.several(|| self.inner.unlink(path))
    }
    fn mkdir(&self, path: &str, mode: u32) -> io::Result<()> {
        self.several(|| self.inner.mkdir(path, mode))
    }
    fn rmdir(&self, path: &str) -> io::Result<()> {
        self.several(|| self.inner.rmdir(path))
    }
    fn set_attr(&self, path: &str, set: &SetAttr) -> io::Result<()> {
        self.several(|| self.inner.set_attr(path, set))
    }
    fn statfs(&self) -> io::Result<Statfs> {
        self.several(|| self.inner.statfs())
    }
    fn probe(&self) -> io::Result<()> {
        self.run(Use::Exchange, || self.inner.probe())
    }
    fn stamp(&self, path: &str) -> io::Result<Stamp> {
        self.several(|| self.inner.stamp(path))
    }
}

struct MeasuredFile {
    inner: Box<dyn ShareFile>,
    meter: Arc<dyn Meter>,
}

impl MeasuredFile {
    fn run<T>(&self, how: Use, work: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        measure(&self.meter, Payload::default(), how, work, |_| {
            Payload::default()
        })
    }
}

impl ShareFile for MeasuredFile {
    fn stat(&self) -> io::Result<Attr> {
        self.run(Use::Exchange, || self.inner.stat())
    }
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        let down = |down: usize| Payload {
            up: 0,
            down: down as u64,
        };
        let most = down(buf.len());
        let read = || self.inner.read_at(offset, buf);
        measure(&self.meter, most, Use::Exchange, read, |n| down(*n))
    }
    fn begins_reads(&self, len: usize) -> bool {
        self.inner.begins_reads(len)
    }
    fn begin_read(&self, offset: u64, len: usize, within: Within, done: ReadDone) {
        let down = |down: u64| Payload { up: 0, down };
        let mut running = Running::begin(self.meter.clone(), down(len as u64), Use::Exchange);
        let measured = Box::new(move |answer: io::Result<Vec<u8>>| {
            running.ended(&answer, |data| down(data.len() as u64));
            drop(running);
            done(answer);
        });
        self.inner.begin_read(offset, len, within, measured);
    }
    fn write_all_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let payload = Payload {
            up: data.len() as u64,
            down: 0,
        };
        let write = || self.inner.write_all_at(offset, data);
        measure(&self.meter, payload, Use::Exchange, write, |()| payload)
    }
    fn set_len(&self, len: u64) -> io::Result<()> {
        self.run(Use::Work, || self.inner.set_len(len))
    }
    fn sync(&self) -> io::Result<()> {
        self.run(Use::Work, || self.inner.sync())
    }
    fn lock(&self, range: Range<u64>, exclusive: bool) -> io::Result<bool> {
        self.run(Use::Exchange, || self.inner.lock(range, exclusive))
    }
    fn unlock(&self, range: Range<u64>) -> io::Result<()> {
        self.run(Use::Exchange, || self.inner.unlock(range))
    }
    fn stamp(&self) -> io::Result<Stamp> {
        self.run(Use::Several, || self.inner.stamp())
    }
}

#[cfg(all(test, unix))]
mod tests {
    use std::sync::Mutex;

    use super::*;
    use crate::share::dir::DirShare;
    use crate::share::fault::{Fault, FaultShare};

    type Heard = (Payload, Use, Option<(Payload, Ended)>);

    #[derive(Default)]
    struct Book(Mutex<Vec<Heard>>);

    impl Meter for Book {
        fn begin(&self, with: Payload, how: Use) -> u64 {
            let mut book = self.0.lock().expect("a book");
            book.push((with, how, None));
            book.len() as u64 - 1
        }
        fn end(&self, call: u64, carried: Payload, how: Ended) {
            let mut book = self.0.lock().expect("a book");
            let slot = &mut book[usize::try_from(call).expect("small")].2;
            assert!(slot.is_none(), "ends once");
            *slot = Some((carried, how));
        }
    }

    #[test]
    fn every_call_is_heard_of_with_its_bytes_and_its_end() {
        let temp = tempfile::tempdir().unwrap();
        let book = Arc::new(Book::default());
        let (share, faults) = FaultShare::new(DirShare::open(temp.path()).unwrap());
        let share = MeasuredShare::new(share, book.clone());
        let last = || *book.0.lock().unwrap().last().unwrap();
        let file = share.create("a", 0o600).unwrap();
        file.write_all_at(0, &[7; 1000]).unwrap();
        let up = Payload { up: 1000, down: 0 };
        assert_eq!(
            last(),
            (up, Use::Exchange, Some((up, Ended::Answered))),
            "a write"
        );
        let (asked, got) = (Payload { up: 0, down: 4096 }, Payload { up: 0, down: 1000 });
        assert_eq!(file.read_at(0, &mut [0; 4096]).unwrap(), 1000);
        assert_eq!(
            last(),
            (asked, Use::Exchange, Some((got, Ended::Answered))),
            "a short read"
        );
        // An answer that is an error is an answer.
        share.stat("missing").unwrap_err();
        assert_eq!(last().2.unwrap().1, Ended::Answered);
        faults.all(Fault::Fail(io::ErrorKind::TimedOut));
        share.probe().unwrap_err();
        assert_eq!(last().2.unwrap().1, Ended::Failed);
        file.sync().unwrap_err();
        assert_eq!(
            (last().1, last().2.unwrap().1),
            (Use::Work, Ended::Failed),
            "a flush"
        );
        assert!(book.0.lock().unwrap().iter().all(|c| c.2.is_some()));
    }

    #[test]
    fn every_call_of_the_traits_is_passed_on() {
        passes_on(
            include_str!("measured.rs"),
            "Share for MeasuredShare<S> {",
            "\nimpl ShareFile for MeasuredFile {",
        );
    }
}

/// Checks that `here`, the source of a wrapper, passes every call of the traits on: one with an answer of
/// its own in the trait would be lost without a word.
#[cfg(all(test, unix))]
pub(crate) fn passes_on(here: &str, share: &str, file: &str) {
    let calls = |text: &str, from: &str| -> Vec<String> {
        let begun = text.split_once(from).expect("there").1;
        let body = begun.split("\n}\n").next().expect("an end");
        body.lines()
            .filter_map(|line| line.strip_prefix("    fn ")?.split(['(', '<']).next())
            .map(str::to_owned)
            .collect()
    };
    let traits = include_str!("../share.rs");
    for (of, by) in [
        ("\npub trait Share:", share),
        ("\npub trait ShareFile:", file),
    ] {
        let (asked, passed) = (calls(traits, of), calls(here, by));
        assert!(asked.len() > 5, "{asked:?}");
        let lost: Vec<_> = asked.iter().filter(|c| !passed.contains(c)).collect();
        assert!(lost.is_empty(), "not passed on: {lost:?}");
    }
}
