//! The upgrade of a service that shares its shards from now on: the consumer of all its shards is replaced.

use whizbang::bridge::StoreCard;
use whizbang::message::{Run, StoreId};
use whizbang::testing::bridge::cases::sample::{command, effects, shard};
use whizbang::testing::bridge::run;
use whizbang_tests::nats::NatsServer;

use crate::{BOTH, bank, consumers, exclusive_shop, shop, start, until};

const STREAM: &str = "whizbang_commands_shop";

#[test]
fn consumer_of_all_shards_is_replaced_and_nothing_is_lost() {
    for release in BOTH {
        run(async {
            let server = NatsServer::start(release);
            let started = |epoch| StoreCard::new(StoreId::from_u128(1), Run { epoch, nonce: epoch });
            let exclusive = exclusive_shop().store(started(1));
            let bank = start(&server, bank()).await;
            let old = start(&server, exclusive.clone()).await;
            let client = async_nats::connect(server.url()).await.expect("connects");
            assert_eq!(consumers(&client, STREAM).await, ["e-shop"]);
            old.stop().await;
            for sequence in 1..=40 {
                let to = shard("shop", (sequence % 4) as u16);
                bank.bridge.send(command(&shard("bank", 0), &to, sequence)).await.expect("sends");
            }
            let [one, two] =
                [start(&server, shop().store(started(2))).await, start(&server, shop().store(started(3))).await];
            for (number, node) in [&one, &two, &one, &two].into_iter().enumerate() {
                let number = u16::try_from(number).expect("fits");
                node.bridge.own(&shard("shop", number), 1).await.expect("owns");
            }
            let arrived =
                |node: &whizbang::testing::bridge::node::TestNode| node.inspect(|got| effects(&got.direct).len());
            until("all commands", async || arrived(&one) + arrived(&two) >= 40).await;
            assert_eq!((arrived(&one), arrived(&two)), (20, 20));
            let names = consumers(&client, STREAM).await;
            assert!(names.len() == 4 && names.iter().all(|name| name.ends_with("-e1")), "{names:?}");
            // The old version does not start beside the new one.
            let bridge = whizbang::bridge::nats::NatsBridge::connect(&server.url()).await.expect("connects");
            let bridge = std::sync::Arc::new(bridge) as std::sync::Arc<dyn whizbang::bridge::Bridge>;
            let again = whizbang::testing::bridge::node::TestNode::attach(bridge, exclusive, Default::default()).await;
            let error = again.map(drop).expect_err("is refused").to_string();
            assert!(error.contains("share their shards by leases"), "{error}");
            for node in [bank, one, two] {
                node.stop().await;
            }
        });
    }
}
