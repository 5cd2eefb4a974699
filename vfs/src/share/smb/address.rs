//! Where an SMB share is: `smb://[domain;]user@host[:port]/share[/path]`.
//!
//! Everything is checked here, before the first packet: a name that could lead elsewhere (`..`, a
//! slash smuggled in by `%2f`) never reaches the wire, and a password in the address is refused
//! instead of ending up in process lists and logs.

use std::fmt;

use crate::path::{check_name, normalise};

/// The address of a share, checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SmbAddress {
    /// Server: a name, an IPv4 address, or an IPv6 address without brackets.
    pub host: String,
    /// TCP port.
    pub port: u16,
    /// Share name.
    pub share: String,
    /// Directory within the share that is the drive's root (a drive path; empty: the share's own).
    pub path: String,
    /// User name.
    pub user: String,
    /// Domain or workgroup; may be empty.
    pub domain: String,
}

/// What is wrong with an address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadAddress {
    /// It does not begin with `smb://`.
    #[error("an SMB address begins with smb://")]
    Scheme,
    /// A part is missing, empty, too long, or has characters that it cannot have.
    #[error("the address has no usable {0}; it looks like smb://user@server/share/path")]
    Part(&'static str),
    /// `user:password@`.
    #[error("a password does not belong in the address: other users can see it there")]
    Password,
}

/// The port that SMB servers listen on.
const PORT: u16 = 445;
/// Longest DNS name.
const MAX_HOST: usize = 253;
/// Longest share name, user name or domain that we send.
const MAX_PART: usize = 255;

impl SmbAddress {
    /// Reads an address.
    ///
    /// # Errors
    /// What is wrong with it, without quoting it.
    pub fn parse(text: &str) -> Result<Self, BadAddress> {
        let scheme = text.get(..6).ok_or(BadAddress::Scheme)?;
        if !scheme.eq_ignore_ascii_case("smb://") {
            return Err(BadAddress::Scheme);
        }
        let rest = text.get(6..).unwrap_or_default();
        let (server, tail) = rest.split_once('/').ok_or(BadAddress::Part("share"))?;
        let (account, server) = server.rsplit_once('@').ok_or(BadAddress::Part("user"))?;
        if account.contains(':') {
            return Err(BadAddress::Password);
        }
        let (domain, user) = account.split_once(';').unwrap_or(("", account));
        let (user, domain) = (part(user, "user")?, decoded(domain, "domain")?);
        if user.is_empty() {
            return Err(BadAddress::Part("user"));
        }
        let (host, port) = host_and_port(server)?;
        let (share, path) = tail.split_once('/').unwrap_or((tail, ""));
        let share = part(share, "share")?;
        if check_name(&share).is_err() || share.contains(['\\', ':', '*', '?', '"', '<', '>', '|'])
        {
            return Err(BadAddress::Part("share"));
        }
        let mut names = Vec::new();
        for name in path.split('/').filter(|n| !n.is_empty()) {
            let name = part(name, "path")?;
            check_name(&name).map_err(|_| BadAddress::Part("path"))?;
            names.push(name);
        }
        let path = normalise(&names.join("/")).map_err(|_| BadAddress::Part("path"))?;
        Ok(Self {
            host,
            port,
            share,
            path,
            user,
            domain,
        })
    }

    /// `host:port`, as a socket address is written.
    #[must_use]
    pub fn endpoint(&self) -> String {
        if self.host.contains(':') {
            format!("[{}]:{}", self.host, self.port)
        } else {
            format!("{}:{}", self.host, self.port)
        }
    }
}

/// The address in its own form: two addresses of one place and account print alike.
impl fmt::Display for SmbAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("smb://")?;
        if !self.domain.is_empty() {
            write!(f, "{};", encoded(&self.domain))?;
        }
        write!(f, "{}@", encoded(&self.user))?;
        if self.host.contains(':') {
            write!(f, "[{}]", self.host)?;
        } else {
            f.write_str(&self.host)?;
        }
        if self.port != PORT {
            write!(f, ":{}", self.port)?;
        }
        write!(f, "/{}", encoded(&self.share))?;
        for name in self.path.split('/').filter(|n| !n.is_empty()) {
            write!(f, "/{}", encoded(name))?;
        }
        Ok(())
    }
}

fn host_and_port(server: &str) -> Result<(String, u16), BadAddress> {
    let (host, port) = if let Some(rest) = server.strip_prefix('[') {
        let (host, port) = rest.split_once(']').ok_or(BadAddress::Part("server"))?;
        if host.parse::<std::net::Ipv6Addr>().is_err() {
            return Err(BadAddress::Part("server"));
        }
        let port = match port {
            "" => None,
            port => Some(port.strip_prefix(':').ok_or(BadAddress::Part("port"))?),
        };
        (host, port)
    } else {
        let (host, port) = match server.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (server, None),
        };
        let good = |c: char| c.is_alphanumeric() || "-._".contains(c);
        if host.is_empty()
            || host.len() > MAX_HOST
            || !host.chars().all(good)
            || host.split('.').any(str::is_empty) && !host.ends_with('.')
            || host.trim_end_matches('.').split('.').any(str::is_empty)
        {
            return Err(BadAddress::Part("server"));
        }
        (host, port)
    };
    let port = match port {
        None => PORT,
        Some(port) => match port.parse() {
            Ok(port) if port != 0 && !matches!(port_text_sign(server), Some('+')) => port,
            _ => return Err(BadAddress::Part("port")),
        },
    };
    Ok((host.to_lowercase(), port))
}

/// `parse::<u16>` takes a leading plus; an address does not.
fn port_text_sign(server: &str) -> Option<char> {
    server.rsplit(':').next().and_then(|p| p.chars().next())
}

fn part(text: &str, what: &'static str) -> Result<String, BadAddress> {
    match decoded(text, what)? {
        text if text.is_empty() => Err(BadAddress::Part(what)),
        text => Ok(text),
    }
}

/// Percent-decoding; the result must be text without control characters.
fn decoded(text: &str, what: &'static str) -> Result<String, BadAddress> {
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(b) = bytes.next() {
        if b != b'%' {
            out.push(b);
            continue;
        }
        let mut digit = || {
            let c = char::from(bytes.next()?);
            c.to_digit(16).and_then(|d| u8::try_from(d).ok())
        };
        match (digit(), digit()) {
            (Some(a), Some(b)) => out.push(a << 4 | b),
            _ => return Err(BadAddress::Part(what)),
        }
    }
    let text = String::from_utf8(out).map_err(|_| BadAddress::Part(what))?;
    if text.len() > MAX_PART || text.contains(|c: char| c.is_control()) {
        return Err(BadAddress::Part(what));
    }
    Ok(text)
}

fn encoded(text: &str) -> String {
    let mut out = String::new();
    for c in text.chars() {
        if c.is_ascii() && !c.is_ascii_alphanumeric() && !"-._~$ ()".contains(c) || c == ' ' {
            out.push_str(&format!("%{:02X}", u32::from(c)));
        } else {
            out.push(c);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read() {
        let a = SmbAddress::parse("smb://WORK;jo@nas.local:4450/Mail%20box/a/b c").unwrap();
        assert_eq!((a.host.as_str(), a.port), ("nas.local", 4450));
        assert_eq!((a.user.as_str(), a.domain.as_str()), ("jo", "WORK"));
        assert_eq!((a.share.as_str(), a.path.as_str()), ("Mail box", "a/b c"));
        assert_eq!(a.endpoint(), "nas.local:4450");
        let again = SmbAddress::parse(&a.to_string()).unwrap();
        assert_eq!(a, again);
        let six = SmbAddress::parse("SMB://jo@[fe80::1]/s").unwrap();
        assert_eq!((six.endpoint().as_str(), six.port), ("[fe80::1]:445", 445));
        assert_eq!(six.to_string(), "smb://jo@[fe80::1]/s");
        // An account may be an e-mail address.
        let mail = SmbAddress::parse("smb://jo@corp.example@nas/s/").unwrap();
        assert_eq!(
            (mail.user.as_str(), mail.path.as_str()),
            ("jo@corp.example", "")
        );
    }

    #[test]
    fn what_could_lead_elsewhere_is_refused() {
        for bad in [
            "",
            "smb:/",
            "http://jo@nas/s",
            "smb://nas/s",
            "smb://@nas/s",
            "smb://jo@nas",
            "smb://jo@nas/",
            "smb://jo@/s",
            "smb://jo@../s",
            "smb://jo@nas..x/s",
            "smb://jo@na s/s",
            "smb://jo@nas\\x/s",
            "smb://jo@nas%2f/s",
            "smb://jo@nas:0/s",
            "smb://jo@nas:+445/s",
            "smb://jo@nas:99999/s",
            "smb://jo@[nas]/s",
            "smb://jo@[::1/s",
            "smb://jo@nas/..",
            "smb://jo@nas/a%2fb",
            "smb://jo@nas/a%5Cb",
            "smb://jo@nas/s/..",
            "smb://jo@nas/s/a/../b",
            "smb://jo@nas/s/a%2fb",
            "smb://jo@nas/s/a%00b",
            "smb://jo@nas/s/a%0ab",
            "smb://jo@nas/s/%zz",
            "smb://jo@nas/s/%2",
            "smb://jo%ff@nas/s",
        ] {
            assert!(SmbAddress::parse(bad).is_err(), "{bad}");
        }
        let e = SmbAddress::parse("smb://jo:s3cret@nas/s").unwrap_err();
        assert_eq!(e, BadAddress::Password);
        assert!(!e.to_string().contains("s3cret"));
    }
}
