//! Runs each service in a process of its own, with a nats-server between them. A process that ends is restarted.

use std::cell::{Cell, RefCell};
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::rc::Rc;
use std::time::Duration;

use shop::service::Service;
use tokio::time::Instant;

/// The interval between two checks of the processes.
const LOOK: Duration = Duration::from_millis(50);
/// The time that a process may take to stop.
const PATIENCE: Duration = Duration::from_secs(15);

/// The processes of the shop. Dropped, they are killed.
pub(crate) struct Processes {
    kept: Rc<Kept>,
    url: String,
}

struct Kept {
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
        let server = nats_server(&places())?;
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
        // Started again, it is found where it was.
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
        let kept = Rc::new(Kept { processes: RefCell::new(processes), stopping: Cell::new(false) });
        // It ends with `stop`, or with the shop.
        tokio::task::spawn_local(tend(Rc::clone(&kept)));
        Ok(Self { kept, url })
    }

    /// The address of the nats-server.
    pub(crate) fn url(&self) -> &str {
        &self.url
    }

    /// Stops the services, then the server, each in order.
    pub(crate) async fn stop(self) -> io::Result<()> {
        self.kept.stopping.set(true);
        let mut processes = std::mem::take(&mut *self.kept.processes.borrow_mut());
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
        self.kept.stopping.set(true);
        for process in self.kept.processes.borrow_mut().iter_mut() {
            // Killing a process that has ended by itself fails, and needs no handling.
            let _ = process.child.kill();
            let _ = process.child.wait();
        }
    }
}

/// Restarts processes that have ended.
async fn tend(kept: Rc<Kept>) {
    while !kept.stopping.get() {
        for process in kept.processes.borrow_mut().iter_mut() {
            if let Ok(Some(status)) = process.child.try_wait() {
                eprintln!("shop: {} ended ({status}) and is started again", process.name);
                match spawn(&process.program, &process.arguments) {
                    Ok(child) => process.child = child,
                    Err(error) => eprintln!("shop: {} cannot be started: {error}", process.name),
                }
            }
        }
        tokio::time::sleep(LOOK).await;
    }
}

impl Process {
    fn start(name: &'static str, program: &Path, arguments: &[String]) -> io::Result<Self> {
        let child = spawn(program, arguments)?;
        Ok(Self { name, program: program.to_owned(), arguments: arguments.to_vec(), child })
    }

    /// The port on which a nats-server listens, from the file that it writes once it does.
    async fn port(&mut self, folder: &Path) -> io::Result<String> {
        let file = folder.join(format!("nats-server_{}.ports", self.child.id()));
        let begun = Instant::now();
        loop {
            if let Ok(text) = std::fs::read_to_string(&file)
                && let Some(port) = port_in(&text)
            {
                return Ok(port);
            }
            if let Some(status) = self.child.try_wait()? {
                return Err(io::Error::other(format!("nats-server does not start ({status})")));
            }
            if begun.elapsed() > PATIENCE {
                return Err(io::Error::other("nats-server does not listen"));
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Asks it to end.
    fn terminate(&self) -> io::Result<()> {
        Command::new("kill").args(["-TERM", &self.child.id().to_string()]).stderr(Stdio::null()).status().map(drop)
    }

    /// Waits for its end.
    async fn end(mut self) -> io::Result<()> {
        let begun = Instant::now();
        while self.child.try_wait()?.is_none() {
            if begun.elapsed() > PATIENCE {
                eprintln!("shop: {} does not end and is killed", self.name);
                self.child.kill()?;
            }
            tokio::time::sleep(LOOK).await;
        }
        Ok(())
    }
}

/// The arguments of a nats-server that keeps its files in `folder`.
fn server_on(port: &str, folder: &Path) -> Vec<String> {
    let folder = folder.display().to_string();
    ["-js", "-a", "127.0.0.1", "-p", port, "-sd", &folder, "--ports_file_dir", &folder].map(str::to_owned).to_vec()
}

/// The port in a file of ports, which looks like `{"nats":["nats://127.0.0.1:4222"]}`.
fn port_in(text: &str) -> Option<String> {
    let ports: serde_json::Value = serde_json::from_str(text).ok()?;
    Some(ports.get("nats")?.get(0)?.as_str()?.rsplit(':').next()?.to_owned())
}

/// Starts a program that dies with this one.
fn spawn(program: &Path, arguments: &[String]) -> io::Result<Child> {
    let mut command = match find("setpriv", &places()) {
        // A process that is killed with SIGKILL cannot end its children; the operating system does.
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

fn nats_server(places: &[PathBuf]) -> io::Result<PathBuf> {
    find("nats-server", places).ok_or_else(|| {
        io::Error::new(
            io::ErrorKind::NotFound,
            "there is no nats-server, which --processes needs: install it (Debian: apt-get install nats-server)",
        )
    })
}

/// The folders of programs; servers may be in sbin, which is not in the PATH of users.
fn places() -> Vec<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).chain(["/usr/sbin", "/sbin"].map(PathBuf::from)).collect()
}

fn find(program: &str, places: &[PathBuf]) -> Option<PathBuf> {
    places.iter().map(|folder| folder.join(program)).find(|file| file.is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_nats_server_it_says_what_to_install() {
        let wrong = nats_server(&[PathBuf::from("/nowhere")]).unwrap_err();
        assert!(wrong.to_string().contains("apt-get install nats-server"), "{wrong}");
    }

    #[test]
    fn the_port_is_read_from_what_the_server_writes_down() {
        assert_eq!(port_in("{\"nats\":[\"nats://127.0.0.1:4222\"]}").as_deref(), Some("4222"));
        assert_eq!(port_in("{\"nats\":["), None);
    }
}
