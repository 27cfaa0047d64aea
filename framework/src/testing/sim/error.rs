//! Why a simulated cluster cannot be run.

/// A description of a cluster that cannot be run. Found before the story begins, or when a fault names what is not there.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SimError {
    /// Two services host one domain. Both would answer, each from its own log. Host the domain in one of them.
    #[error("the services `{first}` and `{second}` both host the domain `{domain}`; host it in one of them")]
    HostedTwice {
        /// The domain.
        domain: String,
        /// The service that was described first.
        first: String,
        /// The other one.
        second: String,
    },
    /// A fault names a service that the cluster does not have. Services are numbered from 0, as they are described.
    #[error("the fault {fault} names service {service}, and the cluster has {count}, numbered from 0")]
    MissingService {
        /// The fault, as `Debug` prints it.
        fault: String,
        /// The number that it names.
        service: usize,
        /// How many services there are.
        count: usize,
    },
    /// A fault names a version that its service does not have. Version 0 is described with the service, others with
    /// [`Sim::version`](super::Sim::version).
    #[error("the fault {fault} names version {version} of service {service}, which has not that many")]
    MissingVersion {
        /// The fault, as `Debug` prints it.
        fault: String,
        /// The service.
        service: usize,
        /// The version that it names.
        version: usize,
    },
    /// A fault strikes jobs, and its service has no worker.
    #[error("the fault {fault} strikes jobs, and the service `{service}` hosts no worker")]
    NoWorker {
        /// The fault, as `Debug` prints it.
        fault: String,
        /// The service's name.
        service: String,
    },
}
