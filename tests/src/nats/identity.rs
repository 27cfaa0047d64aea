//! NKeys, and the signed tokens with which an operator vouches for accounts and users.

use nkeys::KeyPair;
use serde_json::{Value, json};

/// An operator with one account and one user, as a server configuration and the user's credentials.
pub struct Operator {
    /// The lines for the server configuration.
    pub config: String,
    /// The text of the user's `.creds` file.
    pub credentials: String,
}

impl Operator {
    /// Generates the keys and signs the tokens.
    pub fn generate() -> Self {
        let (operator, system, account) = (KeyPair::new_operator(), KeyPair::new_account(), KeyPair::new_account());
        let user = KeyPair::new_user();
        let unlimited = json!({
            "subs": -1, "data": -1, "payload": -1, "imports": -1, "exports": -1, "wildcards": true, "conn": -1, "leaf": -1,
            "mem_storage": -1, "disk_storage": -1, "streams": -1, "consumer": -1,
        });
        let plain = json!({
            "subs": -1, "data": -1, "payload": -1, "imports": -1, "exports": -1, "wildcards": true, "conn": -1, "leaf": -1,
        });
        let operator_token = signed(
            &operator,
            &operator,
            json!({ "type": "operator", "version": 2, "system_account": system.public_key() }),
        );
        let system_token = signed(&operator, &system, json!({ "type": "account", "version": 2, "limits": plain }));
        let account_token =
            signed(&operator, &account, json!({ "type": "account", "version": 2, "limits": unlimited }));
        let user_token = signed(
            &account,
            &user,
            json!({ "type": "user", "version": 2, "subs": -1, "data": -1, "payload": -1, "pub": {}, "sub": {} }),
        );
        let (system_name, account_name) = (system.public_key(), account.public_key());
        let config = format!(
            "operator: {operator_token}\nsystem_account: {system_name}\nresolver: MEMORY\n\
             resolver_preload: {{\n  {system_name}: {system_token}\n  {account_name}: {account_token}\n}}\n"
        );
        let seed = user.seed().expect("a seed");
        let credentials = format!(
            "-----BEGIN NATS USER JWT-----\n{user_token}\n------END NATS USER JWT------\n\n\
             -----BEGIN USER NKEY SEED-----\n{seed}\n------END USER NKEY SEED------\n"
        );
        Self { config, credentials }
    }
}

/// Returns the key of a user: the public part for the server, the seed for the user.
pub fn user_key() -> (String, String) {
    let user = KeyPair::new_user();
    (user.public_key(), user.seed().expect("a seed"))
}

fn signed(issuer: &KeyPair, subject: &KeyPair, nats: Value) -> String {
    let header = json!({ "typ": "JWT", "alg": "ed25519-nkey" });
    let claims = json!({
        "jti": "tests", "iat": 1_700_000_000, "name": "tests", "iss": issuer.public_key(), "sub": subject.public_key(), "nats": nats,
    });
    let text = format!("{}.{}", base64url(header.to_string().as_bytes()), base64url(claims.to_string().as_bytes()));
    let signature = issuer.sign(text.as_bytes()).expect("signs");
    format!("{text}.{}", base64url(&signature))
}

/// Encodes base64 for URLs without padding (RFC 4648, section 5).
fn base64url(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let mut text = String::new();
    for chunk in bytes.chunks(3) {
        let bits = chunk.iter().chain([&0, &0]).take(3).fold(0u32, |bits, byte| bits << 8 | u32::from(*byte));
        for digit in 0..=chunk.len() {
            text.push(char::from(DIGITS[(bits >> (18 - 6 * digit) & 63) as usize]));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64url_matches_the_standard() {
        for (bytes, text) in
            [("", ""), ("f", "Zg"), ("fo", "Zm8"), ("foo", "Zm9v"), ("foob", "Zm9vYg"), ("\u{fb}", "w7s")]
        {
            assert_eq!(base64url(bytes.as_bytes()), text);
        }
    }
}
