//! What the simulated broker is built after: real servers run the same cases as it does, with the same expectations.

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
    use whizbang::testing::broker::Modelled;

    whizbang::broker_suite!(Modelled::default());
}
