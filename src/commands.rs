//! The commands that ask a daemon: `status`, `mode`, `sync now`, `unmount`.

mod links;

use std::io::IsTerminal;
use std::path::Path;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use jiff::Timestamp;
use serde::Serialize;

use crate::cli::{Asked, AskedLimit, DriveArg, LimitArgs, ModeArgs, UnmountArgs};
use crate::control::client::path_in_drive;
use crate::control::{
    AutoSync, CacheStatus, Client, DriveEntry, DriveStatus, Event, FileOutcome, FileReport,
    FileStatus, PlannedWay, SyncState, TreeStatus,
};
use crate::daemon::paths;
use crate::error::{Outcome, UserError};
use crate::output::{Output, clean, count, size};
use crate::policy::cap::Cap;

/// `status`.
///
/// # Errors
/// No such drive, or its daemon does not answer.
pub fn status(args: &DriveArg, out: &mut Output) -> Outcome {
    let (_, client) = drive(args.drive.as_deref())?;
    let status = client.status()?;
    out.result(&status, |out| show_status(&status, out))?;
    Ok(status.exit())
}

/// `mode`.
///
/// # Errors
/// No such drive; its daemon refuses, as `rules` without rules.
pub fn mode(args: &ModeArgs, out: &mut Output) -> Outcome {
    let (_, client) = drive(args.drive.drive.as_deref())?;
    let status = match args.policy.map(Asked::policy) {
        Some(Some(policy)) => client.set_mode(policy, args.for_seconds)?,
        Some(None) => {
            let explanation = client.explain()?;
            out.result(&explanation, |out| links::explain(&explanation, out))?;
            return Ok(crate::exit::ExitStatus::Synced);
        }
        None => client.status()?,
    };
    let answer = serde_json::json!({
        "mountpoint": status.mountpoint,
        "policy": status.policy,
        "state": status.state,
        "reason": status.reason,
    });
    out.result(&answer, |out| {
        let (policy, state) = (status.policy, status.state);
        out.line(format_args!(
            "{}: policy {policy}, state {state}",
            clean(&status.mountpoint)
        ))
    })?;
    // Setting the mode is done whatever waits; `status` tells about that.
    Ok(crate::exit::ExitStatus::Synced)
}

/// `limit`.
///
/// # Errors
/// No such drive, or its daemon does not answer.
pub fn limit(args: &LimitArgs, out: &mut Output) -> Outcome {
    let (_, client) = drive(args.drive.drive.as_deref())?;
    let status = match args.limit {
        None => client.status()?,
        Some(AskedLimit::Cap(cap)) => client.set_limit(Some(cap), args.for_seconds)?,
        Some(AskedLimit::Default) => client.set_limit(None, None)?,
    };
    out.result(&status.limit, |out| links::limit(&status.limit, out))?;
    Ok(crate::exit::ExitStatus::Synced)
}

/// `link`.
///
/// # Errors
/// No such drive, or its daemon does not answer.
pub fn link(args: &DriveArg, out: &mut Output) -> Outcome {
    let (_, client) = drive(args.drive.as_deref())?;
    let link = client.link()?;
    out.result(&link, |out| links::link(&link, out))?;
    Ok(if link.reachable {
        crate::exit::ExitStatus::Synced
    } else {
        crate::exit::ExitStatus::Offline
    })
}

/// `sync --plan`.
///
/// # Errors
/// No such drive, or its daemon does not answer.
pub fn plan(args: &DriveArg, out: &mut Output) -> Outcome {
    let (_, client) = drive(args.drive.as_deref())?;
    let plan = client.plan()?;
    out.result(&plan, |out| {
        if plan.files.is_empty() {
            out.line("Nothing waits to be synced.")?;
        }
        for file in &plan.files {
            let way = match file.way {
                PlannedWay::Local => "from here",
                PlannedWay::Split => "by agent",
                PlannedWay::Bytes => "bytes",
                PlannedWay::Waits => "waits",
            };
            let (path, bytes) = (clean(&file.path), size(file.pending_bytes));
            out.line(format_args!(
                "{way:<9} {path}, {bytes}: {}",
                clean(&file.why)
            ))?;
        }
        if plan.more_files > 0 {
            out.line(format_args!("… and {} more files", count(plan.more_files)))?;
        }
        Ok(())
    })?;
    Ok(plan.exit())
}

/// `sync now`.
///
/// # Errors
/// No such drive, a path outside it, or the daemon cannot try.
pub fn sync_now(
    path: Option<&Path>,
    allow_deletes: bool,
    args: &DriveArg,
    out: &mut Output,
) -> Outcome {
    let (entry, client) = drive_of(args.drive.as_deref(), path)?;
    let path = path
        .map(|p| path_in_drive(&entry.mountpoint, p))
        .transpose()?;
    let bar = Bar::new(out.is_json());
    let report = client.sync_now(path, allow_deletes, |event| bar.show(event))?;
    drop(bar);
    out.result(&report, |out| {
        if report.files.is_empty() {
            out.line("Nothing waits to be synced.")?;
        }
        for file in &report.files {
            show_report(file, out)?;
        }
        if report.more_files > 0 {
            out.line(format_args!(
                "… and {} more, all synced",
                count(report.more_files)
            ))?;
        }
        Ok(())
    })?;
    Ok(report.exit())
}

/// `unmount`.
///
/// # Errors
/// No such drive, or it cannot be unmounted now.
pub fn unmount(args: &UnmountArgs, out: &mut Output) -> Outcome {
    let (entry, client) = drive(args.mountpoint.as_deref())?;
    let bar = Bar::new(out.is_json());
    let begun = Instant::now();
    let mut said = None;
    let report = loop {
        let error = match client.unmount(args.now, |event| bar.show(event)) {
            Ok(report) => break report,
            Err(error) => error,
        };
        let limit = args.timeout.map(Duration::from_secs);
        if !may_pass(&error) || limit.is_some_and(|limit| begun.elapsed() >= limit) {
            return Err(error);
        }
        // The drive stays as it is meanwhile: to break off costs nothing.
        let waiting = Waiting::of(&client.status()?, &error);
        if said.as_ref() != Some(&waiting) {
            waiting.show(out)?;
            out.finish()?;
            said = Some(waiting);
        }
        std::thread::sleep(RETRY);
    };
    // So that a mount right after this one finds everything free.
    if !paths::registry()?.wait_gone(&entry, Duration::from_secs(10)) {
        tracing::warn!(pid = entry.pid, "unmounted, but the daemon is still ending");
    }
    drop(bar);
    out.result(&report, |out| {
        out.line(format_args!(
            "Unmounted {}.",
            clean(&entry.mountpoint.display().to_string())
        ))?;
        for path in &report.pending {
            out.line(format_args!("pending   {}", clean(path)))?;
        }
        if report.more_pending > 0 {
            out.line(format_args!(
                "… and {} more files",
                count(report.more_pending)
            ))?;
        }
        if report.pending_bytes > 0 {
            out.line(format_args!(
                "{} wait in the journal in {}; the next mount of this share goes on with them.",
                size(report.pending_bytes),
                clean(&report.state_dir)
            ))?;
        }
        Ok(())
    })?;
    Ok(report.exit())
}

/// Between two tries to unmount.
const RETRY: Duration = Duration::from_secs(2);

/// Whether what keeps a drive from being unmounted may pass by itself: a link that comes back, a program
/// that ends its edit.
fn may_pass(error: &UserError) -> bool {
    matches!(error.code.as_str(), "pending" | "share-unreachable")
}

/// What an unmount waits for.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct Waiting {
    /// Why, in a sentence.
    reason: String,
    /// Files that are not synced.
    files: Vec<Waiter>,
    /// Bytes in them that are not.
    bytes: u64,
}

#[derive(Debug, PartialEq, Eq, Serialize)]
struct Waiter {
    path: String,
    bytes: u64,
    note: Option<String>,
}

impl Waiting {
    fn of(status: &DriveStatus, error: &UserError) -> Self {
        let files = status.files.iter().filter(|f| f.sync != SyncState::Synced);
        Self {
            reason: error.message.clone(),
            files: files
                .map(|f| Waiter {
                    path: f.path.clone(),
                    bytes: f.pending_bytes,
                    note: f.note.clone(),
                })
                .collect(),
            bytes: status.pending_bytes,
        }
    }

    fn show(&self, out: &mut Output) -> Result<(), UserError> {
        out.result(&serde_json::json!({ "waiting": self }), |out| {
            out.line(format_args!("waiting   {}", clean(&self.reason)))?;
            for file in &self.files {
                let note = file.note.as_deref().map_or(String::new(), |n| format!(" ({n})"));
                out.line(format_args!(
                    "pending   {}, {}{}",
                    clean(&file.path),
                    size(file.bytes),
                    clean(&note)
                ))?;
            }
            out.line("          Ctrl-C leaves the drive as it is; `pstsyncd unmount --now` keeps this in the journal.")
        })
    }
}

fn drive(mountpoint: Option<&Path>) -> Result<(DriveEntry, Client), UserError> {
    let entry = paths::registry()?.find(mountpoint)?;
    let client = Client::new(&entry);
    Ok((entry, client))
}

/// The drive that is named, or else the one in which the path lies, or else the only one.
fn drive_of(
    mountpoint: Option<&Path>,
    path: Option<&Path>,
) -> Result<(DriveEntry, Client), UserError> {
    if let (None, Some(path)) = (mountpoint, path) {
        let path = crate::control::registry::absolute(path);
        let mut drives = paths::registry()?.list()?;
        if let Some(at) = drives.iter().position(|d| path.starts_with(&d.mountpoint)) {
            let entry = drives.swap_remove(at);
            let client = Client::new(&entry);
            return Ok((entry, client));
        }
    }
    drive(mountpoint)
}

fn show_status(status: &DriveStatus, out: &mut Output) -> Result<(), UserError> {
    out.line(format_args!("drive     {}", clean(&status.mountpoint)))?;
    let reach = if status.share_reachable {
        ""
    } else {
        " (not reachable)"
    };
    out.line(format_args!("share     {}{reach}", clean(&status.share)))?;
    out.line(format_args!(
        "policy    {}, state {}",
        status.policy, status.state
    ))?;
    if !status.reason.is_empty() {
        out.line(format_args!("          {}", clean(&status.reason)))?;
    }
    for change in &status.changes {
        links::change(change, out)?;
    }
    if status.limit.cap() != Cap::NONE || status.limit.rules_error.is_some() {
        links::limit(&status.limit, out)?;
    }
    if let Some(agent) = &status.agent {
        let reach = match agent.reachable {
            Some(true) => "",
            Some(false) => " (does not answer)",
            None => " (not asked yet)",
        };
        out.line(format_args!("agent     {}{reach}", clean(&agent.url)))?;
    }
    out.line(format_args!("journal   {}", size(status.journal_bytes)))?;
    out.line(format_args!("pending   {}", size(status.pending_bytes)))?;
    show_auto(&status.auto_sync, out)?;
    show_cache(&status.cache, out)?;
    for file in &status.files {
        show_file(file, out)?;
    }
    if status.more_files > 0 {
        out.line(format_args!(
            "… and {} more files",
            count(status.more_files)
        ))?;
    }
    Ok(())
}

fn show_auto(auto: &AutoSync, out: &mut Output) -> Result<(), UserError> {
    let what = match (auto.on, &auto.busy, auto.next_try, &auto.waits_for) {
        (false, ..) => "off; `pstsyncd sync now` syncs".to_owned(),
        (_, Some(path), ..) if path.is_empty() => "syncing folders and names".to_owned(),
        (_, Some(path), ..) => format!("syncing {}", clean(path)),
        (_, _, Some(at), _) => {
            let left = at.duration_since(Timestamp::now()).as_secs().max(0);
            format!("next try in {left} s")
        }
        (_, _, _, Some(what)) => format!("waits for {}", clean(what)),
        _ => "on".to_owned(),
    };
    out.line(format_args!("auto      {what}"))?;
    if let Some(why) = &auto.last_failure {
        out.line(format_args!("          last try: {}", clean(why)))?;
    }
    Ok(())
}

fn show_cache(cache: &CacheStatus, out: &mut Output) -> Result<(), UserError> {
    let limit = cache
        .limit
        .map_or(String::new(), |l| format!(" of {}", size(l)));
    let missing = cache.incomplete.len() as u64 + cache.more_incomplete;
    let whole = cache.pinned_files.saturating_sub(missing);
    out.line(format_args!(
        "cache     {}{limit}; {} of {} pinned files whole",
        size(cache.used),
        count(whole),
        count(cache.pinned_files)
    ))?;
    if let Some(at) = &cache.filling {
        out.line(format_args!(
            "          fetching {}: {} of {}",
            clean(&at.path),
            size(at.cached),
            size(at.size)
        ))?;
    }
    for part in &cache.incomplete {
        out.line(format_args!(
            "          not safe yet: {}, {} of {}",
            clean(&part.path),
            size(part.cached),
            size(part.size)
        ))?;
    }
    if let Some(why) = &cache.trouble {
        out.line(format_args!("          {}", clean(why)))?;
    }
    show_tree(&cache.tree, out)
}

fn show_tree(tree: &TreeStatus, out: &mut Output) -> Result<(), UserError> {
    let mut line = format!(
        "names     {} known; directories listed: {} of {}",
        count(tree.names),
        count(tree.listed),
        count(tree.listed + tree.unlisted)
    );
    if tree.waiting > 0 {
        line.push_str(&format!(", {} still to look at", count(tree.waiting)));
    }
    out.line(line)?;
    match &tree.trouble {
        Some(why) if tree.unlisted > 0 => out.line(format_args!("          {}", clean(why))),
        _ => Ok(()),
    }
}

fn show_file(file: &FileStatus, out: &mut Output) -> Result<(), UserError> {
    let state = match file.sync {
        SyncState::Synced => "synced",
        SyncState::Pending => "pending",
        SyncState::Conflict => "conflict",
        SyncState::Failed => "failed",
    };
    let mut line = format!("{state:<9} {}  {}", clean(&file.path), size(file.size));
    if file.pending_bytes > 0 {
        line.push_str(&format!(", {} pending", size(file.pending_bytes)));
    }
    match file.verified_at {
        Some(at) => line.push_str(&format!(", verified {}", when(at))),
        None => line.push_str(", not verified yet"),
    }
    if !file.fully_cached {
        line.push_str(", not fully cached");
    }
    out.line(line)?;
    match &file.note {
        Some(note) => out.line(format_args!("          {}", clean(note))),
        None => Ok(()),
    }
}

fn show_report(file: &FileReport, out: &mut Output) -> Result<(), UserError> {
    let word = match file.outcome {
        FileOutcome::Unchanged => "unchanged",
        FileOutcome::Synced => "synced",
        FileOutcome::Pending => "pending",
        FileOutcome::Conflict => "conflict",
        FileOutcome::Offline => "offline",
        FileOutcome::Failed => "failed",
    };
    let mut line = format!("{word:<9} {}", clean(&file.path));
    if file.outcome == FileOutcome::Synced {
        line.push_str(&format!(
            ": {} added, {} updated, {} moved, {} deleted; {} shipped for a file of {}",
            count(file.added),
            count(file.updated),
            count(file.moved),
            count(file.deleted),
            size(file.shipped_bytes),
            size(file.file_bytes)
        ));
    }
    if let Some(at) = file.verified_at {
        line.push_str(&format!(", verified {}", when(at)));
    }
    out.line(line)?;
    if file.drift > 0 {
        let n = count(file.drift);
        out.line(format_args!(
            "          {n} objects were changed there by others and left alone"
        ))?;
    }
    if file.held_deletes > 0 {
        let n = count(file.held_deletes);
        out.line(format_args!(
            "          {n} deletes were held back: not proven to be ours"
        ))?;
    }
    match &file.error {
        Some(error) => out.line(format_args!(
            "          {}; {}",
            clean(&error.message),
            clean(&error.next)
        )),
        None => Ok(()),
    }
}

/// To the second: nobody reads more.
fn when(at: Timestamp) -> String {
    Timestamp::from_second(at.as_second())
        .unwrap_or(at)
        .to_string()
}

/// Progress on standard error, where a person looks at it; removed at the end.
struct Bar(ProgressBar);

impl Bar {
    fn new(json: bool) -> Self {
        let shown = !json && std::io::stderr().is_terminal();
        let target = if shown {
            ProgressDrawTarget::stderr()
        } else {
            ProgressDrawTarget::hidden()
        };
        let bar = ProgressBar::with_draw_target(None, target);
        if let Ok(style) = ProgressStyle::with_template("{spinner} {msg}") {
            bar.set_style(style);
        }
        Self(bar)
    }

    fn show(&self, event: Event) {
        match event {
            Event::Alive {} => {}
            Event::Note { text } => self.0.println(clean(&text)),
            Event::Progress {
                phase,
                path,
                done,
                total,
                unit,
            } => {
                let of = total.map_or(String::new(), |t| format!(" of {}", count(t)));
                let path = path.map_or(String::new(), |p| format!(" {}", clean(&p)));
                self.0.set_message(format!(
                    "{}{path}: {}{of} {}",
                    clean(&phase),
                    count(done),
                    clean(&unit)
                ));
            }
        }
        self.0.tick();
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}
