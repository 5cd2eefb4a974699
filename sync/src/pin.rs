//! TLS with a pinned CA: the client trusts exactly one certificate authority, known by the
//! SHA-256 fingerprint of its certificate.
//!
//! The agent presents its CA certificate with its own. A certificate of that fingerprint among
//! those presented becomes the only trust anchor, and the chain from the server's certificate to
//! it is then verified by webpki in full: signatures, names, validity, usage. Nothing is skipped,
//! and the system's own authorities are never asked.

use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme,
};

/// SHA-256 of a certificate's DER form.
#[must_use]
pub fn fingerprint(certificate: &CertificateDer<'_>) -> [u8; 32] {
    let suite = ring::cipher_suite::TLS13_AES_128_GCM_SHA256;
    let mut out = [0; 32];
    // That suite's hash is SHA-256 by its definition (RFC 8446 B.4), so this always fits.
    if let Some(tls13) = suite.tls13() {
        let hash = tls13.common.hash_provider.hash(certificate.as_ref());
        if let Ok(bytes) = <[u8; 32]>::try_from(hash.as_ref()) {
            out = bytes;
        }
    }
    out
}

/// Fills `out` with random bytes fit for secrets.
///
/// # Errors
/// If the system has none to give.
pub fn random(out: &mut [u8]) -> std::io::Result<()> {
    ring::default_provider()
        .secure_random
        .fill(out)
        .map_err(|_| std::io::Error::other("the system's random number generator failed"))
}

/// A TLS configuration that accepts only servers under the CA of this fingerprint.
///
/// # Errors
/// If rustls refuses the protocol versions, which it does not for this provider.
pub fn client_config(ca: [u8; 32]) -> Result<ClientConfig, Error> {
    let provider = Arc::new(ring::default_provider());
    let verifier = PinnedVerifier {
        ca,
        provider: Arc::clone(&provider),
    };
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(config)
}

#[derive(Debug)]
struct PinnedVerifier {
    ca: [u8; 32],
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for PinnedVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let anchor = intermediates
            .iter()
            .find(|certificate| fingerprint(certificate) == self.ca)
            .ok_or(Error::InvalidCertificate(
                CertificateError::ApplicationVerificationFailure,
            ))?;
        let mut roots = RootCertStore::empty();
        roots.add(anchor.clone().into_owned())?;
        WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&self.provider))
            .build()
            .map_err(|e| Error::General(e.to_string()))?
            .verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider
            .signature_verification_algorithms
            .supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fingerprint_is_sha_256() {
        // FIPS 180-2, "abc".
        let abc = CertificateDer::from(b"abc".to_vec());
        assert_eq!(
            crate::hex::encode(&fingerprint(&abc)),
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
        );
    }

    #[test]
    fn random_differs() {
        let (mut a, mut b) = ([0; 32], [0; 32]);
        random(&mut a).unwrap();
        random(&mut b).unwrap();
        assert_ne!(a, b);
    }
}
