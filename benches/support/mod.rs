//! What the benchmarks need: a PST of our own making, and three edits to it.
#![allow(dead_code)] // each benchmark is a program of its own and needs a part of it

use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use pst::ltp::PropValue;
use pst::messaging::{AttachmentData, MessageData, Transaction, tags};
use pst::{Nid, Pst};
use storage::{FileStorage, RangeSet, ReadAt, WriteAt};

/// The directory that cargo builds into, seen from the running benchmark.
fn target_dir() -> Result<PathBuf> {
    let exe = std::env::current_exe()?;
    exe.parent()
        .and_then(Path::parent)
        .map(Path::to_path_buf)
        .context("the benchmark does not lie in cargo's target directory")
}

/// A PST of about `megabytes` in `dir`, made by the example `mail_writer`: the same on every machine. It has
/// 20,000 messages in 1200 MB.
///
/// # Errors
/// If the example is not built, or the disk is full.
pub fn generated(dir: &Path, megabytes: u64) -> Result<PathBuf> {
    let writer = target_dir()?.join("examples/mail_writer");
    let file = dir.join(format!("made-{megabytes}.pst"));
    let done = Command::new(&writer)
        .arg("create")
        .arg(&file)
        .args(["--megabytes", &megabytes.to_string()])
        .args(["--messages", &(megabytes * 20_000 / 1200).to_string()])
        .output();
    match done {
        Ok(out) if out.status.success() => {
            print!("{}", String::from_utf8_lossy(&out.stdout));
            Ok(file)
        }
        Ok(out) => bail!(
            "{}: {}",
            writer.display(),
            String::from_utf8_lossy(&out.stderr)
        ),
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            bail!("cargo build --release --example mail_writer comes first, or: make bench")
        }
        Err(e) => Err(e).with_context(|| writer.display().to_string()),
    }
}

/// Opens a PST for reading.
///
/// # Errors
/// As [`Pst::open`].
pub fn open(path: &Path) -> Result<Pst> {
    Ok(Pst::open(Arc::new(FileStorage::open_read_only(path)?))?)
}

/// The messages of a file, in the order of their folders and NIDs.
///
/// # Errors
/// As [`Pst::index`].
pub fn messages(pst: &Pst) -> Result<Vec<(Nid, Nid)>> {
    Ok(pst
        .index()?
        .messages
        .iter()
        .flat_map(|(folder, list)| list.iter().map(|m| (*folder, m.nid)))
        .collect())
}

/// Changes the subject of a message in the middle of the file, one without attachments.
///
/// # Errors
/// As the transaction's.
pub fn change_subject(path: &Path) -> Result<()> {
    change_subject_to(path, "Another subject").map(drop)
}

/// As [`change_subject`], to this one; the bytes that were written.
///
/// # Errors
/// As the transaction's.
pub fn change_subject_to(path: &Path, subject: &str) -> Result<RangeSet> {
    edit(path, |pst, tx, all| {
        // One without attachments, so that files of all sizes are changed alike.
        for (_, nid) in &all[all.len() / 2..] {
            let mut message = pst.message(*nid)?;
            if message.attachments.is_empty() {
                let subject = PropValue::string(tags::SUBJECT, subject);
                message.props.insert(subject);
                return Ok(tx.update_message(*nid, &message)?);
            }
        }
        bail!("every message has an attachment")
    })
}

/// Deletes a message in the first third of the file.
///
/// # Errors
/// As the transaction's.
pub fn delete_message(path: &Path) -> Result<()> {
    edit(path, |_, tx, all| {
        Ok(tx.delete_message(all[all.len() / 3].1)?)
    })
    .map(drop)
}

/// Adds a message with an attachment of 3 KB that cannot be compressed.
///
/// # Errors
/// As the transaction's.
pub fn add_message(path: &Path) -> Result<()> {
    edit(path, |_, tx, all| {
        let mut file = Vec::new();
        let mut random = blake3::Hasher::new().finalize_xof();
        file.resize(3 << 10, 0);
        random.fill(&mut file);
        let attachment = AttachmentData {
            props: [
                PropValue::i32(tags::ATTACH_METHOD, 1),
                PropValue::string(tags::ATTACH_LONG_FILENAME, "random.bin"),
                PropValue::i32(tags::ATTACH_SIZE, 3 << 10),
                PropValue::binary(tags::ATTACH_DATA, file),
            ]
            .into_iter()
            .collect(),
            embedded: None,
        };
        let message = MessageData {
            props: [
                PropValue::string(tags::MESSAGE_CLASS, "IPM.Note"),
                PropValue::string(tags::SUBJECT, "A new message"),
                PropValue::string(tags::BODY, "With a file of three kilobytes."),
                PropValue::binary(tags::SEARCH_KEY, vec![7; 16]),
                PropValue::i32(tags::MESSAGE_FLAGS, 0x11),
            ]
            .into_iter()
            .collect(),
            recipients: Vec::new(),
            attachments: vec![attachment],
        };
        tx.add_message(all[0].0, None, &message, false)?;
        Ok(())
    })
    .map(drop)
}

fn edit(
    path: &Path,
    how: impl FnOnce(&Pst, &mut Transaction, &[(Nid, Nid)]) -> Result<()>,
) -> Result<RangeSet> {
    let file = Arc::new(FileStorage::open(path)?);
    let pst = Pst::open(Arc::clone(&file) as Arc<dyn ReadAt>)?;
    let all = messages(&pst)?;
    if all.len() < 3 {
        bail!("{} has too few messages", path.display());
    }
    let mut tx = Transaction::on(Arc::clone(pst.ndb()))?;
    how(&pst, &mut tx, &all)?;
    let set = tx.finish()?;
    set.commit(&*file as &dyn WriteAt)?;
    let grown = set.base_len..set.target_len;
    let writes = set.phases.iter().flat_map(|p| &p.writes);
    Ok(writes
        .map(|(at, bytes)| *at..*at + bytes.len())
        .chain([grown])
        .collect())
}
