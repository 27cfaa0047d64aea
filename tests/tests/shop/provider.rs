//! The payment provider declines, answers late, loses an answer or says nothing: nobody pays twice, and nobody for nothing.

use std::collections::BTreeMap;

use shop::payments::{Habits, Mood};

use crate::recount::Recount;
use crate::shop::{Shop, assert_balanced};

#[test]
fn late_lost_and_missing_answers_of_the_provider_charge_nobody_twice_and_nobody_for_nothing() {
    let shop = Shop::new();
    assert_balanced(&shop.report(&["--orders", "1000", "--seed", "2"], 0), 1000);
    let recount = Recount::of(&shop.data());
    recount.assert_holds();

    let mut met = BTreeMap::new();
    for (order, story) in &recount.orders {
        // Somebody else may have said no before it came to the money, or after it.
        let because = story.cancelled_because.as_deref();
        if because.is_some_and(|because| because.starts_with("inventory") || because.starts_with("shipping")) {
            continue;
        }
        let mood = Habits::default().mood(order);
        let charges = recount.ledger.get(order).cloned().unwrap_or_default();
        match mood {
            Mood::Declines => assert_eq!((because, charges.as_slice()), (Some("payments.declined"), [].as_slice())),
            // The answer came after the order was given up: the money went back.
            Mood::FallsSilent => {
                assert_eq!(because, Some("payments.overdue"), "{order}");
                assert_eq!((charges.len(), charges.iter().sum::<i64>()), (2, 0), "{order}: {charges:?}");
                assert_eq!((story.taken.len(), &story.taken), (1, &story.refunded), "{order}");
            }
            Mood::Good | Mood::AnswersLate | Mood::LosesAnswer => {
                assert_eq!((because, charges.len()), (None, 1), "{order} ({mood:?}): {charges:?}");
            }
        }
        *met.entry(format!("{mood:?}")).or_insert(0) += 1;
    }
    assert_eq!(met.len(), 5, "the provider had every mood: {met:?}");
}
