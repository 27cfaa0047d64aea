//! The program of the shop: runs the task that the command line selects.

mod arguments;
mod bar;
mod gateway;
mod placing;
mod postgres;
mod processes;

use std::fmt::Display;
use std::io::Write;
use std::process::ExitCode;

use shop::flow::Flow;
use shop::link::{Link, namespace};
use shop::permissions::{FILE, Logins};
use shop::report::tally;
use shop::run::Counter;
use shop::service::{DataFolder, Service, ShopError, at};

use arguments::{Arguments, Task};
use bar::ProgressBar;
use placing::{InputErrors, place};
use processes::Processes;
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::{Layer, SubscriberExt};
use tracing_subscriber::util::SubscriberInitExt;

#[whizbang::main]
async fn main() -> ExitCode {
    let arguments = match Arguments::parse(std::env::args().skip(1)) {
        Ok(arguments) => arguments,
        Err(error) => {
            eprintln!("shop: {error}\n\n{}", arguments::HELP);
            return ExitCode::from(2);
        }
    };
    if let Some(level) = arguments.log.as_deref().and_then(|level| level.parse::<LevelFilter>().ok()) {
        // The NATS client logs whole messages at `TRACE`.
        let filter = Targets::new().with_default(level).with_target("async_nats", level.min(LevelFilter::INFO));
        let layer = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
        tracing_subscriber::registry().with(layer.with_filter(filter)).init();
    }
    let result = match &arguments.task {
        Task::Help => {
            print(arguments::HELP);
            Ok(ExitCode::SUCCESS)
        }
        Task::Run => run(&arguments).await,
        Task::Processes => run_processes(&arguments).await,
        Task::Serve(service) => serve(&arguments, *service).await,
        Task::Place => place_only(&arguments).await,
        Task::Gateway => gateway(&arguments).await,
        Task::Permissions => permissions(&arguments).await,
        Task::Setup => set_up(&arguments).await,
        Task::Report => report(&arguments, &InputErrors::default()).await,
        Task::Flow(order) => flow(&arguments, order).await,
    };
    result.unwrap_or_else(|error| {
        eprintln!("shop: {}", whizbang::error_chain(&error));
        ExitCode::from(4)
    })
}

/// Runs the six services in this process.
async fn run(arguments: &Arguments) -> Result<ExitCode, ShopError> {
    let data = DataFolder::open(&arguments.data)?.in_database(arguments.postgres.as_deref());
    let link = Link::new(arguments.nats.as_deref(), &arguments.data)?;
    let mut nodes = Vec::new();
    for service in Service::ALL {
        nodes.push(link.start(service, &data).await?);
    }
    let (input_errors, _) = place_and_wait(arguments, &data, &link).await?;
    for node in nodes {
        node.stop().await?;
    }
    report_on(arguments, &data, &input_errors).await
}

/// Runs six processes and a nats-server.
async fn run_processes(arguments: &Arguments) -> Result<ExitCode, ShopError> {
    let processes = Processes::start(arguments).await?;
    let data = DataFolder::open(&arguments.data)?.in_database(processes.database());
    let link = Link::new(Some(processes.url()), &arguments.data)?;
    let (input_errors, placed) = place_and_wait(arguments, &data, &link).await?;
    if processes.reduce_to_one().await? {
        // A process that was killed last may not have read all events yet; now it is the only one that answers.
        let client = link.client().await?;
        Counter::new(client.clone(), &mut |_| ()).wait(&data, placed).await?;
        client.disconnect().await;
    }
    let servers = processes.stop_services().await?;
    let code = report_on(arguments, &data, &input_errors).await;
    servers.stop().await?;
    code
}

/// Runs one service until SIGTERM or Ctrl-C.
async fn serve(arguments: &Arguments, service: Service) -> Result<ExitCode, ShopError> {
    let data = DataFolder::open(&arguments.data)?.in_database(arguments.postgres.as_deref());
    let link = Link::new(arguments.nats.as_deref(), &arguments.data)?;
    // For the operator, to stop the service.
    std::fs::write(arguments.data.join(format!("{}.pid", service.name())), std::process::id().to_string())?;
    let node = link.start(service, &data).await?;
    print(format_args!("{} is running\n", service.name()));
    node.run().await?;
    Ok(ExitCode::SUCCESS)
}

/// Places orders with services that run elsewhere.
async fn place_only(arguments: &Arguments) -> Result<ExitCode, ShopError> {
    let data = DataFolder::open(&arguments.data)?.in_database(arguments.postgres.as_deref());
    let link = Link::new(arguments.nats.as_deref(), &arguments.data)?;
    let (input_errors, _) = place_and_wait(arguments, &data, &link).await?;
    print("all orders have ended; see `shop report`\n");
    Ok(input_errors.code())
}

/// Serves HTTP for services that run elsewhere.
async fn gateway(arguments: &Arguments) -> Result<ExitCode, ShopError> {
    let client = Link::new(arguments.nats.as_deref(), &arguments.data)?.client().await?;
    let listener = tokio::net::TcpListener::bind(&arguments.listen).await?;
    print(format_args!("listening on http://{}\n", listener.local_addr()?));
    gateway::serve(listener, client.clone()).await?;
    client.disconnect().await;
    Ok(ExitCode::SUCCESS)
}

/// Writes the files for a server with logins.
async fn permissions(arguments: &Arguments) -> Result<ExitCode, ShopError> {
    let data = DataFolder::open(&arguments.data)?.in_database(arguments.postgres.as_deref());
    let file = Logins::write(&arguments.data, &namespace(&arguments.data)?, &data).await?;
    print(format_args!(
        "1. copy {} to the folder of the server configuration\n2. add to it: authorization {{ include \"{FILE}\" }}\n\
         3. shop setup --nats URL\n4. start the services\n",
        file.display()
    ));
    Ok(ExitCode::SUCCESS)
}

/// Creates the streams and consumers on a server with logins.
async fn set_up(arguments: &Arguments) -> Result<ExitCode, ShopError> {
    let data = DataFolder::open(&arguments.data)?.in_database(arguments.postgres.as_deref());
    Link::new(arguments.nats.as_deref(), &arguments.data)?.set_up(&data).await?;
    print("all streams and consumers exist\n");
    Ok(ExitCode::SUCCESS)
}

/// Prints the report so far.
async fn report(arguments: &Arguments, input_errors: &InputErrors) -> Result<ExitCode, ShopError> {
    let data = DataFolder::find(&arguments.data)?.in_database(arguments.postgres.as_deref());
    report_on(arguments, &data, input_errors).await
}

/// Prints the history of an order.
async fn flow(arguments: &Arguments, order: &str) -> Result<ExitCode, ShopError> {
    let data = DataFolder::find(&arguments.data)?.in_database(arguments.postgres.as_deref());
    let Some(flow) = Flow::of(&data, order).await? else {
        eprintln!("shop: order {order} not found in {}", arguments.data.display());
        return Ok(ExitCode::FAILURE);
    };
    print(&flow);
    if let Some(file) = &arguments.html {
        std::fs::write(file, flow.page()).map_err(at(file))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Places the orders and waits for their end. Returns the number of distinct orders too.
async fn place_and_wait(
    arguments: &Arguments,
    data: &DataFolder,
    link: &Link,
) -> Result<(InputErrors, u64), ShopError> {
    let client = link.client().await?;
    let mut bar = ProgressBar::new(arguments.files.is_empty().then_some(arguments.orders));
    let mut on_progress = |counts| bar.show(counts);
    let mut counter = Counter::new(client.clone(), &mut on_progress);
    let input_errors = InputErrors::default();
    let placed = place(arguments, &mut counter, &input_errors).await?;
    // Generated orders are distinct; a file may contain one twice.
    let distinct = if arguments.files.is_empty() { placed.new + placed.known } else { placed.new };
    counter.wait(data, distinct).await?;
    bar.end();
    client.disconnect().await;
    if placed.known > 0 {
        print(format_args!("{} of these orders were placed before.\n\n", placed.known));
    }
    Ok((input_errors, distinct))
}

/// Prints the report. Returns exit code 5 if orders are in progress, 1 if something is open or off, otherwise the code of the
/// input errors.
async fn report_on(
    arguments: &Arguments,
    data: &DataFolder,
    input_errors: &InputErrors,
) -> Result<ExitCode, ShopError> {
    let report = tally(data).await?;
    print(&report);
    if let Some(file) = &arguments.json {
        let json = serde_json::to_string_pretty(&report).map_err(std::io::Error::from)?;
        std::fs::write(file, json + "\n").map_err(at(file))?;
    }
    let faults = report.faults();
    if report.is_in_progress() {
        print(format_args!("running: {} orders open\n", report.orders.open));
        return Ok(ExitCode::from(5));
    }
    for fault in &faults {
        eprintln!("shop: {fault}");
    }
    Ok(if faults.is_empty() { input_errors.code() } else { ExitCode::FAILURE })
}

/// Prints to standard output. A closed pipe is not an error.
fn print(text: impl Display) {
    let _ = write!(std::io::stdout().lock(), "{text}");
}
