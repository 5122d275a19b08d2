// SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only
//! Root of the object that the kernel module links: the core, and what to do if something panicked after all.
//!
//! Invariant: `build-core.sh` refuses an object in which this panic handler is reachable.
#![no_std]

extern crate holdfast_kernel_core;

unsafe extern "C" {
    /// Never defined: an object that refers to it is refused, so no panic can reach the kernel.
    safe fn hf_core_can_panic() -> !;
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    hf_core_can_panic()
}
