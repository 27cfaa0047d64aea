//! Expiry: the time after which a command is not handled.
//!
//! Set by senders, read by receivers before they handle a command. It is one of the headers that the framework passes through,
//! so records, frames and versions without this feature preserve it.

use super::headers::put_header;
use super::{Envelope, HeaderError, header};
use crate::clock::{Timestamp, rfc3339};

/// The header of the expiry: a time in RFC 3339, as the CloudEvents extension "Expiry Time" defines it.
pub const EXPIRY: &str = "ce-expirytime";

/// Sets the time after which a command is not handled. An earlier value is replaced.
///
/// # Errors
/// The message has too many headers, or too large ones; they are unchanged.
pub fn set_expiry(headers: &mut Vec<(String, String)>, expiry: Timestamp) -> Result<(), HeaderError> {
    put_header(headers, EXPIRY, &rfc3339::write(expiry))
}

/// Returns the time after which a command is not handled; `None` without one, or if another program wrote an invalid one.
pub fn expiry(headers: &[(String, String)]) -> Option<Timestamp> {
    header(headers, EXPIRY).and_then(rfc3339::read)
}

impl Envelope {
    /// Returns the headers of the message if it is sent at `due` instead: the time until its expiry counts from then.
    pub fn headers_when_due(&self, due: Timestamp) -> Vec<(String, String)> {
        let mut headers = self.headers.clone();
        if let Some(expiry) = expiry(&headers) {
            let moved = due.max(self.time).after(expiry.since(self.time));
            // A header of the same length replaces it.
            drop(set_expiry(&mut headers, moved));
        }
        headers
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::message::{Kind, MAX_HEADERS, MessageId, Name, set_header};

    const SENT: Timestamp = Timestamp::from_millis(1_000_000);

    fn expires_in(life: Duration) -> Envelope {
        let name = Name::from_static("bank").unwrap();
        let mut envelope = Envelope::new(MessageId::from_u128(1), Kind::Command, name.clone(), name, SENT);
        set_expiry(&mut envelope.headers, SENT.after(life)).unwrap();
        envelope
    }

    #[test]
    fn expiry_is_a_header_with_a_time() {
        let mut headers = vec![("zone".to_owned(), "1".to_owned())];
        set_expiry(&mut headers, Timestamp::from_millis(5)).unwrap();
        set_expiry(&mut headers, Timestamp::from_millis(1005)).unwrap();
        let texts: Vec<_> = headers.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        assert_eq!(texts, [("ce-expirytime", "1970-01-01T00:00:01.005Z"), ("zone", "1")]);
        assert_eq!(expiry(&headers), Some(Timestamp::from_millis(1005)));
        assert_eq!(expiry(&[(EXPIRY.to_owned(), "soon".to_owned())]), None);
        assert_eq!(expiry(&[]), None);
    }

    #[test]
    fn expiry_counts_as_a_header() {
        let mut headers = Vec::new();
        for number in 0..MAX_HEADERS {
            set_header(&mut headers, &format!("x{number}"), "").unwrap();
        }
        assert_eq!(set_expiry(&mut headers, SENT), Err(HeaderError::TooMany { limit: MAX_HEADERS }));
    }

    #[test]
    fn delayed_message_expires_after_it_is_due() {
        let envelope = expires_in(Duration::from_secs(10));
        let due = SENT.after(Duration::from_secs(60));
        assert_eq!(expiry(&envelope.headers_when_due(due)), Some(due.after(Duration::from_secs(10))));
        let past = SENT.before(Duration::from_secs(60));
        assert_eq!(expiry(&envelope.headers_when_due(past)), Some(SENT.after(Duration::from_secs(10))));
        let plain = Envelope { headers: Vec::new(), ..envelope };
        assert_eq!(plain.headers_when_due(due), []);
    }
}
