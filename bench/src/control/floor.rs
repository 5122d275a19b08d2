//! What no durable commit on this machine can be quicker than: one fsync of a small append where the controllers keep their
//! state, and one round trip over loopback TCP.

use std::{
    fs::OpenOptions,
    io::{Read as _, Write as _},
    net::{TcpListener, TcpStream},
    path::Path,
    time::{Duration, Instant},
};

use super::latency::{Latency, Samples};

/// Bytes of one append, about a small log entry.
const APPEND_BYTES: usize = 512;

/// fdatasync of appends to a file in `directory`, for `budget` at most.
///
/// # Errors
/// I/O.
pub fn fsync(directory: &Path, budget: Duration) -> std::io::Result<Latency> {
    let path = directory.join("floor");
    let mut file = OpenOptions::new().create(true).append(true).open(&path)?;
    let (mut samples, begun) = (Samples::default(), Instant::now());
    while begun.elapsed() < budget {
        let at = Instant::now();
        file.write_all(&[0x5a; APPEND_BYTES])?;
        file.sync_data()?;
        samples.push(at.elapsed());
    }
    std::fs::remove_file(path)?;
    Ok(samples.summary(begun.elapsed()))
}

/// 64 bytes there and back over loopback TCP, for `budget` at most.
///
/// # Errors
/// I/O.
pub fn round_trip(budget: Duration) -> std::io::Result<Latency> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?;
    let echo = std::thread::spawn(move || -> std::io::Result<()> {
        let (mut stream, _) = listener.accept()?;
        stream.set_nodelay(true)?;
        let mut bytes = [0; 64];
        while stream.read_exact(&mut bytes).is_ok() {
            stream.write_all(&bytes)?;
        }
        Ok(())
    });
    let mut stream = TcpStream::connect(address)?;
    stream.set_nodelay(true)?;
    let (mut samples, mut bytes, begun) = (Samples::default(), [0; 64], Instant::now());
    while begun.elapsed() < budget {
        let at = Instant::now();
        stream.write_all(&bytes)?;
        stream.read_exact(&mut bytes)?;
        samples.push(at.elapsed());
    }
    drop(stream);
    // It ends with the connection.
    let _ = echo.join();
    Ok(samples.summary(begun.elapsed()))
}
