//! Pictures of actors and clusters, drawn from what the derives list and what the runs have seen.
//!
//! A state is named after the last event recorded. What could happen and never did stands beside the picture.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use super::coverage::{Coverage, Covered, Edge};
use super::step_log::Phase;

/// Where everything begins, and where sagas end.
const TERMINAL: &str = "[*]";

impl Covered {
    /// The ways that differ in something that a picture shows, with their labels.
    fn ways(&self) -> BTreeMap<(String, String), BTreeSet<String>> {
        let mut ways: BTreeMap<(String, String), BTreeSet<String>> = BTreeMap::new();
        // What comes after the end does nothing and would only hide the rest.
        for edge in self.edges.keys().filter(|edge| edge.phase != Phase::Ended) {
            let state = |name: &Option<String>| name.clone().unwrap_or_else(|| TERMINAL.to_owned());
            let (from, mut to) = (state(&edge.from), state(&edge.to));
            if edge.ends.is_some() && from == to {
                to = TERMINAL.to_owned();
            } else if edge.ends.is_some() {
                ways.entry((to.clone(), TERMINAL.to_owned())).or_default();
            }
            if from == TERMINAL && to == TERMINAL || Self::is_still(edge) {
                continue;
            }
            ways.entry((from, to)).or_default().insert(self.label(edge));
        }
        ways
    }

    /// Nothing came of it.
    fn is_still(edge: &Edge) -> bool {
        edge.from == edge.to && edge.effects.is_empty()
    }

    fn label(&self, edge: &Edge) -> String {
        let cause = edge.cause.told(&self.domain);
        if edge.effects.is_empty() { cause } else { format!("{cause} / {}", edge.effects) }
    }

    /// Its states and what leads from one to the other, as a Mermaid state diagram.
    pub fn mermaid(&self) -> String {
        let mut text = "stateDiagram-v2\n".to_owned();
        for ((from, to), labels) in self.ways() {
            let (from, to) = (mermaid_id(&from), mermaid_id(&to));
            if labels.is_empty() {
                let _ = writeln!(text, "    {from} --> {to}");
            }
            for label in labels {
                let _ = writeln!(text, "    {from} --> {to} : {label}");
            }
        }
        let never = self.never();
        if !never.is_empty() {
            let _ = writeln!(text, "    state \"never reached\" as never");
            for what in never {
                let _ = writeln!(text, "    never : {what}");
            }
        }
        text
    }

    /// The same for Graphviz.
    pub fn dot(&self) -> String {
        let mut text = format!("digraph \"{}\" {{\n    node [shape=box, style=rounded];\n", self.card.name);
        let id = |name: &str, ends: bool| match (name, ends) {
            (TERMINAL, false) => "\"begin\"".to_owned(),
            (TERMINAL, true) => "\"end\"".to_owned(),
            (name, _) => format!("\"{name}\""),
        };
        text.push_str("    \"begin\" [shape=point];\n    \"end\" [shape=doublecircle, label=\"\", width=0.15];\n");
        for ((from, to), labels) in self.ways() {
            let label = labels.into_iter().collect::<Vec<_>>().join("\\n");
            let _ = writeln!(text, "    {} -> {} [label=\"{label}\"];", id(&from, false), id(&to, true));
        }
        let never = self.never();
        if !never.is_empty() {
            let lines = never.join("\\l");
            let _ = writeln!(text, "    \"never\" [shape=note, style=dashed, label=\"never reached:\\l{lines}\\l\"];");
        }
        text.push_str("}\n");
        text
    }
}

fn mermaid_id(name: &str) -> String {
    if name == TERMINAL { name.to_owned() } else { name.replace('-', "_") }
}

impl Coverage {
    /// Who sends what to whom, as a Mermaid flow chart. Commands are drawn whole, events dashed.
    pub fn mermaid(&self) -> String {
        let mut text = "flowchart LR\n".to_owned();
        let id = |domain: &str, name: &str| format!("{domain}_{name}").replace('-', "_");
        for actor in self.actors.values() {
            let (left, right) = if actor.card.role == "aggregate" { ("[", "]") } else { ("([", "])") };
            let (domain, name) = (&actor.domain, &actor.card.name);
            let _ = writeln!(text, "    {}{left}{domain}.{name}{right}", id(domain, name));
        }
        let mut arrows: BTreeMap<(String, &str, String), BTreeSet<String>> = BTreeMap::new();
        for from in self.actors.values() {
            let start = id(&from.domain, &from.card.name);
            for to in self.actors.values() {
                let end = id(&to.domain, &to.card.name);
                for handled in &to.card.handles {
                    if from.sent.contains_key(&format!("{}.{}", handled.domain, handled.name)) {
                        let arrow = arrows.entry((start.clone(), "-->", end.clone())).or_default();
                        arrow.insert(handled.name.clone());
                    }
                }
                for taken in to.card.takes.iter().filter(|taken| taken.domain == from.domain) {
                    if from.recorded.contains_key(&taken.name) {
                        arrows.entry((start.clone(), "-.->", end.clone())).or_default().insert(taken.name.clone());
                    }
                }
            }
        }
        for ((from, arrow, to), names) in arrows {
            let names = names.into_iter().collect::<Vec<_>>().join(", ");
            let _ = writeln!(text, "    {from} {arrow}|{names}| {to}");
        }
        text
    }
}
