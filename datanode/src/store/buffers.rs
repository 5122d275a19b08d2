//! Memory for what is read: buffers go round, because fresh ones cost an allocation, and a large one page faults and zeroing.
//!
//! Each thread keeps the buffers that it handed out. One is used again when nobody else has it any more, that is, when its
//! last byte was sent.
//!
//! Invariants: a buffer is written only while nobody else has it; a thread keeps no more than [`KEPT_BYTES_MAX`] of each
//! size.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::sync::Arc;

/// The longest buffers that are kept, in bytes.
const KEPT_LEN_MAX: usize = 1 << 20;
/// Bytes that one thread keeps of one size.
const KEPT_BYTES_MAX: usize = 4 << 20;
/// Sizes are powers of two from 512 bytes to [`KEPT_LEN_MAX`].
const SIZES: usize = 12;
/// How many of those that were handed out longest ago are looked at before a new one is made.
const TRIES: usize = 4;

type Kept = VecDeque<Arc<Vec<u8>>>;

thread_local! {
    static KEPT: RefCell<[Kept; SIZES]> = const { RefCell::new([const { Kept::new() }; SIZES]) };
}

/// A buffer of `len` bytes, filled by `read`.
///
/// # Errors
/// Those of `read`.
pub(crate) fn fill<E>(len: usize, read: impl FnOnce(&mut [u8]) -> Result<(), E>) -> Result<Arc<Vec<u8>>, E> {
    let size = len.next_power_of_two().max(512);
    let class = (size.ilog2() - 9) as usize;
    if class >= SIZES {
        let mut bytes = vec![0; len];
        read(&mut bytes)?;
        return Ok(Arc::new(bytes));
    }
    let found = KEPT.with_borrow_mut(|kept| kept.get_mut(class).and_then(free));
    let mut buffer = found.unwrap_or_else(|| Arc::new(Vec::with_capacity(size)));
    let done = match Arc::get_mut(&mut buffer) {
        Some(bytes) => {
            bytes.resize(len, 0);
            read(bytes)
        }
        // It was found free, and nobody else can have got it since.
        None => Ok(()),
    };
    KEPT.with_borrow_mut(|kept| {
        if let Some(kept) = kept.get_mut(class)
            && kept.len() < (KEPT_BYTES_MAX / size).max(1)
        {
            kept.push_back(Arc::clone(&buffer));
        }
    });
    done.map(|()| buffer)
}

fn free(kept: &mut Kept) -> Option<Arc<Vec<u8>>> {
    for _ in 0..TRIES.min(kept.len()) {
        let mut oldest = kept.pop_front()?;
        if Arc::get_mut(&mut oldest).is_some() {
            return Some(oldest);
        }
        kept.push_back(oldest);
    }
    None
}

const _: () = assert!(512 << (SIZES - 1) == KEPT_LEN_MAX);

#[cfg(test)]
mod tests {
    use super::*;

    fn filled(len: usize, byte: u8) -> Arc<Vec<u8>> {
        fill(len, |bytes| {
            bytes.fill(byte);
            Ok::<(), ()>(())
        })
        .unwrap()
    }

    #[test]
    fn buffer_in_use_is_left_alone_and_a_free_one_comes_back() {
        let first = filled(4096, 1);
        let second = filled(4096, 2);
        assert!(first.iter().all(|b| *b == 1) && second.iter().all(|b| *b == 2));
        let place = first.as_ptr();
        drop(first);
        let third = filled(4000, 3);
        assert_eq!((third.as_ptr(), third.len()), (place, 4000));
        assert!(second.iter().all(|b| *b == 2));
    }

    #[test]
    fn memory_kept_is_bounded_for_every_size() {
        for len in [1, 512, 4096, 1 << 20, 3 << 20] {
            let held: Vec<_> = (0..20_000.min((64 << 20) / len)).map(|_| filled(len, 7)).collect();
            assert!(held.iter().all(|b| b.len() == len));
        }
        let kept: usize =
            KEPT.with_borrow(|kept| kept.iter().flatten().map(|buffer| buffer.capacity()).sum());
        assert!(kept <= SIZES * KEPT_BYTES_MAX, "{kept}");
    }

    #[test]
    fn failed_read_hands_out_nothing() {
        assert_eq!(fill(512, |_| Err("no")).unwrap_err(), "no");
        assert_eq!(filled(512, 1).len(), 512);
    }
}
