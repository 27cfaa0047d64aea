//! Encoded values with the elements of lists and maps sorted, so that two iteration orders of one `HashMap` compare
//! equal.
//!
//! Called by the read-back check if a value reads back as different bytes. Calls the bincode decoder, which knows the
//! start of each element. serde does not distinguish sets from lists, so the elements of both count as unordered.
//! Struct fields, tuple elements and variants keep their places: swapping two of them makes a different value.

use std::cell::RefCell;

/// The starts of the elements of a list or a map, and the end of the last one.
pub(super) type Elements = Vec<usize>;

thread_local! {
    /// The lists and maps of the value that is decoded on this thread; inner ones precede the outer ones.
    static RECORDER: RefCell<Option<Vec<Elements>>> = const { RefCell::new(None) };
}

/// Returns the list into which the decoder records elements, if recording was requested. A nested decoder gets none.
pub(super) fn take_recorder() -> Option<Vec<Elements>> {
    RECORDER.with_borrow_mut(Option::take)
}

/// Returns the recorded elements to the caller of the decoder.
pub(super) fn put_recorder(elements: Option<Vec<Elements>>) {
    if elements.is_some() {
        RECORDER.set(elements);
    }
}

/// Returns bincode with sorted elements. `read` must run the decoder once; returns `None` if it fails.
pub(super) fn of_bincode(bytes: &[u8], read: &dyn Fn(&[u8]) -> bool) -> Option<Vec<u8>> {
    RECORDER.set(Some(Vec::new()));
    let succeeded = read(bytes);
    let found = RECORDER.take().filter(|_| succeeded)?;
    let mut bytes = bytes.to_vec();
    for elements in found {
        let part = |ends: &[usize]| bytes.get(*ends.first()?..*ends.get(1)?);
        let mut parts: Vec<&[u8]> = elements.windows(2).map(part).collect::<Option<_>>()?;
        parts.sort_unstable();
        let sorted = parts.concat();
        let (Some(first), Some(last)) = (elements.first(), elements.last()) else { continue };
        bytes.get_mut(*first..*last)?.copy_from_slice(&sorted);
    }
    Some(bytes)
}

/// Returns JSON as written by serde_json with the members of objects and the elements of arrays sorted. For types that
/// bincode cannot encode; the order of tuples in such a type is ignored as well.
pub(super) fn of_json(text: &[u8]) -> Option<Vec<u8>> {
    let mut scan = Scan { rest: text };
    scan.value().filter(|_| scan.rest.is_empty())
}

struct Scan<'a> {
    rest: &'a [u8],
}

impl Scan<'_> {
    fn skip(&mut self, byte: u8) -> bool {
        match self.rest.split_first() {
            Some((first, rest)) if *first == byte => {
                self.rest = rest;
                true
            }
            _ => false,
        }
    }

    fn take(&mut self, length: usize) -> Option<Vec<u8>> {
        let (taken, rest) = self.rest.split_at_checked(length)?;
        self.rest = rest;
        Some(taken.to_vec())
    }

    /// Recursion is bounded, because the depth of encoded values is.
    fn value(&mut self) -> Option<Vec<u8>> {
        match self.rest.first()? {
            b'{' => self.parts(b'{', b'}', |scan| {
                let mut member = scan.text()?;
                scan.skip(b':').then_some(())?;
                member.push(b':');
                member.extend(scan.value()?);
                Some(member)
            }),
            b'[' => self.parts(b'[', b']', Self::value),
            b'"' => self.text(),
            _ => {
                let is_end = |byte: &u8| matches!(byte, b',' | b'}' | b']');
                self.take(self.rest.iter().position(is_end).unwrap_or(self.rest.len()))
            }
        }
    }

    fn parts(&mut self, open: u8, close: u8, part: impl Fn(&mut Self) -> Option<Vec<u8>>) -> Option<Vec<u8>> {
        self.skip(open).then_some(())?;
        let mut parts = Vec::new();
        while !self.skip(close) {
            if !parts.is_empty() {
                self.skip(b',').then_some(())?;
            }
            parts.push(part(self)?);
        }
        parts.sort_unstable();
        let mut whole = vec![open];
        for part in parts {
            whole.extend(part);
            whole.push(b',');
        }
        whole.push(close);
        Some(whole)
    }

    fn text(&mut self) -> Option<Vec<u8>> {
        let mut is_escaped = false;
        let mut bytes = self.rest.iter().enumerate().skip(1);
        let end = bytes.find(|(_, byte)| {
            let is_end = **byte == b'"' && !is_escaped;
            is_escaped = **byte == b'\\' && !is_escaped;
            is_end
        });
        self.take(end?.0 + 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_is_equal_in_any_order_of_elements() {
        let same = |one: &str, other: &str| {
            of_json(one.as_bytes()).is_some() && of_json(one.as_bytes()) == of_json(other.as_bytes())
        };
        assert!(same(r#"{"a":[1,2],"b":"\"]"}"#, r#"{"b":"\"]","a":[2,1]}"#));
        assert!(same(r#"[{"a":1},{"b":2}]"#, r#"[{"b":2},{"a":1}]"#));
        assert!(!same(r#"{"a":1,"b":2}"#, r#"{"a":2,"b":1}"#));
        assert!(!same(r#"[{"a":1},{"b":2}]"#, r#"[{"a":2},{"b":1}]"#));
        assert!(same("null", "null") && !same("12", "21"));
        for malformed in ["", "{", "[1 2", "\"a", "1]", "{\"a\"}"] {
            assert_eq!(of_json(malformed.as_bytes()), None, "{malformed}");
        }
    }
}
