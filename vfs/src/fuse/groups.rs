//! Whether a program is in a group.
//!
//! A FUSE request names the group a program acts for, and none of the others it is in. These are read from
//! the system, while the program waits for the answer. A program of another process namespace (its number
//! here is 0), or one that is gone, counts as in none of them: then set-ID bits fall that might have stayed.

use std::path::PathBuf;

/// Bound on what is read, in bytes: a program may be in 65,536 groups.
const MAX: u64 = 1 << 20;

/// Whether the program `pid`, acting for `own`, is in `group`.
pub(super) fn is_member(pid: u32, own: u32, group: u32) -> bool {
    own == group || (pid != 0 && supplementary(pid).is_some_and(|all| all.contains(&group)))
}

fn supplementary(pid: u32) -> Option<Vec<u32>> {
    use std::io::Read;
    let path: PathBuf = ["/proc", &pid.to_string(), "status"].iter().collect();
    let mut text = String::new();
    std::fs::File::open(path)
        .ok()?
        .take(MAX)
        .read_to_string(&mut text)
        .ok()?;
    parse(&text)
}

fn parse(status: &str) -> Option<Vec<u32>> {
    let line = status.lines().find_map(|l| l.strip_prefix("Groups:"))?;
    line.split_whitespace().map(|g| g.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_are_found_and_nothing_is_made_up() {
        let status = "Name:\tcat\nGid:\t5\t5\t5\t5\nGroups:\t4 24 1000 \nNStgid:\t7\n";
        assert_eq!(parse(status), Some(vec![4, 24, 1000]));
        assert_eq!(parse("Groups:\t\n"), Some(vec![]));
        assert_eq!(parse("Groups:\tall of them\n"), None);
        assert_eq!(parse("Name:\tcat\n"), None);
        assert!(is_member(0, 7, 7) && !is_member(0, 7, 8));
        assert!(!is_member(u32::MAX, 7, 8));
        let own = supplementary(std::process::id()).unwrap();
        assert!(own.iter().all(|g| is_member(std::process::id(), 12345, *g)));
    }
}
