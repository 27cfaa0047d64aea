//! Places orders from files or the generator. Prints and counts errors in the input.

use std::cell::Cell;
use std::process::ExitCode;

use shop::intake::{Generator, Reader};
use shop::run::{Counter, Placed};
use shop::service::ShopError;

use crate::arguments::Arguments;

/// The number of input errors to print; the rest are only counted.
const MAX_PRINTED: u64 = 20;
/// The stock of each product for orders from files, enough for all of them.
const AMPLE_STOCK: u64 = 10_000_000;

/// Places the orders that the arguments select.
pub(crate) async fn place(
    arguments: &Arguments,
    counter: &mut Counter<'_>,
    input_errors: &InputErrors,
) -> Result<Placed, ShopError> {
    if arguments.files.is_empty() {
        let Arguments { orders, seed, .. } = *arguments;
        // Slightly less than the demand for the most popular products, so that some sell out.
        counter.restock(&format!("opening-{seed}-{orders}"), 10 + orders * 14 / 100).await?;
        return counter.place(Generator::new(seed, orders), |rejection| input_errors.add(rejection.text())).await;
    }
    counter.restock("plenty", AMPLE_STOCK).await?;
    let mut placed = Placed::default();
    for file in &arguments.files {
        let name = file.display();
        match Reader::open(file) {
            Ok(reader) => {
                let orders =
                    reader.filter_map(|order| order.map_err(|error| input_errors.add(&error.to_string())).ok());
                let on_rejected =
                    |rejection: &whizbang::Rejection| input_errors.add(&format!("{name}: {}", rejection.text()));
                placed.add(counter.place(orders, on_rejected).await?);
            }
            Err(error) => input_errors.add(&format!("{name}: {error}")),
        }
    }
    Ok(placed)
}

/// The errors in the input, printed at once and counted.
#[derive(Default)]
pub(crate) struct InputErrors {
    count: Cell<u64>,
}

impl InputErrors {
    fn add(&self, error: &str) {
        self.count.set(self.count.get() + 1);
        if self.count.get() <= MAX_PRINTED {
            eprintln!("shop: {error}");
        }
    }

    /// Prints a summary. Returns 3 after an input error, otherwise success.
    pub(crate) fn code(&self) -> ExitCode {
        match self.count.get() {
            0 => ExitCode::SUCCESS,
            count => {
                if count > MAX_PRINTED {
                    eprintln!("shop: {} more input errors", count - MAX_PRINTED);
                }
                eprintln!("shop: {count} of the orders were rejected, all others were processed");
                ExitCode::from(3)
            }
        }
    }
}
