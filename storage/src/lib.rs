//! Random-access storage and the one idea that carries the house: the overlay.

mod traits;

pub use traits::{ReadAt, WriteAt};
