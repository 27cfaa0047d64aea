//! Reads a file of orders, one document after the other, in bounded memory. A broken document does not take its neighbors
//! with it.

use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::path::{Path, PathBuf};

use super::document::{Objection, check};
use crate::orders::PlaceOrder;

/// The longest document, in bytes.
const DOCUMENT_BYTES: usize = 1 << 20;

/// The orders of a file, in their order.
///
/// Documents stand one to a line, or each over several lines whose first begins with `{` in the first column.
pub struct Reader {
    path: PathBuf,
    lines: BufReader<File>,
    /// The number of lines read.
    line: usize,
    /// A line that was read and belongs to the next document.
    ahead: Option<Vec<u8>>,
    documents: u64,
    done: bool,
}

/// A document that is not an order. The others are not affected.
#[derive(Debug, thiserror::Error)]
#[error("{}:{line}:{column}: {objection}", path.display())]
pub struct Spoilt {
    /// The file.
    pub path: PathBuf,
    /// The line in the file, from 1.
    pub line: usize,
    /// The column, from 1.
    pub column: usize,
    /// The error.
    pub objection: Objection,
}

impl Reader {
    /// Opens a file of orders.
    ///
    /// # Errors
    /// An I/O error if the file cannot be opened.
    pub fn open(path: &Path) -> io::Result<Self> {
        let lines = BufReader::new(File::open(path)?);
        Ok(Self { path: path.to_owned(), lines, line: 0, ahead: None, documents: 0, done: false })
    }

    /// The number of documents found in the file so far.
    pub fn documents(&self) -> u64 {
        self.documents
    }

    fn spoilt(&self, line: usize, column: usize, objection: Objection) -> Spoilt {
        Spoilt { path: self.path.clone(), line, column, objection }
    }

    fn unreadable(&self, line: usize, reason: String) -> Spoilt {
        self.spoilt(line, 1, Objection::Form { line: 1, column: 1, reason })
    }

    /// The next line with its end, not more of it than a document may have; the rest of a longer one is skipped.
    fn next_line(&mut self) -> io::Result<Option<Vec<u8>>> {
        if let Some(line) = self.ahead.take() {
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
            // One byte too many is kept, so that the length gives it away.
            let room = (DOCUMENT_BYTES + 1).saturating_sub(line.len());
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

    /// The next document with the number of its first line.
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
                // The document before has no end: this one begins regardless.
                self.ahead = Some(line);
                break;
            }
            nesting.follow(&line);
            let room = (DOCUMENT_BYTES + 1).saturating_sub(document.len());
            document.extend(line.iter().take(room));
            if nesting.depth <= 0 {
                break;
            }
        }
        Ok((!document.is_empty()).then_some((first, document)))
    }
}

impl Iterator for Reader {
    type Item = Result<PlaceOrder, Spoilt>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.done {
            return None;
        }
        match self.next_document() {
            Ok(Some((first, document))) => {
                self.documents += 1;
                if document.len() > DOCUMENT_BYTES {
                    let reason = format!("the document is longer than {DOCUMENT_BYTES} bytes");
                    return Some(Err(self.unreadable(first, reason)));
                }
                // A string that has no end would otherwise take in the end of the line, and be named on the next one.
                Some(check(document.trim_ascii_end()).map_err(|objection| {
                    let (line, column) = match &objection {
                        Objection::Form { line, column, .. } => (first + line - 1, (*column).max(1)),
                        Objection::Content { .. } => (first, 1),
                    };
                    self.spoilt(line, column, objection)
                }))
            }
            Ok(None) => {
                self.done = true;
                let empty = || self.unreadable(1, "the file holds no order".to_owned());
                (self.documents == 0).then(|| Err(empty()))
            }
            Err(error) => {
                self.done = true;
                Some(Err(self.unreadable(self.line + 1, format!("the file cannot be read any further: {error}"))))
            }
        }
    }
}

/// The depth of braces around the text, strings left out.
#[derive(Default)]
struct Nesting {
    depth: i64,
    string: bool,
    escaped: bool,
}

impl Nesting {
    fn follow(&mut self, text: &[u8]) {
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
        // No string goes over the end of a line.
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
            .map(|order| order.map(|order| order.order).map_err(|spoilt| spoilt.to_string().replace(&shown, "f")))
            .collect();
        std::fs::remove_file(path).unwrap();
        orders
    }

    fn pretty() -> String {
        let value: serde_json::Value = serde_json::from_str(EXAMPLE).unwrap();
        serde_json::to_string_pretty(&value).unwrap()
    }

    #[test]
    fn documents_stand_on_a_line_each_or_over_several() {
        let line = EXAMPLE.trim();
        assert_eq!(read("lines", &format!("{line}\n\n{line}\n")).len(), 2);
        let orders = read("several", &format!("{}\n{}", pretty(), pretty()));
        assert_eq!(orders, [Ok("ord-98765".to_owned()), Ok("ord-98765".to_owned())]);
    }

    #[test]
    fn a_broken_document_is_named_with_line_and_column_and_the_rest_goes_on() {
        let line = EXAMPLE.trim();
        let cut = &line[..60];
        let orders = read("broken", &format!("{line}\n{cut}\n{line}\nnot json\n{line}"));
        assert_eq!(orders.iter().filter(|order| order.is_ok()).count(), 3);
        let errors: Vec<_> = orders.into_iter().filter_map(Result::err).collect();
        assert!(errors[0].starts_with("f:2:") && errors[1].starts_with("f:4:2:"), "{errors:?}");
    }

    #[test]
    fn an_empty_file_and_an_endless_document_are_named() {
        assert_eq!(read("empty", " \n"), [Err("f:1:1: the file holds no order".to_owned())]);
        let long = format!("{}\n{EXAMPLE}", "{".repeat(3 * DOCUMENT_BYTES));
        let orders = read("long", &long);
        assert!(orders[0].as_ref().unwrap_err().contains("longer than"), "{orders:?}");
        assert!(orders[1].is_ok());
    }
}
