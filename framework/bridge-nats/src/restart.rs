//! Restarts the loops of the bridge after a panic.
//!
//! Called by the bridge's actor. A loop keeps its state outside of its future, so that its connections and subscriptions survive
//! a panic. Messages in flight do not: they are rebuilt as after a lost connection.
//!
//! A panic is a bug of this crate or of a library. The node keeps its connection and continues, and its health shows the
//! failure until the loop has run for a while.

use std::pin::pin;

use super::report::Report;
use whizbang_core::spawn::{FIRST_RESTART, LONGEST_RESTART, contained};
use whizbang_core::telemetry::TARGET;

/// Runs a loop until it ends. After a panic, `rebuild` repairs its state, and it runs again after a wait that doubles from
/// [`FIRST_RESTART`] to [`LONGEST_RESTART`]. Health names it until it has run for the longest wait.
pub(super) async fn run_restarting<S>(
    name: &'static str,
    report: &Report,
    state: &mut S,
    run: impl AsyncFn(&mut S),
    rebuild: impl Fn(&mut S),
) {
    let (mut wait, mut has_failed) = (FIRST_RESTART, false);
    loop {
        let ended = {
            let mut running = pin!(contained(async {
                if has_failed {
                    rebuild(state);
                }
                run(state).await;
            }));
            tokio::select! {
                biased;
                ended = &mut running => ended,
                () = tokio::time::sleep(LONGEST_RESTART), if has_failed => {
                    report.issues.close(name);
                    wait = FIRST_RESTART;
                    running.await
                }
            }
        };
        let Err(error) = ended else {
            report.issues.close(name);
            return;
        };
        tracing::error!(target: TARGET, task = name, error, "bridge task failed; restarting it");
        report.issues.open(name, || format!("the {name} of the bridge {error}; restarted"));
        has_failed = true;
        tokio::time::sleep(wait).await;
        wait = (wait * 2).min(LONGEST_RESTART);
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    #[test]
    fn loop_runs_again_after_panics_and_health_recovers() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        runtime.block_on(async {
            let (report, failing) = (Report::default(), Cell::new(true));
            let (mut rebuilt, runs) = (0, Cell::new(0));
            let run = async |_: &mut i32| {
                runs.set(runs.get() + 1);
                tokio::time::sleep(FIRST_RESTART).await;
                assert!(!failing.get(), "planned: the loop panics");
                std::future::pending::<()>().await;
            };
            let mut running = pin!(run_restarting("test loop", &report, &mut rebuilt, run, |rebuilt| *rebuilt += 1));
            let mut run_for = async |time| assert!(tokio::time::timeout(time, &mut running).await.is_err());
            run_for(FIRST_RESTART * 20).await;
            assert!(runs.get() >= 3 && runs.get() <= 5, "{} runs", runs.get());
            assert_eq!(
                report.issues.texts(),
                ["the test loop of the bridge panicked: planned: the loop panics; restarted"]
            );
            failing.set(false);
            run_for(LONGEST_RESTART * 3).await;
            assert_eq!(report.issues.texts(), Vec::<String>::new());
        });
    }
}
