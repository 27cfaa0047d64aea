//! A shop with a folder of its own, run from its program.

use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use serde_json::Value;
use tempfile::TempDir;
use whizbang_tests::{brief_or_long, eventually, fast_sample, sample};

/// How long anything may take on a machine with other things to do.
const PATIENCE: Duration = Duration::from_secs(120);

/// The services, as they are called on the command line.
pub(crate) const SERVICES: [&str; 6] = ["orders", "inventory", "payments", "shipping", "notifications", "analytics"];

/// A shop with a folder of its own.
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

    /// Where it keeps everything.
    pub(crate) fn data(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    /// A file beside it.
    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Writes a file beside it, and gives back its path as it stands on a command line.
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

    /// Runs it in an empty folder, with these arguments and no others.
    pub(crate) fn run_as_it_is(&self, arguments: &[&str]) -> Output {
        Command::new(&self.program).args(arguments).current_dir(self.folder.path()).output().unwrap()
    }

    /// Runs it to its end, however it ends.
    pub(crate) fn run(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    /// Runs it to its end, which must have this exit code; what it has said.
    #[track_caller]
    pub(crate) fn says(&self, arguments: &[&str], code: i32) -> String {
        let output = self.run(arguments);
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {}", said(&output));
        said(&output)
    }

    /// Runs it, and reads the report that it writes. Its exit code must be `code`.
    #[track_caller]
    pub(crate) fn report(&self, arguments: &[&str], code: i32) -> Value {
        let file = self.file("report.json");
        let mut command = self.command(arguments);
        let output = command.arg("--json").arg(&file).output().unwrap();
        assert_eq!(output.status.code(), Some(code), "{}", said(&output));
        serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap()
    }

    /// Starts it. What it says is dropped: that somebody was killed and is started again.
    pub(crate) fn start(&self, arguments: &[&str]) -> Running {
        Running(self.command(arguments).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap())
    }

    /// How many e-mails were written: a sign of how far it is that can be seen from outside.
    pub(crate) fn mails(&self) -> usize {
        let is_mail = |file: &std::fs::DirEntry| file.path().extension().is_some_and(|extension| extension == "eml");
        std::fs::read_dir(self.data().join("mails")).map_or(0, |files| files.flatten().filter(is_mail).count())
    }

    /// Waits until so many e-mails were written.
    #[track_caller]
    pub(crate) fn wait_for_mails(&self, count: usize) {
        eventually("e-mails are written", PATIENCE, || (self.mails() >= count).then_some(()));
    }

    /// The process of a service that was started with `serve`.
    #[track_caller]
    pub(crate) fn pid(&self, service: &str) -> u32 {
        let file = self.data().join(format!("{service}.pid"));
        eventually("a service writes down its process", PATIENCE, || std::fs::read_to_string(&file).ok()?.parse().ok())
    }
}

/// A process that is killed when it is dropped.
pub(crate) struct Running(Child);

impl Running {
    /// Kills it with SIGKILL.
    pub(crate) fn kill(mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }

    /// Waits for its end; its exit code.
    pub(crate) fn end(mut self) -> Option<i32> {
        self.0.wait().unwrap().code()
    }

    /// Asks it to end in order, and waits for that; its exit code.
    pub(crate) fn stop(self) -> Option<i32> {
        signal(self.0.id(), "TERM");
        self.end()
    }

    pub(crate) fn pid(&self) -> u32 {
        self.0.id()
    }

    /// Whether it has not ended.
    pub(crate) fn lives(&mut self) -> bool {
        self.0.try_wait().unwrap().is_none()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Sends a signal to a process.
#[track_caller]
pub(crate) fn signal(pid: u32, signal: &str) {
    assert!(Command::new("kill").args(["-s", signal, &pid.to_string()]).status().unwrap().success(), "{pid} is gone");
}

/// All that a program has said.
pub(crate) fn said(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// Everything has ended and everything balances, by the shop's own report.
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
    assert!(report["orders"]["confirmed"].as_u64().unwrap() > placed / 2, "{report:#}");
}
