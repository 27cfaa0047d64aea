//! Reads the command line.

use std::path::PathBuf;

use shop::service::Service;

/// The text of `--help`.
pub(crate) const HELP: &str = "\
An order business of six services that meet only through messages.

    shop [OPTIONS] [FILE...]
        Places the orders of the files, or made-up ones, waits until each is confirmed or cancelled, and reports. Stopped at
        any moment and started again with the same data it goes on.
    shop flow ORDER [--html FILE]     the way of one order through all services, as far as it has come
    shop report                       the report of what has happened so far, also while services are at work
    shop serve SERVICE --nats URL     one service, until it is told to end: orders, inventory, payments, shipping,
                                      notifications, analytics
    shop place --nats URL [FILE...]   places orders with services that run elsewhere, and waits for them
    shop permissions                  writes what each service may do on a NATS server, and a login for each, into the data
    shop setup --nats URL             creates what the services need on a server, as the only identity that may

    --orders N    how many orders are made up if there are no files; 1000 if not given
    --seed S      which orders are made up; 1 if not given
    --data DIR    where stores, e-mails and the provider's ledger are kept; ./shop-data if not given
    --json FILE   also writes the report as JSON
    --nats URL    the services meet over this NATS server, each with a connection of its own
    --processes   each service is a process of its own, with a nats-server between them that is started as well
    --log LEVEL   what the framework says of its work goes to the standard error: error, warn, info, debug, trace
    --help        this

Exit code: 0 all is well, 1 an order is open or a balance is off, 2 the call was wrong, 3 all is well but some orders of the
files were refused, 4 the shop could not work, 5 services are at work and not everything has come to its end yet.
";

/// The job of this process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Task {
    /// All of it, in this process.
    Run,
    /// All of it, each service a process.
    Processes,
    /// One service.
    Serve(Service),
    /// Only the placing.
    Place,
    /// Only the report.
    Report,
    /// The files for a server that asks for logins.
    Permissions,
    /// The streams and consumers on such a server.
    Setup,
    /// The way of an order.
    Flow(String),
    /// Say what can be done.
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
    pub(crate) log: Option<String>,
    pub(crate) files: Vec<PathBuf>,
}

impl Arguments {
    /// Reads the command line. The error is a sentence for the user.
    pub(crate) fn read(words: impl Iterator<Item = String>) -> Result<Self, String> {
        let mut words = words.peekable();
        let mut arguments = Self {
            task: Task::Run,
            orders: 1000,
            seed: 1,
            data: PathBuf::from("shop-data"),
            json: None,
            html: None,
            nats: None,
            log: None,
            files: Vec::new(),
        };
        if let Some(task) = words.peek().and_then(|word| task(word)) {
            words.next();
            arguments.task = match task {
                "serve" => Task::Serve(service(&words.next().unwrap_or_default())?),
                "flow" => Task::Flow(words.next().ok_or("flow needs the id of an order")?),
                "place" => Task::Place,
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
                "--log" => arguments.log = Some(level(&value()?)?),
                "--processes" if arguments.task == Task::Run => arguments.task = Task::Processes,
                "--help" | "-h" => arguments.task = Task::Help,
                option if option.starts_with('-') => return Err(format!("there is no option {option} here")),
                file => arguments.files.push(file.into()),
            }
        }
        arguments.checked()
    }

    fn checked(self) -> Result<Self, String> {
        let takes_orders = matches!(self.task, Task::Run | Task::Processes | Task::Place | Task::Help);
        match &self.task {
            Task::Serve(_) | Task::Place | Task::Setup if self.nats.is_none() => {
                Err("this needs --nats URL".to_owned())
            }
            Task::Processes if self.nats.is_some() => {
                Err("--processes starts a server of its own: no --nats".to_owned())
            }
            _ if !takes_orders && !self.files.is_empty() => Err(format!("what is {}?", self.files[0].display())),
            _ => Ok(self),
        }
    }
}

fn task(word: &str) -> Option<&'static str> {
    ["serve", "place", "report", "flow", "permissions", "setup"].into_iter().find(|task| *task == word)
}

fn service(name: &str) -> Result<Service, String> {
    Service::ALL.into_iter().find(|service| service.name() == name).ok_or_else(|| {
        let names = Service::ALL.map(Service::name).join(", ");
        format!("there is no service `{name}`; the services are {names}")
    })
}

fn level(word: &str) -> Result<String, String> {
    match word {
        "error" | "warn" | "info" | "debug" | "trace" => Ok(word.to_owned()),
        _ => Err(format!("--log is `{word}`, expected error, warn, info, debug or trace")),
    }
}

fn number(option: &str, value: &str, most: u64) -> Result<u64, String> {
    value
        .parse()
        .ok()
        .filter(|number| *number <= most)
        .ok_or_else(|| format!("{option} is `{value}`, expected a number from 0 to {most}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(line: &str) -> Result<Arguments, String> {
        Arguments::read(line.split_whitespace().map(str::to_owned))
    }

    #[test]
    fn a_call_says_what_is_wanted() {
        let run = read("--orders 7 --data d f").unwrap();
        assert_eq!((run.task, run.orders, run.files.len()), (Task::Run, 7, 1));
        assert_eq!(read("flow ord-1 --html f").unwrap().task, Task::Flow("ord-1".to_owned()));
        assert_eq!(read("serve payments --nats u").unwrap().task, Task::Serve(Service::Payments));
        assert_eq!(read("--processes").unwrap().task, Task::Processes);
        assert_eq!(read("permissions").unwrap().task, Task::Permissions);
    }

    #[test]
    fn a_wrong_call_is_told_what_is_wrong() {
        assert!(read("--order 7").unwrap_err().contains("--order"));
        assert!(read("--orders many").unwrap_err().contains("`many`"));
        assert!(read("--log loud").unwrap_err().contains("`loud`"));
        assert!(read("--json").unwrap_err().contains("needs a value"));
        assert!(read("serve kitchen").unwrap_err().contains("notifications"));
        assert!(read("place").unwrap_err().contains("--nats"));
        assert!(read("setup").unwrap_err().contains("--nats"));
        assert!(read("report x").unwrap_err().contains('x'));
    }
}
