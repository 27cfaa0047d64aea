//! The members of a service and the owners of its shards, as rows in PostgreSQL.
//!
//! Called by the [leases](crate::leases) and by the [takeover](crate::inner) of a shard. Only the clock of the server counts. A shard is taken
//! by one statement that raises its epoch, one shard at a time: two rows in one statement could deadlock with a commit.
//! Renewals have a connection and a thread of their own, so neither commits nor reads delay them. They are single statements,
//! so they work behind a pooler.
//!
//! A closed connection does not prove that a member has ended: the server closes sessions of running members as well, and
//! such a member still answers queries. Only its lease decides.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use tokio_postgres::Row;
use tokio_postgres::types::Type;
use whizbang_core::message::{Name, ShardId};
use whizbang_core::store::{Epoch, Leases, Member, MemberId, ShardLease, StoreError};

use crate::columns::Id;
use crate::failure::Failure;
use crate::marks;
use crate::open;
use crate::pool::Pool;
use crate::sql::Sql;

/// The operation that errors of a renewal name.
const RENEWING: &str = "renewing a lease in PostgreSQL";
/// The operation that errors of a takeover name.
const TAKING: &str = "taking a shard in PostgreSQL";
/// The operation that errors of a release name.
const RELEASING: &str = "releasing a shard in PostgreSQL";

/// The connection for renewals, and the one for everything that may wait for a lock.
const RENEWALS: usize = 0;
/// The connection that takes and releases shards. A statement on it may wait for the lock of a commit.
const TAKEOVERS: usize = 1;

/// The members and owners, as rows.
#[derive(Debug)]
pub(crate) struct LeaseTable {
    /// Two connections of its own, so that reads of the store delay no renewal.
    pool: Pool,
    /// The statements with the name of the schema.
    sql: Arc<Sql>,
}

impl LeaseTable {
    /// Uses the connections of `pool`, at least two.
    pub(crate) fn new(pool: Pool, sql: Arc<Sql>) -> Self {
        Self { pool, sql }
    }

    /// Returns the reason for failing requests, while there is one.
    pub(crate) fn issue(&self) -> Option<StoreError> {
        self.pool.issue()
    }

    /// Closes the connections. Leases then end by their time.
    pub(crate) fn stop(&self) {
        self.pool.stop();
    }

    /// Extends the lease of a member and reads the members and owners of its service. Both are idempotent. Costs two
    /// requests, whatever the number of shards.
    ///
    /// # Errors
    /// [`StoreError::Io`] if the server cannot be reached: the lease then ends by its time. [`StoreError::Corrupt`] if a row
    /// has no valid name.
    pub(crate) async fn renew(&self, member: &Member, ttl: Duration) -> Result<Leases, StoreError> {
        let (id, service) = (Id(member.id.as_u128()), member.service.as_str());
        // PostgreSQL's `text` has no NUL.
        let label = member.label.replace('\0', "");
        let limits = limits_of(member);
        let millis = i64::try_from(ttl.as_millis()).unwrap_or(i64::MAX);
        self.pool
            .query_on(
                RENEWALS,
                RENEWING,
                &self.sql.renew,
                &[
                    (&id, Type::UUID),
                    (&service, Type::TEXT),
                    (&label, Type::TEXT),
                    (&member.is_draining, Type::BOOL),
                    (&millis, Type::INT8),
                    (&limits, Type::TEXT),
                ],
            )
            .await?;
        let rows = self.pool.query_on(RENEWALS, RENEWING, &self.sql.leases, &[(&service, Type::TEXT)]).await?;
        let mut leases = Leases::default();
        for row in &rows {
            match row.get::<_, Option<&str>>(3) {
                Some(domain) => leases.shards.push(self.shard(row, domain)?),
                None => leases.members.push(found(row, &member.service)),
            }
        }
        if !leases.members.iter().any(|found| found.id == member.id) {
            leases.members.push(member.clone());
        }
        leases.members.sort_by_key(|member| member.id);
        leases.shards.sort_by(|one, other| one.shard.cmp(&other.shard));
        Ok(leases)
    }

    /// Reads the owner of a shard from a row.
    fn shard(&self, row: &Row, domain: &str) -> Result<ShardLease, StoreError> {
        let shard = shard(domain, row.get(4)).map_err(|reason| StoreError::Corrupt {
            file: self.sql.table("shards").into(),
            offset: 0,
            reason,
        })?;
        let owner = row.get::<_, Option<Id>>(0).map(|owner| MemberId::from_u128(owner.0));
        Ok(ShardLease::new(shard, owner, row.get::<_, i64>(5).unsigned_abs()))
    }

    /// Returns whether the member could take the shard now.
    pub(crate) async fn may_take(&self, member: MemberId, id: &ShardId) -> Result<bool, StoreError> {
        Ok(!self.ask(TAKING, &self.sql.may_take, member, id).await?.is_empty())
    }

    /// Takes the shard, if it is free. Returns its row and its new epoch. The statement waits at most 5 s for the lock of a
    /// frozen session.
    ///
    /// # Errors
    /// [`StoreError::Moved`] if the store has moved.
    pub(crate) async fn take(&self, member: MemberId, id: &ShardId) -> Result<Option<(i32, Epoch)>, StoreError> {
        let taken = open::taken(&self.ask(TAKING, &self.sql.take, member, id).await?);
        if taken.is_none() {
            // No shard of a store that has moved is ever free.
            let name: &crate::pool::Parameters<'_> = &[(&marks::NAME, Type::TEXT)];
            let mark = self.pool.query_on(TAKEOVERS, TAKING, &self.sql.meta, name).await?;
            marks::refuse(mark.first().map(|row| row.get(0)), &self.sql)?;
        }
        Ok(taken)
    }

    /// Runs a statement about one shard and one member. Sent on the connection for takeovers, so it may wait without delaying
    /// a renewal.
    async fn ask(&self, doing: &str, sql: &str, member: MemberId, id: &ShardId) -> Result<Vec<Row>, StoreError> {
        let (domain, number, member) = (id.domain.as_str(), i32::from(id.shard), Id(member.as_u128()));
        let parameters: &crate::pool::Parameters<'_> =
            &[(&domain, Type::TEXT), (&number, Type::INT4), (&member, Type::UUID)];
        self.pool.query_on(TAKEOVERS, doing, sql, parameters).await
    }

    /// Gives a shard up, if the member still has it under this epoch. It is free at once. A later owner keeps it, so a late
    /// call does no harm.
    pub(crate) async fn release(&self, member: MemberId, id: &ShardId, epoch: Epoch) -> Result<(), StoreError> {
        let (domain, number, member) = (id.domain.as_str(), i32::from(id.shard), Id(member.as_u128()));
        let epoch = epoch as i64;
        let parameters: &crate::pool::Parameters<'_> =
            &[(&domain, Type::TEXT), (&number, Type::INT4), (&member, Type::UUID), (&epoch, Type::INT8)];
        self.pool.query_on(TAKEOVERS, RELEASING, &self.sql.release, parameters).await.map(|_| ())
    }

    /// Gives up all shards of a member and forgets the member. Single statements, so an interruption leaves shards that the lease
    /// frees.
    pub(crate) async fn leave(&self, member: MemberId) -> Result<(), StoreError> {
        let id = Id(member.as_u128());
        let owned = self.pool.query_on(TAKEOVERS, RELEASING, &self.sql.owned, &[(&id, Type::UUID)]).await?;
        for row in &owned {
            let failed = |reason: String| Failure::new(reason).store(RELEASING);
            let shard = shard(row.get(0), row.get(1)).map_err(failed)?;
            self.release(member, &shard, row.get::<_, i64>(2).unsigned_abs()).await?;
        }
        self.pool.query_on(TAKEOVERS, RELEASING, &self.sql.leave, &[(&id, Type::UUID)]).await.map(|_| ())
    }
}

/// Reads a member from a row.
fn found(row: &Row, service: &Name) -> Member {
    let id = row.get::<_, Option<Id>>(0).map_or(0, |id| id.0);
    let label = row.get::<_, Option<&str>>(1).unwrap_or_default();
    let (refuses, yields) = row.get::<_, Option<&str>>(6).map(limits_in).unwrap_or_default();
    let member = Member::new(MemberId::from_u128(id), service.clone(), label).limited(refuses, yields);
    if row.get::<_, Option<bool>>(2) == Some(true) { member.draining() } else { member }
}

/// The shards that a member refuses, and those that it yields, as they are stored.
type Limits = (Vec<(String, u16)>, Vec<(String, u16)>);

/// Returns the limits of a member as JSON; none if it has no limits.
fn limits_of(member: &Member) -> Option<String> {
    let shards = |shards: &BTreeSet<ShardId>| shards.iter().map(|id| (id.domain.to_string(), id.shard)).collect();
    let limits: Limits = (shards(&member.refuses), shards(&member.yields));
    let is_limited = !member.refuses.is_empty() || !member.yields.is_empty();
    is_limited.then(|| serde_json::to_string(&limits).ok()).flatten()
}

/// Limits that a newer version has written in another form count as none: the member itself still keeps to them.
fn limits_in(stored: &str) -> (BTreeSet<ShardId>, BTreeSet<ShardId>) {
    let (refuses, yields): Limits = serde_json::from_str(stored).unwrap_or_default();
    let shards = |shards: Vec<(String, u16)>| {
        let known =
            shards.into_iter().filter_map(|(domain, number)| Some(ShardId::new(Name::new(&domain).ok()?, number)));
        known.collect()
    };
    (shards(refuses), shards(yields))
}

/// Reads the name of a shard.
fn shard(domain: &str, number: i32) -> Result<ShardId, String> {
    let domain = Name::new(domain).map_err(|error| error.to_string())?;
    let number = u16::try_from(number).map_err(|error| error.to_string())?;
    Ok(ShardId::new(domain, number))
}
