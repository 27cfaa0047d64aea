//! The two terminals of the sample's README: its commands as written, against a server started as it describes.

use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use whizbang_tests::nats::{NatsServer, Release};
use whizbang_tests::{root, sample};

/// The arguments of the commands in the sample's README, in their order.
fn commands() -> Vec<Vec<String>> {
    let readme = std::fs::read_to_string(root().join("samples/two-services/README.md")).expect("a README");
    let found = readme.lines().filter_map(|line| line.trim_start().strip_prefix("cargo run -p two-services -- "));
    found.map(|arguments| arguments.split_whitespace().map(str::to_owned).collect()).collect()
}

/// Starts the sample in a folder; the port is the test's.
fn start(program: &Path, folder: &Path, server: &NatsServer, arguments: &[String]) -> Child {
    let here = |argument: &String| argument.replace("nats://127.0.0.1:4333", &server.url());
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", "--"]).arg(program).args(arguments.iter().map(here)).current_dir(folder);
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("starts")
}

/// Waits for the end of a program and returns its output.
fn printed(child: Child) -> String {
    let output = child.wait_with_output().expect("ends");
    assert!(output.status.success(), "{}: {}", output.status, String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("text")
}

/// The server prints its version with the options of the pages, and its usage with an unknown option.
#[test]
fn server_accepts_the_options_of_the_pages() {
    for page in ["docs/getting-started/nats.md", "samples/two-services/README.md"] {
        let page = std::fs::read_to_string(root().join(page)).expect("a page");
        let options = page.lines().find_map(|line| line.trim_start().strip_prefix("nats-server ")).expect("a command");
        for release in [Release::Distribution, Release::Pinned] {
            let output = Command::new(release.program()).args(options.split(' ')).arg("-v").output().expect("starts");
            let printed = String::from_utf8_lossy(&output.stdout);
            assert!(output.status.success() && printed.starts_with("nats-server: v"), "{options}: {printed}");
        }
    }
}

#[test]
fn two_terminals_work_as_the_readme_describes() {
    let program = sample("two-services");
    let commands = commands();
    let [machine, ada, bob] = commands.as_slice() else { panic!("{commands:?}") };
    assert_eq!([&machine[0], &ada[0], &bob[0]], ["machine", "counter", "counter"]);
    let expected = std::fs::read_to_string(root().join("samples/two-services/expected-over-nats.txt")).expect("there");
    for release in [Release::Distribution, Release::Pinned] {
        let server = NatsServer::start(release);
        let folder = tempfile::tempdir().expect("a folder");
        let mut first = start(&program, folder.path(), &server, machine);
        let mut lines = BufReader::new(first.stdout.take().expect("a pipe"));
        let mut text = String::new();
        lines.read_line(&mut text).expect("a line");
        text += &printed(start(&program, folder.path(), &server, ada));
        // The machine is started again and continues to count cups.
        interrupt(&first);
        lines.read_to_string(&mut text).expect("the rest");
        printed(first);
        let waiting = start(&program, folder.path(), &server, bob);
        let mut again = start(&program, folder.path(), &server, machine);
        text += &printed(waiting);
        interrupt(&again);
        let mut rest = String::new();
        again.stdout.take().expect("a pipe").read_to_string(&mut rest).expect("the rest");
        printed(again);
        assert_eq!(text + &rest, expected, "{release:?}");
    }
}

/// Interrupts a program as Ctrl-C does.
fn interrupt(child: &Child) {
    let status = Command::new("kill").args(["-s", "INT", &child.id().to_string()]).status().expect("runs kill");
    assert!(status.success());
}
