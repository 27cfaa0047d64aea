-- The shards that a member refuses or yields, as JSON; NULL for none.
ALTER TABLE {schema}.members ADD COLUMN limits text;
