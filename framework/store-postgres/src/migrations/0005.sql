-- From this version on, a row `move` in `meta` marks a store that has moved to another place, or the copy of a move that has not
-- finished. Programs that know only older versions of the tables would not look at it.
COMMENT ON TABLE {schema}.meta IS 'What the store knows about itself. The row `move` marks a part of a move: nodes do not use the store';
