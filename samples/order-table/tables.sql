CREATE SCHEMA IF NOT EXISTS shop;
CREATE TABLE IF NOT EXISTS shop.orders (
    id text PRIMARY KEY,
    city text NOT NULL,
    cents bigint NOT NULL CHECK (cents > 0),
    placed_at timestamptz NOT NULL,
    shipped boolean NOT NULL DEFAULT false
);
CREATE INDEX IF NOT EXISTS orders_city ON shop.orders (city);
