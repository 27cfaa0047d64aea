//! Strangers on the server write what no node would.
