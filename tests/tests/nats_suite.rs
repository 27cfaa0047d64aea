//! The bridge suite on real servers: the oldest supported release, and a recent one.

mod distribution {
    use whizbang_tests::nats::{NatsFixture, Release};

    whizbang::bridge_suite!(NatsFixture::start(Release::Distribution));
    whizbang::bridge_lease_suite!(NatsFixture::start(Release::Distribution));
    whizbang::bridge_watch_suite!(NatsFixture::start(Release::Distribution));
}

mod pinned {
    use whizbang_tests::nats::{NatsFixture, Release};

    whizbang::bridge_suite!(NatsFixture::start(Release::Pinned));
    whizbang::bridge_lease_suite!(NatsFixture::start(Release::Pinned));
    whizbang::bridge_watch_suite!(NatsFixture::start(Release::Pinned));
}
