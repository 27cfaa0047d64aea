//! Given, when, then: what a scenario reports about aggregates and sagas, and how it prints a difference.

mod bank;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use bank::*;
use whizbang::prelude::*;
use whizbang::testing::Scenario;

const HOUR: Duration = Duration::from_secs(3600);

/// Returns the panic text of a scenario that does not hold.
fn difference(scenario: impl FnOnce()) -> String {
    let panic = catch_unwind(AssertUnwindSafe(scenario)).expect_err("there is a difference");
    panic.downcast_ref::<String>().cloned().expect("a text")
}

fn started() -> Scenario<Transfer, StartTransfer> {
    Scenario::<Transfer>::new()
        .when(transfer("t1", "ada", "bob", 30))
        .sends(withdraw("ada", 30, "t1"))
        .sets_timer::<Overdue>(HOUR)
        .records(TransferStarted { from: "ada".into(), to: "bob".into(), cents: 30 })
}

#[test]
fn aggregate_with_given_events_handles_a_command() {
    Scenario::<Account>::new()
        .given([Deposited { cents: 70 }, Deposited { cents: 30 }])
        .when(deposit("ada", 50))
        .replies(150)
        .records(Deposited { cents: 50 })
        .sends_nothing()
        .state(|account| assert_eq!(format!("{account:?}"), "Account { cents: 150, closed: false }"))
        .when(withdraw("ada", 151, "t"))
        .rejects("bank.insufficient-funds")
        .records_nothing()
        .given([Closed {}])
        .when(deposit("ada", 1))
        .rejects("bank.closed");
}

#[test]
fn saga_runs_to_its_end() {
    started()
        .continues()
        .on_reply::<Withdraw>(Ok(70))
        .sends_nothing()
        .on_from("ada", Withdrawn { cents: 30, transfer: "t1".into() })
        .sends(deposit("bob", 30))
        .on_reply::<Deposit>(Ok(30))
        .records(TransferDone {})
        .ends_completed();
}

#[test]
fn saga_compensates_when_a_step_is_rejected() {
    started()
        .on_reply::<Withdraw>(Ok(70))
        .on_from("ada", Withdrawn { cents: 30, transfer: "t1".into() })
        .sends(deposit("bob", 30))
        .on_reply::<Deposit>(Err(Rejection::new("bank.closed", "closed")))
        .compensates()
        .sends(deposit("ada", 30))
        .on_reply::<Deposit>(Ok(100))
        .ends_compensated()
        .sends(FailTransfer { transfer: "t1".into() });
    started()
        .on_reply::<Withdraw>(Err(Rejection::new("bank.insufficient-funds", "poor")))
        .compensates()
        .records(TransferFailed {})
        .sends_nothing()
        .ends_compensated();
}

#[test]
fn due_timer_fires_and_a_late_one_does_nothing() {
    // The reply to the withdrawal is not known, so it is not compensated before it arrives.
    started().fire_timer::<Overdue>().records(TransferFailed {}).compensates().sends_nothing();
    let gone = difference(|| {
        drop(
            started()
                .on_reply::<Withdraw>(Err(Rejection::new("bank.insufficient-funds", "poor")))
                .clears_timer::<Overdue>()
                .after(HOUR)
                .fire_timer::<Overdue>(),
        );
    });
    assert!(gone.contains("expected the timer Overdue to be set"), "{gone}");
}

#[test]
fn difference_shows_the_history_and_both_sides() {
    let text = difference(|| {
        drop(
            Scenario::<Account>::new()
                .given([Deposited { cents: 100 }])
                .when(deposit("ada", 50))
                .records(Deposited { cents: 60 }),
        );
    });
    let expected = "\naccount `ada`\n  given Deposited {\"cents\":100}\n  when  Deposit {\"account\":\"ada\",\"cents\":50}\nexpected it to record\n  Deposited {\"cents\":60}\nbut it recorded\n  Deposited {\"cents\":50}\n";
    assert_eq!(text, expected);
    let text = difference(|| drop(Scenario::<Account>::new().when(deposit("ada", 5)).replies(6)));
    assert!(text.ends_with("expected the reply\n  6\nbut the reply was 5\n"), "{text}");
    let text = difference(|| drop(Scenario::<Account>::new().when(withdraw("ada", 5, "t")).replies(6)));
    assert!(text.contains("but it was rejected: the account holds 0 cents"), "{text}");
    let text = difference(|| drop(started().sends(deposit("ada", 1))));
    assert!(text.contains("but it sent no further command"), "{text}");
}

#[test]
fn unexpected_effect_is_a_difference() {
    let text = difference(|| drop(Scenario::<Account>::new().when(deposit("ada", 50)).records_nothing()));
    assert!(text.contains("but it also recorded\n  Deposited"), "{text}");
}

#[derive(Domain)]
#[domain(name = "gauges", codec = json)]
struct Gauges;

#[derive(Command, Debug, Serialize, Deserialize)]
#[command(domain = Gauges)]
struct Measure {
    #[key]
    gauge: String,
    volts: u32,
}

#[derive(Event, Debug, Serialize, Deserialize)]
#[event(domain = Gauges)]
struct Measured {
    ratio: f64,
}

#[derive(Aggregate, Default)]
#[aggregate(domain = Gauges, handles(Measure), records(Measured))]
struct Gauge {}

impl Handle<Measure> for Gauge {
    fn handle(&self, measure: Measure, effects: &mut Effects<Self>) -> Result<(), Rejection> {
        effects.record(Measured { ratio: f64::from(measure.volts) / f64::from(measure.volts) });
        Ok(())
    }
}

/// JSON writes NaN as null, which is not a number.
#[test]
fn event_that_does_not_read_back_fails_its_turn() {
    let measure = |volts| Measure { gauge: "g".into(), volts };
    Scenario::<Gauge>::new().when(measure(5)).records(Measured { ratio: 1.0 });
    Scenario::<Gauge>::new().when(measure(0)).fails("invalid effects");
}

#[test]
fn panic_in_a_handler_is_reported() {
    Scenario::<Account>::new().when(Explode { account: "ada".into() }).fails("boom");
    let text =
        difference(|| drop(Scenario::<Account>::new().when(Explode { account: "ada".into() }).records_nothing()));
    assert!(text.contains("the handler panicked: boom"), "{text}");
}
