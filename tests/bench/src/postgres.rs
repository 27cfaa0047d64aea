//! Durable turns in PostgreSQL, against bare statements that write the same rows into the same tables on the same server.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::{Duration, Instant, SystemTime};

use bytes::BufMut as _;
use tokio::sync::{Notify, oneshot};
use tokio_postgres::types::{IsNull, ToSql, Type};
use tokio_postgres::{Client, NoTls, Statement};
use whizbang::derive::block_on;
use whizbang::{Node, NodeConfig};
use whizbang_store_postgres::PostgresStore;
use whizbang_tests::postgres::PostgresServer;

use crate::account::{Account, deposit};
use crate::durable::{is_quiet, many, measure, print};
use crate::report::{REPETITIONS, median};

const KEYS: usize = 1000;

/// The statement of one group, without a fence.
const GROUP: &str = "WITH put AS (INSERT INTO raw.turns SELECT * FROM unnest($1::int[], $2::bigint[], $3::text[], $4::text[], \
    $5::bigint[], $6::bigint[], $7::bigint[], $8::int[], $9::timestamptz[], $10::uuid[], $11::uuid[], $12::bytea[])) \
    INSERT INTO raw.event_data SELECT * FROM unnest($13::int[], $14::bigint[], $15::bigint[], $16::text[], $17::int[], \
    $18::smallint[], $19::bytea[])";

/// An id that is a number.
#[derive(Debug)]
struct Id(u128);

impl ToSql for Id {
    fn to_sql(&self, _: &Type, out: &mut bytes::BytesMut) -> Result<IsNull, Box<dyn std::error::Error + Sync + Send>> {
        out.put_u128(self.0);
        Ok(IsNull::No)
    }

    fn accepts(of: &Type) -> bool {
        *of == Type::UUID
    }

    tokio_postgres::types::to_sql_checked!();
}

/// A bare connection and its place in the raw tables.
struct Raw {
    client: Client,
    statement: Statement,
    record: Vec<u8>,
    payload: Vec<u8>,
    next: RefCell<i64>,
}

impl Raw {
    /// Connects and creates tables and rows like those of the store.
    async fn connect(server: &PostgresServer) -> Self {
        let raw = PostgresStore::builder(&server.url()).schema("raw").connect().await.expect("connects");
        whizbang::store::Store::close(&raw).await.expect("closes");
        let (client, connection) = tokio_postgres::connect(&server.url(), NoTls).await.expect("connects");
        drop(tokio::task::spawn_local(async move { drop(connection.await) }));
        let statement = client.prepare(GROUP).await.expect("prepares");
        let record = "SELECT record FROM whizbang.turns ORDER BY location DESC LIMIT 1";
        let record = client.query_one(record, &[]).await.expect("a turn").get(0);
        let payload = "SELECT payload FROM whizbang.event_data ORDER BY position DESC LIMIT 1";
        let payload = client.query_one(payload, &[]).await.expect("an event").get(0);
        let last = "SELECT COALESCE(max(location), 0) FROM raw.turns";
        let last: i64 = client.query_one(last, &[]).await.expect("a number").get(0);
        Self { client, statement, record, payload, next: RefCell::new(last + 1) }
    }

    /// Writes a turn with one event for each key.
    async fn write(&self, keys: &[String]) {
        let rows = keys.len();
        let first = self.next.replace_with(|next| *next + rows as i64);
        let numbers: Vec<i64> = (first..).take(rows).collect();
        let before: Vec<i64> = numbers.iter().map(|number| number - 1).collect();
        let (zeros, ones, codecs) = (vec![0i32; rows], vec![1i32; rows], vec![1i16; rows]);
        let (actors, names) = (vec!["account"; rows], vec!["deposited"; rows]);
        let times = vec![SystemTime::now(); rows];
        let ids: Vec<Id> = numbers.iter().map(|number| Id(0x1234_5678 << 64 | number.unsigned_abs() as u128)).collect();
        let (records, payloads) = (vec![&self.record[..]; rows], vec![&self.payload[..]; rows]);
        let parameters: [&(dyn ToSql + Sync); 19] = [
            &zeros, &numbers, &actors, &keys, &numbers, &before, &before, &ones, &times, &ids, &ids, &records, &zeros,
            &numbers, &numbers, &names, &ones, &codecs, &payloads,
        ];
        self.client.execute(&self.statement, &parameters).await.expect("writes");
    }
}

async fn open(server: &PostgresServer) -> Node {
    let store = PostgresStore::builder(&server.url()).exclusive().connect().await.expect("connects");
    let builder = Node::builder("bank", store).config(NodeConfig::default()).aggregate::<Account>().threads(0);
    builder.start().await.expect("starts")
}

fn quiet() -> bool {
    is_quiet(tempfile::tempdir().expect("a folder").path())
}

/// Measures one turn at a time.
pub(crate) fn alone() {
    const TURNS: usize = 2000;
    let server = PostgresServer::start_on_disk();
    let mut pairs = Vec::new();
    for _ in 0..REPETITIONS {
        if !quiet() {
            continue;
        }
        pairs.push(block_on(async {
            let node = open(&server).await;
            let client = node.client();
            client.send(deposit("ada")).await.expect("it is handled");
            let mut ours = Vec::new();
            for _ in 0..TURNS {
                let begun = Instant::now();
                client.send(deposit("ada")).await.expect("it is handled");
                ours.push(micros(begun.elapsed()));
            }
            node.stop().await.expect("it stops");
            let raw = Raw::connect(&server).await;
            let (key, mut bare) = (["ada".to_owned()], Vec::new());
            for turn in 0..=TURNS {
                let begun = Instant::now();
                raw.write(&key).await;
                if turn > 0 {
                    bare.push(micros(begun.elapsed()));
                }
            }
            (median(ours.into_iter()), median(bare.into_iter()))
        }));
    }
    print("postgres_alone", "us", "one bare statement that writes the same rows", &pairs);
}

fn micros(span: Duration) -> f64 {
    span.as_secs_f64() * 1e6
}

/// Rows that are queued while a group is being written.
#[derive(Default)]
struct Gathered {
    rows: RefCell<Vec<(String, oneshot::Sender<()>)>>,
    more: Notify,
}

/// Group commit without a framework: all queued rows are one statement.
async fn gather(raw: Raw, gathered: Rc<Gathered>) {
    loop {
        let mut rows = gathered.rows.take();
        if rows.is_empty() {
            gathered.more.notified().await;
            continue;
        }
        let rest = rows.split_off(rows.len().min(1024));
        gathered.rows.borrow_mut().extend(rest);
        let (keys, waiting): (Vec<_>, Vec<_>) = rows.into_iter().unzip();
        raw.write(&keys).await;
        for waiting in waiting {
            waiting.send(()).expect("it waits");
        }
    }
}

/// Measures concurrent turns: one of each of 1,000 keys, and 256 of one key.
pub(crate) fn together() {
    const EACH: usize = 50;
    let server = PostgresServer::start_in("/tmp", &[("max_wal_size", "4GB")]);
    let (mut rates, mut waits, mut hot) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..=REPETITIONS {
        if !quiet() {
            continue;
        }
        block_on(async {
            let node = open(&server).await;
            many(KEYS, KEYS, 1, &node.client()).await;
            let ours = many(KEYS, KEYS, EACH, &node.client()).await;
            let one_key = many(256, 1, EACH, &node.client()).await;
            node.stop().await.expect("it stops");
            let gathered = Rc::new(Gathered::default());
            let writer = tokio::task::spawn_local(gather(Raw::connect(&server).await, Rc::clone(&gathered)));
            let ask = |task: usize| {
                let gathered = Rc::clone(&gathered);
                async move {
                    let mut waits = Vec::with_capacity(EACH);
                    for _ in 0..EACH {
                        let begun = Instant::now();
                        let (sender, written) = oneshot::channel();
                        gathered.rows.borrow_mut().push((format!("account-{task}"), sender));
                        gathered.more.notify_one();
                        written.await.expect("it is written");
                        waits.push(begun.elapsed());
                    }
                    waits
                }
            };
            let bare = measure(KEYS, ask).await;
            writer.abort();
            rates.push((ours.each_second, bare.each_second));
            waits.push((ours.p99, bare.p99));
            hot.push((one_key.each_second, ours.each_second));
        });
    }
    // The first pair is a warm-up.
    let kept = |pairs: &[(f64, f64)]| pairs.get(1..).unwrap_or_default().to_vec();
    let anchor = "a bare group commit of the same rows with unnest";
    print("postgres_1000_keys", "turns/s", anchor, &kept(&rates));
    print("postgres_1000_keys_p99", "ms", anchor, &kept(&waits));
    print("postgres_hot_key", "turns/s", "1,000 keys at once", &kept(&hot));
}
