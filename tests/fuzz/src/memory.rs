//! How much memory a target takes.
//!
//! Owns the allocator that counts, which is that of every program with this library in it. Counts
//! for the whole process: nothing else may run beside what is measured.

use peak_alloc::PeakAlloc;

#[global_allocator]
static ALLOCATOR: PeakAlloc = PeakAlloc;

/// What may be allocated for any input, in bytes: a table, an error's text, the harness itself.
const BASE: usize = 64 << 10;

/// Runs `what` and gives back what it gives.
///
/// # Panics
///
/// When more is allocated at once than `factor` bytes for each byte of an input of `size` bytes, and
/// 64 KiB.
pub fn bounded<T>(size: usize, factor: usize, what: impl FnOnce() -> T) -> T {
    let before = ALLOCATOR.current_usage();
    ALLOCATOR.reset_peak_usage();
    let result = what();
    let taken = ALLOCATOR.peak_usage().saturating_sub(before);
    let limit = BASE + factor * size;
    assert!(
        taken <= limit,
        "{size} bytes of input took {taken} bytes of memory, {limit} are allowed"
    );
    result
}

/// What is allocated now, in bytes.
pub(crate) fn in_use() -> usize {
    ALLOCATOR.current_usage()
}
