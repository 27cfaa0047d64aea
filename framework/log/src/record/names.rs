//! The names of the records that are read together.

use super::Malformed;
use whizbang_core::message::Name;

/// The names read so far, so that a repeated name is validated and allocated only once.
#[derive(Debug, Default)]
pub struct Names(Vec<Name>);

impl Names {
    /// Returns a validated name, which shares its memory with earlier ones of the same text.
    ///
    /// # Errors
    /// The text is not a name: the bytes are not of this program.
    pub fn get(&mut self, text: &str) -> Result<Name, Malformed> {
        if let Some(name) = self.0.iter().find(|name| name.as_str() == text) {
            return Ok(name.clone());
        }
        let name = Name::new(text).map_err(|_| Malformed("a name has invalid characters"))?;
        // A shard has few names. The bound keeps the search short in a log with very many.
        if self.0.len() < 64 {
            self.0.push(name.clone());
        }
        Ok(name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repeated_name_is_allocated_once() {
        let mut names = Names::default();
        let read: Vec<Name> = (0..100).map(|nth| names.get(&format!("name-{nth}")).unwrap()).collect();
        assert_eq!(
            read.iter().map(Name::as_str).collect::<Vec<_>>(),
            (0..100).map(|nth| format!("name-{nth}")).collect::<Vec<_>>()
        );
        let again = |names: &mut Names, nth: usize| {
            let name = names.get(&format!("name-{nth}")).unwrap();
            assert_eq!(name, read[nth]);
            std::ptr::eq(name.as_str(), read[nth].as_str())
        };
        let shared = (0..100).filter(|nth| again(&mut names, *nth)).collect::<Vec<_>>();
        assert_eq!(shared, (0..64).collect::<Vec<_>>(), "the search is short in a log with very many names");
        assert_eq!(names.0.len(), 64);
        assert_eq!(names.get("a.b"), Err(Malformed("a name has invalid characters")));
    }
}
