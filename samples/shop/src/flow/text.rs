//! The history of an order as lines of text.

use std::fmt;

use super::Flow;

impl fmt::Display for Flow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "History of order {}:\n", self.order)?;
        let width = self.steps.iter().map(|step| step.actor.len()).max().unwrap_or(0);
        for step in &self.steps {
            let (service, results) = (step.service.name(), step.results.join(", "));
            writeln!(f, "{:>7} ms  {service:<10} {:<width$}  {results}  <- {}", step.at_ms, step.actor, step.cause)?;
        }
        Ok(())
    }
}
