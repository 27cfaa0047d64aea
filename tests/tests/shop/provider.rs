//! A payment provider that declines, answers late, loses answers or does not answer: no customer pays twice or for nothing.

use std::collections::BTreeMap;

use shop::payments::{Behavior, Habits};

use crate::recount::Recount;
use crate::shop::{Shop, assert_balanced};

#[test]
fn provider_faults_charge_no_customer_twice_or_for_nothing() {
    let shop = Shop::new();
    assert_balanced(&shop.report(&["--orders", "1000", "--seed", "2"], 0), 1000);
    let recount = Recount::of(&shop.data());
    recount.assert_holds();

    let mut met = BTreeMap::new();
    for (order, story) in &recount.orders {
        // Another service may have rejected the order before or after the payment.
        let reason = story.cancelled_because.as_deref();
        if reason.is_some_and(|reason| reason.starts_with("inventory") || reason.starts_with("shipping")) {
            continue;
        }
        let behavior = Habits::default().behavior(order);
        let charges = recount.ledger.get(order).cloned().unwrap_or_default();
        match behavior {
            Behavior::Declines => assert_eq!((reason, charges.as_slice()), (Some("payments.declined"), [].as_slice())),
            // The answer arrived after the order was cancelled: the payment was refunded.
            Behavior::FallsSilent => {
                assert_eq!(reason, Some("payments.overdue"), "{order}");
                assert_eq!((charges.len(), charges.iter().sum::<i64>()), (2, 0), "{order}: {charges:?}");
                assert_eq!((story.taken.len(), &story.taken), (1, &story.refunded), "{order}");
            }
            Behavior::Good | Behavior::AnswersLate | Behavior::LosesAnswer => {
                assert_eq!((reason, charges.len()), (None, 1), "{order} ({behavior:?}): {charges:?}");
            }
        }
        *met.entry(format!("{behavior:?}")).or_insert(0) += 1;
    }
    assert_eq!(met.len(), 5, "the provider showed every behavior: {met:?}");
}
