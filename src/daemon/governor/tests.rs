//! The governor over injected figures and hints, with no clock of its own but the script's.

use std::fs;

use std::sync::Mutex;

use super::*;
use crate::link::hints::NoHints;
use crate::policy::tests::day;

#[derive(Default)]
struct Told(Mutex<Vec<vfs::State>>);

impl Governed for Told {
    fn govern(&self, state: vfs::State) {
        self.0.lock().unwrap().push(state);
    }
}

fn governor(policy: Policy, dir: &Path, rules: Option<&str>) -> Result<Governor, UserError> {
    let rules = rules.map(|text| {
        let path = dir.join("rules");
        fs::write(&path, text).unwrap();
        path
    });
    let meter = Arc::new(LinkMeter::default());
    Governor::new(
        policy,
        rules,
        &dir.join("history"),
        meter,
        Box::new(NoHints),
    )
}

#[test]
fn a_day_by_rules_and_explain_says_why_at_each_step() {
    let temp = tempfile::tempdir().unwrap();
    let (text, steps) = day();
    let governor = governor(Policy::Rules, temp.path(), Some(text)).unwrap();
    let told = Told::default();
    let mut before = State::Online;
    let mut changes = 0;
    for (minute, seen, rule, state) in steps {
        for second in 0..60 {
            let mut seen = seen.clone();
            seen.at += Duration::from_secs(second);
            governor.step(seen, &told);
        }
        let explained = governor.explain();
        let time = format!("{:02}:{:02}", minute / 60, minute % 60);
        assert_eq!(explained.state, state, "{time}: {explained:?}");
        assert_eq!(explained.wanted, state, "{time}: {explained:?}");
        assert_eq!(explained.rule_line, rule, "{time}: {explained:?}");
        assert_eq!(explained.held, None, "{time}: {explained:?}");
        assert!(!explained.changes.is_empty(), "{time}: {explained:?}");
        assert!(!explained.figures.is_empty(), "{time}: {explained:?}");
        changes += usize::from(state != before);
        if state != before {
            let last = governor.standing().3;
            let last = last.last().unwrap();
            assert_eq!((last.from, last.to), (before, state), "{time}");
            assert_eq!(last.policy, Policy::Rules);
        }
        // The drive itself: offline as a wish only.
        let wish = state == State::Offline && seen.reachable;
        let drive = *told.0.lock().unwrap().last().unwrap();
        assert_eq!(drive == vfs::State::Offline, wish, "{time}");
        before = state;
    }
    assert_eq!(governor.link().changes.len(), changes);
}

#[test]
fn rules_that_are_missing_or_wrong_are_refused_and_old_ones_hold_on() {
    let temp = tempfile::tempdir().unwrap();
    let code = |error: Option<UserError>| error.unwrap().code;
    let none = governor(Policy::Rules, temp.path(), None).err();
    assert_eq!(code(none), "no-rules");
    let wrong = governor(Policy::Rules, temp.path(), Some("when\n")).err();
    assert_eq!(code(wrong), "bad-rules");
    let governor = governor(Policy::Auto, temp.path(), Some("otherwise cached")).unwrap();
    let told = Told::default();
    governor.set(Policy::Rules, None, &told).unwrap();
    assert_eq!(governor.explain().state, State::Cached);
    let rules = temp.path().join("rules");
    fs::write(&rules, "otherwise fast and loose").unwrap();
    governor.step(
        Seen {
            reachable: true,
            ..Seen::default()
        },
        &told,
    );
    let explained = governor.explain();
    assert_eq!(explained.state, State::Cached, "the old rules hold");
    let error = explained.rules_error.unwrap();
    assert!(error.contains("line 1, column 11"), "{error}");
    // Asked for by name, what is wrong is an error.
    let refused = governor.set(Policy::Rules, None, &told).err();
    assert_eq!(code(refused), "bad-rules");
    fs::write(&rules, "otherwise offline").unwrap();
    governor.set(Policy::Rules, None, &told).unwrap();
    assert_eq!(governor.explain().state, State::Offline);
    assert_eq!(*told.0.lock().unwrap().last().unwrap(), vfs::State::Offline);
}

#[test]
fn without_a_link_cached_shows_offline_and_online_says_so() {
    let temp = tempfile::tempdir().unwrap();
    let governor = governor(Policy::Cached, temp.path(), None).unwrap();
    let told = Told::default();
    let look = |seconds: u64, reachable: bool| {
        let seen = Seen {
            at: Duration::from_secs(seconds),
            reachable,
            ..Seen::default()
        };
        governor.step(seen, &told);
        governor.explain().state
    };
    assert_eq!(look(1, true), State::Cached);
    assert_eq!(look(2, false), State::Offline);
    // The drive goes on trying: it syncs the moment the link is back.
    assert_eq!(*told.0.lock().unwrap(), [vfs::State::Cached]);
    assert_eq!(look(20, true), State::Offline, "the stay");
    assert_eq!(look(45, true), State::Cached);
    governor.set(Policy::Online, None, &told).unwrap();
    assert_eq!(look(50, false), State::Online);
    assert!(governor.standing().2.contains("the cache serves"));
}
