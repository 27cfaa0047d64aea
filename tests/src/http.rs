//! Plain HTTP/1.1 requests to a program under test.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;

use serde_json::Value;

/// A response.
pub struct HttpResponse {
    /// The status code.
    pub status: u16,
    /// The status line and the headers, in lower case.
    pub head: String,
    /// The body; null if it is not JSON.
    pub body: Value,
}

/// Sends a request with a JSON body to `address`. `headers` are lines that end with `\r\n`.
///
/// # Panics
/// If the server does not accept the connection, or does not answer in HTTP.
pub fn http_request(address: &str, method: &str, path: &str, headers: &str, body: &str) -> HttpResponse {
    let mut stream = TcpStream::connect(address).expect("connects");
    write!(
        stream,
        "{method} {path} HTTP/1.1\r\nHost: tests\r\nConnection: close\r\nContent-Type: application/json\r\n\
         {headers}Content-Length: {}\r\n\r\n{body}",
        body.len()
    )
    .expect("writes the request");
    let mut text = String::new();
    stream.read_to_string(&mut text).expect("reads the response");
    let (head, body) = text.split_once("\r\n\r\n").expect("a head and a body");
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).expect("a status");
    HttpResponse { status, head: head.to_lowercase(), body: serde_json::from_str(body).unwrap_or(Value::Null) }
}
