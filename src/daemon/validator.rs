//! What a consistent moment of a PST is: the drive proposes, this judges (DESIGN 6, "Epoch").

use std::sync::Arc;

use storage::{RangeSet, ReadAt};
use vfs::{EpochValidator, Verdict};

/// Accepts a PST whose trees are whole and whose writer has marked its maps valid.
pub struct PstValidator;

impl EpochValidator for PstValidator {
    fn check(&self, file: &Arc<dyn ReadAt>, written: &RangeSet) -> Verdict {
        match pst::verify_written(Arc::clone(file), written) {
            Ok(moment) if moment.maps_valid => Verdict::Consistent,
            Ok(_) => Verdict::Wait("a program is in the middle of an edit".to_owned()),
            Err(error) => Verdict::Wait(format!("it is not whole at this moment: {error}")),
        }
    }
}

/// Accepts whole trees even where the writer left its maps marked invalid: it went away in the
/// middle of an edit, and what is reachable is all there is. Only for a file that rests.
pub fn whole_though_abandoned(file: &Arc<dyn ReadAt>, written: &RangeSet) -> Result<(), String> {
    pst::verify_written(Arc::clone(file), written)
        .map(drop)
        .map_err(|e| e.to_string())
}
