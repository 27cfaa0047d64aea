//! The code of docs/testing-sagas.md: a saga with a bug, the case that shows it, and the fix.

use std::time::Duration;

use proptest::prelude::*;
use whizbang::prelude::*;
use whizbang::testing::{Flow, Scenario, Sim, World};

#[derive(Domain)]
struct Money;

#[derive(Domain)]
struct Shop;

#[derive(Command, Clone, Debug, Serialize, Deserialize)]
#[command(domain = Money)]
struct Charge {
    #[key]
    card: String,
    cents: u64,
}

#[derive(Command, Clone, Debug, Serialize, Deserialize)]
#[command(domain = Money)]
struct Refund {
    #[key]
    card: String,
    cents: u64,
}

#[derive(Event, Debug, Serialize, Deserialize)]
#[event(domain = Money)]
struct Charged {
    cents: u64,
}

#[derive(Event, Debug, Serialize, Deserialize)]
#[event(domain = Money)]
struct Refunded {
    cents: u64,
}

#[derive(Aggregate, Default)]
#[aggregate(domain = Money, handles(Charge, Refund), applies(Charged, Refunded))]
struct Card {
    spent: u64,
}

impl Handle<Charge> for Card {
    fn handle(&self, charge: Charge, effects: &mut Effects<Self>) -> Result<(), Rejection> {
        if self.spent + charge.cents > 1000 {
            return Err(Rejection::new("money.limit", "the card is at its limit"));
        }
        effects.record(Charged { cents: charge.cents });
        Ok(())
    }
}

impl Handle<Refund> for Card {
    fn handle(&self, refund: Refund, effects: &mut Effects<Self>) -> Result<(), Rejection> {
        effects.record(Refunded { cents: refund.cents });
        Ok(())
    }
}

impl Apply<Charged> for Card {
    fn apply(&mut self, charged: &Charged) {
        self.spent += charged.cents;
    }
}

impl Apply<Refunded> for Card {
    fn apply(&mut self, refunded: &Refunded) {
        self.spent -= refunded.cents;
    }
}

#[derive(Command, Clone, Debug, Serialize, Deserialize)]
#[command(domain = Shop)]
struct PlaceOrder {
    #[key]
    order: String,
    card: String,
    cents: u64,
}

#[derive(Event, Clone, Debug, Serialize, Deserialize)]
#[event(domain = Shop)]
struct OrderPlaced {
    card: String,
    cents: u64,
}

#[derive(Event, Debug, Serialize, Deserialize)]
#[event(domain = Shop)]
struct OrderPaid {}

#[derive(Event, Debug, Serialize, Deserialize)]
#[event(domain = Shop)]
struct OrderCancelled {}

#[derive(Document, Serialize, Deserialize)]
#[document(domain = Shop)]
struct GiveUp {}

/// The parts that the order with the bug and the one without share: all except its start and its cancellation.
macro_rules! order {
    () => {
        #[derive(Saga, Default)]
        #[saga(
                                                                    domain = Shop,
                                                                    handles(PlaceOrder),
                                                                    applies(OrderPlaced, OrderPaid, OrderCancelled),
                                                                    replies(Charge),
                                                                    timers(GiveUp)
                                                                )]
        struct Order {
            cents: u64,
            paid: bool,
        }

        impl OnReply<Charge> for Order {
            fn on_reply(&self, reply: Result<(), Rejection>, effects: &mut Effects<Self>) {
                match reply {
                    Ok(()) => effects.record(OrderPaid {}),
                    Err(_) => effects.record(OrderCancelled {}),
                }
                effects.complete();
            }
        }

        impl Apply<OrderPlaced> for Order {
            fn apply(&mut self, placed: &OrderPlaced) {
                self.cents = placed.cents;
            }
        }

        impl Apply<OrderPaid> for Order {
            fn apply(&mut self, _paid: &OrderPaid) {
                self.paid = true;
            }
        }

        impl Apply<OrderCancelled> for Order {
            fn apply(&mut self, _cancelled: &OrderCancelled) {}
        }

        fn cluster(sim: Sim) -> Sim {
            sim.service("money", |node| node.aggregate::<Card>()).service("shop", |node| node.saga::<Order>())
        }

        fn what_is_charged_is_paid_for(world: &World, _orders: &[PlaceOrder]) -> Result<(), String> {
            let charged: u64 = world.states::<Card>().iter().map(|(_, card)| card.spent).sum();
            let paid: u64 =
                world.states::<Order>().iter().filter(|(_, order)| order.paid).map(|(_, order)| order.cents).sum();
            if charged == paid {
                Ok(())
            } else {
                Err(format!("{charged} cents are charged, and orders for {paid} are paid"))
            }
        }
    };
}

fn orders() -> impl Strategy<Value = PlaceOrder> {
    (any::<u64>(), 0..3u8, 1..600u64).prop_map(|(order, card, cents)| PlaceOrder {
        order: format!("order{order}"),
        card: format!("card{card}"),
        cents,
    })
}

async fn place(world: &World, order: PlaceOrder) {
    world.send(order).await.expect("an order can always be placed");
}

mod wrong {
    use super::*;

    order!();

    impl Handle<PlaceOrder> for Order {
        fn handle(&self, place: PlaceOrder, effects: &mut Effects<Self>) -> Result<(), Rejection> {
            let PlaceOrder { card, cents, .. } = place;
            effects.send(Charge { card: card.clone(), cents });
            effects.set_timer(&GiveUp {}, Duration::from_secs(5));
            effects.record(OrderPlaced { card, cents });
            Ok(())
        }
    }

    impl OnTimer<GiveUp> for Order {
        fn on_timer(&self, _timer: GiveUp, effects: &mut Effects<Self>) {
            effects.record(OrderCancelled {});
            effects.complete();
        }
    }

    #[test]
    fn an_order_is_paid_or_given_up() {
        let placed = || {
            Scenario::<Order>::new()
                .when(PlaceOrder { order: "o1".into(), card: "ada".into(), cents: 300 })
                .records(OrderPlaced { card: "ada".into(), cents: 300 })
                .sends(Charge { card: "ada".into(), cents: 300 })
                .sets_timer::<GiveUp>(Duration::from_secs(5))
        };
        placed().on_reply::<Charge>(Ok(())).records(OrderPaid {}).ends_completed();
        placed().fire_timer::<GiveUp>().records(OrderCancelled {}).ends_completed();
    }

    #[test]
    #[should_panic = "cents are charged, and orders for"]
    fn orders_hold_under_all_faults() {
        Flow::new("orders", cluster, orders(), 1..10, place)
            .at_end(what_is_charged_is_paid_for)
            .no_regressions()
            .check(0..200);
    }

    #[test]
    fn the_shortest_case_is_short() {
        let flow =
            Flow::new("orders", cluster, orders(), 1..10, place).at_end(what_is_charged_is_paid_for).no_regressions();
        let found = flow.first_failure(0..200).expect("it is found");
        assert!(found.plan.steps.len() + found.plan.faults.len() <= 10, "{}", found.plan);
        let story = flow.replay(found.seed, &found.path).expect_err("it is found again");
        assert!(story.contains(&found.violation.trace[found.violation.trace.len() - 1000..]), "another run: {story}");
        assert_equals_page(&story, 0);
    }
}

mod right {
    use super::*;

    order!();

    impl Handle<PlaceOrder> for Order {
        fn handle(&self, place: PlaceOrder, effects: &mut Effects<Self>) -> Result<(), Rejection> {
            let PlaceOrder { card, cents, .. } = place;
            effects.send(Charge { card: card.clone(), cents }).compensate_with(Refund { card: card.clone(), cents });
            effects.set_timer(&GiveUp {}, Duration::from_secs(5));
            effects.record(OrderPlaced { card, cents });
            Ok(())
        }
    }

    impl OnTimer<GiveUp> for Order {
        fn on_timer(&self, _timer: GiveUp, effects: &mut Effects<Self>) {
            effects.record(OrderCancelled {});
            effects.compensate();
        }
    }

    #[test]
    fn a_late_charge_is_refunded() {
        Scenario::<Order>::new()
            .when(PlaceOrder { order: "o1".into(), card: "ada".into(), cents: 300 })
            .fire_timer::<GiveUp>()
            .records(OrderCancelled {})
            .sends_nothing()
            .on_reply::<Charge>(Ok(()))
            .sends(Refund { card: "ada".into(), cents: 300 })
            .on_reply::<Refund>(Ok(()))
            .ends_compensated();
    }

    #[test]
    fn orders_hold_under_all_faults() {
        let coverage =
            Flow::new("orders", cluster, orders(), 1..10, place).at_end(what_is_charged_is_paid_for).check(0..200);
        let order = coverage.of::<Order>();
        order.timer::<GiveUp>().while_open().at_least(1);
        order.reply::<Charge>().while_compensating().at_least(1);
        order.rejection::<Charge>().while_compensating().at_least(1);
        order.event::<Charged>().never_reached();
    }

    #[test]
    fn orders_hold_on_three_nodes_of_each_service() {
        let flow = Flow::new("orders-on-three-nodes", |sim| cluster(sim).nodes(3), orders(), 1..10, place);
        flow.at_end(what_is_charged_is_paid_for).check(0..200);
    }
}

/// Asserts that a case on the page equals the current report line by line, except for numbers. `nth` counts the cases.
fn assert_equals_page(story: &str, nth: usize) {
    let plain = |line: &str| {
        let words = line.split(|char: char| char.is_ascii_digit() || char == '.').filter(|part| !part.is_empty());
        words.collect::<Vec<_>>().join("#").split_whitespace().collect::<Vec<_>>().join(" ")
    };
    let report: Vec<_> = story.lines().map(plain).collect();
    let page = include_str!("../../../docs/testing-sagas.md");
    let case = page.split("```text\nthe flow").nth(nth + 1).and_then(|rest| rest.split("```").next()).expect("a case");
    let lines: Vec<_> = case.lines().filter(|line| !line.trim().is_empty() && !line.contains('…')).collect();
    assert!(lines.len() >= 6, "{case}\n{story}");
    // The first line follows `the flow`, where the page was split.
    for line in lines.into_iter().skip(1) {
        assert!(report.contains(&plain(line)), "this line of the page is not in the current report:\n{line}\n{story}");
    }
}

#[test]
fn every_block_of_the_tutorial_is_in_this_file() {
    let tutorial = include_str!("../../../docs/testing-sagas.md");
    let dense = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
    let code = dense(include_str!("testing_sagas.rs"));
    let mut blocks = 0;
    for block in tutorial.split("```rust\n").skip(1) {
        let block = block.split("```").next().unwrap_or_default();
        // `…` stands for omitted text.
        for part in block.split('…') {
            assert!(code.contains(dense(part).trim_start_matches("// ").trim()), "not in the code:\n{part}");
        }
        blocks += 1;
    }
    assert!(blocks >= 6, "{blocks} blocks");
}

/// Payouts by an external bank, which is faked.
mod outside {
    use std::collections::BTreeMap;
    use std::sync::{Arc, Mutex};

    use whizbang::Retry;
    use whizbang::testing::sim::SentOutcome;
    use whizbang::testing::{CrashPoint, Fault, FaultEvent, Random};

    use super::*;

    #[derive(Domain)]
    struct Payouts;

    #[derive(Command, Clone, Debug, Serialize, Deserialize)]
    #[command(domain = Payouts)]
    struct PayOut {
        #[key]
        payout: String,
        cents: u64,
    }

    #[derive(Clone)]
    struct Bank {
        random: Random,
        knows_keys: bool,
        paid: Arc<Mutex<BTreeMap<String, Paid>>>,
    }

    /// The cents paid for a payout, and under which keys.
    type Paid = (u64, Vec<String>);

    impl Bank {
        fn pay(&self, payout: &PayOut, key: String) -> Result<(), std::io::Error> {
            if self.random.of(&key).chance(100) && self.random.chance(500) {
                return Err(std::io::Error::other("the bank is away"));
            }
            let mut paid = self.paid.lock().unwrap();
            let (cents, keys) = paid.entry(payout.payout.clone()).or_default();
            if !self.knows_keys || !keys.contains(&key) {
                *cents += payout.cents;
            }
            keys.push(key);
            Ok(())
        }
    }

    /// A retry for a bank that may be unavailable for long.
    const PATIENT: Retry = Retry { attempts: 40, first: Duration::from_millis(100), longest: Duration::from_secs(2) };

    #[derive(Worker)]
    #[worker(domain = Payouts, performs(PayOut))]
    struct Teller {
        bank: Bank,
    }

    impl Perform<PayOut> for Teller {
        async fn perform(&self, payout: PayOut, job: Job) -> Result<(), WorkError> {
            self.bank.pay(&payout, job.idempotency_key.to_string())?;
            Ok(())
        }
    }

    fn cluster(sim: Sim, knows_keys: bool) -> Sim {
        let bank = Bank { random: sim.random("bank"), knows_keys, paid: Arc::default() };
        let paid = Arc::clone(&bank.paid);
        sim.service("payouts", move |node| node.worker(Teller { bank: bank.clone() }).retry(PATIENT)).at_end(
            move |world| {
                let paid = paid.lock().unwrap();
                for sent in world.sent::<PayOut>().iter().filter(|sent| sent.outcome == SentOutcome::Accepted) {
                    let (cents, keys) = &paid[&sent.command.payout];
                    if *cents != sent.command.cents {
                        return Err(format!("{cents} cents were paid out instead of {}", sent.command.cents));
                    }
                    if world.is_undisturbed() && keys.len() != 1 {
                        return Err(format!(
                            "the bank was asked {} times, and nothing disturbed the cluster",
                            keys.len()
                        ));
                    }
                }
                Ok(())
            },
        )
    }

    fn payouts(knows_keys: bool) -> Flow<u64, impl AsyncFn(&World, u64)> {
        let pay = async |world: &World, cents| {
            let payout = format!("payout{}", world.below(1_000_000));
            world.send(PayOut { payout, cents }).await.expect("it is paid out");
        };
        Flow::new("payouts", move |sim| cluster(sim, knows_keys), 1..600u64, 1..10, pay).no_regressions()
    }

    #[test]
    fn each_payout_is_paid_once() {
        let coverage = payouts(true).check(0..200);
        assert!(coverage.faults()["HangJobs"].fired > 0);
        assert!(coverage.fault_events()[&FaultEvent::EffectRepeated] > 0);
    }

    #[test]
    fn bank_without_keys_is_found() {
        let flow = payouts(false);
        let found = flow.first_failure(0..200).expect("it is found");
        assert_equals_page(&flow.replay(found.seed, &found.path).expect_err("it is found again"), 1);
    }

    #[test]
    fn clients_that_repeat_a_command_pay_once() {
        let run = cluster(Sim::new(1), true).fault(Duration::ZERO, Fault::DuplicateCommands { times: 1 }).run(
            async |world| {
                world.sleep(Duration::from_millis(10)).await;
                let pay = || world.call(PayOut { payout: "p1".into(), cents: 300 }).idempotency_key("order-1");
                pay().await.unwrap();
                pay().deadline(Duration::from_secs(1)).retrying().await.unwrap();
                world.post(PayOut { payout: "p2".into(), cents: 200 }).await.unwrap();
            },
        );
        let run = run.unwrap_or_else(|broken| panic!("{broken}\n{}", broken.actor_steps));
        assert_eq!(run.coverage.fault_events()[&FaultEvent::CommandDuplicated], 1);
    }

    #[test]
    fn killed_job_is_done_again_with_its_key() {
        let run = cluster(Sim::new(1), true)
            .fault(
                Duration::ZERO,
                Fault::CrashAt { service: 0, point: CrashPoint::Job, steps: 0, down: Duration::from_secs(1) },
            )
            .run(async |world| {
                world.sleep(Duration::from_millis(10)).await;
                world.send(PayOut { payout: "p1".into(), cents: 300 }).await.unwrap();
                assert!(world.now() > Duration::from_secs(1));
            });
        let run = run.unwrap_or_else(|broken| panic!("{broken}\n{}", broken.actor_steps));
        assert_eq!(run.coverage.fault_events()[&FaultEvent::CrashDuringJob], 1);
    }
}
