//! The explorer: the current knowledge about a type, and the input of the next pass over it.
//!
//! A pass runs the type's `Deserialize` once. A value has only one variant of each enum, and a type that validates its
//! values refuses most of them, so one pass sees only a part. The explorer stores what each place has requested, as a
//! tree of nodes, and chooses unseen parts for the next pass. A place that accepts no sample is *stuck*; fields are
//! then offered in another order, so that a stuck field hides nothing but itself. Each pass learns something, or it is
//! the last one.

use super::probe::Probe;
use super::samples;
use super::{Field, Plain, Shape, Variant};
use crate::message::Codec;

/// The largest number of passes over a type. A type that needs more keeps the result so far.
const PASSES: usize = 4_000;
/// The largest number of places in a type; further ones are opaque.
const NODES: usize = 2_000;
/// The largest depth of places; deeper ones are opaque. A shape is stored as JSON, which is read 128 levels deep, four
/// for each place.
pub(super) const DEPTH: usize = 24;
/// The number of times that a type may contain itself before it counts as recursive. Generic types have one name for
/// all instances, so once would be too few.
pub(super) const REPEATS: usize = 3;
/// The depth to which a recursive type is followed to find an end.
pub(super) const RECURSION_DEPTH: usize = 64;
/// The number of attempts to reach the end of a recursive type.
const RECURSION_ATTEMPTS: usize = 8;

/// A place in a type; `None` is a place that is not explored.
pub(super) type NodeId = Option<usize>;

pub(super) struct Node {
    pub(super) kind: Kind,
    pub(super) sample: usize,
    /// No sample was accepted here.
    pub(super) stuck: bool,
}

pub(super) enum Kind {
    Unknown,
    /// Anything is accepted, or nothing is read.
    Any,
    Plain(Plain),
    Option {
        of: NodeId,
        none: bool,
    },
    List {
        of: NodeId,
        empty: bool,
    },
    Map {
        key: NodeId,
        value: NodeId,
        empty: bool,
    },
    Tuple(Vec<NodeId>),
    Array(usize, NodeId),
    Struct {
        fields: Vec<FieldNode>,
        by_order: bool,
    },
    Enum(Vec<VariantNode>),
    Recursion,
}

pub(super) struct FieldNode {
    pub(super) names: Vec<&'static str>,
    pub(super) of: NodeId,
    pub(super) optional: Option<bool>,
    /// Set in this pass.
    pub(super) visited: bool,
}

pub(super) struct VariantNode {
    pub(super) name: &'static str,
    pub(super) of: NodeId,
    pub(super) accepted: bool,
    pub(super) stuck: bool,
    /// Set in this pass.
    pub(super) chosen: bool,
}

/// The last step of the pass. If the pass fails, this step is the cause.
#[derive(Clone, Copy)]
pub(super) enum LastStep {
    Nothing,
    /// Provided a value, or began one, at this place.
    Place(usize),
    /// Offered the name of this field at this place.
    Key(usize, usize),
    /// Omitted a field to test whether it is optional.
    Omission,
    /// Searched for the end of a recursive type.
    RecursionEnd,
}

pub(super) struct Explorer {
    pub(super) nodes: Vec<Node>,
    pub(super) is_json: bool,
    /// The places from the root to the last visited one.
    pub(super) path: Vec<usize>,
    pub(super) last: LastStep,
    /// The current attempt to reach the end of recursive types.
    pub(super) attempt: usize,
    /// The named types that are being read.
    pub(super) open: Vec<(usize, usize)>,
    learned: usize,
}

impl Explorer {
    /// Runs passes over a type until nothing more can be learned. `pass` returns whether the type accepted its input.
    pub(super) fn explore(codec: Codec, pass: &mut dyn FnMut(Probe<'_>) -> bool) -> Shape {
        let mut explorer = Self {
            nodes: vec![Node { kind: Kind::Unknown, sample: 0, stuck: false }],
            is_json: codec == Codec::Json,
            path: Vec::new(),
            last: LastStep::Nothing,
            attempt: 0,
            open: Vec::new(),
            learned: 0,
        };
        for _ in 0..PASSES {
            let before = explorer.learned;
            explorer.begin();
            let accepted = pass(Probe::root(&mut explorer));
            let continues = if accepted { explorer.learned > before } else { explorer.choose_next() };
            if !continues || explorer.is_done(Some(0)) {
                break;
            }
        }
        explorer.shape(Some(0))
    }

    fn begin(&mut self) {
        self.path.clear();
        self.open.clear();
        self.last = LastStep::Nothing;
        for node in &mut self.nodes {
            match &mut node.kind {
                Kind::Struct { fields, .. } => fields.iter_mut().for_each(|field| field.visited = false),
                Kind::Enum(variants) => variants.iter_mut().for_each(|variant| variant.chosen = false),
                _ => {}
            }
        }
    }

    pub(super) fn node(&mut self, place: NodeId) -> Option<&mut Node> {
        self.nodes.get_mut(place?)
    }

    /// Adds a place. Returns `None` if there are too many.
    pub(super) fn add(&mut self) -> NodeId {
        if self.nodes.len() >= NODES {
            return None;
        }
        self.nodes.push(Node { kind: Kind::Unknown, sample: 0, stuck: false });
        Some(self.nodes.len() - 1)
    }

    pub(super) fn learn(&mut self) {
        self.learned += 1;
    }

    /// Records a visit of `place`, and its kind if it is new.
    pub(super) fn enter(&mut self, place: NodeId, depth: usize, kind: impl FnOnce(&mut Self) -> Kind) {
        let Some(at) = place else {
            self.last = LastStep::RecursionEnd;
            return;
        };
        self.path.truncate(depth);
        self.path.push(at);
        self.last = LastStep::Place(at);
        if self.nodes.get(at).is_some_and(|node| matches!(node.kind, Kind::Unknown)) {
            let kind = kind(self);
            if let Some(node) = self.nodes.get_mut(at) {
                node.kind = kind;
            }
            self.learn();
        }
    }

    /// Returns whether nothing more can be learned about a place.
    pub(super) fn is_done(&self, place: NodeId) -> bool {
        let Some(node) = place.and_then(|at| self.nodes.get(at)) else { return true };
        if node.stuck {
            return true;
        }
        match &node.kind {
            Kind::Unknown => false,
            Kind::Any | Kind::Plain(_) | Kind::Recursion => true,
            Kind::Option { of, none: past } | Kind::List { of, empty: past } => *past || self.is_done(*of),
            Kind::Map { key, value, empty } => *empty || self.is_done(*key) && self.is_done(*value),
            Kind::Tuple(places) => places.iter().all(|place| self.is_done(*place)),
            Kind::Array(_, of) => self.is_done(*of),
            Kind::Struct { fields, by_order } => {
                let tested = |field: &FieldNode| !self.is_json || *by_order || field.optional.is_some();
                fields.iter().all(|field| self.is_done(field.of) && tested(field))
            }
            Kind::Enum(variants) => variants.iter().all(|variant| variant.stuck || self.is_done(variant.of)),
        }
    }

    /// Changes the input of the next pass after a failed one. Returns `false` if there is nothing else to try.
    fn choose_next(&mut self) -> bool {
        match self.last {
            LastStep::Nothing => false,
            LastStep::Omission => true,
            LastStep::RecursionEnd => {
                self.attempt += 1;
                if self.attempt < RECURSION_ATTEMPTS {
                    return true;
                }
                self.attempt = 0;
                match self.path.last().copied() {
                    Some(at) => self.mark_stuck(at),
                    None => false,
                }
            }
            LastStep::Key(at, field) => self.merge_alias(at, field),
            LastStep::Place(at) => {
                let Some(node) = self.nodes.get_mut(at) else { return false };
                let samples = match &node.kind {
                    Kind::Plain(plain) => samples::count(*plain),
                    Kind::Any => samples::FORMS,
                    Kind::Struct { by_order: false, fields } if fields.iter().all(|field| !field.visited) => {
                        // The type requested no name: it reads itself by order only.
                        if let Kind::Struct { by_order, .. } = &mut node.kind {
                            *by_order = true;
                        }
                        return true;
                    }
                    _ => 0,
                };
                if !node.stuck && node.sample + 1 < samples {
                    node.sample += 1;
                    return true;
                }
                self.mark_stuck(at)
            }
        }
    }

    /// Handles a refused name: it is an alias of the field before it.
    fn merge_alias(&mut self, at: usize, field: usize) -> bool {
        let Some(Kind::Struct { fields, by_order }) = self.nodes.get_mut(at).map(|node| &mut node.kind) else {
            return false;
        };
        match field.checked_sub(1) {
            Some(before) if field < fields.len() => {
                let alias = fields.remove(field);
                if let Some(before) = fields.get_mut(before) {
                    before.names.extend(alias.names);
                }
            }
            _ => *by_order = true,
        }
        true
    }

    /// Marks a place at which nothing is accepted. Places after it can only be seen if it can be omitted. Returns
    /// `false` if that is impossible up to the root.
    fn mark_stuck(&mut self, at: usize) -> bool {
        if let Some(node) = self.nodes.get_mut(at) {
            node.stuck = true;
        }
        let above: Vec<usize> = self.path.iter().copied().take_while(|place| *place != at).collect();
        for place in above.into_iter().rev() {
            let stuck: Vec<bool> = self.nodes.iter().map(|node| node.stuck).collect();
            let Some(node) = self.nodes.get_mut(place) else { return false };
            match &mut node.kind {
                Kind::Option { none: past, .. } | Kind::List { empty: past, .. } | Kind::Map { empty: past, .. }
                    if !*past =>
                {
                    *past = true;
                    return true;
                }
                Kind::Enum(variants) => {
                    variants.iter_mut().filter(|variant| variant.chosen).for_each(|variant| variant.stuck = true);
                    if variants.iter().any(|variant| !variant.stuck) {
                        return true;
                    }
                }
                Kind::Struct { fields, by_order: false } => {
                    let is_stuck =
                        |field: &FieldNode| field.of.and_then(|at| stuck.get(at)).is_some_and(|stuck| *stuck);
                    // The others come before it in the next pass.
                    if fields.iter().any(|field| !field.visited && !is_stuck(field)) {
                        return true;
                    }
                }
                _ => {}
            }
            node.stuck = true;
        }
        false
    }

    fn shape(&self, place: NodeId) -> Shape {
        let Some(node) = place.and_then(|at| self.nodes.get(at)) else { return Shape::Opaque };
        let boxed = |place: &NodeId| Box::new(self.shape(*place));
        match &node.kind {
            Kind::Unknown | Kind::Any => Shape::Opaque,
            Kind::Plain(plain) => Shape::Plain(*plain),
            Kind::Option { of, .. } => Shape::Option(boxed(of)),
            Kind::List { of, .. } => Shape::List(boxed(of)),
            Kind::Map { key, value, .. } => Shape::Map(boxed(key), boxed(value)),
            Kind::Tuple(places) => Shape::Tuple(places.iter().map(|place| self.shape(*place)).collect()),
            Kind::Array(length, of) => Shape::Array(*length, boxed(of)),
            Kind::Struct { fields, .. } => {
                let field = |field: &FieldNode| {
                    let shape = self.shape(field.of);
                    // Fields that could not be tested are treated as in serde's derive: an `Option` may be absent.
                    let optional = self.is_json && field.optional.unwrap_or(matches!(shape, Shape::Option(_)));
                    Field { names: field.names.iter().map(|name| (*name).to_owned()).collect(), shape, optional }
                };
                Shape::Struct(fields.iter().map(field).collect())
            }
            Kind::Enum(variants) => {
                let variant =
                    |variant: &VariantNode| Variant { name: variant.name.to_owned(), shape: self.shape(variant.of) };
                Shape::Enum(variants.iter().map(variant).collect())
            }
            Kind::Recursion => Shape::Recursion,
        }
    }
}
