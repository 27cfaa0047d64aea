-- Caches: rows may be deleted while no node runs. `bytes` is the index of a shard with every record before `through`.
CREATE TABLE {schema}.checkpoints (
    shard integer NOT NULL,
    through bigint NOT NULL,
    epoch bigint NOT NULL,
    saved_at timestamptz NOT NULL,
    bytes bytea NOT NULL,
    PRIMARY KEY (shard, through)
);
ALTER TABLE {schema}.checkpoints ALTER COLUMN bytes SET STORAGE EXTERNAL;

-- The ids of messages from outside in the turns before `through`, since the checkpoint before. `newest` is the time of the
-- last one, in milliseconds since 1970. Delete them together with the checkpoints.
CREATE TABLE {schema}.handled_ids (
    shard integer NOT NULL,
    through bigint NOT NULL,
    newest bigint NOT NULL,
    bytes bytea NOT NULL,
    PRIMARY KEY (shard, through)
);
ALTER TABLE {schema}.handled_ids ALTER COLUMN bytes SET STORAGE EXTERNAL;
