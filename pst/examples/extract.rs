//! Saves all attachments of a PST, without holding one in memory:
//! `cargo run -p pstsyncd-pst --example extract -- mail.pst DIRECTORY`

use std::error::Error;
use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::sync::Arc;

use pst::messaging::{MessageData, for_each_chunk, tags};
use pst::{Nid, Pst, PstError};
use storage::FileStorage;

fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args().skip(1);
    let (Some(path), Some(target)) = (args.next(), args.next()) else {
        return Err("usage: extract FILE DIRECTORY".into());
    };
    let target = Path::new(&target);
    std::fs::create_dir_all(target)?;
    let pst = Pst::open(Arc::new(FileStorage::open_read_only(path)?))?;
    let mut count = 0;
    for folder in pst.folders()? {
        for entry in pst.messages_of(folder.nid)? {
            save(&pst.message(entry.nid)?, entry.nid, target, &mut count)?;
        }
    }
    println!("{count} attachments");
    Ok(())
}

fn save(
    message: &MessageData,
    nid: Nid,
    target: &Path,
    count: &mut u32,
) -> Result<(), Box<dyn Error>> {
    for attachment in &message.attachments {
        if let Some(inner) = &attachment.embedded {
            save(inner, nid, target, count)?;
            continue;
        }
        let Some(data) = attachment.props.get(tags::ATTACH_DATA) else {
            continue;
        };
        // A name from a file is not trusted: only letters, digits and dots of it are used.
        let name = attachment.props.str(tags::ATTACH_LONG_FILENAME);
        let name: String = name
            .unwrap_or_default()
            .chars()
            .filter(|c| c.is_alphanumeric() || *c == '.')
            .collect();
        let path = target.join(format!("{}-{count}-{name}", nid.index()));
        let mut file = File::create_new(path)?;
        for_each_chunk(data, &mut |chunk| {
            file.write_all(chunk)
                .map_err(|source| PstError::Io { offset: 0, source })
        })?;
        *count += 1;
    }
    Ok(())
}
