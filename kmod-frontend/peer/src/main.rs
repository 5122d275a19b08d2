//! Plays the data node for the tests of the kernel module: reads a script line by line, speaks `/dev/holdfast`, answers
//! PERSISTENT RESERVE OUT by the rules of the core, and can hang, refuse or lie on request.
//!
//! Script: `lease MS`, `port FABRIC WWN TAG RELATIVE`, `unit UUID BLOCKS BLOCK_SIZE [wce] [ro] [epoch=N]`, `serve UUID 0|1`,
//! `attention UUID CODE` (hexadecimal), `answer well|hang|busy`, `fuzz COUNT SEED`, `raw HEX`. Each line is answered on
//! standard output with `ok: LINE` or `refused (ERROR): LINE`. Ends with its input.

mod message;
mod unit;

use std::{
    collections::HashMap,
    fs::{File, OpenOptions},
    io::{BufRead, Read, Write},
    sync::{Arc, Mutex},
    thread,
};

use anyhow::{Context, Result, bail};
use holdfast_scsi::{nexus::RelativePort, status::Status};
use message::kind;
use unit::{PrOutcome, Unit};

#[derive(Clone, Copy, PartialEq)]
enum Manner {
    Well,
    Hang,
    Busy,
}

struct State {
    units: HashMap<[u8; 16], Unit>,
    ports: Vec<RelativePort>,
    manner: Manner,
    event: u64,
    /// Verdicts that wait until the image before this version has drained.
    waiting: Vec<([u8; 16], u64, u64)>,
}

fn send(device: &File, kind: u16, id: u64, volume: [u8; 16], body: &[u8]) -> std::io::Result<()> {
    let message = message::message(kind, id, volume, body);
    let mut device = device;
    device.write(&message).map(drop)
}

fn install(device: &File, volume: [u8; 16], unit: &Unit, passed: bool) -> std::io::Result<()> {
    send(device, kind::INSTALL, 0, volume, &unit.image(passed))
}

fn answer(device: &File, state: &mut State, bytes: &[u8]) -> Result<()> {
    let told = message::parse(bytes)?;
    if told.kind == kind::DRAINED {
        // The last of what was admitted under the older image has ended: the change may be answered.
        let version = u64::from_ne_bytes(told.body.get(8..16).context("drained too short")?.try_into()?);
        let (ready, waiting): (Vec<_>, Vec<_>) = std::mem::take(&mut state.waiting)
            .into_iter()
            .partition(|(volume, _, before)| *volume == told.volume && *before <= version);
        state.waiting = waiting;
        for (volume, id, _) in ready {
            send(device, kind::VERDICT, id, volume, &message::verdict(0, &[], &[]))?;
            install(device, volume, state.units.get(&volume).context("no unit")?, true)?;
        }
        return Ok(());
    }
    anyhow::ensure!(told.kind == kind::COMMAND, "a message of an unknown kind");
    let command = message::command(told.body)?;
    println!(
        "asked: {:02x}/{:02x} port {}",
        command.cdb[0],
        command.cdb.get(1).copied().unwrap_or(0) & 0x1f,
        command.relative_port
    );
    let busy = message::verdict(Status::Busy.code(), &[], &[]);
    match state.manner {
        Manner::Hang => return Ok(()),
        Manner::Busy => return Ok(send(device, kind::VERDICT, told.id, told.volume, &busy)?),
        Manner::Well => {}
    }
    let unit = state.units.get_mut(&told.volume).context("a unit that was not made here")?;
    if command.cdb.first() != Some(&0x5f) {
        return Ok(send(device, kind::VERDICT, told.id, told.volume, &busy)?);
    }
    let before = unit.version();
    let verdict =
        match unit.reserve_out(command.cdb, command.data_out, command.transport_id, command.relative_port)? {
            PrOutcome::Done(applied) => {
                if applied.changed {
                    state.waiting.push((told.volume, told.id, before));
                    install(device, told.volume, unit, false)?;
                    for (nexus, code) in &applied.unit_attentions {
                        state.event += 1;
                        let body = message::attention(
                            state.event,
                            u16::from_be_bytes([code.asc, code.ascq]),
                            1,
                            Some((nexus.initiator.as_bytes(), nexus.port.0)),
                        );
                        send(device, kind::ATTENTION, 0, told.volume, &body)?;
                    }
                    return Ok(());
                }
                message::verdict(Status::Good.code(), &[], &[])
            }
            PrOutcome::Conflict => message::verdict(Status::ReservationConflict.code(), &[], &[]),
            PrOutcome::Check(sense) => {
                let mut bytes = [0; 64];
                let len = sense.write(false, &mut bytes);
                message::verdict(Status::CheckCondition.code(), &bytes[..len], &[])
            }
        };
    Ok(send(device, kind::VERDICT, told.id, told.volume, &verdict)?)
}

fn uuid(text: &str) -> Result<[u8; 16]> {
    let digits: String = text.chars().filter(|c| *c != '-').collect();
    hex(&digits)?.try_into().ok().context("not a UUID")
}

fn hex(text: &str) -> Result<Vec<u8>> {
    (0..text.len())
        .step_by(2)
        .map(|at| Ok(u8::from_str_radix(text.get(at..at + 2).context("odd")?, 16)?))
        .collect()
}

fn boot_ns() -> Result<u64> {
    let uptime = std::fs::read_to_string("/proc/uptime")?;
    let seconds: f64 = uptime.split(' ').next().context("no uptime")?.parse()?;
    Ok((seconds * 1e9) as u64)
}

/// Messages that are nearly right: the kernel must refuse or survive each. Returns how many it took.
fn fuzz(device: &File, units: &HashMap<[u8; 16], Unit>, count: u64, seed: u64) -> u64 {
    let mut state = seed | 1;
    let mut random = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    let volume = units.keys().next().copied().unwrap_or([1; 16]);
    let image = units.get(&volume).map(|unit| unit.image(true)).unwrap_or_default();
    let mut taken = 0;
    for _ in 0..count {
        // SERVE and LEASE only ever close here: what they open is checked elsewhere.
        let (kind, body) = match random() % 6 {
            0 => (kind::INSTALL, image.clone()),
            1 => (kind::ATTENTION, message::attention(random(), random() as u16, 1, Some((&[5; 24], 1)))),
            2 => (kind::VERDICT, message::verdict(random() as u8, &[0x70; 18], &[1; 64])),
            3 => (kind::PORT, message::port("loopback", "naa.1", random() as u16, random() as u16)),
            4 => (kind::LEASE, random().to_ne_bytes().to_vec()),
            _ => (random() as u16, vec![random() as u8; (random() % 200) as usize]),
        };
        let mut bytes = message::message(kind, random() % 3, volume, &body);
        for _ in 0..random() % 4 {
            let at = (random() % bytes.len() as u64) as usize;
            bytes[at] = random() as u8;
        }
        if random().is_multiple_of(8) {
            bytes.truncate((random() % bytes.len() as u64) as usize);
            if let (Ok(len), Some(field)) = (u32::try_from(bytes.len()), bytes.get_mut(8..12)) {
                field.copy_from_slice(&len.to_ne_bytes());
            }
        }
        let mut device = device;
        taken += u64::from(device.write(&bytes).is_ok());
    }
    taken
}

fn run(device: &File, state: &Mutex<State>, line: &str) -> Result<()> {
    let words: Vec<&str> = line.split_whitespace().collect();
    let mut state = state.lock().expect("no thread panicked with it");
    match words.as_slice() {
        ["lease", ms] => {
            let until = boot_ns()? + ms.parse::<u64>()? * 1_000_000;
            let until = if *ms == "0" { 0 } else { until };
            send(device, kind::LEASE, 0, [0; 16], &until.to_ne_bytes())?;
        }
        ["port", fabric, wwn, tag, relative] => {
            let relative = relative.parse()?;
            send(device, kind::PORT, 0, [0; 16], &message::port(fabric, wwn, tag.parse()?, relative))?;
            state.ports.push(RelativePort(relative));
        }
        ["unit", volume, blocks, block_size, flags @ ..] => {
            let volume = uuid(volume)?;
            let mut unit = Unit::new(volume, blocks.parse()?, block_size.parse()?, flags)?;
            unit.set_ports(&state.ports);
            install(device, volume, &unit, true)?;
            state.units.insert(volume, unit);
        }
        ["serve", volume, open] => send(device, kind::SERVE, open.parse()?, uuid(volume)?, &[])?,
        ["attention", volume, code] => {
            state.event += 1;
            let body = message::attention(state.event, u16::from_str_radix(code, 16)?, 0, None);
            send(device, kind::ATTENTION, 0, uuid(volume)?, &body)?;
        }
        ["answer", manner] => {
            state.manner = match *manner {
                "well" => Manner::Well,
                "hang" => Manner::Hang,
                "busy" => Manner::Busy,
                other => bail!("no manner {other}"),
            }
        }
        ["fuzz", count, seed] => {
            let taken = fuzz(device, &state.units, count.parse()?, seed.parse()?);
            println!("fuzz: {taken} of {count} taken");
        }
        ["raw", bytes] => {
            let mut device = device;
            device.write(&hex(bytes)?).map(drop)?;
        }
        _ => bail!("not a line of this script"),
    }
    Ok(())
}

fn main() -> Result<()> {
    let path = std::env::var("HOLDFAST_KERNEL_DEVICE").unwrap_or_else(|_| "/dev/holdfast".into());
    let device = Arc::new(OpenOptions::new().read(true).write(true).open(&path).context(path)?);
    send(&device, kind::HELLO, 0, [0; 16], &[]).context("HELLO")?;
    let state = Arc::new(Mutex::new(State {
        units: HashMap::new(),
        ports: Vec::new(),
        manner: Manner::Well,
        event: 1000,
        waiting: Vec::new(),
    }));
    {
        let (device, state) = (Arc::clone(&device), Arc::clone(&state));
        thread::spawn(move || {
            let mut buffer = vec![0; 4 << 20];
            loop {
                let Ok(len) = (&*device).read(&mut buffer) else { return };
                let mut state = state.lock().expect("no thread panicked with it");
                if let Err(error) = answer(&device, &mut state, &buffer[..len]) {
                    println!("peer: {error:#}");
                }
            }
        });
    }
    for line in std::io::stdin().lock().lines() {
        let line = line?;
        match run(&device, &state, &line) {
            Ok(()) => println!("ok: {line}"),
            Err(error) => println!("refused ({error:#}): {line}"),
        }
    }
    Ok(())
}
