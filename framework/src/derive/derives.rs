//! The derives and attributes, as users meet them: each is exported beside the trait of its name.
//!
//! They are documented here and not where they are written, so that their examples run against the framework.

/// Makes a type a [`Domain`](trait@crate::Domain): a named set of message types with one owner.
///
/// Write it on a struct without fields. The whole attribute may be left out.
///
/// | key | means | allowed | default |
/// |---|---|---|---|
/// | `name = "bank"` | the name on the wire and in the store; never change it once something is stored | 1 to 64 of `A-Z a-z 0-9 _ -` | the type's name, `OrderDesk` as `order-desk` |
/// | `shards = 16` | how many shards the keys are spread over; fixed for ever once something is stored | 1 to 1024 | 16 |
/// | `codec = json` | how messages become bytes: `json` if other languages take part, else `bincode` | `json`, `bincode` | `bincode` |
/// | `retired("Paid", "old-saga")` | the events, commands, timers and actor types it has given up: what is stored under them is not read | names | none |
///
/// ```
/// use whizbang::prelude::*;
///
/// #[derive(Domain)]
/// struct Bank;
///
/// #[derive(Domain)]
/// #[domain(name = "orders", shards = 64, codec = json)]
/// struct OrderDesk;
///
/// assert_eq!(Bank::NAME, "bank");
/// assert_eq!(OrderDesk::SHARDS, 64);
/// ```
///
/// # Programs that name the crate otherwise
///
/// The output of every derive names the crate `::whizbang`. A program that lists it under another name, or gets it from a
/// facade that re-exports everything, writes one line in its root: `extern crate my_name as whizbang;`. Where that does not
/// fit, each item says where the crate is, and so does the entry point: `#[my_name::main(crate = my_name)]`.
///
/// ```
/// mod facade {
///     pub(crate) use ::whizbang;
/// }
/// use facade::whizbang::prelude::*;
///
/// #[derive(Domain)]
/// #[whizbang(crate = crate::facade::whizbang)]
/// struct Bank;
/// # fn main() {}
/// ```
pub use whizbang_macros::Domain;

/// Makes a struct a [`Command`](trait@crate::Command): it asks the owner of a domain to do something.
///
/// Exactly one field is marked `#[key]`: it says which aggregate handles the command. Its type is `String`, `Box<str>`,
/// `Arc<str>`, `Cow<'static, str>`, an integer of a fixed size, a UUID, or any `T` with `impl<'a> From<&'a T> for Key<'a>`
/// ([`Key`](crate::message::Key)). `Serialize` and `Deserialize` are derived beside it.
///
/// | key | means | allowed | default |
/// |---|---|---|---|
/// | `domain = Bank` | the domain whose owner handles it | a type that derives `Domain` | none: must be given |
/// | `reply = u64` | what the sender gets back | any type that serde knows | `()` |
/// | `name = "Deposit"` | the name on the wire, unique in its domain; never change it | 1 to 64 of `A-Z a-z 0-9 _ -` | the type's name |
/// | `version = 2` | the version of the schema; raise it when the fields change | from 1 up | 1 |
/// | `upcast(1 = DepositV1)` | what older versions looked like, each `Deserialize` and `Into` this type | every version below `version`, once | none |
/// | `formerly = "Pay"` | the names it had before: stored messages with them are read as this type | names, or `formerly("Pay", "Give")` | none |
///
/// A message may not contain itself, not even behind a `Box` or a `Vec`: bytes from a stranger could nest it deeper than the
/// stack. The derive sees that in the type itself, not behind a second type; there, keep to the rule by hand.
///
/// # Serde attributes
///
/// What is written must be read back as the same, for years. The derives of messages refuse attributes with which it would not
/// be, in the message itself; types inside it are not seen.
///
/// | attribute | in a bincode domain | in a JSON domain |
/// |---|---|---|
/// | `tag`, `content`, `untagged`, `flatten` | refused: bincode holds no names | allowed |
/// | `skip` on a field | refused, but for `PhantomData` and `()` | allowed: the field is its default wherever the message is read |
/// | `skip_serializing_if`, `skip_serializing` on a field | refused: bincode holds every field | with `default`, or on an `Option`; not in a tuple |
/// | `skip_deserializing` alone | refused | refused |
/// | any skip on a variant, or on the `#[key]` | refused | refused |
/// | `rename` with one name to write and another one to read | allowed | refused, unless the written one is an `alias` |
///
/// The states of [snapshots](derive@crate::Aggregate) and of [views](derive@crate::Projection) are bincode.
///
/// bincode knows fields and variants by their order alone: in a bincode domain, every change of them but a new variant at the
/// end needs a new `version`, and `#[serde(default)]` does not help.
///
/// ```
/// use whizbang::prelude::*;
/// # #[derive(Domain)]
/// # struct Bank;
///
/// #[derive(Command, Serialize, Deserialize)]
/// #[command(domain = Bank, reply = u64)]
/// struct Deposit {
///     #[key]
///     account: String,
///     cents: u64,
/// }
/// # assert_eq!(Deposit { account: "ada".into(), cents: 5 }.key().as_str(), "ada");
/// ```
///
/// With an older version that nodes may still send:
///
/// ```
/// use whizbang::prelude::*;
/// # #[derive(Domain)]
/// # struct Bank;
///
/// #[derive(Deserialize)]
/// struct WithdrawV1 {
///     account: String,
///     euros: u32,
/// }
///
/// #[derive(Command, Serialize, Deserialize)]
/// #[command(domain = Bank, version = 2, upcast(1 = WithdrawV1))]
/// struct Withdraw {
///     #[key]
///     account: String,
///     cents: u64,
/// }
///
/// impl From<WithdrawV1> for Withdraw {
///     fn from(old: WithdrawV1) -> Self {
///         Self { account: old.account, cents: u64::from(old.euros) * 100 }
///     }
/// }
/// # use whizbang::message::{Codec, Message};
/// # let old = Withdraw::decode(1, Codec::Json, br#"{"account": "ada", "euros": 3}"#)?;
/// # assert_eq!((old.account.as_str(), old.cents), ("ada", 300));
/// # Ok::<(), whizbang::message::CodecError>(())
/// ```
pub use whizbang_macros::Command;

/// Makes a struct or an enum an [`Event`](trait@crate::Event): a fact that was recorded.
///
/// The keys are those of [`Command`](derive@crate::Command) but for `reply`, and no field is marked: an event belongs to the
/// stream of the actor that recorded it. Stored events are read for ever, so every older `version` has its entry in `upcast`.
/// An older version that has become several events stands in `split(1 = DepositedV1)` instead, with `impl From<DepositedV1> for
/// Vec<Deposited>`. How types change safely says the page docs/schema-changes.md of the repository.
///
/// ```
/// use whizbang::prelude::*;
/// # #[derive(Domain)]
/// # struct Bank;
///
/// #[derive(Event, Serialize, Deserialize)]
/// #[event(domain = Bank)]
/// struct Deposited {
///     cents: u64,
/// }
/// # let _ = Deposited { cents: 5 }.cents;
/// ```
pub use whizbang_macros::Event;

/// Makes a struct or an enum a [`Query`](trait@crate::Query): it asks a view for one answer.
///
/// The keys are those of [`Command`](derive@crate::Command), but `reply` must be given, and no field is marked.
///
/// ```
/// use whizbang::prelude::*;
/// # #[derive(Domain)]
/// # struct Bank;
///
/// #[derive(Query, Serialize, Deserialize)]
/// #[query(domain = Bank, reply = Option<u64>)]
/// struct BalanceOf {
///     account: String,
/// }
/// # let _ = BalanceOf { account: "ada".into() }.account;
/// ```
pub use whizbang_macros::Query;

/// Makes a struct or an enum a [`Document`](trait@crate::Document): data handed over, such as what a saga's timer holds.
///
/// The keys are those of [`Command`](derive@crate::Command) but for `reply`, and no field is marked.
///
/// ```
/// use whizbang::prelude::*;
/// # #[derive(Domain)]
/// # struct Payments;
///
/// #[derive(Document, Serialize, Deserialize)]
/// #[document(domain = Payments)]
/// struct PaymentOverdue {
///     invoice: u64,
/// }
/// # let _ = PaymentOverdue { invoice: 1 }.invoice;
/// ```
pub use whizbang_macros::Document;

/// Makes a type an [`Aggregate`](trait@crate::Aggregate): an event-sourced actor, one per key, that guards one consistency
/// boundary.
///
/// The type is the state; its `Default` is the state before the first event. The lists only say what the actor takes; for
/// each type in them there is a trait to implement, and one that is missing is an error at the listed type.
///
/// | key | means | allowed | default |
/// |---|---|---|---|
/// | `domain = Bank` | the domain whose logs hold its events | a type that derives `Domain` | none: must be given |
/// | `name = "account"` | its name in the store; never change it once something is stored | 1 to 64 of `A-Z a-z 0-9 _ -` | the type's name, `BankAccount` as `bank-account` |
/// | `formerly = "account"` | the names it had before: what is stored under them is its own | names, or `formerly("a", "b")` | none |
/// | `handles(Deposit)` | commands of its domain, with [`Handle`](crate::Handle) | one or more | none |
/// | `applies(Deposited)` | events of its domain that it records, with [`Apply`](crate::Apply) | one or more | none |
/// | `records(StatementSent)` | events of its domain that it records and that change nothing in its state: others take them | one or more | none |
/// | `reacts(OrderPlaced)` | events of any domain, with [`React`](crate::React) | one or more | none |
/// | `replies(Reserve)` | commands it sends and whose replies it takes, with [`OnReply`](crate::OnReply) | one or more | none |
/// | `timers(PaymentOverdue)` | documents that wake it, with [`OnTimer`](crate::OnTimer) | one or more | none |
/// | `snapshot(every = 200, schema = 1)` | keeps a snapshot each so many turns, so that a long stream is not read from its start; `schema` is raised when the state's fields, or what `apply` makes of old events, change. The state derives `Serialize` and `Deserialize` | `every` 1 to 1,000,000; `schema` from 1 up | see below; `snapshot` alone means the numbers shown |
/// | `snapshot(never)` | keeps no snapshots | | |
///
/// At least one of `handles` and `reacts` must be given.
///
/// Without `snapshot`, a state that derives `Serialize` and `Deserialize` has a snapshot every 200 turns, or every so many that
/// snapshots write at most 256 bytes for each turn, whichever is more. One whose state had another shape is ignored. A change of what
/// `apply` makes of old events is not seen: with `snapshot(schema = 1)`, or the next number, the streams are read again. A state
/// without these traits is rebuilt from its whole stream. Fields that are skipped in a type inside the state are missing after a
/// restart: give that type no such attributes, or say `snapshot(never)`.
///
/// ```
/// use whizbang::prelude::*;
/// # #[derive(Domain)]
/// # struct Bank;
/// # #[derive(Command, Serialize, Deserialize)]
/// # #[command(domain = Bank, reply = u64)]
/// # struct Deposit {
/// #     #[key]
/// #     account: String,
/// #     cents: u64,
/// # }
/// # #[derive(Event, Serialize, Deserialize)]
/// # #[event(domain = Bank)]
/// # struct Deposited {
/// #     cents: u64,
/// # }
///
/// #[derive(Aggregate, Default, Serialize, Deserialize)]
/// #[aggregate(domain = Bank, handles(Deposit), applies(Deposited), snapshot(every = 500))]
/// struct Account {
///     cents: u64,
/// }
///
/// impl Handle<Deposit> for Account {
///     fn handle(&self, deposit: Deposit, effects: &mut Effects<Self>) -> Result<u64, Rejection> {
///         effects.record(Deposited { cents: deposit.cents });
///         Ok(self.cents + deposit.cents)
///     }
/// }
///
/// impl Apply<Deposited> for Account {
///     fn apply(&mut self, deposited: &Deposited) {
///         self.cents += deposited.cents;
///     }
/// }
/// ```
pub use whizbang_macros::Aggregate;

/// Makes a type a [`Saga`](trait@crate::Saga): an event-sourced actor, one per key, that reacts to events by sending commands.
///
/// The keys are those of [`Aggregate`](derive@crate::Aggregate), in `#[saga(…)]`. At least one of `reacts` and `handles` must
/// be given.
///
/// ```
/// use whizbang::prelude::*;
/// # #[derive(Domain)]
/// # struct Shop;
/// # #[derive(Event, Serialize, Deserialize)]
/// # #[event(domain = Shop)]
/// # struct OrderPlaced;
/// # #[derive(Document, Serialize, Deserialize)]
/// # #[document(domain = Shop)]
/// # struct PaymentOverdue;
///
/// #[derive(Saga, Default)]
/// #[saga(domain = Shop, reacts(OrderPlaced), timers(PaymentOverdue))]
/// struct Fulfilment;
///
/// impl React<OrderPlaced> for Fulfilment {
///     fn react(&self, placed: OrderPlaced, effects: &mut Effects<Self>) {
///         // Ask for the payment, and set a timer in case it never comes.
/// #       let _ = (placed, effects);
///     }
/// }
///
/// impl OnTimer<PaymentOverdue> for Fulfilment {
///     fn on_timer(&self, overdue: PaymentOverdue, effects: &mut Effects<Self>) {
///         // Cancel the order.
/// #       let _ = (overdue, effects);
///     }
/// }
/// ```
pub use whizbang_macros::Saga;

/// Makes a type a [`Projection`](trait@crate::Projection): code that projects events into a view, and the view itself.
///
/// The type is the view; its `Default` is the view before the first event. It derives `Serialize` and `Deserialize`, because
/// it is saved with its checkpoint.
///
/// | key | means | allowed | default |
/// |---|---|---|---|
/// | `projects(Deposited)` | events of any domain, with [`Project`](crate::Project) | one or more | none: must be given |
/// | `answers(BalanceOf)` | queries, with [`Answer`](crate::Answer) | one or more | none |
/// | `name = "balances"` | its name in the store, unique in its service | 1 to 64 of `A-Z a-z 0-9 _ -` | the type's name, `RevenuePerCity` as `revenue-per-city` |
/// | `formerly = "balances"` | the names it had before: what is stored under them is its own | names, or `formerly("a", "b")` | none |
/// | `schema = 1` | raise it when the view's fields change, and the view is rebuilt from the first event | from 1 up | 1 |
///
/// ```
/// use whizbang::prelude::*;
/// # #[derive(Domain)]
/// # struct Bank;
/// # #[derive(Event, Serialize, Deserialize)]
/// # #[event(domain = Bank)]
/// # struct Deposited {
/// #     cents: u64,
/// # }
/// # #[derive(Query, Serialize, Deserialize)]
/// # #[query(domain = Bank, reply = u64)]
/// # struct TotalOfDeposits;
///
/// #[derive(Projection, Default, Serialize, Deserialize)]
/// #[projection(projects(Deposited), answers(TotalOfDeposits))]
/// struct Totals {
///     cents: u64,
/// }
///
/// impl Project<Deposited> for Totals {
///     fn project(&mut self, deposited: &Deposited, _about: &EventContext) {
///         self.cents += deposited.cents;
///     }
/// }
///
/// impl Answer<TotalOfDeposits> for Totals {
///     fn answer(&self, _query: TotalOfDeposits) -> u64 {
///         self.cents
///     }
/// }
/// ```
pub use whizbang_macros::Projection;

/// Makes a struct a [`Worker`](trait@crate::Worker): stateless async handlers that do I/O, as competing consumers.
///
/// | key | means | allowed | default |
/// |---|---|---|---|
/// | `domain = Payments` | the domain whose commands it performs | a type that derives `Domain` | none: must be given |
/// | `performs(Charge)` | commands of its domain, with [`Perform`](crate::Perform) | one or more | none |
/// | `on(OrderShipped)` | events of any domain, with [`OnEvent`](crate::OnEvent) | one or more | none |
/// | `name = "charger"` | its name in the store, unique in its domain | 1 to 64 of `A-Z a-z 0-9 _ -` | the type's name, `CardCharger` as `card-charger` |
/// | `formerly = "charger"` | the names it had before: what is stored under them is its own | names, or `formerly("a", "b")` | none |
///
/// At least one of `performs` and `on` must be given.
///
/// ```
/// use whizbang::prelude::*;
/// # #[derive(Domain)]
/// # struct Payments;
/// # #[derive(Command, Serialize, Deserialize)]
/// # #[command(domain = Payments, reply = String)]
/// # struct Charge {
/// #     #[key]
/// #     invoice: u64,
/// # }
///
/// #[derive(Worker)]
/// #[worker(domain = Payments, performs(Charge))]
/// struct CardCharger;
///
/// impl Perform<Charge> for CardCharger {
///     async fn perform(&self, charge: Charge, job: Job) -> Result<String, WorkError> {
///         // Hand the idempotency key to the provider: the same job may be done again after a crash.
///         Ok(format!("{} charged under {}", charge.invoice, job.idempotency_key))
///     }
/// }
/// ```
pub use whizbang_macros::Worker;

/// serde's `Serialize`, for programs that do not list serde in their Cargo.toml.
///
/// Writes the same bytes and takes the same `#[serde(…)]` attributes as serde's own derive, which it calls. A type
/// parameter is asked for `Serialize` itself. Where that is too much (`#[serde(bound = …)]`, `#[serde(remote = …)]`), list
/// serde in Cargo.toml and `use serde::Serialize;`, which takes precedence over the prelude.
pub use whizbang_macros::Serialize;

/// serde's `Deserialize`, for programs that do not list serde in their Cargo.toml.
///
/// Reads the same bytes and takes the same `#[serde(…)]` attributes as serde's own derive, which it calls; the type may not
/// borrow. Where that is too much, list serde in Cargo.toml and `use serde::Deserialize;`, which takes precedence over the
/// prelude.
///
/// ```
/// use whizbang::prelude::*;
///
/// #[derive(Serialize, Deserialize)]
/// #[serde(rename_all = "camelCase")]
/// struct Address {
///     zip_code: String,
///     #[serde(default)]
///     country: Option<String>,
/// }
/// # let address: Address = serde_json::from_str(r#"{"zipCode": "12345"}"#)?;
/// # assert_eq!(serde_json::to_string(&address)?, r#"{"zipCode":"12345","country":null}"#);
/// # Ok::<(), serde_json::Error>(())
/// ```
pub use whizbang_macros::Deserialize;

/// Runs an async `main` on a runtime of its own: tokio on the current thread, with a `LocalSet` for actors.
///
/// Takes no arguments. What the function has spawned and not awaited ends with it.
///
/// ```
/// #[whizbang::main]
/// async fn main() -> Result<(), std::io::Error> {
///     println!("hello");
///     Ok(())
/// }
/// ```
pub use whizbang_macros::main;

/// Makes an async function a test that runs on a runtime of its own, as [`main`](macro@crate::main) does.
///
/// Takes no arguments. Attributes such as `#[should_panic]` stay.
///
/// ```
/// #[whizbang::test]
/// async fn a_deposit_is_kept() {
///     assert_eq!(1 + 1, 2);
/// }
/// ```
pub use whizbang_macros::test;
