//! A link that is full against one that is dead.

use super::*;
use crate::share::dir::DirShare;
use crate::share::fault::{Fault, FaultShare};

const BUDGET: Duration = Duration::from_millis(400);

#[test]
fn a_call_over_a_full_link_is_waited_for_and_does_not_make_it_dead() {
    let temp = tempfile::tempdir().unwrap();
    let (share, faults) = FaultShare::new(DirShare::open(temp.path()).unwrap());
    let link = Link::new(Arc::new(share), BUDGET);
    let doubt = InDoubt::default();
    let patiently = || link.call_patiently("a piece", &doubt, |share| share.stat("").map(drop));
    let strictly = || link.call("a piece", |share| share.stat("").map(drop));
    // Bytes come all the time, the answer only after three budgets.
    faults.talks(true);
    faults.all(Fault::Hang);
    std::thread::scope(|s| {
        s.spawn(|| {
            std::thread::sleep(BUDGET * 3);
            faults.heal();
        });
        patiently().expect("is waited for");
    });
    // One that does not wait so long fails, and the link is not dead for it.
    faults.all(Fault::Hang);
    strictly().expect_err("the budget");
    std::thread::sleep(BUDGET * 2);
    assert!(link.is_up(), "full is not dead");
    // Nothing comes any more: the budget is all there is, and the link is dead.
    faults.talks(false);
    let began = Instant::now();
    patiently().expect_err("dead");
    assert!(began.elapsed() < Duration::from_secs(30));
    let end = Instant::now() + Duration::from_secs(30);
    while link.is_up() {
        assert!(Instant::now() < end, "never dead");
        std::thread::sleep(Duration::from_millis(20));
    }
    faults.heal();
}
