//! Reads a file of orders, document by document, in bounded memory. An invalid document does not affect its neighbors.

use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::path::{Path, PathBuf};

use super::document::{DocumentError, check};
use crate::orders::PlaceOrder;

/// The maximum length of a document, in bytes.
const MAX_DOCUMENT_BYTES: usize = 1 << 20;

/// An iterator over the orders of a file.
///
/// A document is one line, or several lines of which only the first begins with `{` in the first column.
pub struct Reader {
    path: PathBuf,
    lines: BufReader<File>,
    /// The number of lines read.
    line: usize,
    /// A line that was read and belongs to the next document.
    lookahead: Option<Vec<u8>>,
    documents: u64,
    done: bool,
}

/// A document that is not an order. Other documents of the file are not affected.
#[derive(Debug, thiserror::Error)]
#[error("{}:{line}:{column}: {error}", path.display())]
pub struct InvalidDocument {
    /// The file.
    pub path: PathBuf,
    /// The line in the file, from 1.
    pub line: usize,
    /// The column, from 1.
    pub column: usize,
    /// The error.
    pub error: DocumentError,
}

impl Reader {
    /// Opens a file of orders.
    ///
    /// # Errors
    /// An I/O error if the file cannot be opened.
    pub fn open(path: &Path) -> io::Result<Self> {
        let lines = BufReader::new(File::open(path)?);
        Ok(Self { path: path.to_owned(), lines, line: 0, lookahead: None, documents: 0, done: false })
    }

    /// The number of documents found in the file so far.
    pub fn documents(&self) -> u64 {
        self.documents
    }

    fn invalid(&self, line: usize, column: usize, error: DocumentError) -> InvalidDocument {
        InvalidDocument { path: self.path.clone(), line, column, error }
    }

    fn unreadable(&self, line: usize, reason: String) -> InvalidDocument {
        self.invalid(line, 1, DocumentError::Malformed { line: 1, column: 1, reason })
    }

    /// Reads the next line with its end. Skips the rest of a line that exceeds the limit of a document.
    fn next_line(&mut self) -> io::Result<Option<Vec<u8>>> {
        if let Some(line) = self.lookahead.take() {
            return Ok(Some(line));
        }
        let mut line = Vec::new();
        loop {
            let buffer = self.lines.fill_buf()?;
            if buffer.is_empty() {
                break;
            }
            let end = buffer.iter().position(|byte| *byte == b'\n').map(|at| at + 1);
            let part = end.unwrap_or(buffer.len());
            // One byte above the limit is kept, so that the length shows the excess.
            let room = (MAX_DOCUMENT_BYTES + 1).saturating_sub(line.len());
            line.extend(buffer.iter().take(part.min(room)));
            self.lines.consume(part);
            if end.is_some() {
                break;
            }
        }
        if line.is_empty() {
            return Ok(None);
        }
        self.line += 1;
        Ok(Some(line))
    }

    /// Reads the next document. Returns it with the number of its first line.
    fn next_document(&mut self) -> io::Result<Option<(usize, Vec<u8>)>> {
        let mut document = Vec::new();
        let mut first = 0;
        let mut nesting = Nesting::default();
        while let Some(line) = self.next_line()? {
            if document.is_empty() {
                if line.iter().all(u8::is_ascii_whitespace) {
                    continue;
                }
                first = self.line;
            } else if line.first() == Some(&b'{') {
                // The document before is not closed. A `{` in the first column starts a new one anyway.
                self.lookahead = Some(line);
                break;
            }
            nesting.scan(&line);
            let room = (MAX_DOCUMENT_BYTES + 1).saturating_sub(document.len());
            document.extend(line.iter().take(room));
            if nesting.depth <= 0 {
                break;
            }
        }
        Ok((!document.is_empty()).then_some((first, document)))
    }
}

impl Iterator for Reader {
    type Item = Result<PlaceOrder, InvalidDocument>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.done {
            return None;
        }
        match self.next_document() {
            Ok(Some((first, document))) => {
                self.documents += 1;
                if document.len() > MAX_DOCUMENT_BYTES {
                    let reason = format!("the document is longer than {MAX_DOCUMENT_BYTES} bytes");
                    return Some(Err(self.unreadable(first, reason)));
                }
                // Trimmed, so that an unclosed string is reported on its own line and not on the next one.
                Some(check(document.trim_ascii_end()).map_err(|error| {
                    let (line, column) = match &error {
                        DocumentError::Malformed { line, column, .. } => (first + line - 1, (*column).max(1)),
                        DocumentError::Invalid { .. } => (first, 1),
                    };
                    self.invalid(line, column, error)
                }))
            }
            Ok(None) => {
                self.done = true;
                let empty = || self.unreadable(1, "the file contains no order".to_owned());
                (self.documents == 0).then(|| Err(empty()))
            }
            Err(error) => {
                self.done = true;
                Some(Err(self.unreadable(self.line + 1, format!("failed to read the rest of the file: {error}"))))
            }
        }
    }
}

/// The nesting of braces and brackets outside of strings.
#[derive(Default)]
struct Nesting {
    depth: i64,
    string: bool,
    escaped: bool,
}

impl Nesting {
    fn scan(&mut self, text: &[u8]) {
        for byte in text {
            match (self.string, byte) {
                (true, _) if self.escaped => self.escaped = false,
                (true, b'\\') => self.escaped = true,
                (_, b'"') => self.string = !self.string,
                (false, b'{' | b'[') => self.depth += 1,
                (false, b'}' | b']') => self.depth -= 1,
                _ => {}
            }
        }
        // A JSON string does not span lines.
        self.string = false;
        self.escaped = false;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EXAMPLE: &str = include_str!("../../orders/order-placed.json");

    fn read(name: &str, text: &str) -> Vec<Result<String, String>> {
        let path = std::env::temp_dir().join(format!("shop-reader-{}-{name}", std::process::id()));
        std::fs::write(&path, text).unwrap();
        let shown = path.display().to_string();
        let orders = Reader::open(&path)
            .unwrap()
            .map(|order| order.map(|order| order.order).map_err(|error| error.to_string().replace(&shown, "f")))
            .collect();
        std::fs::remove_file(path).unwrap();
        orders
    }

    fn pretty() -> String {
        let value: serde_json::Value = serde_json::from_str(EXAMPLE).unwrap();
        serde_json::to_string_pretty(&value).unwrap()
    }

    #[test]
    fn reader_accepts_one_line_and_multi_line_documents() {
        let line = EXAMPLE.trim();
        assert_eq!(read("lines", &format!("{line}\n\n{line}\n")).len(), 2);
        let orders = read("several", &format!("{}\n{}", pretty(), pretty()));
        assert_eq!(orders, [Ok("ord-98765".to_owned()), Ok("ord-98765".to_owned())]);
    }

    #[test]
    fn broken_document_is_reported_and_the_rest_is_read() {
        let line = EXAMPLE.trim();
        let cut = &line[..60];
        let orders = read("broken", &format!("{line}\n{cut}\n{line}\nnot json\n{line}"));
        assert_eq!(orders.iter().filter(|order| order.is_ok()).count(), 3);
        let errors: Vec<_> = orders.into_iter().filter_map(Result::err).collect();
        assert!(errors[0].starts_with("f:2:") && errors[1].starts_with("f:4:2:"), "{errors:?}");
    }

    #[test]
    fn empty_file_and_oversized_document_are_reported() {
        assert_eq!(read("empty", " \n"), [Err("f:1:1: the file contains no order".to_owned())]);
        let long = format!("{}\n{EXAMPLE}", "{".repeat(3 * MAX_DOCUMENT_BYTES));
        let orders = read("long", &long);
        assert!(orders[0].as_ref().unwrap_err().contains("longer than"), "{orders:?}");
        assert!(orders[1].is_ok());
    }
}
