//! Frames between nodes: the reader, what an owner and its replicas tell each other, and both sides of forwarding, each from its
//! greeting on. The checksum is one that every frame has, so that what it protects is reached.

use arbitrary::{Arbitrary, Unstructured};
use holdfast_replica::epoch::Epoch;
use holdfast_replica::forward::{Client, Link, Outcome, Server, ServerEvent};
use holdfast_replica::frame::{Frame, FrameReader, Header, Kind, Outgoing};
use holdfast_replica::ids::{ClusterId, NodeNumber};
use holdfast_replica::replication::{FromReplica, ToReplica};
use holdfast_scsi::time::Instant;

/// Where the kind of a frame lies in its header: behind the magic bytes and the version.
const KIND_AT: usize = 5;

#[derive(Arbitrary, Debug)]
enum Step {
    Frame {
        kind: u8,
        flags: u16,
        epoch: (u8, u8),
        sequence: u8,
        token: u8,
        meta: Vec<u8>,
        data: Option<Vec<u8>>,
    },
    Noise(Vec<u8>),
}

fn checksum(_: u32, _: &[u8]) -> u32 {
    0
}

fn link(me: u32, peer: u32) -> Link {
    let node = |number| NodeNumber::new(number).unwrap();
    Link { cluster: ClusterId([7; 16]), me: node(me), peer: node(peer), crc32c: checksum }
}

fn joined(frame: Outgoing<Vec<u8>>) -> Vec<u8> {
    [frame.head, frame.data.unwrap_or_default()].concat()
}

fn bytes(steps: Vec<Step>) -> Vec<u8> {
    let mut stream = Vec::new();
    for step in steps.into_iter().take(50) {
        match step {
            Step::Noise(noise) => stream.extend(noise),
            Step::Frame { kind, flags, epoch, sequence, token, meta, data } => {
                let epoch = Epoch { generation: epoch.0.into(), number: epoch.1.into() };
                let sequence = sequence.into();
                let header = Header { flags, epoch, sequence, ..Header::new(Kind::Hello, token.into()) };
                let Some(frame) = Outgoing::new(&header, &meta, data, checksum) else { continue };
                let mut frame = joined(frame);
                frame[KIND_AT] = kind % 32;
                stream.extend(frame);
            }
        }
    }
    stream
}

/// What is understood is written as it was read.
fn replication(frame: Frame) {
    if let Some(answer) = FromReplica::decode(&frame) {
        let again = whole(&joined(answer.encode(checksum).expect("its parts are bounded")));
        assert_eq!(FromReplica::decode(&again), Some(answer));
    }
    if let Some(request) = ToReplica::decode(frame) {
        let again = whole(&joined(request.clone().encode(checksum).expect("its parts are bounded")));
        assert_eq!(ToReplica::decode(again), Some(request));
    }
}

fn whole(bytes: &[u8]) -> Frame {
    let mut found = None;
    read(bytes, |frame| found = Some(frame));
    found.expect("a whole frame")
}

fn read(mut rest: &[u8], mut each: impl FnMut(Frame)) {
    let mut reader = FrameReader::new(checksum);
    while !rest.is_empty() {
        let space = reader.space();
        let n = space.len().min(rest.len());
        space[..n].copy_from_slice(&rest[..n]);
        rest = &rest[n..];
        match reader.advance(n) {
            Ok(Some(frame)) => each(frame),
            Ok(None) => {}
            Err(_) => return,
        }
    }
}

fn served(mut rest: &[u8]) {
    let mut server = Server::<Vec<u8>>::new(link(1, 2), Instant(0));
    let mut now = 0;
    while !rest.is_empty() {
        let space = server.space();
        let n = space.len().min(rest.len());
        space[..n].copy_from_slice(&rest[..n]);
        rest = &rest[n..];
        now += 1;
        if server.advance(Instant(now), n).is_err() {
            break;
        }
        while let Some(event) = server.poll_event() {
            if let ServerEvent::Command { token, .. } = event {
                server.answer(Instant(now), token, Outcome::NotExecuted);
            }
        }
        while server.poll_transmit().is_some() {}
    }
}

fn answered(mut rest: &[u8]) {
    let mut client = Client::<Vec<u8>>::new(link(2, 1), Instant(0));
    client.connected(Instant(0));
    let mut now = 0;
    while !rest.is_empty() {
        let space = client.space();
        let n = space.len().min(rest.len());
        space[..n].copy_from_slice(&rest[..n]);
        rest = &rest[n..];
        now += 1;
        if client.advance(Instant(now), n).is_err() {
            break;
        }
        while client.poll_event().is_some() {}
        while client.poll_transmit().is_some() {}
    }
}

/// The target.
pub fn replica_frames(data: &[u8]) {
    let Ok(steps) = Vec::<Step>::arbitrary_take_rest(Unstructured::new(data)) else { return };
    let stream = bytes(steps);
    read(&stream, replication);
    let mut client = Client::<Vec<u8>>::new(link(2, 1), Instant(0));
    client.connected(Instant(0));
    let mut greeting: Vec<u8> = core::iter::from_fn(|| client.poll_transmit()).flat_map(joined).collect();
    greeting.extend(&stream);
    served(&greeting);
    let mut server = Server::<Vec<u8>>::new(link(1, 2), Instant(0));
    let mut greeting: Vec<u8> = core::iter::from_fn(|| server.poll_transmit()).flat_map(joined).collect();
    greeting.extend(&stream);
    answered(&greeting);
}
