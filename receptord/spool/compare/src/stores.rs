//! What is compared: each store as one would use it for a spool, with the strongest promise about
//! what is written that it offers and no more.

use std::fs::File;
use std::io::Write as _;
use std::ops::Range;
use std::path::Path;

use fjall::{Database, Keyspace, KeyspaceCreateOptions, PersistMode};
use receptor_proto::record::EntryId;
use receptor_spool::{FsDisk, Limits, Op, Options, Spool};
use redb::{ReadableDatabase as _, ReadableTable as _, TableDefinition};

use crate::record;

/// One of them.
pub(crate) trait Store {
    /// As it is printed.
    const NAME: &'static str;

    fn open(dir: &Path) -> Self;

    /// Writes and removes these entries, and returns when that is safe.
    fn commit(&mut self, written: &[u64], removed: Range<u64>);

    /// Reads everything in order; how many.
    fn read_all(&mut self) -> u64;

    fn close(self);
}

fn encoded(entry: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    record(entry).encode(0, &mut bytes);
    bytes
}

/// A file that only grows.
pub(crate) struct Floor(File);

impl Store for Floor {
    const NAME: &'static str = "floor";

    fn open(dir: &Path) -> Self {
        Self(File::create(dir.join("file")).expect("it is made"))
    }

    fn commit(&mut self, written: &[u64], _removed: Range<u64>) {
        let bytes: Vec<u8> = written.iter().flat_map(|entry| encoded(*entry)).collect();
        self.0.write_all(&bytes).expect("it is written");
        self.0.sync_data().expect("it is synced");
    }

    fn read_all(&mut self) -> u64 {
        0
    }

    fn close(self) {}
}

/// The spool.
pub(crate) struct Own(Spool<FsDisk>);

impl Own {
    /// The same with removals in any order.
    pub(crate) fn commit_any(&mut self, written: &[u64], removed: &[u64]) {
        let writes = written.iter().map(|entry| Op::Write {
            token: *entry,
            records: vec![record(*entry)],
        });
        let removes = removed.iter().map(|entry| Op::Remove(EntryId(*entry)));
        let batch: Vec<Op> = writes.chain(removes).collect();
        for outcome in self.0.commit(0, &batch) {
            outcome.result.expect("it is written");
        }
    }

    /// Bytes of segments for each byte of messages.
    pub(crate) fn disk_over_live(&self) -> f64 {
        self.0.segment_bytes() as f64 / self.0.usage().bytes as f64
    }

    pub(crate) fn tidy(&mut self) {
        while self.0.maintain().expect("the disk works") {}
    }
}

impl Store for Own {
    const NAME: &'static str = "own";

    fn open(dir: &Path) -> Self {
        let mut options = Options::new(fastrand::u64(..));
        options.limits = Limits {
            max_bytes: u64::MAX / 2,
            max_entries: u64::MAX / 2,
            max_bytes_per_recipient: u64::MAX / 2,
            max_entries_per_recipient: u64::MAX / 2,
        };
        let (spool, report) = Spool::open(FsDisk::new(dir), &options).expect("it opens");
        assert!(report.damage.is_empty());
        Self(spool)
    }

    fn commit(&mut self, written: &[u64], removed: Range<u64>) {
        self.commit_any(written, &removed.collect::<Vec<_>>());
    }

    fn read_all(&mut self) -> u64 {
        let mut count = 0;
        for record in self.0.records(0) {
            record.expect("it can be read");
            count += 1;
        }
        count
    }

    fn close(self) {
        self.0.close().expect("it closes");
    }
}

/// Merged levels.
pub(crate) struct Fjall {
    database: Database,
    entries: Keyspace,
}

impl Store for Fjall {
    const NAME: &'static str = "fjall";

    fn open(dir: &Path) -> Self {
        let database = Database::builder(dir).open().expect("it opens");
        let entries = database.keyspace("entries", KeyspaceCreateOptions::default);
        Self {
            entries: entries.expect("it is there"),
            database,
        }
    }

    fn commit(&mut self, written: &[u64], removed: Range<u64>) {
        let mut batch = self
            .database
            .batch()
            .durability(Some(PersistMode::SyncData));
        for entry in written {
            batch.insert(&self.entries, entry.to_be_bytes(), encoded(*entry));
        }
        for entry in removed {
            batch.remove(&self.entries, entry.to_be_bytes());
        }
        batch.commit().expect("it is written");
    }

    fn read_all(&mut self) -> u64 {
        let mut count = 0;
        for entry in self.entries.iter() {
            entry.value().expect("it can be read");
            count += 1;
        }
        count
    }

    fn close(self) {
        self.database
            .persist(PersistMode::SyncAll)
            .expect("it is synced");
    }
}

/// A tree.
pub(crate) struct Redb(redb::Database);

const ENTRIES: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("entries");

impl Store for Redb {
    const NAME: &'static str = "redb";

    fn open(dir: &Path) -> Self {
        Self(redb::Database::create(dir.join("redb")).expect("it opens"))
    }

    fn commit(&mut self, written: &[u64], removed: Range<u64>) {
        let write = self.0.begin_write().expect("it begins");
        {
            let mut entries = write.open_table(ENTRIES).expect("it is there");
            for entry in written {
                let bytes = encoded(*entry);
                entries.insert(entry, &bytes[..]).expect("it is written");
            }
            for entry in removed {
                entries.remove(entry).expect("it is removed");
            }
        }
        write.commit().expect("it is written");
    }

    fn read_all(&mut self) -> u64 {
        let read = self.0.begin_read().expect("it begins");
        let entries = read.open_table(ENTRIES).expect("it is there");
        let mut count = 0;
        for entry in entries.iter().expect("it can be read") {
            let (_, value) = entry.expect("it can be read");
            // As with the others, what is read is the caller's.
            std::hint::black_box(value.value().to_vec());
            count += 1;
        }
        count
    }

    fn close(self) {}
}
