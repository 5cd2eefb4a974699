//! Random-access storage and the one idea that carries the house: the overlay.
//!
//! Everything that edits a large file in place does it in the same four steps, and each step is a
//! type of this crate:
//!
//! 1. [`Overlay`]: the edit happens in memory, over a base that stays untouched;
//! 2. [`WriteSet`]: its result is a list of writes in ordered phases, each phase made durable
//!    before the next begins;
//! 3. [`WriteSet::commit`] puts them into a [`WriteAt`].
//!
//! Cost is proportional to what changed, never to the size of the file.
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

mod file;
mod mem;
mod overlay;
mod range_set;
mod traits;
mod write_set;

pub use file::FileStorage;
pub use mem::MemStorage;
pub use overlay::{Overlay, OverlayView};
pub use range_set::RangeSet;
pub use traits::{ReadAt, WriteAt};
pub use write_set::{Phase, WriteSet};
