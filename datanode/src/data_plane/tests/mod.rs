//! The data plane as an initiator sees it: real sockets, real files.

mod host;
mod making;
mod members;
mod portal;
mod protocol_level;
mod redirection;
mod standalone;
