//! The durable store of Receptor: messages on their way, what must be remembered of those that
//! are gone, and payloads larger than memory should hold.
//!
//! What [`Spool::commit`] said is written survives `kill -9` and power loss at any moment; what
//! it said is not written does not come back, nor does what was removed, once anything that was
//! written later is safe. Whatever is on the disk, opening it neither panics nor fails because
//! of it: what cannot be used is set aside and reported. The crate is synchronous, blocks for
//! as long as the disk takes, starts no thread, reads no clock and draws no random number that
//! it was not given. It knows records ([`receptor_proto::record`]) and nothing of the mesh.
//!
//! # The directory
//!
//! ```text
//! spool/
//! ├── format                        "receptor-spool 1": the version of everything below
//! ├── lock                          locked (flock) while a process has the spool open
//! ├── segments/
//! │   ├── 0000000000000007.seg      the log; the highest number is written to
//! │   ├── 0000000000000009.seg
//! │   └── 0000000000000004.spare    an empty segment, kept for later
//! ├── payloads/
//! │   ├── 00000000000000c1          the payload of entry 0xc1, as it came
//! │   ├── 00000000000000c1.sums     its checksums: crc:u32 for each 64 KiB
//! │   ├── 00000000000000d4          one that is not complete yet
//! │   └── 00000000000000d4.part     what that is part of, and how much of it is safe
//! └── corrupt/
//!     ├── 0000000000000007.seg-8216 what could not be used of that segment, from there on
//!     ├── 00000000000000b2.payload  a payload that is not what its message came with
//!     └── 00000000000000b2.payload.sums   its checksums
//! ```
//!
//! # A segment
//!
//! A directory whose `format` names a later version is refused before anything in it is touched,
//! and so is a segment that does. The number covers what the daemon keeps beside the spool as well.
//!
//! All numbers are big-endian, checksums are CRC-32C.
//!
//! ```text
//! segment   header at 0, the same header at 4096, frames from 5152 on, each at a multiple of 8
//! header    "rcptseg\0"  crc:u32  version:u32  number:u32  salt:u64
//!           count:u32 (segment:u32 length:u32)…      how much of older segments was safe
//!           zeros up to 1056 bytes                   the checksum covers all but itself
//! frame     tag:u32 (the salt's upper half, its lowest bit set)  length:u32 (of all of it)
//!           count:u32  durable:u32 (how much of this segment was safe at this write)
//!           crc:u32 (of the salt, the fields before, those after and the table)  0:u32
//!           table of count × (length:u32 crc:u32), records one after the other, padding
//! record    as in receptor_proto::record; those from 64 on are the spool's own:
//!           64  count:varint (entry:varint segment:varint)…      removed, and where it was
//!           65  entry:varint memo:bytes                          see Op::Memo
//! ```
//!
//! One group of records is one frame, so it is whole or absent. Records of unknown kinds are
//! kept and copied as they are.
//!
//! # What is believed after a crash
//!
//! * What a header says of an older segment, or a frame of its own one, was safe. Of that,
//!   everything readable counts, and what is not readable is damage: reading goes on at the next
//!   good frame, and of a damaged frame with a good table the other records count.
//! * Behind it may be what was written and not synced. Of that, frames count up to the first
//!   that is missing or not whole, and are written once more before anything relies on them.
//! * What is behind the length that a later header names was given up after an error, and does
//!   not count.
//!
//! # Giving space back
//!
//! Removing an entry appends a note that names the segments where the entry is. The note is
//! needed as long as one of them exists. A segment that holds nothing needed is renamed to be
//! used again or removed, but only when everything that says so is safe; and when the segments
//! take more than three times what is needed of them and four segments, the next commit copies
//! what is needed out of the emptiest ([`Spool::maintain`] begins at half of that). Two spare
//! segments must be there before new work is written: when the disk is full, one is for answers and
//! what else ends work, the other for removals, so that space can be won back. A third is kept when
//! there is one, because to use it again is faster than to make a new one.

#![forbid(unsafe_code)]

mod compact;
mod disk;
mod error;
mod index;
mod limits;
mod log;
mod page;
mod partials;
mod payloads;
mod records;
mod recover;
mod segment;
pub mod sim;
mod slots;
mod spool;
mod sums;

pub use disk::{Access, Disk, DiskFile, FsDisk};
pub use error::SpoolError;
pub use index::Usage;
pub use limits::Limits;
pub use page::Page;
pub use partials::{Growing, Synced};
pub use payloads::payload_path;
pub use records::{Memos, Records};
pub use recover::{CORRUPT, Damage, LostRequest, Report};
pub use spool::{MEMO_FIRST, MEMO_MAX, Op, Options, Outcome, Spool};
pub use sums::{BLOCK, SUMS, Sums, Verifier, link_payload, sums_beside, verify_payload};
