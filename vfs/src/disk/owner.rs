//! A state directory on a drive that is carried about: which volume it is, and which host has it.
//!
//! ```text
//! volume   names the volume: 128 random bits, made once
//! owner    who has it: host, nonce of this opening, a beat that rises while it is held
//! ```
//!
//! On one host the kernel's file lock decides (`lock`). Between hosts nothing can: so the holder
//! beats, and another host takes over only after it has watched [`WATCH`] beats pass without a
//! change. The holder in turn changes nothing on the volume when its own last beat is more than
//! [`FENCE`] old and it has not seen since that the volume is still its own, so that a host that
//! slept does not write into what was taken over meanwhile. `FENCE < WATCH` is what keeps the two
//! apart. A drive that was pulled out while held is thus taken over elsewhere after some seconds,
//! and at once where it was held before.

use std::hash::{BuildHasher, RandomState};
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use storage::{ReadAt, WriteAt};

use super::{Disk, DiskLock};
use crate::error::{Error, Result};

/// Beats without a change after which a volume counts as left behind.
const WATCH: u32 = 4;
/// Beats after which a holder looks again before it writes.
const FENCE: u32 = 2;
/// The owner file's length: one sector, so that a beat is one write.
const LEN: usize = 512;

/// A state directory that may be unplugged and go on at another host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Removable {
    /// Name of this host, for messages.
    pub host: String,
    /// Identity of this host: the same after a restart, and no other host's.
    pub host_id: String,
    /// How often the holder says that it is there.
    pub beat: Duration,
}

impl Removable {
    /// This host.
    #[must_use]
    pub fn here() -> Self {
        let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
        let word = |text: String| -> String {
            text.trim()
                .chars()
                .filter(|c| c.is_ascii_alphanumeric() || "-._".contains(*c))
                .take(64)
                .collect()
        };
        let host = word(read("/proc/sys/kernel/hostname"));
        Self {
            host_id: identity(&read("/etc/machine-id")),
            host: if host.is_empty() {
                "unknown".to_owned()
            } else {
                host
            },
            beat: Duration::from_secs(5),
        }
    }
}

/// This host's identity, from its machine id. Where that names no machine (there is none outside
/// Linux, and a system image says "uninitialized" until its first start is over), one that is never
/// met again: by a name that two hosts share, each would take what the other still holds. The price
/// is that a cache left behind is watched for a while even where it was held before.
fn identity(machine_id: &str) -> String {
    let id = machine_id.trim();
    let names_one = id.len() == 32
        && id.bytes().all(|b| b.is_ascii_hexdigit())
        && id.bytes().any(|b| b != b'0');
    if names_one {
        id.to_owned()
    } else {
        format!("unnamed-{}", random_hex())
    }
}

fn random_hex() -> String {
    // Each RandomState is seeded by the system.
    let half = || RandomState::new().hash_one(std::process::id());
    format!("{:016x}{:016x}", half(), half())
}

/// Time that also passes while the system sleeps.
fn uptime() -> Duration {
    #[cfg(target_os = "linux")]
    {
        let t = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
        Duration::new(
            u64::try_from(t.tv_sec).unwrap_or(0),
            u32::try_from(t.tv_nsec).unwrap_or(0),
        )
    }
    // Not the time of day: that is set back, and a fence that was due would not come down. On Windows
    // the counter behind this clock goes on while the system sleeps.
    #[cfg(not(target_os = "linux"))]
    {
        static START: std::sync::OnceLock<std::time::Instant> = std::sync::OnceLock::new();
        START.get_or_init(std::time::Instant::now).elapsed()
    }
}

/// The volume's name, made where there is none.
fn volume(disk: &Arc<dyn Disk>) -> io::Result<String> {
    const HEAD: &str = "pstsyncd-volume 1\n";
    if let Some(bytes) = disk.read_standing("volume", 200)? {
        let text = String::from_utf8_lossy(&bytes).into_owned();
        let id = text.strip_prefix(HEAD).map(str::trim);
        return match id {
            Some(id) if id.len() == 32 && id.chars().all(|c| c.is_ascii_hexdigit()) => {
                Ok(id.to_owned())
            }
            _ => Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "the file `volume` names no volume",
            )),
        };
    }
    let id = random_hex();
    disk.replace("volume", format!("{HEAD}{id}\n").as_bytes())?;
    Ok(id)
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Claim {
    held: bool,
    host_id: String,
    nonce: String,
    beat: u64,
    host: String,
}

impl Claim {
    fn encode(&self) -> Vec<u8> {
        let word = if self.held { "held" } else { "released" };
        let mut text = format!(
            "pstsyncd-owner 1 {word} {} {} {} {}\n",
            self.host_id, self.nonce, self.beat, self.host
        )
        .into_bytes();
        text.resize(LEN, b' ');
        text
    }

    /// `None`: torn, or not ours to understand.
    fn decode(bytes: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(bytes).ok()?;
        let words: Vec<&str> = text.split_whitespace().collect();
        let ["pstsyncd-owner", "1", word, host_id, nonce, beat, host] = words.as_slice() else {
            return None;
        };
        Some(Self {
            held: *word != "released",
            host_id: (*host_id).to_owned(),
            nonce: (*nonce).to_owned(),
            beat: beat.parse().ok()?,
            host: (*host).to_owned(),
        })
    }
}

/// The holding of a volume. Given back when dropped.
pub(crate) struct Owner {
    disk: Arc<dyn Disk>,
    pub volume: String,
    claim: Mutex<(Claim, Duration)>,
    beat: Duration,
    lost: AtomicBool,
}

const FILE: &str = "owner";

impl Owner {
    /// Takes the volume for this host. The caller holds the directory's lock, so no other process of
    /// this host has it. Waits where another host may.
    ///
    /// # Errors
    /// [`Error::Locked`] while another host uses it.
    pub fn take(disk: &Arc<dyn Disk>, me: &Removable) -> Result<Arc<Self>> {
        let ctx = |e| Error::from_io(format!("{}: taking the volume", disk.name()), e);
        let volume = volume(disk).map_err(ctx)?;
        let look = || disk.read_standing(FILE, 4096).map_err(ctx);
        let seen = look()?;
        let other = match seen.as_deref().map(Claim::decode) {
            None => false,
            Some(Some(c)) => c.held && c.host_id != me.host_id,
            // Torn by a power cut, or of a later version: nobody knows whose it is.
            Some(None) => true,
        };
        if other {
            tracing::info!(disk = disk.name(), "watching whether another host uses it");
            for _ in 0..2 * WATCH {
                std::thread::sleep(me.beat / 2);
                let now = look()?;
                if now != seen {
                    let host = now.as_deref().and_then(Claim::decode).map_or_else(
                        || "another host".to_owned(),
                        |c| format!("the host {}", c.host),
                    );
                    return Err(Error::Locked(format!("{}, by {host}", disk.name())));
                }
            }
        }
        let claim = Claim {
            held: true,
            host_id: me.host_id.clone(),
            nonce: random_hex(),
            beat: 0,
            host: me.host.clone(),
        };
        disk.replace(FILE, &claim.encode()).map_err(ctx)?;
        let owner = Arc::new(Self {
            disk: disk.clone(),
            volume,
            claim: Mutex::new((claim, uptime())),
            beat: me.beat,
            lost: AtomicBool::new(false),
        });
        if other {
            // Two may have waited for the same moment: the last writer has it.
            std::thread::sleep(me.beat / 2);
        }
        owner.verify().map_err(ctx)?;
        Ok(owner)
    }

    /// Whether the volume is still ours, by what is written on it.
    fn verify(&self) -> io::Result<()> {
        let at = uptime();
        let mut mine = self.claim.lock().unwrap_or_else(PoisonError::into_inner);
        let there = self.disk.read_standing(FILE, 4096)?;
        match there.as_deref().and_then(Claim::decode) {
            Some(c) if c.nonce == mine.0.nonce => {
                mine.1 = at;
                Ok(())
            }
            _ => {
                self.lost.store(true, Ordering::SeqCst);
                Err(Self::gone())
            }
        }
    }

    fn gone() -> io::Error {
        io::Error::other("another host has taken this cache over")
    }

    /// Whether another host took the volume.
    pub fn is_lost(&self) -> bool {
        self.lost.load(Ordering::SeqCst)
    }

    /// How often [`Owner::beat`] is to be called.
    pub fn interval(&self) -> Duration {
        self.beat
    }

    /// Says that we are here.
    pub fn beat(&self) -> io::Result<()> {
        self.verify()?;
        let at = uptime();
        let mut mine = self.claim.lock().unwrap_or_else(PoisonError::into_inner);
        mine.0.beat += 1;
        let file = self.disk.open(FILE)?;
        file.write_all_at(0, &mine.0.encode())?;
        file.sync()?;
        mine.1 = at;
        Ok(())
    }

    /// Before every change on the volume.
    fn check(&self) -> io::Result<()> {
        if self.is_lost() {
            return Err(Self::gone());
        }
        let last = self.claim.lock().unwrap_or_else(PoisonError::into_inner).1;
        if uptime().saturating_sub(last) > self.beat * FENCE {
            self.verify()?;
        }
        Ok(())
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        if self.check().is_err() {
            return;
        }
        let mine = self.claim.get_mut().unwrap_or_else(PoisonError::into_inner);
        mine.0.held = false;
        let _ = self.disk.replace(FILE, &mine.0.encode());
    }
}

/// A disk that changes nothing once its volume is another host's.
pub(crate) struct FencedDisk {
    pub disk: Arc<dyn Disk>,
    pub owner: Arc<Owner>,
}

impl FencedDisk {
    fn wrap(&self, file: Arc<dyn WriteAt>) -> Arc<dyn WriteAt> {
        Arc::new(FencedFile {
            file,
            owner: self.owner.clone(),
        })
    }
}

impl Disk for FencedDisk {
    fn name(&self) -> String {
        self.disk.name()
    }
    fn mkdir(&self, dir: &str) -> io::Result<()> {
        self.owner.check()?;
        self.disk.mkdir(dir)
    }
    fn list(&self, dir: &str) -> io::Result<Vec<String>> {
        self.disk.list(dir)
    }
    fn open(&self, path: &str) -> io::Result<Arc<dyn WriteAt>> {
        Ok(self.wrap(self.disk.open(path)?))
    }
    fn create(&self, path: &str, room: u64) -> io::Result<Arc<dyn WriteAt>> {
        self.owner.check()?;
        Ok(self.wrap(self.disk.create(path, room)?))
    }
    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.owner.check()?;
        self.disk.rename(from, to)
    }
    fn remove(&self, path: &str) -> io::Result<()> {
        self.owner.check()?;
        self.disk.remove(path)
    }
    fn sync_dir(&self, dir: &str) -> io::Result<()> {
        self.owner.check()?;
        self.disk.sync_dir(dir)
    }
    fn available(&self) -> io::Result<u64> {
        self.disk.available()
    }
    fn lock(&self) -> io::Result<Option<DiskLock>> {
        self.disk.lock()
    }
    /// Unknown: the drive may have been pulled out and put back without a restart.
    fn boot_id(&self) -> Vec<u8> {
        Vec::new()
    }
}

struct FencedFile {
    file: Arc<dyn WriteAt>,
    owner: Arc<Owner>,
}

impl ReadAt for FencedFile {
    fn len(&self) -> io::Result<u64> {
        self.file.len()
    }
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        self.file.read_at(offset, buf)
    }
}

impl WriteAt for FencedFile {
    fn write_all_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.owner.check()?;
        self.file.write_all_at(offset, data)
    }
    fn set_len(&self, len: u64) -> io::Result<()> {
        self.owner.check()?;
        self.file.set_len(len)
    }
    fn sync(&self) -> io::Result<()> {
        self.owner.check()?;
        self.file.sync()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::crash::CrashDisk;

    fn host(name: &str) -> Removable {
        Removable {
            host: name.to_owned(),
            host_id: format!("id-{name}"),
            beat: Duration::from_millis(40),
        }
    }

    #[test]
    fn a_live_holder_is_never_robbed_and_a_dead_one_is_succeeded() {
        let disk: Arc<dyn Disk> = Arc::new(CrashDisk::default());
        let a = Owner::take(&disk, &host("a")).unwrap();
        let volume = a.volume.clone();
        // While it beats.
        let beating = a.clone();
        let stop = Arc::new(AtomicBool::new(false));
        let until = stop.clone();
        let thread = std::thread::spawn(move || {
            while !until.load(Ordering::SeqCst) {
                beating.beat().unwrap();
                std::thread::sleep(beating.interval());
            }
        });
        let refused = Owner::take(&disk, &host("b"));
        assert!(matches!(refused.map(drop), Err(Error::Locked(who)) if who.contains("host a")));
        stop.store(true, Ordering::SeqCst);
        thread.join().unwrap();
        // Pulled out: it neither beats nor gives back.
        let b = Owner::take(&disk, &host("b")).unwrap();
        assert_eq!(b.volume, volume);
        // The first, woken up, changes nothing any more.
        let fenced = FencedDisk {
            disk: disk.clone(),
            owner: a.clone(),
        };
        assert!(fenced.create("x", 0).is_err() && a.is_lost());
        assert!(a.beat().is_err());
        drop((fenced, a));
        b.beat().unwrap();
        // Given back, nobody waits.
        drop(b);
        let claim = Claim::decode(&disk.read(FILE, 4096).unwrap().unwrap()).unwrap();
        assert!(!claim.held && claim.host == "b");
        // Held before by this very host (the lock says that it is gone): nobody waits either.
        let again = Owner::take(&disk, &host("c")).unwrap();
        std::mem::forget(again);
        let c = Owner::take(&disk, &host("c")).unwrap();
        assert!(!c.is_lost());
    }

    #[test]
    fn hosts_without_a_machine_id_are_not_taken_for_one_another() {
        let real = "0123456789abcdef0123456789abcdef";
        assert_eq!(identity(&format!("{real}\n")), real);
        for nameless in ["", "\n", "uninitialized\n", "0123", &"0".repeat(32)] {
            let (a, b) = (identity(nameless), identity(nameless));
            assert_ne!(a, b, "{nameless:?}");
            // It must survive being written: one word of the owner file, in its one sector.
            let claim = Claim {
                held: true,
                host_id: a,
                nonce: random_hex(),
                beat: 0,
                host: "h".repeat(64),
            };
            let bytes = claim.encode();
            assert_eq!(bytes.len(), LEN);
            assert_eq!(Claim::decode(&bytes), Some(claim));
        }
        // Both are called "laptop", and the first is still at it.
        let nameless = || Removable {
            host_id: identity(""),
            // Two seconds of watching: a machine under load does not look like a dead holder.
            beat: Duration::from_millis(500),
            ..host("laptop")
        };
        let disk: Arc<dyn Disk> = Arc::new(CrashDisk::default());
        let a = Owner::take(&disk, &nameless()).unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let (beating, until) = (a.clone(), stop.clone());
        let thread = std::thread::spawn(move || {
            while !until.load(Ordering::SeqCst) {
                beating.beat().unwrap();
                std::thread::sleep(beating.interval() / 4);
            }
        });
        let second = Owner::take(&disk, &nameless());
        stop.store(true, Ordering::SeqCst);
        thread.join().unwrap();
        assert!(matches!(second.map(drop), Err(Error::Locked(_))));
        assert!(!a.is_lost());
    }

    #[test]
    fn a_claim_reads_back_and_a_torn_one_does_not() {
        let claim = Claim {
            held: true,
            host_id: "h".into(),
            nonce: "n".into(),
            beat: 3,
            host: "name".into(),
        };
        let bytes = claim.encode();
        assert_eq!(bytes.len(), LEN);
        assert_eq!(Claim::decode(&bytes), Some(claim));
        assert_eq!(Claim::decode(&[0; LEN]), None);
        assert_eq!(Claim::decode(&bytes[..20]), None);
    }
}
