//! The way of an order as lines of text.

use std::fmt;

use super::Flow;

impl fmt::Display for Flow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "The way of order {}:\n", self.order)?;
        let width = self.steps.iter().map(|step| step.who.len()).max().unwrap_or(0);
        for step in &self.steps {
            let (service, what) = (step.service.name(), step.what.join(", "));
            writeln!(f, "{:>7} ms  {service:<10} {:<width$}  {what}  <- {}", step.at_ms, step.who, step.because)?;
        }
        Ok(())
    }
}
