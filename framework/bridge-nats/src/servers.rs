//! The server addresses of a configuration: validated, and separated from the login.
//!
//! Used by the connection. The client library ignores a login inside an address, so it is extracted here. No part of it may reach
//! an error or a log, whatever the address looks like.

use std::fmt;

use super::config::Login;
use whizbang_wire::percent;

/// The servers of a configuration.
pub(super) struct Servers {
    /// The addresses without user and password.
    pub(super) addresses: Vec<String>,
    /// The login of the first address that has one.
    pub(super) login: Login,
    /// At least one address requests TLS.
    pub(super) tls: bool,
}

impl Servers {
    /// Parses comma-separated addresses: `[scheme://][user:password@|token@]host[:port]`.
    ///
    /// # Errors
    /// A text with the defect that quotes nothing of the address: any part of it may belong to a password that is not
    /// percent-encoded.
    pub(super) fn parse(urls: &str) -> Result<Self, String> {
        let mut servers = Self { addresses: Vec::new(), login: Login::None, tls: false };
        for (at, url) in urls.split(',').map(str::trim).enumerate() {
            let invalid = |what: &str| {
                format!(
                    "address {} of the configuration {what}; write `nats://user:password@host:port` and percent-encode \
                     `,`, `@`, `/`, `?` and `%` in user and password",
                    at + 1
                )
            };
            let (scheme, rest) = url.split_once("://").map_or((None, url), |(scheme, rest)| (Some(scheme), rest));
            if scheme.is_some_and(|scheme| !["nats", "tls", "ws", "wss"].contains(&scheme)) {
                return Err(invalid("has an unknown scheme"));
            }
            let (user, host) = rest.rsplit_once('@').map_or((None, rest), |(user, host)| (Some(user), host));
            if !is_host(host) {
                return Err(invalid("has no valid host and port"));
            }
            if let (Some(user), Login::None) = (user, &servers.login) {
                let decoded = |part: &str| percent::decode(part).map(std::borrow::Cow::into_owned);
                let login = match user.split_once(':') {
                    Some((user, password)) => {
                        decoded(user).zip(decoded(password)).map(|(user, password)| Login::UserPassword(user, password))
                    }
                    None => decoded(user).map(Login::Token),
                };
                // Without this error a mistyped password would silently become a connection without a login.
                servers.login = login.ok_or_else(|| invalid("has a login that is not valid percent-encoding"))?;
            }
            servers.tls |= matches!(scheme, Some("tls" | "wss"));
            servers.addresses.push(scheme.map_or_else(|| host.to_owned(), |scheme| format!("{scheme}://{host}")));
        }
        Ok(servers)
    }
}

/// Formats the addresses for logs and errors.
impl fmt::Display for Servers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.addresses.join(","))
    }
}

/// Returns true if the text is a host name or an IP address, with or without a port.
fn is_host(text: &str) -> bool {
    let (host, port) = match text.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((address, rest)) if address.parse::<std::net::Ipv6Addr>().is_ok() => (address, rest.strip_prefix(':')),
        Some(_) => return false,
        None => text.split_once(':').map_or((text, None), |(host, port)| (host, Some(port))),
    };
    let is_name = |byte: u8| byte.is_ascii_alphanumeric() || b"-._:".contains(&byte);
    !host.is_empty() && host.bytes().all(is_name) && port.is_none_or(|port| port.parse::<u16>().is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_shown_without_their_passwords() {
        let shown = |urls: &str| Servers::parse(urls).map(|servers| servers.to_string());
        assert_eq!(shown("nats://127.0.0.1:4222").unwrap(), "nats://127.0.0.1:4222");
        assert_eq!(shown("nats://me:p@ss@host:1, me:x@other").unwrap(), "nats://host:1,other");
        assert_eq!(shown("tls://token@host").unwrap(), "tls://host");
        assert_eq!(shown("nats://me:x@[::1]:4222").unwrap(), "nats://[::1]:4222");
    }

    #[test]
    fn invalid_address_is_refused_and_never_quoted() {
        for url in [
            "nats://me:hunter2,secret@127.0.0.1:1",
            "nats://me:hunter2/secret?x@127.0.0.1:port",
            "nats://me@127.0.0.1:1?password=hunter2",
            "nats://me:hunter%2@127.0.0.1:1",
            "nats://me:hunter2%@127.0.0.1:1",
            "http://me:hunter2@127.0.0.1",
            "nats://me:hunter2@",
            "nats://127.0.0.1:hunter2",
            "",
        ] {
            let error = Servers::parse(url).map(|servers| servers.to_string()).unwrap_err();
            for part in ["hunter", "secret", "127.0.0.1"] {
                assert!(!error.contains(part), "{url}: {error}");
            }
            assert!(error.starts_with("address "), "{error}");
        }
    }

    #[test]
    fn first_login_in_the_addresses_is_used() {
        let found = |urls: &str| match Servers::parse(urls).unwrap().login {
            Login::None => String::new(),
            Login::UserPassword(user, password) => format!("{user}/{password}"),
            Login::Token(token) => token,
            Login::NKey(_) | Login::Credentials(_) | Login::File(_) => "another".to_owned(),
        };
        assert_eq!(found("nats://127.0.0.1:4222"), "");
        assert_eq!(found("nats://host, nats://ada:love%40lace@other:1"), "ada/love@lace");
        assert_eq!(found("tls://s3cret@host"), "s3cret");
    }
}
