//! Finds the mutants of one Rust file.
//!
//! [`sites`] parses product code and returns sites in it, each with its mutants. Tests, macros, constants, patterns, types and
//! the implementations of `Debug` and `Display` are not mutated.

use std::ops::Range;

use quote::ToTokens;
use syn::spanned::Spanned;
use syn::visit::{self, Visit};
use syn::{Attribute, BinOp, Block, Expr, Pat, ReturnType, Signature, UnOp};

use crate::replace;

/// The kind of switch at a site.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Shape {
    /// The mutant returns before the body of a function, at this byte.
    Body(usize),
    /// The mutant replaces the expression in these bytes.
    Wrap(Range<usize>),
    /// The mutant disables the match arm whose pattern ends at this byte.
    Arm(usize),
}

/// One change of one site.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Change {
    /// The code of the mutant.
    pub(crate) code: String,
    /// The change as a report prints it.
    pub(crate) text: String,
}

/// A site in a file and its possible changes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Site {
    pub(crate) shape: Shape,
    pub(crate) function: String,
    pub(crate) line: usize,
    pub(crate) changes: Vec<Change>,
}

/// Returns the sites of a file in the order of the text.
pub(crate) fn sites(text: &str) -> syn::Result<Vec<Site>> {
    let file = syn::parse_file(text)?;
    let mut finder = Finder::default();
    finder.visit_file(&file);
    Ok(finder.sites)
}

/// Returns the test-only modules that a file declares in other files: a name, or the file in `#[path]`.
pub(crate) fn test_modules(text: &str) -> syn::Result<Vec<String>> {
    let file = syn::parse_file(text)?;
    let modules = file.items.iter().filter_map(|item| match item {
        syn::Item::Mod(module) if module.content.is_none() && is_for_tests(&module.attrs) => {
            Some(module.attrs.iter().find_map(path_of).unwrap_or_else(|| module.ident.to_string()))
        }
        _ => None,
    });
    Ok(modules.collect())
}

/// Returns the file in `#[path = "…"]`.
fn path_of(attribute: &Attribute) -> Option<String> {
    let text = attribute.meta.to_token_stream().to_string();
    Some(text.strip_prefix("path = \"")?.strip_suffix('"')?.to_owned())
}

/// Returns true if an item exists only in tests or in the test kit.
fn is_for_tests(attributes: &[Attribute]) -> bool {
    attributes.iter().any(|attribute| {
        let text = attribute.meta.to_token_stream().to_string();
        text == "test" || text.starts_with("cfg") && text.contains("test")
    })
}

/// Formats tokens on one line.
pub(crate) fn line_of(tokens: &impl ToTokens) -> String {
    let mut text = tokens.to_token_stream().to_string();
    for (wide, narrow) in [
        (" :: ", "::"),
        (" . ", "."),
        (" (", "("),
        ("( ", "("),
        (" )", ")"),
        (" ;", ";"),
        (" ,", ","),
        ("& ", "&"),
        (" ?", "?"),
        ("! ", "!"),
        ("* ", "*"),
        ("&&", "&& "),
        ("  ", " "),
    ] {
        text = text.replace(wide, narrow);
    }
    text
}

#[derive(Default)]
struct Finder {
    /// Names of the functions and types around the current place.
    path: Vec<String>,
    /// The number of functions around the current place.
    depth: usize,
    sites: Vec<Site>,
}

impl Finder {
    fn add(&mut self, shape: Shape, line: usize, changes: Vec<Change>) {
        if !changes.is_empty() {
            self.sites.push(Site { shape, function: self.path.join("::"), line, changes });
        }
    }

    fn function(&mut self, attributes: &[Attribute], signature: &Signature, block: &Block) {
        if is_for_tests(attributes)
            || signature.constness.is_some()
            || matches!(signature.safety, syn::Safety::Unsafe(_))
        {
            return;
        }
        self.path.push(signature.ident.to_string());
        self.depth += 1;
        // A default that returns the default calls itself.
        if !block.stmts.is_empty() && signature.ident != "default" {
            let body = block.to_token_stream().to_string();
            let changes = match &signature.output {
                ReturnType::Default => vec![String::new()],
                ReturnType::Type(_, output) => replace::values(output),
            };
            let changes = changes
                .into_iter()
                .filter(|value| body != format!("{{ {value} }}"))
                .map(|value| Change {
                    code: if value.is_empty() { "return;".to_owned() } else { format!("return {value};") },
                    text: format!("body -> {}", if value.is_empty() { "()" } else { &value }),
                })
                .collect();
            let at = block.brace_token.span.open().byte_range().end;
            self.add(Shape::Body(at), signature.span().start().line, changes);
        }
        visit::visit_block(self, block);
        self.depth -= 1;
        self.path.pop();
    }

    fn wrap(&mut self, expression: &Expr, changes: Vec<Change>) {
        if self.depth > 0 {
            let span = expression.span();
            self.add(Shape::Wrap(span.byte_range()), span.start().line, changes);
        }
    }
}

impl<'a> Visit<'a> for Finder {
    fn visit_item_fn(&mut self, item: &'a syn::ItemFn) {
        self.function(&item.attrs, &item.sig, &item.block);
    }

    fn visit_impl_item_fn(&mut self, item: &'a syn::ImplItemFn) {
        self.function(&item.attrs, &item.sig, &item.block);
    }

    fn visit_trait_item_fn(&mut self, item: &'a syn::TraitItemFn) {
        if let Some(block) = &item.default {
            self.function(&item.attrs, &item.sig, block);
        }
    }

    fn visit_item_impl(&mut self, item: &'a syn::ItemImpl) {
        let of = item.trait_.as_ref().and_then(|of| of.0.segments.last()).map(|of| of.ident.to_string());
        if is_for_tests(&item.attrs) || matches!(of.as_deref(), Some("Debug" | "Display")) {
            return;
        }
        let name = match &*item.self_ty {
            syn::Type::Path(path) => path.path.segments.last().map(|last| last.ident.to_string()).unwrap_or_default(),
            other => line_of(other),
        };
        self.path.push(name);
        item.items.iter().for_each(|item| self.visit_impl_item(item));
        self.path.pop();
    }

    fn visit_item_trait(&mut self, item: &'a syn::ItemTrait) {
        if !is_for_tests(&item.attrs) {
            self.path.push(item.ident.to_string());
            item.items.iter().for_each(|item| self.visit_trait_item(item));
            self.path.pop();
        }
    }

    fn visit_item_mod(&mut self, item: &'a syn::ItemMod) {
        if !is_for_tests(&item.attrs) {
            visit::visit_item_mod(self, item);
        }
    }

    fn visit_local(&mut self, local: &'a syn::Local) {
        if !is_for_tests(&local.attrs) {
            visit::visit_local(self, local);
        }
    }

    fn visit_expr_block(&mut self, block: &'a syn::ExprBlock) {
        if !is_for_tests(&block.attrs) {
            visit::visit_expr_block(self, block);
        }
    }

    fn visit_expr(&mut self, expression: &'a Expr) {
        match expression {
            Expr::Binary(binary) if !(is_and(&binary.op) && (is_chain(&binary.left) || is_chain(&binary.right))) => {
                let (left, right) = (one_line(&binary.left), one_line(&binary.right));
                let before = binary.op.to_token_stream().to_string();
                let changes = instead_of(&binary.op).iter().map(|op| Change {
                    code: format!("({left}) {op} ({right})"),
                    text: format!("{before} -> {op} in {}", short(&line_of(binary))),
                });
                self.wrap(expression, changes.collect());
            }
            Expr::Unary(unary) if matches!(unary.op, UnOp::Not(_) | UnOp::Neg(_)) => {
                let change = Change {
                    code: one_line(&unary.expr),
                    text: format!("delete {} in {}", unary.op.to_token_stream(), short(&line_of(unary))),
                };
                self.wrap(expression, vec![change]);
            }
            _ => {}
        }
        visit::visit_expr(self, expression);
    }

    fn visit_expr_match(&mut self, expression: &'a syn::ExprMatch) {
        self.visit_expr(&expression.expr);
        let last = expression.arms.len().saturating_sub(1);
        let has_rest = expression.arms.last().is_some_and(|arm| takes_the_rest(&arm.pat));
        for (index, arm) in expression.arms.iter().enumerate() {
            if is_for_tests(&arm.attrs) {
                continue;
            }
            if let Pat::Guard(syn::PatGuard { guard, .. }) = &arm.pat {
                if !is_chain(guard) {
                    let text = short(&line_of(guard));
                    let to = |value: &str| Change { code: value.into(), text: format!("guard {text} -> {value}") };
                    self.wrap(guard, vec![to("true"), to("false")]);
                }
                self.visit_expr(guard);
            } else if has_rest && index < last && self.depth > 0 {
                let text = format!("delete arm {}", short(&line_of(&arm.pat)));
                let span = arm.pat.span();
                let change = Change { code: String::new(), text };
                self.add(Shape::Arm(span.byte_range().end), span.start().line, vec![change]);
            }
            self.visit_expr(&arm.body);
        }
    }

    fn visit_expr_repeat(&mut self, repeat: &'a syn::ExprRepeat) {
        self.visit_expr(&repeat.expr);
    }

    // Constants, and syntax that is not an expression.
    fn visit_item_const(&mut self, _: &'a syn::ItemConst) {}
    fn visit_item_static(&mut self, _: &'a syn::ItemStatic) {}
    fn visit_item_enum(&mut self, _: &'a syn::ItemEnum) {}
    fn visit_impl_item_const(&mut self, _: &'a syn::ImplItemConst) {}
    fn visit_trait_item_const(&mut self, _: &'a syn::TraitItemConst) {}
    fn visit_expr_const(&mut self, _: &'a syn::ExprConst) {}
    fn visit_pat(&mut self, _: &'a Pat) {}
    fn visit_type(&mut self, _: &'a syn::Type) {}
    fn visit_path(&mut self, _: &'a syn::Path) {}
    fn visit_attribute(&mut self, _: &'a Attribute) {}
    fn visit_angle_bracketed_generic_arguments(&mut self, _: &'a syn::AngleBracketedGenericArguments) {}
}

/// Returns the code of an expression on one line, so that line numbers do not change.
fn one_line(expression: &Expr) -> String {
    expression.to_token_stream().to_string().replace('\n', " ")
}

/// Shortens a long text for the report.
fn short(text: &str) -> String {
    const LONGEST: usize = 90;
    match text.char_indices().nth(LONGEST) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

fn is_and(op: &BinOp) -> bool {
    matches!(op, BinOp::And(_))
}

/// Returns true if an expression is a `let` or a chain with one, which must not be parenthesized.
fn is_chain(expression: &Expr) -> bool {
    match expression {
        Expr::Let(_) => true,
        Expr::Binary(binary) if is_and(&binary.op) => is_chain(&binary.left) || is_chain(&binary.right),
        _ => false,
    }
}

/// Returns true if a pattern without a guard matches everything.
fn takes_the_rest(pattern: &Pat) -> bool {
    match pattern {
        Pat::Wild(_) => true,
        Pat::Ident(name) => name.subpat.is_none() && name.ident.to_string().starts_with(|c: char| c.is_lowercase()),
        _ => false,
    }
}

/// Returns the operators that replace an operator, the same as in cargo-mutants.
fn instead_of(op: &BinOp) -> &'static [&'static str] {
    match op {
        BinOp::Eq(_) => &["!="],
        BinOp::Ne(_) => &["=="],
        BinOp::Lt(_) => &["==", ">", "<="],
        BinOp::Gt(_) => &["==", "<", ">="],
        BinOp::Le(_) => &[">", "<"],
        BinOp::Ge(_) => &["<", ">"],
        BinOp::And(_) => &["||"],
        BinOp::Or(_) => &["&&"],
        BinOp::Add(_) => &["-", "*"],
        BinOp::Sub(_) => &["+", "/"],
        BinOp::Mul(_) => &["+", "/"],
        BinOp::Div(_) => &["%", "*"],
        BinOp::Rem(_) => &["/", "+"],
        BinOp::BitAnd(_) => &["|", "^"],
        BinOp::BitOr(_) => &["&", "^"],
        BinOp::BitXor(_) => &["|", "&"],
        BinOp::Shl(_) => &[">>"],
        BinOp::Shr(_) => &["<<"],
        BinOp::AddAssign(_) => &["-=", "*="],
        BinOp::SubAssign(_) => &["+=", "/="],
        BinOp::MulAssign(_) => &["+=", "/="],
        BinOp::DivAssign(_) => &["%=", "*="],
        BinOp::RemAssign(_) => &["/=", "+="],
        BinOp::BitAndAssign(_) => &["|=", "^="],
        BinOp::BitOrAssign(_) => &["&=", "^="],
        BinOp::BitXorAssign(_) => &["|=", "&="],
        BinOp::ShlAssign(_) => &[">>="],
        BinOp::ShrAssign(_) => &["<<="],
        _ => &[],
    }
}
