//! A cache on a stick as they are sold: exFAT, which keeps no permissions, no holes and no case, in a
//! real volume that is unmounted in between; and FAT, which is refused.

mod support;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use support::{Rig, edit, sha256};

/// A volume in a file, mounted. Dropped: unmounted and detached.
struct Volume {
    device: String,
    at: PathBuf,
    kind: &'static str,
}

/// Whether it ended well.
fn run(program: &str, args: &[&str]) -> bool {
    Command::new(program)
        .args(args)
        .env("PATH", "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|s| s.success())
}

fn utf8(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}

impl Volume {
    /// Needs root, a free loop device, and a kernel (or for exFAT a FUSE program) that knows the kind.
    fn make(home: &Path, kind: &'static str) -> Result<Self, String> {
        let (image, at) = (home.join("stick.img"), home.join("stick"));
        fs::create_dir(&at).expect("makes");
        let file = fs::File::create_new(&image).expect("makes");
        file.set_len(192 << 20).expect("room");
        let mkfs = format!("mkfs.{kind}");
        if !run(&mkfs, &[utf8(&image)]) {
            return Err(format!("there is no {mkfs}"));
        }
        let attached = Command::new("/sbin/losetup")
            .args(["--find", "--show", utf8(&image)])
            .output()
            .ok()
            .filter(|o| o.status.success())
            .ok_or("no loop device can be had")?;
        let device = String::from_utf8_lossy(&attached.stdout).trim().to_owned();
        let volume = Self { device, at, kind };
        if volume.mount() {
            Ok(volume)
        } else {
            Err(format!(
                "neither the kernel nor a FUSE program mounts {kind}"
            ))
        }
    }

    fn mount(&self) -> bool {
        let (device, at) = (self.device.as_str(), utf8(&self.at));
        run(
            "mount",
            &["-i", "-t", self.kind, "-o", "umask=000", device, at],
        ) || run(
            &format!("mount.{}-fuse", self.kind),
            &["-o", "umask=000", device, at],
        )
    }

    fn unmount(&self) {
        // A daemon that was killed a moment ago may still be letting go of it.
        for _ in 0..100 {
            if run("umount", &[utf8(&self.at)]) {
                return;
            }
            std::thread::sleep(std::time::Duration::from_millis(50));
        }
        panic!("the volume stays in use");
    }
}

impl Drop for Volume {
    fn drop(&mut self) {
        let _ = run("umount", &["-l", utf8(&self.at)]);
        let _ = run("losetup", &["--detach", &self.device]);
    }
}

#[test]
fn a_cache_on_exfat_is_carried_about_and_a_state_directory_is_refused_there() {
    let mut rig = Rig::new(&pst::create_empty(b"drive on a stick").expect("a PST"));
    let volume = match Volume::make(rig.home.path(), "exfat") {
        Ok(volume) => volume,
        Err(reason) => return support::skip::skipped("exfat", &reason),
    };

    // Not asked to be carried about, it would hold mail that everybody can read.
    let state = volume.at.join("state");
    for _ in 0..2 {
        let mut refused = rig.command(&["mount", "--background", "--json", "--share"]);
        refused
            .arg(rig.path("share"))
            .arg("--state-dir")
            .arg(&state);
        let output = refused.arg(rig.path("drive")).output().expect("runs");
        let text = String::from_utf8_lossy(&output.stdout).into_owned()
            + &String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success(), "{text}");
        assert!(text.contains("state-dir-no-permissions"), "{text}");
        assert!(text.contains("--cache") && text.contains("umask"), "{text}");
    }

    rig.cache = Some(volume.at.join("cache"));
    rig.mount("cached");
    let log = fs::read_to_string(volume.at.join("cache/daemon.log")).expect("a log");
    assert!(log.contains("keeps no permissions"), "{log}");
    let drive = rig.path("drive");
    rig.ok(&["mode", "offline"]);
    assert!(edit(&rig.on_drive()).status().expect("runs").success());
    // Names that differ by case alone, one that no FAT can hold, and a file with a hole.
    fs::write(drive.join("Note.txt"), b"upper").expect("writes");
    fs::write(drive.join("note.txt"), b"lower").expect("writes");
    fs::write(drive.join("a: b?"), b"any name").expect("writes");
    let hole = fs::File::create_new(drive.join("hole")).expect("makes");
    hole.set_len(30 << 20).expect("grows");
    std::os::unix::fs::FileExt::write_all_at(&hole, b"end", (30 << 20) - 3).expect("writes");
    hole.sync_all().expect("flushes");
    drop(hole);
    let (mail, holed) = (sha256(&rig.on_drive()), sha256(&drive.join("hole")));

    // Larger than the volume: said with the write, and what was accepted goes on to be there.
    let mut refused = None;
    let big = fs::File::create_new(drive.join("big")).expect("makes");
    for at in 0..400 {
        let bytes = vec![7; 1 << 20];
        if let Err(e) = std::os::unix::fs::FileExt::write_all_at(&big, &bytes, at << 20) {
            refused = Some(e);
            break;
        }
    }
    let refused = refused.expect("it does not fit").kind();
    assert_eq!(refused, std::io::ErrorKind::StorageFull);
    drop(big);
    fs::remove_file(drive.join("big")).expect("removes");

    rig.kill_daemon();
    assert!(run("umount", &["-l", utf8(&drive)]));
    volume.unmount();
    assert!(volume.mount());
    // The same host, so nobody is waited for.
    rig.mount("offline");
    assert_eq!(sha256(&rig.on_drive()), mail);
    assert_eq!(sha256(&drive.join("hole")), holed);
    for (name, text) in [
        ("Note.txt", "upper"),
        ("note.txt", "lower"),
        ("a: b?", "any name"),
    ] {
        assert_eq!(fs::read_to_string(drive.join(name)).expect("there"), text);
    }

    rig.ok(&["mode", "cached"]);
    rig.ok(&["sync", "now"]);
    rig.assert_equal_dumps();
    assert_eq!(sha256(&rig.path("share/hole")), holed);
    assert_eq!(
        fs::read(rig.path("share/a: b?")).expect("there"),
        b"any name"
    );
    rig.unmount();
    // Nothing of the drive holds the volume any more.
    volume.unmount();
}

#[test]
fn a_cache_on_fat_is_refused() {
    let mut rig = Rig::new(&pst::create_empty(b"drive on old FAT").expect("a PST"));
    let volume = match Volume::make(rig.home.path(), "vfat") {
        Ok(volume) => volume,
        Err(reason) => return support::skip::skipped("vfat", &reason),
    };
    rig.cache = Some(volume.at.join("cache"));
    let output = rig.try_mount("cached");
    let text = String::from_utf8_lossy(&output.stdout).into_owned()
        + &String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success(), "{text}");
    assert!(
        text.contains("FAT volume") && text.contains("exFAT"),
        "{text}"
    );
}
