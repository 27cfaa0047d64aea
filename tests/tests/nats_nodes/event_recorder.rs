//! A projection that records every event with its position, for the checker.

use whizbang::message::{Name, ShardId};
use whizbang::prelude::*;
use whizbang_tests::checker::Applied;

use crate::bank::{Closed, Deposited, TransferDone, TransferFailed, TransferStarted, Withdrawn};

/// Domain, shard, position, key and version of an event.
type Entry = (String, u16, u64, String, u64);

/// Requests the recorded events, from an index on.
#[derive(Query, Serialize, Deserialize)]
#[query(domain = Diaries, reply = Vec<Entry>)]
pub(crate) struct Read {
    from: usize,
}

#[derive(Domain)]
pub(crate) struct Diaries;

#[derive(Projection, Default, Serialize, Deserialize)]
#[projection(projects(Deposited, Withdrawn, Closed, TransferStarted, TransferDone, TransferFailed), answers(Read))]
pub(crate) struct EventRecorder {
    entries: Vec<Entry>,
}

impl EventRecorder {
    fn note(&mut self, about: &EventContext) {
        let domain = about.domain.to_string();
        self.entries.push((domain, about.shard, about.position, about.key.clone(), about.version));
    }
}

impl Project<Deposited> for EventRecorder {
    fn project(&mut self, _: &Deposited, about: &EventContext) {
        self.note(about);
    }
}

impl Project<Withdrawn> for EventRecorder {
    fn project(&mut self, _: &Withdrawn, about: &EventContext) {
        self.note(about);
    }
}

impl Project<Closed> for EventRecorder {
    fn project(&mut self, _: &Closed, about: &EventContext) {
        self.note(about);
    }
}

impl Project<TransferStarted> for EventRecorder {
    fn project(&mut self, _: &TransferStarted, about: &EventContext) {
        self.note(about);
    }
}

impl Project<TransferDone> for EventRecorder {
    fn project(&mut self, _: &TransferDone, about: &EventContext) {
        self.note(about);
    }
}

impl Project<TransferFailed> for EventRecorder {
    fn project(&mut self, _: &TransferFailed, about: &EventContext) {
        self.note(about);
    }
}

impl Answer<Read> for EventRecorder {
    fn answer(&self, read: Read) -> Vec<Entry> {
        // As many as fit into a message.
        self.entries.iter().skip(read.from).take(5_000).cloned().collect()
    }
}

/// Returns all recorded events.
pub(crate) async fn read(client: &Client) -> Vec<Applied> {
    let mut entries: Vec<Entry> = Vec::new();
    loop {
        let page = client.query(Read { from: entries.len() }).await.expect("answers");
        if page.is_empty() {
            break;
        }
        entries.extend(page);
    }
    let applied = |(domain, shard, position, key, version): Entry| Applied {
        shard: ShardId::new(Name::new(&domain).expect("a name"), shard),
        position,
        key,
        version,
    };
    entries.into_iter().map(applied).collect()
}
