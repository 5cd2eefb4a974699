//! `pst ls`: the folders of a PST with their counts, and with `-l` their messages.
//!
//! A folder or message that cannot be read is shown as such, and the list goes on; the command then ends
//! with an error.

use std::path::Path;

use pst::ltp::{PropValue, filetime_iso};
use pst::messaging::{Index, MessageEntry, tags};
use pst::{Nid, Pst};
use serde::Serialize;

use super::{context, explain, open, page_of, text, without_prefix_mark};
use crate::error::{Outcome, UserError};
use crate::exit::ExitStatus;
use crate::output::{Output, clean, count, size};

/// PidTagSenderName.
const SENDER_NAME: u16 = 0x0C1A;
/// PidTagMessageDeliveryTime.
const DELIVERY_TIME: u16 = 0x0E06;
/// PidTagLastModificationTime, for what was never delivered.
const MODIFIED: u16 = 0x3008;

#[derive(Serialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
enum Item {
    Folder(FolderItem),
    Message(MessageItem),
    Associated(MessageItem),
}

#[derive(Serialize)]
struct FolderItem {
    path: Vec<String>,
    nid: String,
    /// Found in the folder.
    messages: u64,
    /// Found in the folder.
    associated: u64,
    /// As the folder's own counter says.
    unread: Option<i32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

#[derive(Serialize, Default)]
struct MessageItem {
    path: Vec<String>,
    nid: String,
    class: Option<String>,
    subject: Option<String>,
    from: Option<String>,
    date: Option<String>,
    size: Option<i32>,
    attachments: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

/// One folder on the way: where it lies, what it is called, what its properties said.
struct Here {
    nid: Nid,
    path: Vec<String>,
    unread: Option<i32>,
    error: Option<String>,
}

pub(super) fn run(path: &Path, long: bool, out: &mut Output) -> Outcome {
    let pst = open(path)?;
    let index = pst.index().map_err(|e| explain(path, &e))?;
    let mut unreadable = 0u64;
    // Depth first, by name; a stack, because a file may nest folders deeper than ours is.
    let mut waiting = vec![look(&pst, &index, Nid::ROOT_FOLDER, &[])];
    while let Some(here) = waiting.pop() {
        unreadable += u64::from(here.error.is_some());
        let messages = index.messages.get(&here.nid).map_or(&[][..], Vec::as_slice);
        let associated = messages.iter().filter(|m| m.associated).count() as u64;
        let folder = FolderItem {
            path: here.path.clone(),
            nid: here.nid.to_string(),
            messages: messages.len() as u64 - associated,
            associated,
            unread: here.unread,
            error: here.error,
        };
        show_folder(folder, out)?;
        if long {
            for message in messages {
                let item = read_message(&pst, message, &here.path);
                unreadable += u64::from(item.error.is_some());
                show_message(item, message.associated, out)?;
            }
        }
        let children = index.children.get(&here.nid).map_or(&[][..], Vec::as_slice);
        let mut below: Vec<_> = children
            .iter()
            .map(|nid| look(&pst, &index, *nid, &here.path))
            .collect();
        // The last is taken first.
        below.sort_by(|a, b| (&b.path, b.nid).cmp(&(&a.path, a.nid)));
        waiting.append(&mut below);
    }
    if unreadable == 0 {
        return Ok(ExitStatus::Synced);
    }
    Err(UserError::new(
        "pst-damaged",
        format!(
            "{} of the objects in {} cannot be read",
            count(unreadable),
            path.display()
        ),
        "see what is wrong with pstsyncd pst check, and restore the file from a backup",
    ))
}

fn look(pst: &Pst, index: &Index, nid: Nid, above: &[String]) -> Here {
    let mut path = above.to_vec();
    let is_root = nid == Nid::ROOT_FOLDER;
    match index
        .folders
        .get(&nid)
        .map(|f| context(pst, &f.entry))
        .transpose()
    {
        Ok(props) => {
            let get = |id| props.as_ref().and_then(|p| p.get(id).ok().flatten());
            let name = text(get(tags::DISPLAY_NAME), page_of(pst, get));
            if !is_root {
                path.push(name.unwrap_or_default());
            }
            let unread = get(tags::CONTENT_UNREAD).and_then(|v| v.as_i32());
            Here {
                nid,
                path,
                unread,
                error: None,
            }
        }
        Err(error) => {
            if !is_root {
                path.push(format!("({nid})"));
            }
            Here {
                nid,
                path,
                unread: None,
                error: Some(error.to_string()),
            }
        }
    }
}

fn read_message(pst: &Pst, message: &MessageEntry, folder: &[String]) -> MessageItem {
    let item = MessageItem {
        path: folder.to_vec(),
        nid: message.nid.to_string(),
        ..Default::default()
    };
    let read = || -> pst::Result<MessageItem> {
        let props = context(pst, &message.entry)?;
        let get = |id| props.get(id);
        let page = page_of(pst, |id| get(id).ok().flatten());
        let time = |value: Option<PropValue>| value.and_then(|v| v.as_filetime());
        let date = match time(get(DELIVERY_TIME)?) {
            Some(date) => Some(date),
            None => time(get(MODIFIED)?),
        };
        Ok(MessageItem {
            class: text(get(tags::MESSAGE_CLASS)?, page),
            subject: text(get(tags::SUBJECT)?, page).map(|s| without_prefix_mark(&s).to_owned()),
            from: text(get(SENDER_NAME)?, page),
            date: date.map(filetime_iso),
            size: get(tags::MESSAGE_SIZE)?.and_then(|v| v.as_i32()),
            attachments: get(tags::MESSAGE_FLAGS)?
                .and_then(|v| v.as_i32())
                .map(|flags| flags & tags::FLAG_HAS_ATTACH != 0),
            path: item.path.clone(),
            nid: item.nid.clone(),
            error: None,
        })
    };
    read().unwrap_or_else(|e| MessageItem {
        error: Some(e.to_string()),
        ..item
    })
}

fn show_folder(folder: FolderItem, out: &mut Output) -> Result<(), UserError> {
    if out.is_json() {
        return out.json(&Item::Folder(folder));
    }
    let indent = "  ".repeat(folder.path.len());
    let name = folder.path.last().map_or("(root)", String::as_str);
    let mut line = format!(
        "{indent}{}/  {} messages",
        clean(name),
        count(folder.messages)
    );
    if let Some(unread @ 1..) = folder.unread {
        line.push_str(&format!(", {unread} unread"));
    }
    if folder.associated > 0 {
        line.push_str(&format!(", {} associated", count(folder.associated)));
    }
    if let Some(error) = &folder.error {
        line.push_str(&format!("  (unreadable: {})", clean(error)));
    }
    out.line(line)
}

fn show_message(item: MessageItem, associated: bool, out: &mut Output) -> Result<(), UserError> {
    if out.is_json() {
        return out.json(&if associated {
            Item::Associated(item)
        } else {
            Item::Message(item)
        });
    }
    let indent = "  ".repeat(item.path.len() + 1);
    if let Some(error) = &item.error {
        return out.line(format_args!(
            "{indent}{}  (unreadable: {})",
            item.nid,
            clean(error)
        ));
    }
    let date = item
        .date
        .as_deref()
        .and_then(|d| d.get(..16))
        .unwrap_or("                ");
    let what = match (&item.subject, &item.class) {
        (Some(subject), _) if !subject.is_empty() => subject.clone(),
        (_, Some(class)) => format!("({class})"),
        _ => "(no subject)".to_owned(),
    };
    let mut line = format!("{indent}{date}  {}", clean(&what));
    if let Some(from) = &item.from {
        line.push_str(&format!("  from {}", clean(from)));
    }
    if let Some(bytes) = item.size.and_then(|s| u64::try_from(s).ok()) {
        line.push_str(&format!("  {}", size(bytes)));
    }
    if item.attachments == Some(true) {
        line.push_str("  +attachments");
    }
    out.line(line)
}
