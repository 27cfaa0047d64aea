//! Types of messages that are known to decode to the encoded value.
//!
//! Called by the derives of messages. A message needs no check of each value if all its fields have plain types of the
//! standard library and no serde attribute. Its first value is checked nevertheless: serde's traits may be implemented
//! by hand, and a name may refer to another type.
//!
//! Every other message is decoded again after it was encoded, and the handler of the receiver gets the decoded value: a field that
//! does not survive shows in the first test and not after a restart.

use proc_macro2::TokenStream;
use quote::quote;
use syn::{GenericArgument, PathArguments, Type};

use crate::fields::Item;

/// Types that every codec encodes and decodes without exception.
const PLAIN: &[&str] = &[
    "bool", "u8", "u16", "u32", "u64", "u128", "usize", "i8", "i16", "i32", "i64", "i128", "isize", "char", "f32",
    "f64", "String",
];
/// Types that are plain if their parameters are. Not maps: the order of their entries varies.
const HOLDERS: &[&str] = &["Vec", "Box", "Option"];

/// Returns whether all fields of an item are plain.
pub(crate) fn is_plain(item: &Item<'_>) -> bool {
    item.is_untold() && item.parts().all(|part| is_plain_type(&part.field.ty))
}

/// Generates the method that declares it. The first value of the type is checked nevertheless.
pub(crate) fn trust() -> TokenStream {
    quote! {
        fn trust() -> ::core::option::Option<&'static ::whizbang::derive::Trust> {
            static TRUST: ::whizbang::derive::Trust = ::whizbang::derive::Trust::new();
            ::core::option::Option::Some(&TRUST)
        }
    }
}

/// Returns whether a type is plain, by its name alone. A type of the program with the name of a plain one is caught by the
/// check of the first value.
fn is_plain_type(ty: &Type) -> bool {
    match ty {
        Type::Path(path) if path.qself.is_none() => {
            let Some(segment) = path.path.segments.first().filter(|_| path.path.segments.len() == 1) else {
                return false;
            };
            let word = segment.ident.to_string();
            match &segment.arguments {
                PathArguments::None => PLAIN.contains(&word.as_str()),
                PathArguments::AngleBracketed(arguments) => {
                    let is_plain = |argument: &GenericArgument| match argument {
                        GenericArgument::Type(ty) => is_plain_type(ty),
                        _ => false,
                    };
                    HOLDERS.contains(&word.as_str()) && arguments.args.iter().all(is_plain)
                }
                PathArguments::Parenthesized(_) => false,
            }
        }
        // Empty tuples have no bytes: the check bounds lists of them.
        Type::Tuple(tuple) => !tuple.elems.is_empty() && tuple.elems.iter().all(is_plain_type),
        Type::Array(array) => is_plain_type(&array.elem),
        Type::Paren(inner) => is_plain_type(&inner.elem),
        Type::Group(inner) => is_plain_type(&inner.elem),
        _ => false,
    }
}
