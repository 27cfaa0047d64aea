//! What is wanted, as it stands on the command line.

use std::path::PathBuf;

/// What `--help` says.
pub(crate) const HELP: &str = "\
An order business of six services that meet only through messages.

    shop [OPTIONS] [FILE...]
        Places the orders of the files, or made-up ones, waits until each is confirmed or cancelled, and reports.

    --orders N    how many orders are made up if there are no files; 1000 if not given
    --seed S      which orders are made up; 1 if not given
    --data DIR    where e-mails and the provider's ledger are kept; ./shop-data if not given
    --json FILE   also writes the report as JSON
    --nats URL    the services meet over this NATS server, each with a connection of its own
    --help        this

Exit code: 0 all is well, 1 an order is open or a balance is off, 2 the call was wrong, 3 all is well but some orders of the
files were refused, 4 the shop could not work.
";

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Task {
    /// All of it, in this process.
    Run,
    /// Say what can be done.
    Help,
}

/// What is wanted.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Arguments {
    pub(crate) task: Task,
    pub(crate) orders: u64,
    pub(crate) seed: u64,
    pub(crate) data: PathBuf,
    pub(crate) json: Option<PathBuf>,
    pub(crate) nats: Option<String>,
    pub(crate) files: Vec<PathBuf>,
}

impl Arguments {
    /// Reads the command line. The error is a sentence for the user.
    pub(crate) fn read(mut words: impl Iterator<Item = String>) -> Result<Self, String> {
        let mut arguments = Self {
            task: Task::Run,
            orders: 1000,
            seed: 1,
            data: PathBuf::from("shop-data"),
            json: None,
            nats: None,
            files: Vec::new(),
        };
        while let Some(word) = words.next() {
            let mut value = || words.next().ok_or(format!("{word} needs a value"));
            match word.as_str() {
                "--orders" => arguments.orders = number(&word, &value()?, 100_000_000)?,
                "--seed" => arguments.seed = number(&word, &value()?, u64::MAX)?,
                "--data" => arguments.data = value()?.into(),
                "--json" => arguments.json = Some(value()?.into()),
                "--nats" => arguments.nats = Some(value()?),
                "--help" | "-h" => arguments.task = Task::Help,
                option if option.starts_with('-') => return Err(format!("there is no option {option} here")),
                file => arguments.files.push(file.into()),
            }
        }
        Ok(arguments)
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
    }

    #[test]
    fn a_wrong_call_is_told_what_is_wrong() {
        assert!(read("--order 7").unwrap_err().contains("--order"));
        assert!(read("--orders many").unwrap_err().contains("`many`"));
        assert!(read("--json").unwrap_err().contains("needs a value"));
    }
}
