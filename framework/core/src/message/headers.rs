//! Headers of a message that the framework passes through: a tenant, a user, baggage.
//!
//! Set by senders, read by handlers. Checked where they are set, so that everything that is stored can be sent.

/// The maximum number of headers of a message.
pub const MAX_HEADERS: usize = 64;
/// The maximum total size in bytes of the names and values of a message's headers.
pub const MAX_HEADER_BYTES: usize = 16 * 1024;

/// The beginnings of names that the framework, its wire format and brokers use.
const RESERVED: [&str; 4] = ["ce-", "nats-", "whizbang-", "traceparent"];

/// A header that cannot be set. Nothing was sent.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum HeaderError {
    /// The name is not a token of letters, digits and ``!#$&'*+-.^_`|~``. Use a name like `tenant`.
    #[error("invalid header name `{name}`")]
    Name {
        /// The name.
        name: String,
    },
    /// The name belongs to the framework or to the broker. Use another name; the trace context has its own methods.
    #[error("header name `{name}` is reserved")]
    Reserved {
        /// The name.
        name: String,
    },
    /// The value contains control characters, or begins or ends with a space. Encode it, for instance as base64.
    #[error("header `{name}` contains control characters or surrounding spaces")]
    Value {
        /// The name.
        name: String,
    },
    /// The message has too many headers. Send less, or put the data into the message.
    #[error("more than {limit} headers")]
    TooMany {
        /// The largest number.
        limit: usize,
    },
    /// The headers are too large together. Send less, or put the data into the message.
    #[error("headers of more than {limit} bytes")]
    TooLarge {
        /// The largest size of all names and values.
        limit: usize,
    },
}

/// Returns whether a text is the name of a header: a token as in HTTP.
pub fn is_header_name(name: &str) -> bool {
    !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"!#$&'*+-.^_`|~".contains(&byte))
}

/// Returns whether a text can be the value of a header.
pub fn is_header_value(value: &str) -> bool {
    !value.chars().any(char::is_control) && value.trim() == value
}

/// Sets a header; an earlier value is replaced. The headers stay sorted by name, as they arrive from the wire.
///
/// # Errors
/// [`HeaderError`]; the headers are unchanged.
pub fn set_header(headers: &mut Vec<(String, String)>, name: &str, value: &str) -> Result<(), HeaderError> {
    let named = || name.chars().take(64).collect::<String>();
    if !is_header_name(name) {
        return Err(HeaderError::Name { name: named() });
    }
    let is_reserved = |start: &&str| name.get(..start.len()).is_some_and(|begin| begin.eq_ignore_ascii_case(start));
    if RESERVED.iter().any(is_reserved) {
        return Err(HeaderError::Reserved { name: named() });
    }
    if !is_header_value(value) {
        return Err(HeaderError::Value { name: named() });
    }
    put_header(headers, name, value)
}

/// Sets a header with a valid name and value.
pub(super) fn put_header(headers: &mut Vec<(String, String)>, name: &str, value: &str) -> Result<(), HeaderError> {
    let others = headers.iter().filter(|(known, _)| known != name);
    let bytes: usize = others.map(|(name, value)| name.len() + value.len()).sum();
    if bytes + name.len() + value.len() > MAX_HEADER_BYTES {
        return Err(HeaderError::TooLarge { limit: MAX_HEADER_BYTES });
    }
    // Not by binary search: another program may have sent unsorted headers, and a name must not occur twice.
    if let Some((_, known)) = headers.iter_mut().find(|(known, _)| known == name) {
        value.clone_into(known);
        return Ok(());
    }
    if headers.len() >= MAX_HEADERS {
        return Err(HeaderError::TooMany { limit: MAX_HEADERS });
    }
    let at = headers.partition_point(|(known, _)| known.as_str() < name);
    headers.insert(at, (name.to_owned(), value.to_owned()));
    Ok(())
}

/// Returns the value of a header.
pub fn header<'a>(headers: &'a [(String, String)], name: &str) -> Option<&'a str> {
    headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_stay_sorted_and_are_replaced() {
        let mut headers = Vec::new();
        for (name, value) in [("user", "ada"), ("tenant", "acme"), ("user", "grace"), ("Zone", "")] {
            set_header(&mut headers, name, value).unwrap();
        }
        let pairs: Vec<_> = headers.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        assert_eq!(pairs, [("Zone", ""), ("tenant", "acme"), ("user", "grace")]);
        assert_eq!((header(&headers, "user"), header(&headers, "User")), (Some("grace"), None));
    }

    #[test]
    fn invalid_headers_are_refused_and_change_nothing() {
        let named = |name: &str| name.to_owned();
        let mut headers = vec![("a".to_owned(), "b".to_owned())];
        for (name, value, error) in [
            ("", "x", HeaderError::Name { name: named("") }),
            ("a b", "x", HeaderError::Name { name: named("a b") }),
            ("grün", "x", HeaderError::Name { name: named("grün") }),
            ("ce-id", "x", HeaderError::Reserved { name: named("ce-id") }),
            ("Nats-Rollup", "x", HeaderError::Reserved { name: named("Nats-Rollup") }),
            ("traceparent", "x", HeaderError::Reserved { name: named("traceparent") }),
            ("whizbang-store", "x", HeaderError::Reserved { name: named("whizbang-store") }),
            ("a", "x\ny", HeaderError::Value { name: named("a") }),
            ("a", " x", HeaderError::Value { name: named("a") }),
            ("a", &"x".repeat(MAX_HEADER_BYTES), HeaderError::TooLarge { limit: MAX_HEADER_BYTES }),
        ] {
            assert_eq!(set_header(&mut headers, name, value), Err(error));
        }
        assert_eq!(headers, [("a".to_owned(), "b".to_owned())]);
        set_header(&mut headers, "a", &"x".repeat(MAX_HEADER_BYTES - 1)).unwrap();
        let mut headers = Vec::new();
        for number in 0..MAX_HEADERS {
            set_header(&mut headers, &format!("x{number}"), "").unwrap();
        }
        assert_eq!(set_header(&mut headers, "y", ""), Err(HeaderError::TooMany { limit: MAX_HEADERS }));
        set_header(&mut headers, "x1", "again").unwrap();
    }
}
