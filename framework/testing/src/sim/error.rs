//! Errors in the description of a simulated cluster.

/// An error in the description of a cluster. Detected before the scenario starts, or when an injected fault is invalid.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SimError {
    /// Two services host one domain. Both would reply, each from its own log. Host the domain in one of them.
    #[error("services `{first}` and `{second}` both host the domain `{domain}`; host it in one of them")]
    HostedTwice {
        /// The domain.
        domain: String,
        /// The service that was added first.
        first: String,
        /// The other service.
        second: String,
    },
    /// A fault refers to a service that does not exist. Services are numbered from 0, in the order in which they were added.
    #[error("unknown service {service} in fault {fault}; the cluster has {count}, numbered from 0")]
    MissingService {
        /// The fault, as `Debug` prints it.
        fault: String,
        /// The unknown service.
        service: usize,
        /// The number of services.
        count: usize,
    },
    /// A fault refers to a version that does not exist. Version 0 is added with the service, others with
    /// [`Sim::version`](super::Sim::version).
    #[error("unknown version {version} of service {service} in fault {fault}")]
    MissingVersion {
        /// The fault, as `Debug` prints it.
        fault: String,
        /// The service.
        service: usize,
        /// The unknown version.
        version: usize,
    },
    /// A fault targets jobs, and its service has no worker.
    #[error("fault {fault} targets jobs, and the service `{service}` hosts no worker")]
    NoWorker {
        /// The fault, as `Debug` prints it.
        fault: String,
        /// The service's name.
        service: String,
    },
}
