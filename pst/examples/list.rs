//! Lists the folders and messages of a PST:
//! `cargo run -p pstsyncd-pst --example list -- mail.pst`

use std::error::Error;
use std::sync::Arc;

use pst::Pst;
use pst::messaging::tags;
use storage::FileStorage;

fn main() -> Result<(), Box<dyn Error>> {
    let path = std::env::args().nth(1).ok_or("usage: list FILE")?;
    let pst = Pst::open(Arc::new(FileStorage::open_read_only(path)?))?;
    for folder in pst.folders()? {
        let name = pst.folder(folder.nid)?.props.str(tags::DISPLAY_NAME);
        println!("{} {}", folder.nid, name.unwrap_or_default());
        for entry in pst.messages_of(folder.nid)? {
            let message = pst.message(entry.nid)?;
            println!(
                "    {} {} ({} recipients, {} attachments)",
                entry.nid,
                message.props.str(tags::SUBJECT).unwrap_or_default(),
                message.recipients.len(),
                message.attachments.len()
            );
        }
    }
    Ok(())
}
