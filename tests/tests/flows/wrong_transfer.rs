//! Transfers with one bug each. All of them must be found.

use std::time::Duration;

use whizbang::prelude::*;
use whizbang::testing::{Flow, Sim};

use crate::assert_found_and_short;
use crate::bank::{Account, Deposit, StartTransfer, TransferDone, TransferStarted, Transfers, Withdraw, Withdrawn};
use crate::bank_transfers::{money_is_conserved, perform, steps};

#[derive(Document, Debug, Serialize, Deserialize)]
#[document(domain = Transfers)]
struct Overdue {}

/// A bug in the transfer.
#[derive(Clone, Copy, PartialEq)]
enum Bug {
    None,
    /// The withdrawn money is not returned if the deposit is rejected.
    RefundForgotten,
    /// The money is returned when the timer fires, before the outcome of the withdrawal is known.
    RefundBeforeItIsKnown,
    /// The transfer does not end when it is done, and its timer fires.
    TimerAfterTheEnd,
    /// The withdrawal is not named after its transfer, and no timer ends it.
    NotDerived,
}

// rustfmt would indent the attribute further on each run.
#[rustfmt::skip]
macro_rules! transfer {
    ($saga:ident, $bug:expr) => {
        #[derive(Saga, Debug, Default)]
        #[saga(
            domain = Transfers,
            handles(StartTransfer),
            applies(TransferStarted, TransferDone),
            reacts(Withdrawn),
            replies(Deposit, Withdraw),
            timers(Overdue)
        )]
        struct $saga {
            from: String,
            to: String,
            cents: u64,
        }

        impl Handle<StartTransfer> for $saga {
            fn handle(&self, start: StartTransfer, effects: &mut Effects<Self>) -> Result<(), Rejection> {
                let StartTransfer { mut transfer, from, to, cents } = start;
                if $bug == Bug::NotDerived {
                    transfer = effects.new_id().to_string();
                }
                let sent = effects.send(Withdraw { account: from.clone(), cents, transfer });
                if $bug != Bug::RefundForgotten && $bug != Bug::RefundBeforeItIsKnown {
                    sent.compensate_with(Deposit { account: from.clone(), cents });
                }
                if $bug != Bug::NotDerived {
                    effects.set_timer(&Overdue {}, Duration::from_secs(10));
                }
                effects.record(TransferStarted { from, to, cents });
                Ok(())
            }
        }

        impl React<Withdrawn> for $saga {
            fn key(event: &Withdrawn, _about: &EventContext) -> Option<String> {
                (!event.transfer.is_empty()).then(|| event.transfer.clone())
            }

            fn react(&self, event: Withdrawn, effects: &mut Effects<Self>) {
                if !self.to.is_empty() {
                    if $bug != Bug::TimerAfterTheEnd {
                        effects.clear_timer::<Overdue>();
                    }
                    effects.send(Deposit { account: self.to.clone(), cents: event.cents });
                }
            }
        }

        impl OnReply<Withdraw> for $saga {
            fn on_reply(&self, reply: Result<u64, Rejection>, effects: &mut Effects<Self>) {
                if reply.is_err() {
                    effects.complete();
                }
            }
        }

        impl OnReply<Deposit> for $saga {
            fn on_reply(&self, reply: Result<u64, Rejection>, effects: &mut Effects<Self>) {
                match reply {
                    Err(_) if $bug == Bug::RefundBeforeItIsKnown => {
                        effects.send(Deposit { account: self.from.clone(), cents: self.cents });
                        effects.complete();
                    }
                    Err(_) => {
                        effects.compensate();
                    }
                    Ok(_) if $bug == Bug::TimerAfterTheEnd => effects.record(TransferDone {}),
                    Ok(_) => {
                        effects.record(TransferDone {});
                        effects.complete();
                    }
                }
            }
        }

        impl OnTimer<Overdue> for $saga {
            fn on_timer(&self, _: Overdue, effects: &mut Effects<Self>) {
                if $bug == Bug::RefundBeforeItIsKnown {
                    effects.send(Deposit { account: self.from.clone(), cents: self.cents });
                    effects.complete();
                } else {
                    effects.compensate();
                }
            }
        }

        impl Apply<TransferStarted> for $saga {
            fn apply(&mut self, started: &TransferStarted) {
                self.from = started.from.clone();
                self.to = started.to.clone();
                self.cents = started.cents;
            }
        }

        impl Apply<TransferDone> for $saga {
            fn apply(&mut self, _: &TransferDone) {}
        }
    };
}

transfer!(Right, Bug::None);
transfer!(Forgetful, Bug::RefundForgotten);
transfer!(Hasty, Bug::RefundBeforeItIsKnown);
transfer!(Alarmed, Bug::TimerAfterTheEnd);
transfer!(Nameless, Bug::NotDerived);

macro_rules! flow {
    ($name:literal, $saga:ident) => {{
        let cluster = |sim: Sim| {
            sim.service("accounts", |node| node.aggregate::<Account>())
                .service("transfers", |node| node.saga::<$saga>())
        };
        Flow::new($name, cluster, steps(), 1..12, perform).no_regressions().at_end(money_is_conserved)
    }};
}

#[test]
fn flow_without_a_bug_holds() {
    let coverage = flow!("right-transfer", Right).check(0..100);
    coverage.of::<Right>().timer::<Overdue>().while_open().at_least(1);
}

#[test]
fn forgotten_refund_is_found() {
    assert_found_and_short(&flow!("forgetful-transfer", Forgetful), "cents were paid in");
}

#[test]
fn refund_before_known_withdrawal_is_found() {
    assert_found_and_short(&flow!("hasty-transfer", Hasty), "cents were paid in");
}

#[test]
fn timer_after_the_end_is_found() {
    assert_found_and_short(&flow!("alarmed-transfer", Alarmed), "cents were paid in");
}

#[test]
fn withdrawal_without_derived_name_is_found() {
    assert_found_and_short(&flow!("nameless-transfer", Nameless), "has not ended");
}
