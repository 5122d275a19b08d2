//! The floor: a bare TCP exchange of the same sizes. A header of 48 bytes comes in, with data for a write; a header goes
//! out, with data for a read; nothing is looked at but lengths, nothing is stored. What no target can do for less.
//!
//! It speaks just enough iSCSI framing that the lean client needs no other code for it, but no login. Like a good target it
//! takes all that is there in one read and sends all answers in one vectored write.

use std::io::{self, IoSlice, Read as _, Write as _};
use std::net::SocketAddr;

use mio::net::{TcpListener, TcpStream};
use mio::{Events, Interest, Poll, Token};

const HEADER_LEN: usize = 48;
const DATA_LEN_MAX: usize = 4 << 20;
static DATA: [u8; DATA_LEN_MAX] = [0xa5; DATA_LEN_MAX];
const SLICES_MAX: usize = 512;

struct Peer {
    socket: TcpStream,
    partial: Vec<u8>,
    skip: usize,
    /// The answer that is due once the data at hand has come: header and bytes of data.
    due: Option<([u8; HEADER_LEN], usize)>,
    headers: Vec<u8>,
    /// Bytes of data behind each header.
    answers: std::collections::VecDeque<usize>,
    /// Bytes of the first answer that were sent.
    sent: usize,
    writable: bool,
}

/// Serves until the process ends. Prints the address once it listens.
///
/// # Errors
/// The system.
pub fn serve() -> anyhow::Result<()> {
    let mut poll = Poll::new()?;
    let mut listener = TcpListener::bind(SocketAddr::from(([127, 0, 0, 1], 0)))?;
    println!("{}", listener.local_addr()?);
    poll.registry().register(&mut listener, Token(0), Interest::READABLE)?;
    let mut events = Events::with_capacity(256);
    let mut peers: Vec<Option<Peer>> = Vec::new();
    let mut buffer = vec![0; 256 * 1024];
    loop {
        match poll.poll(&mut events, None) {
            Err(e) if e.kind() != io::ErrorKind::Interrupted => return Err(e.into()),
            _ => {}
        }
        for event in &events {
            if event.token() == Token(0) {
                while let Ok((mut socket, _)) = listener.accept() {
                    socket.set_nodelay(true)?;
                    let token = Token(peers.len() + 1);
                    poll.registry().register(&mut socket, token, Interest::READABLE | Interest::WRITABLE)?;
                    peers.push(Some(Peer::new(socket)));
                }
                continue;
            }
            let Some(slot) = peers.get_mut(event.token().0 - 1) else { continue };
            let Some(peer) = slot else { continue };
            peer.writable |= event.is_writable();
            if peer.turn(&mut buffer, event.is_readable()).is_err() {
                *slot = None;
            }
        }
    }
}

impl Peer {
    fn new(socket: TcpStream) -> Peer {
        Peer {
            socket,
            partial: Vec::new(),
            skip: 0,
            due: None,
            headers: Vec::new(),
            answers: Default::default(),
            sent: 0,
            writable: true,
        }
    }

    fn turn(&mut self, buffer: &mut [u8], mut readable: bool) -> io::Result<()> {
        while readable {
            match self.socket.read(buffer) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(n) => {
                    readable = n == buffer.len();
                    self.take(buffer.get(..n).unwrap_or_default());
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => readable = false,
                Err(e) => return Err(e),
            }
        }
        self.write()
    }

    fn take(&mut self, mut bytes: &[u8]) {
        loop {
            let step = self.skip.min(bytes.len());
            self.skip -= step;
            bytes = &bytes[step..];
            if self.skip == 0
                && let Some((header, data)) = self.due.take()
            {
                self.headers.extend_from_slice(&header);
                self.answers.push_back(data);
            }
            if bytes.is_empty() {
                return;
            }
            let step = bytes.len().min(HEADER_LEN - self.partial.len());
            self.partial.extend_from_slice(&bytes[..step]);
            bytes = &bytes[step..];
            let Ok(request) = <[u8; HEADER_LEN]>::try_from(self.partial.as_slice()) else { return };
            self.partial.clear();
            let len =
                |at: usize| u32::from_be_bytes([0, request[at], request[at + 1], request[at + 2]]) as usize;
            self.skip = len(5);
            let data = if request[1] & 0x40 != 0 { len(21) } else { 0 };
            let mut answer = [0; HEADER_LEN];
            answer[0] = if data > 0 { 0x25 } else { 0x21 };
            answer[1] = if data > 0 { 0x81 } else { 0x80 };
            answer[5..8].copy_from_slice(&(data as u32).to_be_bytes()[1..]);
            answer[16..20].copy_from_slice(&request[16..20]);
            // The window never closes.
            answer[32..36].copy_from_slice(
                &u32::from_be_bytes([request[24], request[25], request[26], request[27]])
                    .wrapping_add(4096)
                    .to_be_bytes(),
            );
            self.due = Some((answer, data));
        }
    }

    fn write(&mut self) -> io::Result<()> {
        while self.writable && !self.answers.is_empty() {
            let mut slices = [IoSlice::new(&[]); SLICES_MAX];
            let (mut used, mut skip) = (0, self.sent);
            for (data, header) in self.answers.iter().zip(self.headers.chunks_exact(HEADER_LEN)) {
                for part in [header, DATA.get(..*data).unwrap_or(&DATA)] {
                    let step = skip.min(part.len());
                    skip -= step;
                    if step < part.len() && used < SLICES_MAX {
                        slices[used] = IoSlice::new(&part[step..]);
                        used += 1;
                    }
                }
                if used + 2 > SLICES_MAX {
                    break;
                }
            }
            match self.socket.write_vectored(&slices[..used]) {
                Ok(n) => {
                    self.sent += n;
                    let mut whole = 0;
                    while let Some(data) = self.answers.front()
                        && self.sent >= HEADER_LEN + data
                    {
                        self.sent -= HEADER_LEN + data;
                        self.answers.pop_front();
                        whole += HEADER_LEN;
                    }
                    self.headers.drain(..whole);
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => self.writable = false,
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }
}
