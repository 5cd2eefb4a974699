//! Signing in with a Kerberos ticket that the user has already (`kinit`, or the system's login).
//!
//! The ticket cache is read anew for every session, so that a renewed ticket is found. A ticket for this
//! server is used as it is; with a ticket-granting ticket only, one for `cifs/server` is asked of the
//! realm's key distribution centre: the one that `krb5.conf` names, else the host with the realm's own
//! name, which is what domain controllers answer to.

use std::io;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use smb2::KerberosCredentials;
use smb2::auth::kerberos::ccache::{CCache, parse_ccache};

use super::SmbAddress;
use super::error::{Result, Retry, SmbError};

/// Bound of a ticket cache and of `krb5.conf`, in bytes.
const MAX_FILE: u64 = 4 << 20;

/// Where the tickets are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tickets {
    /// The ticket cache: a file.
    pub cache: PathBuf,
    /// The Kerberos library's configuration, where the realms' servers are named. It may be absent.
    pub config: PathBuf,
}

/// What keeps a ticket cache from being one of ours.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0} is a ticket cache of a kind that is not supported: keep tickets in a file (KRB5CCNAME=FILE:/...)"
)]
pub struct BadCache(String);

impl Tickets {
    /// What `KRB5CCNAME` and `KRB5_CONFIG` (`None`: not set) mean for a user with this number.
    ///
    /// # Errors
    /// The cache is not a file.
    pub fn find(
        cache: Option<&str>,
        config: Option<&str>,
        user: u32,
    ) -> std::result::Result<Self, BadCache> {
        let cache = match cache.filter(|c| !c.is_empty()) {
            None => PathBuf::from(format!("/tmp/krb5cc_{user}")),
            Some(name) => match name.split_once(':') {
                Some(("FILE", path)) => path.into(),
                // Without a kind it is a file.
                None => name.into(),
                Some(_) => return Err(BadCache(name.to_owned())),
            },
        };
        // Of several files the first counts, as in the library.
        let config = config.and_then(|c| c.split(':').find(|c| !c.is_empty()));
        Ok(Self {
            cache,
            config: config.unwrap_or("/etc/krb5.conf").into(),
        })
    }

    /// What to sign in to `address` with, now.
    pub(super) fn for_server(&self, address: &SmbAddress) -> Result<(CCache, KerberosCredentials)> {
        let data = bounded(&self.cache).map_err(|e| match e.kind() {
            io::ErrorKind::NotFound => no_ticket(format!(
                "there is no Kerberos ticket ({} is absent): get one with kinit",
                self.cache.display()
            )),
            _ => no_ticket(format!(
                "the Kerberos tickets in {} cannot be read: {e}",
                self.cache.display()
            )),
        })?;
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        let now = now.map_or(0, |d| d.as_secs());
        let cache = usable(&data, address, now).map_err(|e| e.at(&self.cache))?;
        let realm = cache.default_principal.realm.clone();
        let config = bounded(&self.config).unwrap_or_default();
        let kdc = kdc_of(&String::from_utf8_lossy(&config), &realm);
        let credentials = KerberosCredentials {
            username: address.user.clone(),
            password: String::new(),
            kdc_address: kdc.unwrap_or_else(|| realm.to_lowercase()),
            realm,
        };
        Ok((cache, credentials))
    }
}

/// Without a ticket there is no session, until somebody gets one, any moment.
fn no_ticket(sentence: String) -> SmbError {
    SmbError::new(Retry::Soon, io::ErrorKind::PermissionDenied, sentence)
}

fn bounded(path: &Path) -> io::Result<Vec<u8>> {
    use io::Read;
    let file = std::fs::File::open(path)?;
    // Opening a pipe, or reading it, might never end.
    if !file.metadata()?.is_file() {
        return Err(io::Error::other("this is not a file"));
    }
    let mut data = Vec::new();
    file.take(MAX_FILE + 1).read_to_end(&mut data)?;
    if data.len() as u64 > MAX_FILE {
        return Err(io::Error::other("the file is too large"));
    }
    Ok(data)
}

/// The tickets for this server and account that are valid at `now` (seconds since 1970).
fn usable(data: &[u8], address: &SmbAddress, now: u64) -> Result<CCache> {
    if address.host.parse::<std::net::IpAddr>().is_ok() {
        return Err(SmbError::new(
            Retry::Never,
            io::ErrorKind::InvalidInput,
            "Kerberos knows servers by name: give the server's name instead of its number",
        ));
    }
    let mut cache = parse_ccache(data)
        .map_err(|_| no_ticket("this is not a Kerberos ticket cache".to_owned()))?;
    let owner = &cache.default_principal;
    let realm = owner.realm.clone();
    let name = owner.components.join("/");
    let other = !name.eq_ignore_ascii_case(&address.user)
        || !(address.domain.is_empty() || address.domain.eq_ignore_ascii_case(&realm));
    if other {
        let wanted = if address.domain.is_empty() {
            address.user.clone()
        } else {
            format!("{}@{}", address.user, address.domain)
        };
        return Err(no_ticket(format!(
            "the Kerberos tickets are those of {name}@{realm}, not of {wanted}"
        )));
    }
    let serves = |c: &CCache| {
        c.find_service_ticket("cifs", &address.host, &realm)
            .is_some()
            || c.find_tgt(&realm).is_some()
    };
    let had = serves(&cache);
    cache
        .credentials
        .retain(|c| u64::from(c.endtime) > now && u64::from(c.starttime) <= now + 300);
    match (serves(&cache), had) {
        (true, _) => Ok(cache),
        (false, true) => Err(no_ticket(format!(
            "the Kerberos ticket of {name}@{realm} has expired: get a new one with kinit"
        ))),
        (false, false) => Err(no_ticket(format!(
            "{name}@{realm} has no Kerberos ticket for this server: get one with kinit"
        ))),
    }
}

/// The first server of a realm that `krb5.conf` names.
fn kdc_of(config: &str, realm: &str) -> Option<String> {
    let (mut realms, mut ours) = (false, false);
    for line in config.lines() {
        let line = line.split(['#', ';']).next().unwrap_or_default().trim();
        if let Some(section) = line.strip_prefix('[') {
            realms = section.trim_end_matches(']').trim() == "realms";
            ours = false;
            continue;
        }
        let Some((name, value)) = line.split_once('=') else {
            ours &= !line.starts_with('}');
            continue;
        };
        let (name, value) = (name.trim(), value.trim());
        if value.starts_with('{') {
            ours = realms && name == realm;
        } else if ours && name == "kdc" {
            let host = value.trim_start_matches("tcp/").trim_start_matches("udp/");
            return Some(host.to_owned()).filter(|h| !h.is_empty());
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn string(out: &mut Vec<u8>, text: &str) {
        out.extend_from_slice(&(text.len() as u32).to_be_bytes());
        out.extend_from_slice(text.as_bytes());
    }

    fn principal(out: &mut Vec<u8>, parts: &[&str], realm: &str) {
        out.extend_from_slice(&1u32.to_be_bytes());
        out.extend_from_slice(&(parts.len() as u32).to_be_bytes());
        string(out, realm);
        for part in parts {
            string(out, part);
        }
    }

    /// A ticket cache in format 4 of one ticket.
    fn cache(service: &[&str], from: u32, until: u32) -> Vec<u8> {
        let mut out = vec![5, 4, 0, 0];
        principal(&mut out, &["jo"], "EXAMPLE.ORG");
        principal(&mut out, &["jo"], "EXAMPLE.ORG");
        principal(&mut out, service, "EXAMPLE.ORG");
        out.extend_from_slice(&18u16.to_be_bytes());
        string(&mut out, "0123456789abcdef0123456789abcdef");
        for time in [from, from, until, until] {
            out.extend_from_slice(&time.to_be_bytes());
        }
        out.extend_from_slice(&[0; 5]);
        out.extend_from_slice(&[0; 8]);
        string(&mut out, "a ticket");
        string(&mut out, "");
        out
    }

    fn address(text: &str) -> SmbAddress {
        SmbAddress::parse(text).unwrap()
    }

    #[test]
    fn tickets_that_do_not_serve_are_said() {
        let here = address("smb://jo@files.example.org/s");
        let tgt = cache(&["krbtgt", "EXAMPLE.ORG"], 1000, 2000);
        let said = |data: &[u8], address: &SmbAddress, now| {
            usable(data, address, now).err().map(|e| e.to_string())
        };
        assert_eq!(said(&tgt, &here, 1500), None);
        let service = cache(&["cifs", "FILES.example.org"], 1000, 2000);
        assert_eq!(said(&service, &here, 1500), None);
        assert!(said(&tgt, &here, 2000).unwrap().contains("has expired"));
        // A clock that is a little behind.
        assert_eq!(said(&tgt, &here, 800), None);
        let other = cache(&["cifs", "mail.example.org"], 1000, 2000);
        assert!(
            said(&other, &here, 1500)
                .unwrap()
                .contains("no Kerberos ticket for this")
        );
        let ann = address("smb://ann@files.example.org/s");
        let theirs = said(&tgt, &ann, 1500).unwrap();
        assert!(
            theirs.contains("those of jo@EXAMPLE.ORG, not of ann"),
            "{theirs}"
        );
        let realm = address("smb://example.org;jo@files.example.org/s");
        assert_eq!(said(&tgt, &realm, 1500), None);
        let realm = address("smb://OTHER;jo@files.example.org/s");
        assert!(
            said(&tgt, &realm, 1500)
                .unwrap()
                .contains("not of jo@OTHER")
        );
        let number = address("smb://jo@192.0.2.1/s");
        assert!(said(&tgt, &number, 1500).unwrap().contains("server's name"));
        for cut in 0..40 {
            assert!(usable(&tgt[..cut], &here, 1500).is_err(), "{cut}");
        }
    }

    #[test]
    fn caches_are_found_as_the_library_finds_them() {
        let at = |name| Tickets::find(name, None, 7).map(|t| t.cache);
        assert_eq!(at(None).unwrap(), Path::new("/tmp/krb5cc_7"));
        assert_eq!(at(Some("FILE:/a/b:c")).unwrap(), Path::new("/a/b:c"));
        assert_eq!(at(Some("/a/b")).unwrap(), Path::new("/a/b"));
        let keyring = at(Some("KEYRING:persistent:7")).unwrap_err().to_string();
        assert!(keyring.contains("KEYRING:persistent:7"), "{keyring}");
    }

    #[test]
    fn the_realms_server_is_read_from_the_configuration() {
        let text = "[libdefaults]\n kdc = no\n[realms]\n OTHER = {\n  kdc = no.example\n }\n\
                    EXAMPLE.ORG = {\n  admin_server = a\n  # kdc = old\n  kdc = tcp/k.example:1088\n }\n";
        assert_eq!(
            kdc_of(text, "EXAMPLE.ORG").as_deref(),
            Some("k.example:1088")
        );
        assert_eq!(kdc_of(text, "NONE"), None);
        assert_eq!(kdc_of("[realms]\nE = {\n}\nkdc = x", "E"), None);
    }

    #[test]
    fn an_absent_cache_is_said() {
        let dir = tempfile::tempdir().unwrap();
        let tickets = Tickets {
            cache: dir.path().join("none"),
            config: dir.path().join("none.conf"),
        };
        let here = address("smb://jo@files.example.org/s");
        let e = tickets.for_server(&here).err().unwrap();
        assert!(e.to_string().contains("kinit"), "{e}");
        assert_eq!(e.retry, Retry::Soon);
        std::fs::write(&tickets.cache, b"garbage").unwrap();
        assert!(tickets.for_server(&here).is_err());
        let (long, _) = (u32::MAX, 0);
        std::fs::write(&tickets.cache, cache(&["krbtgt", "EXAMPLE.ORG"], 1, long)).unwrap();
        let (_, with) = tickets.for_server(&here).unwrap();
        assert_eq!(with.kdc_address, "example.org");
        std::fs::write(&tickets.config, "[realms]\nEXAMPLE.ORG = {\nkdc = k\n}\n").unwrap();
        let (_, with) = tickets.for_server(&here).unwrap();
        assert_eq!(
            (with.kdc_address.as_str(), with.realm.as_str()),
            ("k", "EXAMPLE.ORG")
        );
    }
}
