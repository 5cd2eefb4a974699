//! Bytes of a container that go over a link of which only so much may be used.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use storage::{ReadAt, WriteAt};
use sync::client::{Throttle, Way};

/// Longest time between two looks at the limit: it may have changed.
const LOOK: Duration = Duration::from_millis(200);

/// What may use the link: all of it, or what a limit leaves.
#[derive(Clone, Default)]
pub struct Pace(Option<Arc<dyn Throttle>>);

impl Pace {
    /// Within this limit.
    pub fn within(limit: Arc<dyn Throttle>) -> Self {
        Self(Some(limit))
    }

    /// Waits until some of `want` bytes may go; how many: at least one of any.
    fn some(&self, way: Way, want: u64) -> u64 {
        let Some(limit) = self.0.as_ref().filter(|_| want > 0) else {
            return want;
        };
        loop {
            match limit.take(way, want) {
                Ok(granted) => return granted.clamp(1, want),
                Err(time) => std::thread::sleep(time.min(LOOK)),
            }
        }
    }

    /// Waits until so many bytes may have gone.
    pub fn all(&self, way: Way, bytes: u64) {
        let mut left = bytes;
        while left > 0 {
            left -= self.some(way, left);
        }
    }
}

/// A storage at the other end of the link.
pub struct Paced<S> {
    pub inner: S,
    pace: Pace,
}

impl<S> Paced<S> {
    pub fn new(inner: S, pace: Pace) -> Self {
        Self { inner, pace }
    }
}

impl<S: ReadAt> ReadAt for Paced<S> {
    fn len(&self) -> io::Result<u64> {
        self.inner.len()
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        let mut done = 0;
        while let Some(rest) = buf.get_mut(done..).filter(|rest| !rest.is_empty()) {
            let most = self.pace.some(Way::Down, rest.len() as u64) as usize;
            let part = rest.get_mut(..most).unwrap_or_default();
            let read = self.inner.read_at(offset + done as u64, part)?;
            done += read;
            if read < most {
                break;
            }
        }
        Ok(done)
    }
}

impl<S: WriteAt> WriteAt for Paced<S> {
    fn write_all_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut done = 0;
        while let Some(rest) = data.get(done..).filter(|rest| !rest.is_empty()) {
            let most = self.pace.some(Way::Up, rest.len() as u64) as usize;
            let part = rest.get(..most).unwrap_or(rest);
            self.inner.write_all_at(offset + done as u64, part)?;
            done += part.len();
        }
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.inner.set_len(len)
    }

    fn sync(&self) -> io::Result<()> {
        self.inner.sync()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use storage::MemStorage;

    use super::*;

    /// Grants at most 10 bytes at once, every second time it is asked, and counts them.
    #[derive(Default)]
    struct Tens(Mutex<(u64, u64, bool)>);

    impl Throttle for Tens {
        fn take(&self, way: Way, want: u64) -> Result<u64, Duration> {
            let mut counts = self.0.lock().unwrap();
            counts.2 = !counts.2;
            if counts.2 {
                return Err(Duration::from_micros(1));
            }
            let granted = want.min(10);
            match way {
                Way::Up => counts.0 += granted,
                Way::Down => counts.1 += granted,
            }
            Ok(granted)
        }
    }

    #[test]
    fn what_is_read_and_written_is_whole_and_asked_for() {
        let limit = Arc::new(Tens::default());
        let paced = Paced::new(MemStorage::new(), Pace::within(limit.clone()));
        let data: Vec<u8> = (0..95).collect();
        paced.write_all_at(5, &data).unwrap();
        assert_eq!(limit.0.lock().unwrap().0, 95);
        let mut read = vec![0; 95];
        paced.read_exact_at(5, &mut read).unwrap();
        assert!(read == data);
        assert_eq!(limit.0.lock().unwrap().1, 95);
        // Fewer than asked for only at the end.
        let mut more = vec![0; 200];
        assert_eq!(paced.read_at(0, &mut more).unwrap(), 100);
        assert_eq!(paced.read_at(100, &mut more).unwrap(), 0);
    }
}
