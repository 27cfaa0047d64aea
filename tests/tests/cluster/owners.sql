SELECT count(*) FROM SCHEMA.shards s JOIN SCHEMA.members m ON m.id = s.owner WHERE m.expires_at > clock_timestamp() GROUP BY s.owner ORDER BY s.owner
