//! Sample values that a type is offered until it accepts one.

use super::Plain;

/// The texts, in this order. Types that parse a text accept few.
pub(super) const TEXTS: &[&str] = &[
    "a",
    "",
    "0",
    "00000000-0000-0000-0000-000000000001",
    "2000-01-01T00:00:00Z",
    "2000-01-01",
    "00:00:00",
    "2000-01-01T00:00:00",
    "2000-01-01T00:00:00+00:00[UTC]",
    "127.0.0.1",
    "127.0.0.1:80",
    "::1",
    "[::1]:80",
    "http://a.example/",
    "a@a.example",
    "EUR",
    "UTC",
    "en",
    "#000000",
    "1s",
    "PT1S",
    "1.0.0",
];

/// The integers. One comes first, because types that exclude zero accept it.
pub(super) const INTEGERS: &[u8] = &[1, 0, 2, 12, 100];

pub(super) const FLOATS: &[f32] = &[1.0, 0.0, 0.5];

pub(super) const CHARS: &[char] = &['a', '0', 'A'];

/// The lengths of bytes. Sixteen comes first, for UUIDs.
pub(super) const LENGTHS: &[usize] = &[16, 0, 1, 4, 8, 12, 20, 32, 64];

/// The number of forms that are tried where a type accepts any form.
pub(super) const FORMS: usize = 6;

/// Returns the number of samples of a kind.
pub(super) fn count(plain: Plain) -> usize {
    match plain {
        Plain::Unit => 1,
        Plain::Bool => 2,
        Plain::F32 | Plain::F64 => FLOATS.len(),
        Plain::Char => CHARS.len(),
        Plain::Text => TEXTS.len(),
        Plain::Bytes => LENGTHS.len(),
        _ => INTEGERS.len(),
    }
}

/// Returns one of `samples`; the last one past their end.
pub(super) fn nth<T: Copy + Default>(samples: &[T], at: usize) -> T {
    samples.get(at).or(samples.last()).copied().unwrap_or_default()
}
