//! Diagrams of actors and clusters, drawn from the derives and from the coverage of runs.
//!
//! A state is named after the last recorded event. Possible paths that no run took are listed beside the diagram.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use super::actor_coverage::{ActorCoverage, Edge};
use super::committed_turn::Phase;
use super::coverage::Coverage;

/// The initial state, and the final state of sagas.
const TERMINAL: &str = "[*]";

impl ActorCoverage {
    /// Returns the transitions with their labels.
    fn transitions(&self) -> BTreeMap<(String, String), BTreeSet<String>> {
        let mut transitions: BTreeMap<(String, String), BTreeSet<String>> = BTreeMap::new();
        // Messages after the end have no effect and would hide the rest.
        for edge in self.edges.keys().filter(|edge| edge.phase != Phase::Ended) {
            let state = |name: &Option<String>| name.clone().unwrap_or_else(|| TERMINAL.to_owned());
            let (from, mut to) = (state(&edge.from), state(&edge.to));
            if edge.ends.is_some() && from == to {
                to = TERMINAL.to_owned();
            } else if edge.ends.is_some() {
                transitions.entry((to.clone(), TERMINAL.to_owned())).or_default();
            }
            if from == TERMINAL && to == TERMINAL || Self::has_no_effect(edge) {
                continue;
            }
            transitions.entry((from, to)).or_default().insert(self.label(edge));
        }
        transitions
    }

    /// Returns whether the transition changes nothing.
    fn has_no_effect(edge: &Edge) -> bool {
        edge.from == edge.to && edge.effects.is_empty()
    }

    /// Returns the label of a transition: its cause, and its effects after a slash.
    fn label(&self, edge: &Edge) -> String {
        let cause = edge.cause.describe(&self.domain);
        if edge.effects.is_empty() { cause } else { format!("{cause} / {}", edge.effects) }
    }

    /// Returns the states and transitions as a Mermaid state diagram.
    ///
    /// States are named after the last recorded event, and `[*]` is the beginning and the end. A label is the message,
    /// and after `/` the commands and timers that it has caused. Transitions that change nothing are left out.
    ///
    /// GitHub and many editors draw the text in a code block with the language `mermaid`.
    pub fn mermaid(&self) -> String {
        let mut text = "stateDiagram-v2\n".to_owned();
        for ((from, to), labels) in self.transitions() {
            let (from, to) = (mermaid_id(&from), mermaid_id(&to));
            if labels.is_empty() {
                let _ = writeln!(text, "    {from} --> {to}");
            }
            for label in labels {
                let _ = writeln!(text, "    {from} --> {to} : {label}");
            }
        }
        let unreached = self.unreached();
        if !unreached.is_empty() {
            let _ = writeln!(text, "    state \"never reached\" as never");
            for label in unreached {
                let _ = writeln!(text, "    never : {label}");
            }
        }
        text
    }

    /// Returns the states and transitions as a Graphviz graph.
    ///
    /// The content is the one of [`mermaid`](Self::mermaid). Draw it with `dot -Tsvg`.
    pub fn dot(&self) -> String {
        let mut text = format!("digraph \"{}\" {{\n    node [shape=box, style=rounded];\n", self.card.name);
        let id = |name: &str, ends: bool| match (name, ends) {
            (TERMINAL, false) => "\"begin\"".to_owned(),
            (TERMINAL, true) => "\"end\"".to_owned(),
            (name, _) => format!("\"{name}\""),
        };
        text.push_str("    \"begin\" [shape=point];\n    \"end\" [shape=doublecircle, label=\"\", width=0.15];\n");
        for ((from, to), labels) in self.transitions() {
            let label = labels.into_iter().collect::<Vec<_>>().join("\\n");
            let _ = writeln!(text, "    {} -> {} [label=\"{label}\"];", id(&from, false), id(&to, true));
        }
        let unreached = self.unreached();
        if !unreached.is_empty() {
            let lines = unreached.join("\\l");
            let _ = writeln!(text, "    \"never\" [shape=note, style=dashed, label=\"never reached:\\l{lines}\\l\"];");
        }
        text.push_str("}\n");
        text
    }
}

/// Returns a name that Mermaid accepts as an identifier.
fn mermaid_id(name: &str) -> String {
    if name == TERMINAL { name.to_owned() } else { name.replace('-', "_") }
}

impl Coverage {
    /// Returns the messages between actors as a Mermaid flow chart. Commands are solid arrows, events dashed ones.
    ///
    /// Only messages that a run has sent are drawn. Commands to services outside the cluster are left out.
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
