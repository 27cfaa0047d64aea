//! Bytes of a value with the elements of its lists and maps in one order, so that two orders of one `HashMap` are equal.
//!
//! Called by the read-back check when a value reads back as other bytes. Calls the reader, which knows where each element begins.
//! serde does not tell a set from a list, so the elements of both count as an unordered collection. Fields of structs, elements of
//! tuples and variants keep their places: a value with two of them swapped is another value.

use std::cell::RefCell;

/// Where the elements of a list or a map begin, and where the last one ends.
pub(super) type Elements = Vec<usize>;

thread_local! {
    /// The lists and maps of the value that is read on this thread; inner ones stand before those they are in.
    static RECORDER: RefCell<Option<Vec<Elements>>> = const { RefCell::new(None) };
}

/// The list into which the reader puts what it finds, if someone wants to know. A reader inside a reader gets none.
pub(super) fn take_recorder() -> Option<Vec<Elements>> {
    RECORDER.with_borrow_mut(Option::take)
}

/// What a reader has found.
pub(super) fn put_recorder(elements: Option<Vec<Elements>>) {
    if elements.is_some() {
        RECORDER.set(elements);
    }
}

/// Bincode with its elements in one order. `None` if `read`, which must run the reader once, does not succeed.
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

/// JSON, as serde_json writes it, with the members of objects and the elements of arrays in one order. For types that bincode
/// cannot hold: of a tuple in such a type the order does not count either.
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

    /// The depth is bounded by that of what is written.
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
