//! Random-access storage and the one idea that carries the house: the overlay.
//!
//! Everything that edits a large file in place does it in the same four steps, and each step is a
//! type of this crate:
//!
//! 1. [`Overlay`]: the edit happens in memory (what is too large for it in a [`Scratch`] file), over a
//!    base that stays untouched;
//! 2. [`WriteSet`]: its result is a list of writes in ordered phases, each phase made durable
//!    before the next begins;
//! 3. [`RedoLog`]: the write set made durable beside the file, so that a crash in the middle of the
//!    next step can be finished by whoever finds it;
//! 4. [`WriteSet::commit`] puts the writes into the file, and the log is dropped.
//!
//! Cost is proportional to what changed; only naming a file's exact bytes for the first time
//! ([`Generation`]) reads all of it. [`CrashStorage`] and [`FaultStorage`] let tests, here and in
//! the crates above, show that every cut and every error leaves what was promised.
//!
//! ```
//! use storage::{MemStorage, Overlay, ReadAt, WriteAt};
//!
//! # fn main() -> std::io::Result<()> {
//! let file = MemStorage::from(b"Dear Bob, yours, Eve".to_vec());
//! let edit = Overlay::new(&file)?;
//! edit.write_all_at(5, b"Ann")?;
//! assert_eq!(file.to_vec(), b"Dear Bob, yours, Eve"); // the base is untouched
//!
//! edit.to_write_set("edit").commit(&file)?;
//! assert_eq!(file.to_vec(), b"Dear Ann, yours, Eve");
//! # Ok(())
//! # }
//! ```
#![cfg_attr(
    not(test),
    deny(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::indexing_slicing,
        clippy::panic
    )
)]

mod crash;
mod fault;
mod file;
mod generation;
mod mem;
mod overlay;
mod payload;
mod range_set;
mod redo;
mod scratch;
mod traits;
mod write_set;

pub use crash::{CrashOp, CrashStorage, Fate, SECTOR};
pub use fault::{FaultOn, FaultStorage};
pub use file::FileStorage;
pub use generation::{Digest, Generation, LEAF_SIZE, Leaves};
pub use mem::MemStorage;
pub use overlay::{Overlay, OverlayView};
pub use payload::Payload;
pub use range_set::RangeSet;
pub use redo::{Loaded, MAX_LOG_LEN, MAX_META, Outcome, RedoError, RedoLog};
pub use scratch::{Scratch, ScratchDir};
pub use traits::{ReadAt, WriteAt};
pub use write_set::{Phase, WriteSet};
