//! POPULATE TOKEN and WRITE USING TOKEN: what a token stands for, and how it ends.

use super::*;

#[test]
fn data_is_written_by_a_token_from_wherever_it_is() {
    let mut net = Net::new();
    let token = populate(&mut net, B, &[(10, 4), (2000, 3000)]);
    assert_eq!(token.0[..4], CHANGE_VULNERABLE.to_be_bytes());
    let wanted = [net.blocks(B, 10, 4), net.blocks(B, 2000, 3000)].concat();
    let done = write_using(&mut net, A, &token, &[(7000, 2), (100, 3002)]);
    assert_eq!(done.status, Status::Good, "{done:?}");
    assert_eq!([net.blocks(A, 7000, 2), net.blocks(A, 100, 3002)].concat(), wanted);
    let told = bytes(net.ask(A, &cdb(0x84, 7, &[0, 0, 0, 5], 2, 1024), &[]));
    assert_eq!((told[4], told[5], told.len()), (0x11, 0x01, 36));
    assert_eq!(told[16..24], 3004_u64.to_be_bytes());
    // From within the token, and beyond its end.
    let id = use_token(&mut net, A, &token, 3, 0, &[(0, 2)]);
    assert_eq!(net.ended[&id].status, Status::Good);
    assert_eq!(net.blocks(A, 0, 2), wanted[3 * BLOCK..5 * BLOCK]);
    let id = use_token(&mut net, A, &token, 3000, 0, &[(0, 6)]);
    assert_eq!(net.ended[&id].status, Status::Good);
    let told = bytes(net.ask(A, &cdb(0x84, 7, &[0, 0, 0, 5], 2, 1024), &[]));
    assert_eq!((told[5], &told[16..24]), (0x04, 4_u64.to_be_bytes().as_slice()));
    let id = use_token(&mut net, A, &token, 3004, 0, &[(0, 1)]);
    assert_eq!(sense(&net.ended[&id]), Sense::illegal_field_parameter(8, None));
    // Within its own unit, and deleted afterwards.
    let id = use_token(&mut net, B, &token, 0, 2, &[(8000, 4)]);
    assert_eq!(net.ended[&id].status, Status::Good);
    assert_eq!(net.blocks(B, 8000, 4), wanted[..4 * BLOCK]);
    let gone = write_using(&mut net, A, &token, &[(0, 1)]);
    assert_eq!(sense(&gone), Sense::illegal(asc::TOKEN_DELETED));
}

#[test]
fn the_zero_token_writes_zeroes() {
    let mut net = Net::new();
    let mut zero = [0; 512];
    zero[..4].copy_from_slice(&ZERO.to_be_bytes());
    zero[6..8].copy_from_slice(&[0x01, 0xf8]);
    let done = write_using(&mut net, A, &RodToken::from_bytes(&zero), &[(5, 3), (50, 2)]);
    assert_eq!(done.status, Status::Good);
    assert!([net.blocks(A, 5, 3), net.blocks(A, 50, 2)].concat().iter().all(|byte| *byte == 0));
    assert!(net.blocks(A, 8, 1).iter().all(|byte| *byte != 0));
}

#[test]
fn changed_forged_and_foreign_tokens_write_nothing() {
    let mut net = Net::new();
    let untouched = net.blocks(A, 0, 100);
    let token = populate(&mut net, B, &[(10, 4)]);
    let refused = |net: &mut Net, token: &RodToken| sense(&write_using(net, A, token, &[(0, 4)]));
    for at in [8, 47, 56, 63, 96, 400, 480, 511] {
        let mut forged = *token.0;
        forged[at] ^= 1;
        let found = refused(&mut net, &RodToken::from_bytes(&forged));
        assert_eq!(found.key, SenseKey::IllegalRequest);
        assert_eq!(found.additional.asc, 0x23, "{at}");
    }
    // A unit that the host does not reach.
    net.maps.get_mut(&MINE).unwrap().remove(&B);
    assert_eq!(refused(&mut net, &token), Sense::illegal(asc::TOKEN_UNKNOWN));
    net.maps.get_mut(&MINE).unwrap().insert(B, false);
    // Blocks beside what it represents are written: it stays good. Its own: never again.
    let write = |lba: u8| [0x2a, 0, 0, 0, 0, lba, 0, 0, 1, 0];
    net.ask(B, &write(14), &[9; BLOCK]);
    assert_eq!(write_using(&mut net, A, &token, &[(200, 4)]).status, Status::Good);
    net.ask(B, &write(13), &net.blocks(B, 13, 1));
    assert_eq!(refused(&mut net, &token), Sense::illegal(asc::TOKEN_REVOKED));
    let other = populate(&mut net, B, &[(10, 4)]);
    assert_ne!(other, token);
    // Another host's reservation keeps from reading by a token too.
    net.reserve(B, ReservationType::ExclusiveAccess, OTHER);
    let conflict = refused(&mut net, &other);
    assert_eq!(conflict.forwarded.unwrap().status, Status::ReservationConflict);
    let server = &mut net.units.get_mut(&B).unwrap().server;
    server.install_state(NOW, 9, LuState::default());
    net.units.get_mut(&B).unwrap().server.forget_tokens();
    assert_eq!(refused(&mut net, &other), Sense::illegal(asc::TOKEN_UNKNOWN));
    assert_eq!(net.blocks(A, 0, 100), untouched);
}

#[test]
fn a_source_that_changes_during_a_copy_ends_it_before_the_change_shows() {
    let mut net = Net::new();
    let token = populate(&mut net, B, &[(0, 6000)]);
    let before = net.blocks(B, 0, 6000);
    net.holds = true;
    let id = use_token(&mut net, A, &token, 0, 0, &[(0, 6000)]);
    for _ in 0..4 {
        assert!(net.release_one());
    }
    net.ask(B, &[0x2a, 0, 0, 0, 0x17, 0, 0, 0, 1, 0], &[0x55; BLOCK]);
    net.release_all();
    assert_eq!(sense(&net.ended[&id]), Sense::illegal(asc::TOKEN_REVOKED));
    let told = bytes(net.ask(A, &cdb(0x84, 7, &[0, 0, 0, 5], 2, 1024), &[]));
    assert_eq!(told[5], 0x02);
    let written = u64::from_be_bytes(told[16..24].try_into().unwrap()) as usize;
    assert!(written > 0 && written < 6000);
    assert_eq!(
        net.blocks(A, 0, written),
        before[..written * BLOCK],
        "what was written is what the token stood for"
    );
}

#[test]
fn tokens_that_are_not_used_expire() {
    let mut net = Net::new();
    let token = populate(&mut net, B, &[(10, 4)]);
    net.now = NOW.plus_millis(u64::from(limits::TOKEN_INACTIVITY_S_DEFAULT) * 1000 + 1);
    assert_eq!(all_tokens(&mut net, B), [0, 0, 0, 4, 0, 0, 0, 0]);
    let late = write_using(&mut net, A, &token, &[(0, 4)]);
    assert_eq!(sense(&late), Sense::illegal(asc::TOKEN_EXPIRED));
}

#[test]
fn formatting_and_sanitizing_revoke_every_token() {
    for kind in [OperationKind::Format, OperationKind::BlockErase] {
        let mut net = Net::new();
        let token = populate(&mut net, B, &[(10, 4)]);
        let state = OperationState::Running { may_exit_failure: false };
        let mut running = LuState::default();
        running.unit.operation = Some(Operation { kind, state });
        let server = &mut net.units.get_mut(&B).unwrap().server;
        server.install_state(NOW, 5, running);
        while server.poll_action().is_some() {}
        server.install_state(NOW, 6, LuState::default());
        let refused = write_using(&mut net, A, &token, &[(0, 4)]);
        assert_eq!(sense(&refused), Sense::illegal(asc::TOKEN_REVOKED));
        assert_eq!(all_tokens(&mut net, B).len(), 8);
    }
}

#[test]
fn all_tokens_of_a_unit_are_told_of_without_what_makes_them_usable() {
    let mut net = Net::new();
    let tokens = [populate(&mut net, B, &[(10, 4)]), populate(&mut net, B, &[(20, 1), (30, 2)])];
    let told = all_tokens(&mut net, B);
    assert_eq!(told.len(), 8 + 2 * 96);
    assert_eq!(told[..8], [0, 0, 0, 4 + 2 * 96, 0, 0, 0, 0]);
    for (told, token) in told[8..].chunks_exact(96).zip(&tokens) {
        assert_eq!(told, &token.0[..96]);
    }
    assert_eq!(told[8 + 96 + 48..8 + 96 + 64], (3 * BLOCK as u128).to_be_bytes(), "bytes represented");
    assert_eq!(all_tokens(&mut net, A).len(), 8, "those of another unit are not its");
    // Written to, or deleted by its user: not known any more.
    net.ask(B, &[0x2a, 0, 0, 0, 0, 12, 0, 0, 1, 0], &[9; BLOCK]);
    assert_eq!(all_tokens(&mut net, B)[8..], tokens[1].0[..96]);
    use_token(&mut net, A, &tokens[1], 0, 2, &[(0, 3)]);
    assert_eq!(all_tokens(&mut net, B).len(), 8);
}
