//! A read model in SQL: orders are events, and a projection writes them to a table.

use std::process::ExitCode;

use whizbang::PostgresStore;
use whizbang::prelude::*;
use whizbang::store::Statement;

#[derive(Domain)]
struct Orders;

#[derive(Command, Serialize, Deserialize)]
#[command(domain = Orders)]
struct Place {
    #[key]
    order: String,
    city: String,
    cents: u32,
}

#[derive(Command, Serialize, Deserialize)]
#[command(domain = Orders)]
struct Ship {
    #[key]
    order: String,
}

#[derive(Event, Serialize, Deserialize)]
#[event(domain = Orders)]
struct Placed {
    city: String,
    cents: u32,
}

#[derive(Event, Serialize, Deserialize)]
#[event(domain = Orders)]
struct Shipped;

#[derive(Aggregate, Default, Serialize, Deserialize)]
#[aggregate(domain = Orders, handles(Place, Ship), applies(Placed, Shipped))]
struct Order {
    is_placed: bool,
    is_shipped: bool,
}

impl Handle<Place> for Order {
    fn handle(&self, place: Place, effects: &mut Effects<Self>) -> Result<(), Rejection> {
        if !self.is_placed {
            effects.record(Placed { city: place.city, cents: place.cents });
        }
        Ok(())
    }
}

impl Handle<Ship> for Order {
    fn handle(&self, _ship: Ship, effects: &mut Effects<Self>) -> Result<(), Rejection> {
        if self.is_placed && !self.is_shipped {
            effects.record(Shipped);
        }
        Ok(())
    }
}

impl Apply<Placed> for Order {
    fn apply(&mut self, _placed: &Placed) {
        self.is_placed = true;
    }
}

impl Apply<Shipped> for Order {
    fn apply(&mut self, _shipped: &Shipped) {
        self.is_shipped = true;
    }
}

/// The table `shop.orders`. The view in memory is empty: queries are SQL.
#[derive(Projection, Default, Serialize, Deserialize)]
#[projection(projects(Placed, Shipped), reset = "DELETE FROM shop.orders")]
struct OrderTable {}

impl Project<Placed> for OrderTable {
    fn project(&mut self, _placed: &Placed, _context: &EventContext) {}

    fn statements(&self, placed: &Placed, context: &EventContext) -> Vec<Statement> {
        let insert = "INSERT INTO shop.orders (id, city, cents, placed_at) VALUES ($1, $2, $3, $4)";
        vec![Statement::new(insert).bind(&context.key).bind(&placed.city).bind(placed.cents).bind(context.time)]
    }
}

impl Project<Shipped> for OrderTable {
    fn project(&mut self, _shipped: &Shipped, _context: &EventContext) {}

    fn statements(&self, _shipped: &Shipped, context: &EventContext) -> Vec<Statement> {
        vec![Statement::new("UPDATE shop.orders SET shipped = true WHERE id = $1").bind(&context.key)]
    }
}

#[tokio::main]
async fn main() -> Result<ExitCode, whizbang::Error> {
    let Some(url) = std::env::args().nth(1) else {
        eprintln!("order-table: pass the URL of a database, such as postgres://postgres@127.0.0.1/postgres");
        return Ok(ExitCode::from(2));
    };
    let store = PostgresStore::connect(&url).await?;
    let node = Node::builder("orders", store).aggregate::<Order>().projection::<OrderTable>().start().await?;
    let client = node.client();
    for (number, city) in ["Rome", "Oslo", "Rome", "Lima", "Oslo", "Rome"].into_iter().enumerate() {
        let order = format!("order {number}");
        client.send(Place { order: order.clone(), city: city.to_owned(), cents: 500 }).await?;
        if city == "Rome" {
            client.send(Ship { order }).await?;
        }
    }
    // Everything that is in the log is in the table when the node has stopped.
    node.wait_idle().await;
    node.stop().await?;
    println!("6 orders are in shop.orders, 3 of them shipped");
    Ok(ExitCode::SUCCESS)
}
