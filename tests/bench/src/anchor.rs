//! The anchors of turns in memory: raw actix actors.

use actix::{Actor, Addr, Context, Handler, Message};

use crate::account::Deposit;

/// A raw actix actor that replies immediately.
#[derive(Default)]
pub(crate) struct Echo {
    cents: u64,
}

impl Actor for Echo {
    type Context = Context<Self>;
}

/// The same command, as a raw actix message.
pub(crate) struct Ping(pub(crate) Deposit);

impl Message for Ping {
    type Result = u64;
}

impl Handler<Ping> for Echo {
    type Result = u64;

    fn handle(&mut self, ping: Ping, _ctx: &mut Self::Context) -> u64 {
        self.cents += ping.0.cents;
        self.cents
    }
}

pub(crate) fn echoes(count: usize) -> Vec<Addr<Echo>> {
    (0..count).map(|_| Echo::default().start()).collect()
}
