//! One module per noun: each turns a verb into a call and its answer into what a person or a program reads.

use crate::connection::refusal;

pub(crate) mod audit;
pub(crate) mod cluster;
pub(crate) mod controller;
pub(crate) mod event;
pub(crate) mod group;
pub(crate) mod host;
pub(crate) mod job;
pub(crate) mod map;
pub(crate) mod map_file;
pub(crate) mod node;
pub(crate) mod pool;
pub(crate) mod reservation;
mod scrub;
pub(crate) mod session;
pub(crate) mod snapshot;
pub(crate) mod volume;
pub(crate) mod watch;

/// The messages of a watch, until it is interrupted or `each` gives a result.
pub(crate) async fn follow<T, R>(
    mut stream: tonic::Streaming<T>,
    mut each: impl FnMut(T) -> anyhow::Result<Option<R>>,
) -> anyhow::Result<Option<R>> {
    loop {
        tokio::select! {
            message = stream.message() => match message.map_err(refusal)? {
                None => anyhow::bail!("the controller ended the watch; begin again"),
                Some(message) => if let Some(result) = each(message)? {
                    return Ok(Some(result));
                },
            },
            interrupted = tokio::signal::ctrl_c() => {
                interrupted?;
                return Ok(None);
            }
        }
    }
}

/// Rows of a listing are fetched in pages of this many.
pub(crate) const PAGE_SIZE: u32 = 500;
