//! `--background`: the same program again, detached, and a pipe that says when it is ready.
//!
//! The parent starts itself with `--detached`; the child makes a session of its own, logs to a file in
//! the state directory, and writes one JSON line to its standard output: `{"ready":…}` once the drive
//! answers, or `{"error":…}`. The parent waits for that line, or for the pipe's end, and passes the
//! outcome on. So `mount --background` either leaves a working drive, or says why not.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

use super::{DriveOptions, Ready};
use crate::cli::{MountArgs, Switch};
use crate::error::{Outcome, UserError};
use crate::exit::ExitStatus;
use crate::output::Output;

/// A drive that is not ready after this time has failed.
const PATIENCE: Duration = Duration::from_secs(120);

/// Bound of the child's line, in bytes.
const MAX_LINE: u64 = 64 * 1024;

/// A log longer than this is set aside at the next start, in bytes.
const MAX_LOG: u64 = 16 * 1024 * 1024;

/// What the child says to its parent.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Word {
    /// The drive answers.
    Ready(Ready),
    /// It will not.
    Error(UserError),
}

/// Starts the daemon of this drive in the background and waits until it is ready.
///
/// # Errors
/// Whatever kept the drive from being mounted.
pub fn start(args: &MountArgs, verbose: u8, out: &mut Output) -> Outcome {
    // Checked here too, so that what can be known beforehand leaves no log of a drive that never was.
    let options = DriveOptions::check(args)?;
    let (log, log_path) = open_log(&options)?;
    let program = std::env::current_exe()
        .map_err(|e| UserError::file("find the program", Path::new("pstsyncd"), &e))?;
    // A password that came by a descriptor has been read: the child gets it by its own.
    let password = options
        .smb
        .as_ref()
        .filter(|_| args.smb.password_fd.is_some());
    let mut child = Command::new(&program)
        .args(child_args(args, verbose))
        .stdin(password.map_or_else(Stdio::null, |_| Stdio::piped()))
        .stdout(Stdio::piped())
        .stderr(log)
        .spawn()
        .map_err(|e| UserError::file("start", &program, &e))?;
    if let (Some(smb), Some(mut stdin)) = (password, child.stdin.take()) {
        // A child that ended already says why below.
        let _ = super::smb::hand_on(smb, &mut stdin);
    }
    let word = first_word(&mut child, &log_path);
    match word {
        Ok(Word::Ready(ready)) => {
            out.result(&ready, |out| {
                out.line(ready.sentence())?;
                out.line(format_args!("Its log is {}", log_path.display()))
            })?;
            Ok(ExitStatus::Synced)
        }
        Ok(Word::Error(error)) => {
            let _ = child.wait();
            Err(error)
        }
        Err(error) => {
            // A child that is not ready must not become so after we said that it failed.
            let _ = child.kill();
            let _ = child.wait();
            Err(error)
        }
    }
}

/// The command line of the child: the same, detached.
fn child_args(args: &MountArgs, verbose: u8) -> Vec<OsString> {
    let mut line: Vec<OsString> = vec!["mount".into(), "--detached".into()];
    line.extend((0..verbose).map(|_| "-v".into()));
    line.extend(["--share".into(), args.share.clone().into()]);
    if args.smb.smb_encrypt {
        line.push("--smb-encrypt".into());
    }
    if args.smb.kerberos {
        line.push("--kerberos".into());
    }
    let mut option = |name: &str, value: Option<OsString>| {
        if let Some(value) = value {
            line.extend([name.into(), value]);
        }
    };
    let smb = &args.smb;
    option("--password-file", smb.password_file.clone().map(Into::into));
    option("--password-fd", smb.password_fd.map(|_| "0".into()));
    option("--state-dir", args.state_dir.clone().map(Into::into));
    let cache = &args.cache;
    option("--cache", cache.cache.clone().map(Into::into));
    let bytes = |n: u64| n.to_string().into();
    option("--cache-size", cache.cache_size.map(bytes));
    option("--fill-rate", cache.fill_rate.map(bytes));
    for pattern in &cache.monitor {
        option("--monitor", Some(pattern.into()));
    }
    for pattern in &cache.pin {
        option("--pin", Some(pattern.into()));
    }
    option("--agent", args.agent.agent_url.clone().map(Into::into));
    option("--agent-pin", args.agent.agent_pin.clone().map(Into::into));
    option(
        "--agent-token-file",
        args.agent.agent_token_file.clone().map(Into::into),
    );
    option(
        "--agent-invitation",
        args.agent.agent_invitation.clone().map(Into::into),
    );
    let placement = args.placement.to_possible_value();
    option("--placement", placement.map(|p| p.get_name().into()));
    option("--mode", args.mode.map(|mode| mode.to_string().into()));
    option("--rules", args.rules.clone().map(Into::into));
    option("--limit", args.limit.map(|cap| cap.words().into()));
    option("--limit-rules", args.limit_rules.clone().map(Into::into));
    if args.auto_sync == Switch::Off {
        option("--auto-sync", Some("off".into()));
    }
    if cache.new_cache {
        line.push("--new-cache".into());
    }
    if args.allow_other {
        line.push("--allow-other".into());
    }
    if args.exclusive {
        line.push("--exclusive".into());
    }
    line.extend(["--".into(), args.mountpoint.clone().into()]);
    line
}

fn open_log(options: &DriveOptions) -> Result<(File, PathBuf), UserError> {
    let state = &options.state_dir;
    let path = state.join("daemon.log");
    let failed = |e| UserError::file("write the log", &path, &e);
    match super::paths::private_dir(state) {
        // The volume may keep no permissions: the child looks closer, and says so.
        Err(_) if options.removable && state.is_dir() => {}
        other => other?,
    }
    if fs::metadata(&path).is_ok_and(|m| m.len() > MAX_LOG) {
        fs::rename(&path, path.with_extension("log.1")).map_err(failed)?;
    }
    let log = OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o600)
        .open(&path)
        .map_err(failed)?;
    Ok((log, path))
}

fn first_word(child: &mut Child, log: &Path) -> Result<Word, UserError> {
    let died = || {
        UserError::new(
            "daemon-died",
            "the daemon ended before the drive was ready",
            format!("see its log: {}", log.display()),
        )
    };
    let stdout = child.stdout.take().ok_or_else(died)?;
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || {
        let mut line = String::new();
        let read = BufReader::new(stdout.take(MAX_LINE)).read_line(&mut line);
        let _ = sender.send(read.map(|_| line));
    });
    match receiver.recv_timeout(PATIENCE) {
        Ok(Ok(line)) => serde_json::from_str(&line).map_err(|_| died()),
        Ok(Err(_)) => Err(died()),
        Err(_) => Err(UserError::new(
            "daemon-slow",
            format!(
                "the drive was not ready after {} seconds",
                PATIENCE.as_secs()
            ),
            format!(
                "check the link to the share, and the log: {}",
                log.display()
            ),
        )),
    }
}

/// First thing in the child: a session of its own, so that the terminal's end does not reach it.
///
/// # Errors
/// The system refuses.
pub fn detach() -> Result<(), UserError> {
    // Refused only to the leader of a process group, which a started child is not.
    rustix::process::setsid().map(drop).map_err(|e| {
        UserError::new(
            "detach",
            format!("the daemon cannot leave its session: {e}"),
            "start it with mount --background",
        )
    })
}

/// Says the child's one word to the parent and closes the pipe.
pub fn say(word: &Word) {
    let mut out = std::io::stdout().lock();
    if let Ok(line) = serde_json::to_string(word) {
        // The parent may have been interrupted; the drive is there all the same.
        let _ = writeln!(out, "{line}");
        let _ = out.flush();
    }
    if let Ok(null) = OpenOptions::new().write(true).open("/dev/null") {
        let _ = rustix::stdio::dup2_stdout(null);
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::cli::{Cli, Command as Verb};

    #[test]
    fn the_child_is_asked_what_the_parent_was_asked() {
        let line = [
            "pstsyncd",
            "mount",
            "--background",
            "--share",
            "/s",
            "--state-dir",
            "/st",
            "--rules",
            "my rules",
            "--mode",
            "cached",
            "--placement",
            "local",
            "--cache-size",
            "20G",
            "--fill-rate",
            "2M",
            "--monitor",
            "*.mail",
            "--pin",
            "a/*",
            "--pin",
            "**/*.pst",
            "--agent",
            "https://a",
            "--agent-pin",
            "p",
            "--agent-token-file",
            "/t",
            "--allow-other",
            "--auto-sync",
            "off",
            "-vv",
            "/m",
        ];
        let Verb::Mount(args) = Cli::parse_from(line).command else {
            panic!()
        };
        let mut child = vec![OsString::from("pstsyncd")];
        child.extend(child_args(&args, 2));
        let parsed = Cli::parse_from(child);
        assert_eq!(parsed.verbose, 2);
        let Verb::Mount(again) = parsed.command else {
            panic!()
        };
        assert!(again.detached && !again.background && again.allow_other);
        assert_eq!(again.share, args.share);
        assert_eq!(again.mountpoint, args.mountpoint);
        assert_eq!(again.state_dir, args.state_dir);
        assert_eq!(again.cache.cache_size, Some(20 << 30));
        assert_eq!(again.cache.fill_rate, Some(2 << 20));
        assert_eq!(again.cache.monitor, ["*.mail"]);
        assert_eq!(again.cache.pin, ["a/*", "**/*.pst"]);
        assert_eq!(again.mode, args.mode);
        assert_eq!(again.placement, args.placement);
        assert_eq!(again.rules.as_deref(), Some(Path::new("my rules")));
        assert_eq!(again.auto_sync, Switch::Off);
        assert_eq!(again.agent.agent_url, args.agent.agent_url);
        assert_eq!(again.agent.agent_pin, args.agent.agent_pin);
        assert_eq!(again.agent.agent_token_file, args.agent.agent_token_file);
        assert_eq!(again.agent.agent_invitation, None);
    }

    /// An option that is added to `mount` and forgotten here would be ignored in the background.
    #[test]
    fn no_option_is_forgotten() {
        use clap::CommandFactory;

        let line = |more: &[&str]| {
            let mut line = vec![
                "pstsyncd",
                "mount",
                "--background",
                "--share",
                "/s",
                "--rules",
                "r",
            ];
            line.extend([
                "--mode",
                "cached",
                "--placement",
                "local",
                "--cache-size",
                "20G",
            ]);
            line.extend([
                "--fill-rate",
                "2M",
                "--monitor",
                "m",
                "--pin",
                "p",
                "--allow-other",
            ]);
            line.extend([
                "--limit",
                "500k",
                "--limit-rules",
                "l",
                "--auto-sync",
                "off",
            ]);
            line.extend(more.iter().copied());
            line.push("/m");
            let Verb::Mount(args) = Cli::parse_from(line).command else {
                panic!()
            };
            child_args(&args, 0)
        };
        let mut passed = line(&[
            "--state-dir",
            "d",
            "--exclusive",
            "--password-file",
            "p",
            "--smb-encrypt",
        ]);
        passed.extend(line(&[
            "--cache",
            "d",
            "--new-cache",
            "--agent-invitation",
            "i",
            "--kerberos",
        ]));
        let agent = [
            "--agent",
            "https://a",
            "--agent-pin",
            "p",
            "--agent-token-file",
            "t",
        ];
        passed.extend(line(&[&agent[..], &["--password-fd", "3"]].concat()));
        let cli = Cli::command();
        let mount = cli.find_subcommand("mount").expect("there");
        for option in mount.get_opts() {
            let name = format!("--{}", option.get_long().expect("a long name"));
            let own = ["--background", "--json", "--verbose"].contains(&name.as_str());
            let there = passed.iter().any(|word| *word == *name);
            assert!(own || there, "{name} is forgotten");
        }
    }
}
