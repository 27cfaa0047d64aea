//! Two services with different types of one message, on real servers.

use whizbang::testing::bridge::run;
use whizbang_tests::nats::NatsServer;

use crate::services::bridge;
use crate::{BOTH, contracts};

#[test]
fn drifted_messages_of_callers_are_refused() {
    for release in BOTH {
        run(async {
            let server = NatsServer::start(release);
            contracts::callers_are_refused(async || bridge(&server.url()).await).await;
        });
        run(async {
            let server = NatsServer::start(release);
            contracts::compatible_json_passes(async || bridge(&server.url()).await).await;
        });
    }
}

#[test]
fn drifted_commands_of_actors_become_dead_letters() {
    for release in BOTH {
        for by_its_reply in [false, true] {
            run(async {
                let server = NatsServer::start(release);
                let bridge = async || bridge(&server.url()).await;
                contracts::command_of_an_actor_becomes_a_dead_letter(bridge, by_its_reply).await;
            });
        }
        run(async {
            let server = NatsServer::start(release);
            contracts::command_of_an_actor_is_replied_to(async || bridge(&server.url()).await).await;
        });
    }
}

#[test]
fn drifted_events_halt_and_compatible_ones_are_read() {
    for release in BOTH {
        run(async {
            let server = NatsServer::start(release);
            contracts::drifted_events_halt(async || bridge(&server.url()).await).await;
        });
        run(async {
            let server = NatsServer::start(release);
            contracts::compatible_events_are_read(async || bridge(&server.url()).await).await;
        });
    }
}
