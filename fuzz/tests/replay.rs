//! The kept corpus through every target: what the fuzzers reached, and what they once found, in seconds and without a fuzzer.

use std::{fs, path::PathBuf};

use holdfast_fuzz::TARGETS;

/// Bytes of the whole corpus: it is kept to be small.
const CORPUS_BYTES_MAX: u64 = 2 << 20;

fn corpus(name: &str) -> Vec<PathBuf> {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("corpus").join(name);
    let entries = fs::read_dir(&folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
    let mut files: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files
}

#[test]
fn kept_corpus() {
    let mut bytes = 0;
    for (name, target) in TARGETS {
        let files = corpus(name);
        assert!(files.len() >= 10, "{name}: {} inputs are kept", files.len());
        for file in files {
            let data = fs::read(&file).unwrap();
            bytes += data.len() as u64;
            // The last file named is the one that panicked.
            println!("{}", file.display());
            target(&data);
        }
    }
    assert!(bytes <= CORPUS_BYTES_MAX, "{bytes} bytes: minimise it with fuzz/run.sh minimise");
}

/// Every target has its program, and every program and corpus its target.
#[test]
fn targets_programs_and_corpora_agree() {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    let names = |folder: &str| {
        let mut names: Vec<String> = fs::read_dir(root.join(folder))
            .unwrap()
            .map(|entry| entry.unwrap().path().file_stem().unwrap().to_str().unwrap().to_owned())
            .collect();
        names.sort();
        names
    };
    let targets: Vec<&str> = TARGETS.iter().map(|(name, _)| *name).collect();
    assert_eq!(names("fuzz_targets"), targets);
    assert_eq!(names("corpus"), targets);
}
