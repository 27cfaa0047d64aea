//! The derives of whizbang.
