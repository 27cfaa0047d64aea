//! In memory: for tests, for the hello, and as the oracle the other stores are compared with.
