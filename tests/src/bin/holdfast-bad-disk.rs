//! `holdfast-bad-disk FOLDER BYTES`: mounts a disk that fails on command ([`holdfast_tests::bad_disk`]) until it is killed. Commands come as
//! lines of standard input; each is answered by one line.

use std::io::{BufRead, Write};

use anyhow::{Context, bail};
use fuser::{Config, MountOption};
use holdfast_tests::bad_disk::filesystem::Face;

fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [folder, size] = arguments.as_slice() else { bail!("usage: holdfast-bad-disk FOLDER BYTES") };
    let disk = Face::new(size.parse().context("BYTES")?);
    let mut options = Config::default();
    options.mount_options = vec![MountOption::FSName("holdfast-bad-disk".to_owned())];
    options.n_threads = Some(2);
    let _session = fuser::spawn_mount(disk.clone(), folder, &options)
        .with_context(|| format!("{folder} cannot be mounted over FUSE"))?;
    let mut out = std::io::stdout().lock();
    writeln!(out, "ready")?;
    out.flush()?;
    for line in std::io::stdin().lock().lines() {
        let answer = disk.platter().command(&line?);
        match answer {
            Ok(number) => writeln!(out, "done {number}")?,
            Err(error) => writeln!(out, "refused {error}")?,
        }
        out.flush()?;
    }
    Ok(())
}
