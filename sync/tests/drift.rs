//! Random edits on both sides of a one-way sync, with lost answers, lost databases, colliding and
//! reused numbers: what only one side had is there afterwards, and without drift both are equal.
#![allow(clippy::expect_used)]

mod common;

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;

use common::*;
use proptest::prelude::*;
use pst::inventory::Inventory;
use pst::ltp::PropValue;
use pst::messaging::tags;
use pst::{Nid, Pst};
use sync::Options;

/// One thing that happens. Small numbers choose among what is there.
#[derive(Clone, Copy, Debug)]
enum Op {
    AddMessage {
        folder: u8,
        keyless: bool,
    },
    EditMessage(u8),
    MoveMessage(u8, u8),
    DeleteMessage(u8),
    /// Deletes one message and gives its number to a new one.
    ReplaceMessage(u8, bool),
    AddFolder(u8),
    RenameFolder(u8),
    MoveFolder(u8, u8),
    DeleteFolder(u8),
}

#[derive(Clone, Copy, Debug)]
enum Event {
    Here(Op),
    There(Op),
    Sync(Lost),
    DatabaseLost,
    /// The daemon stops and is started again.
    Restart,
    /// The far side forgets what it answered.
    RecordsLost,
}

/// What gets lost on the way of a sync.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Lost {
    Nothing,
    Answer,
    Request,
}

fn op() -> impl Strategy<Value = Op> {
    let n = || 0..8u8;
    prop_oneof![
        4 => (n(), prop::bool::weighted(0.3)).prop_map(|(folder, keyless)| Op::AddMessage { folder, keyless }),
        3 => n().prop_map(Op::EditMessage),
        2 => (n(), n()).prop_map(|(m, f)| Op::MoveMessage(m, f)),
        2 => n().prop_map(Op::DeleteMessage),
        1 => (n(), any::<bool>()).prop_map(|(m, k)| Op::ReplaceMessage(m, k)),
        2 => n().prop_map(Op::AddFolder),
        1 => n().prop_map(Op::RenameFolder),
        2 => (n(), n()).prop_map(|(a, b)| Op::MoveFolder(a, b)),
        2 => n().prop_map(Op::DeleteFolder),
    ]
}

fn events(drift: bool) -> impl Strategy<Value = Vec<Event>> {
    let there = if drift { 4 } else { 0 };
    let lost = u32::from(drift);
    let lost_on_the_way =
        prop_oneof![8 => Just(Lost::Nothing), 3 => Just(Lost::Answer), 1 => Just(Lost::Request)];
    let event = prop_oneof![
        5 => op().prop_map(Event::Here),
        there => op().prop_map(Event::There),
        3 => lost_on_the_way.prop_map(Event::Sync),
        lost => Just(Event::DatabaseLost),
        1 => Just(Event::Restart),
        lost => Just(Event::RecordsLost),
    ];
    prop::collection::vec(event, 1..16)
}

/// An object by the name that it keeps for life, with its version and its folder's name.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Seen {
    version: String,
    folder: String,
    nid: Nid,
}

type State = BTreeMap<String, Seen>;

fn split(name: &str) -> (String, String) {
    let (id, version) = name.split_once(' ').unwrap_or((name, ""));
    (id.to_owned(), version.to_owned())
}

/// Folders and messages by name; a name that is there twice is a fault.
fn state(pst: &Pst) -> (State, State) {
    let index = pst.index().expect("an index");
    let name = |nid: Nid| {
        let props = pst.folder(nid).expect("a folder").props;
        split(&props.str(tags::DISPLAY_NAME).unwrap_or_default())
    };
    let (mut folders, mut messages) = (State::new(), State::new());
    for (nid, folder) in &index.folders {
        let (id, version) = name(*nid);
        if !id.starts_with('f') {
            continue;
        }
        let folder = name(folder.parent).0;
        let seen = Seen {
            version,
            folder,
            nid: *nid,
        };
        // Two versions lose nothing; where nothing is known, that must do.
        folders.entry(id).or_insert(seen);
    }
    for (folder, list) in &index.messages {
        for message in list {
            let subject = pst
                .message(message.nid)
                .expect("a message")
                .props
                .str(tags::SUBJECT);
            let (id, version) = split(&subject.expect("a subject"));
            let seen = Seen {
                version,
                folder: name(*folder).0,
                nid: message.nid,
            };
            messages.entry(id).or_insert(seen);
        }
    }
    (folders, messages)
}

fn digest(pst: &Pst) -> [u8; 32] {
    Inventory::read(pst).expect("reads").digest()
}

fn has_twins(pst: &Pst) -> bool {
    let index = pst.index().expect("an index");
    let (folders, messages) = state(pst);
    let ours = |nid: &&Nid| {
        let props = pst.folder(**nid).expect("a folder").props;
        props
            .str(tags::DISPLAY_NAME)
            .is_some_and(|name| name.starts_with('f'))
    };
    index.folders.keys().filter(ours).count() != folders.len()
        || index.messages.values().map(Vec::len).sum::<usize>() != messages.len()
}

struct Names(u32);

impl Names {
    fn next(&mut self) -> u32 {
        self.0 += 1;
        self.0
    }
}

fn pick(state: &State, n: u8) -> Option<(&String, &Seen)> {
    state.iter().nth(usize::from(n) % state.len().max(1))
}

fn new_message(names: &mut Names, keyless: bool) -> pst::messaging::MessageData {
    let mut data = message(&format!("m{}", names.next()));
    if keyless {
        data.props.remove(tags::SEARCH_KEY);
    }
    data
}

fn folder_named(name: &str) -> pst::ltp::PropBag {
    [PropValue::string(tags::DISPLAY_NAME, name)]
        .into_iter()
        .collect()
}

fn act(mailbox: &Mailbox, op: Op, names: &mut Names, side: &str) {
    let pst = mailbox.pst();
    let (folders, messages) = state(&pst);
    let root = pst.ipm_subtree().expect("a subtree");
    let folder = |n: u8| pick(&folders, n).map_or(root, |(_, f)| f.nid);
    match op {
        Op::AddMessage { folder: f, keyless } => {
            let data = new_message(names, keyless);
            mailbox.edit(|tx| {
                tx.add_message(folder(f), None, &data, false).expect("adds");
            });
        }
        Op::EditMessage(m) => {
            let Some((id, seen)) = pick(&messages, m) else {
                return;
            };
            let mut data = pst.message(seen.nid).expect("reads");
            let subject = format!("{id} {side}{}", names.next());
            data.props
                .insert(PropValue::string(tags::SUBJECT, &subject));
            mailbox.edit(|tx| tx.update_message(seen.nid, &data).expect("updates"));
        }
        Op::MoveMessage(m, f) => {
            let Some((_, seen)) = pick(&messages, m) else {
                return;
            };
            mailbox.edit(|tx| tx.move_message(seen.nid, folder(f)).expect("moves"));
        }
        Op::DeleteMessage(m) => {
            let Some((_, seen)) = pick(&messages, m) else {
                return;
            };
            mailbox.edit(|tx| tx.delete_message(seen.nid).expect("deletes"));
        }
        Op::ReplaceMessage(m, keyless) => {
            let Some((_, seen)) = pick(&messages, m) else {
                return;
            };
            // One without a key for another looks like an edit.
            let old = pst.message(seen.nid).expect("reads").props;
            let keyless = keyless && old.get(tags::SEARCH_KEY).is_some();
            let data = new_message(names, keyless);
            mailbox.edit(|tx| {
                tx.delete_message(seen.nid).expect("deletes");
                tx.add_message(folder(m), Some(seen.nid), &data, false)
                    .expect("adds");
            });
        }
        Op::AddFolder(f) => {
            let props = folder_named(&format!("f{}", names.next()));
            mailbox.edit(|tx| {
                tx.create_folder(folder(f), None, &props).expect("creates");
            });
        }
        Op::RenameFolder(f) => {
            let Some((id, seen)) = pick(&folders, f) else {
                return;
            };
            let props = folder_named(&format!("{id} {side}{}", names.next()));
            mailbox.edit(|tx| tx.update_folder(seen.nid, &props).expect("updates"));
        }
        Op::MoveFolder(a, b) => {
            let Some((_, seen)) = pick(&folders, a) else {
                return;
            };
            // Into itself: refused, and nothing happens.
            mailbox.edit(|tx| drop(tx.move_folder(seen.nid, folder(b))));
        }
        Op::DeleteFolder(f) => {
            let Some((_, seen)) = pick(&folders, f) else {
                return;
            };
            mailbox.edit(|tx| tx.delete_folder(seen.nid).expect("deletes"));
        }
    }
}

/// What both sides held after the last sync that was heard of.
#[derive(Clone, Default)]
struct Last {
    here: (State, State),
    there: (State, State),
}

/// Holds what is there now against what was on both sides before.
fn check_one(
    what: &str,
    here: &State,
    before: &State,
    after: &State,
    last: Option<(&State, &State)>,
) {
    for (id, n) in here {
        let Some(now) = after.get(id) else {
            panic!("{what} {id}, which is here, is not there: {n:?}");
        };
        let Some(there) = before.get(id) else {
            assert_eq!(now.version, n.version, "{what} {id} was sent");
            continue;
        };
        match last.map(|(here, _)| here.get(id)) {
            Some(Some(once)) => {
                let theirs = once.version == n.version;
                let want = if theirs { there } else { n };
                assert_eq!(
                    now.version, want.version,
                    "{what} {id}: {n:?} {there:?} {once:?}"
                );
                if what == "message" {
                    let want = if once.folder == n.folder { there } else { n };
                    assert_eq!(
                        now.folder, want.folder,
                        "{what} {id}: {n:?} {there:?} {once:?}"
                    );
                }
            }
            _ => assert!(now.version == n.version || now.version == there.version),
        }
    }
    for (id, there) in before.iter().filter(|(id, _)| !here.contains_key(*id)) {
        let now = after.get(id);
        let once = last.and_then(|(here, far)| Some((here.get(id)?, far.get(id)?)));
        match once {
            // As we left it: deleted here (a folder only if nothing is kept in it).
            Some((ours, far)) if ours.version == far.version && far == there => {
                if what == "message" && ours.folder == far.folder {
                    assert_eq!(now, None, "{what} {id} was deleted here");
                }
            }
            Some((ours, _)) if ours.version == there.version => {}
            _ => assert_eq!(
                now.map(|n| &n.version),
                Some(&there.version),
                "{what} {id} was only there: {there:?}"
            ),
        }
    }
}

/// A package that is on its way.
struct Unheard {
    /// What was here when it was made.
    here: (State, State),
    /// Digest of what the far side held after it was applied; `None`: it did not arrive.
    applied: Option<[u8; 32]>,
    /// The far side forgot that it was applied.
    forgotten: bool,
    /// What was known before it.
    before: (Option<Last>, bool),
}

fn run(events: &[Event]) {
    let start = Mailbox::new(3);
    // The messages' names are made by `Mailbox::new`: m0 to m2.
    let mut names = Names(100);
    act(&start, Op::AddFolder(0), &mut names, "");
    act(
        &start,
        Op::AddMessage {
            folder: 0,
            keyless: false,
        },
        &mut names,
        "",
    );
    let far = Far::new(start.twin());
    let mut near = Near::new(start);
    let mut drifted = false;
    let mut remembered = false;
    let mut unheard: Option<Unheard> = None;
    let same = state(&near.mailbox.pst());
    let mut last = Some(Last {
        here: same.clone(),
        there: same,
    });
    let end = [Event::Sync(Lost::Nothing)];
    for event in events.iter().chain(&end) {
        match *event {
            Event::Here(op) => act(&near.mailbox, op, &mut names, "h"),
            Event::There(op) => {
                act(&far.mailbox, op, &mut names, "t");
                drifted = true;
            }
            Event::DatabaseLost => {
                near.forget();
                remembered = false;
                unheard = None;
            }
            Event::Restart => near.restart(),
            Event::RecordsLost => {
                far.records.lock().expect("lock").clear();
                if let Some(unheard) = &mut unheard {
                    unheard.forgotten = true;
                }
            }
            Event::Sync(lost) => {
                let (here, mut there) = (state(&near.mailbox.pst()), state(&far.mailbox.pst()));
                let was = far.mailbox.generation();
                // What was applied is then told by all that is there; where others changed something, by
                // its content alone, and an edit changes that.
                let mut may_double = false;
                let held = digest(&far.mailbox.pst());
                if let Some(u) = unheard
                    .take_if(|u| u.forgotten && u.applied.is_some_and(|applied| applied != held))
                {
                    (last, remembered) = u.before;
                    may_double = true;
                }
                if !remembered && Some(was) != near.started_from {
                    last = None;
                    drifted = true;
                }
                let applies = far.applies.load(Ordering::SeqCst);
                far.applied().clear();
                let (answer, request) = (lost == Lost::Answer, lost == Lost::Request);
                far.loses_answer.store(answer, Ordering::SeqCst);
                far.loses_request.store(request, Ordering::SeqCst);
                let options = Options {
                    allow_deletes: true,
                    ..Options::default()
                };
                let result = near.sync_with(&far, options);
                assert_eq!(result.is_ok(), lost == Lost::Nothing, "{result:?}");
                let applies = far.applies.load(Ordering::SeqCst) - applies;
                let pst = far.mailbox.pst();
                assert_eq!(faults(&pst), Vec::<String>::new());
                if has_twins(&pst) {
                    assert!(may_double || last.is_none(), "something is there twice");
                    return;
                }
                let on_its_way = !near.outgoing().is_empty();
                if request {
                    assert_eq!(far.mailbox.generation(), was, "nothing arrived");
                    if on_its_way {
                        let before = (last.clone(), remembered);
                        unheard.get_or_insert(Unheard {
                            here,
                            applied: None,
                            forgotten: false,
                            before,
                        });
                    }
                    continue;
                }
                let here = match unheard.take() {
                    // It had arrived, and the answer was lost again.
                    Some(u) if answer && applies == 1 && u.applied.is_some() => {
                        assert_eq!(far.mailbox.generation(), was, "it is applied once");
                        unheard = Some(u);
                        continue;
                    }
                    // What was sent before arrived now; what was edited since waits.
                    Some(u) if answer && applies == 1 => u.here,
                    // What was sent before arrived first, and both sides held that.
                    Some(u) if u.applied.is_none() && far.applied().len() == 2 => {
                        there = state(&far.applied().remove(0).pst());
                        last = Some(Last {
                            here: u.here,
                            there: there.clone(),
                        });
                        here
                    }
                    _ => here,
                };
                let after = state(&pst);
                let of = |f: fn(&(State, State)) -> &State| {
                    last.as_ref().map(|l| (f(&l.here), f(&l.there)))
                };
                check_one("folder", &here.0, &there.0, &after.0, of(|s| &s.0));
                check_one("message", &here.1, &there.1, &after.1, of(|s| &s.1));
                if answer {
                    // What changed nothing is not kept, and nothing is known by it.
                    if on_its_way {
                        unheard = Some(Unheard {
                            here: here.clone(),
                            applied: Some(digest(&pst)),
                            forgotten: false,
                            before: (last, remembered),
                        });
                        remembered = true;
                    }
                    last = Some(Last { here, there: after });
                    continue;
                }
                if !drifted {
                    assert_eq!(lines(&pst), lines(&near.mailbox.pst()));
                }
                remembered = true;
                last = Some(Last { here, there: after });
                assert_eq!(near.outgoing(), Vec::<std::path::PathBuf>::new());
                let again = near.sync_with(&far, options).expect("syncs again");
                let c = again.counts;
                let sent = c.added + c.updated + c.moved + c.deleted;
                assert_eq!(sent, 0, "nothing is left to send: {c:?}");
            }
        }
    }
}

fn config() -> ProptestConfig {
    let cases = std::env::var("PROPTEST_CASES")
        .ok()
        .and_then(|n| n.parse().ok());
    ProptestConfig {
        cases: cases.unwrap_or(100),
        failure_persistence: None,
        ..ProptestConfig::default()
    }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn without_drift_both_sides_are_equal(events in events(false)) {
        run(&events);
    }

    #[test]
    fn what_only_one_side_had_is_kept(events in events(true)) {
        run(&events);
    }
}
