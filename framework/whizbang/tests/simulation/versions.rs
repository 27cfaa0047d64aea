//! Upgrades of services in a running simulated cluster.

use std::time::Duration;

use whizbang::prelude::*;
use whizbang::testing::sim::{PassedRun, RuleViolation, SimError};
use whizbang::testing::{Fault, FaultEvent, Flow, Sim, World};

#[derive(Domain)]
struct Desk;

#[derive(Domain)]
struct Archive;

/// The first version.
mod old {
    use super::*;

    #[derive(Command, Clone, Debug, Serialize, Deserialize)]
    #[command(domain = Desk, reply = u64)]
    pub(super) struct Write {
        #[key]
        pub(super) book: String,
        pub(super) pages: u64,
    }

    #[derive(Event, Clone, Debug, Serialize, Deserialize)]
    #[event(domain = Desk)]
    pub(super) struct Written {
        pub(super) pages: u64,
    }

    #[derive(Aggregate, Debug, Default)]
    #[aggregate(domain = Desk, name = "book", handles(Write), applies(Written))]
    pub(super) struct Book {
        pub(super) pages: u64,
    }

    impl Handle<Write> for Book {
        fn handle(&self, write: Write, effects: &mut Effects<Self>) -> Result<u64, Rejection> {
            effects.record(Written { pages: write.pages });
            Ok(self.pages + write.pages)
        }
    }

    impl Apply<Written> for Book {
        fn apply(&mut self, written: &Written) {
            self.pages += written.pages;
        }
    }

    /// Counts the pages of all books.
    #[derive(Saga, Debug, Default)]
    #[saga(domain = Archive, name = "shelf", reacts(Written), applies(Filed))]
    pub(super) struct Shelf {
        pub(super) pages: u64,
    }

    impl React<Written> for Shelf {
        fn key(_written: &Written, about: &EventContext) -> Option<String> {
            Some(about.key.to_owned())
        }

        fn react(&self, written: Written, effects: &mut Effects<Self>) {
            effects.record(Filed { pages: written.pages });
        }
    }

    impl Apply<Filed> for Shelf {
        fn apply(&mut self, filed: &Filed) {
            self.pages += filed.pages;
        }
    }

    #[derive(Event, Clone, Debug, Serialize, Deserialize)]
    #[event(domain = Archive)]
    pub(super) struct Filed {
        pub(super) pages: u64,
    }
}

/// The second version: messages with an additional field, and an actor with another name.
mod new {
    use super::*;

    #[derive(Command, Clone, Debug, Serialize, Deserialize)]
    #[command(domain = Desk, reply = u64, version = 2, upcast(1 = WriteV1))]
    pub(super) struct Write {
        #[key]
        pub(super) book: String,
        pub(super) author: String,
        pub(super) pages: u64,
    }

    #[derive(Deserialize)]
    pub(super) struct WriteV1 {
        book: String,
        pages: u64,
    }

    impl From<WriteV1> for Write {
        fn from(old: WriteV1) -> Self {
            Self { book: old.book, author: "unknown".to_owned(), pages: old.pages }
        }
    }

    #[derive(Event, Clone, Debug, Serialize, Deserialize)]
    #[event(domain = Desk, version = 2, upcast(1 = WrittenV1))]
    pub(super) struct Written {
        pub(super) author: String,
        pub(super) pages: u64,
    }

    #[derive(Deserialize)]
    pub(super) struct WrittenV1 {
        pages: u64,
    }

    impl From<WrittenV1> for Written {
        fn from(old: WrittenV1) -> Self {
            Self { author: "unknown".to_owned(), pages: old.pages }
        }
    }

    #[derive(Aggregate, Debug, Default)]
    #[aggregate(domain = Desk, name = "book", handles(Write), applies(Written))]
    pub(super) struct Book {
        pub(super) pages: u64,
    }

    impl Handle<Write> for Book {
        fn handle(&self, write: Write, effects: &mut Effects<Self>) -> Result<u64, Rejection> {
            effects.record(Written { author: write.author, pages: write.pages });
            Ok(self.pages + write.pages)
        }
    }

    impl Apply<Written> for Book {
        fn apply(&mut self, written: &Written) {
            self.pages += written.pages;
        }
    }

    #[derive(Saga, Debug, Default)]
    #[saga(domain = Archive, name = "rack", formerly = "shelf", reacts(Written), applies(Kept))]
    pub(super) struct Rack {
        pub(super) pages: u64,
    }

    impl React<Written> for Rack {
        fn key(_written: &Written, about: &EventContext) -> Option<String> {
            Some(about.key.to_owned())
        }

        fn react(&self, written: Written, effects: &mut Effects<Self>) {
            effects.record(Kept { pages: written.pages });
        }
    }

    impl Apply<Kept> for Rack {
        fn apply(&mut self, kept: &Kept) {
            self.pages += kept.pages;
        }
    }

    #[derive(Event, Clone, Debug, Serialize, Deserialize)]
    #[event(domain = Archive, formerly = "Filed")]
    pub(super) struct Kept {
        pub(super) pages: u64,
    }
}

const DESK: usize = 0;
const ARCHIVE: usize = 1;

fn described(sim: Sim) -> Sim {
    sim.service("desk", |node| node.aggregate::<old::Book>())
        .service("archive", |node| node.saga::<old::Shelf>())
        .version(ARCHIVE, |node| node.saga::<new::Rack>())
        .allow_open_sagas()
}

/// Both services have a second version.
fn library(sim: Sim) -> Sim {
    described(sim).version(DESK, |node| node.aggregate::<new::Book>())
}

fn write(book: &str, pages: u64) -> old::Write {
    old::Write { book: book.to_owned(), pages }
}

fn holds(run: Result<PassedRun, RuleViolation>) -> PassedRun {
    run.unwrap_or_else(|violation| panic!("{violation}\n{}\n{}", violation.actor_steps, violation.trace))
}

fn upgrade(service: usize, version: usize) -> Fault {
    Fault::Upgrade { service, version, down: Duration::from_millis(200) }
}

/// Returns the pages on the desk and in the archive, as the second version reads them.
fn pages(world: &World) -> (u64, u64) {
    let desk = world.states::<new::Book>().iter().map(|(_, book)| book.pages).sum();
    (desk, world.states::<new::Rack>().iter().map(|(_, rack)| rack.pages).sum())
}

#[test]
fn upgraded_services_read_data_of_first_version() {
    let run = holds(library(Sim::new(1)).run(async |world| {
        assert_eq!(world.send(write("a", 3)).await.unwrap(), 3);
        world.wait_idle().await;
        world.inject(&upgrade(ARCHIVE, 1)).await;
        assert_eq!(world.send(write("a", 4)).await.unwrap(), 7);
        world.wait_idle().await;
        world.inject(&upgrade(DESK, 1)).await;
        assert_eq!(world.send(write("a", 5)).await.unwrap(), 12, "a caller of the first version");
        let new = new::Write { book: "a".to_owned(), author: "ada".to_owned(), pages: 1 };
        assert_eq!(world.send(new).await.unwrap(), 13);
        world.wait_idle().await;
        assert_eq!(pages(world), (13, 13));
    }));
    assert_eq!(run.coverage.fault_events()[&FaultEvent::Upgraded], 2);
    assert!(run.coverage.of::<new::Rack>().event::<new::Written>().count() >= 2, "{}", run.coverage);
}

#[test]
fn new_event_version_waits_for_upgraded_subscriber() {
    let run = library(Sim::new(1)).run(async |world| {
        world.inject(&upgrade(DESK, 1)).await;
        assert_eq!(world.send(write("a", 3)).await.unwrap(), 3);
        let letter = async || {
            while world.dead_letters().is_empty() {
                world.sleep(Duration::from_millis(100)).await;
            }
            world.dead_letters().remove(0)
        };
        assert_eq!(letter().await.envelope.name.as_str(), "Written", "the first version cannot read it");
        world.inject(&upgrade(ARCHIVE, 1)).await;
        world.redrive(ARCHIVE, &letter().await).await.unwrap();
        world.wait_idle().await;
        assert_eq!(pages(world), (3, 3));
    });
    holds(run);
}

#[test]
fn rehosted_type_handles_missed_events() {
    let sim = described(Sim::new(1)).version(DESK, |node| node.aggregate::<new::Book>()).version(ARCHIVE, |node| {
        // No actor of the domain is hosted, and its name is retired.
        node.aggregate::<Empty>().retired("shelf").retired("Filed")
    });
    holds(sim.run(async |world| {
        assert_eq!(world.send(write("a", 3)).await.unwrap(), 3);
        world.wait_idle().await;
        world.inject(&upgrade(ARCHIVE, 2)).await;
        assert_eq!(world.send(write("a", 4)).await.unwrap(), 7);
        world.wait_idle().await;
        assert_eq!(pages(world), (7, 3));
        world.inject(&upgrade(ARCHIVE, 0)).await;
        world.wait_idle().await;
        assert_eq!(pages(world), (7, 7));
    }));
}

#[derive(Command, Clone, Debug, Serialize, Deserialize)]
#[command(domain = Archive)]
struct Dust {
    #[key]
    room: String,
}

/// An actor without subscriptions.
#[derive(Aggregate, Debug, Default)]
#[aggregate(domain = Archive, name = "empty", handles(Dust))]
struct Empty {}

impl Handle<Dust> for Empty {
    fn handle(&self, _dust: Dust, _effects: &mut Effects<Self>) -> Result<(), Rejection> {
        Ok(())
    }
}

#[test]
fn upgrade_to_a_missing_version_is_an_error() {
    let run = described(Sim::new(1)).fault(Duration::ZERO, upgrade(DESK, 1)).run(async |_| panic!("it is not run"));
    let violation = run.expect_err("the desk has one version");
    assert!(matches!(violation.setup_error.as_deref(), Some(SimError::MissingVersion { .. })), "{violation}");
}

#[test]
fn books_hold_while_their_archive_is_upgraded() {
    let step = (0..3u8, 1..9u64);
    let flow = Flow::new("library", described, step, 1..12, async |world: &World, (book, pages)| {
        world.send(write(&format!("book{book}"), pages)).await.expect("it is written");
    });
    let flow = flow.no_regressions().at_end(|world, steps| {
        let written = steps.iter().map(|(_, pages)| *pages).sum::<u64>();
        if pages(world) == (written, written) { Ok(()) } else { Err(format!("{:?} of {written}", pages(world))) }
    });
    let coverage = flow.check(0..100);
    assert!(coverage.faults()["Upgrade"].fired > 20, "{:?}", coverage.faults()["Upgrade"]);
}
