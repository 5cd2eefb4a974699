//! Storage for tests that loses what was not synced, in every way that a disk may.
//!
//! It records each operation, so that a test can run a protocol once, cut it after any number of
//! operations, and look at what a power loss at that moment may leave: any subset of the
//! operations since the last sync, a write also in part, by sectors.

use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::mem::{read_slice, resize_vec, write_vec};
use crate::{ReadAt, WriteAt};

/// Bytes of a sector, the unit in which a write tears.
pub const SECTOR: u64 = 512;

/// One operation on a [`CrashStorage`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CrashOp {
    /// Bytes written at an offset.
    Write {
        /// Where.
        offset: u64,
        /// What.
        data: Vec<u8>,
    },
    /// A change of length.
    SetLen(u64),
    /// Everything before is durable.
    Sync,
}

/// What a crash does to one operation that was not synced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// It never happened.
    Lost,
    /// It is all there.
    Kept,
    /// Of a write only some sectors are there: the i-th that it touches where bit `i % 64` is
    /// set. A change of length is one step: kept if bit 0 is set.
    Torn(u64),
}

/// Memory that remembers which of its operations were synced.
#[derive(Debug)]
pub struct CrashStorage {
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// What surely survives.
    synced: Vec<u8>,
    /// What a reader sees.
    live: Vec<u8>,
    history: Vec<CrashOp>,
    /// Where in the history the operations after the last sync begin.
    unsynced_from: usize,
}

impl CrashStorage {
    /// Storage that durably holds `image`.
    #[must_use]
    pub fn new(image: Vec<u8>) -> Self {
        let state = State {
            synced: image.clone(),
            live: image,
            history: Vec::new(),
            unsynced_from: 0,
        };
        Self {
            state: Mutex::new(state),
        }
    }

    /// Storage that durably held `image` and then saw `ops`: with a part of another storage's
    /// [`CrashStorage::history`], that storage cut at that moment.
    ///
    /// # Errors
    /// [`io::ErrorKind::OutOfMemory`].
    pub fn replay(image: Vec<u8>, ops: &[CrashOp]) -> io::Result<Self> {
        let storage = Self::new(image);
        for op in ops {
            match op {
                CrashOp::Write { offset, data } => storage.write_all_at(*offset, data)?,
                CrashOp::SetLen(len) => storage.set_len(*len)?,
                CrashOp::Sync => storage.sync()?,
            }
        }
        Ok(storage)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Every operation so far, syncs included. Failed ones are not in it.
    #[must_use]
    pub fn history(&self) -> Vec<CrashOp> {
        self.lock().history.clone()
    }

    /// The operations since the last sync.
    #[must_use]
    pub fn pending(&self) -> Vec<CrashOp> {
        let state = self.lock();
        state
            .history
            .get(state.unsynced_from..)
            .unwrap_or_default()
            .to_vec()
    }

    /// What a crash leaves that loses all it can.
    #[must_use]
    pub fn synced(&self) -> Vec<u8> {
        self.lock().synced.clone()
    }

    /// What a reader sees, and what a crash leaves that loses nothing.
    #[must_use]
    pub fn live(&self) -> Vec<u8> {
        self.lock().live.clone()
    }

    /// What a crash leaves in which `fate` decides over each pending operation, given its index
    /// in [`CrashStorage::pending`]. They apply in their order.
    pub fn survivor(&self, mut fate: impl FnMut(usize, &CrashOp) -> Fate) -> Vec<u8> {
        let state = self.lock();
        let mut image = state.synced.clone();
        let pending = state.history.get(state.unsynced_from..).unwrap_or_default();
        for (index, op) in pending.iter().enumerate() {
            let fate = fate(index, op);
            // Each succeeded on the live image, so it can only run out of memory here.
            let _ = apply(&mut image, op, fate);
        }
        image
    }

    /// As [`CrashStorage::survivor`]: keeps the i-th pending operation where bit `i % 64` of
    /// `mask` is set. With up to 64 pending operations, the masks reach every subset.
    #[must_use]
    pub fn survivor_mask(&self, mask: u64) -> Vec<u8> {
        self.survivor(|i, _| {
            if mask >> (i % 64) & 1 == 1 {
                Fate::Kept
            } else {
                Fate::Lost
            }
        })
    }

    /// As [`CrashStorage::survivor`]: a pseudo-random choice, the same for the same seed, with
    /// torn writes among it.
    #[must_use]
    pub fn survivor_seed(&self, seed: u64) -> Vec<u8> {
        let mut state = seed;
        let mut next = move || {
            // SplitMix64.
            state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
            let mut z = state;
            z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
            z ^ (z >> 31)
        };
        self.survivor(|_, _| match next() % 3 {
            0 => Fate::Lost,
            1 => Fate::Kept,
            _ => Fate::Torn(next()),
        })
    }
}

fn apply(image: &mut Vec<u8>, op: &CrashOp, fate: Fate) -> io::Result<()> {
    match (op, fate) {
        (_, Fate::Lost) | (CrashOp::Sync, _) => Ok(()),
        (CrashOp::SetLen(len), Fate::Kept) => resize_vec(image, *len),
        (CrashOp::SetLen(len), Fate::Torn(mask)) => {
            if mask & 1 == 1 {
                resize_vec(image, *len)
            } else {
                Ok(())
            }
        }
        (CrashOp::Write { offset, data }, Fate::Kept) => write_vec(image, *offset, data),
        (CrashOp::Write { offset, data }, Fate::Torn(mask)) => {
            let (mut at, mut rest, mut sector) = (*offset, data.as_slice(), 0u32);
            while !rest.is_empty() {
                let n = (SECTOR - at % SECTOR).min(rest.len() as u64) as usize;
                let Some((head, tail)) = rest.split_at_checked(n) else {
                    break;
                };
                if mask >> (sector % 64) & 1 == 1 {
                    write_vec(image, at, head)?;
                }
                at += n as u64;
                rest = tail;
                sector += 1;
            }
            Ok(())
        }
    }
}

impl ReadAt for CrashStorage {
    fn len(&self) -> io::Result<u64> {
        Ok(self.lock().live.len() as u64)
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        Ok(read_slice(&self.lock().live, offset, buf))
    }
}

impl WriteAt for CrashStorage {
    fn write_all_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut state = self.lock();
        write_vec(&mut state.live, offset, data)?;
        state.history.push(CrashOp::Write {
            offset,
            data: data.to_vec(),
        });
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut state = self.lock();
        resize_vec(&mut state.live, len)?;
        state.history.push(CrashOp::SetLen(len));
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        let mut state = self.lock();
        state.synced = state.live.clone();
        state.history.push(CrashOp::Sync);
        state.unsynced_from = state.history.len();
        Ok(())
    }
}
