//! Containers on a share are changed whole or not at all, whatever call to the share fails.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

#[path = "../../../sync/tests/common/mod.rs"]
mod common;

use std::fs;
use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

use agent::{Access, InPlace, Site as _};
use common::{Far, Mailbox, Near, faults};
use pst::ltp::PropValue;
use pst::messaging::tags;
use storage::{Generation, LEAF_SIZE, Leaves, MemStorage, RangeSet};
use sync::{ApplyAnswer, ApplyJob, Destination, RemoteInventory, Report, SyncError, Verdict};
use vfs::share::dir::DirShare;
use vfs::share::fault::{Fault, FaultControl, FaultShare};
use vfs::share::{Share, Stamp};

use super::choice::{Placed, Placement, Way};
use super::{Known, OwnCopy, ShareSite};

/// As the tests of the engine call it.
const PATH: &str = "a.pst";

struct World {
    temp: tempfile::TempDir,
    share: Arc<dyn Share>,
    control: FaultControl,
    own: Arc<Mutex<Option<OwnCopy>>>,
}

impl World {
    /// A share with this container.
    fn new(container: &Mailbox) -> Self {
        let temp = tempfile::tempdir().unwrap();
        fs::create_dir(temp.path().join("share")).unwrap();
        fs::write(temp.path().join("share").join(PATH), container.0.to_vec()).unwrap();
        let (share, control) = FaultShare::new(DirShare::open(temp.path().join("share")).unwrap());
        Self {
            temp,
            share: Arc::new(share),
            control,
            own: Arc::default(),
        }
    }

    /// As a process that was started just now.
    fn start(&self) -> InPlace {
        let known = Arc::new(self.known());
        let site = ShareSite::new(
            Arc::clone(&self.share),
            known,
            Arc::clone(&self.own),
            Arc::new(|| true),
        );
        let records = self.temp.path().join("applied");
        InPlace::at(Box::new(site), &records, [7; 16], "far".to_owned()).unwrap()
    }

    fn known(&self) -> Known {
        Known::open(self.temp.path().join("placed"), true).unwrap()
    }

    fn stamp(&self) -> Stamp {
        self.share.stamp(PATH).unwrap()
    }

    fn there(&self) -> Mailbox {
        let bytes = fs::read(self.file()).unwrap();
        Mailbox(Arc::new(MemStorage::from(bytes)))
    }

    fn file(&self) -> PathBuf {
        self.temp.path().join("share").join(PATH)
    }

    /// The drive has a copy that is the share's file but for what `near` changed.
    fn lend(&self, near: &Mailbox, base: &Mailbox) {
        let (old, new) = (base.0.to_vec(), near.0.to_vec());
        let mut dirty = RangeSet::new();
        let longest = old.len().max(new.len()) as u64;
        for at in (0..longest).step_by(512) {
            let part = |of: &[u8]| {
                let end = of.len().min(at as usize + 512);
                of.get(at as usize..end).map(<[u8]>::to_vec)
            };
            if part(&old) != part(&new) {
                dirty.insert(at..longest.min(at + 512));
            }
        }
        *self.own.lock().unwrap() = Some(OwnCopy {
            container: PATH.to_owned(),
            reader: Arc::new(MemStorage::from(new)),
            written: dirty.clone(),
            same_as: Some((self.stamp(), dirty)),
        });
    }

    /// What lies on the share beside the container.
    fn left_over(&self) -> Vec<String> {
        let list = fs::read_dir(self.temp.path().join("share")).unwrap();
        let names = list.map(|e| e.unwrap().file_name().into_string().unwrap());
        names.filter(|name| name != PATH).collect()
    }
}

fn sync(near: &mut Near, base: &Far, to: &dyn Destination) -> sync::Result<Report> {
    near.sync_to(to, base)
}

/// The container before, and the near side with a few changes of it.
fn versions() -> (Mailbox, Mailbox) {
    let base = Mailbox::new(40);
    let near = base.twin();
    for n in 0..6 {
        near.add(&format!("new {n}, {}", "long ".repeat(400)));
    }
    near.change("m3", "changed");
    near.delete("m5");
    (base, near)
}

fn digest(mailbox: &Mailbox) -> [u8; 32] {
    pst::inventory::Inventory::read(&mailbox.pst())
        .unwrap()
        .digest()
}

#[test]
fn a_container_is_changed_over_the_share() {
    let (base, near) = versions();
    for lent in [false, true] {
        let world = World::new(&base);
        if lent {
            world.lend(&near, &base);
        }
        let mut source = Near::new(base.twin());
        source.mailbox = near.twin();
        let before = world.stamp();
        let report = sync(&mut source, &Far::new(base.twin()), &world.start()).unwrap();
        assert_eq!(report.verdict, Verdict::Verified);
        assert_eq!(world.there().subjects(), near.subjects());
        assert_eq!(faults(&world.there().pst()), Vec::<String>::new());
        assert_eq!(world.left_over(), Vec::<String>::new());
        let now = world.stamp();
        assert!(now.mtime != before.mtime, "others can tell that it changed");
        // What is known is what is there.
        let known = world.known().leaves(PATH, &now).unwrap();
        assert_eq!(known, Leaves::hash(&*world.there().0).unwrap());
        // And goes on without reading the whole file.
        let calls = world.control.calls();
        source.mailbox.add("one more");
        sync(&mut source, &Far::new(base.twin()), &world.start()).unwrap();
        assert_eq!(world.there().subjects(), source.mailbox.subjects());
        let calls = world.control.calls() - calls;
        println!("a small change: {calls} calls");
    }
}

/// Whatever call to the share is the last that works, or fails, or does its work and loses the answer: the
/// container is what it was or what it is to be, and the next try makes it the latter.
#[test]
fn every_call_may_fail() {
    let (base, near) = versions();
    let (before, after) = (digest(&base), digest(&near));
    let clean = World::new(&base);
    clean.lend(&near, &base);
    let mut source = Near::new(base.twin());
    source.mailbox = near.twin();
    let calls = clean.control.calls();
    sync(&mut source, &Far::new(base.twin()), &clean.start()).unwrap();
    let calls = clean.control.calls() - calls;
    assert!(calls > 30, "{calls}");
    let mut begun = 0;
    for n in 1..=calls {
        for kind in 0..4 {
            let world = World::new(&base);
            world.lend(&near, &base);
            let mut source = Near::new(base.twin());
            source.mailbox = near.twin();
            let dead = io::ErrorKind::TimedOut;
            match kind {
                0 => world.control.since(n, Fault::Fail(dead)),
                1 => world.control.at(n, Fault::Fail(dead)),
                2 => world.control.at(n, Fault::FailAfter(dead)),
                _ => world.control.at(n, Fault::Fail(io::ErrorKind::StorageFull)),
            }
            let far = Far::new(base.twin());
            let first = sync(&mut source, &far, &world.start());
            world.control.heal();
            let now = digest(&world.there());
            assert!(
                now == before || now == after,
                "call {n}, kind {kind}: {first:?}"
            );
            if let Ok(report) = &first {
                assert!(report.verdict == Verdict::Deferred || now == after);
            }
            begun += u32::from(world.left_over().iter().any(|f| f.ends_with("-redo")));
            // As another process, and with other luck.
            if n % 2 == 0 {
                source.restart();
            }
            if n % 3 == 0 {
                world.own.lock().unwrap().take();
            }
            let report = sync(&mut source, &far, &world.start())
                .unwrap_or_else(|e| panic!("call {n}, kind {kind}: {e}"));
            assert_eq!(report.verdict, Verdict::Verified);
            assert_eq!(
                digest(&world.there()),
                after,
                "call {n}, kind {kind}: {first:?}"
            );
            assert_eq!(world.left_over(), Vec::<String>::new(), "{n} {kind}");
            let known = world.known().leaves(PATH, &world.stamp());
            if let Some(known) = known {
                let there = Leaves::hash(&*world.there().0).unwrap();
                assert_eq!(known, there, "call {n}, kind {kind}");
            }
        }
    }
    println!("{calls} calls, each failing in four ways; {begun} logs were found and finished");
    assert!(begun > 20, "{begun}");
}

/// Somebody else writes the file while a change of it waits for the link: neither is lost, and what is
/// known of the file is what it holds.
#[test]
fn others_may_write_before_a_change_is_finished() {
    let (base, near) = versions();
    let mut met = [0; 2];
    for n in (1..).step_by(3) {
        let world = World::new(&base);
        world.lend(&near, &base);
        let mut source = Near::new(base.twin());
        source.mailbox = near.twin();
        world.control.since(n, Fault::Fail(io::ErrorKind::TimedOut));
        let far = Far::new(base.twin());
        let first = sync(&mut source, &far, &world.start());
        world.control.heal();
        if first.is_ok() {
            break;
        }
        let log = world.left_over().iter().any(|f| f.ends_with("-redo"));
        let theirs = world.there();
        theirs.add("theirs");
        fs::write(world.file(), theirs.0.to_vec()).unwrap();
        // Not the file any more that ours started from.
        let far = Far::new(theirs.twin());
        let last = sync(&mut source, &far, &world.start());
        // The drift may need a second look; it ends.
        let last = last.or_else(|_| sync(&mut source, &far, &world.start()));
        assert_eq!(last.unwrap().verdict, Verdict::Verified, "call {n}");
        let there = world.there();
        assert!(there.subjects().contains(&"theirs".to_owned()), "call {n}");
        for subject in near.subjects() {
            assert!(there.subjects().contains(&subject), "call {n}: {subject}");
        }
        assert_eq!(faults(&there.pst()), Vec::<String>::new(), "call {n}");
        if let Some(known) = world.known().leaves(PATH, &world.stamp()) {
            assert_eq!(known, Leaves::hash(&*there.0).unwrap(), "call {n}");
        }
        met[usize::from(log)] += 1;
    }
    assert!(met.iter().all(|n| *n > 2), "{met:?}");
}

/// A long log is brought over once, in however many pieces.
#[test]
fn a_log_goes_on_where_the_link_broke() {
    let base = Mailbox::new(5);
    let near = base.twin();
    let noise = common::noise(3 << 20);
    let text: String = noise.iter().map(|b| char::from(b % 90 + 33)).collect();
    let mut long = common::message("long");
    long.props.insert(PropValue::string(tags::BODY, &text));
    let inbox = near.inbox();
    near.edit(|tx| {
        tx.add_message(inbox, None, &long, false).unwrap();
    });
    let world = World::new(&base);
    world.lend(&near, &base);
    let mut source = Near::new(base.twin());
    source.mailbox = near.twin();
    let far = Far::new(base.twin());
    let temp = || {
        let path = world.temp.path().join("share/a.pst.pstsyncd-redo.tmp");
        fs::metadata(path).map_or(0, |m| m.len())
    };
    let mut lengths = Vec::new();
    let mut n = 1;
    while temp() < 2 << 20 {
        world.control.since(n, Fault::Fail(io::ErrorKind::TimedOut));
        assert!(sync(&mut source, &far, &world.start()).is_err());
        world.control.heal();
        lengths.push(temp());
        n += 1;
    }
    assert!(lengths.is_sorted(), "{lengths:?}");
    sync(&mut source, &far, &world.start()).unwrap();
    assert_eq!(world.there().subjects(), near.subjects());
    assert_eq!(world.left_over(), Vec::<String>::new());
}

/// An agent that can be taken away, in front of the same container.
#[derive(Clone)]
struct ToAgent(Arc<Agent>);

struct Agent {
    inner: InPlace,
    there: AtomicBool,
    asked: AtomicU32,
    /// The next answer is lost.
    loses: AtomicBool,
    /// The next piece is lost.
    loses_piece: AtomicBool,
}

fn unreachable() -> SyncError {
    SyncError::Destination {
        message: "the agent does not answer".to_owned(),
        retry: true,
        offline: true,
    }
}

impl Destination for ToAgent {
    fn name(&self) -> &str {
        "far"
    }
    fn inventory(&self, container: &str) -> sync::Result<RemoteInventory> {
        if !self.0.there.load(Ordering::SeqCst) {
            return Err(unreachable());
        }
        self.0.inner.inventory(container)
    }
    fn apply(
        &self,
        job: &ApplyJob<'_>,
        progress: &mut dyn FnMut(u64, u64),
    ) -> sync::Result<ApplyAnswer> {
        self.0.asked.fetch_add(1, Ordering::SeqCst);
        let lost = self.0.loses_piece.swap(false, Ordering::SeqCst);
        if lost || !self.0.there.load(Ordering::SeqCst) {
            return Err(unreachable());
        }
        let answer = self.0.inner.apply(job, progress);
        if self.0.loses.swap(false, Ordering::SeqCst) {
            return Err(unreachable());
        }
        answer
    }
}

struct Ways {
    world: World,
    agent: Arc<Agent>,
    online: Arc<AtomicBool>,
}

impl Ways {
    fn new(base: &Mailbox) -> Self {
        let world = World::new(base);
        let root = world.temp.path().join("share");
        let records = world.temp.path().join("agent");
        let exclusivity = agent::Exclusivity::Promised;
        let inner = InPlace::open(&root, &records, [7; 16], "far".to_owned(), exclusivity);
        let agent = Arc::new(Agent {
            inner: inner.unwrap(),
            there: AtomicBool::new(true),
            asked: AtomicU32::new(0),
            loses: AtomicBool::new(false),
            loses_piece: AtomicBool::new(false),
        });
        Self {
            world,
            agent,
            online: Arc::new(AtomicBool::new(true)),
        }
    }

    fn placed(&self, placement: Placement) -> Placed {
        let online = Arc::clone(&self.online);
        Placed::new(
            "far".to_owned(),
            placement,
            Some(Box::new(self.world.start())),
            Some(Box::new(ToAgent(Arc::clone(&self.agent)))),
            true,
            Arc::new(move || online.load(Ordering::SeqCst)),
            self.world.temp.path().join("handed"),
        )
        .unwrap()
    }

    fn asked(&self) -> u32 {
        self.agent.asked.swap(0, Ordering::SeqCst)
    }
}

#[test]
fn each_piece_takes_the_way_that_is_open() {
    let base = Mailbox::new(8);
    let ways = Ways::new(&base);
    let far = Far::new(base.twin());
    let mut near = Near::new(base.twin());
    let placed = ways.placed(Placement::Auto);
    for (online, way) in [(true, Way::Local), (false, Way::Split), (true, Way::Local)] {
        ways.online.store(online, Ordering::SeqCst);
        near.mailbox.add(&format!("online: {online}"));
        assert_eq!(placed.choose(PATH).way, way);
        sync(&mut near, &far, &placed).unwrap();
        assert_eq!(ways.asked() > 0, way == Way::Split);
        assert_eq!(ways.world.there().subjects(), near.mailbox.subjects());
    }
    drop(placed);
    // By hand, whatever the link is.
    assert_eq!(ways.placed(Placement::Split).choose(PATH).way, Way::Split);
    ways.online.store(false, Ordering::SeqCst);
    assert_eq!(ways.placed(Placement::Local).choose(PATH).way, Way::Local);
}

/// What cannot be written from here, the agent writes.
#[test]
fn what_the_share_refuses_goes_by_the_agent() {
    let base = Mailbox::new(8);
    let ways = Ways::new(&base);
    let far = Far::new(base.twin());
    let mut near = Near::new(base.twin());
    near.mailbox.add("new");
    let placed = ways.placed(Placement::Auto);
    let denied = Fault::Fail(io::ErrorKind::PermissionDenied);
    // It can be read; opening it to write is refused.
    let calls = ways.world.control.calls();
    placed.inventory(PATH).unwrap();
    let calls = ways.world.control.calls() - calls;
    ways.world.control.since(calls + 1, denied);
    sync(&mut near, &far, &placed).unwrap_err();
    assert_eq!(placed.choose(PATH).way, Way::Split);
    sync(&mut near, &far, &placed).unwrap();
    assert_eq!(ways.world.there().subjects(), near.mailbox.subjects());
}

/// R7: what the agent may have done or may still do is not done from here.
#[test]
fn a_piece_that_the_agent_has_is_the_agents() {
    for lost_answer in [true, false] {
        let base = Mailbox::new(8);
        let ways = Ways::new(&base);
        let far = Far::new(base.twin());
        let mut near = Near::new(base.twin());
        ways.online.store(false, Ordering::SeqCst);
        near.mailbox.add("first");
        let placed = ways.placed(Placement::Auto);
        if lost_answer {
            // It does what it was asked, and then is gone.
            ways.agent.loses.store(true, Ordering::SeqCst);
        } else {
            ways.agent.loses_piece.store(true, Ordering::SeqCst);
        }
        sync(&mut near, &far, &placed).unwrap_err();
        drop(placed);
        ways.agent.there.store(false, Ordering::SeqCst);
        // The link is good now, and the program starts anew.
        ways.online.store(true, Ordering::SeqCst);
        near.restart();
        let placed = ways.placed(Placement::Auto);
        assert_eq!(placed.choose(PATH).way, Way::Split);
        near.mailbox.add("second");
        let again = sync(&mut near, &far, &placed);
        drop(placed);
        if lost_answer {
            // The file is another than the piece was made for: it cannot be done again.
            again.unwrap();
            assert_eq!(ways.world.there().subjects(), near.mailbox.subjects());
            continue;
        }
        assert!(again.is_err());
        assert_eq!(ways.world.there().subjects(), base.subjects());
        // The user knows that the agent is gone for good.
        sync(&mut near, &far, &ways.placed(Placement::Local)).unwrap();
        assert_eq!(ways.world.there().subjects(), near.mailbox.subjects());
        // What the agent is asked late is not done twice.
        ways.agent.there.store(true, Ordering::SeqCst);
        near.mailbox.add("third");
        ways.online.store(false, Ordering::SeqCst);
        sync(&mut near, &far, &ways.placed(Placement::Auto)).unwrap();
        assert_eq!(ways.world.there().subjects(), near.mailbox.subjects());
    }
}

/// A change that was begun from here is finished by the agent, and the other way round.
#[test]
fn each_way_finishes_what_the_other_began() {
    let (base, near) = versions();
    let mut finished = 0;
    for n in (1..).step_by(2) {
        let ways = Ways::new(&base);
        ways.world.lend(&near, &base);
        let far = Far::new(base.twin());
        let mut source = Near::new(base.twin());
        source.mailbox = near.twin();
        let control = &ways.world.control;
        control.since(n, Fault::Fail(io::ErrorKind::TimedOut));
        let first = sync(&mut source, &far, &ways.placed(Placement::Auto));
        control.heal();
        if first.is_ok() {
            break;
        }
        finished += u32::from(ways.world.left_over().iter().any(|f| f.ends_with("-redo")));
        ways.online.store(false, Ordering::SeqCst);
        sync(&mut source, &far, &ways.placed(Placement::Auto)).unwrap();
        assert!(ways.asked() > 0);
        assert_eq!(digest(&ways.world.there()), digest(&near), "call {n}");
        assert_eq!(ways.world.left_over(), Vec::<String>::new(), "call {n}");
    }
    assert!(finished > 5, "{finished}");
}

/// A large file is not read from its beginning each time that the link breaks; nor at all while the drive
/// is offline.
#[test]
fn reading_goes_on_where_it_was_broken_off() {
    let world = World::new(&Mailbox::new(1));
    let bytes = common::noise(20 << 20);
    fs::write(world.file(), &bytes).unwrap();
    let may = Arc::new(AtomicBool::new(true));
    let site = || {
        let may = Arc::clone(&may);
        let may: super::MayAsk = Arc::new(move || may.load(Ordering::SeqCst));
        let known = Arc::new(world.known());
        ShareSite::new(Arc::clone(&world.share), known, Arc::clone(&world.own), may)
    };
    let calls = |work: &dyn Fn()| {
        let before = world.control.calls();
        work();
        world.control.calls() - before
    };
    let whole = calls(&|| {
        let found = site().open(PATH, Access::Read).unwrap().leaves().unwrap();
        assert_eq!(
            found,
            Leaves::hash(&MemStorage::from(bytes.clone())).unwrap()
        );
    });
    fs::remove_file(world.known().file(PATH, "leaves")).unwrap();
    let first = calls(&|| {
        let dead = Fault::Fail(io::ErrorKind::TimedOut);
        world.control.since(whole * 9 / 10, dead);
        let container = site().open(PATH, Access::Read).unwrap();
        container.leaves().unwrap_err();
        world.control.heal();
    });
    let second = calls(&|| {
        let found = site().open(PATH, Access::Read).unwrap().leaves().unwrap();
        assert_eq!(
            found,
            Leaves::hash(&MemStorage::from(bytes.clone())).unwrap()
        );
    });
    assert!(second * 2 < whole, "{whole} calls, {first} and {second}");
    fs::remove_file(world.known().file(PATH, "leaves")).unwrap();
    let container = site().open(PATH, Access::Read).unwrap();
    may.store(false, Ordering::SeqCst);
    let error = container.leaves().unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::NetworkDown);
}

/// A stamp that did not tell of a change (a clock of the server's file system may be coarse) costs a try, and
/// is not believed again.
#[test]
fn digests_that_the_file_belies_are_given_up() {
    let (base, near) = versions();
    let world = World::new(&base);
    let mut wrong = base.0.to_vec();
    for leaf in wrong.chunks_mut(LEAF_SIZE as usize) {
        *leaf.last_mut().unwrap() ^= 1;
    }
    let wrong = Leaves::hash(&MemStorage::from(wrong)).unwrap();
    world.known().keep(PATH, world.stamp(), &wrong).unwrap();
    let mut source = Near::new(base.twin());
    source.mailbox = near.twin();
    let far = Far::new(base.twin());
    let to = world.start();
    let verified =
        |tried: sync::Result<Report>| tried.is_ok_and(|r| r.verdict == Verdict::Verified);
    assert!(!verified(sync(&mut source, &far, &to)));
    assert!((0..3).any(|_| verified(sync(&mut source, &far, &to))));
    assert_eq!(digest(&world.there()), digest(&near));
    let known = world.known().leaves(PATH, &world.stamp()).unwrap();
    assert_eq!(known, Leaves::hash(&*world.there().0).unwrap());
}

#[test]
fn what_is_known_is_known_of_one_stamp() {
    let world = World::new(&Mailbox::new(3));
    let known = world.known();
    let (stamp, leaves) = (world.stamp(), Leaves::hash(&*world.there().0).unwrap());
    assert_eq!(known.leaves(PATH, &stamp), None);
    known.keep(PATH, stamp, &leaves).unwrap();
    assert_eq!(known.leaves(PATH, &stamp).as_ref(), Some(&leaves));
    assert_eq!(known.leaves("b.pst", &stamp), None);
    let other = Stamp {
        mtime: stamp.mtime + 1,
        ..stamp
    };
    assert_eq!(known.leaves(PATH, &other), None);
    // What a power cut left is nothing.
    let file = known.file(PATH, "leaves");
    let bytes = fs::read(&file).unwrap();
    fs::write(&file, &bytes[..bytes.len() - 1]).unwrap();
    assert_eq!(known.leaves(PATH, &stamp), None);
    assert!(leaves.len() > LEAF_SIZE && Generation::of(&*world.there().0).is_ok());
}
