//! A small mail program on the PST engine: makes a PST of a given size, or edits one in place,
//! each edit a transaction of its own with its syncs, as a mail client does it.
//!
//! ```text
//! mail_writer create FILE [--megabytes N] [--messages N] [--seed N]
//! mail_writer edit FILE [--operations N] [--seed N]
//! ```

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use clap::{Parser, Subcommand};
use pst::ltp::{PropBag, PropValue};
use pst::messaging::{AttachmentData, MessageData, Transaction, tags};
use pst::{Nid, Pst};
use storage::{FileStorage, ReadAt, WriteAt};

#[derive(Parser)]
struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Makes a PST with folders, messages and attachments.
    Create {
        file: PathBuf,
        /// About how large it becomes.
        #[arg(long, default_value_t = 50)]
        megabytes: u64,
        /// Exactly this many messages; attachments are made as large as that needs
        #[arg(long)]
        messages: Option<u64>,
        /// The same seed makes the same mail.
        #[arg(long, default_value_t = 1)]
        seed: u64,
    },
    /// Adds, changes, moves and deletes messages and folders.
    Edit {
        file: PathBuf,
        #[arg(long, default_value_t = 8)]
        operations: u64,
        #[arg(long, default_value_t = 1)]
        seed: u64,
    },
}

fn main() -> ExitCode {
    let done = match Args::parse().verb {
        Verb::Create {
            file,
            megabytes,
            messages,
            seed,
        } => create(&file, megabytes << 20, messages, seed),
        Verb::Edit {
            file,
            operations,
            seed,
        } => edit(&file, operations, seed),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("mail_writer: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn create(path: &Path, bytes: u64, messages: Option<u64>, seed: u64) -> Result<()> {
    let file = FileStorage::create_new(path)
        .with_context(|| format!("cannot create {}", path.display()))?;
    file.write_all_at(0, &pst::create_empty(b"mail writer demo")?)?;
    let file = Arc::new(file);
    let mut random = Random(seed);
    let names = ["Inbox", "Sent", "Projects", "Invoices", "Travel", "Archive"];
    let mut tx = begin(&file)?;
    let root = tx.ipm_subtree()?;
    let mut folders = Vec::new();
    for name in names {
        folders.push(tx.create_folder(root, None, &named(name))?);
    }
    commit(tx, &file)?;
    // Every third message has an attachment, of half the largest size on average; the rest of a
    // message takes some 4 KB.
    let largest = messages.map_or(200_000, |n| {
        (bytes / n.max(1)).saturating_sub(4 << 10).max(1) * 6
    });
    let mut number = 0;
    let more = |number: u64| -> Result<bool> {
        Ok(match messages {
            Some(n) => number < n,
            None => file.len()? < bytes,
        })
    };
    while more(number)? {
        let mut tx = begin(&file)?;
        for _ in 0..250.min(messages.unwrap_or(u64::MAX) - number) {
            let folder = random.pick(&folders);
            let attachment = if random.below(3) == 0 {
                random.below(largest)
            } else {
                0
            };
            let message = message(&mut random, number, attachment);
            tx.add_message(folder, None, &message, false)?;
            number += 1;
        }
        commit(tx, &file)?;
    }
    println!(
        "{}: {number} messages in {} folders, {} bytes",
        path.display(),
        names.len(),
        file.len()?
    );
    Ok(())
}

fn edit(path: &Path, operations: u64, seed: u64) -> Result<()> {
    let file =
        FileStorage::open(path).with_context(|| format!("cannot open {}", path.display()))?;
    let file = Arc::new(file);
    let mut random = Random(seed);
    for i in 0..operations {
        let pst = Pst::open(Arc::clone(&file) as Arc<dyn ReadAt>)?;
        // An OST has no such top; there the user's folders are somewhere below the root.
        let root = pst.ipm_subtree().unwrap_or(Nid::ROOT_FOLDER);
        let folders = folders_below(&pst, root)?;
        if folders.is_empty() {
            bail!("{} has no folder to put mail into", path.display());
        }
        let mut mail = Vec::new();
        for folder in &folders {
            mail.extend(
                pst.messages_of(*folder)?
                    .into_iter()
                    .filter(|m| !m.associated)
                    .map(|m| (*folder, m.nid)),
            );
        }
        // On the reader's own view, so that what an edit leaves alone is shared, not copied.
        let mut tx = Transaction::on(Arc::clone(pst.ndb()))?;
        match i % 5 {
            1 if !mail.is_empty() => {
                let (_, nid) = random.pick(&mail);
                let mut message = pst.message(nid)?;
                let subject = format!("Changed subject {}", random.below(10_000));
                message
                    .props
                    .insert(PropValue::string(tags::SUBJECT, &subject));
                tx.update_message(nid, &message)?;
                println!("changed  message {nid}");
            }
            2 if !mail.is_empty() => {
                let (from, nid) = random.pick(&mail);
                let to = random.pick(&folders);
                if to == from {
                    continue;
                }
                tx.move_message(nid, to)?;
                println!("moved    message {nid} from folder {from} to folder {to}");
            }
            3 if !mail.is_empty() => {
                let (_, nid) = random.pick(&mail);
                tx.delete_message(nid)?;
                println!("deleted  message {nid}");
            }
            4 => {
                let parent = random.pick(&folders);
                let name = format!("Folder {}", random.below(10_000));
                let nid = tx.create_folder(parent, None, &named(&name))?;
                tx.add_message(nid, None, &message(&mut random, i, 0), false)?;
                println!("created  folder {nid} with one message");
            }
            _ => {
                let folder = random.pick(&folders);
                let nid = tx.add_message(folder, None, &message(&mut random, i, 3_000), false)?;
                println!("added    message {nid} to folder {folder}");
            }
        }
        commit(tx, &file)?;
    }
    Ok(())
}

/// The folders that a user sees.
fn folders_below(pst: &Pst, root: Nid) -> Result<Vec<Nid>> {
    let all = pst.folders()?;
    let mut found = vec![root];
    let mut i = 0;
    while let Some(parent) = found.get(i).copied() {
        found.extend(
            all.iter()
                .filter(|f| f.parent == parent && f.nid != parent)
                .map(|f| f.nid),
        );
        i += 1;
    }
    Ok(found.split_off(1))
}

fn begin(file: &Arc<FileStorage>) -> Result<Transaction> {
    Ok(Transaction::begin(Arc::clone(file) as Arc<dyn ReadAt>)?)
}

fn commit(tx: Transaction, file: &Arc<FileStorage>) -> Result<()> {
    Ok(tx.finish()?.commit(file.as_ref())?)
}

fn named(name: &str) -> PropBag {
    [PropValue::string(tags::DISPLAY_NAME, name)]
        .into_iter()
        .collect()
}

fn message(random: &mut Random, number: u64, attachment: u64) -> MessageData {
    let subject = format!("Message {number}: {}", random.words(4));
    let length = 60 + number as usize % 200;
    let body = random.words(length);
    let key: Vec<u8> = (0..2).flat_map(|_| random.next().to_le_bytes()).collect();
    // Counted from a fixed day: the same seed must make the same bytes.
    let time = 0x01DA_0000_0000_0000_u64 + number * 600_000_000;
    let has_attachment = attachment > 0;
    let props = [
        PropValue::string(tags::MESSAGE_CLASS, "IPM.Note"),
        PropValue::string(tags::SUBJECT, &subject),
        PropValue::string(tags::BODY, &body),
        PropValue::string(tags::SENDER_NAME, "Ada Example"),
        PropValue::string(tags::SENDER_EMAIL_ADDRESS, "ada@example.org"),
        PropValue::binary(tags::SEARCH_KEY, key),
        PropValue::i32(
            tags::MESSAGE_FLAGS,
            1 | if has_attachment { 0x10 } else { 0 },
        ),
        PropValue::bool(tags::HAS_ATTACHMENTS, has_attachment),
        PropValue::time(tags::MESSAGE_DELIVERY_TIME, time),
        PropValue::time(tags::LAST_MODIFICATION_TIME, time),
    ];
    let recipient = [
        PropValue::i32(tags::RECIPIENT_TYPE, 1),
        PropValue::string(tags::DISPLAY_NAME, "Grace Example"),
        PropValue::string(tags::EMAIL_ADDRESS, "grace@example.org"),
        PropValue::string(tags::ADDRESS_TYPE, "SMTP"),
    ];
    let mut attachments = Vec::new();
    if has_attachment {
        let bytes: Vec<u8> = (0..attachment).map(|_| random.next() as u8).collect();
        let props = [
            PropValue::i32(tags::ATTACH_METHOD, 1),
            PropValue::string(tags::ATTACH_LONG_FILENAME, "data.bin"),
            PropValue::i32(tags::ATTACH_SIZE, attachment as i32),
            PropValue::binary(tags::ATTACH_DATA, bytes),
        ];
        attachments.push(AttachmentData {
            props: props.into_iter().collect(),
            embedded: None,
        });
    }
    MessageData {
        props: props.into_iter().collect(),
        recipients: vec![recipient.into_iter().collect()],
        attachments,
    }
}

/// SplitMix64: small, and the same everywhere.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }

    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len() as u64) as usize]
    }

    fn words(&mut self, count: usize) -> String {
        const WORDS: [&str; 16] = [
            "budget",
            "meeting",
            "draft",
            "review",
            "contract",
            "train",
            "hotel",
            "server",
            "release",
            "question",
            "answer",
            "figures",
            "monday",
            "signature",
            "order",
            "delay",
        ];
        (0..count)
            .map(|_| self.pick(&WORDS))
            .collect::<Vec<_>>()
            .join(" ")
    }
}
