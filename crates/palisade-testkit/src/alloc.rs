//! An allocator that counts, for the figures and for the proofs that memory stays bounded.
//!
//! This is the one place of the workspace with unsafe code: a global allocator cannot be written
//! without it. It hands every call on to the system's allocator as it is.
//!
//! ```
//! use palisade_testkit::alloc::CountingAllocator;
//!
//! #[global_allocator]
//! static ALLOCATOR: CountingAllocator = CountingAllocator::new();
//!
//! let before = ALLOCATOR.allocations();
//! drop(std::hint::black_box(Box::new(1)));
//! assert_eq!(ALLOCATOR.allocations(), before + 1);
//! ```

use std::{
    alloc::{GlobalAlloc, Layout, System},
    sync::atomic::{AtomicUsize, Ordering::Relaxed},
};

/// The system's allocator, with counters that all threads share.
#[derive(Debug)]
pub struct CountingAllocator {
    allocations: AtomicUsize,
    live: AtomicUsize,
    peak: AtomicUsize,
}

impl CountingAllocator {
    /// All counters at zero.
    pub const fn new() -> Self {
        Self {
            allocations: AtomicUsize::new(0),
            live: AtomicUsize::new(0),
            peak: AtomicUsize::new(0),
        }
    }

    /// Calls that gave memory out so far, reallocations among them.
    pub fn allocations(&self) -> usize {
        self.allocations.load(Relaxed)
    }

    /// Bytes given out and not given back, as they were asked for.
    pub fn live(&self) -> usize {
        self.live.load(Relaxed)
    }

    /// The most [`Self::live`] has been since [`Self::reset_peak`].
    pub fn peak(&self) -> usize {
        self.peak.load(Relaxed)
    }

    /// Lets the peak start again from what is live now, which it returns.
    pub fn reset_peak(&self) -> usize {
        let live = self.live();
        self.peak.store(live, Relaxed);
        live
    }

    fn given(&self, bytes: usize) {
        self.allocations.fetch_add(1, Relaxed);
        let live = self.live.fetch_add(bytes, Relaxed).wrapping_add(bytes);
        self.peak.fetch_max(live, Relaxed);
    }

    fn taken(&self, bytes: usize) {
        self.live.fetch_sub(bytes, Relaxed);
    }
}

impl Default for CountingAllocator {
    fn default() -> Self {
        Self::new()
    }
}

// SAFETY: every call goes to `System` with the arguments it came with, and what `System` returns
// goes back unchanged; the counters are atomics beside it and never allocate.
#[allow(unsafe_code)]
unsafe impl GlobalAlloc for CountingAllocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        self.given(layout.size());
        // SAFETY: the caller's promise about `layout` is the one that `System` asks for.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        self.given(layout.size());
        // SAFETY: as above.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        self.taken(layout.size());
        // SAFETY: `block` came from `System` with this `layout`, because all of them do.
        unsafe { System.dealloc(block, layout) }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        self.taken(layout.size());
        self.given(size);
        // SAFETY: as above, and the caller's promise about `size` is handed on.
        unsafe { System.realloc(block, layout, size) }
    }
}
