//! Which moments of a writer that never syncs are whole: judged after each of its header writes.

mod support;

use std::sync::Arc;

use pst::check::{Severity, check, check_ltp};
use pst::ndb::Ndb;
use storage::{MemStorage, RangeSet, ReadAt};
use support::skip;
use support::trace::{self, Call};

#[test]
fn only_whole_moments_of_a_real_writer_are_accepted() {
    let Some(mut file) = trace::mail_pst() else {
        return skip::skipped("traces", "no traces on this machine");
    };
    let mut written = RangeSet::default();
    let (mut proposed, mut whole, mut accepted) = (0, 0, 0);
    for call in trace::calls("edits-11") {
        trace::replay_in_memory(&mut file, &call);
        let Call::Write { offset, data } = &call else {
            continue;
        };
        written.insert(*offset..*offset + data.len() as u64);
        if *offset >= 564 {
            continue;
        }
        proposed += 1;
        let snapshot: Arc<dyn ReadAt> = Arc::new(MemStorage::from(file.clone()));
        let Ok(moment) = pst::verify_written(Arc::clone(&snapshot), &written) else {
            continue;
        };
        whole += 1;
        if !moment.maps_valid {
            continue;
        }
        accepted += 1;
        let ndb = Arc::new(Ndb::open(snapshot).expect("opens"));
        let errors: Vec<_> = check(&ndb)
            .into_iter()
            .chain(check_ltp(&ndb))
            // This writer marks its maps valid before it has written them. A compile reads the
            // trees, not the maps, so that moment is whole all the same.
            .filter(|f| f.severity == Severity::Error && f.code != "used-but-free")
            .collect();
        assert!(errors.is_empty(), "accepted, but: {errors:?}");
    }
    println!("{proposed} moments, {whole} with whole trees, {accepted} accepted");
    assert!(accepted >= 10, "a writer of 20 edits is whole between them");
    assert!(accepted < proposed, "and in the middle of them it is not");
}
