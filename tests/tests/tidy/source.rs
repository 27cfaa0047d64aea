//! The repository as text: its files, their code without comments and strings, and the findings in them.

use std::fmt;
use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};

/// A text file of the repository.
pub(crate) struct File {
    /// Its path from the top of the repository, with `/`.
    pub(crate) path: String,
    /// Its content.
    pub(crate) text: String,
}

/// A violation of a rule.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Finding {
    path: String,
    line: usize,
    what: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}", self.path, self.line, self.what)
    }
}

impl File {
    /// A file that exists only in a test.
    pub(crate) fn new(path: &str, text: &str) -> Self {
        Self { path: path.to_owned(), text: text.to_owned() }
    }

    /// Returns true for Rust code.
    pub(crate) fn is_rust(&self) -> bool {
        self.path.ends_with(".rs")
    }

    /// Returns true for a file of the released framework.
    pub(crate) fn is_product(&self) -> bool {
        self.inside().is_some() && self.is_rust() && !self.path.ends_with("/tests.rs") && !self.path.contains("/tests/")
    }

    /// The path of a file of the released framework below the source folder of its crate. The crates `core` and `runtime` are
    /// divided into modules: their paths begin with the module. The paths of all other crates begin with the crate.
    pub(crate) fn inside(&self) -> Option<String> {
        let (package, path) = self.path.strip_prefix("framework/")?.split_once("/src/")?;
        if package.contains('/') {
            return None;
        }
        Some(if ["core", "runtime"].contains(&package) { path.to_owned() } else { format!("{package}/{path}") })
    }

    /// Rust code with blanks instead of comments and the content of strings. All other bytes keep their offsets.
    pub(crate) fn code(&self) -> String {
        blank_prose(&self.text)
    }

    /// [`code`](Self::code) with blanks instead of `#[cfg(test)]` modules too.
    pub(crate) fn product_code(&self) -> String {
        let code = blank_prose(&self.text);
        let tests = tests_in(&code);
        blank_items(code, &tests)
    }

    /// The text with blanks instead of `#[cfg(test)]` modules. Comments are kept.
    pub(crate) fn product_text(&self) -> String {
        blank_items(self.text.clone(), &tests_in(&self.code()))
    }

    /// A finding at a byte.
    pub(crate) fn finding(&self, at: usize, what: impl Into<String>) -> Finding {
        let line = self.text[..at].matches('\n').count() + 1;
        Finding { path: self.path.clone(), line, what: what.into() }
    }

    /// A finding about the file as a whole.
    pub(crate) fn finding_at_top(&self, what: impl Into<String>) -> Finding {
        self.finding(0, what)
    }

    /// The lines, each with the offset of its first byte.
    pub(crate) fn lines(&self) -> impl Iterator<Item = (usize, &str)> {
        self.text.split_inclusive('\n').scan(0, |next, line| {
            let at = *next;
            *next += line.len();
            Some((at, line.trim_end_matches(['\n', '\r'])))
        })
    }
}

/// Panics with all findings, one a line, if there are any.
#[track_caller]
pub(crate) fn assert_none(findings: &[Finding]) {
    assert!(findings.is_empty(), "\n{}\n", findings.iter().map(|f| format!("  {f}\n")).collect::<String>());
}

/// The root of the repository.
pub(crate) fn top() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("tests/ is in the root of the repository").to_owned()
}

/// All text files of the repository, ordered by path.
pub(crate) fn repository() -> Vec<File> {
    let top = top();
    let ignored = fs::read_to_string(top.join(".gitignore")).unwrap_or_default();
    let ignored: Vec<&str> = ignored.lines().map(|line| line.trim_matches('/')).collect();
    let mut files = Vec::new();
    let mut folders = vec![top.clone()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).expect("a folder of the repository can be read") {
            let path = entry.expect("a folder of the repository can be read").path();
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            // Build folders contain this tag, whatever their name.
            if name == ".git" || ignored.contains(&name) || path.join("CACHEDIR.TAG").exists() {
                continue;
            }
            if path.is_dir() {
                folders.push(path);
            } else if let Ok(text) = fs::read_to_string(&path) {
                let path = path.strip_prefix(&top).expect("it was found below").to_string_lossy().replace('\\', "/");
                files.push(File { path, text });
            }
        }
    }
    files.sort_by(|a, b| a.path.cmp(&b.path));
    assert!(files.iter().any(|file| file.path == "framework/whizbang/src/lib.rs"), "this is not the repository");
    files
}

/// One file of the repository.
pub(crate) fn file(path: &str) -> File {
    let text = fs::read_to_string(top().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"));
    File { path: path.to_owned(), text }
}

/// Returns true if a byte can be part of a Rust name.
pub(crate) fn is_name_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_'
}

/// The offsets at which `word` occurs in `code` and is not part of a longer name.
pub(crate) fn places(code: &str, word: &str) -> Vec<usize> {
    let bytes = code.as_bytes();
    let first = word.as_bytes().first().copied().is_some_and(is_name_byte);
    let last = word.as_bytes().last().copied().is_some_and(is_name_byte);
    code.match_indices(word)
        .map(|(at, _)| at)
        .filter(|&at| {
            let before = at.checked_sub(1).map(|at| bytes[at]);
            let after = bytes.get(at + word.len()).copied();
            !(first && before.is_some_and(is_name_byte) || last && after.is_some_and(is_name_byte))
        })
        .collect()
}

/// The name that begins at a byte, or an empty string.
pub(crate) fn name_at(code: &str, at: usize) -> &str {
    let rest = &code[at..];
    let end = rest.bytes().position(|byte| !is_name_byte(byte)).unwrap_or(rest.len());
    &rest[..end]
}

/// Replaces comments and the contents of string literals with blanks.
fn blank_prose(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = bytes.to_vec();
    let mut at = 0;
    while at < bytes.len() {
        let rest = &text[at..];
        let (keep, end) = if rest.starts_with("//") {
            (0, at + rest.find('\n').unwrap_or(rest.len()))
        } else if rest.starts_with("/*") {
            (0, at + block_comment(rest))
        } else if let Some(length) = raw_string(rest).filter(|_| at == 0 || !is_name_byte(bytes[at - 1])) {
            (1, at + length)
        } else if rest.starts_with('"') {
            (1, at + quoted(rest, b'"'))
        } else if rest.starts_with('\'') && is_char(rest) {
            (1, at + quoted(rest, b'\''))
        } else {
            at += rest.chars().next().map_or(1, char::len_utf8);
            continue;
        };
        for byte in &mut out[at + keep..end - keep] {
            if *byte != b'\n' {
                *byte = b' ';
            }
        }
        at = end;
    }
    String::from_utf8(out).expect("whole characters were replaced")
}

/// The length of the block comment at the beginning, including nested ones.
fn block_comment(rest: &str) -> usize {
    let (mut depth, mut at) = (0_usize, 0);
    while at < rest.len() {
        match &rest.as_bytes()[at..rest.len().min(at + 2)] {
            b"/*" => (depth, at) = (depth + 1, at + 2),
            b"*/" => (depth, at) = (depth - 1, at + 2),
            _ => at += 1,
        }
        if depth == 0 {
            break;
        }
    }
    at
}

/// The length of the raw string at the beginning, if there is one.
fn raw_string(rest: &str) -> Option<usize> {
    let prefix = ["r", "br", "cr"]
        .into_iter()
        .find(|prefix| rest.strip_prefix(prefix).is_some_and(|rest| rest.trim_start_matches('#').starts_with('"')))?;
    let hashes = rest[prefix.len()..].bytes().take_while(|&byte| byte == b'#').count();
    let open = prefix.len() + hashes + 1;
    let close = format!("\"{}", "#".repeat(hashes));
    Some(rest[open..].find(&close).map_or(rest.len(), |at| open + at + close.len()))
}

/// The length of the quoted literal at the beginning.
fn quoted(rest: &str, quote: u8) -> usize {
    let bytes = rest.as_bytes();
    let mut at = 1;
    while at < bytes.len() && bytes[at] != quote {
        at += if bytes[at] == b'\\' { 2 } else { 1 };
    }
    (at + 1).min(bytes.len())
}

/// Returns true if the quote at the beginning opens a character, not a lifetime.
fn is_char(rest: &str) -> bool {
    let mut chars = rest.chars().skip(1);
    match chars.next() {
        Some('\\') => true,
        Some(_) => chars.next() == Some('\''),
        None => false,
    }
}

/// The bytes of modules and functions for tests, in code without comments and strings.
fn tests_in(code: &str) -> Vec<Range<usize>> {
    let item = |(at, _): (usize, &str)| {
        let open = at + code[at..].find(['{', ';'])?;
        Some(at..if code.as_bytes()[open] == b';' { open + 1 } else { closing(code, open) })
    };
    code.match_indices("#[cfg(test)]").filter_map(item).collect()
}

/// Replaces whole items with blanks. All other bytes keep their offsets.
fn blank_items(text: String, items: &[Range<usize>]) -> String {
    let mut out = text.into_bytes();
    for item in items {
        for byte in &mut out[item.clone()] {
            if *byte != b'\n' {
                *byte = b' ';
            }
        }
    }
    String::from_utf8(out).expect("only whole items were replaced")
}

/// The offset after the brace that closes the one at `open`.
pub(crate) fn closing(code: &str, open: usize) -> usize {
    let mut depth = 0_usize;
    for (at, byte) in code.bytes().enumerate().skip(open) {
        match byte {
            b'{' => depth += 1,
            b'}' => depth = depth.saturating_sub(1),
            _ => continue,
        }
        if depth == 0 {
            return at + 1;
        }
    }
    code.len()
}

#[test]
fn comments_strings_and_characters_are_blanked() {
    let text = r####"let a = "x // {"; // gone " {
/* gone /* nested */ still gone */ let b = r#"raw " {"#; let c = '{'; let d = '\''; fn e<'a>(x: &'a str) {}
let f = b"bytes\" {"; let for_real = "é";"####;
    let code = blank_prose(text);
    assert_eq!(code.len(), text.len());
    assert_eq!(code.matches('{').count(), 1, "{code}");
    assert!(!code.contains("gone") && !code.contains("raw") && !code.contains("bytes"), "{code}");
    assert!(code.contains("fn e<'a>(x: &'a str) {}") && code.contains("let for_real = \""), "{code}");
}

#[test]
fn modules_for_tests_are_not_product_code() {
    let file =
        File::new("framework/core/src/a.rs", "fn kept() {}\n#[cfg(test)]\nmod tests { fn x() { y() } }\nfn also() {}");
    let code = file.product_code();
    assert!(code.contains("kept") && code.contains("also") && !code.contains("tests") && !code.contains("y()"));
}
