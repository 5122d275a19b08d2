//! A replica that could not be trusted, until it counts: the record that it is whole is durable before its admission is proposed.

use holdfast_replica::{
    activity_log::{ActivityLog, Settled},
    bitmap::Bitmap,
    config::{Member, Owner, VolumeConfig},
    epoch::Epoch,
    faults::Faults,
    ids::{BootId, Incarnation, NodeNumber, VolumeId},
    primary::{Change, Instant, Output, PeerState, Primary, Start},
    replication::{Answer, Body, FromReplica, Promise, Request, ToReplica},
    secondary::{Command, Opened, Part, Secondary},
    span::Shape,
};

const VOLUME: VolumeId = VolumeId([7; 16]);
const T0: Instant = Instant(1_000);

fn crc(so_far: u32, bytes: &[u8]) -> u32 {
    crc32c::crc32c_append(so_far, bytes)
}

fn node(n: u32) -> NodeNumber {
    NodeNumber::new(n).unwrap()
}

fn shape() -> Shape {
    Shape::with_units(64, 512, 3, 2, 4).unwrap()
}

/// Node 2.
fn opened(log: ActivityLog, promised: Epoch) -> Secondary<Vec<u8>> {
    Secondary::new(Opened {
        volume: VOLUME,
        shape: shape(),
        me: node(2),
        boot: BootId([2; 16]),
        crc32c: crc,
        promised,
        log,
        bitmaps: vec![],
        faults: Faults::NONE,
    })
}

fn frame(epoch: Epoch, number: u64, request: Request<Vec<u8>>) -> ToReplica<Vec<u8>> {
    let settled = Settled::default();
    ToReplica { volume: VOLUME, epoch, session: epoch.number, number, settled, request }
}

fn promise(epoch: Epoch, in_sync: &[u32], learners: &[u32]) -> ToReplica<Vec<u8>> {
    let nodes = |list: &[u32]| list.iter().map(|n| node(*n)).collect();
    let promise = Promise { term: epoch, in_sync: nodes(in_sync), learners: nodes(learners) };
    frame(epoch, 0, Request::Promise(promise))
}

/// Makes everything durable; returns the answers, and the newest image of the log.
fn run(s: &mut Secondary<Vec<u8>>) -> (Vec<Answer>, Option<ActivityLog>) {
    let (mut answers, mut log) = (vec![], None);
    while let Some(command) = s.poll_command() {
        match command {
            Command::Persist(id, parts) => {
                for part in parts {
                    if let Part::Log(_, image) = part {
                        log = Some(ActivityLog::decode([&image, &[0; 8192]], VOLUME, crc).unwrap());
                    }
                }
                s.done(id, Ok(()));
            }
            Command::Answer(answer) => answers.push(answer.answer),
            other => panic!("{other:?}"),
        }
    }
    (answers, log)
}

fn is_untrusted(answers: &[Answer]) -> bool {
    match answers {
        [Answer::Promised { untrusted, .. }] => *untrusted,
        other => panic!("{other:?}"),
    }
}

#[test]
fn replica_that_has_recorded_that_it_is_whole_is_trusted_by_an_owner_that_it_never_heard_of() {
    let (e2, e5) = (Epoch { generation: 0, number: 2 }, Epoch { generation: 0, number: 5 });
    let mut s = opened(ActivityLog::untrusted(), Epoch::ZERO);
    s.handle(promise(e2, &[1], &[2]));
    assert!(is_untrusted(&run(&mut s).0));
    s.handle(frame(e2, 9, Request::Whole));
    let Some(Command::Persist(id, parts)) = s.poll_command() else { panic!("nothing to persist") };
    assert_eq!(s.poll_command(), None, "not answered before it is durable");
    let [Part::Log(_, image)] = &parts[..] else { panic!("{parts:?}") };
    let log = ActivityLog::decode([image, &[0; 8192]], VOLUME, crc).unwrap();
    s.done(id, Ok(()));
    assert_eq!(run(&mut s).0, [Answer::Done]);
    // Its process ends, its admission is committed, and another owner is the first one that it hears.
    let mut s = opened(log, e2);
    s.handle(promise(e5, &[1, 2], &[]));
    assert!(!is_untrusted(&run(&mut s).0));
}

#[test]
fn replica_that_is_told_of_its_admission_without_that_record_stays_untrusted() {
    let (e2, e3) = (Epoch { generation: 0, number: 2 }, Epoch { generation: 0, number: 3 });
    let mut s = opened(ActivityLog::untrusted(), Epoch::ZERO);
    s.handle(promise(e2, &[1], &[2]));
    let log = run(&mut s).1.unwrap();
    let mut s = opened(log, e2);
    s.handle(promise(e3, &[1, 2], &[]));
    assert!(is_untrusted(&run(&mut s).0));
}

#[test]
fn replica_that_people_chose_in_a_forced_recovery_is_trusted_and_no_other_is() {
    let next = Epoch { generation: 1, number: 3 };
    for (in_sync, trusted) in [(&[2][..], true), (&[1], false), (&[1, 2], false)] {
        let mut s = opened(ActivityLog::untrusted(), Epoch { generation: 0, number: 2 });
        s.handle(promise(next, in_sync, &[]));
        assert_eq!(!is_untrusted(&run(&mut s).0), trusted, "{in_sync:?}");
    }
    // Without a new recovery generation nobody has decided anything.
    let mut s = opened(ActivityLog::untrusted(), Epoch { generation: 1, number: 2 });
    s.handle(promise(next, &[2], &[]));
    assert!(is_untrusted(&run(&mut s).0));
}

/// Node 1 owns the volume, node 2 learns.
struct Owned {
    primary: Primary<Vec<u8>>,
    sessions: [u64; 2],
    proposed: Vec<Change>,
    whole_asked: usize,
    /// The number of the last of those: the test answers it.
    whole: u64,
}

impl Owned {
    fn new(untrusted: bool) -> Owned {
        let me = Owner { node: node(1), incarnation: Incarnation(1) };
        let member = |n: u32| Member { node: node(n), boot: BootId([n as u8; 16]), pool: "default".into() };
        let config = VolumeConfig::new(vec![member(1)], 1).unwrap();
        let (config, _) = config.change_owner(config.epoch(), me, |_| Some(BootId([1; 16]))).unwrap();
        let config = config.add_learner(config.epoch(), member(2)).unwrap();
        let (shape, faults) = (shape(), Faults::NONE);
        let start = Start { volume: VOLUME, shape, me, config, new_volume: false, faults };
        let mut primary = Primary::new(T0, start);
        primary.set_lease(T0.plus_millis(10_000));
        let sessions = [1, 2].map(|n| primary.connected(T0, node(n)).unwrap());
        let mut owned = Owned { primary, sessions, proposed: vec![], whole_asked: 0, whole: 0 };
        owned.promised(1, false);
        owned.promised(2, untrusted);
        owned
    }

    fn promised(&mut self, from: u32, untrusted: bool) {
        let boot = BootId([from as u8; 16]);
        self.answer(from, 0, Answer::Promised { boot, untrusted, entries: vec![] });
        self.run();
    }

    fn answer(&mut self, from: u32, number: u64, answer: Answer) {
        let session = self.sessions[from as usize - 1];
        let frame = FromReplica { volume: VOLUME, epoch: self.primary.epoch(), session, number, answer };
        self.primary.handle(T0, node(from), frame);
    }

    /// Both replicas do what they are asked, and the shell too; nothing is left but [`Request::Whole`].
    fn run(&mut self) {
        let clean = Bitmap::new(node(2), shape(), false, 0);
        self.primary.tick(T0);
        while let Some(output) = self.primary.poll_output() {
            match output {
                Output::Send(_, ToReplica { request: Request::Promise(_) | Request::Settled, .. }) => {}
                Output::Send(_, ToReplica { request: Request::Whole, number, .. }) => {
                    self.whole_asked += 1;
                    self.whole = number;
                }
                Output::Send(to, frame) => self.answer(to.get().into(), frame.number, Answer::Done),
                Output::Copy(copy, _) => self.primary.copy_data(T0, copy, Some(Body::Zeroes)),
                Output::StartResync(to) => self.primary.start_resync(T0, to, Some(&clean)),
                Output::MergeBitmaps(to) => self.primary.merge_bitmaps(T0, to, [].iter()),
                Output::Propose(change, _) => self.proposed.push(change),
                other => panic!("{other:?}"),
            }
            self.primary.tick(T0);
        }
    }
}

#[test]
fn admission_of_one_that_could_not_be_trusted_is_proposed_only_when_it_has_recorded_that_it_is_whole() {
    let mut o = Owned::new(true);
    assert_eq!((o.whole_asked, &o.proposed[..]), (1, &[][..]));
    o.answer(2, o.whole, Answer::Done);
    o.run();
    assert_eq!(o.proposed, [Change::Admit(node(2))]);
}

#[test]
fn one_that_can_be_trusted_is_not_asked() {
    let o = Owned::new(false);
    assert_eq!((o.whole_asked, &o.proposed[..]), (0, &[Change::Admit(node(2))][..]));
}

#[test]
fn connection_that_is_lost_before_the_record_is_known_makes_the_learner_begin_anew() {
    let mut o = Owned::new(true);
    o.primary.disconnected(T0, node(2));
    o.sessions[1] = o.primary.connected(T0, node(2)).unwrap();
    o.promised(2, true);
    assert_eq!((o.whole_asked, &o.proposed[..]), (2, &[][..]), "still untrusted: all of it is copied again");
    // The record was made, and only the answer was lost.
    o.primary.disconnected(T0, node(2));
    o.sessions[1] = o.primary.connected(T0, node(2)).unwrap();
    assert_eq!(o.primary.peer_state(node(2)), Some(PeerState::Connecting));
    o.promised(2, false);
    assert_eq!((o.whole_asked, &o.proposed[..]), (2, &[Change::Admit(node(2))][..]));
}
