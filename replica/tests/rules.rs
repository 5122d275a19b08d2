//! The rules of owner and replica one by one, through their public interface. What happens when they meet trouble:
//! `tests/simulation`.

use holdfast_replica::{
    activity_log::{ActivityLog, Settled},
    config::{Member, Owner, VolumeConfig},
    epoch::Epoch,
    faults::Faults,
    ids::{BootId, Incarnation, NodeNumber, VolumeId},
    limits::{LIVE_EXTENTS_MAX, OWN_DISK_STALL_MS_MAX, REPLICA_SILENCE_MS_MAX},
    primary::{Change, Instant, Outcome, Output, Primary, Refusal, Start, Stop},
    replication::{Answer, Body, Failure, FromReplica, Promise, Request, ToReplica},
    secondary::{Command, Opened, Part, Secondary},
    span::{Shape, Span},
};

const VOLUME: VolumeId = VolumeId([7; 16]);
const T0: Instant = Instant(1_000);

fn crc(so_far: u32, bytes: &[u8]) -> u32 {
    crc32c::crc32c_append(so_far, bytes)
}

fn node(n: u32) -> NodeNumber {
    NodeNumber::new(n).unwrap()
}

fn epoch(number: u64) -> Epoch {
    Epoch { generation: 0, number }
}

/// 1000 extents of 8 blocks of 512 bytes.
fn shape() -> Shape {
    Shape::with_units(8_000, 512, 3, 2, 4).unwrap()
}

fn span(lba: u64, blocks: u64) -> Span {
    Span::new(lba, blocks).unwrap()
}

mod replica {
    use super::*;

    fn secondary(in_sync: &[u32]) -> Secondary<Vec<u8>> {
        let log = ActivityLog::new(in_sync.iter().map(|n| node(*n)).collect());
        Secondary::new(Opened {
            volume: VOLUME,
            shape: shape(),
            me: node(2),
            boot: BootId([2; 16]),
            crc32c: crc,
            promised: epoch(1),
            log,
            bitmaps: vec![],
            faults: Faults::NONE,
        })
    }

    fn frame(number: u64, at: u64, request: Request<Vec<u8>>) -> ToReplica<Vec<u8>> {
        let settled = Settled::default();
        ToReplica { volume: VOLUME, epoch: epoch(at), session: at, number, settled, request }
    }

    fn promise(in_sync: &[u32]) -> Request<Vec<u8>> {
        let in_sync = in_sync.iter().map(|n| node(*n)).collect();
        Request::Promise(Promise { term: epoch(2), in_sync, learners: vec![] })
    }

    fn write(lba: u64, durable: bool) -> Request<Vec<u8>> {
        Request::Write { span: span(lba, 1), body: Body::Zeroes, durable }
    }

    /// Does what is asked until nothing is left but applying; returns the answers and the writes that wait.
    fn run(s: &mut Secondary<Vec<u8>>) -> (Vec<Answer>, Vec<(u64, Span)>) {
        let (mut answers, mut writes) = (vec![], vec![]);
        while let Some(command) = s.poll_command() {
            match command {
                Command::Persist(id, _) | Command::Flush(id) => s.done(id, Ok(())),
                Command::Apply { id, span, .. } => writes.push((id, span)),
                Command::Answer(answer) => answers.push(answer.answer),
                Command::Read(id, span) => s.read_done(id, Ok(vec![3; span.blocks() as usize * 512])),
            }
        }
        (answers, writes)
    }

    fn promised(in_sync: &[u32]) -> Secondary<Vec<u8>> {
        let mut s = secondary(&[1, 2, 3]);
        s.handle(frame(0, 2, promise(in_sync)));
        assert!(matches!(run(&mut s).0[..], [Answer::Promised { .. }]));
        s
    }

    #[test]
    fn lower_epoch_is_refused_with_the_one_promised() {
        let mut s = promised(&[1, 2, 3]);
        s.handle(frame(1, 1, write(0, true)));
        s.handle(frame(0, 1, promise(&[1, 2])));
        assert_eq!(run(&mut s), (vec![Answer::Refused, Answer::Refused], vec![]));
        assert_eq!(s.promised(), epoch(2));
    }

    #[test]
    fn nothing_is_taken_before_a_promise() {
        let mut s = secondary(&[1, 2, 3]);
        s.handle(frame(1, 2, write(0, true)));
        assert_eq!(run(&mut s), (vec![], vec![]));
    }

    #[test]
    fn promise_waits_for_what_was_submitted_and_drops_what_was_not() {
        let mut s = promised(&[1, 2, 3]);
        s.handle(frame(1, 2, write(0, true)));
        s.handle(frame(2, 2, write(0, true)));
        let (_, writes) = run(&mut s);
        assert_eq!(writes.len(), 1, "the second one overlaps and waits");
        s.handle(frame(0, 3, promise(&[1, 2, 3])));
        assert_eq!(run(&mut s), (vec![], vec![]));
        s.done(writes[0].0, Ok(()));
        let (answers, writes) = run(&mut s);
        // The first one is answered to nobody: its owner is not listened to any more.
        assert!(matches!(answers[..], [Answer::Promised { .. }]));
        assert_eq!((writes, s.promised()), (vec![], epoch(3)));
    }

    #[test]
    fn log_and_bitmap_are_durable_before_a_write_is_applied() {
        // Node 3 has left, so it has a bitmap here.
        let mut s = promised(&[1, 2]);
        s.handle(frame(1, 2, write(40, false)));
        let Some(Command::Persist(id, parts)) = s.poll_command() else { panic!("nothing to persist") };
        assert!(matches!(parts[..], [Part::Log(..), Part::Page(n, ..)] if n == node(3)));
        assert_eq!(s.poll_command(), None);
        s.done(id, Ok(()));
        let (_, writes) = run(&mut s);
        assert_eq!(writes.len(), 1);
        assert!(s.bitmap(node(3)).unwrap().is_dirty(10));
        s.done(writes[0].0, Ok(()));
        assert_eq!(run(&mut s).0, [Answer::Done]);
        // Warm now: no metadata.
        s.handle(frame(2, 2, write(41, false)));
        assert!(matches!(s.poll_command(), Some(Command::Apply { .. })));
    }

    #[test]
    fn one_who_leaves_lacks_what_the_log_holds() {
        let mut s = promised(&[1, 2, 3]);
        s.handle(frame(1, 2, write(40, false)));
        let (_, writes) = run(&mut s);
        s.done(writes[0].0, Ok(()));
        s.handle(frame(0, 3, promise(&[1, 2])));
        assert!(matches!(run(&mut s).0[..], [Answer::Done, Answer::Promised { .. }]));
        let dirty: Vec<u64> = s.bitmap(node(3)).unwrap().dirty_chunks().collect();
        assert_eq!(dirty, [10, 11]);
    }

    #[test]
    fn flush_waits_for_the_writes_before_it() {
        let mut s = promised(&[1, 2, 3]);
        s.handle(frame(1, 2, write(0, false)));
        s.handle(frame(2, 2, Request::Flush));
        let (answers, writes) = run(&mut s);
        assert_eq!(answers, []);
        s.done(writes[0].0, Ok(()));
        assert_eq!(run(&mut s).0, [Answer::Done, Answer::Done]);
    }

    #[test]
    fn blocks_are_read_for_the_owner_of_the_promised_epoch_behind_the_writes_before() {
        let mut s = promised(&[1, 2, 3]);
        s.handle(frame(1, 2, write(0, false)));
        s.handle(frame(2, 2, Request::Read(span(0, 1))));
        s.handle(frame(3, 1, Request::Read(span(0, 1))));
        let (answers, writes) = run(&mut s);
        assert_eq!(answers, [Answer::Refused]);
        s.done(writes[0].0, Ok(()));
        assert_eq!(run(&mut s).0, [Answer::Done, Answer::Blocks(vec![3; 512])]);
        s.handle(frame(3, 2, Request::Read(span(8_000, 1))));
        assert_eq!(run(&mut s).0, [Answer::Failed(Failure::OutOfRange)]);
    }

    #[test]
    fn after_a_disk_error_nothing_is_taken_and_the_extent_stays() {
        let mut s = promised(&[1, 2, 3]);
        s.handle(frame(1, 2, write(0, false)));
        let (_, writes) = run(&mut s);
        s.done(writes[0].0, Err(Failure::Io));
        s.handle(frame(2, 2, Request::Flush));
        assert_eq!(run(&mut s).0, [Answer::Failed(Failure::Io), Answer::Failed(Failure::Io)]);
        assert!(s.is_broken());
    }

    #[test]
    fn blocks_behind_the_end_are_refused() {
        let mut s = promised(&[1, 2, 3]);
        s.handle(frame(1, 2, write(8_000, false)));
        assert_eq!(run(&mut s), (vec![Answer::Failed(Failure::OutOfRange)], vec![]));
    }
}

mod owner {
    use super::*;

    fn me() -> Owner {
        Owner { node: node(1), incarnation: Incarnation(1) }
    }

    fn config(min_in_sync: u8) -> VolumeConfig {
        let member = |n: u32| Member { node: node(n), boot: BootId([n as u8; 16]), pool: "default".into() };
        let config = VolumeConfig::new(vec![member(1), member(2)], min_in_sync).unwrap();
        config.change_owner(config.epoch(), me(), |n| Some(BootId([n.get() as u8; 16]))).unwrap().0
    }

    struct Owned {
        primary: Primary<Vec<u8>>,
        sessions: [u64; 2],
        sent: Vec<(NodeNumber, ToReplica<Vec<u8>>)>,
        other: Vec<Output<Vec<u8>>>,
    }

    impl Owned {
        fn new(min_in_sync: u8) -> Owned {
            let config = config(min_in_sync);
            let start = Start {
                volume: VOLUME,
                shape: shape(),
                me: me(),
                config,
                new_volume: false,
                faults: Faults::NONE,
            };
            let mut primary = Primary::new(T0, start);
            primary.set_lease(T0.plus_millis(10_000));
            let sessions = [1, 2].map(|n| primary.connected(T0, node(n)).unwrap());
            let mut owned = Owned { primary, sessions, sent: vec![], other: vec![] };
            for n in [1, 2] {
                let boot = BootId([n as u8; 16]);
                owned.answer(n, 0, Answer::Promised { boot, untrusted: false, entries: vec![] });
            }
            // The empty record and the flush that ends recovery.
            owned.all_done();
            owned.all_done();
            assert!(owned.primary.is_recovered());
            owned
        }

        fn answer(&mut self, from: u32, number: u64, answer: Answer) {
            let epoch = self.primary.epoch();
            let session = self.sessions[from as usize - 1];
            let frame = FromReplica { volume: VOLUME, epoch, session, number, answer };
            self.primary.handle(T0, node(from), frame);
            self.drain();
        }

        fn drain(&mut self) {
            while let Some(output) = self.primary.poll_output() {
                match output {
                    Output::Send(to, frame) => self.sent.push((to, frame)),
                    other => self.other.push(other),
                }
            }
        }

        /// Both replicas do all that they were sent.
        fn all_done(&mut self) {
            self.drain();
            for (to, frame) in std::mem::take(&mut self.sent) {
                if frame.number > 0 && !matches!(frame.request, Request::Promise(_)) {
                    self.answer(u32::from(to.get()), frame.number, Answer::Done);
                }
            }
        }

        fn write(&mut self, id: u64, lba: u64) -> Result<(), Refusal> {
            let result = self.primary.write(T0, id, span(lba, 1), Body::Data(vec![1; 512]), false);
            self.drain();
            result
        }

        fn writes_sent(&self) -> usize {
            self.sent.iter().filter(|(_, frame)| matches!(frame.request, Request::Write { .. })).count()
        }

        fn last_number(&self) -> u64 {
            self.sent.last().unwrap().1.number
        }
    }

    #[test]
    fn write_is_answered_when_both_have_it() {
        let mut o = Owned::new(1);
        o.write(1, 0).unwrap();
        let number = o.last_number();
        o.answer(1, number, Answer::Done);
        assert_eq!(o.primary.poll_completion(T0), None);
        o.answer(2, number, Answer::Done);
        assert_eq!(o.primary.poll_completion(T0), Some((1, Outcome::Done)));
    }

    #[test]
    fn read_waits_for_the_write_before_it_and_the_next_write_for_the_read() {
        let mut o = Owned::new(1);
        o.write(1, 0).unwrap();
        o.primary.read(T0, 2, span(0, 4)).unwrap();
        o.write(3, 3).unwrap();
        o.drain();
        assert_eq!(o.other, []);
        o.all_done();
        assert_eq!(o.other, [Output::Read(2, span(0, 4))]);
        assert_eq!(o.writes_sent(), 0, "the second write waits for the read");
        o.primary.read_done(T0, 2, true);
        o.drain();
        assert_eq!(o.writes_sent(), 2);
    }

    #[test]
    fn nothing_is_answered_or_taken_without_a_lease() {
        let mut o = Owned::new(1);
        o.write(1, 0).unwrap();
        o.all_done();
        let after = T0.plus_millis(10_000);
        assert_eq!(o.primary.poll_completion(after), None);
        assert_eq!(o.primary.read(after, 2, span(0, 1)), Err(Refusal::NotServing));
        assert_eq!(o.primary.poll_completion(T0), Some((1, Outcome::Done)));
    }

    #[test]
    fn silent_replica_is_removed_only_by_commit() {
        let mut o = Owned::new(1);
        o.write(1, 0).unwrap();
        let number = o.last_number();
        o.answer(1, number, Answer::Done);
        let later = T0.plus_millis(REPLICA_SILENCE_MS_MAX);
        o.primary.tick(later);
        o.drain();
        let before = o.primary.epoch();
        assert_eq!(o.other, [Output::Propose(Change::Evict(node(2)), before)]);
        assert_eq!(o.primary.poll_completion(later), None);
        let next = config(1).remove_from_in_sync(before, me(), node(2)).unwrap();
        o.primary.configured(later, &next);
        assert_eq!(o.primary.poll_completion(later), None, "the own replica has yet to promise");
        let boot = BootId([1; 16]);
        o.answer(1, 0, Answer::Promised { boot, untrusted: false, entries: vec![] });
        assert_eq!(o.primary.poll_completion(later), Some((1, Outcome::Done)));
    }

    #[test]
    fn below_the_least_number_of_replicas_no_write_is_taken_or_good() {
        let mut o = Owned::new(2);
        o.write(1, 0).unwrap();
        let number = o.last_number();
        o.answer(1, number, Answer::Done);
        let next = config(2).remove_from_in_sync(o.primary.epoch(), me(), node(2)).unwrap();
        o.primary.configured(T0, &next);
        let boot = BootId([1; 16]);
        o.answer(1, 0, Answer::Promised { boot, untrusted: false, entries: vec![] });
        assert_eq!(o.primary.poll_completion(T0), Some((1, Outcome::NotEnoughReplicas)));
        assert_eq!(o.write(2, 0), Err(Refusal::NotEnoughReplicas));
        assert_eq!(o.primary.read(T0, 3, span(0, 1)), Ok(()));
    }

    #[test]
    fn higher_promise_ends_the_owner() {
        let mut o = Owned::new(1);
        let (session, high) = (o.sessions[1], epoch(99));
        let answer = Answer::Refused;
        let frame = FromReplica { volume: VOLUME, epoch: high, session, number: 1, answer };
        o.primary.handle(T0, node(2), frame);
        o.drain();
        assert_eq!(o.other, [Output::Stopped(Stop::Deposed)]);
        assert_eq!(o.write(1, 0), Err(Refusal::NotServing));
    }

    #[test]
    fn own_disk_failing_ends_the_owner_and_anothers_does_not() {
        let mut o = Owned::new(1);
        o.write(1, 0).unwrap();
        let number = o.last_number();
        o.answer(2, number, Answer::Failed(Failure::NoSpace));
        assert_eq!(o.other, [Output::Propose(Change::Evict(node(2)), o.primary.epoch())]);
        o.answer(1, number, Answer::Failed(Failure::Io));
        assert_eq!(o.other.last(), Some(&Output::Stopped(Stop::ReplicaFailed)));
    }

    #[test]
    fn own_disk_that_stalls_ends_the_owner_where_another_replica_can_serve() {
        let late = Instant(T0.0 + OWN_DISK_STALL_MS_MAX);
        let stopped = |o: &mut Owned| {
            o.primary.set_lease(Instant(late.0 + 1));
            o.primary.tick(late);
            o.drain();
            o.other.contains(&Output::Stopped(Stop::ReplicaFailed))
        };
        let mut o = Owned::new(1);
        o.write(1, 0).unwrap();
        let number = o.last_number();
        o.answer(2, number, Answer::Done);
        assert!(stopped(&mut o));
        let mut o = Owned::new(1);
        o.primary.read(T0, 1, span(0, 1)).unwrap();
        assert!(stopped(&mut o));
        // The other one is silent as well.
        let mut o = Owned::new(1);
        o.write(1, 0).unwrap();
        assert!(!stopped(&mut o));
        // All is done.
        let mut o = Owned::new(1);
        o.primary.read(T0, 1, span(0, 1)).unwrap();
        o.primary.read_done(T0, 1, true);
        assert!(!stopped(&mut o));
    }

    #[test]
    fn cached_writes_to_many_extents_make_the_owner_flush() {
        let mut o = Owned::new(1);
        let extents = LIVE_EXTENTS_MAX as u64 + 10;
        for id in 0..extents {
            o.write(id, id * 8).unwrap();
        }
        let mut answered = 0;
        for _ in 0..4 {
            o.all_done();
            o.primary.tick(T0);
            while o.primary.poll_completion(T0).is_some() {
                answered += 1;
            }
        }
        assert_eq!(answered, extents);
    }

    #[test]
    fn replica_of_another_boot_is_not_in_sync() {
        let start = Start {
            volume: VOLUME,
            shape: shape(),
            me: me(),
            config: config(1),
            new_volume: false,
            faults: Faults::NONE,
        };
        let mut primary = Primary::<Vec<u8>>::new(T0, start);
        primary.set_lease(T0.plus_millis(10_000));
        let sessions = [1, 2].map(|n| primary.connected(T0, node(n)).unwrap());
        let mut o = Owned { primary, sessions, sent: vec![], other: vec![] };
        let boot = BootId([9; 16]);
        o.answer(2, 0, Answer::Promised { boot, untrusted: false, entries: vec![] });
        assert_eq!(o.other, [Output::Propose(Change::Evict(node(2)), o.primary.epoch())]);
        assert!(!o.primary.is_serving());
    }

    #[test]
    fn misuse_is_named() {
        let mut o = Owned::new(1);
        assert_eq!(o.write(1, 8_000), Err(Refusal::Misuse));
        let short = Body::Data(vec![1; 511]);
        assert_eq!(o.primary.write(T0, 1, span(0, 1), short, false), Err(Refusal::Misuse));
        assert_eq!(o.primary.write(T0, 1, span(0, 8_000), Body::Unmap, false), Err(Refusal::Misuse));
        o.write(1, 0).unwrap();
        assert_eq!(o.write(1, 100), Err(Refusal::Misuse));
    }

    /// The read that was sent to another replica: its number.
    fn asked(o: &Owned) -> u64 {
        let (to, frame) = o.sent.last().unwrap();
        assert_eq!((*to, &frame.request), (node(2), &Request::Read(span(8, 4))));
        frame.number
    }

    #[test]
    fn blocks_that_the_own_disk_has_lost_come_from_another_and_are_read_again() {
        let mut o = Owned::new(1);
        o.primary.read(T0, 7, span(9, 2)).unwrap();
        o.drain();
        assert_eq!(o.other, [Output::Read(7, span(9, 2))]);
        o.primary.read_failed(T0, 7, Some(span(9, 2)));
        o.drain();
        // Whole units of checksums are locked, and no write comes between.
        let number = asked(&o);
        o.write(8, 11).unwrap();
        assert_eq!(o.writes_sent(), 0);
        o.answer(2, number, Answer::Blocks(vec![5; 4 * 512]));
        let (to, frame) = o.sent.last().unwrap();
        let body = Body::Data(vec![5; 4 * 512]);
        assert_eq!(
            (*to, &frame.request),
            (node(1), &Request::Write { span: span(8, 4), body, durable: true })
        );
        let number = frame.number;
        assert_eq!(o.primary.take_healed().next(), None, "not written yet");
        o.answer(1, number, Answer::Done);
        assert_eq!(o.primary.take_healed().collect::<Vec<_>>(), [(span(8, 4), node(2))]);
        assert_eq!(o.primary.take_healed().next(), None, "told once");
        assert_eq!(o.other.last(), Some(&Output::Read(7, span(9, 2))));
        o.primary.read_done(T0, 7, true);
        assert_eq!(o.primary.poll_completion(T0), Some((7, Outcome::Done)));
    }

    #[test]
    fn blocks_that_nobody_has_are_a_failed_read_and_nothing_else() {
        let mut o = Owned::new(1);
        o.primary.read(T0, 7, span(9, 2)).unwrap();
        o.primary.read_failed(T0, 7, Some(span(9, 2)));
        o.drain();
        let number = asked(&o);
        o.answer(2, number, Answer::Failed(Failure::Unreadable));
        assert_eq!(o.primary.poll_completion(T0), Some((7, Outcome::ReadFailed)));
        assert_eq!(o.primary.take_healed().next(), None);
        o.write(8, 9).unwrap();
        o.all_done();
        assert_eq!(o.primary.poll_completion(T0), Some((8, Outcome::Done)));
    }

    #[test]
    fn blocks_that_are_lost_again_after_they_were_written_end_the_owner() {
        let mut o = Owned::new(1);
        o.primary.read(T0, 7, span(9, 2)).unwrap();
        o.primary.read_failed(T0, 7, Some(span(9, 2)));
        o.drain();
        let number = asked(&o);
        o.answer(2, number, Answer::Blocks(vec![5; 4 * 512]));
        let number = o.last_number();
        o.answer(1, number, Answer::Done);
        o.primary.read_failed(T0, 7, Some(span(9, 2)));
        o.drain();
        assert_eq!(o.other.last(), Some(&Output::Stopped(Stop::ReplicaFailed)));
    }

    #[test]
    fn replica_that_has_lost_blocks_gets_the_owners() {
        let mut o = Owned::new(1);
        o.answer(2, 0, Answer::Damaged(span(8, 1)));
        let Some(Output::Copy(copy, asked)) = o.other.last().cloned() else { panic!("{:?}", o.other) };
        assert_eq!(asked, span(8, 4));
        o.answer(2, 0, Answer::Damaged(span(8, 1)));
        assert_eq!(o.other.len(), 1, "once at a time");
        let body = Body::Data(vec![6; 4 * 512]);
        o.primary.copy_data(T0, copy, Some(body.clone()));
        o.drain();
        let (to, frame) = o.sent.last().unwrap();
        assert_eq!(
            (*to, &frame.request),
            (node(2), &Request::Write { span: span(8, 4), body, durable: true })
        );
    }
}
