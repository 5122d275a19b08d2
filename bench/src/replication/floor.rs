//! The floor of a replicated write: a bare exchange that stores the same bytes in as many files. A header of 48 bytes comes in with data;
//! the bytes go on to each peer, which does the same, and into the file; one fdatasync for all that has come, if the writes are to be
//! durable; when every peer has answered a header goes out for each.
//!
//! It speaks just enough iSCSI framing that the lean client needs no other code for it, but no login. It knows no locks, no leases, no log
//! of what is under way: a crash would leave its files different.

use std::{
    fs::File,
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    os::unix::fs::FileExt as _,
    path::PathBuf,
    process::{Child, Command, Stdio},
    thread,
};

use anyhow::{Context as _, ensure};

const HEADER_LEN: usize = 48;
const BLOCK_LEN: u64 = 512;
/// Bytes taken at a time: more than one of the longest writes.
const BUFFER_LEN: usize = 8 << 20;
const FILL: usize = 1 << 20;

/// One server.
#[derive(Debug, Clone, clap::Args)]
pub struct Arguments {
    /// Where to store
    file: PathBuf,
    /// Bytes of the file
    bytes: u64,
    /// fdatasync before an answer
    #[arg(long)]
    durable: bool,
    /// Others that store the same
    #[arg(long)]
    peer: Vec<SocketAddr>,
}

/// Serves until the process ends. Prints the address once it listens.
///
/// # Errors
/// The system.
pub fn serve(arguments: &Arguments) -> anyhow::Result<()> {
    let file = File::options().read(true).write(true).create(true).truncate(true).open(&arguments.file)?;
    // Blocks are allocated, as those of a volume that was filled.
    let fill = vec![0x5a; FILL];
    for at in (0..arguments.bytes).step_by(FILL) {
        file.write_all_at(&fill, at)?;
    }
    file.sync_all()?;
    let listener = TcpListener::bind(SocketAddr::from(([127, 0, 0, 1], 0)))?;
    println!("{}", listener.local_addr()?);
    loop {
        let (socket, _) = listener.accept()?;
        let (file, arguments) = (file.try_clone()?, arguments.clone());
        // The end of a connection is the client's affair.
        thread::spawn(move || exchange(socket, &file, &arguments));
    }
}

fn exchange(mut socket: TcpStream, file: &File, arguments: &Arguments) -> anyhow::Result<()> {
    socket.set_nodelay(true)?;
    let mut peers = Vec::new();
    for peer in &arguments.peer {
        let peer = TcpStream::connect(peer)?;
        peer.set_nodelay(true)?;
        peers.push(peer);
    }
    let mut buffer = vec![0; BUFFER_LEN];
    let mut have = 0;
    let mut answers = Vec::new();
    loop {
        let count = socket.read(&mut buffer[have..])?;
        ensure!(count > 0, "closed");
        have += count;
        let mut whole = 0;
        while let Some(end) = request_end(&buffer[whole..have]) {
            whole += end;
        }
        if whole == 0 {
            continue;
        }
        for peer in &mut peers {
            peer.write_all(&buffer[..whole])?;
        }
        answers.clear();
        let mut at = 0;
        while at < whole {
            let request = &buffer[at..whole];
            let end = request_end(request).context("a whole request")?;
            let lba = request[34..42].try_into().map(u64::from_be_bytes)?;
            file.write_all_at(&request[HEADER_LEN..HEADER_LEN + data_len(request)], lba * BLOCK_LEN)?;
            answers.extend_from_slice(&answer(request));
            at += end;
        }
        if arguments.durable {
            file.sync_data()?;
        }
        let mut said = vec![0; answers.len()];
        for peer in &mut peers {
            peer.read_exact(&mut said)?;
            ensure!(said == answers, "a peer answered something else");
        }
        socket.write_all(&answers)?;
        buffer.copy_within(whole..have, 0);
        have -= whole;
    }
}

fn data_len(request: &[u8]) -> usize {
    usize::from(request[5]) << 16 | usize::from(request[6]) << 8 | usize::from(request[7])
}

/// Length of the first request, once all of it is here.
fn request_end(bytes: &[u8]) -> Option<usize> {
    let header = bytes.get(..HEADER_LEN)?;
    let end = HEADER_LEN + data_len(header).next_multiple_of(4);
    (bytes.len() >= end).then_some(end)
}

fn answer(request: &[u8]) -> [u8; HEADER_LEN] {
    let mut answer = [0; HEADER_LEN];
    (answer[0], answer[1]) = (0x21, 0x80);
    answer[16..20].copy_from_slice(&request[16..20]);
    let cmd_sn = u32::from_be_bytes([request[24], request[25], request[26], request[27]]);
    // The window never closes.
    answer[32..36].copy_from_slice(&cmd_sn.wrapping_add(4096).to_be_bytes());
    answer
}

/// A server as a process, ended with this.
pub(super) struct Server {
    process: Child,
    pub(super) address: SocketAddr,
}

impl Server {
    pub(super) fn start(
        file: PathBuf,
        bytes: u64,
        durable: bool,
        peers: &[SocketAddr],
    ) -> anyhow::Result<Self> {
        use std::io::{BufRead as _, BufReader};
        let mut command = Command::new(std::env::current_exe()?);
        command.arg("replication-floor").arg(file).arg(bytes.to_string());
        command.args(durable.then_some("--durable"));
        command.args(peers.iter().flat_map(|peer| ["--peer".to_owned(), peer.to_string()]));
        let mut process = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn()?;
        let output = process.stdout.take().context("no standard output")?;
        let mut line = String::new();
        BufReader::new(output).read_line(&mut line)?;
        let address = line.trim().parse().with_context(|| format!("the floor said {line:?}"))?;
        Ok(Self { process, address })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn request_is_whole_with_its_data_and_padding() {
        let mut bytes = [0; HEADER_LEN + 8];
        bytes[7] = 5;
        assert_eq!(request_end(&bytes), Some(HEADER_LEN + 8));
        assert_eq!(request_end(&bytes[..HEADER_LEN + 7]), None);
        assert_eq!(request_end(&bytes[..HEADER_LEN - 1]), None);
    }

    #[test]
    fn answer_keeps_the_tag_and_opens_the_window() {
        let mut request = [0; HEADER_LEN];
        request[16..20].copy_from_slice(&[1, 2, 3, 4]);
        request[27] = 9;
        let answer = answer(&request);
        assert_eq!(answer[16..20], [1, 2, 3, 4]);
        assert_eq!(answer[32..36], [0, 0, 0x10, 9]);
        assert_eq!(answer[3], 0);
    }
}
