//! Policies over simulated time: what the link does is scripted, what the drive does is checked.

use proptest::prelude::*;

use super::engine::{Memory, Settings};
use super::rules::{self, ParseError, Rules};
use super::*;

fn parse(text: &str) -> Result<Rules, ParseError> {
    rules::parse(text)
}

fn at(seconds: f64) -> Duration {
    Duration::from_secs_f64(seconds)
}

fn figure(value: f64) -> Option<Figure> {
    Some(Figure {
        value,
        confidence: 0.9,
        age: Duration::from_secs(1),
    })
}

/// A link of so many Mbit/s and ms, seen at a time.
fn seen(seconds: f64, mbit: f64, ms: f64) -> Seen {
    Seen {
        at: at(seconds),
        minute: 600,
        figures: Figures {
            up: figure(mbit * 1e6),
            down: figure(mbit * 1e6),
            round_trip: figure(ms),
            jitter: figure(1.0),
            loss: figure(0.0),
        },
        reachable: true,
        hints: Hints::default(),
    }
}

fn away(seconds: f64) -> Seen {
    Seen {
        reachable: false,
        ..seen(seconds, 100.0, 5.0)
    }
}

#[test]
fn auto_follows_steps_of_the_link() {
    let settings = Settings::default();
    let mut memory = Memory::new(Policy::Auto, State::Online);
    let mut states = Vec::new();
    // 100 Mbit/s, 1 Mbit/s, none, 1, 100: two minutes each.
    for second in 0..600 {
        let t = f64::from(second);
        let seen = match second / 120 {
            0 | 4 => seen(t, 100.0, 5.0),
            1 | 3 => seen(t, 1.0, 80.0),
            _ => away(t),
        };
        let decision = memory.step(&settings, None, &seen);
        if decision.changed {
            states.push((second, decision.state));
        }
    }
    let only: Vec<_> = states.iter().map(|s| s.1).collect();
    let expected = [State::Cached, State::Offline, State::Cached, State::Online];
    assert_eq!(only, expected, "{states:?}");
    for ((second, _), step) in states.iter().zip([120, 240, 360, 480]) {
        assert!((step..=step + 5).contains(second), "{states:?}");
    }
}

#[test]
fn a_flapping_link_moves_the_drive_once_per_stay_at_most() {
    let settings = Settings::default();
    let mut memory = Memory::new(Policy::Auto, State::Online);
    let mut changes: Vec<Duration> = Vec::new();
    for tick in 0..6000 {
        // Ten looks a second; up and down every three seconds.
        let t = f64::from(tick) / 10.0;
        let seen = if (tick / 30) % 2 == 0 {
            seen(t, 100.0, 5.0)
        } else {
            away(t)
        };
        let decision = memory.step(&settings, None, &seen);
        if decision.changed {
            if let Some(last) = changes.last() {
                assert!(seen.at - *last >= settings.stay, "{changes:?} {t}");
            }
            changes.push(seen.at);
            assert_ne!(decision.state, State::Online, "a flapping link is not good");
        }
    }
    assert!(!changes.is_empty() && changes.len() <= 20, "{changes:?}");
    // When it rests, the drive comes back.
    for second in 600..720 {
        memory.step(&settings, None, &seen(f64::from(second), 100.0, 5.0));
    }
    let last = memory.step(&settings, None, &seen(720.0, 100.0, 5.0));
    assert_eq!(last.state, State::Online);
}

#[test]
fn a_link_between_the_borders_moves_nothing() {
    let settings = Settings::default();
    for begin in [State::Online, State::Cached] {
        let mut memory = Memory::new(Policy::Auto, begin);
        for second in 0..600 {
            let mbit = 5.0 + f64::from(second % 5) / 2.0;
            let decision = memory.step(&settings, None, &seen(f64::from(second), mbit, 70.0));
            assert_eq!(decision.state, begin, "at {second} s with {mbit} Mbit/s");
        }
    }
}

#[test]
fn a_rate_that_nobody_measures_any_more_is_tried_again_and_less_often() {
    let settings = Settings::default();
    let mut memory = Memory::new(Policy::Auto, State::Online);
    let mut entered = Vec::new();
    let mut measured = 0.0;
    for second in 0..7200 {
        let t = f64::from(second);
        let mut seen = seen(t, 1.0, 20.0);
        // Programs use the link while it is passed through, and show that it is slow.
        if entered.len() % 2 == 0 && second % 10 == 9 {
            measured = t;
        }
        let age = at(t - measured);
        for figure in [&mut seen.figures.up, &mut seen.figures.down] {
            *figure = figure.map(|f| Figure { age, ..f });
        }
        if memory.step(&settings, None, &seen).changed {
            entered.push(second);
        }
    }
    let tries = entered.len() / 2;
    assert!((3..=8).contains(&tries), "{entered:?}");
}

#[test]
fn by_hand_is_done_at_once_and_for_a_time_it_goes_back() {
    let settings = Settings::default();
    let mut memory = Memory::new(Policy::Auto, State::Online);
    memory.step(&settings, None, &seen(0.0, 100.0, 5.0));
    memory.ask(at(1.0), Policy::Cached, Some(at(60.0)));
    let step = memory.step(&settings, None, &seen(1.0, 100.0, 5.0));
    assert_eq!((step.state, step.changed), (State::Cached, true));
    // Asked for a time once more: what comes back is what was before both.
    memory.ask(at(2.0), Policy::Offline, Some(at(10.0)));
    let step = memory.step(&settings, None, &seen(2.0, 100.0, 5.0));
    assert_eq!(step.state, State::Offline);
    assert!(step.verdict.by_choice);
    let step = memory.step(&settings, None, &seen(11.0, 100.0, 5.0));
    assert_eq!(step.state, State::Offline);
    let step = memory.step(&settings, None, &seen(12.0, 100.0, 5.0));
    assert_eq!((step.state, memory.policy()), (State::Online, Policy::Auto));
    memory.ask(at(13.0), Policy::Online, None);
    let step = memory.step(&settings, None, &away(14.0));
    assert_eq!(
        step.state,
        State::Online,
        "online never goes for want of a link"
    );
    assert!(step.verdict.reason.contains("the cache serves"), "{step:?}");
    memory.ask(at(15.0), Policy::Cached, None);
    let step = memory.step(&settings, None, &away(15.0));
    assert_eq!(
        (step.state, step.verdict.by_choice),
        (State::Offline, false)
    );
}

const FIVE: &str = r#"# A day with five rules.
when network "HotelWifi" or metered then cached
when on battery and not time 07:00-22:00 then offline
when rate < 2M or rtt > 80ms then cached
when time 08:00-18:00 and (up >= 20M) then online   # at work
otherwise auto
"#;

/// A step of the day: its time, what changes, the line that decides, and the state.
struct Step(&'static str, fn(&mut Seen), Option<usize>, State);

/// Minute, what is seen, the line that decides, and the state.
pub(crate) type Moment = (u16, Seen, Option<usize>, State);

/// The scripted day that the daemon's test follows too.
pub(crate) fn day() -> (&'static str, Vec<Moment>) {
    let steps = [
        Step("06:30", |_| {}, Some(6), State::Online),
        Step("08:30", |_| {}, Some(5), State::Online),
        Step(
            "10:00",
            |s| s.figures.up = figure(1e6),
            Some(4),
            State::Cached,
        ),
        Step(
            "11:00",
            |s| s.figures.round_trip = figure(200.0),
            Some(4),
            State::Cached,
        ),
        Step("12:00", |s| s.reachable = false, Some(5), State::Offline),
        Step("12:30", |_| {}, Some(5), State::Online),
        Step(
            "13:00",
            |s| s.hints.metered = Some(true),
            Some(2),
            State::Cached,
        ),
        Step(
            "17:00",
            |s| s.figures = Figures::default(),
            Some(6),
            State::Online,
        ),
        Step(
            "19:00",
            |s| s.hints.networks = Some(vec!["HotelWifi".into()]),
            Some(2),
            State::Cached,
        ),
        Step(
            "21:59",
            |s| s.hints.on_battery = Some(true),
            Some(6),
            State::Online,
        ),
        Step(
            "23:00",
            |s| s.hints.on_battery = Some(true),
            Some(3),
            State::Offline,
        ),
        Step(
            "23:30",
            |s| s.hints.on_battery = Some(false),
            Some(6),
            State::Online,
        ),
    ];
    let steps = steps.into_iter().map(|Step(time, with, rule, state)| {
        let (h, m) = time.split_once(':').unwrap();
        let minute = h.parse::<u16>().unwrap() * 60 + m.parse::<u16>().unwrap();
        let mut seen = seen(f64::from(minute) * 60.0, 50.0, 10.0);
        seen.minute = minute;
        seen.hints.metered = Some(false);
        with(&mut seen);
        (minute, seen, rule, state)
    });
    (FIVE, steps.collect())
}

#[test]
fn five_rules_are_followed_through_a_day() {
    let (text, steps) = day();
    let rules = parse(text).unwrap();
    let settings = Settings::default();
    let mut memory = Memory::new(Policy::Rules, State::Online);
    for (minute, seen, rule, state) in steps {
        // A minute of the same, as the clock goes on.
        let mut decision = None;
        for second in 0..60 {
            let mut seen = seen.clone();
            seen.at += Duration::from_secs(second);
            decision = Some(memory.step(&settings, Some(&rules), &seen));
        }
        let decision = decision.unwrap();
        let time = format!("{:02}:{:02}", minute / 60, minute % 60);
        assert_eq!(decision.state, state, "{time}: {decision:?}");
        assert_eq!(decision.verdict.rule, rule, "{time}: {decision:?}");
        assert!(!decision.verdict.facts.is_empty(), "{time}: {decision:?}");
        if let Some(line) = rule.filter(|_| seen.reachable) {
            let said = format!("line {line}: ");
            assert!(
                decision.verdict.reason.contains(&said),
                "{time}: {decision:?}"
            );
        }
    }
}

#[test]
fn what_is_not_known_decides_nothing() {
    let mut blind = seen(0.0, 1.0, 1.0);
    blind.figures = Figures::default();
    for (text, decides) in [
        ("when metered then cached", false),
        ("when not metered then cached", false),
        ("when rate < 2M then cached", false),
        ("when not rate < 2M then cached", false),
        ("when rate < 2M or time 00:00-24:00 then cached", true),
        ("when metered and time 23:00-01:00 then cached", false),
        ("when not (metered and time 23:00-01:00) then cached", true),
        ("otherwise cached", true),
    ] {
        let rules = parse(text).unwrap();
        assert_eq!(rules.first(&blind).rule.is_some(), decides, "{text}");
    }
}

#[test]
fn what_is_wrong_is_said_with_its_place() {
    for (text, line, column, part) in [
        ("whn rate < 2M then cached", 1, 1, "begins with `when`"),
        ("\n\nwhen rate 2M then cached", 3, 11, "<, <=, > or >="),
        ("when rate < 2 then cached", 1, 13, "bits a second"),
        ("when rate < 2ms then cached", 1, 13, "bits a second"),
        ("when rtt > 80 then cached", 1, 12, "a time"),
        ("when loss > 5 then cached", 1, 13, "percent"),
        ("when network Hotel then cached", 1, 14, "in quotes"),
        ("when network \"Hotel then cached", 1, 14, "not closed"),
        ("when time 8-18 then cached", 1, 11, "span of the day"),
        (
            "when time 08:00-08:00 then cached",
            1,
            11,
            "span of the day",
        ),
        (
            "when time 25:00-26:00 then cached",
            1,
            11,
            "span of the day",
        ),
        ("when on fire then cached", 1, 9, "`battery` or `mains`"),
        ("when metered", 1, 13, "the end of the line"),
        ("when metered then", 1, 18, "`online`, `cached`"),
        ("when metered then fast", 1, 19, "`online`, `cached`"),
        ("when metered then cached now", 1, 26, "too much"),
        ("when (metered then cached", 1, 15, "`)` is missing"),
        ("when ü then cached", 1, 6, "a condition belongs"),
        ("when metered; then cached", 1, 13, "means nothing"),
        (
            "otherwise cached\nwhen metered then online",
            2,
            1,
            "after `otherwise`",
        ),
    ] {
        let error = parse(text).unwrap_err();
        assert_eq!(
            (error.line, error.column),
            (line, column),
            "{text}: {error}"
        );
        assert!(error.message.contains(part), "{text}: {error}");
    }
    let deep = format!("when {} metered then cached", "not ".repeat(1000));
    assert!(
        parse(&deep)
            .unwrap_err()
            .message
            .contains("conditions within")
    );
    assert_eq!(parse("# nothing\n\n").unwrap().0.len(), 0);
    let odd = parse("when network \"a#b\" then cached # said").unwrap();
    assert_eq!(odd.0[0].text, "when network \"a#b\" then cached");
}

#[derive(Clone, Debug)]
enum Turn {
    Link(bool, u32, u32),
    Ask(usize, Option<u16>),
}

fn turns() -> impl Strategy<Value = Vec<(u16, Turn)>> {
    let turn = prop_oneof![
        12 => (any::<bool>(), 0_u32..200, 0_u32..300).prop_map(|(r, m, t)| Turn::Link(r, m, t)),
        1 => (0_usize..5, proptest::option::of(1_u16..300)).prop_map(|(p, f)| Turn::Ask(p, f)),
    ];
    proptest::collection::vec((0_u16..8000, turn), 1..200)
}

fn rank(state: State) -> u8 {
    match state {
        State::Online => 2,
        State::Cached => 1,
        State::Offline => 0,
    }
}

/// A link that was just found poor and then is lost: that is said at once, the first time.
#[test]
fn to_something_safer_nobody_waits_for_the_stay() {
    let settings = Settings::default();
    let mut memory = Memory::new(Policy::Auto, State::Online);
    memory.step(&settings, None, &seen(0.0, 100.0, 5.0));
    assert!(memory.step(&settings, None, &seen(100.0, 1.0, 5.0)).changed);
    let lost = memory.step(&settings, None, &away(105.0));
    assert_eq!((lost.state, lost.changed), (State::Offline, true));
    // Back again, it stays for its time.
    let back = memory.step(&settings, None, &seen(110.0, 1.0, 5.0));
    assert_eq!(back.state, State::Offline);
    assert!(back.held.is_some());
    let back = memory.step(&settings, None, &seen(135.0, 1.0, 5.0));
    assert_eq!(back.state, State::Cached, "no further wait after the stay");
    // Once more within a minute: that link flaps.
    let lost = memory.step(&settings, None, &away(140.0));
    assert_eq!(lost.state, State::Cached);
    let lost = memory.step(&settings, None, &away(165.0));
    assert_eq!(lost.state, State::Offline);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(
        std::env::var("POLICY_CASES").ok().and_then(|n| n.parse().ok()).unwrap_or(128)
    ))]

    /// Whatever the link does and the user asks: between two changes that nobody asked for lies the
    /// stay; what is asked is done; online without a link stays; the same inputs give the same.
    #[test]
    fn a_drive_changes_only_as_it_may(turns in turns()) {
        let settings = Settings::default();
        let rules = parse(FIVE).unwrap();
        let all = [Policy::Auto, Policy::Rules, Policy::Online, Policy::Cached, Policy::Offline];
        let mut memory = Memory::new(Policy::Auto, State::Online);
        let mut twin = memory.clone();
        let (mut state, mut fled) = (State::Online, None);
        let (mut now, mut last, mut look) = (0.0, None, seen(0.0, 50.0, 10.0));
        for (wait, turn) in turns {
            now += f64::from(wait) / 1000.0;
            look.at = at(now);
            look.minute = (now as u16 / 60) % 1440;
            match turn {
                Turn::Link(reachable, mbit, ms) => {
                    look = Seen { reachable, minute: look.minute, ..seen(now, f64::from(mbit) / 10.0, f64::from(ms)) };
                }
                Turn::Ask(which, time) => {
                    let time = time.map(|s| at(f64::from(s)));
                    memory.ask(at(now), all[which], time);
                    twin.ask(at(now), all[which], time);
                    last = None;
                }
            }
            let before = (memory.policy(), memory.until());
            let was = state;
            let decision = memory.step(&settings, Some(&rules), &look);
            prop_assert_eq!(&twin.step(&settings, Some(&rules), &look), &decision);
            if (memory.policy(), memory.until()) != before {
                last = None;
            }
            if decision.changed {
                if let Some(last) = last
                    && look.at - last < settings.stay
                {
                    // To something safer, and once in a while.
                    prop_assert!(rank(decision.state) < rank(was), "{:?} from {}", decision, was);
                    if let Some(fled) = fled {
                        prop_assert!(look.at - fled >= settings.stay * 2, "{:?}", decision);
                    }
                    fled = Some(look.at);
                }
                last = Some(look.at);
            }
            state = decision.state;
            prop_assert!(decision.held.is_some() || decision.state == decision.verdict.state);
            if memory.policy() == Policy::Online {
                prop_assert_eq!(decision.state, State::Online);
            }
            if memory.policy() == Policy::Cached {
                prop_assert_ne!(decision.state, State::Online);
            }
            prop_assert!(!decision.verdict.reason.is_empty());
        }
    }

    /// No text makes the reader of rules panic, and what is wrong has a place in it.
    #[test]
    fn any_text_is_read_or_refused_with_a_place(
        text in "((when|then|otherwise|rate|<|>=|2M|80ms|\"x\"|and|or|not|\\(|\\)|metered|time|08:00-18:00|on|battery|cached|#|\n| |é){0,30}|\\PC{0,60})"
    ) {
        match parse(&text) {
            Ok(rules) => prop_assert!(rules.0.len() <= text.lines().count()),
            Err(e) => {
                let line = text.lines().nth(e.line - 1).unwrap_or_default();
                prop_assert!(e.column >= 1 && e.column <= line.chars().count() + 1, "{e}");
            }
        }
    }
}
