//! Certificates for TLS tests: a certificate authority, and the certificates that it signs for `localhost`.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use tempfile::TempDir;

/// An authority with a server and a client certificate. Clones share the files, which are deleted with the last clone.
#[derive(Clone, Debug)]
pub struct Certificates(Arc<TempDir>);

impl Certificates {
    /// Creates an authority and signs the certificates.
    ///
    /// # Panics
    /// If openssl is missing or fails.
    pub fn generate() -> Self {
        let folder = tempfile::tempdir_in("/tmp").expect("a folder in /tmp");
        let at = folder.path();
        openssl(
            at,
            "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=whizbang-tests -keyout ca.key -out ca.pem",
        );
        for (name, extensions) in [
            ("server", "subjectAltName=DNS:localhost,IP:127.0.0.1\nextendedKeyUsage=serverAuth\n"),
            ("client", "subjectAltName=DNS:client\nextendedKeyUsage=clientAuth\n"),
        ] {
            std::fs::write(at.join("extensions"), extensions).expect("a file");
            openssl(
                at,
                &format!(
                    "req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /CN={name} -keyout {name}.key -out {name}.csr"
                ),
            );
            openssl(
                at,
                &format!(
                    "x509 -req -in {name}.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 -extfile extensions -out {name}.pem"
                ),
            );
        }
        Self(Arc::new(folder))
    }

    fn file(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Returns the path of the authority's certificate.
    pub fn authority(&self) -> PathBuf {
        self.file("ca.pem")
    }

    /// Returns the path of the server's certificate.
    pub fn server_certificate(&self) -> PathBuf {
        self.file("server.pem")
    }

    /// Returns the path of the server's key.
    pub fn server_key(&self) -> PathBuf {
        self.file("server.key")
    }

    /// Returns the path of the client's certificate.
    pub fn client_certificate(&self) -> PathBuf {
        self.file("client.pem")
    }

    /// Returns the path of the client's key.
    pub fn client_key(&self) -> PathBuf {
        self.file("client.key")
    }
}

fn openssl(folder: &Path, arguments: &str) {
    let output = Command::new("openssl")
        .args(arguments.split(' '))
        .current_dir(folder)
        .output()
        .unwrap_or_else(|error| panic!("openssl: {error}; run tests/install"));
    assert!(output.status.success(), "openssl {arguments}:\n{}", String::from_utf8_lossy(&output.stderr));
}
