//! A near and a far mailbox in memory, and a destination that applies as an agent does.
#![allow(dead_code, clippy::expect_used, clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

use pst::inventory::Inventory;
use pst::ltp::{PropValue, TableContext};
use pst::messaging::{MessageData, Transaction, tags};
use pst::{Nid, NidType, Pst};
use storage::{Generation, MemStorage, RangeSet, ReadAt};
use sync::kv::KvStore;
use sync::{
    Action, ApplyAnswer, ApplyJob, ApplyOutcome, Change, Destination, Options, Package,
    RemoteInventory, Report, Sequencer, Source, SyncDatabase, SyncError, apply, sync_container,
};
use tempfile::TempDir;

/// A PST in memory that a mail program works on.
#[derive(Clone)]
pub struct Mailbox(pub Arc<MemStorage>);

impl Mailbox {
    /// A folder with the messages m0, m1 and so on.
    pub fn new(count: u32) -> Self {
        let subjects: Vec<String> = (0..count).map(|i| format!("m{i}")).collect();
        Self::with_subjects(&subjects)
    }

    pub fn with_subjects<S: AsRef<str>>(subjects: &[S]) -> Self {
        let this = Self(Arc::new(MemStorage::from(
            pst::create_empty(&[7; 16]).expect("empty"),
        )));
        this.edit(|tx| {
            let root = tx.ipm_subtree().expect("subtree");
            let name = [PropValue::string(tags::DISPLAY_NAME, "Inbox")]
                .into_iter()
                .collect();
            let inbox = tx.create_folder(root, None, &name).expect("folder");
            for subject in subjects {
                tx.add_message(inbox, None, &message(subject.as_ref()), false)
                    .expect("adds");
            }
        });
        this
    }

    pub fn generation(&self) -> Generation {
        Generation::of(self.0.as_ref()).expect("hashes")
    }

    /// Another file with the same bytes.
    pub fn twin(&self) -> Self {
        Self(Arc::new(MemStorage::from(self.0.to_vec())))
    }

    pub fn edit(&self, f: impl FnOnce(&mut Transaction)) {
        let mut tx = Transaction::begin(Arc::clone(&self.0) as Arc<dyn ReadAt>).expect("begins");
        f(&mut tx);
        tx.finish()
            .expect("finishes")
            .commit(self.0.as_ref())
            .expect("commits");
    }

    pub fn pst(&self) -> Pst {
        Pst::open(Arc::new(MemStorage::from(self.0.to_vec()))).expect("opens")
    }

    pub fn inbox(&self) -> Nid {
        let pst = self.pst();
        let named = |nid| {
            pst.folder(nid)
                .expect("folder")
                .props
                .str(tags::DISPLAY_NAME)
        };
        let found = pst.folders().expect("folders").into_iter().map(|f| f.nid);
        found
            .into_iter()
            .find(|nid| named(*nid).as_deref() == Some("Inbox"))
            .expect("an inbox")
    }

    /// (NID, subject) of the messages in the inbox.
    pub fn mail(&self) -> Vec<(Nid, String)> {
        let pst = self.pst();
        let entries = pst.messages_of(self.inbox()).expect("lists");
        let subject = |nid| pst.message(nid).expect("reads").props.str(tags::SUBJECT);
        entries
            .iter()
            .map(|m| (m.nid, subject(m.nid).expect("a subject")))
            .collect()
    }

    pub fn subjects(&self) -> Vec<String> {
        let mut subjects: Vec<_> = self.mail().into_iter().map(|(_, s)| s).collect();
        subjects.sort();
        subjects
    }

    pub fn nid_of(&self, subject: &str) -> Nid {
        self.mail()
            .into_iter()
            .find(|(_, s)| s == subject)
            .expect("it is there")
            .0
    }

    pub fn add(&self, subject: &str) {
        let inbox = self.inbox();
        self.edit(|tx| {
            tx.add_message(inbox, None, &message(subject), false)
                .expect("adds");
        });
    }

    pub fn change(&self, subject: &str, new: &str) {
        let nid = self.nid_of(subject);
        let mut data = self.pst().message(nid).expect("reads");
        data.props.insert(PropValue::string(tags::SUBJECT, new));
        self.edit(|tx| tx.update_message(nid, &data).expect("updates"));
    }

    pub fn delete(&self, subject: &str) {
        let nid = self.nid_of(subject);
        self.edit(|tx| tx.delete_message(nid).expect("deletes"));
    }
}

pub fn message(subject: &str) -> MessageData {
    let hash = blake3::hash(subject.as_bytes());
    let props = [
        PropValue::string(tags::MESSAGE_CLASS, "IPM.Note"),
        PropValue::string(tags::SUBJECT, subject),
        PropValue::binary(tags::SEARCH_KEY, &hash.as_bytes()[..16]),
        PropValue::i32(tags::MESSAGE_FLAGS, 1),
    ];
    MessageData {
        props: props.into_iter().collect(),
        ..MessageData::default()
    }
}

/// Bytes that do not compress, always the same.
pub fn noise(len: usize) -> Vec<u8> {
    let mut out = vec![0; len];
    blake3::Hasher::new().finalize_xof().fill(&mut out);
    out
}

/// Something that happens at the far side.
type Disturbance = Box<dyn FnOnce(&Mailbox) + Send>;

/// The far side; it applies as an agent does, and can be told to misbehave.
pub struct Far {
    pub mailbox: Mailbox,
    pub applies: AtomicU32,
    /// What happens at the far side right before an apply.
    pub before_apply: Mutex<Vec<Disturbance>>,
    /// Answers a digest of something else.
    pub lies: bool,
    /// Applies, but the next answer gets lost.
    pub loses_answer: AtomicBool,
    /// The next request gets lost.
    pub loses_request: AtomicBool,
    /// Refuses packages with patches, as one that is not fit for them.
    pub refuses_patches: bool,
    /// What was applied, by sequence, with the digest of the package.
    pub records: Mutex<BTreeMap<u64, ([u8; 32], ApplyOutcome)>>,
    /// The far side after each package that was applied.
    applied: Mutex<Vec<Mailbox>>,
}

impl Far {
    pub fn new(mailbox: Mailbox) -> Self {
        Self {
            mailbox,
            applies: AtomicU32::new(0),
            before_apply: Mutex::default(),
            lies: false,
            loses_answer: AtomicBool::new(false),
            loses_request: AtomicBool::new(false),
            refuses_patches: false,
            records: Mutex::default(),
            applied: Mutex::default(),
        }
    }
}

impl Far {
    /// The far side after each package that was applied; cleared by whom it is of use to.
    pub fn applied(&self) -> std::sync::MutexGuard<'_, Vec<Mailbox>> {
        self.applied.lock().expect("lock")
    }
}

impl Destination for Far {
    fn name(&self) -> &str {
        "far"
    }

    fn inventory(&self, _: &str) -> sync::Result<RemoteInventory> {
        Ok(RemoteInventory {
            inventory: Inventory::read(&self.mailbox.pst())?,
            generation: Generation::of(self.mailbox.0.as_ref()).expect("hashes"),
        })
    }

    fn apply(&self, job: &ApplyJob<'_>, _: &mut dyn FnMut(u64, u64)) -> sync::Result<ApplyAnswer> {
        if let Some(disturb) = self.before_apply.lock().expect("lock").pop() {
            disturb(&self.mailbox);
        }
        let lost = |what: &str| {
            Err(SyncError::Destination {
                message: format!("the {what} was lost"),
                retry: true,
                offline: false,
            })
        };
        if self.loses_request.swap(false, Ordering::SeqCst) {
            return lost("request");
        }
        self.applies.fetch_add(1, Ordering::SeqCst);
        let digest = *blake3::hash(job.package).as_bytes();
        let mut records = self.records.lock().expect("lock");
        if let Some((sequence, (of, outcome))) = records.last_key_value() {
            if *sequence == job.sequence && *of == digest {
                let outcome = outcome.clone();
                if self.loses_answer.swap(false, Ordering::SeqCst) {
                    return lost("answer");
                }
                return Ok(ApplyAnswer::Applied(ApplyOutcome {
                    repeated: true,
                    ..outcome
                }));
            }
            if *sequence >= job.sequence {
                return Ok(ApplyAnswer::WrongBase);
            }
        }
        let file = &self.mailbox.0;
        if Generation::of(file.as_ref()).expect("hashes") != job.base {
            return Ok(ApplyAnswer::WrongBase);
        }
        let package = Package::decode(job.package)?;
        let is_patch = |c: &Change| matches!(&c.action, Action::Update { patch: Some(_), .. });
        if self.refuses_patches && package.changes.iter().any(is_patch) {
            return Ok(ApplyAnswer::Refused("no patches here".to_owned()));
        }
        let applied = match apply(Arc::clone(file) as Arc<dyn ReadAt>, &package) {
            Err(SyncError::WrongBase { .. }) => return Ok(ApplyAnswer::WrongBase),
            result => result?,
        };
        applied.write_set.commit(file.as_ref()).expect("commits");
        let mut inventory_digest = Inventory::read(&self.mailbox.pst())?.digest();
        if applied.nid_map.is_empty() {
            assert_eq!(
                inventory_digest, job.expected,
                "the client expects what comes out"
            );
        }
        if self.lies {
            inventory_digest[0] ^= 1;
        }
        let outcome = ApplyOutcome {
            inventory_digest,
            generation: Generation::of(file.as_ref()).expect("hashes"),
            nid_map: applied.nid_map,
            bytes_sent: job.package.len() as u64,
            repeated: false,
        };
        records.insert(job.sequence, (digest, outcome.clone()));
        self.applied().push(self.mailbox.twin());
        if self.loses_answer.swap(false, Ordering::SeqCst) {
            return lost("answer");
        }
        Ok(ApplyAnswer::Applied(outcome))
    }
}

/// Numbers as the journal gives them: the same digest gets the same one again, until it is answered.
#[derive(Default)]
pub struct Counter {
    last: u64,
    digest: Option<[u8; 32]>,
}

impl Sequencer for Counter {
    fn next(&mut self, digest: [u8; 32]) -> std::io::Result<u64> {
        if self.digest != Some(digest) {
            self.last += 1;
            self.digest = Some(digest);
        }
        Ok(self.last)
    }
}

/// The near side with its database.
pub struct Near {
    pub mailbox: Mailbox,
    pub database: SyncDatabase,
    pub sequence: Counter,
    /// The life of the near file.
    pub lineage: u64,
    /// The bytes that the near file started from, if they are known.
    pub started_from: Option<Generation>,
    /// The bytes as of the last mark, and its epoch.
    marked: (Vec<u8>, u64),
    /// The epoch of the last snapshot.
    pub epoch: u64,
    dir: TempDir,
}

impl Near {
    pub fn new(mailbox: Mailbox) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let started_from = Some(mailbox.generation());
        let marked = (mailbox.0.to_vec(), 0);
        let store = KvStore::open(&dir.path().join("db")).expect("opens");
        let database = SyncDatabase::new(store);
        Self {
            mailbox,
            database,
            sequence: Counter::default(),
            lineage: 1,
            started_from,
            marked,
            epoch: 10,
            dir,
        }
    }

    /// The sync database is lost.
    pub fn forget(&mut self) {
        let dir = tempfile::tempdir().expect("a directory");
        let store = KvStore::open(&dir.path().join("db")).expect("opens");
        self.database = SyncDatabase::new(store);
        self.dir = dir;
    }

    /// The daemon is started anew, on what lies on the disk.
    pub fn restart(&mut self) {
        self.forget_while(|_| ());
    }

    /// The database does not open, and a new one is begun beside what else lies there.
    pub fn lose_database(&mut self) {
        self.forget_while(|dir| {
            std::fs::remove_dir_all(dir.join("data")).expect("removes");
        });
    }

    fn forget_while(&mut self, meanwhile: impl FnOnce(&std::path::Path)) {
        let elsewhere = tempfile::tempdir().expect("a directory");
        let other = KvStore::open(&elsewhere.path().join("db")).expect("opens");
        self.database = SyncDatabase::new(other);
        meanwhile(&self.state_dir());
        let store = KvStore::open(&self.state_dir()).expect("opens");
        self.database = SyncDatabase::new(store);
    }

    /// Where the database lies.
    pub fn state_dir(&self) -> std::path::PathBuf {
        self.dir.path().join("db")
    }

    /// What lies in the database's directory of packages that are on their way.
    pub fn outgoing(&self) -> Vec<std::path::PathBuf> {
        let dir = self.state_dir().join("outgoing");
        let Ok(list) = std::fs::read_dir(dir) else {
            return Vec::new();
        };
        list.map(|entry| entry.expect("reads").path()).collect()
    }

    /// Other destinations were synced, and what was written until now is marked as synced.
    pub fn mark(&mut self) {
        self.epoch += 1;
        self.marked = (self.mailbox.0.to_vec(), self.epoch);
    }

    pub fn sync(&mut self, far: &Far) -> sync::Result<Report> {
        self.sync_with(far, Options::default())
    }

    pub fn sync_with(&mut self, far: &Far, options: Options) -> sync::Result<Report> {
        self.run(far, far, options)
    }

    /// Syncs to a destination that stands before `far`.
    pub fn sync_to(&mut self, before: &dyn Destination, far: &Far) -> sync::Result<Report> {
        self.run(before, far, Options::default())
    }

    fn run(
        &mut self,
        destination: &dyn Destination,
        far: &Far,
        options: Options,
    ) -> sync::Result<Report> {
        let started_from = self.started_from;
        let now = self.mailbox.0.to_vec();
        let written = differing(&self.marked.0, &now);
        self.epoch += 1;
        let source = Source {
            reader: Arc::new(MemStorage::from(now.clone())),
            lineage: self.lineage,
            epoch: self.epoch,
            written: &written,
            written_since: self.marked.1,
            is_base: &|| started_from == Some(far.mailbox.generation()),
        };
        let mut quiet = |_, _| {};
        let (database, sequence) = (&self.database, &mut self.sequence);
        let report = sync_container(
            "a.pst",
            &source,
            destination,
            database,
            sequence,
            options,
            &mut quiet,
        )?;
        self.marked = (now, self.epoch);
        self.sequence.digest = None;
        Ok(report)
    }
}

/// What a drive would have seen written between two versions.
fn differing(old: &[u8], new: &[u8]) -> RangeSet {
    let mut set = RangeSet::default();
    for (i, unit) in new.chunks(64).enumerate() {
        if old.get(i * 64..i * 64 + unit.len()) != Some(unit) {
            set.insert(i as u64 * 64..(i * 64 + unit.len()) as u64);
        }
    }
    set
}

pub fn pair(count: u32) -> (Near, Far) {
    let near = Mailbox::new(count);
    let far = Far::new(near.twin());
    (Near::new(near), far)
}

/// What is wrong with a file: its structures, and its tables against its nodes.
pub fn faults(pst: &Pst) -> Vec<String> {
    let findings = [
        pst::check::check(pst.ndb()),
        pst::check::check_ltp(pst.ndb()),
    ];
    let mut faults: Vec<String> = findings
        .iter()
        .flatten()
        .filter(|f| f.severity >= pst::check::Severity::Warning)
        .map(ToString::to_string)
        .collect();
    let index = pst.index().expect("an index");
    for folder in index.folders.keys() {
        let mut rows = |kind, mut there: Vec<u32>| {
            let nid = folder.with_kind(kind);
            let entry = pst.ndb().node(nid).expect("reads");
            let Some(entry) = entry else {
                return faults.push(format!("{folder} lacks {nid}"));
            };
            let table =
                TableContext::open(pst.ndb(), entry.bid_data, entry.bid_sub).expect("opens");
            let mut listed: Vec<u32> = table.row_ids().collect();
            listed.sort_unstable();
            there.sort_unstable();
            if listed != there {
                faults.push(format!("{nid} lists {listed:x?}, there are {there:x?}"));
            }
        };
        let messages = |associated| {
            let all = index.messages.get(folder).into_iter().flatten();
            all.filter(|m| m.associated == associated)
                .map(|m| m.nid.0)
                .collect()
        };
        rows(NidType::CONTENTS_TABLE, messages(false));
        rows(NidType::ASSOC_CONTENTS_TABLE, messages(true));
        let mut children: Vec<u32> = index
            .children
            .get(folder)
            .into_iter()
            .flatten()
            .map(|n| n.0)
            .collect();
        let search = index.raw.values();
        children.extend(
            search
                .filter(|e| e.nid.kind() == NidType::SEARCH_FOLDER && e.nid_parent == *folder)
                .map(|e| e.nid.0),
        );
        rows(NidType::HIERARCHY_TABLE, children);
        let count = pst
            .folder(*folder)
            .expect("reads")
            .props
            .i32(tags::CONTENT_COUNT);
        let messages: Vec<u32> = messages(false);
        if count.unwrap_or(0) as usize != messages.len() {
            faults.push(format!("{folder} counts {count:?} of {}", messages.len()));
        }
    }
    faults
}

/// The canonical dump.
pub fn lines(pst: &Pst) -> Vec<String> {
    let mut out = Vec::new();
    pst::dump::dump(pst, pst::dump::DumpOptions::default(), &mut |line| {
        out.push(line.to_owned());
        Ok(())
    })
    .expect("dumps");
    out
}
