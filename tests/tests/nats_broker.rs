//! The broker suite on real servers and on the simulated broker, with the same expectations.

mod distribution {
    use whizbang_tests::nats::{JetStreamBroker, Release};

    whizbang::broker_suite!(JetStreamBroker::start(Release::Distribution));
}

mod pinned {
    use whizbang_tests::nats::{JetStreamBroker, Release};

    whizbang::broker_suite!(JetStreamBroker::start(Release::Pinned));
}

/// The simulated broker.
mod model {
    use whizbang::testing::broker::ModelBroker;

    whizbang::broker_suite!(ModelBroker::default());
}
