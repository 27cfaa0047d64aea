//! The shop's program: does what the command line asks for.

mod arguments;
mod bar;
mod placing;

use std::process::ExitCode;

use shop::analytics::Sales;
use shop::link::Link;
use shop::report::tally;
use shop::run::Counter;
use shop::service::{Home, Service, ShopError};
use whizbang::bridge::loopback::LoopbackHub;

use arguments::{Arguments, Task};
use bar::Bar;
use placing::{Complaints, place};

#[whizbang::main]
async fn main() -> ExitCode {
    let arguments = match Arguments::read(std::env::args().skip(1)) {
        Ok(arguments) => arguments,
        Err(wrong) => {
            eprintln!("shop: {wrong}\n\n{}", arguments::HELP);
            return ExitCode::from(2);
        }
    };
    let done = match &arguments.task {
        Task::Help => {
            print!("{}", arguments::HELP);
            Ok(ExitCode::SUCCESS)
        }
        Task::Run => run(&arguments).await,
    };
    done.unwrap_or_else(|error| {
        eprintln!("shop: {error}");
        ExitCode::from(4)
    })
}

/// Six services in this process.
async fn run(arguments: &Arguments) -> Result<ExitCode, ShopError> {
    let home = Home::open(&arguments.data)?;
    let link = Link::new(arguments.nats.as_deref())?;
    let mut nodes = Vec::new();
    for service in Service::ALL {
        nodes.push(link.start(service, &home).await?);
    }
    let complaints = place_and_wait(arguments, &home, &link).await?;
    for node in nodes {
        node.stop().await?;
    }
    report_on(arguments, &home, &complaints).await
}

async fn place_and_wait(arguments: &Arguments, home: &Home, link: &Link) -> Result<Complaints, ShopError> {
    let client = link.client().await?;
    let mut bar = Bar::new(arguments.files.is_empty().then_some(arguments.orders));
    let mut watch = |counts| bar.show(counts);
    let mut counter = Counter::new(client.clone(), &mut watch);
    let complaints = Complaints::default();
    let placed = place(arguments, &mut counter, &complaints).await?;
    counter.wait(home).await?;
    bar.end();
    client.disconnect().await;
    if placed.known > 0 {
        println!("{} of these orders were known from before.\n", placed.known);
    }
    Ok(complaints)
}

/// Counts and shows the report. Says how it went: 1 if something is open or off, otherwise what the complaints say.
async fn report_on(arguments: &Arguments, home: &Home, complaints: &Complaints) -> Result<ExitCode, ShopError> {
    let report = tally(home, &believed(home).await?).await?;
    print!("{report}");
    if let Some(file) = &arguments.json {
        let json = serde_json::to_string_pretty(&report).map_err(std::io::Error::from)?;
        std::fs::write(file, json + "\n")?;
    }
    let faults = report.faults();
    for fault in &faults {
        eprintln!("shop: {fault}");
    }
    Ok(if faults.is_empty() { complaints.code() } else { ExitCode::FAILURE })
}

/// What analytics believes: its node is started alone and asked. Its views are those that it has saved.
async fn believed(home: &Home) -> Result<Sales, ShopError> {
    let analytics = Service::Analytics.start(home, LoopbackHub::new().bridge()).await?;
    let sales = Counter::new(analytics.client(), &mut |_| {}).sales().await?;
    analytics.stop().await?;
    Ok(sales)
}
