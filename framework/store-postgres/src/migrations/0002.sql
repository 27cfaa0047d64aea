-- The nodes that share the shards of a service. Times are those of this server.
CREATE TABLE {schema}.members (
    id uuid PRIMARY KEY,
    service text COLLATE "C" NOT NULL,
    label text NOT NULL,
    draining boolean NOT NULL,
    expires_at timestamptz NOT NULL
) WITH (fillfactor = 50);

-- The last owner that has not released the shard, and the service that has opened it. Both are NULL while one node alone
-- uses the store.
ALTER TABLE {schema}.shards
    ADD COLUMN owner uuid REFERENCES {schema}.members ON DELETE SET NULL,
    ADD COLUMN service text COLLATE "C";
