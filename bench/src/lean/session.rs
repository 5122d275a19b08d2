//! One session of the lean client.

use std::collections::VecDeque;
use std::io::{self, IoSlice, Read as _, Write as _};
use std::net::SocketAddr;
use std::time::Instant;

use anyhow::{Context as _, bail, ensure};
use mio::net::TcpStream;
use mio::{Interest, Registry, Token};

use super::pdu::{HEADER_LEN, Header, TAG_NONE, cdb, opcode};

/// Where to log in, and as whom.
#[derive(Clone, Debug)]
pub struct Login {
    /// Address of the target's portal.
    pub portal: SocketAddr,
    /// Its name; without one there is no login at all: the bare exchange.
    pub target: Option<String>,
    /// The initiator's name.
    pub initiator: String,
    /// The logical unit.
    pub lun: u16,
}

/// Status CHECK CONDITION.
const CHECK_CONDITION: u8 = 0x02;
/// The longest vectored write, in slices.
const SLICES_MAX: usize = 512;
/// What is written: data of no meaning. Commands are no longer than this, in bytes.
const DATA_LEN_MAX: usize = 4 << 20;
static DATA: [u8; DATA_LEN_MAX] = [0x5a; DATA_LEN_MAX];

#[derive(Clone, Copy)]
enum Segment {
    /// The next so many bytes of the headers.
    Headers(usize),
    /// So many bytes of data, from here on.
    Data(usize, usize),
}

/// See the module.
pub struct Session {
    socket: TcpStream,
    lun: [u8; 8],
    immediate_len: usize,
    first_burst: usize,
    initial_r2t: bool,
    /// The longest data segment that the target takes.
    segment_len: usize,
    cmd_sn: u32,
    exp_stat_sn: u32,
    max_cmd_sn: u32,
    /// When the command of each tag was sent.
    slots: Vec<Option<Instant>>,
    free: Vec<u32>,
    readable: bool,
    writable: bool,
    headers: Vec<u8>,
    headers_sent: usize,
    segments: VecDeque<Segment>,
    /// Header bytes of the PDU that is coming in.
    partial: Vec<u8>,
    /// Data and padding of it that are still to come.
    skip: usize,
    /// The command that ends with the last of that data.
    ending: Option<u32>,
    /// Data that is kept, of a command whose data matter.
    kept: Option<Vec<u8>>,
    /// Sense data of the command that ends with a CHECK CONDITION.
    sense: Option<Vec<u8>>,
    /// Commands that were told a Unit Attention instead of being done.
    attentions: u64,
    /// Data to send instead of [`DATA`].
    source: Option<Vec<u8>>,
}

impl Session {
    /// Logs in and consumes the Unit Attentions that a new nexus finds.
    ///
    /// # Errors
    /// Refused, or the target speaks otherwise than expected.
    pub fn login(login: &Login, number: u32) -> anyhow::Result<Session> {
        let stream = std::net::TcpStream::connect(login.portal)?;
        stream.set_nodelay(true)?;
        let mut session = Session {
            socket: TcpStream::from_std(stream.try_clone()?),
            lun: [0; 8],
            immediate_len: DATA_LEN_MAX,
            first_burst: DATA_LEN_MAX,
            initial_r2t: false,
            segment_len: DATA_LEN_MAX,
            cmd_sn: 1,
            exp_stat_sn: 0,
            max_cmd_sn: 0x7fff_ffff,
            slots: Vec::new(),
            free: Vec::new(),
            readable: false,
            writable: true,
            headers: Vec::new(),
            headers_sent: 0,
            segments: VecDeque::new(),
            partial: Vec::new(),
            skip: 0,
            ending: None,
            kept: None,
            sense: None,
            attentions: 0,
            source: None,
        };
        session.lun[..2].copy_from_slice(&login.lun.to_be_bytes());
        if let Some(target) = &login.target {
            session.negotiate(&stream, target, &login.initiator, number)?;
            session.become_ready(&stream)?;
        }
        stream.set_nonblocking(true)?;
        Ok(session)
    }

    fn negotiate(
        &mut self,
        mut stream: &std::net::TcpStream,
        target: &str,
        initiator: &str,
        number: u32,
    ) -> anyhow::Result<()> {
        let texts = [
            // Straight into the operational stage, and from there into the full feature phase.
            format!(
                "InitiatorName={initiator}\0TargetName={target}\0SessionType=Normal\0HeaderDigest=None\0\
                 DataDigest=None\0InitialR2T=No\0ImmediateData=Yes\0MaxRecvDataSegmentLength=262144\0\
                 MaxBurstLength=1048576\0FirstBurstLength=262144\0MaxOutstandingR2T=8\0MaxConnections=1\0\
                 DefaultTime2Wait=2\0DefaultTime2Retain=0\0DataPDUInOrder=Yes\0DataSequenceInOrder=Yes\0\
                 ErrorRecoveryLevel=0\0"
            ),
            String::new(),
        ];
        let mut isid = [0x80, 0, 0, 0, 0, 0];
        isid[2..6].copy_from_slice(&(number + 1).to_be_bytes());
        // As RFC 7143 13 has them where nothing is said.
        (self.segment_len, self.first_burst, self.initial_r2t) = (8192, 65536, true);
        let mut immediate = true;
        for text in texts {
            let mut header = Header::new(0x43, 0x87);
            header.0[8..14].copy_from_slice(&isid);
            header.set_word(24, self.cmd_sn);
            header.set_word(28, self.exp_stat_sn);
            header.set_data_len(text.len());
            let mut bytes = header.0.to_vec();
            bytes.extend_from_slice(text.as_bytes());
            bytes.resize(bytes.len().next_multiple_of(4), 0);
            stream.write_all(&bytes)?;
            let (header, data) = blocking_pdu(stream)?;
            ensure!(header.opcode() == opcode::LOGIN_RESPONSE, "no login response: {:#x}", header.opcode());
            let status = u16::from_be_bytes([header.0[36], header.0[37]]);
            ensure!(status == 0, "login refused: {status:#06x}");
            self.exp_stat_sn = header.word(24).wrapping_add(1);
            self.max_cmd_sn = header.word(32);
            for pair in data.split(|byte| *byte == 0).filter(|pair| !pair.is_empty()) {
                let pair = String::from_utf8_lossy(pair);
                let Some((key, value)) = pair.split_once('=') else { continue };
                match key {
                    "InitialR2T" => self.initial_r2t = value == "Yes",
                    "ImmediateData" => immediate = value == "Yes",
                    "FirstBurstLength" => self.first_burst = value.parse()?,
                    "MaxRecvDataSegmentLength" => self.segment_len = value.parse()?,
                    _ => {}
                }
            }
            if header.0[1] & 0x83 == 0x83 {
                self.immediate_len = if immediate { self.first_burst.min(self.segment_len) } else { 0 };
                return Ok(());
            }
        }
        bail!("the target does not go into the full feature phase")
    }

    fn become_ready(&mut self, mut stream: &std::net::TcpStream) -> anyhow::Result<()> {
        for _ in 0..16 {
            let mut header = Header::new(0x01, 0x81);
            header.0[8..16].copy_from_slice(&self.lun);
            header.set_word(16, 0x7fff_0000);
            header.set_word(24, self.cmd_sn);
            header.set_word(28, self.exp_stat_sn);
            self.cmd_sn = self.cmd_sn.wrapping_add(1);
            stream.write_all(&header.0)?;
            let (header, _) = blocking_pdu(stream)?;
            ensure!(header.opcode() == opcode::SCSI_RESPONSE, "no SCSI response: {:#x}", header.opcode());
            self.note(&header, true);
            if header.0[3] == 0 {
                return Ok(());
            }
        }
        bail!("the unit does not become ready")
    }

    pub(super) fn register(
        &mut self,
        registry: &Registry,
        token: Token,
        interest: Interest,
    ) -> io::Result<()> {
        registry.register(&mut self.socket, token, interest)
    }

    pub(super) fn ready(&mut self, readable: bool, writable: bool) {
        self.readable |= readable;
        self.writable |= writable;
    }

    pub(super) fn in_flight(&self) -> u32 {
        (self.slots.len() - self.free.len()) as u32
    }

    pub(super) fn window_open(&self) -> bool {
        self.max_cmd_sn.wrapping_sub(self.cmd_sn) < 0x8000_0000
    }

    fn push_header(&mut self, header: &Header) {
        self.headers.extend_from_slice(&header.0);
        match self.segments.back_mut() {
            Some(Segment::Headers(len)) => *len += HEADER_LEN,
            _ => self.segments.push_back(Segment::Headers(HEADER_LEN)),
        }
    }

    fn push_data(&mut self, start: usize, len: usize) {
        if len > 0 {
            self.segments.push_back(Segment::Data(start, len));
        }
    }

    /// Queues a command.
    pub(super) fn command(&mut self, now: Instant, write: bool, lba: u64, size: u32) {
        let tag = self.free.pop().unwrap_or_else(|| {
            self.slots.push(None);
            self.slots.len() as u32 - 1
        });
        self.slots[tag as usize] = Some(now);
        let total = size as usize;
        let burst = if write { total.min(self.first_burst) } else { 0 };
        let immediate = burst.min(self.immediate_len);
        let unsolicited = if self.initial_r2t { immediate } else { burst };
        let last = if unsolicited == immediate { 0x80 } else { 0 };
        let mut header = Header::new(0x01, if write { 0x21 | last } else { 0xc1 });
        header.set_data_len(immediate);
        header.0[8..16].copy_from_slice(&self.lun);
        header.set_word(16, tag);
        header.set_word(20, size);
        header.set_word(24, self.cmd_sn);
        header.set_word(28, self.exp_stat_sn);
        header.0[32..48].copy_from_slice(&cdb(write, lba, size / 512));
        self.cmd_sn = self.cmd_sn.wrapping_add(1);
        self.push_header(&header);
        self.push_data(0, immediate);
        self.data_out(tag, TAG_NONE, immediate, unsolicited);
    }

    fn data_out(&mut self, tag: u32, transfer_tag: u32, mut at: usize, end: usize) {
        let mut number = 0;
        while at < end {
            let len = (end - at).min(self.segment_len);
            let mut header = Header::new(0x05, if at + len == end { 0x80 } else { 0 });
            header.set_data_len(len);
            header.0[8..16].copy_from_slice(&self.lun);
            header.set_word(16, tag);
            header.set_word(20, transfer_tag);
            header.set_word(28, self.exp_stat_sn);
            header.set_word(36, number);
            header.set_word(40, at as u32);
            self.push_header(&header);
            self.push_data(at, len);
            (at, number) = (at + len, number + 1);
        }
    }

    /// Sends what is queued, as far as the socket takes it.
    pub(super) fn send(&mut self) -> anyhow::Result<()> {
        while self.writable && !self.segments.is_empty() {
            let mut slices = [IoSlice::new(&[]); SLICES_MAX];
            let source = self.source.as_deref().unwrap_or(&DATA);
            let (mut used, mut headers) = (0, self.headers.get(self.headers_sent..).unwrap_or_default());
            for (slice, segment) in slices.iter_mut().zip(&self.segments) {
                *slice = match segment {
                    Segment::Headers(len) => {
                        let (now, rest) = headers.split_at(*len);
                        headers = rest;
                        IoSlice::new(now)
                    }
                    Segment::Data(start, len) => IoSlice::new(&source[*start..*start + *len]),
                };
                used += 1;
            }
            match self.socket.write_vectored(&slices[..used]) {
                Ok(sent) => self.advance(sent),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => self.writable = false,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e).context("sending"),
            }
        }
        Ok(())
    }

    fn advance(&mut self, mut sent: usize) {
        while let Some(segment) = self.segments.front_mut() {
            let (Segment::Headers(len) | Segment::Data(_, len)) = segment;
            let step = sent.min(*len);
            *len -= step;
            sent -= step;
            let whole = *len == 0;
            match segment {
                Segment::Headers(_) => self.headers_sent += step,
                Segment::Data(start, _) => *start += step,
            }
            if !whole {
                break;
            }
            self.segments.pop_front();
        }
        if self.headers_sent == self.headers.len() {
            self.headers.clear();
            self.headers_sent = 0;
        }
    }

    /// Takes what has come; `ended` is told when each command that ended was sent.
    pub(super) fn receive(
        &mut self,
        buffer: &mut [u8],
        mut ended: impl FnMut(Instant),
    ) -> anyhow::Result<()> {
        while self.readable {
            match self.socket.read(buffer) {
                Ok(0) => bail!("the target closed the connection"),
                Ok(n) => {
                    self.readable = n == buffer.len();
                    self.take(&buffer[..n], &mut ended)?;
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => self.readable = false,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e).context("receiving"),
            }
        }
        Ok(())
    }

    fn take(&mut self, mut bytes: &[u8], ended: &mut impl FnMut(Instant)) -> anyhow::Result<()> {
        loop {
            let step = self.skip.min(bytes.len());
            let (data, rest) = bytes.split_at(step);
            if let Some(kept) = &mut self.kept {
                kept.extend_from_slice(data);
            }
            if let Some(sense) = &mut self.sense {
                sense.extend_from_slice(data);
            }
            self.skip -= step;
            bytes = rest;
            if self.skip == 0
                && let Some(tag) = self.ending.take()
            {
                self.end(tag, ended)?;
            }
            if self.skip > 0 || bytes.is_empty() {
                return Ok(());
            }
            let header = if self.partial.is_empty()
                && let Some((whole, rest)) = bytes.split_first_chunk()
            {
                bytes = rest;
                Header(*whole)
            } else {
                let (more, rest) = bytes.split_at(bytes.len().min(HEADER_LEN - self.partial.len()));
                self.partial.extend_from_slice(more);
                bytes = rest;
                let Ok(whole) = self.partial.as_slice().try_into() else { return Ok(()) };
                self.partial.clear();
                Header(whole)
            };
            self.skip = header.data_len().next_multiple_of(4);
            self.pdu(&header)?;
            if self.skip == 0
                && let Some(tag) = self.ending.take()
            {
                self.end(tag, ended)?;
            }
        }
    }

    fn note(&mut self, header: &Header, numbered: bool) {
        if numbered {
            self.exp_stat_sn = header.word(24).wrapping_add(1);
        }
        self.max_cmd_sn = header.word(32);
    }

    fn pdu(&mut self, header: &Header) -> anyhow::Result<()> {
        let tag = header.word(16);
        match header.opcode() {
            opcode::DATA_IN => {
                let with_status = header.0[1] & 1 != 0;
                self.note(header, with_status);
                if with_status { self.status(tag, header) } else { Ok(()) }
            }
            opcode::SCSI_RESPONSE => {
                self.note(header, true);
                self.status(tag, header)
            }
            opcode::R2T => {
                self.note(header, false);
                let (at, len) = (header.word(40) as usize, header.word(44) as usize);
                self.data_out(tag, header.word(20), at, at + len);
                Ok(())
            }
            opcode::NOP_IN => {
                self.note(header, tag != TAG_NONE);
                let transfer_tag = header.word(20);
                if transfer_tag != TAG_NONE {
                    let mut pong = Header::new(0x40, 0x80);
                    pong.0[8..16].copy_from_slice(&header.0[8..16]);
                    pong.set_word(16, TAG_NONE);
                    pong.set_word(20, transfer_tag);
                    pong.set_word(24, self.cmd_sn);
                    pong.set_word(28, self.exp_stat_sn);
                    self.push_header(&pong);
                }
                Ok(())
            }
            other => bail!("PDU {other:#x} was not expected"),
        }
    }

    /// The command ends with this PDU, once all data of it is here.
    fn status(&mut self, tag: u32, header: &Header) -> anyhow::Result<()> {
        if header.0[3] == CHECK_CONDITION && header.data_len() > 0 {
            (self.sense, self.ending) = (Some(Vec::new()), Some(tag));
            return Ok(());
        }
        ensure!(header.0[3] == 0, "a command ended with status {:#04x}", header.0[3]);
        let residual = header.0[1] & 0x06;
        ensure!(residual == 0, "a command moved other than it should: residual {}", header.word(44));
        self.ending = Some(tag);
        Ok(())
    }

    fn end(&mut self, tag: u32, ended: &mut impl FnMut(Instant)) -> anyhow::Result<()> {
        let started = self.slots.get_mut(tag as usize).and_then(Option::take);
        let started = started.with_context(|| format!("tag {tag} is not in use"))?;
        self.free.push(tag);
        if let Some(sense) = self.sense.take() {
            // The cluster may tell something at any time; that command is not counted.
            ensure!(is_unit_attention(&sense), "a command ended with sense {sense:x?}");
            self.attentions += 1;
            return Ok(());
        }
        ended(started);
        Ok(())
    }

    fn alone(&mut self, write: bool, lba: u64, size: u32) -> anyhow::Result<()> {
        let mut buffer = vec![0; 1 << 20];
        loop {
            let attentions = self.attentions;
            self.command(Instant::now(), write, lba, size);
            while self.in_flight() > 0 || self.skip > 0 {
                self.ready(true, true);
                self.send()?;
                self.receive(&mut buffer, |_| {})?;
                std::thread::yield_now();
            }
            if attentions == self.attentions {
                return Ok(());
            }
        }
    }

    /// Writes these bytes, waiting for the answer.
    pub(super) fn write_now(&mut self, lba: u64, data: &[u8]) -> anyhow::Result<()> {
        self.source = Some(data.to_vec());
        self.alone(true, lba, data.len() as u32)?;
        self.source = None;
        Ok(())
    }

    /// Reads, waiting for the answer.
    pub(super) fn read_now(&mut self, lba: u64, size: u32) -> anyhow::Result<Vec<u8>> {
        self.kept = Some(Vec::new());
        self.alone(false, lba, size)?;
        Ok(self.kept.take().unwrap_or_default())
    }
}

/// Of a response's data segment: two bytes of length, then sense data in either format (SPC-5 4.5).
fn is_unit_attention(segment: &[u8]) -> bool {
    let byte = |at: usize| segment.get(at).copied().unwrap_or(0);
    let key = if byte(2) & 0x7f >= 0x72 { byte(3) } else { byte(4) };
    key & 0x0f == 6
}

/// Reads one PDU from a blocking socket.
fn blocking_pdu(mut stream: &std::net::TcpStream) -> anyhow::Result<(Header, Vec<u8>)> {
    let mut header = Header([0; HEADER_LEN]);
    stream.read_exact(&mut header.0)?;
    let len = header.data_len();
    let mut data = vec![0; len.next_multiple_of(4)];
    stream.read_exact(&mut data)?;
    data.truncate(len);
    Ok((header, data))
}
