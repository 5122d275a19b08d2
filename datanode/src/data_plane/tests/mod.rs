//! The data plane as an initiator sees it: real sockets, real files.

mod host;
mod portal;
mod standalone;
