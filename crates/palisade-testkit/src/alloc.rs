//! A counting allocator for tests of memory bounds and allocation counts, and [`trim`].
//!
//! This is the only unsafe code in the workspace: neither a global allocator nor a call of C can be
//! written without it. Every call of the allocator is forwarded to the system's unchanged.
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

/// The system allocator with counters shared by all threads.
#[derive(Debug)]
pub struct CountingAllocator {
    allocations: AtomicUsize,
    live: AtomicUsize,
    peak: AtomicUsize,
}

impl CountingAllocator {
    /// Returns an allocator with all counters at zero.
    pub const fn new() -> Self {
        Self {
            allocations: AtomicUsize::new(0),
            live: AtomicUsize::new(0),
            peak: AtomicUsize::new(0),
        }
    }

    /// Returns the number of allocations so far, including reallocations.
    pub fn allocations(&self) -> usize {
        self.allocations.load(Relaxed)
    }

    /// Returns the number of allocated bytes that have not been freed, by requested size.
    pub fn live(&self) -> usize {
        self.live.load(Relaxed)
    }

    /// Returns the largest value of [`Self::live`] since [`Self::reset_peak`].
    pub fn peak(&self) -> usize {
        self.peak.load(Relaxed)
    }

    /// Resets the peak to the current [`Self::live`] and returns that.
    pub fn reset_peak(&self) -> usize {
        let live = self.live();
        self.peak.store(live, Relaxed);
        live
    }

    fn record_allocation(&self, bytes: usize) {
        self.allocations.fetch_add(1, Relaxed);
        let live = self.live.fetch_add(bytes, Relaxed).wrapping_add(bytes);
        self.peak.fetch_max(live, Relaxed);
    }

    fn record_deallocation(&self, bytes: usize) {
        self.live.fetch_sub(bytes, Relaxed);
    }
}

/// Returns the freed memory that glibc keeps to the system. Does nothing with other C libraries.
///
/// ```
/// palisade_core::Memory::of_process().release(palisade_testkit::alloc::trim);
/// ```
pub fn trim() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        // SAFETY: this is glibc's declaration. The function takes a number of bytes to keep, may be
        // called by any thread at any time, and touches free memory only.
        #[allow(unsafe_code)]
        unsafe extern "C" {
            safe fn malloc_trim(pad: usize) -> std::ffi::c_int;
        }
        malloc_trim(0);
    }
}

impl Default for CountingAllocator {
    fn default() -> Self {
        Self::new()
    }
}

// SAFETY: every call is forwarded to `System` with its arguments unchanged, and the result of
// `System` is returned unchanged. The counters are atomics and never allocate.
#[allow(unsafe_code)]
unsafe impl GlobalAlloc for CountingAllocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        self.record_allocation(layout.size());
        // SAFETY: the caller's guarantee about `layout` is the one that `System` requires.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        self.record_allocation(layout.size());
        // SAFETY: as above.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        self.record_deallocation(layout.size());
        // SAFETY: every block is allocated by `System`, so `block` is, with this `layout`.
        unsafe { System.dealloc(block, layout) }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        self.record_deallocation(layout.size());
        self.record_allocation(size);
        // SAFETY: as above, and the caller guarantees that `size` is valid.
        unsafe { System.realloc(block, layout, size) }
    }
}
