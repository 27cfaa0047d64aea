//! The placeholders `{field}` in the text of a rejection.
//!
//! Called by the [derive of rejections](crate::rejection). Calls [names](crate::names) for suggestions. The compiler checks
//! the format after the field, such as `:>8`.
//!
//! A placeholder must be a field of the variant, by its name or its number: `"{missing} cents are missing"`, or `"{0} is closed"`. Other
//! expressions are an error, because the text is also the documentation of the code.

use proc_macro2::Ident;
use quote::format_ident;
use syn::LitStr;
use syn::ext::IdentExt;

use crate::diagnostics::{Diagnostics, shown};
use crate::names;

/// A text with its placeholders.
pub(crate) struct Placeholders {
    /// The format string. `{0}` of a tuple is `{_0}` here, because every argument has a name.
    pub(crate) text: LitStr,
    /// The arguments: the name, and the number of the field.
    pub(crate) used: Vec<(Ident, usize)>,
}

impl Placeholders {
    /// A text without placeholders.
    pub(crate) fn none(text: LitStr) -> Self {
        Self { text, used: Vec::new() }
    }
}

/// Reads the placeholders of a text. A text with a mistake is replaced by an empty one.
pub(crate) fn read_placeholders(
    text: &LitStr,
    variant: &Ident,
    fields: &[String],
    mistakes: &mut Diagnostics,
) -> Placeholders {
    let empty = || Placeholders::none(LitStr::new("", text.span()));
    let value = text.value();
    let (mut format, mut used) = (String::new(), Vec::<(Ident, usize)>::new());
    let mut rest = value.as_str();
    while let Some(at) = rest.find(['{', '}']) {
        let (before, brace) = rest.split_at(at);
        format.push_str(before);
        if let Some(after) = brace.strip_prefix("{{").or_else(|| brace.strip_prefix("}}")) {
            format.extend(brace.chars().take(2));
            rest = after;
            continue;
        }
        let Some((inside, after)) = brace.strip_prefix('{').and_then(|inside| inside.split_once('}')) else {
            mistakes
                .add(text.span(), "found a brace without its other half; write `{{` or `}}` for a brace in the text");
            return empty();
        };
        let (name, how) = inside.split_at(inside.find(':').unwrap_or(inside.len()));
        let name = name.trim();
        let Some(field) = fields.iter().position(|field| field == name) else {
            mistakes.add(text.span(), unknown(name, variant, fields));
            return empty();
        };
        let argument =
            if name.starts_with(|first: char| first.is_ascii_digit()) { format!("_{name}") } else { name.to_owned() };
        format.push_str(&format!("{{{argument}{how}}}"));
        if !used.iter().any(|(_, used)| *used == field) {
            // A keyword is an argument's name like any other.
            let argument = syn::parse::Parser::parse_str(Ident::parse_any, &argument);
            used.push((argument.unwrap_or_else(|_| format_ident!("_{field}")), field));
        }
        rest = after;
    }
    format.push_str(rest);
    Placeholders { text: LitStr::new(&format, text.span()), used }
}

/// Returns the error for a placeholder that is not a field.
fn unknown(name: &str, variant: &Ident, fields: &[String]) -> String {
    let found = shown(&format!("{{{name}}}"));
    if fields.is_empty() {
        return format!("found {found} in the text; the variant `{variant}` has no fields");
    }
    let list: Vec<String> = fields.iter().map(|field| format!("`{{{field}}}`")).collect();
    let advice = match names::nearest(name, fields.iter().map(String::as_str)) {
        Some(nearest) => format!("; did you mean `{{{nearest}}}`?"),
        None => String::new(),
    };
    format!("found {found} in the text; the variant `{variant}` has {}{advice}", list.join(", "))
}
