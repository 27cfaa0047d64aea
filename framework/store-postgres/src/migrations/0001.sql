-- What the store knows about itself.
CREATE TABLE {schema}.meta (
    name text COLLATE "C" PRIMARY KEY,
    value bytea NOT NULL
);

INSERT INTO {schema}.meta VALUES
    ('digest_key', uuid_send(gen_random_uuid())),
    ('stream_seed', uuid_send(gen_random_uuid())),
    ('store', uuid_send(gen_random_uuid()));

-- The number of shards of a domain never changes.
CREATE TABLE {schema}.domains (
    name text COLLATE "C" PRIMARY KEY,
    shards integer NOT NULL CHECK (shards BETWEEN 1 AND 65535)
);

-- The epoch of a shard rises with each opening. A commit locks the row and compares the epoch, and so never updates it: the
-- table stays small.
CREATE TABLE {schema}.shards (
    id integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    domain text COLLATE "C" NOT NULL REFERENCES {schema}.domains,
    number integer NOT NULL CHECK (number >= 0),
    epoch bigint NOT NULL DEFAULT 0,
    opened_at timestamptz,
    UNIQUE (domain, number)
) WITH (fillfactor = 50);

-- The log of a shard: one row for each turn, in the order of the locations. `position` is the position of the shard's last
-- event before the turn. `record` holds everything but the payloads of the events.
CREATE TABLE {schema}.turns (
    shard integer NOT NULL,
    location bigint NOT NULL,
    actor text COLLATE "C" NOT NULL,
    key text COLLATE "C" NOT NULL,
    number bigint NOT NULL,
    version bigint NOT NULL,
    position bigint NOT NULL,
    events integer NOT NULL,
    recorded_at timestamptz NOT NULL,
    message uuid NOT NULL,
    correlation uuid NOT NULL,
    record bytea NOT NULL,
    PRIMARY KEY (shard, location),
    UNIQUE (shard, actor, key, number)
) WITH (autovacuum_freeze_min_age = 0);

CREATE TABLE {schema}.event_data (
    shard integer NOT NULL,
    position bigint NOT NULL,
    location bigint NOT NULL,
    name text COLLATE "C" NOT NULL,
    version integer NOT NULL,
    codec smallint NOT NULL,
    payload bytea NOT NULL,
    PRIMARY KEY (shard, position)
) WITH (autovacuum_freeze_min_age = 0);

-- How far a shard has received from a source, and how far a destination has committed what the shard sent.
CREATE TABLE {schema}.progress (
    shard integer NOT NULL,
    source text COLLATE "C" NOT NULL,
    location bigint NOT NULL,
    through bigint NOT NULL,
    record bytea NOT NULL,
    PRIMARY KEY (shard, source)
) WITH (fillfactor = 50);

-- A cache: rows may be deleted at any time.
CREATE TABLE {schema}.snapshots (
    shard integer NOT NULL,
    actor text COLLATE "C" NOT NULL,
    key text COLLATE "C" NOT NULL,
    turn bigint NOT NULL,
    version bigint NOT NULL,
    schema bigint NOT NULL,
    bytes bytea NOT NULL,
    PRIMARY KEY (shard, actor, key)
) WITH (fillfactor = 70);

-- `schema` is NULL until a view was saved for the first time.
CREATE TABLE {schema}.views (
    projection text COLLATE "C" PRIMARY KEY,
    epoch bigint NOT NULL,
    schema bigint,
    checkpoint jsonb,
    bytes bytea
) WITH (fillfactor = 50);

-- NULL for bytes that are not JSON, or that jsonb cannot hold (U+0000).
CREATE FUNCTION {schema}.json(payload bytea) RETURNS jsonb LANGUAGE plpgsql IMMUTABLE STRICT AS $function$
BEGIN
    RETURN convert_from(payload, 'UTF8')::jsonb;
EXCEPTION WHEN OTHERS THEN
    RETURN NULL;
END
$function$;

-- The events as people query them. `data` is the payload of events in JSON.
CREATE VIEW {schema}.events AS
SELECT s.domain, s.number AS shard, e.position, t.actor, t.key, t.version + (e.position - t.position) AS stream_version,
    e.name AS type, e.version AS schema_version, t.recorded_at, t.message AS caused_by, t.correlation,
    CASE WHEN e.codec = 2 THEN {schema}.json(e.payload) END AS data, e.payload
FROM {schema}.event_data e
JOIN {schema}.turns t ON t.shard = e.shard AND t.location = e.location
    AND e.position > t.position AND e.position <= t.position + t.events
JOIN {schema}.shards s ON s.id = e.shard;
