//! The settings of a test's nats-server, as a configuration file.

use std::path::Path;

use super::Certificates;

/// The configuration of a server. The default has JetStream, no login and no TLS.
#[derive(Clone, Debug, Default)]
pub struct NatsConfig {
    /// The certificates of a server that requires TLS.
    pub certificates: Option<Certificates>,
    /// Clients must present a certificate.
    pub verify_clients: bool,
    /// The server runs without JetStream.
    pub without_jetstream: bool,
    /// The maximum message size in bytes, if not 1 MiB.
    pub max_payload: Option<usize>,
    /// Further lines, such as an `authorization` block.
    pub more: String,
}

impl NatsConfig {
    /// Returns the configuration of a server with logins: `block` is the content of `authorization`.
    pub fn authorization(block: &str) -> Self {
        Self { more: format!("authorization {{\n{block}\n}}\n"), ..Self::default() }
    }

    /// Returns the configuration of a server with a certificate.
    pub fn tls(certificates: &Certificates) -> Self {
        Self { certificates: Some(certificates.clone()), ..Self::default() }
    }

    /// Returns the text of the file for a port and a folder.
    pub(super) fn text(&self, port: u16, folder: &Path) -> String {
        let folder = folder.display();
        let mut text = format!("listen: \"127.0.0.1:{port}\"\nports_file_dir: \"{folder}\"\n");
        if !self.without_jetstream {
            // A small disk is enough for every test and reveals excessive reservations.
            text += &format!(
                "jetstream {{ store_dir: \"{folder}/store\", max_memory_store: 64MB, max_file_store: 4GB }}\n"
            );
        }
        if let Some(bytes) = self.max_payload {
            text += &format!("max_payload: {bytes}\n");
        }
        if let Some(certificates) = &self.certificates {
            let (certificate, key) = (certificates.server_certificate(), certificates.server_key());
            text += &format!("tls {{\n  cert_file: \"{}\"\n  key_file: \"{}\"\n", certificate.display(), key.display());
            if self.verify_clients {
                text += &format!("  ca_file: \"{}\"\n  verify: true\n", certificates.authority().display());
            }
            text += "}\n";
        }
        text + &self.more
    }
}
