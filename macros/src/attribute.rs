//! Parses `#[command(…)]` and similar attributes against the list of keys that a derive accepts.
//!
//! Called by the derives. Calls [names](crate::names) to suggest a key for a misspelled one. It does not stop at a
//! mistake: the key is reported and ignored, or treated as the suggested one, and parsing continues after the next
//! comma.
//!
//! # Errors
//!
//! An error says what was found, what was expected, and how to write it, in this order, and points at the user's token:
//!
//! ```text
//! unknown key `repli` in `#[command(…)]`; known keys: `domain`, `reply`, `name`; did you mean `reply`?
//! found `0`; expected a number from 1 to 1024; write `shards = 16`
//! ```

use proc_macro2::Span;
use syn::ext::IdentExt;
use syn::parse::{ParseStream, Parser};
use syn::spanned::Spanned;
use syn::{Attribute, Ident, LitStr, Meta, Token, Type, token};

use crate::diagnostics::{Diagnostics, next_token};
use crate::lists::{Upcast, read_names, read_paths, read_upcasts};
use crate::names;
use crate::shape::with_article;
use crate::values::{open, read_name, read_number, read_type, skip_to_comma};

/// A key that a derive accepts.
pub(crate) struct Known {
    /// The key.
    pub(crate) name: &'static str,
    /// The form of its value.
    pub(crate) form: Form,
    /// An example, which errors show.
    pub(crate) write: &'static str,
}

/// The form of a key's value.
pub(crate) enum Form {
    /// `= "text"`, a name of 1 to 64 characters.
    Name,
    /// `= "text"`, any text.
    Text,
    /// `= "text"`, or `("text", "text")`: distinct names.
    Names,
    /// `= 16`.
    Number { least: u32, most: u32 },
    /// `= word`, one of these.
    Word(&'static [&'static str]),
    /// `= Type`, a path.
    Path,
    /// `= Type`, any type.
    Type,
    /// `(Type, Type)`: distinct paths.
    Paths,
    /// `(1 = Type, 2 = Type)`.
    Upcasts,
    /// No value, or `(key = value, …)`.
    Nested(&'static [Known]),
    /// No value.
    Flag,
}

/// The parsed value of a key.
enum Value {
    /// A name for the wire or the store, already validated.
    Name(LitStr),
    /// Any text.
    Text(LitStr),
    /// Distinct names.
    Names(Vec<LitStr>),
    /// A number within its range, with its place for later errors.
    Number(u32, Span),
    /// One of a few words.
    Word(Ident),
    /// One type.
    Type(Box<Type>),
    /// Distinct types.
    Types(Vec<Type>),
    /// Older versions with their types.
    Upcasts(Vec<Upcast>),
    /// The values inside of parentheses.
    Nested(Given),
    /// A key without a value, such as `snapshot`.
    Flag,
}

/// The parsed keys of an attribute.
#[derive(Default)]
pub(crate) struct Given(Vec<(&'static str, Ident, Option<Value>)>);

impl Given {
    /// Returns the key as the user wrote it, if it was given with any value.
    pub(crate) fn key(&self, name: &str) -> Option<&Ident> {
        self.0.iter().find(|(known, ..)| *known == name).map(|(_, key, _)| key)
    }

    /// Returns the value of a key, if it was given.
    fn value(&self, name: &str) -> Option<&Value> {
        self.0.iter().find(|(known, ..)| *known == name).and_then(|(.., value)| value.as_ref())
    }

    /// Returns the text of a [`Form::Name`].
    pub(crate) fn name(&self, name: &str) -> Option<String> {
        match self.value(name) {
            Some(Value::Name(text)) => Some(text.value()),
            _ => None,
        }
    }

    /// Returns the text of a [`Form::Text`].
    pub(crate) fn text(&self, name: &str) -> Option<&LitStr> {
        match self.value(name) {
            Some(Value::Text(text)) => Some(text),
            _ => None,
        }
    }

    /// Returns the texts of a [`Form::Names`]; empty if the key was not given.
    pub(crate) fn names(&self, name: &str) -> &[LitStr] {
        match self.value(name) {
            Some(Value::Names(names)) => names,
            _ => &[],
        }
    }

    /// Returns the number of a [`Form::Number`] and its span.
    pub(crate) fn number(&self, name: &str) -> Option<(u32, Span)> {
        match self.value(name) {
            Some(Value::Number(number, span)) => Some((*number, *span)),
            _ => None,
        }
    }

    /// Returns the word of a [`Form::Word`].
    pub(crate) fn word(&self, name: &str) -> Option<&Ident> {
        match self.value(name) {
            Some(Value::Word(word)) => Some(word),
            _ => None,
        }
    }

    /// Returns the type of a [`Form::Path`] or a [`Form::Type`].
    pub(crate) fn ty(&self, name: &str) -> Option<&Type> {
        match self.value(name) {
            Some(Value::Type(ty)) => Some(ty),
            _ => None,
        }
    }

    /// Returns the types of a [`Form::Paths`]; empty if the key was not given.
    pub(crate) fn types(&self, name: &str) -> &[Type] {
        match self.value(name) {
            Some(Value::Types(types)) => types,
            _ => &[],
        }
    }

    /// Returns the versions of a [`Form::Upcasts`]; empty if the key was not given.
    pub(crate) fn upcasts(&self, name: &str) -> &[Upcast] {
        match self.value(name) {
            Some(Value::Upcasts(upcasts)) => upcasts,
            _ => &[],
        }
    }

    /// Returns the keys inside a [`Form::Nested`].
    pub(crate) fn nested(&self, name: &str) -> Option<&Given> {
        match self.value(name) {
            Some(Value::Nested(given)) => Some(given),
            _ => None,
        }
    }
}

/// Parses all `#[name(…)]` of an item. `excluded` are attributes of derives that exclude this one.
///
/// Several attributes of the same name count as one. `known` lists the keys that the derive accepts, with the form of their
/// values and an example for errors. The result contains every key that could be read, with or without mistakes beside it.
pub(crate) fn read(
    attributes: &[Attribute],
    name: &'static str,
    excluded: &[&str],
    known: &'static [Known],
    mistakes: &mut Diagnostics,
) -> Given {
    let mut given = Given::default();
    let has_own = attributes.iter().any(|attribute| attribute.path().is_ident(name));
    for attribute in attributes {
        let Some(found) = attribute.path().get_ident().map(Ident::to_string) else { continue };
        if found == name {
            read_one(attribute, name, known, &mut given, mistakes);
        } else if has_own && excluded.contains(&found.as_str()) {
            mistakes.add(
                attribute.path().span(),
                format!("found `#[{found}(…)]` beside `#[{name}(…)]`; a type is one of the two: leave one out, with its derive"),
            );
        } else if excluded.contains(&found.as_str()) {
            mistakes.add(
                attribute.path().span(),
                format!("found `#[{found}(…)]` on {}; write `#[{name}(…)]`", with_article(name)),
            );
            // Probably meant for this derive; its own mistakes would be reported against the wrong keys.
            read_one(attribute, name, known, &mut given, &mut Diagnostics::default());
        } else if names::nearest(&found, [name]).is_some() {
            // The compiler reports the misspelled attribute; a second error about its keys adds nothing.
            read_one(attribute, name, known, &mut given, &mut Diagnostics::default());
        }
    }
    given
}

/// Reads one attribute. Several of the same name are read as one.
fn read_one(attribute: &Attribute, name: &str, known: &'static [Known], given: &mut Given, mistakes: &mut Diagnostics) {
    let example = known.first().map_or("…", |key| key.write);
    match &attribute.meta {
        Meta::List(list) => {
            let read = |input: ParseStream<'_>| {
                read_keys(input, &format!("`#[{name}(…)]`"), known, given, mistakes);
                Ok(())
            };
            if let Err(error) = read.parse2(list.tokens.clone()) {
                mistakes.add(error.span(), error);
            }
        }
        Meta::Path(path) => mistakes.add(
            path.span(),
            format!("found `#[{name}]` without keys; expected its keys; write `#[{name}({example})]`"),
        ),
        Meta::NameValue(pair) => mistakes.add(
            pair.path.span(),
            format!("found `#[{name} = …]`; expected its keys in parentheses; write `#[{name}({example})]`"),
        ),
    }
}

/// Parses `key = value, key(value), …` to the end of `input`.
pub(crate) fn read_keys(
    input: ParseStream<'_>,
    place: &str,
    known: &'static [Known],
    given: &mut Given,
    mistakes: &mut Diagnostics,
) {
    while !input.is_empty() {
        let before = input.span();
        match input.call(Ident::parse_any) {
            Ok(key) => read_key(key, input, place, known, given, mistakes),
            Err(_) => {
                let found = next_token(input);
                mistakes.add(before, format!("found {found}; expected a key of {place}: {}", list(known)));
                skip_to_comma(input);
            }
        }
        if !input.is_empty() && input.parse::<Token![,]>().is_err() {
            let found = next_token(input);
            mistakes.add(input.span(), format!("found {found}; expected `,` or the end of {place}"));
            skip_to_comma(input);
            let _ = input.parse::<Token![,]>();
        }
    }
}

/// Reads one key with its value. An unknown or repeated key is a mistake, and the rest is read nevertheless.
///
/// A misspelled key is read as the key that it resembles, so that an item with one wrong letter has one error and not ten.
fn read_key(
    key: Ident,
    input: ParseStream<'_>,
    place: &str,
    known: &'static [Known],
    given: &mut Given,
    mistakes: &mut Diagnostics,
) {
    let word = key.to_string();
    if let Some(known) = known.iter().find(|known| known.name == word) {
        let count = mistakes.count();
        if given.key(known.name).is_some() {
            mistakes.add(key.span(), format!("`{word}` is given twice; keep one of the two"));
            // Mistakes in the second value are not reported; they disappear with it.
            read_value(&key, input, known, &mut Diagnostics::default());
        } else {
            let value = read_value(&key, input, known, mistakes);
            given.0.push((known.name, key, value));
        }
        if mistakes.count() == count && !input.is_empty() && !input.peek(Token![,]) {
            let found = next_token(input);
            let write = known.write;
            mistakes.add(
                input.span(),
                format!("found {found} after the value of `{word}`; expected `,` or the end; write `{write}`"),
            );
        }
        skip_to_comma(input);
        return;
    }
    let nearest = names::nearest(&word, known.iter().map(|known| known.name));
    let suggested = nearest.and_then(|name| known.iter().find(|known| known.name == name));
    let advice = match suggested {
        Some(suggested) => format!("; did you mean `{}`?", suggested.name),
        None => String::new(),
    };
    mistakes.add(key.span(), format!("unknown key `{word}` in {place}; known keys: {}{advice}", list(known)));
    // Treating it as the suggested key avoids follow-up errors in the rest of the program.
    match suggested {
        Some(suggested) if given.key(suggested.name).is_none() => {
            let value = read_value(&key, input, suggested, &mut Diagnostics::default());
            given.0.push((suggested.name, key, value));
        }
        _ => {}
    }
    skip_to_comma(input);
}

/// Reads a value in the form of its key. `None` after a mistake.
fn read_value(key: &Ident, input: ParseStream<'_>, known: &Known, mistakes: &mut Diagnostics) -> Option<Value> {
    let write = known.write;
    if matches!(known.form, Form::Flag) {
        if input.is_empty() || input.peek(Token![,]) {
            return Some(Value::Flag);
        }
        let found = next_token(input);
        mistakes.add(input.span(), format!("found {found} after `{key}`, which has no value; write `{write}`"));
        return None;
    }
    if matches!(known.form, Form::Names) && input.peek(token::Paren) {
        let content = open(input).ok()?;
        return read_names(key, &content, write, mistakes).map(Value::Names);
    }
    if matches!(known.form, Form::Paths | Form::Upcasts | Form::Nested(_)) {
        if matches!(known.form, Form::Nested(_)) && (input.is_empty() || input.peek(Token![,])) {
            return Some(Value::Nested(Given::default()));
        }
        if !input.peek(token::Paren) {
            mistakes.add(key.span(), format!("`{key}` has no list; expected one in parentheses; write `{write}`"));
            return None;
        }
        let content = open(input).ok()?;
        return match &known.form {
            Form::Nested(keys) => {
                let mut given = Given::default();
                read_keys(&content, &format!("`{key}(…)`"), keys, &mut given, mistakes);
                Some(Value::Nested(given))
            }
            Form::Upcasts => read_upcasts(key, &content, write, mistakes).map(Value::Upcasts),
            _ => read_paths(key, &content, write, mistakes).map(Value::Types),
        };
    }
    if input.parse::<Token![=]>().is_err() {
        mistakes.add(key.span(), format!("`{key}` has no value; expected one after `=`; write `{write}`"));
        return None;
    }
    if input.is_empty() || input.peek(Token![,]) {
        mistakes.add(key.span(), format!("`{key}` has no value after its `=`; write `{write}`"));
        return None;
    }
    let span = input.span();
    match &known.form {
        Form::Name => read_name(input, write, mistakes).map(Value::Name),
        Form::Names => read_name(input, write, mistakes).map(|name| Value::Names(vec![name])),
        Form::Text => {
            let found = next_token(input);
            let text = input.parse::<LitStr>().ok().filter(|text| !text.value().trim().is_empty());
            if text.is_none() {
                mistakes.add(span, format!("found {found}; expected a text in quotes; write `{write}`"));
            }
            text.map(Value::Text)
        }
        Form::Number { least, most } => {
            let found = next_token(input);
            let number = read_number(input).filter(|number| (*least..=*most).contains(number));
            if number.is_none() {
                let range = match *most {
                    u32::MAX => format!("from {least} up"),
                    most => format!("from {least} to {most}"),
                };
                mistakes.add(span, format!("found {found}; expected a number {range}; write `{write}`"));
            }
            number.map(|number| Value::Number(number, span))
        }
        Form::Word(words) => {
            let found = next_token(input);
            let word = input.parse::<Ident>().ok().filter(|word| words.iter().any(|known| word == known));
            if word.is_none() {
                let words: Vec<String> = words.iter().map(|word| format!("`{word}`")).collect();
                mistakes.add(span, format!("found {found}; expected {}; write `{write}`", words.join(" or ")));
            }
            word.map(Value::Word)
        }
        form => {
            let any = matches!(form, Form::Type);
            read_type(input, any, write, mistakes).map(|ty| Value::Type(Box::new(ty)))
        }
    }
}

/// Lists the known keys for an error.
fn list(known: &[Known]) -> String {
    let names: Vec<String> = known.iter().map(|known| format!("`{}`", known.name)).collect();
    names.join(", ")
}
