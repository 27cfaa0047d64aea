//! The TLS settings: rustls with ring, the system's certificates or a given authority.
//!
//! Called when a store is connected. Certificates and host names are always verified.

use std::path::Path;

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use rustls::{ClientConfig, RootCertStore};

use crate::failure::Failure;

/// The settings for connections with TLS; without `needed` no certificate is read. `authority` replaces the certificates of
/// the system. The certificates are read once, when the store is connected.
///
/// # Errors
/// A file cannot be read or has no certificate. Nothing was connected.
pub(crate) fn config(needed: bool, authority: Option<&Path>) -> Result<ClientConfig, Failure> {
    let mut roots = RootCertStore::empty();
    if needed {
        match authority {
            Some(path) => {
                let failed = |error: &dyn std::fmt::Display| Failure::new(format!("{}: {error}", path.display()));
                let certificates = CertificateDer::pem_file_iter(path).map_err(|error| failed(&error))?;
                for certificate in certificates {
                    let certificate = certificate.map_err(|error| failed(&error))?;
                    roots.add(certificate).map_err(|error| failed(&error))?;
                }
            }
            None => {
                let found = rustls_native_certs::load_native_certs();
                // Some of a system's certificates may be unusable; only the servers that need them cannot be verified then.
                let _ = roots.add_parsable_certificates(found.certs);
            }
        }
        if roots.is_empty() {
            return Err(Failure::new("no certificate of an authority was found to verify the server with"));
        }
    }
    let provider = std::sync::Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let builder = builder.map_err(|error| Failure::new(error.to_string()))?;
    Ok(builder.with_root_certificates(roots).with_no_client_auth())
}
