//! The derives and attributes, each exported beside the trait of its name.
//!
//! They are documented here and not in the macro crate, so that their examples run against the framework.

/// Makes a type a [`Domain`](trait@crate::Domain): a named set of message types with one owner.
///
/// Use it on a struct without fields. The attribute may be omitted.
///
/// | key | meaning | allowed | default |
/// |---|---|---|---|
/// | `name = "bank"` | the name on the wire and in the store; must not change once data is stored | 1 to 64 of `A-Z a-z 0-9 _ -` | the type's name, `OrderDesk` as `order-desk` |
/// | `shards = 16` | the number of shards over which keys are distributed; must not change once data is stored | 1 to 1024 | 16 |
/// | `codec = json` | the codec of messages: `json` if other languages take part, else `bincode` | `json`, `bincode` | `bincode` |
/// | `retired("Paid", "old-saga")` | retired events, commands, timers and actor types: data stored under these names is not read | names | none |
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
/// # Programs that use another crate name
///
/// The output of every derive refers to the crate as `::whizbang`. A program that depends on it under another name, or
/// through a facade, writes one line in its root: `extern crate my_name as whizbang;`. Alternatively, each item and the
/// entry point give the path: `#[my_name::main(crate = my_name)]`.
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

/// Makes a struct a [`Command`](trait@crate::Command): a request to the owner of a domain.
///
/// Exactly one field is marked `#[key]`: it selects the aggregate that handles the command. Its type is `String`, `Box<str>`,
/// `Arc<str>`, `Cow<'static, str>`, an integer of a fixed size, a UUID, or any `T` with `impl<'a> From<&'a T> for Key<'a>`
/// ([`Key`](whizbang_core::message::Key)). `Serialize` and `Deserialize` are derived beside it.
///
/// | key | meaning | allowed | default |
/// |---|---|---|---|
/// | `domain = Bank` | the domain whose owner handles it | a type that derives `Domain` | required |
/// | `reply = u64` | the type of the reply | any type with serde's traits | `()` |
/// | `name = "Deposit"` | the name on the wire, unique in its domain; must not change | 1 to 64 of `A-Z a-z 0-9 _ -` | the type's name |
/// | `version = 2` | the version of the schema; raise it when the fields change | from 1 up | 1 |
/// | `upcast(1 = DepositV1)` | the types of older versions, each `Deserialize` and `Into` this type | every version below `version`, once | none |
/// | `writes = 1` | the older version that is written until every node reads this one, with `impl From<&Deposit> for DepositV1` | a version in `upcast` | `version` |
/// | `formerly = "Pay"` | its former names: messages stored under them are read as this type | names, or `formerly("Pay", "Give")` | none |
///
/// A message must not contain itself, not even inside a `Box` or a `Vec`: untrusted bytes could nest it deeper than the
/// stack. The derive detects this in the type itself. It cannot see through other types, so check those yourself.
///
/// # Serde attributes
///
/// A stored message must decode to the same value for years. The derives reject attributes that break this. They check the
/// message itself and not the types inside it.
///
/// | attribute | in a bincode domain | in a JSON domain |
/// |---|---|---|
/// | `tag`, `content`, `untagged`, `flatten` | rejected: bincode stores no names | allowed |
/// | `skip` on a field | rejected, except on `PhantomData` and `()` | allowed: the field has its default value after decoding |
/// | `skip_serializing_if`, `skip_serializing` on a field | rejected: bincode stores every field | with `default`, or on an `Option`; not in a tuple |
/// | `skip_deserializing` alone | rejected | rejected |
/// | any skip on a variant, or on the `#[key]` | rejected | rejected |
/// | `rename` with different names for encoding and decoding | allowed | rejected, unless the encoded name is an `alias` |
///
/// Snapshots and views are always stored as bincode.
///
/// bincode identifies fields and variants by their order alone. In a bincode domain every change except a new variant at
/// the end requires a new `version`, and `#[serde(default)]` does not help.
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
/// With an older version that other nodes may still send:
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

/// Makes a struct or an enum an [`Event`](trait@crate::Event): a recorded fact.
///
/// The keys are those of `Command` except `reply`, and no field is marked: an event belongs to the
/// stream of the actor that recorded it. Stored events are read forever, so every older `version` needs an entry in
/// `upcast`. An older version that was split into several events is listed in `split(1 = DepositedV1)` instead, with
/// `impl From<DepositedV1> for Vec<Deposited>`. The page docs/schema-changes.md in the repository explains safe changes.
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

/// Makes a struct or an enum a [`Query`](trait@crate::Query): a request for one answer of a view, or of the aggregate or saga
/// of a key.
///
/// The keys are those of `Command`, but `reply` is required. A query for a view has no marked field. A query for an aggregate
/// or a saga is a struct with a field `#[key]`, as [`Answer`](crate::Answer) shows.
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

/// Makes a struct or an enum a [`Document`](trait@crate::Document): data, such as the payload of a saga's timer.
///
/// The keys are those of `Command` except `reply`, and no field is marked.
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
/// The type is the state; its `Default` is the state before the first event. The lists name the messages that the actor
/// handles. Each listed type requires a trait; a missing one is an error at the listed type.
///
/// | key | meaning | allowed | default |
/// |---|---|---|---|
/// | `domain = Bank` | the domain whose logs contain its events | a type that derives `Domain` | required |
/// | `name = "account"` | its name in the store; must not change once data is stored | 1 to 64 of `A-Z a-z 0-9 _ -` | the type's name, `BankAccount` as `bank-account` |
/// | `formerly = "account"` | its former names: data stored under them belongs to it | names, or `formerly("a", "b")` | none |
/// | `handles(Deposit)` | commands of its domain, with [`Handle`](crate::Handle) | one or more | none |
/// | `applies(Deposited)` | events of its domain that it records, with [`Apply`](crate::Apply) | one or more | none |
/// | `records(StatementSent)` | events of its domain that it records for subscribers, without a change of its state | one or more | none |
/// | `reacts(OrderPlaced)` | events of any domain, with [`React`](crate::React) | one or more | none |
/// | `replies(Reserve)` | commands it sends and whose replies it handles, with [`OnReply`](crate::OnReply) | one or more | none |
/// | `timers(PaymentOverdue)` | documents of its timers, with [`OnTimer`](crate::OnTimer) | one or more | none |
/// | `answers(BalanceOf)` | queries of its domain with a `#[key]`, with [`Answer`](crate::Answer) | one or more | none |
/// | `snapshot(every = 200, schema = 1)` | saves a snapshot every `every` turns, so that a long stream is not read from its start; raise `schema` when the state's fields, or the effect of `apply` on old events, change. The state derives `Serialize` and `Deserialize` | `every` 1 to 1,000,000; `schema` from 1 up | see below; `snapshot` alone uses the numbers shown |
/// | `snapshot(never)` | saves no snapshots | | |
///
/// At least one of `handles` and `reacts` is required.
///
/// Without `snapshot`, a state that derives `Serialize` and `Deserialize` is saved every 200 turns, or less often if snapshots
/// would write more than 256 bytes per turn. A snapshot of a state with another shape is ignored. A changed effect of `apply`
/// on old events is not detected: write `snapshot(schema = 1)`, or the next number, to read the streams again. A state
/// without these traits is rebuilt from its whole stream. Fields that are skipped in a type inside the state are missing after
/// a restart: remove those attributes, or write `snapshot(never)`.
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
/// The keys are those of `Aggregate`, in `#[saga(…)]`. At least one of `reacts` and `handles` is
/// required.
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
///         // Ask for the payment, and set a timer in case it never arrives.
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

/// Makes a type a [`Projection`](trait@crate::Projection): a view of events, and the code that updates it.
///
/// The type is the view; its `Default` is the view before the first event. It derives `Serialize` and `Deserialize`, because
/// it is stored with its checkpoint.
///
/// | key | meaning | allowed | default |
/// |---|---|---|---|
/// | `projects(Deposited)` | events of any domain, with [`Project`](crate::Project) | one or more | required |
/// | `answers(BalanceOf)` | queries, with [`Answer`](crate::Answer) | one or more | none |
/// | `name = "balances"` | its name in the store, unique in its service | 1 to 64 of `A-Z a-z 0-9 _ -` | the type's name, `RevenuePerCity` as `revenue-per-city` |
/// | `formerly = "balances"` | its former names: data stored under them belongs to it | names, or `formerly("a", "b")` | none |
/// | `schema = 1` | raise it when the view's fields change; the view is then rebuilt from the first event | from 1 up | 1 |
/// | `reset = "DELETE FROM balances"` | empties the tables of a projection with [statements](crate::Project::statements) before it is rebuilt | one SQL statement | none |
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
///     fn project(&mut self, deposited: &Deposited, _context: &EventContext) {
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
/// | key | meaning | allowed | default |
/// |---|---|---|---|
/// | `domain = Payments` | the domain whose commands it performs | a type that derives `Domain` | required |
/// | `performs(Charge)` | commands of its domain, with [`Perform`](crate::Perform) | one or more | none |
/// | `on(OrderShipped)` | events of any domain, with [`OnEvent`](crate::OnEvent) | one or more | none |
/// | `performs_batch(Charge)` | commands of its domain, several in a call, with [`PerformBatch`](crate::PerformBatch) | one or more | none |
/// | `on_batch(OrderShipped)` | events of any domain, several in a call, with [`OnEventBatch`](crate::OnEventBatch) | one or more | none |
/// | `replies(Reserve)` | commands that its jobs send, whose replies it handles with [`OnJobReply`](crate::OnJobReply) | one or more | none |
/// | `name = "charger"` | its name in the store, unique in its domain | 1 to 64 of `A-Z a-z 0-9 _ -` | the type's name, `CardCharger` as `card-charger` |
/// | `formerly = "charger"` | its former names: data stored under them belongs to it | names, or `formerly("a", "b")` | none |
///
/// At least one of `performs`, `on`, `performs_batch` and `on_batch` is required.
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
///         // Pass the idempotency key to the provider: the job may run again after a crash.
///         Ok(format!("{} charged under {}", charge.invoice, job.idempotency_key))
///     }
/// }
/// ```
pub use whizbang_macros::Worker;

/// Makes an enum the list of a domain's rejections, each with a stable code and a text, which callers get back as the
/// enum.
///
/// A variant's code is `domain.reason`: the domain's name, and the variant's name as `insufficient-funds` for
/// `InsufficientFunds`. Its text names fields in braces, as `format!` does. `?` and `into()` convert a variant to
/// [`Rejection`](crate::Rejection) in a handler, and to [`WorkError`](crate::WorkError) in a worker.
///
/// | key of the enum | meaning | allowed | default |
/// |---|---|---|---|
/// | `domain = Bank` | the domain that rejects; its name begins each code | a type that derives `Domain` | required |
///
/// | key of a variant | meaning | allowed | default |
/// |---|---|---|---|
/// | `text = "the account holds {cents} cents"` | the text for people; `{0}` is the first field of a tuple | a text | required |
/// | `code = "no-funds"` | the reason in the code; must not change once callers depend on it | 1 to 64 of `A-Z a-z 0-9 _ -` | the variant's name |
///
/// The types of fields derive `Serialize` and `Deserialize`. Fields travel as JSON under their names, also in a bincode
/// domain. A new variant, and a new field that is an `Option`, are compatible; a caller that does not know a code still
/// gets the [`Rejection`](crate::Rejection) with its text. The enum implements `Display` and not `std::error::Error`: a
/// rejection is final, while `?` makes an error in a worker one that is retried.
///
/// ```
/// use whizbang::prelude::*;
///
/// #[derive(Domain)]
/// struct Bank;
///
/// #[derive(Rejection, Debug, PartialEq)]
/// #[rejection(domain = Bank)]
/// enum WithdrawError {
///     #[rejection(text = "the account holds {cents} cents")]
///     InsufficientFunds { cents: u64 },
///     #[rejection(text = "the account is closed", code = "closed")]
///     AccountClosed,
/// }
///
/// let rejection = Rejection::from(WithdrawError::InsufficientFunds { cents: 3 });
/// assert_eq!(rejection.code(), "bank.insufficient-funds");
/// assert_eq!(rejection.text(), "the account holds 3 cents");
/// // In the caller; from a `SendError`, with `error.rejection_as()`.
/// assert_eq!(rejection.typed(), Some(WithdrawError::InsufficientFunds { cents: 3 }));
/// # assert_eq!(Rejection::from(WithdrawError::AccountClosed).code(), "bank.closed");
/// ```
pub use whizbang_macros::Rejection;

/// serde's `Serialize`, for programs that do not list serde in their Cargo.toml.
///
/// Writes the same bytes and accepts the same `#[serde(…)]` attributes as serde's own derive, which it calls. It
/// requires `Serialize` of type parameters themselves. Where that is too much (`#[serde(bound = …)]`, `#[serde(remote =
/// …)]`), list serde in Cargo.toml and write `use serde::Serialize;`, which takes precedence over the prelude.
pub use whizbang_macros::Serialize;

/// serde's `Deserialize`, for programs that do not list serde in their Cargo.toml.
///
/// Reads the same bytes and accepts the same `#[serde(…)]` attributes as serde's own derive, which it calls; the type must
/// not borrow. If it has to, list serde in Cargo.toml and write `use serde::Deserialize;`, which takes precedence over the
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
/// It has no arguments. Tasks that the function has spawned and not awaited end with it.
///
/// ```
/// #[whizbang::main]
/// async fn main() -> Result<(), std::io::Error> {
///     println!("hello");
///     Ok(())
/// }
/// ```
pub use whizbang_macros::main;

/// Makes an async function a test that runs on a runtime of its own, as `main` does.
///
/// It has no arguments. Attributes such as `#[should_panic]` are kept.
///
/// ```
/// #[whizbang::test]
/// async fn deposit_is_stored() {
///     assert_eq!(1 + 1, 2);
/// }
/// ```
pub use whizbang_macros::test;
