//! Cron schedules: when a schedule occurs, and the commands that set and remove it.
//!
//! Called by the client, by the [actor of a schedule](crate::aggregate), and by the operations of a node. Reads no clock: each
//! time is an argument. Start reading at `cron.rs`.

mod active;
mod command;
mod cron;

pub use active::ActiveSchedule;
pub(crate) use command::{OCCURRENCE, REMOVE_SCHEDULE, SET_SCHEDULE, SetSchedule, occurrence_id, rfc3339, to};
pub use cron::{Cron, CronError, Missed, Overlap};
