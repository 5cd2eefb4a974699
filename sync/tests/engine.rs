//! The sync engine against a destination in memory: what is sent, what is held back, and what is
//! believed.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

use pst::inventory::Inventory;
use pst::ltp::PropValue;
use pst::messaging::{MessageData, Transaction, tags};
use pst::{Nid, Pst};
use storage::{Generation, MemStorage, RangeSet, ReadAt, WriteAt};
use sync::kv::KvStore;
use sync::{
    ApplyAnswer, ApplyJob, ApplyOutcome, Destination, Options, Package, RemoteInventory, Report,
    Sequencer, Source, SyncDatabase, SyncError, apply, sync_container,
};
use tempfile::TempDir;

/// A PST in memory that a mail program works on.
#[derive(Clone)]
struct Mailbox(Arc<MemStorage>);

impl Mailbox {
    /// A folder with the messages m0, m1 and so on.
    fn new(count: u32) -> Self {
        let subjects: Vec<String> = (0..count).map(|i| format!("m{i}")).collect();
        Self::with_subjects(&subjects)
    }

    fn with_subjects<S: AsRef<str>>(subjects: &[S]) -> Self {
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

    /// Another file with the same bytes.
    fn twin(&self) -> Self {
        Self(Arc::new(MemStorage::from(self.0.to_vec())))
    }

    fn edit(&self, f: impl FnOnce(&mut Transaction)) {
        let mut tx = Transaction::begin(Arc::clone(&self.0) as Arc<dyn ReadAt>).expect("begins");
        f(&mut tx);
        tx.finish()
            .expect("finishes")
            .commit(self.0.as_ref())
            .expect("commits");
    }

    fn pst(&self) -> Pst {
        Pst::open(Arc::new(MemStorage::from(self.0.to_vec()))).expect("opens")
    }

    fn inbox(&self) -> Nid {
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
    fn mail(&self) -> Vec<(Nid, String)> {
        let pst = self.pst();
        let entries = pst.messages_of(self.inbox()).expect("lists");
        let subject = |nid| pst.message(nid).expect("reads").props.str(tags::SUBJECT);
        entries
            .iter()
            .map(|m| (m.nid, subject(m.nid).expect("a subject")))
            .collect()
    }

    fn subjects(&self) -> Vec<String> {
        let mut subjects: Vec<_> = self.mail().into_iter().map(|(_, s)| s).collect();
        subjects.sort();
        subjects
    }

    fn nid_of(&self, subject: &str) -> Nid {
        self.mail()
            .into_iter()
            .find(|(_, s)| s == subject)
            .expect("it is there")
            .0
    }

    fn add(&self, subject: &str) {
        let inbox = self.inbox();
        self.edit(|tx| {
            tx.add_message(inbox, None, &message(subject), false)
                .expect("adds");
        });
    }

    fn change(&self, subject: &str, new: &str) {
        let nid = self.nid_of(subject);
        let mut data = self.pst().message(nid).expect("reads");
        data.props.insert(PropValue::string(tags::SUBJECT, new));
        self.edit(|tx| tx.update_message(nid, &data).expect("updates"));
    }

    fn delete(&self, subject: &str) {
        let nid = self.nid_of(subject);
        self.edit(|tx| tx.delete_message(nid).expect("deletes"));
    }
}

fn message(subject: &str) -> MessageData {
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

type Disturbance = Box<dyn FnOnce(&Mailbox) + Send>;

/// The far side; it applies as an agent does, and can be told to misbehave.
struct Far {
    mailbox: Mailbox,
    applies: AtomicU32,
    /// What happens at the far side right before an apply.
    before_apply: Mutex<Vec<Disturbance>>,
    /// Answers a digest of something else.
    lies: bool,
}

impl Far {
    fn new(mailbox: Mailbox) -> Self {
        Self {
            mailbox,
            applies: AtomicU32::new(0),
            before_apply: Mutex::default(),
            lies: false,
        }
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
        self.applies.fetch_add(1, Ordering::SeqCst);
        let file = &self.mailbox.0;
        if Generation::of(file.as_ref()).expect("hashes") != job.base {
            return Ok(ApplyAnswer::WrongBase);
        }
        let package = Package::decode(job.package)?;
        let applied = apply(Arc::clone(file) as Arc<dyn ReadAt>, &package)?;
        applied.write_set.commit(file.as_ref()).expect("commits");
        let mut digest = Inventory::read(&self.mailbox.pst())?.digest();
        if applied.nid_map.is_empty() {
            assert_eq!(digest, job.expected, "the client expects what comes out");
        }
        if self.lies {
            digest[0] ^= 1;
        }
        Ok(ApplyAnswer::Applied(ApplyOutcome {
            inventory_digest: digest,
            generation: Generation::of(file.as_ref()).expect("hashes"),
            nid_map: applied.nid_map,
            bytes_sent: job.package.len() as u64,
            repeated: false,
        }))
    }
}

struct Counter(u64);

impl Sequencer for Counter {
    fn next(&mut self, _: [u8; 32]) -> std::io::Result<u64> {
        self.0 += 1;
        Ok(self.0)
    }
}

/// The near side with its database.
struct Near {
    mailbox: Mailbox,
    database: SyncDatabase,
    sequence: Counter,
    attached: Option<Generation>,
    /// The bytes as of the last mark.
    marked: Vec<u8>,
    epoch: u64,
    _dir: TempDir,
}

impl Near {
    fn new(mailbox: Mailbox) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let store = KvStore::open(&dir.path().join("db")).expect("opens");
        let database = SyncDatabase::new(store);
        let marked = mailbox.0.to_vec();
        let attached = Generation::of(mailbox.0.as_ref()).expect("hashes");
        Self {
            mailbox,
            database,
            sequence: Counter(0),
            attached: Some(attached),
            marked,
            epoch: 10,
            _dir: dir,
        }
    }

    fn sync(&mut self, far: &Far) -> sync::Result<Report> {
        self.sync_with(far, Options::default())
    }

    fn sync_with(&mut self, far: &Far, options: Options) -> sync::Result<Report> {
        // As the drive tells it: until the first object sync, and while nobody touches the far
        // file, its bytes are those that ours started from.
        let base = self.attached;
        let is_base = || base == Some(Generation::of(far.mailbox.0.as_ref()).expect("hashes"));
        let now = self.mailbox.0.to_vec();
        let written = differing(&self.marked, &now);
        let source = Source {
            reader: Arc::new(MemStorage::from(now.clone())),
            lineage: 1,
            epoch: self.epoch,
            written: &written,
            is_base: &is_base,
        };
        let mut quiet = |_, _| {};
        let (database, sequence) = (&self.database, &mut self.sequence);
        let report = sync_container(
            "a.pst", &source, far, database, sequence, options, &mut quiet,
        )?;
        self.attached = None;
        self.marked = now;
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

fn pair(count: u32) -> (Near, Far) {
    let near = Mailbox::new(count);
    let far = Far::new(near.twin());
    (Near::new(near), far)
}

#[test]
fn changes_reach_the_far_side_once() {
    let (mut near, far) = pair(5);
    near.mailbox.add("new");
    near.mailbox.change("m1", "changed");
    near.mailbox.delete("m2");
    let report = near.sync(&far).expect("syncs");
    let counts = report.counts;
    assert_eq!((counts.added, counts.updated, counts.deleted), (1, 1, 1));
    assert_eq!(far.mailbox.subjects(), near.mailbox.subjects());

    near.mailbox.add("second");
    let report = near.sync(&far).expect("syncs");
    assert_eq!(
        report.counts.added, 1,
        "only what is new since: {:?}",
        report.counts
    );
    assert_eq!(report.counts.updated + report.counts.deleted, 0);
    assert_eq!(far.mailbox.subjects(), near.mailbox.subjects());
}

#[test]
fn unknown_is_not_absent() {
    let (mut near, far) = pair(5);
    near.attached = None;
    near.mailbox.delete("m2");
    near.mailbox.add("new");
    let report = near.sync(&far).expect("syncs");
    assert_eq!((report.counts.deleted, report.held_deletes), (0, 1));
    assert!(
        far.mailbox.subjects().contains(&"m2".to_owned()),
        "nothing proves it was ours"
    );
    assert!(far.mailbox.subjects().contains(&"new".to_owned()));
    // And it stays so: what was once held back is not deleted by a later run either.
    near.mailbox.add("later");
    let report = near.sync(&far).expect("syncs");
    assert_eq!(report.counts.deleted, 0);
    assert!(far.mailbox.subjects().contains(&"m2".to_owned()));
}

#[test]
fn others_mail_is_left_alone_even_under_the_same_nid() {
    let (mut near, far) = pair(3);
    near.sync(&far).expect("syncs");
    // Both sides hand out the same next NID.
    near.mailbox.add("ours");
    far.mailbox.add("theirs");
    assert_eq!(near.mailbox.nid_of("ours"), far.mailbox.nid_of("theirs"));
    let report = near.sync(&far).expect("syncs");
    assert_eq!(report.drift, 1, "{report:?}");
    let there = far.mailbox.subjects();
    assert_eq!(there, ["m0", "m1", "m2", "ours", "theirs"]);
    assert_ne!(near.mailbox.nid_of("ours"), far.mailbox.nid_of("ours"));

    // The remapped object is found again: changed, then deleted.
    near.mailbox.change("ours", "ours, changed");
    near.sync(&far).expect("syncs");
    assert_eq!(
        far.mailbox.subjects(),
        ["m0", "m1", "m2", "ours, changed", "theirs"]
    );
    near.mailbox.delete("ours, changed");
    near.sync(&far).expect("syncs");
    assert_eq!(far.mailbox.subjects(), ["m0", "m1", "m2", "theirs"]);
}

#[test]
fn what_others_change_in_the_middle_is_noticed() {
    let (mut near, far) = pair(3);
    near.sync(&far).expect("syncs");
    near.mailbox.add("ours");
    far.before_apply
        .lock()
        .expect("lock")
        .push(Box::new(|far| far.add("theirs")));
    near.sync(&far)
        .expect("the second answer is made from what is there");
    assert_eq!(far.mailbox.subjects(), ["m0", "m1", "m2", "ours", "theirs"]);

    near.mailbox.add("ours 2");
    for subject in ["a", "b"] {
        let disturb = move |far: &Mailbox| far.add(subject);
        far.before_apply
            .lock()
            .expect("lock")
            .push(Box::new(disturb));
    }
    let error = near.sync(&far).expect_err("it changes too fast");
    assert!(error.retryable(), "{error}");
    near.sync(&far).expect("syncs");
    assert_eq!(
        far.mailbox.subjects(),
        ["a", "b", "m0", "m1", "m2", "ours", "ours 2", "theirs"]
    );
}

#[test]
fn an_object_deleted_here_and_changed_there_is_kept() {
    let (mut near, far) = pair(3);
    near.sync(&far).expect("syncs");
    near.mailbox.delete("m1");
    far.mailbox.change("m1", "edited there");
    let report = near.sync(&far).expect("syncs");
    assert_eq!(report.counts.deleted, 0);
    assert_eq!(far.mailbox.subjects(), ["edited there", "m0", "m2"]);
}

#[test]
fn a_lost_answer_is_found_out() {
    let (mut near, far) = pair(3);
    near.sync(&far).expect("syncs");
    near.mailbox.add("sent");
    // Applied there, but this side never heard of it.
    far.mailbox.add("sent");
    near.sync(&far).expect("syncs");
    assert_eq!(
        far.mailbox.subjects(),
        ["m0", "m1", "m2", "sent"],
        "not twice"
    );
}

#[test]
fn a_lying_destination_is_not_believed() {
    let (mut near, mut far) = pair(3);
    near.mailbox.add("new");
    far.lies = true;
    let error = near.sync(&far).expect_err("not verified");
    assert!(matches!(error, SyncError::NotVerified), "{error}");
    far.lies = false;
    let report = near.sync(&far).expect("syncs");
    assert!(far.mailbox.subjects().contains(&"new".to_owned()));
    assert_eq!(report.counts.added, 0, "it had arrived");
}

#[test]
fn a_wave_of_deletes_needs_a_word() {
    let (mut near, far) = pair(30);
    near.sync(&far).expect("syncs");
    for i in 0..30 {
        near.mailbox.delete(&format!("m{i}"));
    }
    let before = far.applies.load(Ordering::SeqCst);
    let error = near.sync(&far).expect_err("it asks first");
    assert!(
        matches!(error, SyncError::TooManyDeletes { deletes: 30, .. }),
        "{error}"
    );
    assert_eq!(
        far.applies.load(Ordering::SeqCst),
        before,
        "nothing was sent"
    );
    let options = Options {
        allow_deletes: true,
        ..Options::default()
    };
    near.sync_with(&far, options).expect("it is meant");
    assert!(far.mailbox.subjects().is_empty());
}

#[test]
fn another_pst_copied_over_this_one_is_seen_as_it_is() {
    let (mut near, far) = pair(3);
    near.sync(&far).expect("syncs");
    // Made by the same steps, so every NID and BID is the same; only the mail is another.
    let other = Mailbox::with_subjects(&["x0", "x1", "x2"]);
    near.mailbox.0.set_len(0).expect("cuts");
    near.mailbox
        .0
        .write_all_at(0, &other.0.to_vec())
        .expect("writes");
    near.sync(&far).expect("syncs");
    assert_eq!(far.mailbox.subjects(), ["x0", "x1", "x2"]);
}

#[test]
fn a_side_that_lost_its_latest_epoch_deletes_nothing() {
    let (mut near, far) = pair(3);
    let older = near.mailbox.twin();
    near.mailbox.add("new");
    near.sync(&far).expect("syncs");
    // The disk forgot: the file and its epoch are those of before.
    near.mailbox = older;
    near.epoch = 5;
    let report = near.sync(&far).expect("syncs");
    assert_eq!(report.counts.deleted, 0, "{report:?}");
    assert_eq!(far.mailbox.subjects(), ["m0", "m1", "m2", "new"]);
}
