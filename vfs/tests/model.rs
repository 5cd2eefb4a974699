//! The drive against a plain model: whatever the state, whatever share calls fail, and through
//! kills at any point, applications see what they wrote, no call fails (everything is fully
//! cached, R12), and in the end the share has it too.
#![allow(clippy::unwrap_used)]

mod common;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::rc::Rc;
use std::sync::Arc;

use common::{Rig, pattern};
use proptest::prelude::*;
use vfs::share::fault::Fault;
use vfs::{Drive, PushOutcome, ROOT, ReintegratedOutcome, State};

const NAMES: [&str; 5] = ["a.pst", "b.pst", "c.txt", "d.doc", "e.pst"];

#[derive(Debug, Clone)]
enum Op {
    Open(usize),
    Close(usize),
    Write(usize, u64, usize, u8),
    Read(usize, u64, usize),
    Truncate(usize, u64),
    Sync(usize),
    Create(usize),
    Unlink(usize),
    Rename(usize, usize),
    State(State),
    Checkpoint,
    Kill,
    Shutdown,
    Fault(u64, bool),
    Heal,
    Snapshot(usize),
    Reintegrate,
}

fn op() -> impl Strategy<Value = Op> {
    let name = 0..NAMES.len();
    prop_oneof![
        6 => name.clone().prop_map(Op::Open),
        3 => (0usize..4).prop_map(Op::Close),
        14 => (0usize..4, 0u64..9000, 1usize..3000, any::<u8>())
            .prop_map(|(h, o, l, s)| Op::Write(h, o, l, s)),
        5 => (0usize..4, 0u64..9000, 1usize..4000).prop_map(|(h, o, l)| Op::Read(h, o, l)),
        3 => (0usize..4, 0u64..9000).prop_map(|(h, n)| Op::Truncate(h, n)),
        3 => (0usize..4).prop_map(Op::Sync),
        3 => name.clone().prop_map(Op::Create),
        1 => name.clone().prop_map(Op::Unlink),
        2 => (name.clone(), name.clone()).prop_map(|(a, b)| Op::Rename(a, b)),
        4 => prop_oneof![Just(State::Online), Just(State::Cached), Just(State::Offline)]
            .prop_map(Op::State),
        2 => Just(Op::Checkpoint),
        2 => Just(Op::Kill),
        1 => Just(Op::Shutdown),
        3 => (1u64..6, any::<bool>()).prop_map(|(n, after)| Op::Fault(n, after)),
        1 => Just(Op::Heal),
        1 => name.prop_map(Op::Snapshot),
        1 => Just(Op::Reintegrate),
    ]
}

type Content = Rc<RefCell<Vec<u8>>>;

struct World {
    rig: Rig,
    drive: Option<Arc<Drive>>,
    files: BTreeMap<&'static str, Content>,
    open: Vec<(u64, u64, Content)>,
    snaps: Vec<(vfs::Snapshot, Vec<u8>)>,
}

impl World {
    fn new() -> Self {
        let rig = Rig::new();
        let mut files = BTreeMap::new();
        for (i, name) in ["a.pst", "b.pst"].into_iter().enumerate() {
            let data = pattern(4000 + i * 3000, i as u8);
            rig.put(name, &data);
            files.insert(name, Rc::new(RefCell::new(data)));
        }
        let drive = Some(Self::start(&rig, State::Online));
        let w = Self {
            rig,
            drive,
            files,
            open: Vec::new(),
            snaps: Vec::new(),
        };
        w.d().fill().unwrap();
        w
    }

    fn start(rig: &Rig, state: State) -> Arc<Drive> {
        let mut c = rig.config(state);
        c.segment_len = 8 << 10;
        c.unwritten_limit = 12 << 10;
        c.direct_append = 1500;
        Drive::open(c).unwrap()
    }

    fn d(&self) -> &Drive {
        self.drive.as_deref().unwrap()
    }

    fn restart(&mut self) {
        let state = self.d().state();
        self.open.clear();
        self.snaps.clear();
        self.drive = None;
        self.drive = Some(Self::start(&self.rig, state));
    }

    fn run(&mut self, op: &Op) {
        match op {
            Op::Open(n) if self.open.len() < 4 => {
                let Some(content) = self.files.get(NAMES[*n]).cloned() else {
                    return assert!(self.d().find(NAMES[*n]).is_err());
                };
                let node = self.d().find(NAMES[*n]).unwrap();
                let o = self.d().open_file(node, true, true).unwrap();
                self.open.push((o.handle, node, content));
            }
            Op::Create(n) if self.open.len() < 4 => {
                let made = self.d().create(ROOT, NAMES[*n], 0o644, None);
                if self.files.contains_key(NAMES[*n]) {
                    return assert!(matches!(made, Err(vfs::Error::Exists(_))));
                }
                let (node, o) = made.unwrap();
                let content = Content::default();
                self.files.insert(NAMES[*n], content.clone());
                self.open.push((o.handle, node.id, content));
            }
            Op::Close(h) if *h < self.open.len() => {
                let (handle, ..) = self.open.remove(*h);
                self.d().release(handle).unwrap();
            }
            Op::Write(h, offset, len, seed) => {
                let Some((handle, _, content)) = self.open.get(*h) else {
                    return;
                };
                let data = pattern(*len, *seed);
                self.d().write(*handle, *offset, &data).unwrap();
                let mut c = content.borrow_mut();
                let end = *offset as usize + len;
                if c.len() < end {
                    c.resize(end, 0);
                }
                c[*offset as usize..end].copy_from_slice(&data);
            }
            Op::Read(h, offset, len) => {
                let Some((handle, _, content)) = self.open.get(*h) else {
                    return;
                };
                let got = self.d().read(*handle, *offset, *len).unwrap();
                let c = content.borrow();
                let from = (*offset as usize).min(c.len());
                assert!(got == c[from..(from + len).min(c.len())], "read differs");
            }
            Op::Truncate(h, size) => {
                let Some((handle, _, content)) = self.open.get(*h) else {
                    return;
                };
                self.d().truncate_handle(*handle, *size).unwrap();
                content.borrow_mut().resize(*size as usize, 0);
            }
            Op::Sync(h) => {
                let Some((handle, ..)) = self.open.get(*h) else {
                    return;
                };
                self.d().fsync(*handle).unwrap();
            }
            Op::Unlink(n) => {
                let gone = self.d().unlink(ROOT, NAMES[*n]);
                assert_eq!(
                    gone.is_ok(),
                    self.files.remove(NAMES[*n]).is_some(),
                    "{gone:?}"
                );
            }
            Op::Rename(a, b) => {
                let done = self.d().rename(ROOT, NAMES[*a], ROOT, NAMES[*b], true);
                assert_eq!(done.is_ok(), self.files.contains_key(NAMES[*a]), "{done:?}");
                if let Some(c) = self.files.remove(NAMES[*a]) {
                    self.files.insert(NAMES[*b], c);
                }
            }
            Op::State(s) => self.d().set_state(*s),
            Op::Checkpoint => self.d().checkpoint().unwrap(),
            Op::Kill => self.restart(),
            Op::Shutdown => {
                self.d().shutdown().unwrap();
                self.restart();
            }
            Op::Fault(n, after) => self.rig.faults.at(
                *n,
                if *after {
                    Fault::FailAfter(ErrorKind::ConnectionReset)
                } else {
                    Fault::Fail(ErrorKind::TimedOut)
                },
            ),
            Op::Heal => self.rig.faults.heal(),
            Op::Snapshot(n) => {
                let Some(content) = self.files.get(NAMES[*n]) else {
                    return;
                };
                let snap = self.d().snapshot(NAMES[*n]).unwrap();
                let frozen = content.borrow().clone();
                self.snaps.push((snap, frozen));
            }
            Op::Reintegrate => {
                if self.d().state() == State::Online {
                    // A fault may stop it; then it goes on later.
                    let _ = self.d().reintegrate("today", "here");
                }
            }
            Op::Open(_) | Op::Create(_) | Op::Close(_) => {}
        }
    }

    fn check(&self) {
        for (handle, _, content) in &self.open {
            let got = self.d().read(*handle, 0, 1 << 20).unwrap();
            let c = content.borrow();
            assert!(got == *c, "{} bytes read, {} written", got.len(), c.len());
        }
        for (snap, frozen) in &self.snaps {
            let mut got = vec![0; frozen.len()];
            snap.reader.read_exact_at(0, &mut got).unwrap();
            assert!(got == *frozen, "a snapshot changed");
        }
    }

    /// Back online: everything reaches the share.
    fn finish(mut self) {
        self.rig.faults.heal();
        for (handle, ..) in std::mem::take(&mut self.open) {
            self.d().release(handle).unwrap();
        }
        self.snaps.clear();
        self.restart();
        self.d().set_state(State::Online);
        for r in self.d().reintegrate("today", "here").unwrap() {
            assert_eq!(r.outcome, ReintegratedOutcome::Done, "{r:?}");
        }
        for name in self.files.keys() {
            let pushed = self.d().push_opaque(name, "today", "here").unwrap();
            assert!(
                !matches!(pushed, PushOutcome::Conflict(_)),
                "{name}: {pushed:?}"
            );
        }
        for (name, content) in &self.files {
            assert!(
                common::read_all(self.d(), name).unwrap() == *content.borrow(),
                "{name}"
            );
            assert!(
                self.rig.get(name) == *content.borrow(),
                "{name} on the share"
            );
        }
        assert_eq!(self.d().status().unsynced_bytes, 0);
        assert!(self.d().pending_namespace().is_empty());
        let mut names: Vec<_> = std::fs::read_dir(self.rig.share_file(""))
            .unwrap()
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        let expected: Vec<_> = self.files.keys().map(|k| (*k).to_owned()).collect();
        assert_eq!(names, expected);
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: std::env::var("VFS_MODEL_CASES").ok().and_then(|c| c.parse().ok()).unwrap_or(200),
        max_shrink_iters: 3000,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]
    #[test]
    fn drive_equals_model(ops in prop::collection::vec(op(), 1..80)) {
        let mut w = World::new();
        for op in &ops {
            w.run(op);
            w.check();
        }
        w.finish();
    }
}
