//! Judges of histories, independent of the product's code: they see what hosts sent and were answered, on one clock.

pub mod block;
pub mod fencing;
pub mod linearizable;
pub mod reservations;
