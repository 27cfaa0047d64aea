//! `#[derive(Rejection)]`.
//!
//! Called by the entry point. Calls [attribute](crate::attribute) for the user's input, and [placeholders](crate::placeholders)
//! for the texts.
//!
//! # Input and output
//!
//! ```text
//! #[derive(Rejection)]
//! #[rejection(domain = Bank)]
//! enum Refused {
//!     #[rejection(text = "{missing} cents are missing")]
//!     Funds { missing: u64 },
//! }
//! ```
//!
//! becomes, apart from spans and lints:
//!
//! ```text
//! const _: () = {
//!     impl Display for Refused { … }                     // the text, for people
//!     impl From<Refused> for Rejection { … }             // the code `bank.funds`, the text, and the fields
//!     impl From<Refused> for WorkError { … }             // so that a worker rejects with `?`
//!     impl TypedRejection for Refused { … }              // the caller gets the variant back
//! };
//! ```
//!
//! The code is part of the wire: renaming a variant changes it, unless the variant keeps its `code`.

use proc_macro2::{Ident, TokenStream};
use quote::{format_ident, quote, quote_spanned};
use syn::ext::IdentExt;
use syn::spanned::Spanned;
use syn::{Data, DeriveInput, Field, LitStr, Variant};

use crate::attribute::{Form, Known, read};
use crate::diagnostics::Diagnostics;
use crate::placeholders::{Placeholders, read_placeholders};
use crate::{names, shape};

/// The key of the attribute on the enum.
const KEYS: &[Known] = &[Known { name: "domain", form: Form::Path, write: "domain = Bank" }];

/// The keys of the attribute on a variant. `text` is required.
const VARIANT_KEYS: &[Known] = &[
    Known { name: "text", form: Form::Text, write: "text = \"the account is closed\"" },
    Known { name: "code", form: Form::Name, write: "code = \"account-closed\"" },
];

/// A variant with its attribute.
struct Rejected<'a> {
    /// The user's variant.
    variant: &'a Variant,
    /// The part of its code after the domain.
    reason: String,
    /// The fields that its text shows.
    placeholders: Placeholders,
}

/// Expands the derive.
///
/// All variants are read before anything is generated, so that every mistake is reported at once.
pub(crate) fn expand(input: &DeriveInput) -> TokenStream {
    let mut mistakes = Diagnostics::default();
    let ident = &input.ident;
    let given = read(&input.attrs, "rejection", &[], KEYS, &mut mistakes);
    shape::reject_generics(input, "rejection", "its fields travel to the caller", &mut mistakes);
    let variants = match &input.data {
        Data::Enum(data) if data.variants.is_empty() => {
            mistakes.add(ident.span(), format!("the rejection `{ident}` has no variants; write one for each reason"));
            return stub(input, mistakes);
        }
        Data::Enum(_) if !input.generics.params.is_empty() => return stub(input, mistakes),
        Data::Enum(data) => &data.variants,
        Data::Struct(data) => {
            let text = format!("found a struct; a rejection lists reasons: write `enum {ident} {{ … }}`");
            mistakes.add(data.struct_token.span(), text);
            return stub(input, mistakes);
        }
        Data::Union(data) => {
            let text = format!("found a union; a rejection lists reasons: write `enum {ident} {{ … }}`");
            mistakes.add(data.union_token.span(), text);
            return stub(input, mistakes);
        }
    };
    let domain = shape::domain(&given, ident, "rejection", &mut mistakes);
    let mut rejections: Vec<Rejected<'_>> = Vec::new();
    for variant in variants {
        let rejected = read_variant(variant, &mut mistakes);
        if let Some(other) = rejections.iter().find(|other| other.reason == rejected.reason) {
            let (one, other) = (&variant.ident, &other.variant.ident);
            mistakes.add(
                one.span(),
                format!(
                    "`{one}` has the code of `{other}`, `{}`; write `code = \"…\"` on one of them",
                    rejected.reason
                ),
            );
        }
        rejections.push(rejected);
    }
    let fmt = rejections.iter().map(Rejected::fmt);
    let into = rejections.iter().map(|rejected| rejected.fields(ident));
    let from = rejections.iter().map(Rejected::from);
    let lints = shape::lints(input);
    let mistakes = mistakes.into_tokens();
    quote! {
        #lints
        const _: () = {
            #[automatically_derived]
            impl ::core::fmt::Display for #ident {
                fn fmt(&self, __f: &mut ::core::fmt::Formatter<'_>) -> ::core::fmt::Result {
                    match *self { #(#fmt)* }
                }
            }
            #[automatically_derived]
            impl ::core::convert::From<#ident> for ::whizbang::derive::Rejection {
                fn from(__rejected: #ident) -> Self {
                    let __text = ::whizbang::derive::ToString::to_string(&__rejected);
                    let __fields = <::whizbang::derive::RejectionFields as ::core::default::Default>::default();
                    let (__reason, __fields) = match __rejected { #(#into)* };
                    __fields.rejection(<#domain as ::whizbang::derive::Domain>::NAME, __reason, __text)
                }
            }
            #[automatically_derived]
            impl ::core::convert::From<#ident> for ::whizbang::derive::WorkError {
                fn from(__rejected: #ident) -> Self {
                    Self::Rejected(::core::convert::Into::into(__rejected))
                }
            }
            #[automatically_derived]
            impl ::whizbang::derive::TypedRejection for #ident {
                fn from_rejection(
                    __rejection: &::whizbang::derive::Rejection,
                ) -> ::core::option::Option<Self> {
                    let mut __fields = ::whizbang::derive::ReceivedFields::of(__rejection);
                    let _ = &mut __fields;
                    let __domain = <#domain as ::whizbang::derive::Domain>::NAME;
                    match ::whizbang::derive::reason_in(__rejection, __domain)? {
                        #(#from)*
                        _ => ::core::option::Option::None,
                    }
                }
            }
        };
        #mistakes
    }
}

/// Reports the mistakes beside implementations that suppress the errors of the item's uses.
fn stub(input: &DeriveInput, mistakes: Diagnostics) -> TokenStream {
    let ident = &input.ident;
    let (generics, arguments, bounds) = input.generics.split_for_impl();
    let mistakes = mistakes.into_tokens();
    quote! {
        impl #generics ::core::convert::From<#ident #arguments> for ::whizbang::derive::Rejection #bounds {
            fn from(_: #ident #arguments) -> Self { loop {} }
        }
        impl #generics ::core::convert::From<#ident #arguments> for ::whizbang::derive::WorkError #bounds {
            fn from(_: #ident #arguments) -> Self { loop {} }
        }
        impl #generics ::whizbang::derive::TypedRejection for #ident #arguments #bounds {
            fn from_rejection(_: &::whizbang::derive::Rejection) -> ::core::option::Option<Self> { loop {} }
        }
        #mistakes
    }
}

/// Reads text and code of a variant.
///
/// After a mistake the variant still gets a reason and an empty text, so that its uses compile.
fn read_variant<'a>(variant: &'a Variant, mistakes: &mut Diagnostics) -> Rejected<'a> {
    let ident = &variant.ident;
    let given = read(&variant.attrs, "rejection", &[], VARIANT_KEYS, mistakes);
    if given.key("text").is_none() {
        mistakes.add(
            ident.span(),
            format!("the rejection `{ident}` has no text; write `#[rejection(text = \"…\")]` for people to read"),
        );
    }
    let default = names::kebab(&ident.unraw().to_string());
    let reason = match given.name("code") {
        Some(code) => code,
        None => {
            if given.key("code").is_none() && !names::is_valid(&default) {
                let length = default.len();
                let rule = names::RULE;
                mistakes.add(
                    ident.span(),
                    format!("`{default}` ({length} bytes) is not a valid code: use {rule}; write `code = \"…\"`"),
                );
            }
            default
        }
    };
    let fields: Vec<String> = (0..).zip(&variant.fields).map(|(at, field)| name_of(at, field)).collect();
    let placeholders = match given.text("text") {
        Some(text) => read_placeholders(text, ident, &fields, mistakes),
        None => Placeholders::none(LitStr::new("", ident.span())),
    };
    Rejected { variant, reason, placeholders }
}

/// Returns the name of a field in texts and on the wire: the number of a tuple's field.
///
/// It is part of the wire: renaming a field changes what callers of another version read.
fn name_of(at: usize, field: &Field) -> String {
    field.ident.as_ref().map_or_else(|| at.to_string(), |ident| ident.unraw().to_string())
}

impl Rejected<'_> {
    /// Generates the arm that writes the text.
    fn fmt(&self) -> TokenStream {
        let Placeholders { text, used } = &self.placeholders;
        let ident = &self.variant.ident;
        let is_used = |at: usize| used.iter().any(|(_, field)| *field == at);
        let members = self.variant.fields.members().enumerate().filter(|(at, _)| is_used(*at)).map(|(at, member)| {
            let binding = binding(at);
            quote!(#member: ref #binding,)
        });
        let arguments = used.iter().map(|(name, at)| {
            let binding = binding(*at);
            quote!(, #name = #binding)
        });
        quote!(Self::#ident { #(#members)* .. } => ::core::write!(__f, #text #(#arguments)*),)
    }

    /// Generates the arm that returns reason and fields.
    fn fields(&self, of: &Ident) -> TokenStream {
        let (reason, ident) = (&self.reason, &self.variant.ident);
        let members = self.variant.fields.members().enumerate().map(|(at, member)| {
            let binding = binding(at);
            quote!(#member: #binding,)
        });
        let fields = self.variant.fields.iter().enumerate().map(|(at, field)| {
            let (name, binding, coding) = (name_of(at, field), binding(at), coding(field));
            quote!(.field(#name, #coding, &#binding))
        });
        quote!(#of::#ident { #(#members)* } => (#reason, __fields #(#fields)*),)
    }

    /// Generates the arm that builds the variant from the reason.
    fn from(&self) -> TokenStream {
        let (reason, ident) = (&self.reason, &self.variant.ident);
        let fields = self.variant.fields.iter().enumerate().zip(self.variant.fields.members());
        let fields = fields.map(|((at, field), member)| {
            let (name, coding) = (name_of(at, field), coding(field));
            quote!(#member: __fields.field(#name, #coding)?,)
        });
        quote!(#reason => ::core::option::Option::Some(Self::#ident { #(#fields)* }),)
    }
}

/// Returns the name to which a field without a name is bound.
///
/// The prefix keeps it apart from every name that a user may have written.
fn binding(at: usize) -> Ident {
    format_ident!("__{at}")
}

/// Returns the call that requires the traits of a field's type, so that a missing one is reported there.
///
/// The span is that of the type in the user's code.
fn coding(field: &Field) -> TokenStream {
    let ty = &field.ty;
    quote_spanned!(ty.span()=> ::whizbang::derive::FieldCoding::<#ty>::of())
}
