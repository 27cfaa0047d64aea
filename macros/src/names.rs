//! Names: their rule, the default of a type, and suggestions for misspelled keys.
//!
//! Called by the derives. Calls nothing. The rule is the framework's own; a test in the framework compares the two.
//!
//! A name is part of the wire and of the store, so its rule is narrow: it has to be a token of a NATS subject, a part of a file
//! name, and readable in logs.

/// The rule, as errors show it.
pub(crate) const RULE: &str = "1 to 64 of A-Z a-z 0-9 _ -";

/// Returns whether `text` is a valid name.
pub(crate) fn is_valid(text: &str) -> bool {
    (1..=64).contains(&text.len())
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-')
}

/// Returns the type's name in lower case with hyphens: `OrderDesk` becomes `order-desk`, `HTTPGateway` becomes
/// `http-gateway`.
pub(crate) fn kebab(type_name: &str) -> String {
    let letters: Vec<char> = type_name.chars().collect();
    let mut kebab = String::with_capacity(type_name.len() + 4);
    for (at, letter) in letters.iter().enumerate() {
        let before = at.checked_sub(1).and_then(|at| letters.get(at));
        let after = letters.get(at + 1);
        let starts_word = letter.is_uppercase()
            && before.is_some_and(|before| {
                before.is_lowercase()
                    || before.is_numeric()
                    // The last capital of a run begins the next word: the G of `HTTPGateway`.
                    || (before.is_uppercase() && after.is_some_and(|after| after.is_lowercase()))
            });
        if starts_word {
            kebab.push('-');
        }
        match letter {
            '_' => kebab.push('-'),
            letter => kebab.extend(letter.to_lowercase()),
        }
    }
    kebab
}

/// Returns the known word that is most similar to `found`.
pub(crate) fn nearest<'a>(found: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    // A third of the letters may be wrong: `repli` is `reply`, `ons` is `on`, but `id` is not `on`.
    let allowed = (found.chars().count() / 3).max(1);
    known
        .into_iter()
        .map(|word| (distance(found, word), word))
        .filter(|(distance, word)| *distance <= allowed && *distance < word.len())
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, word)| word)
}

/// Returns the edit distance of `a` and `b`: letters changed, added, dropped or swapped with their neighbor.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut two_ago: Vec<usize> = Vec::new();
    let mut last: Vec<usize> = (0..=b.len()).collect();
    let mut letter_before = None;
    for (row, letter) in a.chars().enumerate() {
        let mut this = vec![row + 1];
        for (column, other) in b.iter().enumerate() {
            let at = |row: &[usize], column: usize| row.get(column).copied().unwrap_or(usize::MAX / 2);
            let mut least = (at(&last, column) + usize::from(letter != *other))
                .min(at(&last, column + 1) + 1)
                .min(at(&this, column) + 1);
            let other_before = column.checked_sub(1).and_then(|before| b.get(before));
            if letter_before == Some(*other) && other_before == Some(&letter) {
                least = least.min(at(&two_ago, column - 1) + 1);
            }
            this.push(least);
        }
        letter_before = Some(letter);
        two_ago = std::mem::replace(&mut last, this);
    }
    last.last().copied().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn type_name_becomes_kebab_case() {
        for (name, expected) in [
            ("Bank", "bank"),
            ("OrderDesk", "order-desk"),
            ("HTTPGateway", "http-gateway"),
            ("Order2Desk", "order2-desk"),
            ("Order_Desk", "order-desk"),
            ("A", "a"),
            ("AB", "ab"),
            ("ABc", "a-bc"),
        ] {
            assert_eq!(kebab(name), expected);
        }
    }

    #[test]
    fn misspelled_word_finds_the_known_one_and_others_find_none() {
        let known = ["domain", "reply", "name", "version", "upcast", "on"];
        assert_eq!(nearest("repli", known), Some("reply"));
        assert_eq!(nearest("doman", known), Some("domain"));
        assert_eq!(nearest("dmoain", known), Some("domain"));
        assert_eq!(nearest("ons", known), Some("on"));
        assert_eq!(nearest("color", known), None);
        assert_eq!(nearest("id", known), None);
        assert_eq!(nearest("", known), None);
    }

    #[test]
    fn names_have_1_to_64_plain_characters() {
        assert!(is_valid("a-Z_9"));
        assert!(is_valid(&"a".repeat(64)));
        for wrong in ["", "a.b", "a b", "é", "a>", "*"] {
            assert!(!is_valid(wrong), "{wrong}");
        }
        assert!(!is_valid(&"a".repeat(65)));
    }
}
