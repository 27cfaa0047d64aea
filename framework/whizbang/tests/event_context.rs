//! The context of a handler: where an event was recorded, which command is answered, and to which domain a dead letter
//! belongs if several have an actor of the same name.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use whizbang::Retry;
use whizbang::message::MessageId;
use whizbang::prelude::*;

#[derive(Domain)]
#[domain(name = "springs")]
struct Springs;

#[derive(Command, Serialize, Deserialize)]
#[command(domain = Springs, reply = u64)]
struct Draw {
    #[key]
    spring: String,
    liters: u64,
}

#[derive(Event, Serialize, Deserialize)]
#[event(domain = Springs)]
struct Drawn {
    liters: u64,
}

#[derive(Aggregate, Default)]
#[aggregate(domain = Springs, handles(Draw), records(Drawn))]
struct Spring;

impl Handle<Draw> for Spring {
    fn handle(&self, draw: Draw, effects: &mut Effects<Self>) -> Result<u64, Rejection> {
        assert_eq!(
            (effects.event_context(), effects.replied_command()),
            (None, None),
            "a command is neither event nor reply"
        );
        effects.record(Drawn { liters: draw.liters });
        Ok(draw.liters)
    }
}

#[derive(Domain)]
#[domain(name = "houses")]
struct Houses;

#[derive(Command, Serialize, Deserialize)]
#[command(domain = Houses)]
struct Fill {
    #[key]
    house: String,
}

#[derive(Command, Serialize, Deserialize)]
#[command(domain = Houses, reply = Vec<String>)]
struct Read {
    #[key]
    house: String,
}

#[derive(Event, Serialize, Deserialize)]
#[event(domain = Houses)]
struct Asked {
    command: MessageId,
    what: String,
}

#[derive(Event, Serialize, Deserialize)]
#[event(domain = Houses)]
struct Noted {
    what: String,
}

/// Sends the same command several times, and records the reply to each.
#[derive(Saga, Default)]
#[saga(domain = Houses, handles(Fill, Read), reacts(Drawn), replies(Draw), applies(Asked, Noted))]
struct House {
    asked: Vec<(MessageId, String)>,
    notes: Vec<String>,
}

impl Handle<Fill> for House {
    fn handle(&self, _: Fill, effects: &mut Effects<Self>) -> Result<(), Rejection> {
        for (what, liters) in [("bath", 100), ("kettle", 2), ("pot", 2)] {
            let command = effects.send(Draw { spring: what.to_owned(), liters }).id();
            effects.record(Asked { command, what: what.to_owned() });
        }
        Ok(())
    }
}

impl Handle<Read> for House {
    fn handle(&self, _: Read, _: &mut Effects<Self>) -> Result<Vec<String>, Rejection> {
        Ok(self.notes.clone())
    }
}

impl OnReply<Draw> for House {
    fn on_reply(&self, reply: Result<u64, Rejection>, effects: &mut Effects<Self>) {
        let answered = effects.replied_command().expect("a reply answers a command");
        let (_, what) = self.asked.iter().find(|(command, _)| *command == answered).expect("it was sent");
        effects.record(Noted { what: format!("{what} has {}", reply.unwrap_or(0)) });
        assert_eq!(effects.event_context(), None, "a reply is not an event");
    }
}

impl React<Drawn> for House {
    fn key(_: &Drawn, _: &EventContext) -> Option<String> {
        Some("home".to_owned())
    }

    fn react(&self, _: Drawn, effects: &mut Effects<Self>) {
        let context = effects.event_context().expect("an event was recorded somewhere").clone();
        assert_eq!(effects.replied_command(), None, "an event answers nothing");
        effects.record(Noted { what: format!("{} of {} {}", context.version, context.domain, context.key) });
    }
}

impl Apply<Asked> for House {
    fn apply(&mut self, asked: &Asked) {
        self.asked.push((asked.command, asked.what.clone()));
    }
}

impl Apply<Noted> for House {
    fn apply(&mut self, noted: &Noted) {
        self.notes.push(noted.what.clone());
    }
}

async fn notes(node: &Node) -> Vec<String> {
    let mut notes = node.client().send(Read { house: "home".to_owned() }).await.unwrap();
    notes.sort();
    notes
}

#[whizbang::test]
async fn replies_name_their_command_and_events_their_origin() {
    let store = MemoryStore::new();
    let start = || Node::builder("water", store.clone()).threads(0).aggregate::<Spring>().saga::<House>().start();
    let node = start().await.unwrap();
    node.client().send(Fill { house: "home".to_owned() }).await.unwrap();
    node.wait_idle().await;
    let expected =
        ["1 of springs bath", "1 of springs kettle", "1 of springs pot", "bath has 100", "kettle has 2", "pot has 2"];
    assert_eq!(notes(&node).await, expected);
    drop(node);
    let node = start().await.unwrap();
    assert_eq!(notes(&node).await, expected, "the rebuilt state is the same");
    // A later draw is noted once, with its own version.
    node.client().send(Draw { spring: "pot".to_owned(), liters: 1 }).await.unwrap();
    node.wait_idle().await;
    assert_eq!(notes(&node).await.iter().filter(|note| *note == "2 of springs pot").count(), 1);
}

/// True if the listeners panic on an event.
static PANICS: AtomicBool = AtomicBool::new(false);

/// A domain with an actor called `listener` that handles `Drawn`.
macro_rules! listener {
    ($domain:ident, $domain_name:literal, $listener:ident, $heard:ident, $ask:ident) => {
        #[derive(Domain)]
        #[domain(name = $domain_name)]
        struct $domain;

        #[derive(Event, Serialize, Deserialize)]
        #[event(domain = $domain)]
        struct $heard {
            liters: u64,
        }

        #[derive(Command, Serialize, Deserialize)]
        #[command(domain = $domain, reply = u64)]
        struct $ask {
            #[key]
            spring: String,
        }

        #[derive(Saga, Default)]
        #[saga(domain = $domain, name = "listener", handles($ask), reacts(Drawn), applies($heard))]
        struct $listener {
            liters: u64,
        }

        impl React<Drawn> for $listener {
            fn react(&self, drawn: Drawn, effects: &mut Effects<Self>) {
                assert!(!PANICS.load(Ordering::Relaxed), "planned: the handler panics");
                effects.record($heard { liters: drawn.liters });
            }
        }

        impl Handle<$ask> for $listener {
            fn handle(&self, _: $ask, _: &mut Effects<Self>) -> Result<u64, Rejection> {
                Ok(self.liters)
            }
        }

        impl Apply<$heard> for $listener {
            fn apply(&mut self, heard: &$heard) {
                self.liters += heard.liters;
            }
        }
    };
}

listener!(East, "east", EastListener, HeardInTheEast, AskEast);
listener!(West, "west", WestListener, HeardInTheWest, AskWest);

#[whizbang::test]
async fn dead_letter_is_redriven_in_its_own_domain() {
    let node = Node::builder("water", MemoryStore::new()).threads(0).aggregate::<Spring>();
    let node = node.saga::<EastListener>().saga::<WestListener>();
    let retry = Retry { attempts: 2, first: Duration::from_millis(1), longest: Duration::from_millis(2) };
    let node = node.retry(retry).start().await.unwrap();
    PANICS.store(true, Ordering::Relaxed);
    node.client().send(Draw { spring: "deep".to_owned(), liters: 7 }).await.unwrap();
    node.wait_idle().await;
    PANICS.store(false, Ordering::Relaxed);

    let letters = node.dead_letters().await.unwrap();
    let domain = |letter: &whizbang::store::DeadLetter| letter.envelope.to.as_ref().unwrap().domain.to_string();
    let mut domains: Vec<_> = letters.iter().map(domain).collect();
    domains.sort();
    assert_eq!(domains, ["east", "west"]);

    let west = letters.iter().find(|letter| domain(letter) == "west").unwrap();
    node.redrive(west).await.unwrap();
    let left = node.dead_letters().await.unwrap();
    assert_eq!(left.iter().map(domain).collect::<Vec<_>>(), ["east"]);
    assert_eq!(node.client().send(AskWest { spring: "deep".to_owned() }).await.unwrap(), 7);
    node.discard(&left[0]).await.unwrap();
    assert_eq!(node.dead_letters().await.unwrap(), []);
    // Discarded: the event is not applied there, and the key handles the next message.
    assert_eq!(node.client().send(AskEast { spring: "deep".to_owned() }).await.unwrap(), 0);
}
