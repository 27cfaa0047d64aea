//! The payment of one order: charged at most once and refunded at most once.

use whizbang::prelude::*;

use super::{
    Charge, PaymentBegun, PaymentDeclined, PaymentRefunded, PaymentTaken, Payments, RefundBegun, RefundPayment,
    ReturnMoney, TakePayment,
};

/// The payment of one order.
#[derive(Aggregate, Default)]
#[aggregate(
    domain = Payments,
    handles(TakePayment, RefundPayment),
    replies(Charge, ReturnMoney),
    applies(PaymentBegun, PaymentTaken, PaymentDeclined, RefundBegun),
    records(PaymentRefunded)
)]
pub struct Payment {
    stage: Stage,
    cents: u64,
    refund: bool,
}

#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum Stage {
    #[default]
    New,
    Begun,
    Taken,
    Declined,
}

impl Handle<TakePayment> for Payment {
    fn handle(&self, take: TakePayment, effects: &mut Effects<Self>) -> Result<(), Rejection> {
        if self.stage != Stage::New {
            return Err(Rejection::new("payments.doubled", "this order has a payment already"));
        }
        effects.record(PaymentBegun { cents: take.cents });
        effects.send(Charge { order: take.order, cents: take.cents });
        Ok(())
    }
}

impl OnReply<Charge> for Payment {
    fn on_reply(&self, reply: Result<String, Rejection>, effects: &mut Effects<Self>) {
        match reply {
            Ok(receipt) => {
                effects.record(PaymentTaken { cents: self.cents, receipt });
                // The order was cancelled while the charge was in progress.
                if self.refund {
                    self.refund_now(effects);
                }
            }
            Err(reason) => effects.record(PaymentDeclined { reason }),
        }
    }
}

impl Handle<RefundPayment> for Payment {
    fn handle(&self, _: RefundPayment, effects: &mut Effects<Self>) -> Result<(), Rejection> {
        if self.refund {
            return Ok(());
        }
        match self.stage {
            Stage::New | Stage::Declined => {}
            // The outcome of the charge is not known yet. Its reply triggers the refund.
            Stage::Begun => effects.record(RefundBegun),
            Stage::Taken => {
                effects.record(RefundBegun);
                self.refund_now(effects);
            }
        }
        Ok(())
    }
}

impl OnReply<ReturnMoney> for Payment {
    fn on_reply(&self, reply: Result<String, Rejection>, effects: &mut Effects<Self>) {
        if let Ok(receipt) = reply {
            effects.record(PaymentRefunded { cents: self.cents, receipt });
        }
    }
}

impl Payment {
    fn refund_now(&self, effects: &mut Effects<Self>) {
        effects.send(ReturnMoney { order: effects.key().to_owned(), cents: self.cents });
    }
}

impl Apply<PaymentBegun> for Payment {
    fn apply(&mut self, begun: &PaymentBegun) {
        self.stage = Stage::Begun;
        self.cents = begun.cents;
    }
}

impl Apply<PaymentTaken> for Payment {
    fn apply(&mut self, _: &PaymentTaken) {
        self.stage = Stage::Taken;
    }
}

impl Apply<PaymentDeclined> for Payment {
    fn apply(&mut self, _: &PaymentDeclined) {
        self.stage = Stage::Declined;
    }
}

impl Apply<RefundBegun> for Payment {
    fn apply(&mut self, _: &RefundBegun) {
        self.refund = true;
    }
}
