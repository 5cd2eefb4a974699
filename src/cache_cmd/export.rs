//! `cache export`: takes files out of a cache, as the next mount would show them.
//!
//! A file that is not here whole is refused unless `--partial` is given; then it is written as
//! `NAME.partial`, zeros in its holes, with `NAME.partial.holes` beside it that lists them. Nothing is
//! ever overwritten; a file appears under its name once it is whole and durable.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::{Component, Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::fs::{CWD, RenameFlags, renameat_with};
use serde::Serialize;
use vfs::Kind;
use vfs::inspect::{Content, Inspection, Known};

use crate::cli::ExportArgs;
use crate::error::{Outcome, UserError, plain};
use crate::exit::ExitStatus;
use crate::output::{Output, clean, count, size};
use crate::pst_cmd::progress::Bar;

const STEP: usize = 1 << 20;

#[derive(Serialize)]
struct Shown<'a> {
    path: &'a str,
    to: Option<String>,
    outcome: &'static str,
    bytes: u64,
    missing: u64,
    reason: Option<String>,
}

#[derive(Serialize, Default)]
struct Summary {
    to: String,
    files: u64,
    partial: u64,
    refused: u64,
    bytes: u64,
}

pub(super) fn run(args: &ExportArgs, out: &mut Output) -> Outcome {
    let dir = super::locate(&args.at)?;
    let (inspection, lost) = super::salvage(&dir).map_err(|e| super::not_opened(&dir, &e))?;
    for fault in &lost {
        super::verify::show_fault(fault, out)?;
    }
    let names = inspection.names();
    let chosen = choose(&names, args)?;
    make_dir(&args.to).map_err(|e| UserError::file("make the directory", &args.to, &e))?;
    let mut summary = Summary {
        to: args.to.display().to_string(),
        ..Summary::default()
    };
    let total: u64 = chosen.iter().map(|k| k.size).sum();
    let bar = Bar::new();
    for known in chosen {
        bar.at("exporting", summary.bytes, total);
        match export(&inspection, known, args, |n| {
            bar.at("exporting", summary.bytes + n, total);
        }) {
            Ok(None) => {}
            Ok(Some((to, missing))) => {
                summary.files += 1;
                summary.partial += u64::from(missing > 0);
                summary.bytes += known.size;
                let outcome = if missing > 0 { "partial" } else { "whole" };
                let shown = Shown {
                    path: &known.path,
                    to: Some(to.display().to_string()),
                    outcome,
                    bytes: known.size,
                    missing,
                    reason: None,
                };
                show(&shown, out)?;
            }
            Err(reason) => {
                summary.refused += 1;
                let shown = Shown {
                    path: &known.path,
                    to: None,
                    outcome: "refused",
                    bytes: 0,
                    missing: known.size.saturating_sub(known.cached),
                    reason: Some(reason),
                };
                show(&shown, out)?;
            }
        }
    }
    bar.done();
    out.result(&serde_json::json!({ "summary": summary }), |out| {
        out.line(format_args!(
            "{} files with {} are in {}; {} of them in part, {} could not be taken out",
            count(summary.files),
            size(summary.bytes),
            clean(&summary.to),
            count(summary.partial),
            count(summary.refused)
        ))
    })?;
    if !lost.is_empty() {
        return Err(super::journal_damaged(
            &dir,
            &lost,
            "look at what was taken out before you rely on it (`pstsyncd pst check` for PSTs), and keep \
             the cache until then",
        ));
    }
    if summary.refused == 0 {
        return Ok(ExitStatus::Synced);
    }
    Err(UserError::new(
        "export-incomplete",
        format!("{} files were not taken out", count(summary.refused)),
        "see the reasons above; --partial takes what is here of a file that is not whole",
    ))
}

/// The names that are meant: what is named with all that is in it, or all there is of which something is
/// here.
fn choose<'a>(names: &'a [Known], args: &ExportArgs) -> Result<Vec<&'a Known>, UserError> {
    if args.all {
        let here = |k: &&Known| k.kind != Kind::File || k.cached > 0 || k.pending;
        return Ok(names.iter().filter(here).collect());
    }
    let mut chosen: Vec<&Known> = Vec::new();
    for path in &args.paths {
        let path = path.trim_matches('/');
        let below = format!("{path}/");
        let before = chosen.len();
        chosen.extend(
            names
                .iter()
                .filter(|k| k.path == path || k.path.starts_with(&below)),
        );
        if chosen.len() == before {
            return Err(UserError::new(
                "no-such-file",
                format!("the cache knows no {path}"),
                "see `pstsyncd cache ls` for the names",
            ));
        }
    }
    chosen.sort_by(|a, b| a.path.cmp(&b.path));
    chosen.dedup_by(|a, b| a.path == b.path);
    Ok(chosen)
}

/// Takes one name out: where to, and how many bytes are missing. `None`: a directory.
fn export(
    inspection: &Inspection,
    known: &Known,
    args: &ExportArgs,
    tell: impl Fn(u64),
) -> Result<Option<(PathBuf, u64)>, String> {
    let at = place(&args.to, &known.path).ok_or("its name is none of a file here")?;
    let words = |e: io::Error| plain(&e);
    if known.kind == Kind::Dir {
        make_dir(&at).map_err(words)?;
        return Ok(None);
    }
    if let Some(parent) = at.parent() {
        make_dir(parent).map_err(words)?;
    }
    if let Kind::Special(_) = known.kind {
        // A pipe, a socket or a device holds nothing.
        return Ok(None);
    }
    if known.kind == Kind::Symlink {
        let target = known.target.as_deref().ok_or("its target is not known")?;
        std::os::unix::fs::symlink(target, &at).map_err(words)?;
        return Ok(Some((at, 0)));
    }
    let content = inspection.content(&known.path).map_err(|e| e.to_string())?;
    let missing = content.holes.total();
    if missing == 0 {
        write(&content, &at, known.mtime, tell).map_err(words)?;
        return Ok(Some((at, 0)));
    }
    if !args.partial {
        return Err(format!(
            "{} of its {} are not here",
            size(missing),
            size(content.size)
        ));
    }
    let part = with_suffix(&at, ".partial");
    let list: String = content
        .holes
        .iter()
        .map(|r| format!("{} {}\n", r.start, r.end))
        .collect();
    let text = format!(
        "# ranges of {} that are not here: start end\n{list}",
        known.path
    );
    write_new(&with_suffix(&part, ".holes"), |file| {
        file.write_all_at(text.as_bytes(), 0)
    })
    .map_err(words)?;
    write(&content, &part, known.mtime, tell).map_err(words)?;
    Ok(Some((part, missing)))
}

/// A path of the drive under `root`; `None` for one that would lead elsewhere.
fn place(root: &Path, path: &str) -> Option<PathBuf> {
    let relative = Path::new(path);
    let plain = |c| matches!(c, Component::Normal(_));
    let fits = !path.is_empty() && !path.contains('\0') && relative.components().all(plain);
    fits.then(|| root.join(relative))
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

/// What lies there is mail.
fn make_dir(path: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(path)
}

fn write(content: &Content, to: &Path, mtime: i64, tell: impl Fn(u64)) -> io::Result<()> {
    write_new(to, |file| {
        let mut buf = vec![0; STEP];
        let mut at = 0;
        while at < content.size {
            let n = (content.size - at).min(STEP as u64) as usize;
            let part = buf.get_mut(..n).unwrap_or_default();
            content.reader.read_exact_at(at, part)?;
            // Zeros are left out: the file is as sparse as it can be.
            if part.iter().any(|b| *b != 0) {
                file.write_all_at(part, at)?;
            }
            at += n as u64;
            tell(at);
        }
        file.set_len(content.size)?;
        if let Ok(nanos) = u64::try_from(mtime) {
            let time: SystemTime = UNIX_EPOCH + Duration::from_nanos(nanos);
            // A nicety.
            let _ = file.set_modified(time);
        }
        Ok(())
    })
}

/// Makes a file that appears under its name when it is whole and durable, never over another.
fn write_new(to: &Path, fill: impl FnOnce(&File) -> io::Result<()>) -> io::Result<()> {
    if fs::symlink_metadata(to).is_ok() {
        return Err(io::Error::new(
            io::ErrorKind::AlreadyExists,
            format!("{} is there already", to.display()),
        ));
    }
    let name = to.file_name().ok_or(io::ErrorKind::InvalidInput)?;
    let mut fresh = std::ffi::OsString::from(".pstsyncd-export-");
    fresh.push(format!("{}-", std::process::id()));
    // Of the longest names a temporary one would be too long.
    fresh.push(blake3::hash(name.as_encoded_bytes()).to_hex().as_str());
    let fresh = to.with_file_name(fresh);
    let file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&fresh)?;
    let done = fill(&file)
        .and_then(|()| file.sync_all())
        .and_then(|()| rename_new(&fresh, to));
    if done.is_err() {
        let _ = fs::remove_file(&fresh);
        return done;
    }
    match to.parent() {
        Some(dir) => File::open(dir)?.sync_all(),
        None => Ok(()),
    }
}

fn rename_new(from: &Path, to: &Path) -> io::Result<()> {
    match renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
        Ok(()) => Ok(()),
        // Not every file system can: there it was looked for a moment ago.
        Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOSYS) => {
            if fs::symlink_metadata(to).is_ok() {
                return Err(io::ErrorKind::AlreadyExists.into());
            }
            fs::rename(from, to)
        }
        Err(e) => Err(e.into()),
    }
}

fn show(shown: &Shown<'_>, out: &mut Output) -> Result<(), UserError> {
    out.result(&serde_json::json!({ "file": shown }), |out| {
        let mut line = format!("{:<9} {}", shown.outcome, clean(shown.path));
        if let Some(to) = &shown.to {
            line.push_str(&format!(" -> {}", clean(to)));
        }
        if shown.missing > 0 {
            line.push_str(&format!(", {} missing", size(shown.missing)));
        }
        if let Some(reason) = &shown.reason {
            line.push_str(&format!(": {}", clean(reason)));
        }
        out.line(line)
    })
}
