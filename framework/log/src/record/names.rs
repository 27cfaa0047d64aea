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
