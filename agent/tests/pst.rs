//! The whole way with real PSTs: change list and carrier, TLS, lease, apply, re-read, verified.
#![allow(clippy::unwrap_used)]

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use agent::PstEngine;
use common::config;
use pst::dump::{DumpOptions, dump};
use pst::ltp::PropValue;
use pst::messaging::{MessageData, Transaction, tags};
use pst::{Nid, Pst};
use storage::{FileStorage, MemStorage, RangeSet, ReadAt};
use sync::client::{AgentClient, Timeouts, load_invitation};
use sync::kv::KvStore;
use sync::{
    AgentDestination, Options, Report, Sequencer, Source, SyncDatabase, Verdict, sync_container,
};

struct Counter(u64);

impl Sequencer for Counter {
    fn next(&mut self, _: [u8; 32]) -> std::io::Result<u64> {
        self.0 += 1;
        Ok(self.0)
    }
}

fn message(subject: &str) -> MessageData {
    let props = [
        PropValue::string(tags::MESSAGE_CLASS, "IPM.Note"),
        PropValue::string(tags::SUBJECT, subject),
        PropValue::binary(
            tags::SEARCH_KEY,
            &blake3::hash(subject.as_bytes()).as_bytes()[..16],
        ),
        PropValue::i32(tags::MESSAGE_FLAGS, 1),
    ];
    MessageData {
        props: props.into_iter().collect(),
        ..MessageData::default()
    }
}

fn edit<T>(file: &Arc<MemStorage>, f: impl FnOnce(&mut Transaction) -> T) -> T {
    let mut tx = Transaction::begin(Arc::clone(file) as Arc<dyn ReadAt>).unwrap();
    let out = f(&mut tx);
    tx.finish().unwrap().commit(file.as_ref()).unwrap();
    out
}

fn lines(base: Arc<dyn ReadAt>) -> Vec<String> {
    let mut lines = Vec::new();
    let mut emit = |line: &str| {
        lines.push(line.to_owned());
        Ok(())
    };
    dump(&Pst::open(base).unwrap(), DumpOptions::default(), &mut emit).unwrap();
    lines
}

#[test]
fn mail_reaches_the_pst_on_the_share_also_over_a_crash() {
    let local = Arc::new(MemStorage::from(pst::create_empty(&[7; 16]).unwrap()));
    let inbox: Nid = edit(&local, |tx| {
        let root = tx.ipm_subtree().unwrap();
        let name = [PropValue::string(tags::DISPLAY_NAME, "Inbox")]
            .into_iter()
            .collect();
        let inbox = tx.create_folder(root, None, &name).unwrap();
        for i in 0..5 {
            tx.add_message(inbox, None, &message(&format!("m{i}")), false)
                .unwrap();
        }
        inbox
    });
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("root")).unwrap();
    let remote = dir.path().join("root/mail.pst");
    std::fs::write(&remote, local.to_vec()).unwrap();

    let crash = Arc::new(AtomicBool::new(false));
    let flag = Arc::clone(&crash);
    let mut config = config(dir.path());
    config.steps = Some(Arc::new(move |step| {
        assert!(
            step != "logged" || !flag.load(Ordering::SeqCst),
            "as the test wants"
        );
    }));
    let runtime = common::runtime();
    let agent = runtime
        .block_on(agent::start(
            config,
            Arc::new(PstEngine::with_scratch(dir.path())),
        ))
        .unwrap();
    let invitation = load_invitation(agent.invitation().unwrap()).unwrap();
    let client = AgentClient::new(&invitation, Timeouts::default()).unwrap();
    let destination = AgentDestination::new(client, [9; 16], "share".to_owned());
    let database = SyncDatabase::new(KvStore::open(&dir.path().join("db")).unwrap());
    let mut sequence = Counter(0);
    let mut sync = || -> sync::Result<Report> {
        let source = Source {
            reader: Arc::new(MemStorage::from(local.to_vec())),
            lineage: 1,
            epoch: 1,
            written: &RangeSet::from(0..u64::MAX),
            written_since: 0,
            is_base: &|| true,
        };
        let mut nothing = |_: u64, _: u64| {};
        let options = Options {
            now_ms: 1,
            ..Options::default()
        };
        let container = "mail.pst";
        sync_container(
            container,
            &source,
            &destination,
            &database,
            &mut sequence,
            options,
            &mut nothing,
        )
    };
    let equal = || {
        let there = Arc::new(FileStorage::open_read_only(&remote).unwrap());
        assert_eq!(lines(Arc::clone(&local) as Arc<dyn ReadAt>), lines(there));
    };

    edit(&local, |tx| {
        let nid = tx.add_message(inbox, None, &message("new"), false).unwrap();
        tx.update_message(nid, &message("newer")).unwrap();
    });
    let report = sync().unwrap();
    assert_eq!(report.verdict, Verdict::Verified);
    assert!(report.bytes_sent > 0 && report.bytes_sent < report.container_bytes / 10);
    equal();

    // A crash in the middle: the next run finds the change finished, and what came since.
    edit(&local, |tx| {
        tx.add_message(inbox, None, &message("cut short"), false)
            .unwrap()
    });
    crash.store(true, Ordering::SeqCst);
    sync().unwrap_err();
    crash.store(false, Ordering::SeqCst);
    edit(&local, |tx| {
        tx.add_message(inbox, None, &message("later"), false)
            .unwrap()
    });
    assert_eq!(sync().unwrap().verdict, Verdict::Verified);
    equal();

    // In use there: deferred, nothing lost.
    edit(&local, |tx| {
        tx.add_message(inbox, None, &message("last"), false)
            .unwrap()
    });
    let open = std::fs::File::open(&remote).unwrap();
    assert_eq!(sync().unwrap().verdict, Verdict::Deferred);
    drop(open);
    assert_eq!(sync().unwrap().verdict, Verdict::Verified);
    equal();
    runtime.block_on(agent.stop()).unwrap();
}
