//! Ports for servers that must know their port before they start, or listen at the same port after a restart.
//!
//! A port that the kernel chose is free again as soon as its server is killed, and then serves as the local port of any
//! connection on the machine, or of another test's server. These ports lie below the kernel's range, and a file lock keeps other
//! tests away until the server's test drops them.

use std::fs::{self, File};
use std::hash::{BuildHasher, RandomState};
use std::net::TcpListener;
use std::ops::Range;
use std::os::unix::fs::PermissionsExt;

/// Below the ports that Linux gives to connections (32,768 and above, unless configured otherwise).
const RANGE: Range<u16> = 15_000..32_000;

/// A port of 127.0.0.1 that no other test uses until it is dropped.
#[derive(Debug)]
pub struct ReservedPort {
    number: u16,
    // The kernel releases the lock when the process ends, however it ends.
    _lock: File,
}

impl ReservedPort {
    /// Reserves a free port.
    ///
    /// # Panics
    /// If the folder of locks cannot be created, or if no port is free.
    pub fn new() -> Self {
        let folder = std::env::temp_dir().join("whizbang-ports");
        if fs::create_dir(&folder).is_ok() {
            // Tests of other users lock files here too.
            fs::set_permissions(&folder, fs::Permissions::from_mode(0o777)).expect("sets the mode of a folder");
        }
        let ports = usize::from(RANGE.end - RANGE.start);
        let first = RandomState::new().hash_one(std::process::id());
        (0..ports)
            .find_map(|step| {
                let offset = (first as usize).wrapping_add(step) % ports;
                let number = RANGE.start + u16::try_from(offset).expect("an offset in the range");
                let lock =
                    File::options().create(true).truncate(false).write(true).open(folder.join(number.to_string()));
                let lock = lock.ok().filter(|lock| lock.try_lock().is_ok())?;
                // A program that is not a test may listen there.
                TcpListener::bind(("127.0.0.1", number)).ok().map(|_| Self { number, _lock: lock })
            })
            .expect("a free port")
    }

    /// Returns the number of the port.
    pub fn number(&self) -> u16 {
        self.number
    }
}

impl Default for ReservedPort {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::ReservedPort;

    #[test]
    fn reserved_port_stays_reserved_after_its_server_ended() {
        let reserved = ReservedPort::new();
        // A killed server: the port is free, and its test still owns it.
        drop(std::net::TcpListener::bind(("127.0.0.1", reserved.number())).unwrap());
        let others: Vec<_> = (0..500).map(|_| ReservedPort::new()).collect();
        assert!(others.iter().all(|other| other.number() != reserved.number()));
        let mut numbers: Vec<_> = others.iter().map(ReservedPort::number).collect();
        numbers.sort_unstable();
        numbers.dedup();
        assert_eq!(numbers.len(), others.len());
    }

    #[test]
    fn connections_get_no_port_of_the_reserved_range() {
        let range = std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").unwrap();
        let lowest: u16 = range.split_whitespace().next().unwrap().parse().unwrap();
        assert!(super::RANGE.end <= lowest, "connections get ports from {lowest}");
    }
}
