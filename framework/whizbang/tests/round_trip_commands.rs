//! Commands that serde writes and cannot read, or reads as another value: refused by their sender, or handled as they read,
//! whichever way they take.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use whizbang::bridge::loopback::LoopbackHub;
use whizbang::layer::Layer;
use whizbang::prelude::{
    Aggregate, Client, Command, Domain, Effects, Event, Handle, Job, MemoryStore, Node, Perform, Rejection, WorkError,
    Worker,
};
use whizbang::{Error, SendError};

/// Types of another crate, whose attributes are not visible to our derives.
mod foreign {
    use serde::{Deserialize, Serialize};

    #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
    #[serde(tag = "kind")]
    pub(crate) enum Tagged {
        Card { number: u64 },
    }

    #[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
    pub(crate) struct Hidden {
        pub(crate) shown: u64,
        #[serde(skip)]
        pub(crate) hidden: u64,
    }
}

use foreign::{Hidden, Tagged};

#[derive(Domain)]
struct Parcels;

/// Returns the hidden number that the handler sees.
#[derive(Command, Serialize, Deserialize)]
#[command(domain = Parcels, reply = u64)]
struct Carry {
    #[key]
    to: String,
    hidden: Hidden,
}

/// Cannot be read.
#[derive(Command, Serialize, Deserialize)]
#[command(domain = Parcels)]
struct Leave {
    #[key]
    to: String,
    tagged: Tagged,
}

/// Has an actor send a [`Leave`].
#[derive(Command, Serialize, Deserialize)]
#[command(domain = Parcels)]
struct Relay {
    #[key]
    by: String,
}

/// Has a job send a [`Leave`].
#[derive(Command, Serialize, Deserialize)]
#[command(domain = Parcels)]
struct Hire {
    #[key]
    by: String,
}

#[derive(Event, Serialize, Deserialize)]
#[event(domain = Parcels)]
struct Carried {}

#[derive(Aggregate, Default)]
#[aggregate(domain = Parcels, handles(Carry, Leave, Relay), records(Carried))]
struct Depot;

impl Handle<Carry> for Depot {
    fn handle(&self, carry: Carry, effects: &mut Effects<Self>) -> Result<u64, Rejection> {
        effects.record(Carried {});
        Ok(carry.hidden.hidden)
    }
}

impl Handle<Leave> for Depot {
    fn handle(&self, _: Leave, effects: &mut Effects<Self>) -> Result<(), Rejection> {
        effects.record(Carried {});
        Ok(())
    }
}

impl Handle<Relay> for Depot {
    fn handle(&self, relay: Relay, effects: &mut Effects<Self>) -> Result<(), Rejection> {
        effects.record(Carried {});
        effects.send(leave_at(&relay.by));
        Ok(())
    }
}

#[derive(Worker)]
#[worker(domain = Parcels, performs(Hire))]
struct Courier;

impl Perform<Hire> for Courier {
    async fn perform(&self, hire: Hire, job: Job) -> Result<(), WorkError> {
        job.send(leave_at(&hire.by));
        Ok(())
    }
}

fn leave_at(to: &str) -> Leave {
    Leave { to: to.to_owned(), tagged: Tagged::Card { number: 7 } }
}

/// A layer has all commands of its client encoded.
struct Encoded;

impl Layer for Encoded {}

#[whizbang::test]
async fn handlers_see_commands_as_they_read_on_any_path() -> Result<(), Error> {
    let hub = LoopbackHub::new();
    let builder = Node::builder("depot", MemoryStore::new()).threads(0).aggregate::<Depot>().bridge(hub.bridge());
    let node = builder.start().await?;
    let (local, remote) = (node.client(), Client::connect("shop", hub.bridge()).await?);
    let limit = Duration::from_secs(10);
    // The first command activates its key, the later ones are handled inline.
    for _ in 0..2 {
        let carry = || Carry { to: "a".to_owned(), hidden: Hidden { shown: 10, hidden: 5 } };
        let layered = local.layer(Encoded);
        assert_eq!(local.send(carry()).await?, 0);
        assert_eq!(local.send(carry()).deadline(limit).await?, 0);
        assert_eq!(local.send(carry()).id(local.new_id()).await?, 0);
        assert_eq!(layered.send(carry()).await?, 0);
        assert_eq!(remote.send(carry()).deadline(limit).await?, 0);
    }
    let events = node.metrics().events;
    assert_eq!(events, 10);
    for _ in 0..2 {
        let results = [
            local.send(leave_at("a")).await,
            local.send(leave_at("a")).deadline(limit).await,
            local.send(leave_at("a")).id(local.new_id()).await,
            local.layer(Encoded).send(leave_at("a")).await,
            remote.send(leave_at("a")).deadline(limit).await,
            local.post(leave_at("a")).await,
            remote.post(leave_at("a")).await,
        ];
        for result in results {
            // Refused by the sender: nothing has left it.
            assert!(matches!(result, Err(SendError::Encode(_))), "{result:?}");
        }
    }
    assert_eq!(node.metrics().events, events);
    remote.disconnect().await;
    node.stop().await
}

#[whizbang::test]
async fn unreadable_commands_of_actors_and_jobs_are_not_sent() -> Result<(), Error> {
    let node =
        Node::builder("depot", MemoryStore::new()).threads(0).aggregate::<Depot>().worker(Courier).start().await?;
    let client = node.client();
    let failed = client.send(Relay { by: "a".to_owned() }).await.expect_err("the turn fails");
    assert!(matches!(&failed, SendError::Failed { reason } if reason.contains("`Leave`")), "{failed:?}");
    node.wait_idle().await;
    assert_eq!((node.metrics().events, node.dead_letters().await?.len()), (0, 0));
    let failed = client.post(Hire { by: "a".to_owned() }).await.expect_err("the job fails");
    assert!(matches!(&failed, SendError::DeadLetter { reason, .. } if reason.contains("`Leave`")), "{failed:?}");
    node.wait_idle().await;
    // The job itself is the dead letter, not the message that it sends.
    let letters = node.dead_letters().await?;
    assert_eq!(letters.iter().map(|letter| letter.envelope.name.as_str()).collect::<Vec<_>>(), ["Hire"]);
    assert_eq!(node.metrics().events, 0);
    node.stop().await
}
