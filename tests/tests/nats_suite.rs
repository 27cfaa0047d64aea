//! The suite every bridge passes, over real servers: the oldest that is supported, and a modern one.

mod distribution {
    use whizbang_tests::nats::{NatsFixture, Release};

    whizbang::bridge_suite!(NatsFixture::start(Release::Distribution));
}

mod pinned {
    use whizbang_tests::nats::{NatsFixture, Release};

    whizbang::bridge_suite!(NatsFixture::start(Release::Pinned));
}
