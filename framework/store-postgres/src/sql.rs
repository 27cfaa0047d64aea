//! The statements, with the name of the schema filled in.
//!
//! Called by everything that sends a statement. Names are qualified in each statement because a connection pooler may change
//! the session, and with it the search path, between two statements.

/// The schema of the tables, unless the service configures one.
pub(crate) const SCHEMA: &str = "whizbang";

/// Writes turns and their events, and returns the shards whose epoch still is the writer's. Of other shards nothing is written.
///
/// The lock on the shards' rows is held until the commit, so a new owner that raises the epoch waits for the commit or comes
/// first. `FOR SHARE` would fence as well, but lets groups on other connections overtake a waiting owner; `FOR KEY SHARE` does
/// not fence. The join is repeated on the newest version of a row after a wait.
const COMMIT: &str = r#"WITH owned AS MATERIALIZED (
    SELECT s.id FROM unnest($1, $2) AS w (id, epoch) JOIN {schema}.shards s ON s.id = w.id AND s.epoch = w.epoch
    ORDER BY s.id FOR NO KEY UPDATE OF s
), put_turns AS (
    INSERT INTO {schema}.turns
    SELECT r.* FROM unnest($3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14)
        AS r (shard, location, actor, key, number, version, position, events, recorded_at, message, correlation, record)
    JOIN owned ON owned.id = r.shard
), put_events AS (
    INSERT INTO {schema}.event_data
    SELECT r.* FROM unnest($15, $16, $17, $18, $19, $20, $21)
        AS r (shard, position, location, name, version, codec, payload)
    JOIN owned ON owned.id = r.shard
)"#;

/// Behind [`COMMIT`] in a group that also has progress. Progress never goes back. A group that waited for the server may have
/// several steps of one source; a statement can change a row only once, so it takes the last step.
const COMMIT_PROGRESS: &str = r#", put_progress AS (
    INSERT INTO {schema}.progress AS p
    SELECT DISTINCT ON (r.shard, r.source) r.*
    FROM unnest($22, $23, $24, $25, $26) AS r (shard, source, location, through, record)
    JOIN owned ON owned.id = r.shard
    ORDER BY r.shard, r.source, r.through DESC, r.location DESC
    ON CONFLICT (shard, source) DO UPDATE
    SET location = excluded.location, through = excluded.through, record = excluded.record
    WHERE p.through <= excluded.through
)"#;

/// The end of both forms of the commit: the shards that it was made for.
const COMMITTED: &str = " SELECT id FROM owned";

/// Saves snapshots for the shards whose epoch still is the writer's. An older one never replaces a newer one.
const SNAPSHOTS: &str = r#"WITH owned AS MATERIALIZED (
    SELECT s.id FROM unnest($1, $2) AS w (id, epoch) JOIN {schema}.shards s ON s.id = w.id AND s.epoch = w.epoch
    ORDER BY s.id FOR NO KEY UPDATE OF s
)
INSERT INTO {schema}.snapshots AS p
SELECT r.* FROM unnest($3, $4, $5, $6, $7, $8, $9) AS r (shard, actor, key, turn, version, schema, bytes)
JOIN owned ON owned.id = r.shard
ON CONFLICT (shard, actor, key) DO UPDATE
SET turn = excluded.turn, version = excluded.version, schema = excluded.schema, bytes = excluded.bytes
WHERE p.turn <= excluded.turn"#;

/// Waits for every statement that still holds the rows of these shards.
const LOCK: &str = "SELECT s.id FROM {schema}.shards s WHERE s.id = ANY ($1) ORDER BY s.id FOR NO KEY UPDATE OF s";
/// Reads the epoch of shards and the location of their last turn.
const STATE: &str = r#"SELECT s.id, s.epoch,
    (SELECT COALESCE(max(t.location), 0) FROM {schema}.turns t WHERE t.shard = s.id) AS location
FROM {schema}.shards s WHERE s.id = ANY ($1)"#;

/// The records at one location of each of some shards.
const WRITTEN: &str = r#"SELECT t.shard, t.location, t.record FROM unnest($1, $2) AS w (shard, location)
JOIN {schema}.turns t ON t.shard = w.shard AND t.location = w.location"#;

/// Adds a domain with its number of shards, or returns the number that it has.
const DOMAIN: &str = r#"WITH put AS (
    INSERT INTO {schema}.domains VALUES ($1, $2) ON CONFLICT (name) DO NOTHING RETURNING shards
)
SELECT shards FROM put UNION ALL SELECT shards FROM {schema}.domains WHERE name = $1 LIMIT 1"#;
/// Adds a shard, unless it is there.
const SHARD: &str =
    "INSERT INTO {schema}.shards (domain, number) VALUES ($1, $2) ON CONFLICT (domain, number) DO NOTHING";

/// Takes a shard, whatever its owner does. A store that is a part of a move has no owners.
///
/// An epoch is the time of the opening in milliseconds, but always more than the last one. So it is unique also if the database goes
/// back to an earlier state: a count would give the same epoch to an owner from before and to one from after it. The clock decides
/// nothing else.
const OPEN: &str = r#"UPDATE {schema}.shards
SET epoch = GREATEST(epoch + 1, (extract(epoch FROM clock_timestamp()) * 1000)::bigint), opened_at = clock_timestamp(), owner = NULL
WHERE domain = $1 AND number = $2{unmarked} RETURNING id, epoch"#;
/// The condition for a store that is not a part of a move.
const UNMARKED: &str = " AND NOT EXISTS (SELECT FROM {schema}.meta WHERE name = 'move')";
/// The same for a member of a shared store, if the shard has no owner, or one whose lease has expired, or if the member has it.
///
/// The row of the expired owner is locked: its renewal comes either before, and the shard stays, or after, and no longer
/// finds the shard among its own. Without the lock an owner whose renewal succeeded could lose the shard afterwards. The wait
/// for a lock is limited: a session that was frozen with a lock must not block a takeover for ever.
const TAKE: &str = r#"WITH patience AS MATERIALIZED (
    SELECT set_config('lock_timeout', '5s', true)
), expired AS MATERIALIZED (
    SELECT o.id FROM patience, {schema}.shards s JOIN {schema}.members o ON o.id = s.owner
    WHERE s.domain = $1 AND s.number = $2 AND o.id <> $3 AND o.expires_at <= clock_timestamp()
    FOR NO KEY UPDATE OF o
)
UPDATE {schema}.shards s
SET epoch = GREATEST(s.epoch + 1, (extract(epoch FROM clock_timestamp()) * 1000)::bigint), opened_at = clock_timestamp(),
    owner = $3, service = m.service
FROM patience, {schema}.members m
WHERE s.domain = $1 AND s.number = $2 AND m.id = $3 AND m.expires_at > clock_timestamp()
    AND (s.owner IS NULL OR s.owner = $3 OR s.owner IN (SELECT id FROM expired)){unmarked}
RETURNING s.id, s.epoch"#;

/// Returns a row if [`TAKE`] would take the shard.
const MAY_TAKE: &str = r#"SELECT 1 FROM {schema}.members m WHERE m.id = $3 AND m.expires_at > clock_timestamp() AND NOT EXISTS (
    SELECT FROM {schema}.shards s JOIN {schema}.members o ON o.id = s.owner
    WHERE s.domain = $1 AND s.number = $2 AND o.id <> $3 AND o.expires_at > clock_timestamp()
)"#;

/// Renews the lease of a member, by the clock of the server. Forgets members that expired long ago and own nothing.
const RENEW: &str = r#"WITH gone AS (
    DELETE FROM {schema}.members m
    WHERE m.id <> $1 AND m.expires_at < clock_timestamp() - interval '1 day'
        AND NOT EXISTS (SELECT FROM {schema}.shards s WHERE s.owner = m.id)
)
INSERT INTO {schema}.members AS m (id, service, label, draining, expires_at, limits)
VALUES ($1, $2, $3, $4, clock_timestamp() + $5 * interval '1 millisecond', $6)
ON CONFLICT (id) DO UPDATE SET service = excluded.service, label = excluded.label, draining = excluded.draining,
    limits = excluded.limits, expires_at = clock_timestamp() + $5 * interval '1 millisecond'"#;

/// The live members of a service, then the shards it has opened: one state of the database.
const LEASES: &str = r#"SELECT m.id AS member, m.label, m.draining, NULL AS domain, NULL::integer AS number, NULL::bigint AS epoch,
    m.limits
FROM {schema}.members m WHERE m.service = $1 AND m.expires_at > clock_timestamp()
UNION ALL
SELECT s.owner, NULL, NULL, s.domain, s.number, s.epoch, NULL FROM {schema}.shards s WHERE s.service = $1"#;
/// Frees a shard that a member has under an epoch. A later owner keeps it.
const RELEASE: &str =
    "UPDATE {schema}.shards SET owner = NULL WHERE domain = $1 AND number = $2 AND owner = $3 AND epoch = $4";
/// Lists the shards that a member has, with their epochs.
const OWNED: &str = "SELECT domain, number, epoch FROM {schema}.shards WHERE owner = $1 ORDER BY id";
/// Removes a member, whose shards were released before.
const LEAVE: &str = "DELETE FROM {schema}.members WHERE id = $1";

/// Finds the row of a shard, for reading without opening it.
const FIND: &str = "SELECT id FROM {schema}.shards WHERE domain = $1 AND number = $2";

/// Replaces the checkpoint of a shard and adds the ids since then, if the writer still owns the shard. Forgets expired ids.
const SAVE_CHECKPOINT: &str = r#"WITH owner AS (
    SELECT id FROM {schema}.shards WHERE id = $1 AND epoch = $2
), older AS (
    DELETE FROM {schema}.checkpoints WHERE shard = $1 AND through < $3 AND EXISTS (SELECT FROM owner)
), expired AS (
    DELETE FROM {schema}.handled_ids WHERE shard = $1 AND newest < $6 AND EXISTS (SELECT FROM owner)
), ids AS (
    INSERT INTO {schema}.handled_ids SELECT id, $3, $5, $7 FROM owner WHERE length($7) > 0 ON CONFLICT DO NOTHING
)
INSERT INTO {schema}.checkpoints SELECT id, $3, $2, clock_timestamp(), $4 FROM owner ON CONFLICT DO NOTHING"#;
/// Reads the newest checkpoint of a shard.
const LOAD_CHECKPOINT: &str =
    "SELECT through, bytes FROM {schema}.checkpoints WHERE shard = $1 ORDER BY through DESC LIMIT 1";
/// Reads the ids of handled messages that were saved with the checkpoints of a shard, oldest first.
const LOAD_IDS: &str = "SELECT bytes FROM {schema}.handled_ids WHERE shard = $1 ORDER BY through";
/// Returns a row if a shard has a turn at a location: the last one of its checkpoint must be there.
const HAS_TURN: &str = "SELECT 1 FROM {schema}.turns WHERE shard = $1 AND location = $2";

/// Reads the watermarks and confirmations of a shard.
const PROGRESS: &str = "SELECT location, record FROM {schema}.progress WHERE shard = $1 ORDER BY location";
/// Reads the turns of a shard above a location, without payloads: the index needs none.
const LOG: &str = "SELECT location, record FROM {schema}.turns WHERE shard = $1 AND location > $2 ORDER BY location";

/// The turns of a stream after `$4` up to `$5`.
const TURNS: &str = r#"SELECT t.location, t.record, ARRAY(
    SELECT e.payload FROM {schema}.event_data e
    WHERE e.shard = t.shard AND e.position > t.position AND e.position <= t.position + t.events ORDER BY e.position
)
FROM {schema}.turns t
WHERE t.shard = $1 AND t.actor = $2 AND t.key = $3 AND t.number > $4 AND t.number <= $5
ORDER BY t.number LIMIT $6"#;

/// The newest snapshot of a stream that is not behind turn `$4`.
const SNAPSHOT: &str = r#"SELECT turn, version, schema, bytes FROM {schema}.snapshots
WHERE shard = $1 AND actor = $2 AND key = $3 AND turn <= $4"#;

/// A snapshot, as a row with the number 0, and the turns after it up to `$4`: one request, one state of the database.
const LOAD: &str = r#"WITH s AS ({snapshot}), n AS (
    SELECT t.location, t.record, t.number, ARRAY(
        SELECT e.payload FROM {schema}.event_data e
        WHERE e.shard = t.shard AND e.position > t.position AND e.position <= t.position + t.events ORDER BY e.position
    ) AS payloads
    FROM {schema}.turns t
    WHERE t.shard = $1 AND t.actor = $2 AND t.key = $3 AND t.number > COALESCE((SELECT turn FROM s), 0) AND t.number <= $4
)
SELECT 0::bigint AS number, turn AS location, version, schema, bytes AS record, NULL::bytea[] AS payloads FROM s
UNION ALL SELECT number, location, 0, 0, record, payloads FROM n
ORDER BY number"#;

/// The turns at some locations.
const AT: &str = r#"SELECT t.location, t.record, ARRAY(
    SELECT e.payload FROM {schema}.event_data e
    WHERE e.shard = t.shard AND e.position > t.position AND e.position <= t.position + t.events ORDER BY e.position
)
FROM {schema}.turns t WHERE t.shard = $1 AND t.location = ANY ($2) ORDER BY t.location"#;
/// Reads the records at some locations, without payloads.
const RECORDS: &str =
    "SELECT location, record FROM {schema}.turns WHERE shard = $1 AND location = ANY ($2) ORDER BY location";

/// The turns with the events at the positions above `$2` up to `$3`.
const EVENTS: &str = r#"SELECT t.location, t.record, ARRAY(
    SELECT e.payload FROM {schema}.event_data e
    WHERE e.shard = t.shard AND e.position > t.position AND e.position <= t.position + t.events ORDER BY e.position
)
FROM {schema}.turns t
WHERE t.shard = $1 AND t.location = ANY (ARRAY(
    SELECT DISTINCT e.location FROM {schema}.event_data e WHERE e.shard = $1 AND e.position > $2 AND e.position <= $3
))
ORDER BY t.location"#;
/// Finds the first turn of each stream of a shard.
const STREAMS: &str = "SELECT location, record FROM {schema}.turns WHERE shard = $1 AND number = 1 AND location < $2";

/// Reads the view of a projection. A row without a schema was claimed and never saved.
const VIEW: &str =
    "SELECT schema, checkpoint::text, bytes FROM {schema}.views WHERE projection = $1 AND schema IS NOT NULL";
/// Raises the epoch of a view, which rejects the saves of earlier owners. It is unique as that of a shard.
const CLAIM_VIEW: &str = r#"INSERT INTO {schema}.views AS v (projection, epoch)
VALUES ($1, (extract(epoch FROM clock_timestamp()) * 1000)::bigint)
ON CONFLICT (projection) DO UPDATE SET epoch = GREATEST(v.epoch + 1, excluded.epoch) RETURNING epoch"#;
/// Saves a view under an epoch. Returns no row if a later owner has claimed it.
const SAVE_VIEW: &str = r#"UPDATE {schema}.views SET schema = $3, checkpoint = $4::text::jsonb, bytes = $5
WHERE projection = $1 AND epoch = $2 RETURNING epoch"#;
/// Reads the epoch of a view, for the error of an owner that has lost it.
const VIEW_EPOCH: &str = "SELECT epoch FROM {schema}.views WHERE projection = $1";

/// Reads a value that the store keeps about itself: identity, catalog, secrets.
const META: &str = "SELECT value FROM {schema}.meta WHERE name = $1";
/// Returns no row if the value is not $3: another node has replaced it. If the first answer was lost the statement is run
/// again, and finds its own value.
const REPLACE_META: &str = r#"INSERT INTO {schema}.meta AS m VALUES ($1, $2)
ON CONFLICT (name) DO UPDATE SET value = excluded.value WHERE m.value = $3 OR m.value = $2 RETURNING m.name"#;

/// The statements for one schema.
#[derive(Debug)]
pub(crate) struct Sql {
    /// The name of the schema, which needs no quotes.
    schema: String,
    /// [`COMMIT`]: a group without progress.
    pub(crate) commit: String,
    /// [`COMMIT`] and [`COMMIT_PROGRESS`]: a group with progress.
    pub(crate) commit_progress: String,
    /// [`SNAPSHOTS`]: a batch of snapshots.
    pub(crate) snapshots: String,
    /// [`LOCK`]: waits for statements that were under way when a connection was lost.
    pub(crate) lock: String,
    /// [`STATE`]: the epoch and the last turn of shards.
    pub(crate) state: String,
    /// [`WRITTEN`]: the last turns of a group in doubt.
    pub(crate) written: String,
    /// [`DOMAIN`]: adds a domain.
    pub(crate) domain: String,
    /// [`SHARD`]: adds a shard.
    pub(crate) shard: String,
    /// [`OPEN`]: takes a shard for an exclusive node.
    pub(crate) open: String,
    /// [`TAKE`]: takes a free shard for a member.
    pub(crate) take: String,
    /// [`MAY_TAKE`]: the check before a takeover in this process.
    pub(crate) may_take: String,
    /// [`RENEW`]: extends a lease.
    pub(crate) renew: String,
    /// [`LEASES`]: the members of a service and the owners of its shards.
    pub(crate) leases: String,
    /// [`RELEASE`]: frees a shard.
    pub(crate) release: String,
    /// [`OWNED`]: the shards of a member.
    pub(crate) owned: String,
    /// [`LEAVE`]: removes a member.
    pub(crate) leave: String,
    /// [`FIND`]: the row of a shard.
    pub(crate) find: String,
    /// [`SAVE_CHECKPOINT`]: replaces the checkpoint of a shard.
    pub(crate) save_checkpoint: String,
    /// [`LOAD_CHECKPOINT`]: the newest checkpoint.
    pub(crate) load_checkpoint: String,
    /// [`LOAD_IDS`]: the ids beside the checkpoints.
    pub(crate) load_ids: String,
    /// [`HAS_TURN`]: whether the log reaches its checkpoint.
    pub(crate) has_turn: String,
    /// [`PROGRESS`]: watermarks and confirmations.
    pub(crate) progress: String,
    /// [`LOG`]: the turns after a checkpoint, for the index.
    pub(crate) log: String,
    /// [`TURNS`]: a page of a stream.
    pub(crate) turns: String,
    /// [`SNAPSHOT`]: the snapshot of a stream.
    pub(crate) snapshot: String,
    /// [`LOAD`]: a snapshot and the turns after it.
    pub(crate) load: String,
    /// [`AT`]: turns at some locations, with payloads.
    pub(crate) at: String,
    /// [`RECORDS`]: turns at some locations, without payloads.
    pub(crate) records: String,
    /// [`EVENTS`]: the turns with a range of events.
    pub(crate) events: String,
    /// [`STREAMS`]: the first turn of each stream.
    pub(crate) streams: String,
    /// [`VIEW`]: the view of a projection.
    pub(crate) view: String,
    /// [`CLAIM_VIEW`]: makes the caller the owner of a view.
    pub(crate) claim_view: String,
    /// [`SAVE_VIEW`]: replaces a view.
    pub(crate) save_view: String,
    /// [`VIEW_EPOCH`]: the owner of a view, as its epoch.
    pub(crate) view_epoch: String,
    /// [`META`]: a value of the store.
    pub(crate) meta: String,
    /// [`REPLACE_META`]: replaces a value of the store.
    pub(crate) replace_meta: String,
}

impl Sql {
    /// The statements for a schema whose name [is one](is_schema).
    pub(crate) fn new(schema: &str) -> Self {
        Self::with(schema, UNMARKED)
    }

    /// The statements for the copy that a move makes: its mark keeps only others from opening shards.
    pub(crate) fn of_copy(schema: &str) -> Self {
        Self::with(schema, "")
    }

    fn with(schema: &str, unmarked: &str) -> Self {
        let text =
            |sql: &str| sql.replace("{snapshot}", SNAPSHOT).replace("{unmarked}", unmarked).replace("{schema}", schema);
        Self {
            schema: schema.to_owned(),
            commit: text(COMMIT) + COMMITTED,
            commit_progress: text(COMMIT) + &text(COMMIT_PROGRESS) + COMMITTED,
            snapshots: text(SNAPSHOTS),
            lock: text(LOCK),
            state: text(STATE),
            written: text(WRITTEN),
            domain: text(DOMAIN),
            shard: text(SHARD),
            open: text(OPEN),
            take: text(TAKE),
            may_take: text(MAY_TAKE),
            renew: text(RENEW),
            leases: text(LEASES),
            release: text(RELEASE),
            owned: text(OWNED),
            leave: text(LEAVE),
            find: text(FIND),
            save_checkpoint: text(SAVE_CHECKPOINT),
            load_checkpoint: text(LOAD_CHECKPOINT),
            load_ids: text(LOAD_IDS),
            has_turn: text(HAS_TURN),
            progress: text(PROGRESS),
            log: text(LOG),
            turns: text(TURNS),
            snapshot: text(SNAPSHOT),
            load: text(LOAD),
            at: text(AT),
            records: text(RECORDS),
            events: text(EVENTS),
            streams: text(STREAMS),
            view: text(VIEW),
            claim_view: text(CLAIM_VIEW),
            save_view: text(SAVE_VIEW),
            view_epoch: text(VIEW_EPOCH),
            meta: text(META),
            replace_meta: text(REPLACE_META),
        }
    }

    /// SQL with the schema filled in.
    pub(crate) fn text(&self, sql: &str) -> String {
        sql.replace("{schema}", &self.schema)
    }

    /// The schema.
    pub(crate) fn schema(&self) -> &str {
        &self.schema
    }

    /// The table as people name it.
    pub(crate) fn table(&self, name: &str) -> String {
        format!("{}.{name}", self.schema)
    }
}

/// Returns whether a name needs no quotes as the name of a schema.
pub(crate) fn is_schema(name: &str) -> bool {
    let mut letters = name.chars();
    name.len() <= 63
        && letters.next().is_some_and(|first| first.is_ascii_lowercase() || first == '_')
        && letters.all(|letter| letter.is_ascii_lowercase() || letter.is_ascii_digit() || letter == '_')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_need_quotes_are_rejected() {
        assert!(["whizbang", "_a1"].into_iter().all(is_schema));
        assert!(["", "1a", "A", "a-b", "a\"b", "a b", "a;b"].into_iter().all(|name| !is_schema(name)));
    }
}
