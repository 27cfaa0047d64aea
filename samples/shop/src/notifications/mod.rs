//! Notifications: e-mail to customers, one when an order is confirmed or cancelled.

mod mailer;

pub use mailer::Mailer;

use whizbang::prelude::*;

/// E-mail to customers.
#[derive(Domain)]
pub struct Notifications;
