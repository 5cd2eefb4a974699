//! What the `outlook-pst` crate says of recipients: a second opinion beside libpff's, because libpst
//! does not show recipient tables. It opens Unicode files only, and not every message in them.

use std::path::Path;
use std::rc::Rc;

use outlook_pst::UnicodePstFile;
use outlook_pst::ltp::prop_context::PropertyValue;
use outlook_pst::messaging::message::{Message as _, UnicodeMessage};
use outlook_pst::messaging::store::{Store as _, UnicodeStore};
use outlook_pst::ndb::node_id::NodeId;
use pst::Nid;

use super::facts::{Bag, line};

/// Statements `subject|name|address|type` of the messages with these NIDs that the crate can read, and
/// how many messages those are.
pub fn recipients(path: &Path, messages: &[Nid]) -> (Bag, usize) {
    let (mut bag, mut read) = (Bag::new(), 0);
    let Ok(file) = UnicodePstFile::open(path) else {
        return (bag, read);
    };
    let Ok(store) = UnicodeStore::read(Rc::new(file)) else {
        return (bag, read);
    };
    for nid in messages {
        let entry = store.properties().make_entry_id(NodeId::from(nid.0));
        let message = entry.and_then(|e| UnicodeMessage::read(Rc::clone(&store), &e, None));
        if let Ok(message) = message
            && let Some(statements) = of_message(&message)
        {
            read += 1;
            for s in statements {
                *bag.entry(s).or_default() += 1;
            }
        }
    }
    (bag, read)
}

fn text(value: Option<&PropertyValue>) -> String {
    match value {
        Some(PropertyValue::Unicode(v)) => line(&v.to_string()),
        _ => String::new(),
    }
}

/// `None` where the crate gives a table up.
fn of_message(message: &UnicodeMessage) -> Option<Vec<String>> {
    let subject = text(message.properties().get(0x0037));
    let table = message.recipient_table()?;
    let columns = table.context().columns();
    let mut out = Vec::new();
    for row in table.rows_matrix() {
        let values = row.columns(table.context()).ok()?;
        let cell = |id: u16| {
            let at = columns.iter().position(|c| c.prop_id() == id)?;
            let value = values.get(at)?.as_ref()?;
            table.read_column(value, columns[at].prop_type()).ok()
        };
        let kind = match cell(0x0C15) {
            Some(PropertyValue::Integer32(1)) => "To",
            Some(PropertyValue::Integer32(2)) => "CC",
            Some(PropertyValue::Integer32(3)) => "BCC",
            _ => "Originator",
        };
        let (name, address) = (text(cell(0x3001).as_ref()), text(cell(0x3003).as_ref()));
        out.push(format!("{subject}|{name}|{address}|{kind}"));
    }
    Some(out)
}
