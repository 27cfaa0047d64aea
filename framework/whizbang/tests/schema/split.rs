//! An event of an older version that was split into several.

use whizbang::message::{Name, ShardId};
use whizbang::prelude::*;
use whizbang::store::Store;

use super::shapes::first;
use super::start;

program!(
    split,
    (name = "bank"),
    {
        #[event(domain = Bank, version = 2, split(1 = PaidV1))]
        pub struct Paid {
            cents: u64,
        }
        #[derive(Deserialize)]
        pub struct PaidV1 {
            from: u64,
            to: u64,
        }
        impl From<PaidV1> for Vec<Paid> {
            fn from(old: PaidV1) -> Self {
                (0..old.to + 1).map(|nth| Paid { cents: old.from + nth }).collect()
            }
        }
        impl Paid {
            fn new(cents: u64) -> Self {
                Self { cents }
            }
        }
    },
    Paid,
    |paid| format!("{} ", paid.cents)
);

/// The events that replace `split`.
mod followers {
    use std::sync::Mutex;

    use whizbang::prelude::*;

    use super::split::{Bank, Paid};

    pub static KEYS: Mutex<Vec<whizbang::message::MessageId>> = Mutex::new(Vec::new());

    #[derive(Event, Serialize, Deserialize)]
    #[event(domain = Bank)]
    pub struct Counted {}

    #[derive(Query, Serialize, Deserialize)]
    #[query(domain = Bank, reply = (u64, u64))]
    pub struct Counts {}

    #[derive(Projection, Default, Serialize, Deserialize)]
    #[projection(projects(Paid, Counted), answers(Counts))]
    pub struct Count {
        paid: u64,
        counted: u64,
    }

    impl Project<Paid> for Count {
        fn project(&mut self, _: &Paid, _: &EventContext) {
            self.paid += 1;
        }
    }

    impl Project<Counted> for Count {
        fn project(&mut self, _: &Counted, _: &EventContext) {
            self.counted += 1;
        }
    }

    impl Answer<Counts> for Count {
        fn answer(&self, _: Counts) -> (u64, u64) {
            (self.paid, self.counted)
        }
    }

    #[derive(Aggregate, Default)]
    #[aggregate(domain = Bank, reacts(Paid), records(Counted))]
    pub struct Counter {}

    impl React<Paid> for Counter {
        fn react(&self, _: Paid, effects: &mut Effects<Self>) {
            effects.record(Counted {});
        }
    }

    #[derive(Worker)]
    #[worker(domain = Bank, on(Paid))]
    pub struct Mailer;

    impl OnEvent<Paid> for Mailer {
        async fn on_event(&self, _: Paid, job: Job) -> Result<(), WorkError> {
            KEYS.lock().unwrap().push(job.idempotency_key);
            Ok(())
        }
    }
}

#[whizbang::test]
async fn split_event_is_applied_as_several() {
    let store = ran!(first);
    let builder = split::host(Node::builder("bank", store.clone()).threads(0));
    let builder = builder.aggregate::<followers::Counter>().projection::<followers::Count>().worker(followers::Mailer);
    let node = builder.start().await.unwrap();
    assert_eq!(split::pay(&node, 7).await.unwrap(), "250 251 ");
    assert_eq!(split::pay(&node, 0).await.unwrap(), "250 251 7 ");
    node.wait_idle().await;
    assert_eq!(node.client().query(followers::Counts {}).await.unwrap(), (3, 3));
    let keys: std::collections::BTreeSet<_> = followers::KEYS.lock().unwrap().iter().copied().collect();
    assert_eq!(keys.len(), 3, "each has its own external effect: {keys:?}");
    // The versions of the stream are the stored ones.
    let mut versions = Vec::new();
    for number in 0..16 {
        let shard = ShardId::new(Name::new("bank").unwrap(), number);
        let events = store.read(&shard).await.unwrap().unwrap().events(0, 10).await.unwrap();
        versions.extend(events.iter().filter(|event| event.name.as_str() == "Paid").map(|event| event.stream_version));
    }
    assert_eq!(versions, [1, 2]);
    node.stop().await.unwrap();
}
