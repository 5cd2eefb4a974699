//! The agent's state directory: the CA, the client's secret (hashed), the invitation.
//!
//! ```text
//! state/            0700
//!   ca.key          0600  the CA's private key, PEM: whoever has it can pose as the agent
//!   ca.pem          0600  the CA's certificate
//!   token.blake3    0600  BLAKE3 of the client's token: the token itself is not kept here
//!   client.json     0600  the invitation, with the token: carry it to the client, then remove it
//!   applied/        0700  database of applied sequences
//! ```
//!
//! A CA that is there is never replaced: clients know it by its fingerprint. The server's own
//! certificate and key live in memory only and are issued anew at each start, and weekly.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose,
};
use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use sync::wire::Invitation;
use sync::{hex, pin};

use crate::error::AgentError;
use crate::platform;

const DAY: Duration = Duration::from_secs(24 * 3600);
/// Clients' clocks may be behind by this much.
const CLOCK_SKEW: Duration = DAY;
const CA_LIFE: Duration = Duration::from_secs(20 * 365 * 24 * 3600);
const SERVER_LIFE: Duration = Duration::from_secs(90 * 24 * 3600);
/// Random bytes of a token.
const TOKEN_BYTES: usize = 32;

/// What the state directory holds.
pub struct State {
    dir: PathBuf,
    ca: CertificateDer<'static>,
    issuer: Issuer<'static, KeyPair>,
    token_hash: blake3::Hash,
    /// The token, if it was made just now or the invitation is still there.
    token: Option<String>,
}

impl State {
    /// Opens the state in `dir`; makes what is missing.
    pub fn open(dir: &Path) -> Result<Self, AgentError> {
        private_dir(dir)?;
        let (ca, issuer) = open_ca(dir)?;
        let hash_path = dir.join("token.blake3");
        let invitation = dir.join("client.json");
        let (token_hash, token) = match read_optional(&hash_path)? {
            Some(bytes) => {
                let hash = std::str::from_utf8(&bytes)
                    .ok()
                    .and_then(|text| hex::decode_32(text.trim()))
                    .map(blake3::Hash::from)
                    .ok_or_else(|| damaged(&hash_path))?;
                let token = read_optional(&invitation)?
                    .and_then(|b| serde_json::from_slice::<Invitation>(&b).ok())
                    .map(|i| i.token)
                    .filter(|t| blake3::hash(t.as_bytes()) == hash);
                (hash, token)
            }
            None => {
                let mut secret = [0; TOKEN_BYTES];
                pin::random(&mut secret).map_err(at(&hash_path))?;
                let token = hex::encode(&secret);
                let hash = blake3::hash(token.as_bytes());
                write_private(&hash_path, hash.to_hex().as_bytes())?;
                (hash, Some(token))
            }
        };
        Ok(Self {
            dir: dir.to_owned(),
            ca,
            issuer,
            token_hash,
            token,
        })
    }

    /// Whether `token` is the client's; takes the same time for any wrong one.
    pub fn knows(&self, token: &str) -> bool {
        // `blake3::Hash` compares in constant time, and a hash tells nothing of a near miss.
        blake3::hash(token.as_bytes()) == self.token_hash
    }

    /// SHA-256 of the CA's certificate.
    pub fn ca_fingerprint(&self) -> [u8; 32] {
        pin::fingerprint(&self.ca)
    }

    /// Writes `client.json` for clients that reach the agent at `url`, where the token is known:
    /// at the first start, and later while the file is still there.
    pub fn write_invitation(&self, url: &str) -> Result<Option<PathBuf>, AgentError> {
        let Some(token) = &self.token else {
            return Ok(None);
        };
        let path = self.dir.join("client.json");
        let invitation = Invitation {
            url: url.to_owned(),
            ca_fingerprint: self.ca_fingerprint(),
            token: token.clone(),
        };
        let json =
            serde_json::to_vec_pretty(&invitation).map_err(|e| at(&path)(io::Error::other(e)))?;
        write_private(&path, &json)?;
        Ok(Some(path))
    }

    /// A server configuration with a fresh certificate for `names`, under the CA.
    pub fn server_config(&self, names: &[String]) -> Result<Arc<ServerConfig>, AgentError> {
        let bad = |e: &dyn std::fmt::Display| AgentError::Certificate(e.to_string());
        let mut params = CertificateParams::new(names.to_vec()).map_err(|e| bad(&e))?;
        let now = SystemTime::now();
        params.not_before = (now - CLOCK_SKEW).into();
        params.not_after = (now + SERVER_LIFE).into();
        params.distinguished_name = DistinguishedName::new();
        params
            .distinguished_name
            .push(DnType::CommonName, "pstsyncd agent");
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.use_authority_key_identifier_extension = true;
        let key = KeyPair::generate().map_err(|e| bad(&e))?;
        let certificate = params.signed_by(&key, &self.issuer).map_err(|e| bad(&e))?;
        let chain = vec![certificate.der().clone(), self.ca.clone()];
        let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|e| bad(&e))?
            .with_no_client_auth()
            .with_single_cert(chain, key)
            .map_err(|e| bad(&e))?;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Arc::new(config))
    }
}

/// The names that the server's certificate is for, each once.
pub fn server_names(given: &[String], listen: IpAddr) -> Vec<String> {
    let mut names: Vec<String> = ["localhost", "127.0.0.1", "::1"]
        .iter()
        .map(|s| (*s).to_owned())
        .collect();
    names.extend(hostname());
    if !listen.is_unspecified() {
        names.push(listen.to_string());
    }
    names.extend(given.iter().cloned());
    let mut seen = std::collections::BTreeSet::new();
    names.retain(|name| seen.insert(name.clone()));
    names
}

/// This machine's name, if it can stand in a certificate.
pub fn hostname() -> Option<String> {
    let name = platform::hostname();
    let fits = !name.is_empty()
        && name
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'.');
    fits.then_some(name)
}

fn ca_params() -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params
        .distinguished_name
        .push(DnType::CommonName, "pstsyncd agent CA");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}

fn open_ca(dir: &Path) -> Result<(CertificateDer<'static>, Issuer<'static, KeyPair>), AgentError> {
    let (key_path, cert_path) = (dir.join("ca.key"), dir.join("ca.pem"));
    let bad = |e: &dyn std::fmt::Display| AgentError::Certificate(e.to_string());
    match (read_optional(&key_path)?, read_optional(&cert_path)?) {
        (Some(key), Some(cert)) => {
            let key = std::str::from_utf8(&key).map_err(|_| damaged(&key_path))?;
            let key = KeyPair::from_pem(key).map_err(|e| bad(&format!("ca.key: {e}")))?;
            let cert =
                CertificateDer::from_pem_slice(&cert).map_err(|e| bad(&format!("ca.pem: {e}")))?;
            // The key must be the certificate's, or every client would be turned away.
            if !holds(cert.as_ref(), key.public_key_raw()) {
                return Err(bad(&"ca.key and ca.pem do not belong together"));
            }
            Ok((cert, Issuer::new(ca_params(), key)))
        }
        // The certificate is written last, so a key alone is a first start that was cut short.
        (_, None) => {
            let key = KeyPair::generate().map_err(|e| bad(&e))?;
            let mut params = ca_params();
            let now = SystemTime::now();
            params.not_before = (now - CLOCK_SKEW).into();
            params.not_after = (now + CA_LIFE).into();
            let cert = params.self_signed(&key).map_err(|e| bad(&e))?;
            write_private(&key_path, key.serialize_pem().as_bytes())?;
            write_private(&cert_path, cert.pem().as_bytes())?;
            Ok((cert.der().clone(), Issuer::new(params, key)))
        }
        (None, Some(_)) => Err(bad(
            &"ca.pem is there without ca.key; restore the key, or remove both to begin anew",
        )),
    }
}

fn holds(haystack: &[u8], needle: &[u8]) -> bool {
    !needle.is_empty() && haystack.windows(needle.len()).any(|w| w == needle)
}

fn private_dir(dir: &Path) -> Result<(), AgentError> {
    match platform::private_dir(dir, || dir.join("ca.pem").exists()) {
        Ok(true) => Ok(()),
        Ok(false) => Err(AgentError::NotPrivate(dir.to_owned())),
        Err(e) => Err(at(dir)(e)),
    }
}

fn read_optional(path: &Path) -> Result<Option<Vec<u8>>, AgentError> {
    match fs::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(at(path)(e)),
    }
}

/// Replaces `path` in one durable step by a file that only its owner can read.
fn write_private(path: &Path, bytes: &[u8]) -> Result<(), AgentError> {
    let temp = path.with_extension("new");
    let write = || -> io::Result<()> {
        match fs::remove_file(&temp) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
        let mut options = OpenOptions::new();
        options.write(true).create_new(true);
        let mut file = platform::private_file(&mut options).open(&temp)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&temp, path)?;
        match path.parent() {
            Some(dir) => platform::sync_dir(dir),
            None => Ok(()),
        }
    };
    write().map_err(at(path))
}

fn damaged(path: &Path) -> AgentError {
    at(path)(io::Error::new(io::ErrorKind::InvalidData, "damaged"))
}

fn at(path: &Path) -> impl FnOnce(io::Error) -> AgentError {
    let path = path.to_owned();
    move |source| AgentError::State { path, source }
}
