//! Runs each service as its own process, and a nats-server between them. Restarts a process that ends.

use std::cell::{Cell, RefCell};
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::rc::Rc;
use std::time::Duration;

use shop::service::Service;
use tokio::time::Instant;

/// The interval between two checks of the processes.
const POLL_INTERVAL: Duration = Duration::from_millis(50);
/// The time limit for a process to start or stop.
const TIMEOUT: Duration = Duration::from_secs(15);

/// The processes of the shop. Dropping it kills them.
pub(crate) struct Processes {
    supervised: Rc<Supervised>,
    url: String,
}

struct Supervised {
    processes: RefCell<Vec<Process>>,
    stopping: Cell<bool>,
}

struct Process {
    name: &'static str,
    program: PathBuf,
    arguments: Vec<String>,
    child: Child,
}

impl Processes {
    /// Starts a nats-server on a free port and the six services.
    pub(crate) async fn start(data: &Path, log: Option<&str>) -> io::Result<Self> {
        let server = nats_server(&program_folders())?;
        let folder = data.join("nats");
        std::fs::create_dir_all(&folder)?;
        let mut server = Process::start("nats-server", &server, &server_on("-1", &folder))?;
        let port = match server.port(&folder).await {
            Ok(port) => port,
            Err(error) => {
                let _ = server.child.kill();
                let _ = server.child.wait();
                return Err(error);
            }
        };
        // A restarted server must listen on the same port.
        server.arguments = server_on(&port, &folder);
        let url = format!("nats://127.0.0.1:{port}");
        let mut processes = vec![server];
        let shop = std::env::current_exe()?;
        let data = data.display().to_string();
        for service in Service::ALL {
            let name = service.name();
            let mut arguments = ["serve", name, "--nats", &url, "--data", &data].map(str::to_owned).to_vec();
            arguments.extend(log.into_iter().flat_map(|level| ["--log".to_owned(), level.to_owned()]));
            processes.push(Process::start(name, &shop, &arguments)?);
        }
        let supervised = Rc::new(Supervised { processes: RefCell::new(processes), stopping: Cell::new(false) });
        // The task ends after `stop` or when the value is dropped: both set `stopping`.
        tokio::task::spawn_local(supervise(Rc::clone(&supervised)));
        Ok(Self { supervised, url })
    }

    /// Returns the address of the nats-server.
    pub(crate) fn url(&self) -> &str {
        &self.url
    }

    /// Stops the services gracefully, then the server.
    pub(crate) async fn stop(self) -> io::Result<()> {
        self.supervised.stopping.set(true);
        let mut processes = std::mem::take(&mut *self.supervised.processes.borrow_mut());
        let server = processes.remove(0);
        for process in &processes {
            process.terminate()?;
        }
        for process in processes {
            process.end().await?;
        }
        server.terminate()?;
        server.end().await
    }
}

impl Drop for Processes {
    fn drop(&mut self) {
        self.supervised.stopping.set(true);
        for process in self.supervised.processes.borrow_mut().iter_mut() {
            // Killing a process that has already ended fails, which is harmless.
            let _ = process.child.kill();
            let _ = process.child.wait();
        }
    }
}

/// Restarts processes that have ended.
async fn supervise(supervised: Rc<Supervised>) {
    while !supervised.stopping.get() {
        for process in supervised.processes.borrow_mut().iter_mut() {
            if let Ok(Some(status)) = process.child.try_wait() {
                eprintln!("shop: {} ended ({status}), restarting", process.name);
                match spawn(&process.program, &process.arguments) {
                    Ok(child) => process.child = child,
                    Err(error) => eprintln!("shop: failed to restart {}: {error}", process.name),
                }
            }
        }
        tokio::time::sleep(POLL_INTERVAL).await;
    }
}

impl Process {
    fn start(name: &'static str, program: &Path, arguments: &[String]) -> io::Result<Self> {
        let child = spawn(program, arguments)?;
        Ok(Self { name, program: program.to_owned(), arguments: arguments.to_vec(), child })
    }

    /// Waits for the file that a nats-server writes once it listens, and returns its port.
    async fn port(&mut self, folder: &Path) -> io::Result<String> {
        let file = folder.join(format!("nats-server_{}.ports", self.child.id()));
        let started = Instant::now();
        loop {
            if let Ok(text) = std::fs::read_to_string(&file)
                && let Some(port) = port_in(&text)
            {
                return Ok(port);
            }
            if let Some(status) = self.child.try_wait()? {
                return Err(io::Error::other(format!("nats-server failed to start ({status})")));
            }
            if started.elapsed() > TIMEOUT {
                return Err(io::Error::other("nats-server does not listen after 15 s"));
            }
            tokio::time::sleep(POLL_INTERVAL).await;
        }
    }

    /// Sends SIGTERM.
    fn terminate(&self) -> io::Result<()> {
        Command::new("kill").args(["-TERM", &self.child.id().to_string()]).stderr(Stdio::null()).status().map(drop)
    }

    /// Waits until the process has ended, and kills it after the time limit.
    async fn end(mut self) -> io::Result<()> {
        let started = Instant::now();
        while self.child.try_wait()?.is_none() {
            if started.elapsed() > TIMEOUT {
                eprintln!("shop: {} did not stop in time, killing it", self.name);
                self.child.kill()?;
            }
            tokio::time::sleep(POLL_INTERVAL).await;
        }
        Ok(())
    }
}

/// Returns the arguments of a nats-server that stores its files in `folder`.
fn server_on(port: &str, folder: &Path) -> Vec<String> {
    let folder = folder.display().to_string();
    ["-js", "-a", "127.0.0.1", "-p", port, "-sd", &folder, "--ports_file_dir", &folder].map(str::to_owned).to_vec()
}

/// Returns the port in a ports file, for example `{"nats":["nats://127.0.0.1:4222"]}`.
fn port_in(text: &str) -> Option<String> {
    let ports: serde_json::Value = serde_json::from_str(text).ok()?;
    Some(ports.get("nats")?.get(0)?.as_str()?.rsplit(':').next()?.to_owned())
}

/// Starts a program that ends with this one.
fn spawn(program: &Path, arguments: &[String]) -> io::Result<Child> {
    let mut command = match find("setpriv", &program_folders()) {
        // A process that is killed with SIGKILL cannot end its children, so the kernel does.
        Some(setpriv) => {
            let mut command = Command::new(setpriv);
            command.args(["--pdeathsig", "KILL"]).arg(program);
            command
        }
        None => Command::new(program),
    };
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::null());
    if program.file_name().is_some_and(|name| name == "nats-server") {
        command.stderr(Stdio::null());
    }
    command.spawn()
}

fn nats_server(folders: &[PathBuf]) -> io::Result<PathBuf> {
    find("nats-server", folders).ok_or_else(|| {
        io::Error::new(
            io::ErrorKind::NotFound,
            "nats-server not found; --processes needs it, install it (Debian: apt-get install nats-server)",
        )
    })
}

/// Returns the folders to search for programs. Servers may be in sbin, which is not in the PATH of users.
fn program_folders() -> Vec<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).chain(["/usr/sbin", "/sbin"].map(PathBuf::from)).collect()
}

fn find(program: &str, folders: &[PathBuf]) -> Option<PathBuf> {
    folders.iter().map(|folder| folder.join(program)).find(|file| file.is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missing_nats_server_error_says_what_to_install() {
        let error = nats_server(&[PathBuf::from("/nowhere")]).unwrap_err();
        assert!(error.to_string().contains("apt-get install nats-server"), "{error}");
    }

    #[test]
    fn port_is_read_from_the_ports_file() {
        assert_eq!(port_in("{\"nats\":[\"nats://127.0.0.1:4222\"]}").as_deref(), Some("4222"));
        assert_eq!(port_in("{\"nats\":["), None);
    }
}
