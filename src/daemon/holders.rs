//! Which programs keep a mountpoint busy.

use std::fs;
use std::path::Path;

/// More are not named.
const MAX: usize = 5;

/// Programs that have a file or folder below `mountpoint` open, or work in it, as `name (pid)`; as far as
/// this user may see. Only the links under `/proc` are read: the drive itself is not asked.
pub fn holders(mountpoint: &Path) -> Vec<String> {
    let mut found = Vec::new();
    let Ok(processes) = fs::read_dir("/proc") else {
        return found;
    };
    let own = std::process::id().to_string();
    for process in processes.flatten() {
        let pid = process.file_name().to_string_lossy().into_owned();
        if pid == own || !pid.bytes().all(|b| b.is_ascii_digit()) {
            continue;
        }
        let at = process.path();
        let below = |link: &Path| fs::read_link(link).is_ok_and(|to| to.starts_with(mountpoint));
        let opened = || {
            let files = fs::read_dir(at.join("fd")).into_iter().flatten().flatten();
            files.into_iter().any(|f| below(&f.path()))
        };
        if below(&at.join("cwd")) || below(&at.join("root")) || opened() {
            let name = fs::read_to_string(at.join("comm")).unwrap_or_default();
            found.push(format!("{} ({pid})", name.trim()));
            if found.len() == MAX {
                break;
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_that_works_there_is_named() {
        let temp = tempfile::tempdir().unwrap();
        let root = temp.path().canonicalize().unwrap();
        assert!(holders(&root).is_empty());
        let mut child = std::process::Command::new("sleep")
            .arg("60")
            .current_dir(&root)
            .spawn()
            .unwrap();
        // Until the program itself runs it has our name.
        let named = || holders(&root).contains(&format!("sleep ({})", child.id()));
        let seen = (0..500).any(|_| {
            std::thread::sleep(std::time::Duration::from_millis(10));
            named()
        });
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(seen);
    }
}
