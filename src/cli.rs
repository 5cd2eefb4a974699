//! The command line: every verb, argument and default, and nothing else.

use std::path::PathBuf;

use clap::{ArgAction, Args, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;

use crate::control::Policy;
use crate::daemon::Placement;
use crate::policy::cap::Cap;

/// A virtual network drive for PST files that syncs mail objects, not bytes.
#[derive(Parser)]
#[command(
    name = "pstsyncd",
    version,
    about,
    propagate_version = true,
    max_term_width = 100
)]
#[command(after_help = "Exit codes: 0 synced, 2 pending, 3 conflicts, 4 offline, 5 error")]
pub struct Cli {
    /// Write results as JSON, one value a line; an error is one JSON line on standard error
    #[arg(long, global = true)]
    pub json: bool,
    /// Say more in the log (repeat for more: -vv)
    #[arg(short, long, global = true, action = ArgAction::Count)]
    pub verbose: u8,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The verbs.
#[derive(Subcommand)]
pub enum Command {
    /// Mount a drive over a share
    Mount(Box<MountArgs>),
    /// Unmount a drive: waits until everything is synced, unless told --now
    Unmount(UnmountArgs),
    /// Show or set how a drive uses the link to its share
    Mode(ModeArgs),
    /// Show what a drive does, and what waits to be synced
    Status(DriveArg),
    /// Show what is known of a drive's link, and the last changes of its state
    Link(DriveArg),
    /// Show or set how much of the link a drive may use
    Limit(LimitArgs),
    /// Sync the containers of a drive, or show how that would be done
    Sync(SyncArgs),
    /// Keep an SMB share's password in the desktop's keyring
    #[command(subcommand)]
    Password(PasswordCommand),
    /// Look into a drive's cache without its daemon or its share
    #[command(subcommand)]
    Cache(CacheCommand),
    /// The server that applies change lists beside the share
    #[command(subcommand)]
    Agent(AgentCommand),
    /// Look into, compare and edit PST files
    #[command(subcommand)]
    Pst(PstCommand),
    /// Print completions for a shell
    Completions {
        /// The shell to complete for
        shell: Shell,
    },
}

/// Arguments of `mount`.
#[derive(Args)]
pub struct MountArgs {
    /// The share: smb://user@server/share, or a directory (a mounted share, or any other directory)
    #[arg(long, value_name = "SHARE")]
    pub share: PathBuf,
    /// How to sign in to an SMB share.
    #[command(flatten)]
    pub smb: SmbArgs,
    /// Where the drive appears: an empty directory
    pub mountpoint: PathBuf,
    /// How to reach the agent beside the share.
    #[command(flatten)]
    pub agent: AgentArgs,
    /// Which way changes of PST files take to the share: from here, or by the agent
    #[arg(long, value_name = "WAY", default_value = "auto")]
    pub placement: Placement,
    /// Where cache, journal and sync database are kept [default: by share, in the state directory]
    #[arg(long, value_name = "DIR")]
    pub state_dir: Option<PathBuf>,
    /// What is kept here.
    #[command(flatten)]
    pub cache: CacheArgs,
    /// How the drive uses the link at first; `pstsyncd mode` changes it [default: auto for an smb://
    /// share, online for a directory]
    #[arg(long, value_name = "POLICY")]
    pub mode: Option<Policy>,
    /// The file that `--mode rules` goes by; read anew when it changes [default: rules in the
    /// configuration directory]
    #[arg(long, value_name = "FILE")]
    pub rules: Option<PathBuf>,
    /// Use no more of the link than this, in bits a second, as in 500k, "up 64k down 2M" or "down 1M"
    #[arg(long, value_name = "RATES")]
    pub limit: Option<Cap>,
    /// Rules that say when which limit holds, in the language of --rules; read anew when the file
    /// changes. Where none holds, --limit does
    #[arg(long, value_name = "FILE")]
    pub limit_rules: Option<PathBuf>,
    /// Sync by itself what waits: when the share comes back, and when programs rest
    #[arg(long, value_name = "SWITCH", default_value = "on")]
    pub auto_sync: Switch,
    /// Return when the drive is ready, and leave it running
    #[arg(long)]
    pub background: bool,
    /// Let other users enter the drive
    #[arg(long)]
    pub allow_other: bool,
    /// Without an agent: nothing else opens the PSTs on the share while they are synced, so go
    /// without file leases (for shares that do not have them)
    #[arg(long, conflicts_with_all = ["agent_url", "agent_invitation"])]
    pub exclusive: bool,
    /// Set by --background on the process it starts: readiness goes to standard output as JSON
    #[arg(long, hide = true, conflicts_with = "background")]
    pub detached: bool,
}

/// Commands for passwords.
#[derive(Subcommand)]
pub enum PasswordCommand {
    /// Ask for the password, or read it from standard input, and put it into the keyring; `mount`
    /// finds it there
    Set {
        /// The share, or any other of that server and user: smb://user@server/share
        share: String,
    },
    /// Take the password out of the keyring
    Forget {
        /// The share, or any other of that server and user: smb://user@server/share
        share: String,
    },
}

/// How `mount` signs in to an SMB share. Without any of these: with the password in the keyring.
#[derive(Args)]
pub struct SmbArgs {
    /// File with the password of the user in the share's address; nobody else may read it
    #[arg(long, value_name = "FILE")]
    pub password_file: Option<PathBuf>,
    /// File descriptor to read that password from
    #[arg(long, value_name = "FD", conflicts_with = "password_file")]
    pub password_fd: Option<u32>,
    /// Sign in with the Kerberos ticket that kinit or the system's login got (KRB5CCNAME)
    #[arg(long, conflicts_with_all = ["password_file", "password_fd"])]
    pub kerberos: bool,
    /// Refuse a server that does not encrypt what is sent
    #[arg(long)]
    pub smb_encrypt: bool,
}

/// Whether something is done.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum Switch {
    /// Do it
    On,
    /// Leave it
    Off,
}

/// What `mount` keeps of the share.
#[derive(Args)]
pub struct CacheArgs {
    /// As --state-dir, on a drive that may be unplugged and go on at another host
    #[arg(long, value_name = "DIR", conflicts_with = "state_dir")]
    pub cache: Option<PathBuf>,
    /// Begin a new cache there although this share's is known to be on another volume
    #[arg(long, requires = "cache")]
    pub new_cache: bool,
    /// How much of the share is kept, as in 20G; K, M, G and T are powers of 1024 [default: all
    /// that the volume takes]
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    pub cache_size: Option<u64>,
    /// Sync the files of this pattern by the objects in them (repeatable) [default: as last time,
    /// at first **/*.pst]
    #[arg(long, value_name = "GLOB", value_parser = parse_glob)]
    pub monitor: Vec<String>,
    /// Keep the files of this pattern whole, and fetch them ahead (repeatable) [default: as last
    /// time, at first the monitored files]
    #[arg(long, value_name = "GLOB", value_parser = parse_glob)]
    pub pin: Vec<String>,
    /// Bytes a second that fetching ahead may take from the link, as in 2M
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    pub fill_rate: Option<u64>,
}

/// A number of bytes, with or without a unit.
fn parse_size(text: &str) -> Result<u64, String> {
    let upper = text.trim().to_ascii_uppercase();
    let word = upper.trim_end_matches('B').trim_end_matches('I');
    let (digits, shift) = match word.chars().last() {
        Some('K') => (word.trim_end_matches('K'), 10),
        Some('M') => (word.trim_end_matches('M'), 20),
        Some('G') => (word.trim_end_matches('G'), 30),
        Some('T') => (word.trim_end_matches('T'), 40),
        _ => (word, 0),
    };
    let number = digits.trim().parse::<u64>().ok().filter(|n| *n > 0);
    number
        .and_then(|n| n.checked_mul(1 << shift))
        .ok_or_else(|| format!("{text} is no size: give it as in 500M or 20G"))
}

/// A pattern that can match a path of the drive.
fn parse_glob(text: &str) -> Result<String, String> {
    if text.trim_matches('/').is_empty() {
        return Err("an empty pattern matches nothing".to_owned());
    }
    Ok(text.trim_start_matches('/').to_owned())
}

/// How `mount` reaches an agent: by hand, or by the invitation that the agent wrote.
#[derive(Args)]
pub struct AgentArgs {
    /// The agent's address, as in https://server:8443
    #[arg(long = "agent", value_name = "URL", requires_all = ["agent_pin", "agent_token_file"])]
    pub agent_url: Option<String>,
    /// SHA-256 fingerprint of the agent's certificate, as `agent serve` prints it
    #[arg(long, value_name = "FINGERPRINT", requires = "agent_url")]
    pub agent_pin: Option<String>,
    /// File that holds the agent's token
    #[arg(long, value_name = "FILE", requires = "agent_url")]
    pub agent_token_file: Option<PathBuf>,
    /// Invitation file of the agent: address, fingerprint and token in one
    #[arg(long, value_name = "FILE",
        conflicts_with_all = ["agent_url", "agent_pin", "agent_token_file"])]
    pub agent_invitation: Option<PathBuf>,
}

/// Which drive is meant.
#[derive(Args)]
pub struct DriveArg {
    /// Mountpoint of the drive [default: the only one that is mounted]
    #[arg(long, value_name = "MOUNTPOINT")]
    pub drive: Option<PathBuf>,
}

/// Arguments of `unmount`.
#[derive(Args)]
pub struct UnmountArgs {
    /// Mountpoint of the drive [default: the only one that is mounted]
    pub mountpoint: Option<PathBuf>,
    /// Do not wait: keep what is not synced in the journal, and say what it is
    #[arg(long)]
    pub now: bool,
    /// Wait so many seconds at most until everything is synced; 0 tries once [default: no limit]
    #[arg(long, value_name = "SECONDS", conflicts_with = "now")]
    pub timeout: Option<u64>,
}

/// Verbs of `cache`.
#[derive(Subcommand)]
pub enum CacheCommand {
    /// List the files that the cache knows; ends with 2 where something waits for the share
    Ls {
        /// Which cache.
        #[command(flatten)]
        at: CacheAt,
        /// Only files that wait for the share
        #[arg(long)]
        pending: bool,
    },
    /// Check journal, cache files and the PSTs in them; ends with 5 where something is wrong
    Verify {
        /// Which cache.
        #[command(flatten)]
        at: CacheAt,
        /// Hold what is a copy of the share's against the share in this directory
        #[arg(long, value_name = "DIR")]
        against: Option<PathBuf>,
    },
    /// Take files out of the cache, with all that was written to them
    Export(ExportArgs),
}

/// Which cache is meant.
#[derive(Args)]
pub struct CacheAt {
    /// The directory that mount was given with --cache or --state-dir [default: the only one]
    #[arg(long = "cache", visible_alias = "state-dir", value_name = "DIR")]
    pub state_dir: Option<PathBuf>,
    /// The share of the drive; it need not be there any more
    #[arg(long, value_name = "DIR", conflicts_with = "state_dir")]
    pub share: Option<PathBuf>,
}

/// Arguments of `cache export`.
#[derive(Args)]
pub struct ExportArgs {
    /// Which cache.
    #[command(flatten)]
    pub at: CacheAt,
    /// Files or folders, by their paths on the drive
    #[arg(
        required_unless_present = "all",
        conflicts_with = "all",
        value_name = "PATH"
    )]
    pub paths: Vec<String>,
    /// Everything of which something is here
    #[arg(long)]
    pub all: bool,
    /// Where to: made where it is missing; nothing in it is overwritten
    #[arg(long, value_name = "DIR")]
    pub to: PathBuf,
    /// Files that are not here whole too: as NAME.partial, with a list of the holes beside it
    #[arg(long)]
    pub partial: bool,
}

/// Arguments of `mode`.
#[derive(Args)]
pub struct ModeArgs {
    /// The policy, or `explain`: why the drive is in its state; without one it is shown
    pub policy: Option<Asked>,
    /// Go back to the policy from before after this time, as in 90s, 30m, 2h or 1d
    #[arg(long = "for", value_name = "DURATION", value_parser = parse_time, requires = "policy")]
    pub for_seconds: Option<u64>,
    /// Which drive.
    #[command(flatten)]
    pub drive: DriveArg,
}

/// Arguments of `limit`.
#[derive(Args)]
pub struct LimitArgs {
    /// Rates in bits a second, as in 500k, "up 64k down 2M" or "down 1M"; `unlimited`; or `default`:
    /// as mount was told. Without one the limit is shown
    #[arg(value_parser = parse_limit)]
    pub limit: Option<AskedLimit>,
    /// Go back to what mount was told after this time, as in 90s, 30m, 2h or 1d
    #[arg(long = "for", value_name = "DURATION", value_parser = parse_time, requires = "limit")]
    pub for_seconds: Option<u64>,
    /// Which drive.
    #[command(flatten)]
    pub drive: DriveArg,
}

/// What `limit` is asked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum AskedLimit {
    /// These rates.
    Cap(Cap),
    /// As mount was told.
    Default,
}

fn parse_limit(text: &str) -> Result<AskedLimit, String> {
    if text.eq_ignore_ascii_case("default") {
        return Ok(AskedLimit::Default);
    }
    text.parse().map(AskedLimit::Cap)
}

/// What `mode` is asked.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum Asked {
    /// By the measured link
    Auto,
    /// By the user's rules
    Rules,
    /// Pass through to the share
    Online,
    /// Journal, and ship change lists
    Cached,
    /// Journal, and leave the share alone
    Offline,
    /// Say which rule and which figures decided, and what would change it
    Explain,
}

impl Asked {
    /// The policy, if it is one.
    #[must_use]
    pub fn policy(self) -> Option<Policy> {
        match self {
            Self::Auto => Some(Policy::Auto),
            Self::Rules => Some(Policy::Rules),
            Self::Online => Some(Policy::Online),
            Self::Cached => Some(Policy::Cached),
            Self::Offline => Some(Policy::Offline),
            Self::Explain => None,
        }
    }
}

/// A time with its unit, in seconds.
fn parse_time(text: &str) -> Result<u64, String> {
    let units = [("s", 1), ("m", 60), ("h", 3600), ("d", 86400)];
    let seconds = units.iter().find_map(|(unit, factor)| {
        let number = text.trim().strip_suffix(unit)?;
        let plain = number.bytes().all(|b| b.is_ascii_digit());
        let number = number.parse::<u64>().ok().filter(|n| plain && *n > 0)?;
        number.checked_mul(*factor)
    });
    // A year is as good as for good.
    seconds
        .filter(|s| *s <= 366 * 86400)
        .ok_or_else(|| format!("{text} is no time: give it as in 90s, 30m, 2h or 1d"))
}

/// Arguments of `sync`.
#[derive(Args)]
#[command(args_conflicts_with_subcommands = true, arg_required_else_help = true)]
pub struct SyncArgs {
    /// What to do.
    #[command(subcommand)]
    pub command: Option<SyncCommand>,
    /// Sync nothing: show what waits, which way it would take, and why
    #[arg(long, required = true)]
    pub plan: bool,
    /// Which drive.
    #[command(flatten)]
    pub drive: DriveArg,
}

/// Verbs of `sync`.
#[derive(Subcommand)]
pub enum SyncCommand {
    /// Sync now, and wait for the verified end
    Now {
        /// One file of the drive [default: all that have changes]
        path: Option<PathBuf>,
        /// Send deletes even where they are most of the objects at the destination
        #[arg(long)]
        allow_deletes: bool,
        /// Which drive.
        #[command(flatten)]
        drive: DriveArg,
    },
}

/// Verbs of `agent`.
#[derive(Subcommand)]
pub enum AgentCommand {
    /// Serve the PST files under a directory to pinned clients
    Serve(ServeArgs),
}

/// Arguments of `agent serve`.
#[derive(Args)]
pub struct ServeArgs {
    /// The directory whose PST files the agent keeps in sync; it touches nothing outside
    #[arg(long, value_name = "DIR")]
    pub root: PathBuf,
    /// Address to listen on, as in 0.0.0.0:8443; port 0 takes a free one
    #[arg(long, value_name = "ADDR")]
    pub listen: String,
    /// Where keys, tokens and staged uploads are kept [default: by root, in the state directory]
    #[arg(long, value_name = "DIR")]
    pub state_dir: Option<PathBuf>,
    /// Nothing else opens the files under the root: go without leases where they do not work
    #[arg(long)]
    pub exclusive: bool,
    /// A name or address by which clients reach this server (repeatable)
    #[arg(long, value_name = "HOST")]
    pub name: Vec<String>,
}

/// Verbs of `pst`.
#[derive(Subcommand)]
pub enum PstCommand {
    /// Show a PST's format, size, counts and identity
    Info(PstFile),
    /// List the folders of a PST with their counts
    Ls {
        /// The file.
        #[command(flatten)]
        file: PstFile,
        /// List the messages too
        #[arg(short, long)]
        long: bool,
    },
    /// List every object with its folder, kind and fingerprint
    Inventory {
        /// The file.
        #[command(flatten)]
        file: PstFile,
        /// Fingerprints of all blocks of an object, not only of those that its node names
        #[arg(long)]
        blocks: bool,
        /// Read every object: fingerprints of the content, wherever and however it is stored
        #[arg(long, conflicts_with = "blocks")]
        content: bool,
    },
    /// Print every object as one canonical line: equal mail gives equal lines
    Dump(PstFile),
    /// Check a PST from its header to its folders' counts; ends with 5 where an error is found
    Check(CheckArgs),
    /// Compare two versions of a PST and write the change list and carrier as one file
    Diff {
        /// The older version
        old: PathBuf,
        /// The newer version
        new: PathBuf,
        /// Write the change list and carrier to this file
        #[arg(short, long, value_name = "FILE")]
        output: Option<PathBuf>,
    },
    /// Apply what `pst diff` wrote to a PST
    Apply {
        /// The PST to change
        file: PathBuf,
        /// The file that `pst diff` wrote
        changes: PathBuf,
    },
}

/// Arguments of `pst check`.
#[derive(Args)]
pub struct CheckArgs {
    /// The PST file
    pub file: PathBuf,
    /// Rebuild the allocation maps from the B-trees, and nothing else; what is replaced is kept in
    /// FILE.pstsyncd-maps
    #[arg(long)]
    pub repair_maps: bool,
    /// Put back what a repair replaced, from its backup; refused if the file was changed since
    #[arg(long, value_name = "BACKUP", conflicts_with = "repair_maps")]
    pub restore_maps: Option<PathBuf>,
    /// With a repair: nothing else opens the file, so go without a file lease (for file systems that
    /// do not have them)
    #[arg(long)]
    pub exclusive: bool,
}

/// A PST given by its path.
#[derive(Args)]
pub struct PstFile {
    /// The PST file
    pub file: PathBuf,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_definition_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn sizes_are_read_with_units() {
        assert_eq!(parse_size("4096"), Ok(4096));
        assert_eq!(parse_size("20G"), Ok(20 << 30));
        assert_eq!(parse_size("500 mib"), Ok(500 << 20));
        assert_eq!(parse_size("3kb"), Ok(3 << 10));
        for bad in ["", "G", "0", "-1", "1.5G", "99999999999T", "5x"] {
            assert!(parse_size(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn times_need_a_unit() {
        assert_eq!(parse_time("90s"), Ok(90));
        assert_eq!(parse_time("2h"), Ok(7200));
        assert_eq!(parse_time("1d"), Ok(86400));
        for bad in [
            "",
            "2",
            "h",
            "0s",
            "-1h",
            "+1h",
            "1.5h",
            "400d",
            "99999999999999999999h",
        ] {
            assert!(parse_time(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn an_agent_needs_its_pin_and_token() {
        let alone = Cli::try_parse_from(["pstsyncd", "mount", "--share", "s", "m", "--agent", "u"]);
        assert!(alone.is_err());
        let both = Cli::try_parse_from([
            "pstsyncd",
            "mount",
            "--share",
            "s",
            "m",
            "--agent",
            "u",
            "--agent-pin",
            "p",
            "--agent-token-file",
            "t",
            "--agent-invitation",
            "i",
        ]);
        assert!(both.is_err());
    }
}
