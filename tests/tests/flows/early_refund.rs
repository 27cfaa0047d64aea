//! A payment with a bug: it refunds before the outcome of the charge is known.

use shop::payments::{
    Charge, PaymentBegun, PaymentDeclined, PaymentRefunded, PaymentTaken, Payments, RefundBegun, RefundPayment,
    ReturnMoney, TakePayment,
};
use whizbang::prelude::*;

/// The payment of one order.
#[derive(Aggregate, Default)]
#[aggregate(
    domain = Payments,
    handles(TakePayment, RefundPayment),
    replies(Charge, ReturnMoney),
    applies(PaymentBegun, PaymentTaken, PaymentDeclined, RefundBegun, PaymentRefunded)
)]
pub(crate) struct EarlyRefund {
    cents: u64,
}

impl Handle<TakePayment> for EarlyRefund {
    fn handle(&self, take: TakePayment, effects: &mut Effects<Self>) -> Result<(), Rejection> {
        effects.record(PaymentBegun { cents: take.cents });
        effects.send(Charge { order: take.order, cents: take.cents });
        Ok(())
    }
}

impl Handle<RefundPayment> for EarlyRefund {
    fn handle(&self, refund: RefundPayment, effects: &mut Effects<Self>) -> Result<(), Rejection> {
        effects.record(RefundBegun {});
        effects.send(ReturnMoney { order: refund.order, cents: self.cents });
        Ok(())
    }
}

impl OnReply<Charge> for EarlyRefund {
    fn on_reply(&self, reply: Result<String, Rejection>, effects: &mut Effects<Self>) {
        match reply {
            Ok(receipt) => effects.record(PaymentTaken { cents: self.cents, receipt }),
            Err(reason) => effects.record(PaymentDeclined { reason }),
        }
    }
}

impl OnReply<ReturnMoney> for EarlyRefund {
    fn on_reply(&self, reply: Result<String, Rejection>, effects: &mut Effects<Self>) {
        if let Ok(receipt) = reply {
            effects.record(PaymentRefunded { cents: self.cents, receipt });
        }
    }
}

impl Apply<PaymentBegun> for EarlyRefund {
    fn apply(&mut self, begun: &PaymentBegun) {
        self.cents = begun.cents;
    }
}

impl Apply<PaymentTaken> for EarlyRefund {
    fn apply(&mut self, _: &PaymentTaken) {}
}

impl Apply<PaymentDeclined> for EarlyRefund {
    fn apply(&mut self, _: &PaymentDeclined) {}
}

impl Apply<RefundBegun> for EarlyRefund {
    fn apply(&mut self, _: &RefundBegun) {}
}

impl Apply<PaymentRefunded> for EarlyRefund {
    fn apply(&mut self, _: &PaymentRefunded) {}
}
