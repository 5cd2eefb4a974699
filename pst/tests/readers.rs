//! Our own reader must not be the judge of our own writer: a PST that the engine wrote is read by
//! libpff (pffexport), libpst (readpst) and the `outlook-pst` crate, and what they find is what was
//! written: in both formats, with every encoding, and in ANSI stores with either type of text. A tool
//! that is not installed is skipped, and says so.
#![allow(clippy::unwrap_used)]

#[path = "../../tests/support/skip.rs"]
mod skip;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::rc::Rc;
use std::sync::Arc;

use outlook_pst::UnicodePstFile;
use outlook_pst::ltp::prop_context::PropertyValue;
use outlook_pst::messaging::attachment::{
    Attachment as _, AttachmentData as PstAttachmentData, UnicodeAttachment,
};
use outlook_pst::messaging::folder::{Folder as _, UnicodeFolder};
use outlook_pst::messaging::message::{Message as _, UnicodeMessage};
use outlook_pst::messaging::store::{Store as _, UnicodeStore};
use outlook_pst::ndb::node_id::NodeId;
use pst::Nid;
use pst::ltp::{CodePage, Guid, PropBag, PropName, PropTag, PropType, PropValue, utf16le};
use pst::messaging::{
    AttachmentData, IPM_SUBTREE, MessageData, Transaction, create_empty_as, tags,
};
use pst::ndb::format::{ANSI, UNICODE};
use pst::ndb::{CryptMethod, Format};
use storage::{MemStorage, ReadAt};

/// A kind of file to write.
#[derive(Clone, Copy)]
struct Kind {
    format: &'static Format,
    crypt: CryptMethod,
    /// PtypString or PtypString8.
    text: PropType,
}

impl std::fmt::Display for Kind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {:?} {:?}", self.format.name, self.crypt, self.text)
    }
}

const KINDS: [Kind; 6] = [
    kind(&UNICODE, CryptMethod::Permute, PropType::UNICODE),
    kind(&UNICODE, CryptMethod::None, PropType::UNICODE),
    kind(&UNICODE, CryptMethod::Cyclic, PropType::UNICODE),
    kind(&ANSI, CryptMethod::Permute, PropType::STRING8),
    kind(&ANSI, CryptMethod::Cyclic, PropType::STRING8),
    kind(&ANSI, CryptMethod::None, PropType::UNICODE),
];

const fn kind(format: &'static Format, crypt: CryptMethod, text: PropType) -> Kind {
    Kind {
        format,
        crypt,
        text,
    }
}

/// Properties with the kind's type of text, in Windows-1252 where that is 8-bit.
fn with_text(props: &PropBag, kind: Kind) -> PropBag {
    let of = |value: &PropValue| match value.tag.prop_type() {
        PropType::UNICODE if kind.text == PropType::STRING8 => {
            let bytes = CodePage::WESTERN.encode(&value.as_str().unwrap()).unwrap();
            PropValue::new(PropTag::new(value.tag.id(), kind.text), bytes)
        }
        _ => value.clone(),
    };
    props.iter().map(of).collect()
}

fn message_with_text(m: &MessageData, kind: Kind) -> MessageData {
    MessageData {
        props: with_text(&m.props, kind),
        recipients: m.recipients.iter().map(|r| with_text(r, kind)).collect(),
        attachments: m
            .attachments
            .iter()
            .map(|a| AttachmentData {
                props: with_text(&a.props, kind),
                embedded: a
                    .embedded
                    .as_ref()
                    .map(|m| Box::new(message_with_text(m, kind))),
            })
            .collect(),
    }
}

/// What one message says, as every reader can tell it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Mail {
    subject: String,
    body: String,
    html: String,
    recipients: Vec<(String, String)>,
    /// Name and BLAKE3 of attachments by value; subjects of embedded messages.
    files: Vec<(String, String)>,
    embedded: Vec<String>,
}

fn hash(data: &[u8]) -> String {
    blake3::hash(data).to_hex().to_string()
}

/// The messages of the test, by folder name.
fn mails() -> BTreeMap<String, Vec<Mail>> {
    let mut out: BTreeMap<String, Vec<Mail>> = BTreeMap::new();
    for (f, count) in [("Inbox", 12), ("Sent", 3), ("Empty", 0), ("Nested", 2)] {
        let list = out.entry(f.to_owned()).or_default();
        for n in 0..count {
            list.push(Mail {
                subject: format!("Subject {f} {n} \u{e4}\u{20ac}"),
                body: format!(
                    "Body of {f} {n}\r\n{}",
                    "text ".repeat([3, 800, 20_000][n % 3])
                ),
                html: format!(
                    "<html><body>{f} {n} {}</body></html>",
                    "<b>x</b>".repeat([1, 500, 9_000][n % 3])
                ),
                recipients: (0..n % 4 + 1)
                    .map(|r| (format!("Name {r} of {n}"), format!("r{r}.{n}@example.org")))
                    .collect(),
                files: (0..n % 3)
                    .map(|a| (format!("file{a}.bin"), hash(&file(n, a))))
                    .collect(),
                embedded: if n % 5 == 4 {
                    vec![format!("Inner {f} {n}")]
                } else {
                    Vec::new()
                },
            });
        }
    }
    out
}

/// The contents of attachment `a` of message `n`; some of 1 MB.
fn file(n: usize, a: usize) -> Vec<u8> {
    // None is empty: readpst leaves empty files out, outlook-pst refuses them.
    let size = [100, 5_000, 1 << 20, 33_000][(n + a) % 4];
    (0..size)
        .map(|i: u32| (i.wrapping_mul(2_654_435_761) >> 13) as u8 ^ n as u8)
        .collect()
}

fn message(mail: &Mail, n: usize, tx: &mut Transaction) -> MessageData {
    let named = tx
        .named_id(&PropName::string(Guid::PS_PUBLIC_STRINGS, "x-readers"))
        .unwrap();
    let number = tx
        .named_id(&PropName::number(Guid([7; 16]), 0x8501))
        .unwrap();
    let key = blake3::hash(mail.subject.as_bytes());
    let time = 130_000_000_000_000_000 + n as u64 * 10_000_000;
    let mut m = MessageData {
        props: PropBag::from_iter([
            PropValue::string(tags::MESSAGE_CLASS, "IPM.Note"),
            PropValue::string(tags::SUBJECT, &mail.subject),
            PropValue::i32(tags::MESSAGE_FLAGS, tags::FLAG_READ),
            PropValue::i32(tags::MESSAGE_SIZE, 4_096),
            PropValue::i32(tags::MESSAGE_STATUS, 0),
            PropValue::string(0x0042, "Sender"),
            PropValue::time(0x0039, time),
            PropValue::time(0x0E06, time),
            PropValue::time(0x3007, time),
            PropValue::time(0x3008, time),
            PropValue::binary(tags::SEARCH_KEY, key.as_bytes()[..16].to_vec()),
            PropValue::string(0x1000, &mail.body),
            PropValue::binary(0x1013, mail.html.clone().into_bytes()),
            PropValue::i32(tags::INTERNET_CODEPAGE, 65_001),
            PropValue::i32(tags::MESSAGE_CODEPAGE, 1252),
            PropValue::new(
                PropTag::new(named, PropType::UNICODE),
                utf16le("named value"),
            ),
            PropValue::new(PropTag::new(number, PropType::I32), 7i32.to_le_bytes()),
        ]),
        ..MessageData::default()
    };
    for (name, address) in &mail.recipients {
        m.recipients.push(PropBag::from_iter([
            PropValue::i32(0x0C15, 1),
            PropValue::i32(0x0FFE, 6),
            PropValue::i32(0x3900, 0),
            PropValue::string(tags::DISPLAY_NAME, name),
            PropValue::string(0x3002, "SMTP"),
            PropValue::string(0x3003, address),
            PropValue::string(0x39FE, address),
        ]));
    }
    let attach = |name: &str, method: i32, size: usize| {
        PropBag::from_iter([
            PropValue::i32(tags::ATTACH_SIZE, size as i32),
            PropValue::string(0x3704, name),
            PropValue::string(0x3707, name),
            PropValue::i32(tags::ATTACH_METHOD, method),
            PropValue::i32(0x370B, -1),
        ])
    };
    for (a, (name, _)) in mail.files.iter().enumerate() {
        let data = file(n, a);
        let mut props = attach(name, 1, data.len());
        props.insert(PropValue::binary(tags::ATTACH_DATA, data));
        m.attachments.push(AttachmentData {
            props,
            embedded: None,
        });
    }
    for subject in &mail.embedded {
        let inner = Mail {
            subject: subject.clone(),
            files: vec![("inner.bin".into(), String::new())],
            embedded: Vec::new(),
            ..mail.clone()
        };
        m.attachments.push(AttachmentData {
            props: attach("", tags::METHOD_EMBEDDED, 500),
            embedded: Some(Box::new(message(&inner, n, tx))),
        });
    }
    m
}

/// Writes the file in several transactions, with edits that leave holes behind.
fn written(dir: &Path, kind: Kind) -> PathBuf {
    let empty = create_empty_as(b"the readers test", kind.format, kind.crypt).unwrap();
    let file = Arc::new(MemStorage::from(empty));
    let begin = || Transaction::begin(Arc::clone(&file) as Arc<dyn ReadAt>).unwrap();
    let mut tx = begin();
    let mut folders = BTreeMap::new();
    for name in mails().keys() {
        let parent = if name == "Nested" {
            folders["Inbox"]
        } else {
            IPM_SUBTREE
        };
        let props = PropBag::from_iter([
            PropValue::string(tags::DISPLAY_NAME, name),
            PropValue::string(0x3613, "IPF.Note"),
        ]);
        folders.insert(
            name.clone(),
            tx.create_folder(parent, None, &with_text(&props, kind))
                .unwrap(),
        );
    }
    tx.finish().unwrap().commit(&*file).unwrap();
    for (name, list) in mails() {
        for (n, mail) in list.iter().enumerate() {
            // First with another subject and in another folder, then put right.
            let mut tx = begin();
            let wrong = Mail {
                subject: format!("wrong {n}"),
                body: "x".repeat(n * 3_000),
                ..mail.clone()
            };
            let m = message_with_text(&message(&wrong, n, &mut tx), kind);
            let nid = tx.add_message(folders["Empty"], None, &m, false).unwrap();
            tx.finish().unwrap().commit(&*file).unwrap();
            let mut tx = begin();
            let m = message_with_text(&message(mail, n, &mut tx), kind);
            tx.update_message(nid, &m).unwrap();
            tx.move_message(nid, folders[&name]).unwrap();
            tx.finish().unwrap().commit(&*file).unwrap();
        }
    }
    let mut tx = begin();
    let mut fai = message(&mails()["Inbox"][0], 0, &mut tx);
    fai.props.insert(PropValue::string(
        tags::MESSAGE_CLASS,
        "IPM.Configuration.Test",
    ));
    fai.props
        .insert(PropValue::i32(tags::MESSAGE_FLAGS, 0x40 | tags::FLAG_READ));
    let fai = message_with_text(&fai, kind);
    tx.add_message(folders["Inbox"], None, &fai, true).unwrap();
    tx.finish().unwrap().commit(&*file).unwrap();

    let mut bytes = vec![0; usize::try_from(file.len().unwrap()).unwrap()];
    file.read_exact_at(0, &mut bytes).unwrap();
    let path = dir.join("written.pst");
    std::fs::write(&path, bytes).unwrap();
    path
}

fn have(tool: &str) -> bool {
    let found = Command::new(tool).arg("-V").output().is_ok();
    if !found {
        skip::skipped("readers", &format!("{tool} is not installed"));
    }
    found
}

fn run(command: &mut Command) -> String {
    let out = command.output().unwrap();
    let text = format!(
        "{}{}",
        String::from_utf8_lossy(&out.stdout),
        String::from_utf8_lossy(&out.stderr)
    );
    assert!(out.status.success(), "{command:?}: {text}");
    text
}

fn entries(dir: &Path) -> Vec<PathBuf> {
    let mut out: Vec<_> = std::fs::read_dir(dir)
        .unwrap()
        .map(|e| e.unwrap().path())
        .collect();
    out.sort();
    out
}

fn name_of(path: &Path) -> String {
    path.file_name().unwrap().to_string_lossy().into_owned()
}

/// The value behind `key` in pffexport's text files: lines of `Key:<tabs>value`.
fn field(text: &str, key: &str) -> String {
    let line = text
        .lines()
        .find_map(|l| l.strip_prefix(key)?.strip_prefix(':'));
    line.unwrap_or_default().trim().to_owned()
}

fn pff_message(dir: &Path) -> Mail {
    let read = |name: &str| std::fs::read_to_string(dir.join(name)).unwrap_or_default();
    let recipients = read("Recipients.txt")
        .split("\n\n")
        .filter(|r| !r.trim().is_empty())
        .map(|r| (field(r, "Display name"), field(r, "Email address")))
        .collect();
    let (mut files, mut embedded) = (Vec::new(), Vec::new());
    if dir.join("Attachments").is_dir() {
        for path in entries(&dir.join("Attachments")) {
            if path.is_dir() {
                embedded.push(pff_message(&path.join("Message00001")).subject);
            } else {
                let name = name_of(&path);
                let name = name
                    .split_once('_')
                    .map_or(name.as_str(), |(_, n)| n)
                    .to_owned();
                files.push((name, hash(&std::fs::read(&path).unwrap())));
            }
        }
    }
    files.sort();
    Mail {
        subject: field(&read("OutlookHeaders.txt"), "Subject"),
        body: read("Message.txt"),
        html: read("Message.html"),
        recipients,
        files,
        embedded,
    }
}

#[test]
fn pffexport_reads_what_was_written() {
    if have("pffexport") {
        KINDS.into_iter().for_each(pffexport_reads);
    }
}

fn pffexport_reads(kind: Kind) {
    println!("{kind}");
    let dir = tempfile::tempdir().unwrap();
    let path = written(dir.path(), kind);
    let info = run(Command::new("pffinfo").arg(&path));
    assert!(info.contains("Personal Storage Tables"), "{info}");
    let target = dir.path().join("out");
    let text = run(Command::new("pffexport")
        .args(["-q", "-f", "all", "-t"])
        .arg(&target)
        .arg(&path));
    assert!(!text.contains("libpff_"), "{text}");
    let top = dir.path().join("out.export/Top of Personal Folders");
    let mut found: BTreeMap<String, Vec<Mail>> = BTreeMap::new();
    for (name, at) in [
        ("Inbox", top.join("Inbox")),
        ("Sent", top.join("Sent")),
        ("Empty", top.join("Empty")),
        ("Nested", top.join("Inbox/Nested")),
    ] {
        let list = found.entry(name.to_owned()).or_default();
        for path in entries(&at)
            .into_iter()
            .filter(|p| name_of(p).starts_with("Message"))
        {
            list.push(pff_message(&path));
        }
        list.sort();
    }
    let mut want = mails();
    want.values_mut().for_each(|list| list.sort());
    assert_same(&found, &want);
}

/// Compares list by list, so that a difference can be read.
fn assert_same(found: &BTreeMap<String, Vec<Mail>>, want: &BTreeMap<String, Vec<Mail>>) {
    assert_eq!(
        found.keys().collect::<Vec<_>>(),
        want.keys().collect::<Vec<_>>()
    );
    for (name, list) in want {
        let subjects = |l: &[Mail]| l.iter().map(|m| m.subject.clone()).collect::<Vec<_>>();
        assert_eq!(subjects(&found[name]), subjects(list), "{name}");
        for (a, b) in found[name].iter().zip(list) {
            assert_eq!(
                (&a.recipients, &a.files, &a.embedded),
                (&b.recipients, &b.files, &b.embedded),
                "{}",
                b.subject
            );
            assert_eq!(a.body.trim_end(), b.body.trim_end(), "{}", b.subject);
            assert_eq!(a.html.trim_end(), b.html.trim_end(), "{}", b.subject);
        }
    }
}

fn text(value: Option<&PropertyValue>) -> String {
    match value {
        Some(PropertyValue::Unicode(v)) => v.to_string(),
        other => panic!("no text: {other:?}"),
    }
}

fn binary(value: Option<&PropertyValue>) -> Vec<u8> {
    match value {
        Some(PropertyValue::Binary(v)) => v.buffer().to_vec(),
        other => panic!("no binary: {other:?}"),
    }
}

#[test]
fn the_outlook_pst_crate_reads_what_was_written() {
    let unicode = KINDS.into_iter().filter(|k| *k.format == UNICODE);
    unicode.for_each(the_outlook_pst_crate_reads);
}

fn the_outlook_pst_crate_reads(kind: Kind) {
    println!("{kind}");
    let dir = tempfile::tempdir().unwrap();
    let path = written(dir.path(), kind);
    let file = Rc::new(UnicodePstFile::open(&path).unwrap());
    let store = UnicodeStore::read(file).unwrap();
    assert_eq!(
        store.properties().display_name().unwrap(),
        "Personal Folders"
    );
    assert!(store.named_property_map().is_ok());
    let top = store.properties().ipm_sub_tree_entry_id().unwrap();
    let mut found = BTreeMap::new();
    let mut queue = vec![top];
    while let Some(id) = queue.pop() {
        let folder = UnicodeFolder::read(Rc::clone(&store), &id).unwrap();
        let id_of = |row: u32| store.properties().make_entry_id(NodeId::from(row)).unwrap();
        if let Some(table) = folder.hierarchy_table() {
            queue.extend(table.rows_matrix().map(|row| id_of(u32::from(row.id()))));
        }
        let name = folder.properties().display_name().unwrap();
        let mut list = Vec::new();
        if let Some(table) = folder.contents_table() {
            for row in table.rows_matrix() {
                let id = id_of(u32::from(row.id()));
                list.push(crate_message(
                    &UnicodeMessage::read(Rc::clone(&store), &id, None).unwrap(),
                ));
            }
        }
        assert_eq!(
            folder.properties().content_count().unwrap(),
            list.len() as i32,
            "{name}"
        );
        let hidden = folder
            .associated_table()
            .map_or(0, |t| t.rows_matrix().count());
        assert_eq!(hidden, usize::from(name == "Inbox"));
        if mails().contains_key(&name) {
            list.sort();
            found.insert(name, list);
        }
    }
    let mut want = mails();
    for list in want.values_mut() {
        list.iter_mut()
            .flat_map(|m| &mut m.embedded)
            .for_each(|e| *e = UNREADABLE.to_owned());
        list.sort();
    }
    assert_same(&found, &want);
}

/// Stands for an embedded message that outlook-pst cannot open.
const UNREADABLE: &str = "unreadable";

fn crate_message(message: &Rc<UnicodeMessage>) -> Mail {
    let props = message.properties();
    let mut recipients = Vec::new();
    if let Some(table) = message.recipient_table() {
        let column = |id: u16| {
            table
                .context()
                .columns()
                .iter()
                .position(|c| c.prop_id() == id)
                .unwrap()
        };
        for row in table.rows_matrix() {
            let values = row.columns(table.context()).unwrap();
            let cell = |id: u16| {
                let at = column(id);
                let kind = table.context().columns()[at].prop_type();
                text(
                    values[at]
                        .as_ref()
                        .map(|v| table.read_column(v, kind).unwrap())
                        .as_ref(),
                )
            };
            recipients.push((cell(0x3001), cell(0x3003)));
        }
    }
    let (mut files, mut embedded) = (Vec::new(), Vec::new());
    if let Some(table) = message.attachment_table() {
        for row in table.rows_matrix() {
            let nid = NodeId::from(u32::from(row.id()));
            // outlook-pst 1.2 does not know PtypObject (0x000D): it stops reading the properties of
            // an embedded message's attachment there, in every file, and misses PidTagAttachMethod.
            let a = match UnicodeAttachment::read(Rc::clone(message), nid, None) {
                Ok(a) => a,
                Err(e) => {
                    assert!(e.to_string().contains("PidTagAttachMethod"), "{e}");
                    embedded.push(UNREADABLE.to_owned());
                    continue;
                }
            };
            match a.data() {
                Some(PstAttachmentData::Binary(b)) => {
                    files.push((text(a.properties().get(0x3707)), hash(b.buffer())));
                }
                Some(PstAttachmentData::Message(m)) => {
                    embedded.push(text(m.properties().get(0x0037)));
                }
                None => files.push((text(a.properties().get(0x3707)), hash(&[]))),
            }
        }
    }
    files.sort();
    Mail {
        subject: text(props.get(0x0037)),
        body: text(props.get(0x1000)),
        html: String::from_utf8(binary(props.get(0x1013))).unwrap(),
        recipients,
        files,
        embedded,
    }
}

#[test]
fn readpst_reads_what_was_written() {
    if have("readpst") {
        KINDS.into_iter().for_each(readpst_reads);
    }
}

fn readpst_reads(kind: Kind) {
    println!("{kind}");
    let dir = tempfile::tempdir().unwrap();
    let path = written(dir.path(), kind);
    let target = dir.path().join("out");
    std::fs::create_dir(&target).unwrap();
    // -S: a file per message, attachments beside it; -D: deleted items too; -j 0: its processes share the
    // place in the file, and read each other's blocks.
    let text = run(Command::new("readpst")
        .args(["-q", "-D", "-j", "0", "-S", "-o"])
        .arg(&target)
        .arg(&path));
    assert!(
        !text.to_lowercase().contains("error") && !text.to_lowercase().contains("warn"),
        "{text}"
    );
    let top = target.join("Personal Folders");
    for (name, list) in mails() {
        let at = if name == "Nested" {
            top.join("Inbox/Nested")
        } else {
            top.join(&name)
        };
        let mut subjects = Vec::new();
        let mut files: Vec<(String, String)> = Vec::new();
        for path in if at.is_dir() {
            entries(&at)
        } else {
            Vec::new()
        } {
            let file = name_of(&path);
            if path.is_dir() {
                continue;
            }
            let bytes = std::fs::read(&path).unwrap();
            match file.split_once('-') {
                Some((_, attached)) if attached.ends_with(".bin") => {
                    files.push((attached.to_owned(), hash(&bytes)));
                }
                _ => {
                    let mail = String::from_utf8_lossy(&bytes).into_owned();
                    subjects.push(mail.lines().filter(|l| l.starts_with("Subject: ")).count());
                    assert!(mail.contains("text text"), "{file} has no body");
                }
            }
        }
        assert_eq!(subjects.len(), list.len(), "{name}");
        assert!(subjects.iter().all(|n| *n >= 1), "{name}: {subjects:?}");
        let mut want: Vec<_> = list.iter().flat_map(|m| m.files.clone()).collect();
        want.sort();
        files.sort();
        let inner = list.iter().filter(|m| !m.embedded.is_empty()).count();
        println!(
            "{name}: {} messages, {} attachments, {inner} embedded",
            subjects.len(),
            files.len()
        );
        assert_eq!(files, want, "{name}");
    }
}

#[test]
fn the_test_file_has_what_it_claims() {
    let all: Vec<Mail> = mails().into_values().flatten().collect();
    assert!(all.iter().any(|m| !m.embedded.is_empty()));
    assert!(all.iter().any(|m| m.files.len() == 2));
    assert!((0..12).any(|n| (0..n % 3).any(|a| file(n, a).len() == 1 << 20)));
    assert_ne!(IPM_SUBTREE, Nid::ROOT_FOLDER);
}
