//! The shop's program: does what the command line asks for.

mod arguments;
mod bar;
mod placing;
mod processes;

use std::fmt::Display;
use std::io::Write;
use std::process::ExitCode;

use shop::flow::Flow;
use shop::link::{Link, namespace};
use shop::permissions::{FILE, Logins};
use shop::report::tally;
use shop::run::Counter;
use shop::service::{Home, Service, ShopError, at};

use arguments::{Arguments, Task};
use bar::Bar;
use placing::{Complaints, place};
use processes::Processes;
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::{Layer, SubscriberExt};
use tracing_subscriber::util::SubscriberInitExt;

#[whizbang::main]
async fn main() -> ExitCode {
    let arguments = match Arguments::read(std::env::args().skip(1)) {
        Ok(arguments) => arguments,
        Err(wrong) => {
            eprintln!("shop: {wrong}\n\n{}", arguments::HELP);
            return ExitCode::from(2);
        }
    };
    if let Some(level) = arguments.log.as_deref().and_then(|level| level.parse::<LevelFilter>().ok()) {
        // The NATS client logs whole messages at `TRACE`.
        let filter = Targets::new().with_default(level).with_target("async_nats", level.min(LevelFilter::INFO));
        let layer = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
        tracing_subscriber::registry().with(layer.with_filter(filter)).init();
    }
    let done = match &arguments.task {
        Task::Help => {
            say(arguments::HELP);
            Ok(ExitCode::SUCCESS)
        }
        Task::Run => run(&arguments).await,
        Task::Processes => run_processes(&arguments).await,
        Task::Serve(service) => serve(&arguments, *service).await,
        Task::Place => place_only(&arguments).await,
        Task::Permissions => permissions(&arguments).await,
        Task::Setup => set_up(&arguments).await,
        Task::Report => report(&arguments, &Complaints::default()).await,
        Task::Flow(order) => flow(&arguments, order).await,
    };
    done.unwrap_or_else(|error| {
        eprintln!("shop: {error}");
        ExitCode::from(4)
    })
}

/// Six services in this process.
async fn run(arguments: &Arguments) -> Result<ExitCode, ShopError> {
    let home = Home::open(&arguments.data)?;
    let link = Link::new(arguments.nats.as_deref(), &arguments.data)?;
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

/// Six processes and a server.
async fn run_processes(arguments: &Arguments) -> Result<ExitCode, ShopError> {
    let processes = Processes::start(&arguments.data, arguments.log.as_deref()).await?;
    let home = Home::open(&arguments.data)?;
    let link = Link::new(Some(processes.url()), &arguments.data)?;
    let complaints = place_and_wait(arguments, &home, &link).await?;
    processes.stop().await?;
    report_on(arguments, &home, &complaints).await
}

/// One service, until the process is told to end.
async fn serve(arguments: &Arguments, service: Service) -> Result<ExitCode, ShopError> {
    let home = Home::open(&arguments.data)?;
    let link = Link::new(arguments.nats.as_deref(), &arguments.data)?;
    // For an operator that wants to stop it.
    std::fs::write(arguments.data.join(format!("{}.pid", service.name())), std::process::id().to_string())?;
    let node = link.start(service, &home).await?;
    say(format_args!("{} serves\n", service.name()));
    node.run().await?;
    Ok(ExitCode::SUCCESS)
}

/// Orders for services that run elsewhere.
async fn place_only(arguments: &Arguments) -> Result<ExitCode, ShopError> {
    let home = Home::open(&arguments.data)?;
    let link = Link::new(arguments.nats.as_deref(), &arguments.data)?;
    let complaints = place_and_wait(arguments, &home, &link).await?;
    say("all orders have ended; see `shop report`\n");
    Ok(complaints.code())
}

/// The files for a server that asks for logins.
async fn permissions(arguments: &Arguments) -> Result<ExitCode, ShopError> {
    let home = Home::open(&arguments.data)?;
    let file = Logins::write(&arguments.data, &namespace(&arguments.data)?, &home).await?;
    say(format_args!(
        "1. copy {} beside the server's configuration\n2. let that say: authorization {{ include \"{FILE}\" }}\n\
         3. shop setup --nats URL\n4. start the services\n",
        file.display()
    ));
    Ok(ExitCode::SUCCESS)
}

/// The streams and consumers on a server that asks for logins.
async fn set_up(arguments: &Arguments) -> Result<ExitCode, ShopError> {
    let home = Home::open(&arguments.data)?;
    Link::new(arguments.nats.as_deref(), &arguments.data)?.set_up(&home).await?;
    say("all streams and consumers are there\n");
    Ok(ExitCode::SUCCESS)
}

/// The report of what has happened so far.
async fn report(arguments: &Arguments, complaints: &Complaints) -> Result<ExitCode, ShopError> {
    let home = Home::find(&arguments.data)?;
    report_on(arguments, &home, complaints).await
}

/// The way of an order.
async fn flow(arguments: &Arguments, order: &str) -> Result<ExitCode, ShopError> {
    let home = Home::find(&arguments.data)?;
    let Some(flow) = Flow::of(&home, order).await? else {
        eprintln!("shop: there is no order {order} in {}", arguments.data.display());
        return Ok(ExitCode::FAILURE);
    };
    say(&flow);
    if let Some(file) = &arguments.html {
        std::fs::write(file, flow.page()).map_err(at(file))?;
    }
    Ok(ExitCode::SUCCESS)
}

async fn place_and_wait(arguments: &Arguments, home: &Home, link: &Link) -> Result<Complaints, ShopError> {
    let client = link.client().await?;
    let mut bar = Bar::new(arguments.files.is_empty().then_some(arguments.orders));
    let mut watch = |counts| bar.show(counts);
    let mut counter = Counter::new(client.clone(), &mut watch);
    let complaints = Complaints::default();
    let placed = place(arguments, &mut counter, &complaints).await?;
    // Made-up orders are all different; one in a file may be there twice.
    let different = if arguments.files.is_empty() { placed.new + placed.known } else { placed.new };
    counter.wait(home, different).await?;
    bar.end();
    client.disconnect().await;
    if placed.known > 0 {
        say(format_args!("{} of these orders were known from before.\n\n", placed.known));
    }
    Ok(complaints)
}

/// Counts and shows the report. Says how it went: 5 if something may be under way, 1 if something is open or off, otherwise
/// what the complaints say.
async fn report_on(arguments: &Arguments, home: &Home, complaints: &Complaints) -> Result<ExitCode, ShopError> {
    let report = tally(home).await?;
    say(&report);
    if let Some(file) = &arguments.json {
        let json = serde_json::to_string_pretty(&report).map_err(std::io::Error::from)?;
        std::fs::write(file, json + "\n").map_err(at(file))?;
    }
    let faults = report.faults();
    if report.is_under_way() {
        say(format_args!("running: {} orders open\n", report.orders.open));
        return Ok(ExitCode::from(5));
    }
    for fault in &faults {
        eprintln!("shop: {fault}");
    }
    Ok(if faults.is_empty() { complaints.code() } else { ExitCode::FAILURE })
}

/// Prints to standard output. A closed pipe is not an error.
fn say(text: impl Display) {
    let _ = write!(std::io::stdout().lock(), "{text}");
}
