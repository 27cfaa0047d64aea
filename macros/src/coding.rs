//! Encoding and decoding of a message in the code that its derive generates, including its older versions.
//!
//! Called by the [message derives](crate::message). The generated functions only choose the version: they call constants that
//! [versions](crate::versions) and [shape](crate::shape) generate, each of which requires its traits in one place.
//!
//! ```text
//! fn decode(version: u32, codec: Codec, bytes: &[u8]) -> Result<Self, CodecError> {
//!     match version {
//!         3 => __WHIZBANG_CODING.decode(codec, bytes),        // the current version
//!         1 => __WHIZBANG_VERSION_1.decode(codec, bytes),     // `upcast(1 = DepositV1)`
//!         2 => __WHIZBANG_VERSION_2.one(codec, bytes),        // `split(2 = DepositV2)`: exactly one event, or an error
//!         found => Err(unknown_version::<Self>(found)),       // written by a newer program
//!     }
//! }
//! ```

use proc_macro2::TokenStream;
use quote::quote;

use crate::attribute::Given;
use crate::lists::Upcast;
use crate::versions;

/// Generates encoding and decoding, including older versions. An item with a mistake gets functions that never run.
pub(crate) fn coding(given: &Given, version: u32, correct: bool) -> TokenStream {
    if !correct {
        return quote! {
            fn encode(
                &self,
                _: ::whizbang::derive::Codec,
                _: &mut ::whizbang::derive::Vec<::core::primitive::u8>,
            ) -> ::core::result::Result<(), ::whizbang::derive::CodecError> {
                ::whizbang::derive::never_coded()
            }
            fn decode(
                _: ::core::primitive::u32,
                _: ::whizbang::derive::Codec,
                _: &[::core::primitive::u8],
            ) -> ::core::result::Result<Self, ::whizbang::derive::CodecError> {
                ::whizbang::derive::never_coded()
            }
        };
    }
    let (upcasts, splits) = (given.upcasts("upcast"), given.upcasts("split"));
    let older = |upcast: &Upcast| (upcast.version, versions::older_version(upcast));
    let arms = upcasts.iter().map(older).map(|(version, read)| quote!(#version => #read.decode(__codec, __bytes),));
    let arms =
        arms.chain(splits.iter().map(older).map(|(version, read)| quote!(#version => #read.one(__codec, __bytes),)));
    let shapes =
        upcasts.iter().chain(splits).map(older).map(|(version, read)| quote!(#version => #read.shape(__codec),));
    let each = (!splits.is_empty()).then(|| {
        let arms =
            splits.iter().map(older).map(|(version, read)| quote!(#version => #read.each(__codec, __bytes, __each),));
        quote! {
            fn decode_each(
                __version: ::core::primitive::u32,
                __codec: ::whizbang::derive::Codec,
                __bytes: &[::core::primitive::u8],
                __each: &mut dyn ::core::ops::FnMut(Self),
            ) -> ::core::result::Result<(), ::whizbang::derive::CodecError> {
                match __version {
                    #(#arms)*
                    __version => ::core::result::Result::map(Self::decode(__version, __codec, __bytes), __each),
                }
            }
        }
    });
    let (writes, write) = match versions::written_version(given).map(|upcast| upcast.version) {
        Some(version) => (Some(quote!(const WRITES: ::core::primitive::u32 = #version;)), quote!(__WHIZBANG_WRITTEN)),
        None => (None, quote!(__WHIZBANG_CODING)),
    };
    quote! {
        #writes
        #each
        fn shape(
            __version: ::core::primitive::u32,
            __codec: ::whizbang::derive::Codec,
        ) -> ::core::option::Option<::whizbang::derive::Arc<::whizbang::derive::Shape>> {
            match __version {
                #version => __WHIZBANG_CODING.shape(__codec),
                #(#shapes)*
                _ => ::core::option::Option::None,
            }
        }
        fn encode(
            &self,
            __codec: ::whizbang::derive::Codec,
            __into: &mut ::whizbang::derive::Vec<::core::primitive::u8>,
        ) -> ::core::result::Result<(), ::whizbang::derive::CodecError> {
            #write.encode(self, __codec, __into)
        }
        fn decode(
            __version: ::core::primitive::u32,
            __codec: ::whizbang::derive::Codec,
            __bytes: &[::core::primitive::u8],
        ) -> ::core::result::Result<Self, ::whizbang::derive::CodecError> {
            match __version {
                #version => __WHIZBANG_CODING.decode(__codec, __bytes),
                #(#arms)*
                __found => ::core::result::Result::Err(::whizbang::derive::unknown_version::<Self>(__found)),
            }
        }
    }
}
