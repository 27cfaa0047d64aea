//! The fields of an item with the keys of their serde attributes, parsed once for all checks.
//!
//! Called by the derives of messages and states, and by their checks; the prelude's derives of serde's traits use only
//! the keys. Calls nothing.
//!
//! The keys are read as serde reads them, but nothing is rejected here: serde's own derive reports what it does not know.

use proc_macro2::{Ident, Span};
use syn::ext::IdentExt;
use syn::{Attribute, Data, DeriveInput, Expr, Field, Token, parenthesized, token};

/// An item and its fields.
pub(crate) struct Item<'a> {
    /// The keys on the item itself.
    pub(crate) keys: Vec<Key>,
    /// Its fields: one group for a struct, one for each variant of an enum.
    pub(crate) groups: Vec<Group<'a>>,
    /// True if the item and its variants have no serde attribute.
    has_no_serde_attributes: bool,
}

/// The fields of a struct or of a variant.
pub(crate) struct Group<'a> {
    /// True if the group is a variant.
    pub(crate) is_variant: bool,
    /// The keys on the variant.
    pub(crate) keys: Vec<Key>,
    /// The fields.
    pub(crate) parts: Vec<Part<'a>>,
}

/// A field.
pub(crate) struct Part<'a> {
    /// The field.
    pub(crate) field: &'a Field,
    /// The keys on it.
    pub(crate) keys: Vec<Key>,
    /// True if it is marked `#[key]`.
    pub(crate) is_key: bool,
    /// True if it has no serde attribute.
    pub(crate) has_no_serde_attributes: bool,
}

impl<'a> Item<'a> {
    /// Reads an item. A union has no fields here: it is rejected.
    pub(crate) fn of(input: &'a DeriveInput) -> Self {
        let mut is_untold = is_untold(&input.attrs);
        let groups = match &input.data {
            Data::Struct(data) => vec![Group::of(false, &[], data.fields.iter())],
            Data::Enum(data) => {
                is_untold &= data.variants.iter().all(|variant| self::is_untold(&variant.attrs));
                data.variants.iter().map(|variant| Group::of(true, &variant.attrs, variant.fields.iter())).collect()
            }
            Data::Union(_) => Vec::new(),
        };
        Self { keys: keys(&input.attrs), groups, has_no_serde_attributes: is_untold }
    }

    /// Returns all fields.
    pub(crate) fn parts(&self) -> impl Iterator<Item = &Part<'a>> {
        self.groups.iter().flat_map(|group| &group.parts)
    }

    /// Returns whether the item and its fields have no serde attribute.
    pub(crate) fn is_untold(&self) -> bool {
        self.has_no_serde_attributes && self.parts().all(|part| part.has_no_serde_attributes)
    }
}

impl<'a> Group<'a> {
    /// Reads the fields of a struct or of one variant.
    fn of(is_variant: bool, attributes: &[Attribute], fields: impl Iterator<Item = &'a Field>) -> Self {
        let part = |field: &'a Field| Part {
            field,
            keys: keys(&field.attrs),
            is_key: field.attrs.iter().any(|attribute| attribute.path().is_ident("key")),
            has_no_serde_attributes: is_untold(&field.attrs),
        };
        Self { is_variant, keys: keys(attributes), parts: fields.map(part).collect() }
    }
}

/// Returns whether no attribute changes how serde codes the field.
fn is_untold(attributes: &[Attribute]) -> bool {
    // The content of `cfg_attr` is unknown here.
    !attributes.iter().any(|attribute| attribute.path().is_ident("serde") || attribute.path().is_ident("cfg_attr"))
}

/// One key of a serde attribute.
pub(crate) struct Key {
    /// The key.
    pub(crate) ident: Ident,
    /// Its text, if that is a literal.
    pub(crate) value: Option<String>,
    /// The keys in its parentheses, each with its text.
    pub(crate) inside: Option<Vec<(String, String)>>,
}

impl Key {
    /// Returns the place of the key for errors.
    pub(crate) fn span(&self) -> Span {
        self.ident.span()
    }
}

/// Returns the keys of all serde attributes. serde itself reports the ones it does not accept.
pub(crate) fn keys(attributes: &[Attribute]) -> Vec<Key> {
    let mut keys = Vec::new();
    for attribute in attributes.iter().filter(|attribute| attribute.path().is_ident("serde")) {
        let _ = attribute.parse_nested_meta(|meta| {
            let Some(ident) = meta.path.get_ident().cloned() else { return Ok(()) };
            let mut key = Key { ident, value: None, inside: None };
            if meta.input.peek(Token![=]) {
                key.value = text(&meta.value()?.parse::<Expr>()?);
            } else if meta.input.peek(token::Paren) {
                let content;
                parenthesized!(content in meta.input);
                let mut inside = Vec::new();
                while !content.is_empty() {
                    let side = content.call(Ident::parse_any)?;
                    content.parse::<Token![=]>()?;
                    if let Some(text) = text(&content.parse::<Expr>()?) {
                        inside.push((side.to_string(), text));
                    }
                    if !content.is_empty() {
                        content.parse::<Token![,]>()?;
                    }
                }
                key.inside = Some(inside);
            }
            keys.push(key);
            Ok(())
        });
    }
    keys
}

/// Returns the text of a literal.
fn text(value: &Expr) -> Option<String> {
    match value {
        Expr::Lit(literal) => match &literal.lit {
            syn::Lit::Str(text) => Some(text.value()),
            _ => None,
        },
        _ => None,
    }
}
