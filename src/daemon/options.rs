//! What `mount` was asked, checked: nothing is made or changed before all of it is right.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde::Deserialize;

use super::paths::StateDir;
use super::patterns::Patterns;
use super::place::Placement;
use super::smb::SmbOptions;
use super::volumes::check_plugged_in;
use crate::cli::{AgentArgs, MountArgs, Switch};
use crate::control::Policy;
use crate::control::registry::absolute;
use crate::error::UserError;
use crate::policy::cap::Cap;
use crate::policy::rules::{Outcome, Then};
use crate::secret::Secret;

/// Bound of a token or invitation file, in bytes.
const MAX_AGENT_FILE: u64 = 64 * 1024;

/// A drive to be mounted; every path is absolute, and was there when it was checked.
pub struct DriveOptions {
    /// The share: a directory that can be listed, or the address of one on an SMB server.
    pub share: PathBuf,
    /// How to reach it, where it is on an SMB server.
    pub smb: Option<SmbOptions>,
    /// An empty directory on which nothing is mounted.
    pub mountpoint: PathBuf,
    /// Where the drive's state is kept; not made yet.
    pub state_dir: PathBuf,
    /// The state directory may be unplugged, and go on at another host.
    pub removable: bool,
    /// How much of the share is kept, in bytes.
    pub cache_size: Option<u64>,
    /// Patterns of containers and of the files that are kept whole, as far as they were given.
    pub patterns: Patterns,
    /// Bytes a second that fetching ahead may take.
    pub fill_rate: Option<u64>,
    /// The agent, where one was named.
    pub agent: Option<AgentOptions>,
    /// Which way changes of containers take to the share.
    pub placement: Placement,
    /// Let other users enter the drive.
    pub allow_other: bool,
    /// Nothing else opens the PSTs on the share: no leases are asked for.
    pub exclusive: bool,
    /// The policy to begin with.
    pub policy: Policy,
    /// The file that the policy `rules` goes by.
    pub rules: Option<PathBuf>,
    /// What the link may be used, where no rule says otherwise.
    pub limit: Cap,
    /// The file of rules for that.
    pub limit_rules: Option<PathBuf>,
    /// Sync by itself what waits.
    pub auto_sync: bool,
}

/// How to reach an agent.
pub struct AgentOptions {
    /// Its address: `https://…`.
    pub url: String,
    /// SHA-256 of its CA certificate (DER).
    pub ca_fingerprint: [u8; 32],
    /// What it knows us by.
    pub token: Secret<String>,
}

/// The invitation that an agent writes for a client.
#[derive(Deserialize)]
struct Invitation {
    url: String,
    #[serde(alias = "ca_sha256")]
    ca_fingerprint: String,
    token: String,
}

impl DriveOptions {
    /// Checks what was asked, and clears a dead mount of ours at the mountpoint. Makes nothing.
    ///
    /// # Errors
    /// The first thing that is wrong, with what to do about it.
    pub fn check(args: &MountArgs) -> Result<Self, UserError> {
        let rules = rules_file(args)?;
        let limit_rules = args.limit_rules.as_deref().map(absolute);
        if let Some(path) = &limit_rules {
            check_rules::<Cap>(path)?;
        }
        let smb = SmbOptions::read(args)?;
        let share = match &smb {
            Some(smb) => smb.as_path(),
            None => check_share(&args.share)?,
        };
        let mountpoint = check_mountpoint(&args.mountpoint)?;
        let given = args.cache.cache.as_deref().or(args.state_dir.as_deref());
        let state_dir = StateDir::locate(given, "drive", &share)?;
        check_apart(&share, &mountpoint, &state_dir)?;
        if args.cache.cache.is_some() && !args.cache.new_cache {
            check_plugged_in(&share, &state_dir)?;
        }
        let agent = AgentOptions::read(&args.agent)?;
        if args.placement == Placement::Split && agent.is_none() {
            return Err(UserError::new(
                "no-agent",
                "changes cannot go by an agent: none was named",
                "name one with --agent or --agent-invitation, or leave out --placement split",
            ));
        }
        // Over the network the link is judged; of a directory nobody can say what lies behind it, and
        // the system's own cache hides how it does.
        let policy = args.mode.unwrap_or(if smb.is_some() {
            Policy::Auto
        } else {
            Policy::Online
        });
        check_fuse(args.allow_other)?;
        Ok(Self {
            share,
            smb,
            mountpoint,
            state_dir,
            removable: args.cache.cache.is_some(),
            cache_size: args.cache.cache_size,
            patterns: Patterns {
                monitor: given_patterns(&args.cache.monitor),
                pin: given_patterns(&args.cache.pin),
            },
            fill_rate: args.cache.fill_rate,
            agent,
            placement: args.placement,
            allow_other: args.allow_other,
            exclusive: args.exclusive,
            policy,
            rules,
            limit: args.limit.unwrap_or_default(),
            limit_rules,
            auto_sync: args.auto_sync == Switch::On,
        })
    }

    /// Takes the state directory for this process.
    ///
    /// # Errors
    /// Another process uses it, or it belongs to another share.
    pub fn take_state(&self) -> Result<StateDir, UserError> {
        if self.removable {
            return StateDir::take_removable(&self.state_dir, "drive", &self.share);
        }
        StateDir::take(&self.state_dir, "drive", &self.share)
    }
}

/// The rules file that was named, or the user's own, where there is one.
fn check_rules<T: Outcome>(path: &Path) -> Result<(), UserError> {
    let failed = |e| UserError::file("read the rules in", path, &e);
    let text = fs::read_to_string(path).map_err(failed)?;
    let rules = crate::policy::rules::parse::<T>(&text);
    rules.map(drop).map_err(|e| {
        UserError::new(
            "bad-rules",
            format!("{}: {e}", path.display()),
            "mend the rules: docs/RULES.md says how they are written",
        )
    })
}

fn rules_file(args: &MountArgs) -> Result<Option<PathBuf>, UserError> {
    let path = match &args.rules {
        Some(path) => absolute(path),
        None => match super::paths::config_base() {
            Some(base) if base.join("rules").is_file() => base.join("rules"),
            _ if args.mode == Some(Policy::Rules) => {
                return Err(UserError::new(
                    "no-rules",
                    "the policy `rules` needs a file with rules",
                    "name it with --rules FILE, or use --mode auto",
                ));
            }
            _ => return Ok(None),
        },
    };
    // Wrong rules are said before anything is mounted.
    if args.rules.is_some() || args.mode == Some(Policy::Rules) {
        check_rules::<Then>(&path)?;
    }
    Ok(Some(path))
}

fn given_patterns(given: &[String]) -> Option<Vec<String>> {
    (!given.is_empty()).then(|| given.to_vec())
}

fn check_share(given: &Path) -> Result<PathBuf, UserError> {
    if let Some(text) = given.to_str()
        && (text.contains("://") || text.starts_with(r"\\"))
    {
        return Err(UserError::not_in_this_version(
            &format!("reaching a share by address ({text})"),
            "give it as smb://user@server/share, or mount it with the system and give the directory",
        ));
    }
    let failed = |e: &io::Error| match e.kind() {
        io::ErrorKind::NotFound => UserError::new(
            "share-missing",
            format!("the share {} does not exist", given.display()),
            "mount the share there, or name another directory with --share",
        ),
        io::ErrorKind::NotADirectory => not_a_directory("share", given),
        _ => UserError::file("read the share", given, e),
    };
    let share = given.canonicalize().map_err(|e| failed(&e))?;
    fs::read_dir(&share).map_err(|e| failed(&e))?;
    Ok(share)
}

fn not_a_directory(what: &str, path: &Path) -> UserError {
    UserError::new(
        format!("{what}-not-directory"),
        format!("the {what} {} is not a directory", path.display()),
        "name a directory",
    )
}

fn check_mountpoint(given: &Path) -> Result<PathBuf, UserError> {
    let path = absolute(given);
    let failed = |e: &io::Error| match e.kind() {
        io::ErrorKind::NotFound => UserError::new(
            "mountpoint-missing",
            format!("the mountpoint {} does not exist", path.display()),
            format!("make it: mkdir -p {}", path.display()),
        ),
        io::ErrorKind::NotADirectory => not_a_directory("mountpoint", &path),
        io::ErrorKind::NotConnected => UserError::new(
            "mountpoint-dead",
            format!("a dead mount is left at {}", path.display()),
            format!("remove it: fusermount3 -u {}", path.display()),
        ),
        _ => UserError::file("look at the mountpoint", &path, e),
    };
    let meta = match fs::metadata(&path) {
        Err(e) if e.kind() == io::ErrorKind::NotConnected && clear_dead_mount(&path) => {
            fs::metadata(&path)
        }
        other => other,
    }
    .map_err(|e| failed(&e))?;
    if !meta.is_dir() {
        return Err(not_a_directory("mountpoint", &path));
    }
    let path = path.canonicalize().map_err(|e| failed(&e))?;
    let parent = path
        .parent()
        .map(fs::metadata)
        .transpose()
        .map_err(|e| failed(&e))?;
    if parent.is_none_or(|p| p.dev() != meta.dev()) {
        return Err(UserError::new(
            "mountpoint-busy",
            format!("something is already mounted at {}", path.display()),
            "choose another directory, or unmount what is there",
        ));
    }
    let mut entries = fs::read_dir(&path).map_err(|e| failed(&e))?;
    if entries.next().is_some() {
        return Err(UserError::new(
            "mountpoint-not-empty",
            format!("the mountpoint {} is not empty", path.display()),
            "choose an empty directory: the drive would hide what is in it",
        ));
    }
    Ok(path)
}

/// After a daemon was killed its mount answers nothing but "not connected". Where it is a drive of ours,
/// it is taken away, so that the next mount just works. Says whether something was done.
fn clear_dead_mount(path: &Path) -> bool {
    let Ok(mounts) = fs::read_to_string("/proc/self/mountinfo") else {
        return false;
    };
    if !is_our_mount(&mounts, path) {
        return false;
    }
    let run = |program: &str, args: &[&str]| {
        let status = Command::new(program)
            .args(args)
            .arg(path)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status();
        status.is_ok_and(|s| s.success())
    };
    tracing::info!(mountpoint = %path.display(), "removing the dead mount of a killed daemon");
    run("fusermount3", &["-u", "-z"]) || run("umount", &["-l"])
}

/// Whether the mount table has a drive of ours at `path`: in `mountinfo` the fifth field is the mountpoint
/// (with octal escapes), and after the lone dash follow type and source.
fn is_our_mount(mountinfo: &str, path: &Path) -> bool {
    mountinfo.lines().any(|line| {
        let at = line.split(' ').nth(4).map(unescape_octal);
        let after = line.split_once(" - ").map_or("", |(_, after)| after);
        let mut fields = after.split(' ');
        let (kind, source) = (fields.next().unwrap_or(""), fields.next().unwrap_or(""));
        at.as_deref() == path.to_str()
            && kind.starts_with("fuse")
            && (kind.contains("pstsyncd") || source.contains("pstsyncd"))
    })
}

fn unescape_octal(field: &str) -> String {
    let mut out = Vec::new();
    let mut bytes = field.as_bytes();
    while let Some((&first, rest)) = bytes.split_first() {
        let code = rest.get(..3).filter(|_| first == b'\\');
        let value = code
            .and_then(|c| std::str::from_utf8(c).ok())
            .and_then(|c| u8::from_str_radix(c, 8).ok());
        match value {
            Some(value) => {
                out.push(value);
                bytes = rest.get(3..).unwrap_or_default();
            }
            None => {
                out.push(first);
                bytes = rest;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// A share, its drive and their state must not lie in one another: the daemon would wait for itself.
fn check_apart(share: &Path, mountpoint: &Path, state: &Path) -> Result<(), UserError> {
    let pairs = [
        ("mountpoint", mountpoint, "share", share),
        ("share", share, "mountpoint", mountpoint),
        ("state directory", state, "mountpoint", mountpoint),
        ("state directory", state, "share", share),
    ];
    for (inner_name, inner, outer_name, outer) in pairs {
        if inner.starts_with(outer) {
            return Err(UserError::new(
                "paths-overlap",
                format!(
                    "the {inner_name} {} lies in the {outer_name} {}",
                    inner.display(),
                    outer.display()
                ),
                "choose directories that lie apart",
            ));
        }
    }
    Ok(())
}

fn check_fuse(allow_other: bool) -> Result<(), UserError> {
    let device = Path::new("/dev/fuse");
    match File::options().read(true).write(true).open(device) {
        Ok(_) => {}
        Err(e) if e.kind() == io::ErrorKind::PermissionDenied => {
            return Err(UserError::new(
                "fuse-no-permission",
                "you may not use /dev/fuse",
                "ask the administrator to let you read and write it",
            ));
        }
        Err(_) => {
            return Err(UserError::new(
                "fuse-missing",
                "this system offers no FUSE: /dev/fuse is missing",
                "load the module (modprobe fuse), or give the container the device",
            ));
        }
    }
    if rustix::process::geteuid().is_root() {
        return Ok(());
    }
    let paths = std::env::var_os("PATH").unwrap_or_default();
    if !std::env::split_paths(&paths).any(|dir| dir.join("fusermount3").is_file()) {
        return Err(UserError::new(
            "fusermount-missing",
            "mounting as an ordinary user needs fusermount3, which is not installed",
            "install it (Debian: apt install fuse3), or mount as root",
        ));
    }
    if allow_other && !user_allow_other(&fs::read_to_string("/etc/fuse.conf").unwrap_or_default()) {
        return Err(UserError::new(
            "allow-other-forbidden",
            "this system does not let users open their drives to others",
            "add the line user_allow_other to /etc/fuse.conf, or mount without --allow-other",
        ));
    }
    Ok(())
}

fn user_allow_other(conf: &str) -> bool {
    conf.lines().any(|line| line.trim() == "user_allow_other")
}

impl AgentOptions {
    /// The agent named on the command line, if any.
    ///
    /// # Errors
    /// A file that cannot be read, or a value that is malformed.
    pub fn read(args: &AgentArgs) -> Result<Option<Self>, UserError> {
        if let Some(file) = &args.agent_invitation {
            let text = Secret::new(read_private(file, "invitation")?);
            // serde's message would quote the file, and with it the token.
            let invitation = serde_json::from_str::<Invitation>(text.expose()).map_err(|e| {
                UserError::new(
                    "bad-invitation",
                    format!(
                        "{} is no invitation of an agent (line {})",
                        file.display(),
                        e.line()
                    ),
                    "take the client.json that the agent wrote",
                )
            })?;
            return Self::new(
                &invitation.url,
                &invitation.ca_fingerprint,
                invitation.token,
            )
            .map(Some);
        }
        match (&args.agent_url, &args.agent_pin, &args.agent_token_file) {
            (Some(url), Some(pin), Some(file)) => {
                let token = read_private(file, "token")?.trim().to_owned();
                Self::new(url, pin, token).map(Some)
            }
            _ => Ok(None),
        }
    }

    fn new(url: &str, pin: &str, token: String) -> Result<Self, UserError> {
        let url = url.trim_end_matches('/');
        if url.strip_prefix("https://").is_none_or(str::is_empty) {
            return Err(UserError::new(
                "bad-agent-url",
                format!("{url} is no address of an agent"),
                "give it as https://server:port",
            ));
        }
        let ca_fingerprint = fingerprint(pin).ok_or_else(|| {
            UserError::new(
                "bad-agent-pin",
                "the agent's fingerprint is not 64 hexadecimal digits",
                "copy it from what agent serve printed",
            )
        })?;
        if token.is_empty() || token.contains(|c: char| c.is_whitespace() || c.is_control()) {
            return Err(UserError::new(
                "bad-agent-token",
                "the agent's token is empty or has spaces in it",
                "take the token file that the agent wrote",
            ));
        }
        Ok(Self {
            url: url.to_owned(),
            ca_fingerprint,
            token: Secret::new(token),
        })
    }
}

/// A SHA-256 in hexadecimal, as tools print it: with or without colons and prefix, in either case.
fn fingerprint(text: &str) -> Option<[u8; 32]> {
    let digits = text
        .trim()
        .strip_prefix("sha256:")
        .unwrap_or(text.trim())
        .replace(':', "");
    if digits.len() != 64 || !digits.bytes().all(|b| b.is_ascii_hexdigit()) {
        return None;
    }
    let mut bytes = [0; 32];
    for (i, byte) in bytes.iter_mut().enumerate() {
        *byte = u8::from_str_radix(digits.get(i * 2..i * 2 + 2)?, 16).ok()?;
    }
    Some(bytes)
}

/// A small text file that holds a secret. Others being able to read it is worth a warning, not more.
fn read_private(path: &Path, what: &str) -> Result<String, UserError> {
    let failed = |e| UserError::file(&format!("read the agent's {what}"), path, &e);
    let file = File::open(path).map_err(failed)?;
    if file.metadata().map_err(failed)?.mode() & 0o077 != 0 {
        tracing::warn!(file = %path.display(), "other users can open this {what}: chmod 600 it");
    }
    let mut text = String::new();
    let n = file
        .take(MAX_AGENT_FILE + 1)
        .read_to_string(&mut text)
        .map_err(failed)?;
    if n as u64 > MAX_AGENT_FILE {
        return Err(failed(io::ErrorKind::FileTooLarge.into()));
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_our_own_mounts_count_as_ours() {
        let table = "36 25 0:40 / /mnt/a rw - ext4 /dev/sda1 rw\n\
            37 25 0:41 / /mnt/my\\040mail rw,nosuid shared:1 - fuse pstsyncd rw\n\
            38 25 0:42 / /mnt/b rw - fuse.sshfs host: rw\n\
            39 25 0:43 / /mnt/c rw - fuse.pstsyncd share rw\n";
        assert!(is_our_mount(table, Path::new("/mnt/my mail")));
        assert!(is_our_mount(table, Path::new("/mnt/c")));
        assert!(!is_our_mount(table, Path::new("/mnt/a")));
        assert!(!is_our_mount(table, Path::new("/mnt/b")));
        assert!(!is_our_mount(table, Path::new("/mnt")));
    }

    #[test]
    fn share_drive_and_state_lie_apart() {
        let apart = |share: &str, mount: &str, state: &str| {
            check_apart(Path::new(share), Path::new(mount), Path::new(state))
        };
        apart("/s", "/m", "/st").unwrap();
        apart("/s", "/sm", "/sst").unwrap();
        for (share, mount, state) in [
            ("/s", "/s", "/st"),
            ("/s", "/s/m", "/st"),
            ("/m/s", "/m", "/st"),
            ("/s", "/m", "/m/x"),
            ("/s", "/m", "/s/x"),
        ] {
            assert_eq!(
                apart(share, mount, state).unwrap_err().code,
                "paths-overlap"
            );
        }
    }

    #[test]
    fn agents_are_checked_before_they_are_used() {
        let pin = "AB:".repeat(31) + "CD";
        let agent = AgentOptions::new("https://server:8443/", &pin, "t0ken".into()).unwrap();
        assert_eq!(agent.url, "https://server:8443");
        assert_eq!(agent.ca_fingerprint[..31], [0xAB; 31]);
        assert_eq!(agent.ca_fingerprint[31], 0xCD);
        assert_eq!(agent.token.expose(), "t0ken");
        let code = |url, pin: &str, token: &str| {
            AgentOptions::new(url, pin, token.into())
                .err()
                .map(|e| e.code)
        };
        assert_eq!(
            code("http://server", &pin, "t").as_deref(),
            Some("bad-agent-url")
        );
        assert_eq!(
            code("https://", &pin, "t").as_deref(),
            Some("bad-agent-url")
        );
        assert_eq!(
            code("https://s", "abc", "t").as_deref(),
            Some("bad-agent-pin")
        );
        assert_eq!(
            code("https://s", &pin, "a b").as_deref(),
            Some("bad-agent-token")
        );
        assert_eq!(
            code("https://s", &pin, "").as_deref(),
            Some("bad-agent-token")
        );
    }

    #[test]
    fn a_broken_invitation_is_not_quoted() {
        let temp = tempfile::tempdir().unwrap();
        let file = temp.path().join("client.json");
        fs::write(
            &file,
            r#"{"url":"https://s","ca_fingerprint":"x","token":["s3cret"]}"#,
        )
        .unwrap();
        let args = AgentArgs {
            agent_url: None,
            agent_pin: None,
            agent_token_file: None,
            agent_invitation: Some(file),
        };
        let error = AgentOptions::read(&args).err().unwrap();
        assert_eq!(error.code, "bad-invitation");
        assert!(!error.to_string().contains("s3cret"));
    }

    #[test]
    fn fuse_conf_is_read_as_fusermount_reads_it() {
        assert!(user_allow_other("mount_max = 10\nuser_allow_other\n"));
        assert!(!user_allow_other("#user_allow_other\n"));
    }
}
