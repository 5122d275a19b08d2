//! The data plane: one thread per core, each with its own connections, timers and mailbox.
//!
//! | Looking for | Module |
//! |---|---|
//! | the loop of one thread | `worker` |
//! | one iSCSI connection | `portal` |
//! | who is logged in, on which thread | `sessions` |
//! | what runs on another node | [`router`] |

pub mod router;
