//! Paths on the drive: relative, `/`-separated, UTF-8, without `.` or `..`.
//!
//! The root is the empty path. SMB names are Unicode, so names that are not UTF-8 cannot exist on
//! most shares; on a directory share such names are left out of listings.

use crate::error::{Error, Result};

/// Longest name, in bytes, that the drive accepts.
pub const MAX_NAME: usize = 255;

/// Checks one path component.
///
/// # Errors
/// [`Error::BadName`], [`Error::NameTooLong`].
pub fn check_name(name: &str) -> Result<()> {
    if name.len() > MAX_NAME {
        return Err(Error::NameTooLong);
    }
    if name.is_empty() || name == "." || name == ".." || name.contains(['/', '\0']) {
        return Err(Error::BadName(name.to_owned()));
    }
    Ok(())
}

/// Which names a share can hold. Names that are there already are shown whatever they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Names {
    /// All that [`check_name`] accepts.
    #[default]
    Any,
    /// Without regard to case, and only those that Windows can open: no `<>:"|?*\\` and no control characters, no space or dot
    /// at the end, no device names (`con`, `aux.txt`, `lpt1` ...).
    Windows,
}

impl Names {
    /// Whether a file of this (otherwise valid) name may be made.
    #[must_use]
    pub fn allow(self, name: &str) -> bool {
        match self {
            Names::Any => true,
            Names::Windows => {
                let bad = |c: char| c < ' ' || "<>:\"|?*\\".contains(c);
                !name.contains(bad) && !name.ends_with([' ', '.']) && !is_device(name)
            }
        }
    }
}

impl Names {
    /// Whether two names are one on such a share.
    #[must_use]
    pub fn same(self, a: &str, b: &str) -> bool {
        a == b || (self == Names::Windows && self.fold(a) == self.fold(b))
    }

    /// What all spellings of one name have in common.
    #[must_use]
    pub fn fold(self, name: &str) -> String {
        match self {
            Names::Any => name.to_owned(),
            Names::Windows => name.chars().flat_map(char::to_lowercase).collect(),
        }
    }
}

/// Device names keep their meaning with any extension, and with spaces before it.
fn is_device(name: &str) -> bool {
    let stem = name.split('.').next().unwrap_or(name);
    let stem = stem.trim_end_matches(' ').to_ascii_uppercase();
    if ["CON", "PRN", "AUX", "NUL", "CONIN$", "CONOUT$"].contains(&stem.as_str()) {
        return true;
    }
    ["COM", "LPT"].iter().any(|port| {
        let digit = stem.strip_prefix(port);
        // Windows takes the superscripts of Latin-1 for digits too.
        digit.is_some_and(|d| {
            let mut chars = d.chars();
            matches!(
                (chars.next(), chars.next()),
                (Some('0'..='9' | '\u{b9}' | '\u{b2}' | '\u{b3}'), None)
            )
        })
    })
}

/// Checks a name that is about to be made on a share of this kind.
///
/// # Errors
/// As [`check_name`]; [`Error::ForbiddenName`].
pub fn check_new_name(name: &str, names: Names) -> Result<()> {
    check_name(name)?;
    if names.allow(name) {
        Ok(())
    } else {
        Err(Error::ForbiddenName(name.to_owned()))
    }
}

/// Names to try, in turn, for our side of a conflict: its own, then `name (conflict DATE HOST).ext`
/// with a number from the second on. Ends after a thousand: whoever finds none free has another
/// problem.
pub fn conflict_names<'a>(
    name: &'a str,
    date: &'a str,
    host: &'a str,
) -> impl Iterator<Item = String> + 'a {
    let others = (1..1000).map(move |n| conflict_name(name, date, host, n));
    std::iter::once(name.to_owned()).chain(others)
}

/// Checks and normalises a path given by a user (`/a/b/` becomes `a/b`).
///
/// # Errors
/// [`Error::BadName`] for `.`/`..`/NUL, [`Error::NameTooLong`].
pub fn normalise(path: &str) -> Result<String> {
    let mut out = String::new();
    for part in path.split('/').filter(|p| !p.is_empty()) {
        check_name(part)?;
        if !out.is_empty() {
            out.push('/');
        }
        out.push_str(part);
    }
    Ok(out)
}

/// `parent` + `/` + `name`.
#[must_use]
pub fn join(parent: &str, name: &str) -> String {
    if parent.is_empty() {
        name.to_owned()
    } else {
        format!("{parent}/{name}")
    }
}

/// Splits into parent path and name; `None` for the root.
#[must_use]
pub fn split(path: &str) -> Option<(&str, &str)> {
    if path.is_empty() {
        None
    } else {
        Some(path.rsplit_once('/').unwrap_or(("", path)))
    }
}

/// The name under which our side of a conflict is kept: `name (conflict DATE HOST).ext`.
///
/// `attempt` > 1 adds a number, for the case that this name is taken too. The result always
/// passes [`check_name`]: the stem is shortened where needed.
fn conflict_name(name: &str, date: &str, host: &str, attempt: u32) -> String {
    let (stem, ext) = match name.rfind('.') {
        Some(dot) if dot > 0 && name.len() - dot <= 32 => name.split_at(dot),
        _ => (name, ""),
    };
    let clean = |s: &str| s.replace(['/', '\0'], "-");
    let mut tag = format!(" (conflict {} {}", clean(date), clean(host));
    let mut cut = tag.len().min(120);
    while !tag.is_char_boundary(cut) {
        cut -= 1;
    }
    tag.truncate(cut);
    if attempt > 1 {
        tag.push_str(&format!(" {attempt}"));
    }
    tag.push(')');
    let room = MAX_NAME.saturating_sub(tag.len() + ext.len());
    let mut end = stem.len().min(room);
    while !stem.is_char_boundary(end) {
        end -= 1;
    }
    format!("{}{tag}{ext}", stem.get(..end).unwrap_or(""))
}

/// Whether a link's target, as text, stays on the drive, whose link lies at `at` and which programs
/// see at `mounted`, if anywhere. Other absolute targets and those that climb out are not shown to
/// applications: the share decides what a link says, and whoever follows it does so on this machine.
#[must_use]
pub fn link_stays_inside(at: &str, target: &str, mounted: Option<&str>) -> bool {
    let mut depth = at
        .split('/')
        .filter(|p| !p.is_empty())
        .count()
        .saturating_sub(1);
    let mut target = target;
    if target.starts_with('/') {
        match mounted.and_then(|m| target.strip_prefix(m)) {
            Some(below) if below.is_empty() || below.starts_with('/') => target = below,
            _ => return false,
        }
        depth = 0;
    }
    for part in target.split('/') {
        match part {
            "" | "." => {}
            ".." => match depth.checked_sub(1) {
                Some(d) => depth = d,
                None => return false,
            },
            _ => depth += 1,
        }
    }
    true
}

/// A set of glob patterns: `*` within a name, `**` across names, `?` one character; matched
/// without regard to case, as Windows does.
#[derive(Debug, Clone)]
pub struct Patterns(Vec<Vec<char>>);

impl Patterns {
    /// Compiles the patterns.
    #[must_use]
    pub fn new<S: AsRef<str>>(patterns: &[S]) -> Self {
        Self(
            patterns
                .iter()
                .map(|p| p.as_ref().to_lowercase().chars().collect())
                .collect(),
        )
    }

    /// Whether any pattern matches the path.
    #[must_use]
    pub fn matches(&self, path: &str) -> bool {
        let path: Vec<char> = path.to_lowercase().chars().collect();
        self.0.iter().any(|p| glob(p, &path))
    }
}

/// Table-driven matching: cost is pattern length x path length whatever the pattern, so a hostile
/// name cannot make it explode.
fn glob(pattern: &[char], path: &[char]) -> bool {
    // reach[j]: the pattern so far matches path[..j].
    let mut reach = vec![false; path.len() + 1];
    if let Some(first) = reach.first_mut() {
        *first = true;
    }
    let mut rest = pattern;
    while let Some((&c, tail)) = rest.split_first() {
        let mut next = vec![false; path.len() + 1];
        let (star, across, tail) = match (c, tail) {
            // `**/` also matches nothing, so that `**/*.pst` finds files in the root.
            ('*', ['*', '/', tail @ ..]) => (true, Some(true), tail),
            ('*', ['*', tail @ ..]) => (true, Some(false), tail),
            ('*', tail) => (true, None, tail),
            (_, tail) => (false, None, tail),
        };
        let mut open = false;
        for j in 0..=path.len() {
            let here = reach.get(j).copied().unwrap_or(false);
            let prev = j.checked_sub(1).and_then(|k| path.get(k)).copied();
            if star {
                match across {
                    None => {
                        open = here || (open && prev.is_some_and(|p| p != '/'));
                        if let Some(n) = next.get_mut(j) {
                            *n = open;
                        }
                    }
                    Some(slash) => {
                        let start = here;
                        let hit = start || (open && (!slash || prev == Some('/')));
                        open = open || here;
                        if let Some(n) = next.get_mut(j) {
                            *n = hit;
                        }
                    }
                }
            } else if let Some(p) = prev {
                let before = j
                    .checked_sub(1)
                    .and_then(|k| reach.get(k))
                    .copied()
                    .unwrap_or(false);
                if before
                    && (c == p || (c == '?' && p != '/'))
                    && let Some(n) = next.get_mut(j)
                {
                    *n = true;
                }
            }
        }
        reach = next;
        rest = tail;
    }
    reach.last().copied().unwrap_or(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn globs_match_without_case_and_across_directories() {
        let p = Patterns::new(&["**/*.pst"]);
        for yes in ["a.pst", "A.PST", "x/y/z.Pst", "x/.pst"] {
            assert!(p.matches(yes), "{yes}");
        }
        for no in ["a.pst.txt", "a.ps", "pst", "a.pst/b"] {
            assert!(!p.matches(no), "{no}");
        }
        let one = Patterns::new(&["mail/*.pst", "old/**"]);
        assert!(one.matches("mail/a.pst") && one.matches("old/x/y"));
        assert!(!one.matches("mail/x/a.pst") && !one.matches("a.pst"));
        assert!(Patterns::new(&["a?c"]).matches("abc"));
        assert!(!Patterns::new(&["a?c"]).matches("a/c"));
        assert!(!Patterns::new(&["x**/y"]).matches("y"));
    }

    #[test]
    fn windows_cannot_hold_every_name() {
        for bad in [
            "con",
            "CON.txt",
            "aux .x",
            "nul",
            "com1",
            "LPT\u{b2}.log",
            "a:b",
            "a?",
            "x ",
            "x.",
            "tab\t",
            "back\\slash",
            "\"q\"",
            "...",
        ] {
            assert!(!Names::Windows.allow(bad), "{bad}");
            assert!(Names::Any.allow(bad) && check_name(bad).is_ok(), "{bad}");
            assert!(matches!(
                check_new_name(bad, Names::Windows),
                Err(Error::ForbiddenName(_))
            ));
        }
        for good in [
            "console",
            "com",
            "com10",
            ".con.x",
            "a.b",
            "lpt",
            "Ärger.pst",
            "x .y",
            "~$a",
        ] {
            assert!(Names::Windows.allow(good), "{good}");
        }
    }

    #[test]
    fn names_for_a_conflict_begin_with_its_own_and_are_all_different() {
        let tried: Vec<String> = conflict_names("a.pst", "d", "h").take(3).collect();
        assert_eq!(
            tried,
            ["a.pst", "a (conflict d h).pst", "a (conflict d h 2).pst"]
        );
    }

    #[test]
    fn links_that_climb_out_are_seen() {
        let inside = |at, target| link_stays_inside(at, target, Some("/mnt/drive"));
        assert!(!inside("a/l", "../../x"));
        assert!(inside("a/l", "../x"));
        assert!(!inside("a/l", "/x"));
        assert!(!inside("l", "d/../../x"));
        assert!(inside("a/l", "/mnt/drive/x/../y") && inside("a/l", "/mnt/drive"));
        assert!(!inside("a/l", "/mnt/drive/../x"));
        assert!(!inside("a/l", "/mnt/driver/x"));
        assert!(!link_stays_inside("a/l", "/mnt/drive/x", None));
    }

    #[test]
    fn conflict_names_stay_valid() {
        assert_eq!(
            conflict_name("mail.pst", "2026-01-02", "pc", 1),
            "mail (conflict 2026-01-02 pc).pst"
        );
        assert_eq!(
            conflict_name(".profile", "d", "h", 2),
            ".profile (conflict d h 2)"
        );
        let long = conflict_name(&"ä".repeat(127), "d/e", &"h".repeat(300), 3);
        assert!(check_name(&long).is_ok(), "{long}");
        assert!(check_name("..").is_err() && check_name("a/b").is_err());
        assert_eq!(normalise("/a//b/").ok().as_deref(), Some("a/b"));
        assert!(normalise("a/../b").is_err());
    }
}
