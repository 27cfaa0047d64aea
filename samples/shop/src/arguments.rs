//! Parses the command line.

use std::path::PathBuf;

use shop::service::Service;

/// The text of `--help`.
pub(crate) const HELP: &str = "\
An order business of six services that exchange only messages.

    shop [OPTIONS] [FILE...]
        Places the orders of the files, or generated ones, waits until each is confirmed or cancelled, and prints a report.
        If it is stopped or killed, run it again with the same data to continue.
    shop flow ORDER [--html FILE]     prints the history of one order in all services
    shop report                       prints the report so far, also while services are running
    shop serve SERVICE --nats URL     runs one service until SIGTERM or Ctrl-C: orders, inventory, payments, shipping,
                                      notifications, analytics
    shop place --nats URL [FILE...]   places orders with services that run elsewhere, and waits for them
    shop gateway --nats URL           serves HTTP: POST /orders, GET /progress, /revenue and /openapi.json
    shop permissions                  writes the NATS permissions and a login of each service into the data folder
    shop setup --nats URL             creates the streams and consumers of all services, with the setup login

    --orders N    number of orders to generate if there are no files (default 1000)
    --seed S      seed of the generated orders (default 1)
    --data DIR    folder of the stores, the e-mails and the provider's ledger (default ./shop-data)
    --json FILE   also writes the report as JSON
    --nats URL    connects the services over this NATS server, each with its own connection
    --processes   runs each service as its own process, and a nats-server between them
    --postgres URL  keeps the stores in this PostgreSQL database, in one schema for each service
    --nodes N     runs N processes of each service (2 to 9), which share its store in PostgreSQL, and kills one of them every
                  3 seconds; without --postgres it starts a PostgreSQL server of its own, if one is installed
    --listen ADDRESS  address of the gateway (default 127.0.0.1:8080)
    --log LEVEL   logs of the framework on standard error: error, warn, info, debug, trace
    --help        prints this help

Exit code: 0 success, 1 an order is open or a balance is off, 2 invalid arguments, 3 success but some orders of the files
were rejected, 4 the shop failed, 5 services are running and orders are still in progress.
";

/// The job of this process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Task {
    /// Places orders and runs all services in this process.
    Run,
    /// Places orders and runs each service as its own process.
    Processes,
    /// Runs one service.
    Serve(Service),
    /// Places orders only.
    Place,
    /// Serves HTTP.
    Gateway,
    /// Prints the report only.
    Report,
    /// Writes the files for a server with logins.
    Permissions,
    /// Creates the streams and consumers on a server with logins.
    Setup,
    /// Prints the history of an order.
    Flow(String),
    /// Prints the help.
    Help,
}

/// The arguments.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Arguments {
    pub(crate) task: Task,
    pub(crate) orders: u64,
    pub(crate) seed: u64,
    pub(crate) data: PathBuf,
    pub(crate) json: Option<PathBuf>,
    pub(crate) html: Option<PathBuf>,
    pub(crate) nats: Option<String>,
    pub(crate) postgres: Option<String>,
    /// The number of processes of each service.
    pub(crate) nodes: u64,
    pub(crate) listen: String,
    pub(crate) log: Option<String>,
    pub(crate) files: Vec<PathBuf>,
}

impl Arguments {
    /// Parses the command line. The error is a message for the user.
    pub(crate) fn parse(words: impl Iterator<Item = String>) -> Result<Self, String> {
        let mut words = words.peekable();
        let mut arguments = Self {
            task: Task::Run,
            orders: 1000,
            seed: 1,
            data: PathBuf::from("shop-data"),
            json: None,
            html: None,
            nats: None,
            postgres: None,
            nodes: 1,
            listen: "127.0.0.1:8080".to_owned(),
            log: None,
            files: Vec::new(),
        };
        if let Some(task) = words.peek().and_then(|word| task(word)) {
            words.next();
            arguments.task = match task {
                "serve" => Task::Serve(service(&words.next().unwrap_or_default())?),
                "flow" => Task::Flow(words.next().ok_or("flow needs the id of an order")?),
                "place" => Task::Place,
                "gateway" => Task::Gateway,
                "permissions" => Task::Permissions,
                "setup" => Task::Setup,
                _ => Task::Report,
            };
        }
        while let Some(word) = words.next() {
            let mut value = || words.next().ok_or(format!("{word} needs a value"));
            match word.as_str() {
                "--orders" => arguments.orders = number(&word, &value()?, 100_000_000)?,
                "--seed" => arguments.seed = number(&word, &value()?, u64::MAX)?,
                "--data" => arguments.data = value()?.into(),
                "--json" => arguments.json = Some(value()?.into()),
                "--html" => arguments.html = Some(value()?.into()),
                "--nats" => arguments.nats = Some(value()?),
                "--postgres" => arguments.postgres = Some(value()?),
                "--nodes" if matches!(arguments.task, Task::Run | Task::Processes) => {
                    arguments.task = Task::Processes;
                    arguments.nodes = number(&word, &value()?, 9)?;
                }
                "--listen" => arguments.listen = value()?,
                "--log" => arguments.log = Some(level(&value()?)?),
                "--processes" if arguments.task == Task::Run => arguments.task = Task::Processes,
                "--help" | "-h" => arguments.task = Task::Help,
                option if option.starts_with('-') => return Err(format!("unknown option {option}")),
                file => arguments.files.push(file.into()),
            }
        }
        arguments.validate()
    }

    fn validate(self) -> Result<Self, String> {
        let accepts_files = matches!(self.task, Task::Run | Task::Processes | Task::Place | Task::Help);
        match &self.task {
            Task::Serve(_) | Task::Place | Task::Gateway | Task::Setup if self.nats.is_none() => {
                Err("--nats URL is missing".to_owned())
            }
            Task::Processes if self.nats.is_some() => {
                Err("--processes and --nodes start their own server and exclude --nats".to_owned())
            }
            _ if self.nodes == 0 => Err("--nodes is 0, expected a number from 1 to 9".to_owned()),
            _ if !accepts_files && !self.files.is_empty() => {
                Err(format!("unexpected argument {}", self.files[0].display()))
            }
            _ => Ok(self),
        }
    }
}

fn task(word: &str) -> Option<&'static str> {
    ["serve", "place", "gateway", "report", "flow", "permissions", "setup"].into_iter().find(|task| *task == word)
}

fn service(name: &str) -> Result<Service, String> {
    Service::ALL.into_iter().find(|service| service.name() == name).ok_or_else(|| {
        let names = Service::ALL.map(Service::name).join(", ");
        format!("unknown service `{name}`, expected one of {names}")
    })
}

fn level(word: &str) -> Result<String, String> {
    match word {
        "error" | "warn" | "info" | "debug" | "trace" => Ok(word.to_owned()),
        _ => Err(format!("--log is `{word}`, expected error, warn, info, debug or trace")),
    }
}

fn number(option: &str, value: &str, max: u64) -> Result<u64, String> {
    value
        .parse()
        .ok()
        .filter(|number| *number <= max)
        .ok_or_else(|| format!("{option} is `{value}`, expected a number from 0 to {max}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Arguments, String> {
        Arguments::parse(line.split_whitespace().map(str::to_owned))
    }

    #[test]
    fn arguments_select_task_and_options() {
        let run = parse("--orders 7 --data d f").unwrap();
        assert_eq!((run.task, run.orders, run.files.len()), (Task::Run, 7, 1));
        assert_eq!(parse("flow ord-1 --html f").unwrap().task, Task::Flow("ord-1".to_owned()));
        assert_eq!(parse("serve payments --nats u").unwrap().task, Task::Serve(Service::Payments));
        assert_eq!(parse("--processes").unwrap().task, Task::Processes);
        assert_eq!(parse("permissions").unwrap().task, Task::Permissions);
        let nodes = parse("--nodes 3 --postgres postgres://host/shop").unwrap();
        assert_eq!((nodes.task, nodes.nodes), (Task::Processes, 3));
    }

    #[test]
    fn invalid_arguments_are_reported() {
        assert!(parse("--order 7").unwrap_err().contains("--order"));
        assert!(parse("--orders many").unwrap_err().contains("`many`"));
        assert!(parse("--log loud").unwrap_err().contains("`loud`"));
        assert!(parse("--json").unwrap_err().contains("needs a value"));
        assert!(parse("--nodes 0").unwrap_err().contains("from 1 to 9"));
        assert!(parse("--nodes 3 --nats u").unwrap_err().contains("exclude --nats"));
        assert!(parse("serve kitchen").unwrap_err().contains("notifications"));
        assert!(parse("place").unwrap_err().contains("--nats"));
        assert!(parse("setup").unwrap_err().contains("--nats"));
        assert!(parse("gateway").unwrap_err().contains("--nats"));
        assert!(parse("report x").unwrap_err().contains('x'));
    }
}
