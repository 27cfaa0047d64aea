//! The settings of a test's nats-server, as the server's configuration file.

use std::path::Path;

use super::Certificates;

/// A server's configuration; the default is JetStream, no password, no TLS.
#[derive(Clone, Debug, Default)]
pub struct NatsConfig {
    /// The server's certificate, if it speaks TLS only.
    pub certificates: Option<Certificates>,
    /// Clients must show a certificate as well.
    pub verify_clients: bool,
    /// It runs without JetStream.
    pub without_jetstream: bool,
    /// The largest message it takes, in bytes, if not 1 MiB.
    pub max_payload: Option<usize>,
    /// More lines, such as an `authorization` block.
    pub more: String,
}

impl NatsConfig {
    /// A server that wants to know who connects: `block` is the content of `authorization`.
    pub fn authorization(block: &str) -> Self {
        Self { more: format!("authorization {{\n{block}\n}}\n"), ..Self::default() }
    }

    /// A server with a certificate.
    pub fn tls(certificates: &Certificates) -> Self {
        Self { certificates: Some(certificates.clone()), ..Self::default() }
    }

    /// The file's text, for a port (-1: any free one) and a folder.
    pub(super) fn text(&self, port: i32, folder: &Path) -> String {
        let folder = folder.display();
        let mut text = format!("listen: \"127.0.0.1:{port}\"\nports_file_dir: \"{folder}\"\n");
        if !self.without_jetstream {
            // A little disk is enough for every test, and a reservation past it shows.
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
