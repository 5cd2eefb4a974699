//! The link goes from 100 Mbit/s to 1, down, to 1 and to 100 again, while an application reads and
//! writes on the drive all along, in mode `auto`: what is measured of the link is right, the state
//! follows, and the application sees no error and does not wait.
//!
//! The plot of rate, state and latency over time is written to `link-steps.svg` in cargo's directory for
//! tests' files, or where `PSTSYNCD_LINK_SVG` says. With `PSTSYNCD_LINK_STEPS=full` every step lasts long
//! enough to hold the figures against what they must be; usually only the first steps are walked, and
//! bounds are wide: a busy machine is no slow link.

mod far;
mod link_plot;
mod net;
mod support;

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use far::Far;
use link_plot::{Operation, Plot, Sample};
use net::delay::Delay;
use support::editor::Random;
use support::{port, skip};

const FAST: u64 = 100_000_000;
const SLOW: u64 = 1_000_000;
/// What the application works on: pinned, and so whole before the first step.
const WORK: usize = 4 << 20;
/// What others read meanwhile, never whole: it has the link carry something.
const BULK: u64 = 8 << 30;
const TRIP: Duration = Duration::from_millis(20);

/// An application's day: small reads and writes, a flush now and then.
fn work(file: &Path, began: Instant, over: &AtomicBool, done: &Mutex<Vec<Operation>>) -> Vec<u8> {
    let mut options = OpenOptions::new();
    let opened = options.read(true).write(true).open(file);
    let file = opened.expect("the application opens its file");
    let mut model = vec![0; WORK];
    let mut random = Random(3);
    let mut n = 0_u8;
    while !over.load(Ordering::SeqCst) {
        let at = random.below((WORK - 4096) as u64);
        let start = Instant::now();
        let place = usize::try_from(at).expect("small");
        match random.below(8) {
            0..=3 => {
                let mut buf = [0; 4096];
                let read = file.read_exact_at(&mut buf, at);
                read.expect("the application sees an error when reading");
                assert!(buf[..] == model[place..place + 4096], "a wrong byte");
            }
            4..=6 => {
                n = n.wrapping_add(1);
                let written = file.write_all_at(&[n; 2048], at);
                written.expect("the application sees an error when writing");
                model[place..place + 2048].fill(n);
            }
            _ => {
                let flushed = file.sync_data();
                flushed.expect("the application sees an error when flushing");
            }
        }
        let operation = Operation {
            at: start - began,
            took: start.elapsed(),
        };
        done.lock().expect("no panic").push(operation);
        std::thread::sleep(Duration::from_millis(20));
    }
    model
}

/// Reads what is not here, here and there, one piece at a time; without a link it cannot, and tries
/// again.
fn traffic(bulk: &Path, over: &AtomicBool) {
    let mut random = Random(8);
    let mut buf = vec![0; 64 << 10];
    let mut file = None;
    while !over.load(Ordering::SeqCst) {
        if file.is_none() {
            file = File::open(bulk).ok();
        }
        let at = random.below(BULK / 2) & !0xFFFF;
        let read = file.as_ref().map(|f| f.read_at(&mut buf, at));
        if !matches!(read, Some(Ok(_))) {
            file = None;
            std::thread::sleep(Duration::from_millis(200));
        }
    }
}

fn sample(far: &Far, began: Instant) -> Sample {
    let (_, link) = far.run(&["link"]);
    let (_, status) = far.run(&["status"]);
    Sample {
        at: began.elapsed(),
        down: link["down_bits_per_second"]["value"].as_f64(),
        round_trip: link["round_trip_ms"]["value"].as_f64(),
        state: status["state"].as_str().unwrap_or("?").to_owned(),
    }
}

/// One part of the day.
struct Step {
    /// Bits a second; 0: down.
    rate: u64,
    lasts: Duration,
    /// The state that must have come when it is over.
    state: &'static str,
}

fn steps(full: bool) -> Vec<Step> {
    let step = |rate, seconds, state| Step {
        rate,
        lasts: Duration::from_secs(seconds),
        state,
    };
    match full {
        true => vec![
            step(FAST, 40, "online"),
            step(SLOW, 45, "cached"),
            step(0, 40, "offline"),
            step(SLOW, 45, "cached"),
            step(FAST, 60, "online"),
        ],
        false => vec![step(FAST, 4, "online"), step(SLOW, 4, "cached")],
    }
}

/// How long a step may take longer than it should, where only that it comes is looked at.
const PATIENCE: Duration = Duration::from_secs(50);

fn percentile(mut took: Vec<Duration>, percent: usize) -> Duration {
    took.sort_unstable();
    let at = (took.len() * percent / 100).min(took.len().saturating_sub(1));
    took.get(at).copied().unwrap_or_default()
}

/// Safe before the link goes bad, as a drive promises it.
fn wait_whole(far: &Far) {
    let end = Instant::now() + PATIENCE;
    loop {
        let (_, status) = far.run(&["status"]);
        let cache = &status["cache"];
        let whole = cache["incomplete"].as_array().is_none_or(Vec::is_empty);
        if cache["pinned_files"].as_u64() > Some(0) && whole && cache["filling"].is_null() {
            break;
        }
        assert!(Instant::now() < end, "never whole: {status}");
        std::thread::sleep(Duration::from_millis(200));
    }
}

#[test]
fn the_state_follows_the_link_and_the_application_does_not_notice() {
    let full = std::env::var("PSTSYNCD_LINK_STEPS").is_ok_and(|v| v == "full");
    let Some(mut far) = Far::new("") else { return };
    std::fs::write(far.path("share/Mail/app.bin"), vec![0; WORK]).expect("writes");
    let bulk = File::create(far.path("share/bulk.bin")).expect("creates");
    bulk.set_len(BULK).expect("a sparse file");
    let delay = Delay::start(&far.net, far.server.port(), TRIP);
    far.port = Some(delay.port());
    far.mount(
        "drive",
        "auto",
        &["--pin", "**/app.bin", "--cache-size", "256M"],
    );
    let app = far.path("drive/Mail/app.bin");
    assert_eq!(std::fs::read(&app).expect("reads").len(), WORK);
    wait_whole(&far);
    let (began, over) = (Instant::now(), AtomicBool::new(false));
    let operations = Mutex::default();
    let mut plot = Plot::default();
    // What is off is said at the end, for all steps.
    let mut wrong = Vec::new();
    let bulk = far.path("drive/bulk.bin");
    let model = std::thread::scope(|s| {
        let application = s.spawn(|| work(&app, began, &over, &operations));
        s.spawn(|| traffic(&bulk, &over));
        let ended = End(&over);
        for step in steps(full) {
            let wrong = &mut wrong;
            walk(&far, &step, began, full, &mut plot, &application, wrong);
        }
        drop(ended);
        application.join().expect("the application sees no error")
    });
    far.net.up();
    far.net.unshape();
    let operations = operations.into_inner().expect("no panic");
    let poor = plot.times("cached", SLOW);
    let waits = operations
        .iter()
        .filter(|o| poor.iter().any(|t| t.contains(&o.at)));
    let waits: Vec<_> = waits.map(|o| o.took).collect();
    let p99 = percentile(waits.clone(), 99);
    println!(
        "{} operations, {} of them cached at 1 Mbit/s: p99 {p99:?}",
        operations.len(),
        waits.len()
    );
    plot.operations = operations;
    let svg = std::env::var_os("PSTSYNCD_LINK_SVG").map_or_else(
        || Path::new(env!("CARGO_TARGET_TMPDIR")).join("link-steps.svg"),
        PathBuf::from,
    );
    std::fs::write(&svg, plot.svg()).expect("the plot is written");
    println!("{}", svg.display());
    assert!(wrong.is_empty(), "{wrong:?}");
    // A share of some seconds says little: then only that no call waited for a dead link.
    let slowest = plot.operations.iter().map(|o| o.took).max();
    let slowest = slowest.expect("the application did something");
    assert!(slowest < Duration::from_secs(10), "a call took {slowest:?}");
    if full {
        assert!(!waits.is_empty() && p99 < Duration::from_millis(250));
    }
    // What the application wrote is all there, and in the end on the share.
    assert!(std::fs::read(&app).expect("reads") == model);
    let end = Instant::now() + PATIENCE;
    while std::fs::read(far.path("share/Mail/app.bin")).expect("reads") != model {
        assert!(Instant::now() < end, "it never reaches the share");
        far.run(&["sync", "now"]);
        std::thread::sleep(Duration::from_millis(500));
    }
}

/// The link goes and comes every three seconds: 40 s, or as many as `PSTSYNCD_FLAP_SECONDS` says.
#[test]
fn a_link_that_flaps_changes_the_state_once_per_stay_at_most() {
    let seconds = std::env::var("PSTSYNCD_FLAP_SECONDS").ok();
    let seconds = seconds.and_then(|s| s.parse().ok()).unwrap_or(40);
    let Some(mut far) = Far::new("") else { return };
    std::fs::write(far.path("share/Mail/app.bin"), vec![0; WORK]).expect("writes");
    far.mount("drive", "auto", &["--pin", "**/app.bin"]);
    let app = far.path("drive/Mail/app.bin");
    assert_eq!(std::fs::read(&app).expect("reads").len(), WORK);
    wait_whole(&far);
    let (began, over) = (Instant::now(), AtomicBool::new(false));
    let operations = Mutex::default();
    let model = std::thread::scope(|s| {
        let application = s.spawn(|| work(&app, began, &over, &operations));
        let ended = End(&over);
        // It has its file open, over the link, before that goes.
        while operations.lock().expect("no panic").len() < 20 {
            assert!(!application.is_finished(), "the application ended");
            std::thread::sleep(Duration::from_millis(20));
        }
        while began.elapsed() < Duration::from_secs(seconds) {
            far.net.down();
            std::thread::sleep(Duration::from_secs(3));
            far.net.up();
            std::thread::sleep(Duration::from_secs(3));
            assert!(!application.is_finished(), "the application ended");
        }
        drop(ended);
        application.join().expect("the application sees no error")
    });
    let operations: Vec<Operation> = operations.into_inner().expect("no panic");
    let slowest = operations.iter().map(|o| o.took).max();
    let (_, link) = far.run(&["link"]);
    let changes = link["changes"].as_array().expect("changes");
    println!(
        "{} operations, the slowest {slowest:?}; {} changes in {seconds} s",
        operations.len(),
        changes.len()
    );
    let times: Vec<f64> = changes
        .iter()
        .map(|change| {
            let at = change["at"].as_str().expect("a time");
            let at: jiff::Timestamp = at.parse().expect("a time");
            at.as_millisecond() as f64 / 1e3
        })
        .collect();
    // It went under the application's feet, which then went on with what is here.
    assert!(slowest > Some(Duration::from_millis(500)), "{slowest:?}");
    for pair in times.windows(2) {
        assert!(pair[1] - pair[0] >= 29.5, "within one stay: {link}");
    }
    assert!(slowest < Some(Duration::from_secs(10)), "{slowest:?}");
    assert!(std::fs::read(&app).expect("reads") == model);
}

/// Ends the application and the traffic, also when an assertion fails.
struct End<'a>(&'a AtomicBool);

impl Drop for End<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

fn walk(
    far: &Far,
    step: &Step,
    began: Instant,
    full: bool,
    plot: &mut Plot,
    application: &std::thread::ScopedJoinHandle<'_, Vec<u8>>,
    wrong: &mut Vec<String>,
) {
    match step.rate {
        0 => far.net.down(),
        rate => {
            far.net.up();
            far.net.shape(rate);
        }
    }
    let start = Instant::now();
    plot.steps.push((began.elapsed(), step.rate));
    let mut came = None;
    let mut measured = None;
    loop {
        let seen = sample(far, began);
        if seen.state == step.state && came.is_none() {
            came = Some(start.elapsed());
        }
        if start.elapsed() >= Duration::from_secs(10) && measured.is_none() {
            measured = Some((seen.down, seen.round_trip));
        }
        if std::env::var_os("PSTSYNCD_LINK_SHOW").is_some() {
            println!(
                "{:?} {} {:?} {:?}",
                seen.at, seen.state, seen.down, seen.round_trip
            );
        }
        let right = seen.state == step.state;
        plot.samples.push(seen);
        let log =
            || std::fs::read_to_string(far.path("drive-state/daemon.log")).unwrap_or_default();
        assert!(
            !application.is_finished(),
            "the application ended: {}",
            log()
        );
        if start.elapsed() >= step.lasts && (full || right) {
            break;
        }
        let waited = start.elapsed() < step.lasts + PATIENCE;
        assert!(
            waited,
            "never {} at {} bit/s: {}",
            step.state,
            step.rate,
            far.run(&["mode", "explain"]).1
        );
        std::thread::sleep(Duration::from_millis(300));
    }
    println!(
        "{:>9} bit/s: {} after {came:?}; after 10 s measured {measured:?}",
        step.rate, step.state
    );
    if full {
        let came = came.expect("the loop waits for it");
        // Steps are longer than the minimum stay, which so holds nothing here. The estimate has 10 s of
        // traffic, the state 5 s from then on.
        println!("          the state took {:.1} s", came.as_secs_f64());
        if came > Duration::from_secs(15) {
            wrong.push(format!(
                "{} took {came:?} at {} bit/s",
                step.state, step.rate
            ));
        }
        if let (Some((Some(down), Some(trip))), true) = (measured, step.rate > 0) {
            let rate = step.rate as f64;
            let set = TRIP.as_secs_f64() * 1e3;
            if (down / rate - 1.0).abs() >= 0.25 {
                wrong.push(format!("{down} of {rate} bit/s"));
            }
            if (trip / set - 1.0).abs() >= 0.2 {
                wrong.push(format!("{trip} of {set} ms at {rate} bit/s"));
            }
        }
    }
}
