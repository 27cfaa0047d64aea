//! The content of a file on the simulated disk, sector by sector, with what a power cut may leave of it.

use std::collections::BTreeMap;

use whizbang::message::IdSource;

pub(crate) const SECTOR: usize = 512;

type Bytes = [u8; SECTOR];

#[derive(Clone, Default)]
pub(crate) struct Content {
    pub(crate) length: u64,
    /// Lengths that a power cut may leave instead of this one.
    pub(crate) lengths: Vec<u64>,
    pub(crate) sectors: BTreeMap<u64, Sector>,
}

#[derive(Clone)]
pub(crate) struct Sector {
    pub(crate) now: Bytes,
    /// Versions that a power cut may leave; empty if the data is durable.
    pub(crate) versions: Vec<Bytes>,
    /// True if a flush would make it durable. False after a failed flush.
    pub(crate) dirty: bool,
}

impl Content {
    pub(crate) fn write(&mut self, bytes: &[u8], offset: u64) {
        let mut at = 0;
        while at < bytes.len() {
            let place = offset + at as u64;
            let (number, inside) = (place / SECTOR as u64, (place % SECTOR as u64) as usize);
            let length = (SECTOR - inside).min(bytes.len() - at);
            let fresh = || Sector { now: [0; SECTOR], versions: Vec::new(), dirty: false };
            let sector = self.sectors.entry(number).or_insert_with(fresh);
            if sector.versions.is_empty() {
                sector.versions.push(sector.now);
            }
            sector.now[inside..inside + length].copy_from_slice(&bytes[at..at + length]);
            sector.versions.push(sector.now);
            sector.dirty = true;
            at += length;
        }
        let end = offset + bytes.len() as u64;
        if end > self.length {
            self.lengths.push(self.length);
            self.length = end;
        }
    }

    pub(crate) fn read(&self) -> Vec<u8> {
        let mut bytes = vec![0; self.length as usize];
        for (number, sector) in &self.sectors {
            let start = (*number as usize * SECTOR).min(bytes.len());
            let end = (start + SECTOR).min(bytes.len());
            bytes[start..end].copy_from_slice(&sector.now[..end - start]);
        }
        bytes
    }

    pub(crate) fn flush(&mut self) {
        self.lengths.clear();
        for sector in self.sectors.values_mut().filter(|sector| sector.dirty) {
            sector.versions.clear();
            sector.dirty = false;
        }
    }

    /// The data to flush is clean in memory, and its state on the disk is unknown.
    pub(crate) fn fail_to_flush(&mut self) {
        self.sectors.values_mut().for_each(|sector| sector.dirty = false);
    }

    pub(crate) fn cut(&mut self, fate: u64, random: &IdSource) {
        if let Some(first) = self.lengths.first().copied() {
            self.length = match fate {
                0 => self.length,
                1 => first,
                _ => first + random.below(self.length - first + 1),
            };
            self.lengths.clear();
        }
        for sector in self.sectors.values_mut() {
            let versions = std::mem::take(&mut sector.versions);
            sector.dirty = false;
            let last = versions.len().saturating_sub(1) as u64;
            let nth = match fate {
                0 => last,
                1 => 0,
                2 => last - random.below(last + 1).min(random.below(8)),
                _ => random.below(last + 1),
            };
            if let Some(version) = versions.into_iter().nth(nth as usize) {
                sector.now = version;
            }
        }
        let end = self.length.div_ceil(SECTOR as u64);
        self.sectors.retain(|number, _| *number < end);
    }
}
