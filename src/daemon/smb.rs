//! A share on an SMB server, as `mount` is asked for it: its address, where its password comes from,
//! and what is said of a server that refuses.
//!
//! A password comes from a file that only its owner can open, from a file descriptor, or from the
//! keyring; never from the command line or the environment, where other programs see it. With Kerberos
//! there is none.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use vfs::path::Patterns;
use vfs::share::smb::{
    Credentials, Password, Retry, SmbAddress, SmbConfig, SmbError, SmbShare, Tickets,
};

use crate::cli::MountArgs;
use crate::error::UserError;
use crate::keyring;
use crate::secret::Secret;

/// Bound of a password, in bytes.
const MAX_PASSWORD: u64 = 1024;

/// Files that Windows programs open alone.
const ALONE: [&str; 2] = ["**/*.pst", "**/*.ost"];

/// How to reach a share on an SMB server.
pub struct SmbOptions {
    /// Where it is.
    pub address: SmbAddress,
    /// What the account proves itself with.
    pub proof: Proof,
    /// Insist on encryption.
    pub encrypt: bool,
}

/// What an account proves itself with.
pub enum Proof {
    /// Its password.
    Password(Secret<String>),
    /// A Kerberos ticket, which the cache has or will have.
    Kerberos(Tickets),
}

impl SmbOptions {
    /// What was asked, if the share is an `smb://` address.
    ///
    /// # Errors
    /// A bad address; no password, or one that others can read.
    pub fn read(args: &MountArgs) -> Result<Option<Self>, UserError> {
        let smb = &args.smb;
        let text = args.share.to_str().unwrap_or_default();
        if !text
            .get(..6)
            .is_some_and(|s| s.eq_ignore_ascii_case("smb://"))
        {
            let signs_in = smb.password_file.is_some() || smb.password_fd.is_some() || smb.kerberos;
            if signs_in || smb.smb_encrypt {
                return Err(UserError::new(
                    "not-smb",
                    format!(
                        "the share {} is not an smb:// address",
                        args.share.display()
                    ),
                    "leave out the password, --kerberos and --smb-encrypt, or give the share's address",
                ));
            }
            return Ok(None);
        }
        let address = SmbAddress::parse(text).map_err(|e| {
            UserError::new(
                "bad-share-address",
                e.to_string(),
                "give the share as smb://user@server/share",
            )
        })?;
        let proof = match (&smb.password_file, smb.password_fd) {
            _ if smb.kerberos => Proof::Kerberos(tickets()?),
            (Some(path), _) => Proof::Password(from_file(path)?),
            (None, Some(fd)) => Proof::Password(from_fd(fd)?),
            (None, None) => Proof::Password(from_keyring(&address)?),
        };
        Ok(Some(Self {
            address,
            proof,
            encrypt: smb.smb_encrypt,
        }))
    }

    /// The address as a path: what the drive's state is kept by.
    pub fn as_path(&self) -> PathBuf {
        PathBuf::from(self.address.to_string())
    }

    /// The share, of which `containers` are patterns of files that nobody else may write while they are open
    /// for writing here, beside those that Windows programs open so. A server that cannot be reached now is no reason not to mount: the drive begins with
    /// what it has. One that refuses is.
    ///
    /// # Errors
    /// What the server says.
    pub fn open(&self, containers: &[String]) -> Result<SmbShare, UserError> {
        let credentials: Credentials = match &self.proof {
            Proof::Password(password) => Password::new(password.expose().clone()).into(),
            Proof::Kerberos(tickets) => tickets.clone().into(),
        };
        let mut config = SmbConfig::new(self.address.clone(), credentials);
        config.encrypt = self.encrypt;
        let alone = ALONE
            .iter()
            .copied()
            .chain(containers.iter().map(String::as_str));
        config.alone = Patterns::new(&alone.collect::<Vec<_>>());
        let failed = |e: &io::Error| {
            UserError::new(
                "share-refused",
                format!("the share {} cannot be opened: {e}", self.address),
                "check server, share, user and password",
            )
        };
        let share = SmbShare::new(config).map_err(|e| failed(&e))?;
        match share.connect() {
            Ok(()) => Ok(share),
            Err(e) if SmbError::of(&e).is_some_and(|e| e.retry != Retry::Never) => {
                tracing::warn!(share = %self.address, error = %e, "the share is not there yet");
                Ok(share)
            }
            Err(e) => Err(failed(&e)),
        }
    }
}

/// Writes the password to the child of `--background`, which reads it from its standard input.
///
/// # Errors
/// The child is gone.
pub fn hand_on(options: &SmbOptions, to: &mut impl Write) -> io::Result<()> {
    match &options.proof {
        Proof::Password(password) => to.write_all(password.expose().as_bytes()),
        Proof::Kerberos(_) => Ok(()),
    }
}

/// Where the user's Kerberos tickets are.
fn tickets() -> Result<Tickets, UserError> {
    let set = |name| std::env::var(name).ok();
    let (cache, config) = (set("KRB5CCNAME"), set("KRB5_CONFIG"));
    let user = rustix::process::getuid().as_raw();
    Tickets::find(cache.as_deref(), config.as_deref(), user).map_err(|e| {
        UserError::new(
            "no-ticket-file",
            e.to_string(),
            "run kinit with KRB5CCNAME=FILE:/tmp/krb5cc_pstsyncd, and mount with the same",
        )
    })
}

fn from_keyring(address: &SmbAddress) -> Result<Secret<String>, UserError> {
    let Some(found) = keyring::look_up(address)? else {
        return Err(UserError::new(
            "no-password",
            format!("there is no password for {}", address.user),
            "put it into the keyring with pstsyncd password set, or into a file that only you can \
             read and name that with --password-file; or use --kerberos",
        ));
    };
    password(found.expose().as_slice()).map_err(|e| {
        UserError::new(
            "bad-password",
            format!(
                "the keyring's password for {} cannot be used: {e}",
                address.user
            ),
            "set it again with pstsyncd password set",
        )
    })
}

fn from_file(path: &Path) -> Result<Secret<String>, UserError> {
    let failed = |e| UserError::file("read the password in", path, &e);
    let file = File::open(path).map_err(failed)?;
    let meta = file.metadata().map_err(failed)?;
    if meta.is_file() && meta.mode() & 0o077 != 0 {
        return Err(UserError::new(
            "password-readable",
            format!("other users can open the password file {}", path.display()),
            format!("keep it to yourself: chmod 600 {}", path.display()),
        ));
    }
    password(file).map_err(failed)
}

fn from_fd(fd: u32) -> Result<Secret<String>, UserError> {
    let path = PathBuf::from(format!("/dev/fd/{fd}"));
    let failed = |e| UserError::file("read the password from", &path, &e);
    let file = File::open(&path).map_err(failed)?;
    password(file).map_err(failed)
}

/// The first line.
fn password(from: impl Read) -> io::Result<Secret<String>> {
    let mut text = String::new();
    let n = from.take(MAX_PASSWORD + 1).read_to_string(&mut text)?;
    let line = text.lines().next().unwrap_or_default();
    if n as u64 > MAX_PASSWORD || line.is_empty() || text.lines().count() > 1 {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "there is not just one line, the password, in it",
        ));
    }
    Ok(Secret::new(line.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_is_one_line() {
        let read = |text: &str| password(text.as_bytes()).map(|s| s.expose().clone());
        assert_eq!(read("s3cret\n").unwrap(), "s3cret");
        assert_eq!(read(" with spaces ").unwrap(), " with spaces ");
        assert_eq!(read("win\r\n").unwrap(), "win");
        for bad in ["", "\n", "a\nb\n", &"x".repeat(2000)] {
            let e = password(bad.as_bytes()).err().unwrap();
            assert_eq!(e.kind(), io::ErrorKind::InvalidData);
        }
    }
}
