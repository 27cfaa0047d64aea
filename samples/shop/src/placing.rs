//! Places orders from files or made-up ones. Errors in them are shown and counted.

use std::cell::Cell;
use std::process::ExitCode;

use shop::intake::{Generator, Reader};
use shop::run::{Counter, Placed};
use shop::service::ShopError;

use crate::arguments::Arguments;

/// The number of input errors that are shown; the rest are counted.
const SHOWN: u64 = 20;
/// The stock of each product for orders from files: enough for all of them.
const PLENTY: u64 = 10_000_000;

/// Places what is to be placed.
pub(crate) async fn place(
    arguments: &Arguments,
    counter: &mut Counter<'_>,
    complaints: &Complaints,
) -> Result<Placed, ShopError> {
    if arguments.files.is_empty() {
        let Arguments { orders, seed, .. } = *arguments;
        // A little less than what all of them want of the most popular products: some sell out.
        counter.restock(&format!("opening-{seed}-{orders}"), 10 + orders * 14 / 100).await?;
        return counter.place(Generator::new(seed, orders), |no| complaints.add(no.text())).await;
    }
    counter.restock("plenty", PLENTY).await?;
    let mut placed = Placed::default();
    for file in &arguments.files {
        let name = file.display();
        match Reader::open(file) {
            Ok(reader) => {
                let orders =
                    reader.filter_map(|order| order.map_err(|spoilt| complaints.add(&spoilt.to_string())).ok());
                let refused = |no: &whizbang::Rejection| complaints.add(&format!("{name}: {}", no.text()));
                placed.add(counter.place(orders, refused).await?);
            }
            Err(error) => complaints.add(&format!("{name}: {error}")),
        }
    }
    Ok(placed)
}

/// The errors in the input: shown at once, and counted.
#[derive(Default)]
pub(crate) struct Complaints {
    count: Cell<u64>,
}

impl Complaints {
    fn add(&self, complaint: &str) {
        self.count.set(self.count.get() + 1);
        if self.count.get() <= SHOWN {
            eprintln!("shop: {complaint}");
        }
    }

    /// The exit code if everything else is well.
    pub(crate) fn code(&self) -> ExitCode {
        match self.count.get() {
            0 => ExitCode::SUCCESS,
            count => {
                if count > SHOWN {
                    eprintln!("shop: {} more complaints about the input", count - SHOWN);
                }
                eprintln!("shop: {count} of the orders were refused, all others went their way");
                ExitCode::from(3)
            }
        }
    }
}
