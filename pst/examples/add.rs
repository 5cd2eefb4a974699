//! Adds a message to a PST, so that a crash at any moment leaves it as it was or with the message:
//! `cargo run -p pstsyncd-pst --example add -- mail.pst "Subject" "Text"`
//!
//! Nothing else may write to the file meanwhile; a file that is not there is made.

use std::error::Error;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use pst::check::{Severity, check, check_ltp};
use pst::ltp::{PropBag, PropValue};
use pst::messaging::{MessageData, Pst, Transaction, tags};
use storage::{FileStorage, ReadAt, WriteAt};

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [path, subject, text] = args.as_slice() else {
        return Err("usage: add FILE SUBJECT TEXT".into());
    };
    // 100 ns since 1601, and something that no other message has.
    let since = SystemTime::now().duration_since(UNIX_EPOCH)?;
    let time = u64::try_from(since.as_nanos() / 100)? + 116_444_736_000_000_000;
    let key = unique(subject, time);

    let file = if std::fs::exists(path)? {
        FileStorage::open(path)?
    } else {
        let file = FileStorage::create_new(path)?;
        file.write_all_at(0, &pst::create_empty(&key)?)?;
        file.sync()?;
        file
    };
    let file = Arc::new(file);
    let mut message = MessageData {
        props: PropBag::from_iter([
            PropValue::string(tags::SUBJECT, subject),
            PropValue::string(tags::BODY, text),
            PropValue::time(tags::MESSAGE_DELIVERY_TIME, time),
        ]),
        ..MessageData::default()
    };
    message.complete(time, key);

    let mut tx = Transaction::begin(Arc::clone(&file) as Arc<dyn ReadAt>)?;
    let folder = tx.ipm_subtree()?;
    let nid = tx.add_message(folder, None, &message, false)?;
    let change = tx.finish()?; // nothing was written until here
    change.commit(&*file)?; // in phases, each flushed; every cut is a valid PST

    let pst = Pst::open(file)?;
    let errors = check(pst.ndb()).into_iter().chain(check_ltp(pst.ndb()));
    let errors = errors.filter(|f| f.severity == Severity::Error).count();
    println!("message {nid} in folder {folder}; {errors} errors in the file");
    Ok(())
}

fn unique(subject: &str, time: u64) -> [u8; 16] {
    let mut h = blake3::Hasher::new();
    h.update(subject.as_bytes());
    h.update(&time.to_le_bytes());
    h.update(&std::process::id().to_le_bytes());
    let mut key = [0; 16];
    h.finalize_xof().fill(&mut key);
    key
}
