//! A shop with its own data folder, run as a program.

use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use serde_json::Value;
use tempfile::TempDir;
use whizbang_tests::{brief_or_long, eventually, fast_sample, sample};

/// The time limit for each condition, generous for a busy machine.
const TIMEOUT: Duration = Duration::from_secs(120);

/// The names of the services on the command line.
pub(crate) const SERVICES: [&str; 6] = ["orders", "inventory", "payments", "shipping", "notifications", "analytics"];

/// A shop with its own data folder.
pub(crate) struct Shop {
    program: PathBuf,
    folder: TempDir,
}

impl Shop {
    pub(crate) fn new() -> Self {
        Self {
            program: brief_or_long(sample as fn(&str) -> PathBuf, fast_sample)("shop"),
            folder: tempfile::tempdir().unwrap(),
        }
    }

    /// Returns its data folder.
    pub(crate) fn data(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    /// Returns the path of a file beside the data folder.
    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Writes a file beside the data folder. Returns its path for a command line.
    pub(crate) fn write(&self, name: &str, text: impl AsRef<[u8]>) -> String {
        let file = self.file(name);
        std::fs::write(&file, text).unwrap();
        file.to_str().unwrap().to_owned()
    }

    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command.args(arguments).arg("--data").arg(self.data()).stdin(Stdio::null());
        command
    }

    /// Runs the program in an empty folder with only these arguments.
    pub(crate) fn run_as_it_is(&self, arguments: &[&str]) -> Output {
        Command::new(&self.program).args(arguments).current_dir(self.folder.path()).output().unwrap()
    }

    /// Runs the program to its end, with any exit code.
    pub(crate) fn run(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    /// Runs the program and checks its exit code. Returns its output.
    #[track_caller]
    pub(crate) fn says(&self, arguments: &[&str], code: i32) -> String {
        let output = self.run(arguments);
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {}", said(&output));
        said(&output)
    }

    /// Runs the program, checks its exit code, and returns its report.
    #[track_caller]
    pub(crate) fn report(&self, arguments: &[&str], code: i32) -> Value {
        let file = self.file("report.json");
        let mut command = self.command(arguments);
        let output = command.arg("--json").arg(&file).output().unwrap();
        assert_eq!(output.status.code(), Some(code), "{}", said(&output));
        serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap()
    }

    /// Starts the program. Its output, which reports restarts, is discarded.
    pub(crate) fn start(&self, arguments: &[&str]) -> Running {
        Running(self.command(arguments).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap())
    }

    /// Returns the number of e-mails: a measure of progress that is visible from outside.
    pub(crate) fn mails(&self) -> usize {
        let is_mail = |file: &std::fs::DirEntry| file.path().extension().is_some_and(|extension| extension == "eml");
        std::fs::read_dir(self.data().join("mails")).map_or(0, |files| files.flatten().filter(is_mail).count())
    }

    /// Waits until `count` e-mails are written.
    #[track_caller]
    pub(crate) fn wait_for_mails(&self, count: usize) {
        eventually("e-mails are written", TIMEOUT, || (self.mails() >= count).then_some(()));
    }

    /// Returns the process id of a service that was started with `serve`.
    #[track_caller]
    pub(crate) fn pid(&self, service: &str) -> u32 {
        let file = self.data().join(format!("{service}.pid"));
        eventually("the pid file of a service", TIMEOUT, || std::fs::read_to_string(&file).ok()?.parse().ok())
    }
}

/// A process that is killed when it is dropped.
pub(crate) struct Running(Child);

impl Running {
    /// Takes over a process that the test has started.
    pub(crate) fn of(child: Child) -> Self {
        Self(child)
    }

    /// Kills the process with SIGKILL.
    pub(crate) fn kill(mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }

    /// Waits for the end of the process. Returns its exit code.
    pub(crate) fn end(mut self) -> Option<i32> {
        self.0.wait().unwrap().code()
    }

    /// Sends SIGTERM and waits for the end of the process. Returns its exit code.
    pub(crate) fn stop(self) -> Option<i32> {
        signal(self.0.id(), "TERM");
        self.end()
    }

    pub(crate) fn pid(&self) -> u32 {
        self.0.id()
    }

    /// Returns true if the process has not ended.
    pub(crate) fn is_running(&mut self) -> bool {
        self.0.try_wait().unwrap().is_none()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Killing a process that has already ended fails, which is harmless.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Sends a signal to a process.
#[track_caller]
pub(crate) fn signal(pid: u32, signal: &str) {
    assert!(Command::new("kill").args(["-s", signal, &pid.to_string()]).status().unwrap().success(), "{pid} is gone");
}

/// Returns the output of a program: standard output, then standard error.
pub(crate) fn said(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// Checks that all orders have ended and everything balances, according to the report of the shop.
#[track_caller]
pub(crate) fn assert_balanced(report: &Value, placed: u64) {
    assert_eq!(report["orders"]["placed"], placed, "{report:#}");
    assert_eq!(report["orders"]["open"], 0, "{report:#}");
    assert_eq!(report["stock"]["reserved"], 0, "{report:#}");
    for part in ["stock", "money"] {
        assert_eq!(report[part]["conserved"], true, "{report:#}");
    }
    assert_eq!(report["analytics"]["matches_log"], true, "{report:#}");
    assert_eq!(report["emails"], placed, "{report:#}");
    assert_eq!(report["dead_letters"], 0, "{report:#}");
    // A payment that takes too long cancels its order: how many are overdue depends on the machine.
    let overdue = report["cancelled_because"]["payments.overdue"].as_u64().unwrap_or(0);
    assert!(report["orders"]["confirmed"].as_u64().unwrap() > (placed - overdue) / 2, "{report:#}");
}
