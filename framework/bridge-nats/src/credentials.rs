//! Logins from files, read again for each connection, so that an operator can replace them while the node runs.
//!
//! Used by the connection, which calls [`log_in`] each time the server requests a login. Errors name the file and never quote it.
//! An unreadable file fails one attempt to connect, not the node.

use std::path::Path;

use async_nats::{Auth, AuthError};
use nkeys::KeyPair;

/// The line before the token of a user in a `.creds` file.
const TOKEN: &str = "-----BEGIN NATS USER JWT-----";
/// The line before the seed of a user.
const SEED: &str = "-----BEGIN USER NKEY SEED-----";

/// A login from a file.
#[derive(Clone)]
pub(super) enum LoginFile {
    /// A `.creds` file.
    Credentials(std::path::PathBuf),
    /// A user name, and a file with the password and an optional line break.
    Password(String, std::path::PathBuf),
}

/// Reads the file and signs the server's `nonce`.
pub(super) fn log_in(login: &LoginFile, nonce: &[u8]) -> Result<Auth, AuthError> {
    let mut auth = Auth::new();
    match login {
        LoginFile::Credentials(file) => {
            let text = read(file)?;
            let invalid = |what: &str| AuthError::new(format!("credentials file {} {what}", file.display()));
            let token = behind(&text, TOKEN).ok_or_else(|| invalid("holds no user JWT"))?;
            let seed = behind(&text, SEED).ok_or_else(|| invalid("holds no NKey seed"))?;
            let key = KeyPair::from_seed(seed).map_err(|_| invalid("holds an invalid NKey seed"))?;
            auth.signature = Some(key.sign(nonce).map_err(|_| invalid("holds a seed that cannot sign"))?);
            auth.jwt = Some(token.to_owned());
        }
        LoginFile::Password(user, file) => {
            let text = read(file)?;
            let password = text.strip_suffix('\n').unwrap_or(&text);
            auth.username = Some(user.clone());
            auth.password = Some(password.strip_suffix('\r').unwrap_or(password).to_owned());
        }
    }
    Ok(auth)
}

/// Reads a few hundred bytes of a local file once per connection, which does not justify another thread.
fn read(file: &Path) -> Result<String, AuthError> {
    std::fs::read_to_string(file)
        .map_err(|error| AuthError::new(format!("failed to read the login from {}: {error}", file.display())))
}

/// Returns the line after a marker line.
fn behind<'a>(text: &'a str, mark: &str) -> Option<&'a str> {
    let mut lines = text.lines().map(str::trim).skip_while(|line| *line != mark).skip(1);
    lines.next().filter(|line| !line.is_empty() && !line.starts_with('-'))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(text: &str) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        file
    }

    #[test]
    fn credentials_file_signs_the_nonce() {
        let (user, seed) = (KeyPair::new_user(), |key: &KeyPair| key.seed().unwrap());
        let text =
            format!("{TOKEN}\r\ntoken\r\n------END NATS USER JWT------\r\n\n{SEED}\n{}\n------END\n", seed(&user));
        let file = file(&text);
        let auth = log_in(&LoginFile::Credentials(file.path().to_owned()), b"nonce").unwrap();
        assert_eq!(auth.jwt.as_deref(), Some("token"));
        user.verify(b"nonce", auth.signature.as_ref().unwrap()).unwrap();
    }

    #[test]
    fn password_file_may_end_with_a_line_break() {
        for text in ["s3cret", "s3cret\n", "s3cret\r\n"] {
            let file = file(text);
            let auth = log_in(&LoginFile::Password("ada".to_owned(), file.path().to_owned()), b"").unwrap();
            assert_eq!((auth.username.as_deref(), auth.password.as_deref()), (Some("ada"), Some("s3cret")));
        }
    }

    #[test]
    fn unusable_login_file_is_named_but_not_quoted() {
        let texts = ["", "hunter2", &format!("{TOKEN}\nhunter2\n"), &format!("{TOKEN}\nx\n---\n{SEED}\nhunter2\n")];
        for text in texts {
            let file = file(text);
            let login = LoginFile::Credentials(file.path().to_owned());
            let error = log_in(&login, b"").err().unwrap().to_string();
            assert!(error.contains("credentials file /") && !error.contains("hunter2"), "{text}: {error}");
        }
        let missing = LoginFile::Password("ada".to_owned(), "/nowhere/at/all".into());
        let error = log_in(&missing, b"").err().unwrap().to_string();
        assert!(error.contains("/nowhere/at/all"), "{error}");
    }
}
