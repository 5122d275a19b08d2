//! Links the pure cores without std. Whatever brings std in makes the panic handler a duplicate, and whatever brings
//! the alloc crate in without the feature `alloc` makes the compiler ask for an allocator: both end the build.
#![no_std]

// A dependency that nobody names is not linked.
use holdfast_scsi as _;
#[cfg(feature = "alloc")]
use {holdfast_iscsi as _, holdfast_replica as _};

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

#[cfg(feature = "alloc")]
mod allocator {
    use core::alloc::{GlobalAlloc, Layout};

    struct Never;

    // SAFETY: it hands out no memory at all, and nobody runs this program.
    unsafe impl GlobalAlloc for Never {
        unsafe fn alloc(&self, _: Layout) -> *mut u8 {
            core::ptr::null_mut()
        }
        unsafe fn dealloc(&self, _: *mut u8, _: Layout) {}
    }

    #[global_allocator]
    static NEVER: Never = Never;
}
