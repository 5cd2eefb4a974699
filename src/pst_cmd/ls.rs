//! `pst ls`: the folders of a PST with their counts, and with `-l` their messages.
//!
//! A folder or message that cannot be read is shown as such, and the list goes on; the command then ends
//! with an error. Memory grows with the folders of the file, not with its messages.

use std::path::Path;

use pst::ltp::{PropValue, filetime_iso};
use pst::messaging::{FolderTree, MessageEntry, Step, tags};
use pst::{Nid, Pst, PstError};
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
enum Item<'a> {
    Folder(FolderItem<'a>),
    Message(MessageItem<'a>),
    Associated(MessageItem<'a>),
}

#[derive(Serialize)]
struct FolderItem<'a> {
    path: &'a [String],
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
struct MessageItem<'a> {
    path: &'a [String],
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

/// One folder on the way: how deep it lies, what it is called, what its properties said.
struct Here {
    nid: Nid,
    /// Folders above it, the root folder not counted; none for that one itself.
    depth: Option<usize>,
    name: String,
    unread: Option<i32>,
    error: Option<String>,
}

/// What ends a list before its end.
enum Stop {
    Pst(PstError),
    User(UserError),
}

impl From<PstError> for Stop {
    fn from(error: PstError) -> Self {
        Self::Pst(error)
    }
}

pub(super) fn run(path: &Path, long: bool, out: &mut Output) -> Outcome {
    let pst = open(path)?;
    let tree = pst.folder_tree().map_err(|e| explain(path, &e))?;
    let folders = in_order(&pst, &tree);
    let order: Vec<Nid> = folders.iter().map(|f| f.nid).collect();
    let mut list = List {
        pst: &pst,
        tree: &tree,
        path: Vec::new(),
        unreadable: 0,
        out,
    };
    let mut rest = folders.into_iter();
    if long {
        let done = pst.each_message(&tree, &order, &mut |step| match step {
            Step::Folder(folder) => {
                for here in rest.by_ref() {
                    let reached = here.nid == folder.folder.nid;
                    list.folder(here).map_err(Stop::User)?;
                    if reached {
                        break;
                    }
                }
                Ok(())
            }
            Step::Message(message) => list.message(message).map_err(Stop::User),
        });
        done.map_err(|stop| match stop {
            Stop::Pst(e) => explain(path, &e),
            Stop::User(e) => e,
        })?;
    }
    for here in rest {
        list.folder(here)?;
    }
    let unreadable = list.unreadable;
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

/// The folders depth first, by name.
fn in_order(pst: &Pst, tree: &FolderTree) -> Vec<Here> {
    let mut order = Vec::with_capacity(tree.folders.len());
    // A stack, because a file may nest folders deeper than ours is.
    let mut waiting = vec![look(pst, tree, Nid::ROOT_FOLDER, None)];
    while let Some(here) = waiting.pop() {
        let children = tree.children.get(&here.nid).map_or(&[][..], Vec::as_slice);
        let depth = Some(here.depth.map_or(0, |d| d + 1));
        let mut below: Vec<_> = children
            .iter()
            .map(|nid| look(pst, tree, *nid, depth))
            .collect();
        // The last is taken first.
        below.sort_by(|a, b| (&b.name, b.nid).cmp(&(&a.name, a.nid)));
        waiting.append(&mut below);
        order.push(here);
    }
    order
}

fn look(pst: &Pst, tree: &FolderTree, nid: Nid, depth: Option<usize>) -> Here {
    let read = || -> pst::Result<(String, Option<i32>)> {
        let Some(folder) = tree.folders.get(&nid) else {
            return Ok((String::new(), None));
        };
        let props = context(pst, &folder.folder.entry)?;
        let get = |id| props.get(id).ok().flatten();
        let name = text(get(tags::DISPLAY_NAME), page_of(pst, get)).unwrap_or_default();
        Ok((name, get(tags::CONTENT_UNREAD).and_then(|v| v.as_i32())))
    };
    let (name, unread, error) = match read() {
        Ok((name, unread)) => (name, unread, None),
        Err(error) => (format!("({nid})"), None, Some(error.to_string())),
    };
    Here {
        nid,
        depth,
        name,
        unread,
        error,
    }
}

/// The list as far as it was shown.
struct List<'a> {
    pst: &'a Pst,
    tree: &'a FolderTree,
    /// Of the folder that was shown last; without the root folder.
    path: Vec<String>,
    unreadable: u64,
    out: &'a mut Output,
}

impl List<'_> {
    fn folder(&mut self, here: Here) -> Result<(), UserError> {
        self.unreadable += u64::from(here.error.is_some());
        self.path.truncate(here.depth.unwrap_or(0));
        if here.depth.is_some() {
            self.path.push(here.name);
        }
        let counted = self.tree.folders.get(&here.nid);
        let item = FolderItem {
            path: &self.path,
            nid: here.nid.to_string(),
            messages: counted.map_or(0, |f| f.messages),
            associated: counted.map_or(0, |f| f.associated),
            unread: here.unread,
            error: here.error,
        };
        show_folder(item, self.out)
    }

    fn message(&mut self, message: &MessageEntry) -> Result<(), UserError> {
        let item = read_message(self.pst, message, &self.path);
        self.unreadable += u64::from(item.error.is_some());
        show_message(item, message.associated, self.out)
    }
}

fn read_message<'a>(pst: &Pst, message: &MessageEntry, path: &'a [String]) -> MessageItem<'a> {
    let item = MessageItem {
        path,
        nid: message.nid.to_string(),
        ..Default::default()
    };
    let read = || -> pst::Result<MessageItem<'a>> {
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
            path,
            nid: item.nid.clone(),
            error: None,
        })
    };
    read().unwrap_or_else(|e| MessageItem {
        error: Some(e.to_string()),
        ..item
    })
}

fn show_folder(folder: FolderItem<'_>, out: &mut Output) -> Result<(), UserError> {
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

fn show_message(
    item: MessageItem<'_>,
    associated: bool,
    out: &mut Output,
) -> Result<(), UserError> {
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
