//! Runs each service as its own process, or as several that share its store, and the servers between them. Restarts a process
//! that ends. With several processes of a service, one process is killed every few seconds.

use std::cell::{Cell, RefCell};
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::rc::Rc;
use std::time::Duration;

use shop::link::namespace;
use shop::service::Service;
use tokio::time::Instant;
use whizbang::clock::Clock;
use whizbang::message::IdSource;

use crate::arguments::Arguments;
use crate::postgres::Postgres;

/// The interval between two checks of the processes.
const POLL_INTERVAL: Duration = Duration::from_millis(50);
/// The time limit for a process to start or stop.
const TIMEOUT: Duration = Duration::from_secs(15);
/// The shortest interval between two starts of a process that ends at once.
const RESTART_INTERVAL: Duration = Duration::from_millis(500);
/// The interval between two kills.
const KILL_INTERVAL: Duration = Duration::from_secs(3);

/// The processes of the shop. Dropping it kills them.
pub(crate) struct Processes {
    supervised: Rc<Supervised>,
    url: String,
    database: Option<String>,
}

struct Supervised {
    servers: RefCell<Vec<Process>>,
    services: RefCell<Vec<Process>>,
    stopping: Cell<bool>,
    /// One of the services is killed every few seconds.
    kills: Cell<bool>,
}

/// The servers after the services have stopped. Dropping it kills them.
pub(crate) struct Servers(Vec<Process>);

pub(crate) struct Process {
    name: String,
    program: PathBuf,
    arguments: Vec<String>,
    child: Child,
    started: Instant,
    /// Another process than the first of its service.
    is_further: bool,
}

impl Processes {
    /// Starts a nats-server on a free port, a PostgreSQL server if the services need one, and the services.
    pub(crate) async fn start(arguments: &Arguments) -> io::Result<Self> {
        let data = arguments.data.as_path();
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
        let nodes = arguments.nodes;
        let supervised = Rc::new(Supervised {
            servers: RefCell::new(vec![server]),
            services: RefCell::default(),
            stopping: Cell::new(false),
            kills: Cell::new(nodes > 1),
        });
        // From here on an error kills what has started.
        let mut processes = Self { supervised: Rc::clone(&supervised), url: url.clone(), database: None };
        processes.database.clone_from(&arguments.postgres);
        if nodes > 1 && arguments.postgres.is_none() {
            let postgres = Postgres::start(data, &namespace(data)?.to_string()).await?;
            processes.database = Some(postgres.url);
            supervised.servers.borrow_mut().push(postgres.process);
        }
        let shop = std::env::current_exe()?;
        let data = data.display().to_string();
        let log = arguments.log.as_ref().map(|level| ["--log", level]);
        let database = processes.database.as_ref().map(|url| ["--postgres", url]);
        let options: Vec<String> = log.into_iter().chain(database).flatten().map(str::to_owned).collect();
        for (service, node) in Service::ALL.into_iter().flat_map(|service| (1..=nodes).map(move |node| (service, node)))
        {
            let name = service.name();
            let mut words = ["serve", name, "--nats", &url, "--data", &data].map(str::to_owned).to_vec();
            words.extend_from_slice(&options);
            let label = if nodes > 1 { format!("{name} {node}") } else { name.to_owned() };
            let process = Process { is_further: node > 1, ..Process::start(&label, &shop, &words)? };
            supervised.services.borrow_mut().push(process);
        }
        // The task ends after `stop` or when the value is dropped: both set `stopping`.
        tokio::task::spawn_local(supervise(supervised));
        Ok(processes)
    }

    /// Returns the address of the database with the stores, if they are in one.
    pub(crate) fn database(&self) -> Option<&str> {
        self.database.as_deref()
    }

    /// Returns the address of the nats-server.
    pub(crate) fn url(&self) -> &str {
        &self.url
    }

    /// Stops killing, and all processes of each service but one. Returns false if there were no others.
    pub(crate) async fn reduce_to_one(&self) -> io::Result<bool> {
        self.supervised.kills.set(false);
        let mut services = std::mem::take(&mut *self.supervised.services.borrow_mut());
        let others: Vec<_> = services.extract_if(.., |process| process.is_further).collect();
        self.supervised.services.borrow_mut().extend(services);
        for process in &others {
            process.terminate()?;
        }
        let had_others = !others.is_empty();
        for mut process in others {
            process.end().await?;
        }
        Ok(had_others)
    }

    /// Stops the services gracefully. Returns the servers, which still hold their data.
    pub(crate) async fn stop_services(self) -> io::Result<Servers> {
        self.supervised.stopping.set(true);
        let services = std::mem::take(&mut *self.supervised.services.borrow_mut());
        for process in &services {
            process.terminate()?;
        }
        for mut process in services {
            process.end().await?;
        }
        Ok(Servers(std::mem::take(&mut *self.supervised.servers.borrow_mut())))
    }
}

impl Servers {
    /// Stops the servers.
    pub(crate) async fn stop(mut self) -> io::Result<()> {
        for server in &mut self.0 {
            server.terminate()?;
            server.end().await?;
        }
        Ok(())
    }
}

impl Drop for Servers {
    fn drop(&mut self) {
        self.0.iter_mut().for_each(Process::kill);
    }
}

impl Drop for Processes {
    fn drop(&mut self) {
        self.supervised.stopping.set(true);
        self.supervised.services.borrow_mut().iter_mut().for_each(Process::kill);
        self.supervised.servers.borrow_mut().iter_mut().for_each(Process::kill);
    }
}

/// Restarts processes that have ended, and kills one every few seconds if there are several of each service.
async fn supervise(supervised: Rc<Supervised>) {
    let chance = IdSource::random(Clock::system());
    let mut killed = Instant::now();
    while !supervised.stopping.get() {
        if supervised.kills.get() && killed.elapsed() > KILL_INTERVAL {
            killed = Instant::now();
            let mut services = supervised.services.borrow_mut();
            let number = chance.below(services.len() as u64);
            if let Some(process) = usize::try_from(number).ok().and_then(|number| services.get_mut(number)) {
                eprintln!("shop: killing {}", process.name);
                process.kill();
            }
        }
        restart_ended(&mut supervised.servers.borrow_mut());
        restart_ended(&mut supervised.services.borrow_mut());
        tokio::time::sleep(POLL_INTERVAL).await;
    }
}

/// Restarts processes that have ended.
fn restart_ended(processes: &mut [Process]) {
    for process in processes {
        if process.started.elapsed() > RESTART_INTERVAL
            && let Ok(Some(status)) = process.child.try_wait()
        {
            process.started = Instant::now();
            eprintln!("shop: {} ended ({status}), restarting", process.name);
            match spawn(&process.program, &process.arguments) {
                Ok(child) => process.child = child,
                Err(error) => eprintln!("shop: failed to restart {}: {error}", process.name),
            }
        }
    }
}

impl Process {
    pub(crate) fn start(name: &str, program: &Path, arguments: &[String]) -> io::Result<Self> {
        let child = spawn(program, arguments)?;
        let started = Instant::now();
        Ok(Self {
            name: name.to_owned(),
            program: program.to_owned(),
            arguments: arguments.to_vec(),
            child,
            started,
            is_further: false,
        })
    }

    /// Returns true while the process runs.
    pub(crate) fn is_running(&mut self) -> bool {
        self.child.try_wait().is_ok_and(|status| status.is_none())
    }

    /// Kills the process with SIGKILL.
    pub(crate) fn kill(&mut self) {
        // Killing a process that has already ended fails, which is harmless.
        let _ = self.child.kill();
        let _ = self.child.wait();
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
    async fn end(&mut self) -> io::Result<()> {
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
    let is_server = program.file_name().is_some_and(|name| name == "nats-server" || name == "setpriv");
    if is_server {
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
pub(crate) fn program_folders() -> Vec<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).chain(["/usr/sbin", "/sbin"].map(PathBuf::from)).collect()
}

pub(crate) fn find(program: &str, folders: &[PathBuf]) -> Option<PathBuf> {
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
