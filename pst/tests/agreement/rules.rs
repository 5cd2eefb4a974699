//! Where the other readers' programs say less than, or something else than, the engine, and why.
//! Each rule is explained under its name in docs/COMPATIBILITY.md.

use super::facts::*;
use super::ours::Known;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Reader {
    Libpff,
    Libpst,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Side {
    /// We say it, the reader does not.
    OursAlone,
    /// The reader says it, we do not.
    TheirsAlone,
}

pub struct Rule {
    /// The heading in docs/COMPATIBILITY.md.
    pub name: &'static str,
    pub reader: Reader,
    pub side: Side,
    /// Whether the rule explains a statement of a facet.
    pub explains: fn(&Known, &Facts, &str, &str) -> bool,
}

const fn rule(
    name: &'static str,
    reader: Reader,
    side: Side,
    explains: fn(&Known, &Facts, &str, &str) -> bool,
) -> Rule {
    Rule {
        name,
        reader,
        side,
        explains,
    }
}

fn any(known: &Known, statement: &str, classes: &[&str]) -> bool {
    classes.iter().any(|c| known.is(statement, c))
}

const CONTACTS: [&str; 2] = ["IPM.CONTACT", "IPM.DISTLIST"];
/// Appointments, meeting requests and answers, and exceptions of recurring appointments.
const CALENDAR: [&str; 3] = ["IPM.APPOINTMENT", "IPM.SCHEDULE.MEETING", "IPM.OLE.CLASS."];

/// The item that a statement of a body is about.
fn item(statement: &str) -> &str {
    statement
        .rsplit_once('|')
        .map_or(statement, |(item, _)| item)
}

/// Whether an item of these classes lies in the folder of a statement.
fn in_folder_of(known: &Known, facts: &Facts, statement: &str, classes: &[&str]) -> bool {
    let folder = statement.split('|').next().unwrap_or_default();
    let mine = facts.of(ITEM);
    mine.keys()
        .any(|i| i.split('|').next() == Some(folder) && any(known, i, classes))
}

/// A file of ours without a name, with the folder and the content of this statement.
fn unnamed_twin(facts: &Facts, statement: &str) -> bool {
    let mut parts = statement.rsplitn(3, '|');
    let (content, _, folder) = (parts.next(), parts.next(), parts.next());
    let (Some(content), Some(folder)) = (content, folder) else {
        return false;
    };
    facts.of(FILE).contains_key(&format!("{folder}||{content}"))
}

/// A file of ours with this folder and content, whose name this one is with a number.
fn twin_of_same_name(facts: &Facts, statement: &str) -> bool {
    let mut parts = statement.rsplitn(3, '|');
    let (Some(content), Some(name), Some(folder)) = (parts.next(), parts.next(), parts.next())
    else {
        return false;
    };
    let Some((plain, number)) = name.rsplit_once('_') else {
        return false;
    };
    number.parse::<u32>().is_ok()
        && facts
            .of(FILE)
            .contains_key(&format!("{folder}|{plain}|{content}"))
}

fn is_unnamed(facet: &str, statement: &str) -> bool {
    facet == FILE && statement.rsplit('|').nth(1) == Some("")
}

use Reader::{Libpff, Libpst};
use Side::{OursAlone, TheirsAlone};

pub const RULES: [Rule; 20] = [
    rule(
        "Folders without items",
        Libpst,
        OursAlone,
        |_, facts, facet, s| {
            let filled = facts.of(ITEM);
            let filled = filled.keys().any(|i| i.split('|').next() == Some(s));
            facet == FOLDER && (s == "/" || !filled)
        },
    ),
    rule("Outside the top folder", Libpst, OursAlone, |_, _, _, s| {
        s.starts_with('^')
    }),
    rule(
        "Recipients as header lines",
        Libpst,
        OursAlone,
        |_, _, facet, _| facet == RECIPIENT,
    ),
    rule(
        "Inside embedded messages",
        Libpst,
        OursAlone,
        |_, _, facet, s| facet != FOLDER && s.contains(">|"),
    ),
    rule("Contacts as vCards", Libpst, OursAlone, |known, _, _, s| {
        any(known, s, &CONTACTS)
    }),
    rule(
        "Contacts as vCards",
        Libpst,
        TheirsAlone,
        |known, facts, facet, s| facet == ITEM && in_folder_of(known, facts, s, &CONTACTS),
    ),
    rule(
        "Appointments as iCalendar",
        Libpst,
        OursAlone,
        |known, _, facet, s| facet != ITEM && facet != FOLDER && any(known, s, &CALENDAR),
    ),
    rule(
        "Appointments as iCalendar",
        Libpst,
        TheirsAlone,
        |known, _, facet, s| facet == TEXT && any(known, item(s), &CALENDAR),
    ),
    rule("Reports", Libpst, TheirsAlone, |known, _, facet, s| {
        facet == TEXT && known.is(item(s), "REPORT.")
    }),
    rule("Posts", Libpst, OursAlone, |known, _, _, s| {
        known.is(s, "IPM.POST")
    }),
    rule("Posts", Libpff, OursAlone, |known, _, _, s| {
        known.is(s, "IPM.POST")
    }),
    rule(
        "Attachments without a name",
        Libpst,
        OursAlone,
        |_, _, facet, s| is_unnamed(facet, s),
    ),
    rule(
        "Attachments without a name",
        Libpst,
        TheirsAlone,
        |_, facts, facet, s| facet == FILE && unnamed_twin(facts, s),
    ),
    rule(
        "Attachments without a name",
        Libpff,
        OursAlone,
        |_, _, facet, s| is_unnamed(facet, s),
    ),
    rule(
        "Attachments without a name",
        Libpff,
        TheirsAlone,
        |_, facts, facet, s| facet == FILE && unnamed_twin(facts, s),
    ),
    rule(
        "Items that are not mail",
        Libpff,
        OursAlone,
        |known, _, facet, s| {
            let parts = ![ITEM, FOLDER, EMBEDDED].contains(&facet);
            parts && any(known, s, &CALENDAR) || known.is(s, "IPM.MICROSOFT.SCHEDULEDATA.FREEBUSY")
        },
    ),
    rule(
        "RTF stored uncompressed",
        Libpff,
        OursAlone,
        |known, _, facet, s| [TEXT, RTF, FILE].contains(&facet) && known.has_stored_rtf(s),
    ),
    rule(
        "RTF stored uncompressed",
        Libpst,
        OursAlone,
        |known, _, facet, s| facet == RTF && known.has_stored_rtf(s),
    ),
    rule(
        "RTF stored uncompressed",
        Libpst,
        TheirsAlone,
        |known, _, facet, s| facet == RTF && known.has_stored_rtf(item(s)),
    ),
    rule(
        "Attachments of one name",
        Libpst,
        TheirsAlone,
        |_, facts, facet, s| facet == FILE && twin_of_same_name(facts, s),
    ),
];
