//! Random adds, updates, moves and deletes against a plain model, in both formats and over several
//! sizes: after each commit our own reader finds the model, with tables, counts and structure right
//! and no space lost; at the end libpff (pffexport), libpst (readpst) and `outlook-pst` find it too:
//! every message with its folder, subject, body, recipients and attachments.
//!
//! A toy that writes what only its own reader understands, or that loses one message of thousands
//! after many edits of one table, fails here. `PST_MODEL_OPS` multiplies what is done.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

mod support;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::rc::Rc;

use outlook_pst::UnicodePstFile;
use outlook_pst::ltp::prop_context::PropertyValue;
use outlook_pst::messaging::attachment::{
    Attachment as _, AttachmentData as PstAttachmentData, UnicodeAttachment,
};
use outlook_pst::messaging::folder::{Folder as _, UnicodeFolder};
use outlook_pst::messaging::message::{Message as _, UnicodeMessage};
use outlook_pst::messaging::store::{Store as _, UnicodeStore};
use outlook_pst::ndb::node_id::NodeId;
use pst::check::check_ltp;
use pst::ltp::{PropBag, PropValue};
use pst::messaging::{IPM_SUBTREE, MessageData, Pst, Transaction, tags};
use pst::ndb::Format;
use pst::ndb::format::{ANSI, UNICODE};
use pst::{Nid, NidType};
use storage::MemStorage;
use support::mail::{attachment, begin, clean, commit, consistent, empty_as, open, recipient};
use support::{Rng, skip};

/// What a message says, as every reader can tell it; subjects are unique in a file.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Mail {
    folder: String,
    body: blake3::Hash,
    recipients: Vec<String>,
    /// Names and hashes of attachments.
    files: Vec<(String, blake3::Hash)>,
}

type Mails = BTreeMap<String, Mail>;

/// What the file must hold.
#[derive(Default)]
struct Model {
    /// Name and parent.
    folders: BTreeMap<Nid, (String, Nid)>,
    messages: BTreeMap<Nid, (Nid, String, Mail)>,
    names: u32,
    /// How many operations of each kind were done.
    done: [usize; 8],
}

fn hash(data: &[u8]) -> blake3::Hash {
    // Line ends at the end of a body are the readers' own.
    blake3::hash(data)
}

fn body_hash(text: &str) -> blake3::Hash {
    hash(text.replace("\r\n", "\n").trim().as_bytes())
}

struct Sizes {
    /// Messages in one folder before the edits begin.
    start: usize,
    transactions: usize,
    operations: usize,
    /// The longest attachment, in bytes.
    longest: usize,
}

impl Model {
    fn name(&mut self, what: &str) -> String {
        self.names += 1;
        format!("{what}{}", self.names)
    }

    fn message(&mut self, rng: &mut Rng, sizes: &Sizes) -> (String, Mail, MessageData) {
        let subject = self.name("Mail ");
        let lines = [0, 1, 60, 61, 140, 141, 1_500][rng.below(7) as usize];
        let body: String = (0..lines)
            .map(|n| format!("Line {n} of the message {subject}, as it is.\r\n"))
            .collect();
        let mut data = MessageData {
            props: PropBag::from_iter([
                PropValue::string(tags::MESSAGE_CLASS, "IPM.Note"),
                PropValue::string(tags::SUBJECT, &subject),
                PropValue::string(0x0042, "Sender"),
                PropValue::i32(tags::MESSAGE_FLAGS, (rng.next() & 1) as i32),
                PropValue::i32(tags::MESSAGE_SIZE, 1000),
                PropValue::i32(tags::MESSAGE_STATUS, 0),
                PropValue::time(0x0039, 130_000_000_000_000_000 + rng.below(1 << 40)),
                PropValue::time(0x0E06, 130_000_000_000_000_000 + rng.below(1 << 40)),
                PropValue::time(0x3007, 130_000_000_000_000_000 + rng.below(1 << 40)),
                PropValue::time(0x3008, 130_000_000_000_000_000 + rng.below(1 << 40)),
                PropValue::binary(tags::SEARCH_KEY, rng.bytes(16)),
            ]),
            ..MessageData::default()
        };
        if lines > 0 {
            data.props.insert(PropValue::string(tags::BODY, &body));
        }
        let mut mail = Mail {
            folder: String::new(),
            body: body_hash(&body),
            recipients: Vec::new(),
            files: Vec::new(),
        };
        for r in 0..[0, 1, 1, 2, 9][rng.below(5) as usize] {
            let name = format!("r{r}.{}", self.names);
            data.recipients.push(recipient(&name));
            mail.recipients.push(format!("{name}@example.org"));
        }
        let files = [0, 0, 0, 1, 2][rng.below(5) as usize];
        for a in 0..files {
            let len = match rng.below(200) {
                0 => sizes.longest,
                1..10 => 70_000,
                n => [1, 100, 3_580, 3_581, 8_176, 9_000][n as usize % 6],
            };
            let bytes = rng.bytes(len);
            let name = format!("file{a}.bin");
            mail.files.push((name.clone(), hash(&bytes)));
            data.attachments.push(attachment(&name, bytes));
        }
        (subject, mail, data)
    }

    fn nth<V>(map: &BTreeMap<Nid, V>, rng: &mut Rng) -> Option<Nid> {
        let n = rng.below(map.len().max(1) as u64) as usize;
        map.keys().nth(n).copied()
    }

    fn inside(&self, mut at: Nid, ancestor: Nid) -> bool {
        loop {
            if at == ancestor {
                return true;
            }
            match self.folders.get(&at) {
                Some((_, parent)) => at = *parent,
                None => return false,
            }
        }
    }

    fn add(&mut self, tx: &mut Transaction, folder: Nid, rng: &mut Rng, sizes: &Sizes) {
        let (subject, mail, data) = self.message(rng, sizes);
        let nid = tx.add_message(folder, None, &data, false).unwrap();
        self.messages.insert(nid, (folder, subject, mail));
    }

    fn edit(&mut self, tx: &mut Transaction, rng: &mut Rng, sizes: &Sizes) {
        let folder = Self::nth(&self.folders, rng).unwrap();
        let message = Self::nth(&self.messages, rng);
        let op = match (rng.below(100), message) {
            (0..30, _) | (_, None) => {
                self.add(tx, folder, rng, sizes);
                0
            }
            (30..55, Some(nid)) => {
                let (subject, mail, data) = self.message(rng, sizes);
                tx.update_message(nid, &data).unwrap();
                let at = self.messages[&nid].0;
                self.messages.insert(nid, (at, subject, mail));
                1
            }
            (55..72, Some(nid)) => {
                tx.move_message(nid, folder).unwrap();
                self.messages.get_mut(&nid).unwrap().0 = folder;
                2
            }
            (72..94, Some(nid)) => {
                tx.delete_message(nid).unwrap();
                self.messages.remove(&nid);
                3
            }
            (94..96, _) => {
                let name = self.name("Folder ");
                let props = support::mail::folder(&name);
                let nid = tx.create_folder(folder, None, &props).unwrap();
                self.folders.insert(nid, (name, folder));
                4
            }
            (96..98, _) => {
                let name = self.name("Renamed ");
                tx.update_folder(folder, &support::mail::folder(&name))
                    .unwrap();
                self.folders.get_mut(&folder).unwrap().0 = name;
                5
            }
            (98, _) => {
                let to = Self::nth(&self.folders, rng).unwrap();
                if self.inside(to, folder) {
                    assert!(to == self.folders[&folder].1 || tx.move_folder(folder, to).is_err());
                } else {
                    tx.move_folder(folder, to).unwrap();
                    self.folders.get_mut(&folder).unwrap().1 = to;
                }
                6
            }
            _ => {
                // Not the largest: the edits are about its table.
                let held = self.messages.values().filter(|(f, ..)| *f == folder);
                if held.count() < 50 && self.folders.len() > 3 {
                    tx.delete_folder(folder).unwrap();
                    let gone: Vec<Nid> = self
                        .folders
                        .keys()
                        .copied()
                        .filter(|f| self.inside(*f, folder))
                        .collect();
                    self.folders.retain(|f, _| !gone.contains(f));
                    self.messages.retain(|_, (f, ..)| !gone.contains(f));
                }
                7
            }
        };
        self.done[op] += 1;
    }

    fn mails(&self) -> Mails {
        self.messages
            .values()
            .map(|(folder, subject, mail)| {
                let folder = self.folders[folder].0.clone();
                (
                    subject.clone(),
                    Mail {
                        folder,
                        ..mail.clone()
                    },
                )
            })
            .collect()
    }
}

/// What our own reader finds.
fn ours(pst: &Pst) -> Mails {
    let index = pst.index().unwrap();
    let mut out = Mails::new();
    for m in index.messages.values().flatten() {
        assert_eq!(m.nid.kind(), NidType::NORMAL_MESSAGE);
        let data = pst.message(m.nid).unwrap();
        let folder = pst.folder(m.entry.nid_parent).unwrap().props;
        let bytes = |props: &PropBag, id: u16| props.get(id).unwrap().data.read(1 << 30).unwrap();
        let mail = Mail {
            folder: folder.str(tags::DISPLAY_NAME).unwrap(),
            body: body_hash(&match data.props.get(tags::BODY) {
                Some(_) => utf16(&bytes(&data.props, tags::BODY)),
                None => String::new(),
            }),
            recipients: data
                .recipients
                .iter()
                .map(|r| r.str(tags::EMAIL_ADDRESS).unwrap())
                .collect(),
            files: data
                .attachments
                .iter()
                .map(|a| {
                    let name = a.props.str(tags::ATTACH_LONG_FILENAME).unwrap();
                    (name, hash(&bytes(&a.props, tags::ATTACH_DATA)))
                })
                .collect(),
        };
        let subject = data.props.str(tags::SUBJECT).unwrap();
        assert!(out.insert(subject, mail).is_none());
    }
    out
}

fn utf16(bytes: &[u8]) -> String {
    let units = bytes
        .chunks_exact(2)
        .map(|b| u16::from_le_bytes([b[0], b[1]]));
    String::from_utf16(&units.collect::<Vec<_>>()).unwrap()
}

fn assert_same(who: &str, found: &Mails, want: &Mails) {
    for (subject, mail) in want {
        let other = found.get(subject);
        assert_eq!(other, Some(mail), "{who}: {subject}");
    }
    assert_eq!(found.len(), want.len(), "{who} finds more");
}

fn have(tool: &str) -> bool {
    let found = Command::new(tool).arg("-V").output().is_ok();
    if !found {
        skip::skipped("readers", &format!("{tool} is not installed"));
    }
    found
}

fn run(command: &mut Command) {
    let out = command.output().unwrap();
    let text = String::from_utf8_lossy(&out.stderr);
    assert!(out.status.success(), "{command:?}: {text}");
}

fn entries(dir: &Path) -> Vec<PathBuf> {
    let mut out: Vec<_> = std::fs::read_dir(dir)
        .map(|d| d.map(|e| e.unwrap().path()).collect())
        .unwrap_or_default();
    out.sort();
    out
}

fn name_of(path: &Path) -> String {
    path.file_name().unwrap().to_string_lossy().into_owned()
}

/// The value behind `key` in pffexport's text files: lines of `Key:<tabs>value`.
fn field(text: &str, key: &str) -> Option<String> {
    let line = text
        .lines()
        .find_map(|l| l.strip_prefix(key)?.strip_prefix(':'));
    line.map(|l| l.trim().to_owned())
}

fn pffexport(path: &Path, dir: &Path) -> Mails {
    let target = dir.join("pff");
    run(Command::new("pffexport")
        .args(["-q", "-f", "text", "-t"])
        .arg(&target)
        .arg(path));
    let mut out = Mails::new();
    let mut queue = vec![dir.join("pff.export")];
    while let Some(at) = queue.pop() {
        for path in entries(&at).into_iter().filter(|p| p.is_dir()) {
            if !path.join("OutlookHeaders.txt").is_file() {
                queue.push(path);
                continue;
            }
            let read = |name: &str| std::fs::read_to_string(path.join(name)).unwrap_or_default();
            let recipients = read("Recipients.txt");
            let file = |f: PathBuf| {
                let name = name_of(&f);
                let name = name.split_once('_').map_or(name.as_str(), |(_, n)| n);
                (name.to_owned(), hash(&std::fs::read(&f).unwrap()))
            };
            let mail = Mail {
                folder: name_of(&at),
                body: body_hash(&read("Message.txt")),
                recipients: recipients
                    .split("\n\n")
                    .filter_map(|r| field(r, "Email address"))
                    .collect(),
                files: entries(&path.join("Attachments"))
                    .into_iter()
                    .map(file)
                    .collect(),
            };
            let subject = field(&read("OutlookHeaders.txt"), "Subject").unwrap();
            assert!(out.insert(subject, mail).is_none());
        }
    }
    out
}

fn text(value: Option<&PropertyValue>) -> String {
    match value {
        Some(PropertyValue::Unicode(v)) => v.to_string(),
        None => String::new(),
        other => panic!("no text: {other:?}"),
    }
}

fn outlook_pst(path: &Path) -> Mails {
    let file = Rc::new(UnicodePstFile::open(path).unwrap());
    let store = UnicodeStore::read(file).unwrap();
    let top = store.properties().ipm_sub_tree_entry_id().unwrap();
    let mut out = Mails::new();
    let mut queue = vec![top];
    while let Some(id) = queue.pop() {
        let folder = UnicodeFolder::read(Rc::clone(&store), &id).unwrap();
        let id_of = |row: u32| store.properties().make_entry_id(NodeId::from(row)).unwrap();
        if let Some(table) = folder.hierarchy_table() {
            queue.extend(table.rows_matrix().map(|row| id_of(u32::from(row.id()))));
        }
        let name = folder.properties().display_name().unwrap();
        let rows: Vec<u32> = folder
            .contents_table()
            .iter()
            .flat_map(|t| t.rows_matrix().map(|row| u32::from(row.id())))
            .collect();
        let count = folder.properties().content_count().unwrap();
        assert_eq!(usize::try_from(count).unwrap(), rows.len(), "{name}");
        for row in rows {
            let message = UnicodeMessage::read(Rc::clone(&store), &id_of(row), None).unwrap();
            let props = message.properties();
            let mail = Mail {
                folder: name.clone(),
                body: body_hash(&text(props.get(tags::BODY))),
                recipients: crate_recipients(&message),
                files: crate_files(&message),
            };
            let subject = text(props.get(tags::SUBJECT));
            assert!(out.insert(subject, mail).is_none());
        }
    }
    out
}

fn crate_recipients(message: &Rc<UnicodeMessage>) -> Vec<String> {
    let table = message.recipient_table().unwrap();
    let columns = table.context().columns();
    let at = columns
        .iter()
        .position(|c| c.prop_id() == tags::EMAIL_ADDRESS);
    table
        .rows_matrix()
        .map(|row| {
            let at = at.unwrap();
            let values = row.columns(table.context()).unwrap();
            let cell = values[at].as_ref();
            text(
                cell.map(|v| table.read_column(v, columns[at].prop_type()).unwrap())
                    .as_ref(),
            )
        })
        .collect()
}

fn crate_files(message: &Rc<UnicodeMessage>) -> Vec<(String, blake3::Hash)> {
    let Some(table) = message.attachment_table() else {
        return Vec::new();
    };
    table
        .rows_matrix()
        .map(|row| {
            let nid = NodeId::from(u32::from(row.id()));
            let a = UnicodeAttachment::read(Rc::clone(message), nid, None).unwrap();
            let data = match a.data() {
                Some(PstAttachmentData::Binary(b)) => hash(b.buffer()),
                _ => panic!("no attachment data"),
            };
            (text(a.properties().get(tags::ATTACH_LONG_FILENAME)), data)
        })
        .collect()
}

/// readpst knows no recipients but those in the headers: they are compared by the other readers.
fn readpst(path: &Path, dir: &Path) -> Mails {
    let target = dir.join("readpst");
    std::fs::create_dir(&target).unwrap();
    run(Command::new("readpst")
        // One process: several garble each other's output now and then.
        .args(["-q", "-D", "-j", "0", "-S", "-o"])
        .arg(&target)
        .arg(path));
    let mut out = Mails::new();
    let mut queue = vec![target];
    while let Some(at) = queue.pop() {
        let mut files: BTreeMap<String, Vec<(String, blake3::Hash)>> = BTreeMap::new();
        let mut mails = Vec::new();
        for path in entries(&at) {
            let name = name_of(&path);
            if path.is_dir() {
                queue.push(path);
            } else if let Some((n, file)) = name.split_once('-') {
                let data = hash(&std::fs::read(&path).unwrap());
                files
                    .entry(n.to_owned())
                    .or_default()
                    .push((file.to_owned(), data));
            } else {
                mails.push((name, std::fs::read_to_string(&path).unwrap()));
            }
        }
        for (n, mail) in mails {
            let line = |key: &str| mail.lines().find_map(|l| l.strip_prefix(key));
            let subject = line("Subject: ").unwrap().to_owned();
            let body = mail
                .lines()
                .filter(|l| l.starts_with("Line "))
                .collect::<Vec<_>>()
                .join("\n");
            let mail = Mail {
                folder: name_of(&at),
                body: body_hash(&body),
                recipients: Vec::new(),
                files: files.remove(&n).unwrap_or_default(),
            };
            assert!(out.insert(subject, mail).is_none());
        }
        assert!(files.is_empty(), "attachments of no message: {files:?}");
    }
    out
}

fn run_model(format: &'static Format, seed: u64, sizes: &Sizes) {
    let more: usize = std::env::var("PST_MODEL_OPS").map_or(1, |n| n.parse().unwrap());
    let mut rng = Rng(seed);
    let file = empty_as(format);
    let mut model = Model::default();
    let mut tx = begin(&file);
    let name = model.name("Folder ");
    let props = support::mail::folder(&name);
    let full = tx.create_folder(IPM_SUBTREE, None, &props).unwrap();
    model.folders.insert(full, (name, IPM_SUBTREE));
    for _ in 0..(sizes.start * more).min(5_000) {
        model.add(&mut tx, full, &mut rng, sizes);
    }
    commit(&tx.finish().unwrap(), &file);
    for _ in 0..sizes.transactions * more {
        let mut tx = begin(&file);
        for _ in 0..1 + rng.below(sizes.operations as u64) {
            model.edit(&mut tx, &mut rng, sizes);
        }
        commit(&tx.finish().unwrap(), &file);
        let pst = open(&file);
        clean(&pst);
        let findings = check_ltp(pst.ndb());
        assert!(findings.is_empty(), "{findings:#?}");
        consistent(&pst);
        assert_same("we", &ours(&pst), &model.mails());
    }
    let bytes = file.to_vec();
    println!(
        "{}: {} messages, {} folders, {} bytes; adds, updates, moves, deletes {:?}, of folders {:?}",
        format.name,
        model.messages.len(),
        model.folders.len(),
        bytes.len(),
        &model.done[..4],
        &model.done[4..]
    );
    readers(format, &file, &model.mails());
}

fn readers(format: &'static Format, file: &MemStorage, want: &Mails) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.pst");
    std::fs::write(&path, file.to_vec()).unwrap();
    if have("pffexport") {
        assert_same("pffexport", &pffexport(&path, dir.path()), want);
    }
    if have("readpst") {
        let mut want = want.clone();
        want.values_mut().for_each(|m| m.recipients.clear());
        assert_same("readpst", &readpst(&path, dir.path()), &want);
    }
    // Its types for ANSI files are others, for all that is asked here; two readers will do for those.
    if *format == UNICODE {
        assert_same("outlook-pst", &outlook_pst(&path), want);
    }
}

#[test]
fn few_messages_and_many_folders() {
    for (n, format) in [&UNICODE, &ANSI].into_iter().enumerate() {
        let sizes = Sizes {
            start: 0,
            transactions: 25,
            operations: 12,
            longest: 3 << 20,
        };
        run_model(format, 0x1234_5678 + n as u64, &sizes);
    }
}

#[test]
fn a_folder_of_thousands() {
    for (n, format) in [&UNICODE, &ANSI].into_iter().enumerate() {
        let sizes = Sizes {
            start: 1_000,
            transactions: 4,
            operations: 120,
            longest: 1 << 20,
        };
        run_model(format, 0x9876_5432 + n as u64, &sizes);
    }
}
