//! Values that a mutant returns instead of running a function, chosen by the written return type.
//!
//! A value of the wrong type, or of a type without `Default`, makes a mutant that does not compile and is dropped.

use quote::ToTokens;
use syn::{GenericArgument, PathArguments, PathSegment, Type};

/// Returns the values for a return type; none for a type that has no values to construct.
pub(crate) fn values(output: &Type) -> Vec<String> {
    match output {
        Type::Tuple(tuple) if tuple.elems.is_empty() => vec![String::new()],
        Type::Paren(paren) => values(&paren.elem),
        _ => of(output),
    }
}

/// Returns the values for a type inside another value, where the unit has to be written.
fn of(wanted: &Type) -> Vec<String> {
    match wanted {
        Type::Paren(paren) => of(&paren.elem),
        Type::Tuple(tuple) => {
            let first: Option<Vec<String>> = tuple.elems.iter().map(|part| of(part).into_iter().next()).collect();
            first.map(|parts| format!("({})", parts.join(", "))).into_iter().collect()
        }
        Type::Reference(reference) => behind_reference(&reference.elem),
        Type::Path(path) => path.path.segments.last().map(named).unwrap_or_default(),
        Type::Array(array) => {
            let length = array.len.to_token_stream();
            of(&array.elem).into_iter().map(|value| format!("[{value}; {length}]")).collect()
        }
        _ => Vec::new(),
    }
}

fn behind_reference(target: &Type) -> Vec<String> {
    match target {
        Type::Path(path) if path.path.is_ident("str") => strings(["\"\"", "\"xyzzy\""]),
        Type::Slice(_) => strings(["Vec::leak(Vec::new())"]),
        _ => of(target).into_iter().map(|value| format!("Box::leak(Box::new({value}))")).collect(),
    }
}

fn named(segment: &PathSegment) -> Vec<String> {
    let inner = first_argument(segment).map(of).unwrap_or_default();
    let around = |made: &str| inner.iter().map(|value| format!("{made}({value})")).collect::<Vec<String>>();
    match segment.ident.to_string().as_str() {
        "bool" => strings(["true", "false"]),
        "u8" | "u16" | "u32" | "u64" | "u128" | "usize" => strings(["0", "1"]),
        "i8" | "i16" | "i32" | "i64" | "i128" | "isize" => strings(["0", "1", "-1"]),
        "f32" | "f64" => strings(["0.0", "1.0", "-1.0"]),
        "String" => strings(["String::new()", "\"xyzzy\".into()"]),
        "Option" => [vec!["None".to_owned()], around("Some")].concat(),
        "Result" => around("Ok"),
        "Vec" => {
            let one = inner.first().map(|value| format!("vec![{value}]"));
            [vec!["Vec::new()".to_owned()], one.into_iter().collect()].concat()
        }
        made @ ("Box" | "Rc" | "Arc" | "Cell" | "RefCell") => around(&format!("{made}::new")),
        _ => strings(["Default::default()"]),
    }
}

fn first_argument(segment: &PathSegment) -> Option<&Type> {
    let PathArguments::AngleBracketed(arguments) = &segment.arguments else { return None };
    arguments.args.iter().find_map(|argument| match argument {
        GenericArgument::Type(wanted) => Some(wanted),
        _ => None,
    })
}

fn strings<const N: usize>(values: [&str; N]) -> Vec<String> {
    values.into_iter().map(str::to_owned).collect()
}
