//! Reads damaged and invented files. Any bytes give a result or an error, never a panic. Memory and time stay in proportion to
//! the file.

use std::fs;
use std::path::Path;

use eplb::placement::{ConfigFile, Expected};
use eplb::stats::{Dump, LoadOptions, MetaInfo, RankFile};
use proptest::prelude::*;
use proptest::sample::Index;

/// One change to a file.
#[derive(Debug, Clone)]
enum Damage {
    Flip(Index, u8),
    Cut(Index),
    Insert(Index, Vec<u8>),
    Remove(Index, usize),
    Repeat(Index, usize),
}

fn damage() -> impl Strategy<Value = Damage> {
    let words: [&[u8]; 15] = [
        b"18446744073709551615",
        b"-1",
        b"9223372036854775807",
        b"1e999",
        b"null",
        b"\"__metadata__\"",
        b"[[[[[[[[",
        b"\\ud800",
        b"\0",
        b"\xff\xff\xff\xff\xff\xff\xff\x7f",
        b"*a",
        b"&a ",
        b"<<: ",
        b"!!str ",
        b"\n",
    ];
    prop_oneof![
        (any::<Index>(), any::<u8>()).prop_map(|(at, bits)| Damage::Flip(at, bits)),
        any::<Index>().prop_map(Damage::Cut),
        (any::<Index>(), proptest::sample::select(words.to_vec()))
            .prop_map(|(at, word)| Damage::Insert(at, word.to_vec())),
        (any::<Index>(), 1usize..30).prop_map(|(at, len)| Damage::Remove(at, len)),
        (any::<Index>(), 1usize..200).prop_map(|(at, len)| Damage::Repeat(at, len)),
    ]
}

fn damaged(bytes: &[u8], damages: &[Damage]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    for damage in damages {
        let place = |at: &Index, bytes: &[u8]| at.index(bytes.len() + 1);
        match damage {
            Damage::Flip(at, bits) if !bytes.is_empty() => {
                let at = at.index(bytes.len());
                bytes[at] ^= bits;
            }
            Damage::Flip(..) => {}
            Damage::Cut(at) => bytes.truncate(place(at, &bytes)),
            Damage::Insert(at, word) => {
                let at = place(at, &bytes);
                bytes.splice(at..at, word.iter().copied());
            }
            Damage::Remove(at, len) => {
                let at = place(at, &bytes);
                bytes.drain(at..(at + len).min(bytes.len()));
            }
            Damage::Repeat(at, len) => {
                let at = place(at, &bytes);
                let again = bytes[at..(at + len).min(bytes.len())].to_vec();
                bytes.splice(at..at, again);
            }
        }
    }
    bytes
}

/// A rank file of 2 experts, 2 iterations and 2 layers. It is small, so most damage is in its header.
fn rank_file() -> Vec<u8> {
    let metadata =
        r#"{"rank":"0","num_ranks":"1","layers":"1,2","iter_start":"5","iter_stop":"7","counts":"experts"}"#;
    rank_file_of(metadata, ["5_1", "5_2", "6_1", "6_2"])
}

/// The same in rows of 3 iterations, one in 2 counted, of a pipeline stage. The second row has one iteration.
fn rank_file_in_rows() -> Vec<u8> {
    let metadata = r#"{"rank":"0","num_ranks":"2","num_files":"1","ep_rank":"1","layers":"1,2","iter_start":"5","iter_stop":"12","iter_bucket":"3","iter_stride":"2","counted_start":"6","counted_stop":"12","counts":"experts"}"#;
    rank_file_of(metadata, ["5_1", "5_2", "11_1", "11_2"])
}

fn rank_file_of(metadata: &str, names: [&str; 4]) -> Vec<u8> {
    let mut header = format!("{{\"__metadata__\":{metadata}");
    for (i, name) in names.iter().enumerate() {
        let (start, stop) = (16 * i, 16 * i + 16);
        header += &format!(r#","{name}":{{"dtype":"I64","shape":[2],"data_offsets":[{start},{stop}]}}"#);
    }
    header.push('}');
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.bytes());
    bytes.extend((0..8u64).flat_map(u64::to_le_bytes));
    bytes
}

const META: &str = r#"{"num_experts":2,"num_experts_per_token":1,"eplb":{"version":"0","num_ranks":1,"iter_start":5,"iter_stop":7,"layers":[1,2],"counts":"experts"}}"#;

const META_IN_ROWS: &str = r#"{"num_experts":2,"num_experts_per_token":1,"eplb":{"version":"0","num_ranks":2,"num_files":1,"iter_start":5,"iter_stop":12,"iter_bucket":3,"iter_stride":2,"layers":[1,2],"counts":"experts"}}"#;

const CONFIG: &str = "ep_size: 2\ninitial_global_assignments:\n  3: [0, 1, 2, 2]\n  10: [2, 0, 1, 0]\n\
                      layer_updates_per_iter: 0\nnum_slots: 4\n";

/// The same in eplb's own file, with empty slots.
const OWN: &str = "eplb_placement: 1\nep_size: 2\nslots_per_rank: 3\nnum_experts: 3\nlayers:\n  3: [0, 1, -1, 2, -1, 2]\n  \
                   10: [2, 0, 1, -1, 0, 1]\n";

fn read_dump(directory: &Path) -> eplb::Result<u64> {
    let stats =
        Dump::open(directory, &LoadOptions { threads: 1, allow_missing_ranks: true, ..Default::default() })?
            .read(&mut |_, _| Ok(()))?;
    let layers = stats.summary().layers.clone();
    layers
        .iter()
        .map(|&layer| Ok(stats.layer_totals(layer)?.iter().fold(0, |a: u64, b| a.wrapping_add(*b))))
        .sum()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4000, failure_persistence: None, ..Default::default() })]

    #[test]
    fn damaged_rank_file_is_read_or_rejected(damages in proptest::collection::vec(damage(), 1..4)) {
        for (meta, file) in [(META, rank_file()), (META_IN_ROWS, rank_file_in_rows())] {
            let dir = tempfile::tempdir().unwrap();
            fs::write(dir.path().join("meta_info.json"), meta).unwrap();
            let path = dir.path().join("rank0.safetensors");
            fs::write(&path, damaged(&file, &damages)).unwrap();
            if let Err(error) = read_dump(dir.path()) {
                prop_assert!(error.to_string().contains(dir.path().to_str().unwrap()), "{}", error);
            }
            let _ = RankFile::open(&path, None);
        }
    }

    #[test]
    fn damaged_meta_file_is_read_or_rejected(damages in proptest::collection::vec(damage(), 1..4)) {
        for (meta, file) in [(META, rank_file()), (META_IN_ROWS, rank_file_in_rows())] {
            let text = damaged(meta.as_bytes(), &damages);
            let _ = MetaInfo::parse(&text);
            let dir = tempfile::tempdir().unwrap();
            fs::write(dir.path().join("meta_info.json"), text).unwrap();
            fs::write(dir.path().join("rank0.safetensors"), file).unwrap();
            if let Err(error) = read_dump(dir.path()) {
                prop_assert!(error.to_string().contains(dir.path().to_str().unwrap()), "{}", error);
            }
        }
    }

    #[test]
    fn damaged_configuration_file_is_read_or_rejected(damages in proptest::collection::vec(damage(), 1..4)) {
        let text = damaged(CONFIG.as_bytes(), &damages);
        if let Ok(config) = ConfigFile::parse(&String::from_utf8_lossy(&text)) {
            for num_experts in [None, Some(3)] {
                let expected = Expected { num_experts, num_ranks: Some(2), layers: Some(&[3]), ..Default::default() };
                if let Ok(placement) = config.placement(expected) {
                    // An accepted file is written in the standard form with the same meaning.
                    let again = ConfigFile::parse(&placement.to_yaml().unwrap()).unwrap().placement(expected).unwrap();
                    prop_assert_eq!(&again, &placement);
                }
            }
        }
    }

    #[test]
    fn damaged_file_of_eplb_is_read_or_rejected(damages in proptest::collection::vec(damage(), 1..4)) {
        let text = damaged(OWN.as_bytes(), &damages);
        if let Ok(config) = ConfigFile::parse(&String::from_utf8_lossy(&text)) {
            let expected = Expected { num_ranks: Some(2), layers: Some(&[3]), ..Default::default() };
            if let Ok(placement) = config.placement(expected) {
                let again = ConfigFile::parse(&placement.to_eplb_yaml()).unwrap().placement(expected).unwrap();
                prop_assert_eq!(&again, &placement);
            }
        }
    }
}

#[test]
fn undamaged_files_are_read() {
    for (meta, file) in [(META, rank_file()), (META_IN_ROWS, rank_file_in_rows())] {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("meta_info.json"), meta).unwrap();
        fs::write(dir.path().join("rank0.safetensors"), file).unwrap();
        assert_eq!(read_dump(dir.path()).unwrap(), (0..8).sum::<u64>());
    }
    assert!(ConfigFile::parse(CONFIG).unwrap().placement(Expected::default()).is_ok());
    assert!(ConfigFile::parse(OWN).unwrap().placement(Expected::default()).is_ok());
}

#[test]
fn aliases_are_read_up_to_the_limit_of_slots() {
    // PyYAML writes an alias where two layers share a list.
    let shared = "initial_global_assignments:\n  0: &id001 [1, 0]\n  1: *id001\nnum_slots: 2\n";
    let expected = Expected { num_ranks: Some(1), ..Default::default() };
    let placement = ConfigFile::parse(shared).unwrap().placement(expected).unwrap();
    assert_eq!(placement.layer_experts(1).unwrap(), [1, 0]);

    // 100,000 slots, 100 times: 4,194,304 are allowed.
    let mut bomb = format!("initial_global_assignments:\n  0: &a [{}0]\n", "0, ".repeat(99_999));
    (1..100).for_each(|layer| bomb += &format!("  {layer}: *a\n"));
    let message = ConfigFile::parse(&bomb).unwrap_err().to_string();
    assert!(message.contains("more than 4194304 slots in all layers"), "{message}");

    // So in eplb's own file.
    let own = "eplb_placement: 1\nep_size: 1\nslots_per_rank: 100000\nnum_experts: 1\nlayers:\n";
    let bomb = bomb.replacen("initial_global_assignments:\n", own, 1);
    let message = ConfigFile::parse(&bomb).unwrap_err().to_string();
    assert!(message.contains("more than 4194304 slots in all layers"), "{message}");

    // The same without a list: 1,048,576 slots in each of the caller's layers.
    let layers: Vec<u32> = (0..5).collect();
    let expected =
        Expected { num_experts: Some(8), num_ranks: Some(8), layers: Some(&layers), ..Default::default() };
    let message =
        ConfigFile::parse("num_slots: 1048576\n").unwrap().placement(expected).unwrap_err().to_string();
    assert_eq!(message, "more than 4194304 slots in all layers");
}

#[test]
fn deep_nesting_is_rejected() {
    // A comment sign may be inside a string, so brackets after it count too.
    let quoted = ["[\"#\",".repeat(1 << 20), "[\"\n#\",".repeat(1 << 20)];
    for text in ["[".repeat(1 << 22), "{a: ".repeat(1 << 20), "- ".repeat(1 << 16)].iter().chain(&quoted) {
        assert!(ConfigFile::parse(&format!("num_slots: {text}")).is_err());
        assert!(ConfigFile::parse(&format!("eplb_placement: 1\nslots_per_rank: {text}")).is_err());
    }
}

#[test]
fn messages_are_short_for_any_file() {
    let long = "x".repeat(1 << 20);
    let message = ConfigFile::parse(&format!("{long}: 1\n")).unwrap_err().to_string();
    assert!(message.len() < 500, "{}", message.len());
    let message = ConfigFile::parse(&format!("num_slots: {long}\n")).unwrap_err().to_string();
    assert!(message.len() < 500, "{}", message.len());
    let with_hash = OWN.replace("slots_per_rank: 3\n", &format!("slots_per_rank: 3\nhash: {long}\n"));
    for text in [with_hash, format!("eplb_placement: 1\n{long}: 1\n"), format!("eplb_placement: {long}\n")] {
        let message = ConfigFile::parse(&text).unwrap_err().to_string();
        assert!(message.len() < 500, "{}", message.len());
    }

    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("rank0.safetensors");
    for (name, dtype, shape) in [
        (&long[..], "I64", "2"),
        ("0_0", &long, "2"),
        ("0_0", "I64", &"7,".repeat(100_000)),
        ("0_0", "I64", &long),
    ] {
        let shape = shape.trim_end_matches(',');
        let header = format!(r#"{{"{name}":{{"dtype":"{dtype}","shape":[{shape}],"data_offsets":[0,16]}}}}"#);
        let len = (header.len() as u64).to_le_bytes();
        fs::write(&path, [&len[..], header.as_bytes(), &[0; 16]].concat()).unwrap();
        let message = RankFile::open(&path, Some(2)).unwrap_err().to_string();
        assert!(message.len() < 500, "{}", message.len());
    }
}

#[test]
fn header_larger_than_its_file_allocates_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("rank0.safetensors");
    fs::write(&path, [&99_000_000u64.to_le_bytes()[..], b"{}"].concat()).unwrap();
    let message = RankFile::open(&path, None).unwrap_err().to_string();
    assert!(
        message.ends_with("its header has 99000000 bytes, but only 2 follow: it is truncated, copy it again"),
        "{message}"
    );
}

#[test]
fn too_many_experts_are_rejected_before_memory_is_allocated() {
    let dir = tempfile::tempdir().unwrap();
    let experts = 1u64 << 38;
    let header =
        format!(r#"{{"0_0":{{"dtype":"I64","shape":[{experts}],"data_offsets":[0,{}]}}}}"#, experts * 8);
    let path = dir.path().join("rank0.safetensors");
    fs::write(&path, [&(header.len() as u64).to_le_bytes()[..], header.as_bytes()].concat()).unwrap();
    let meta = format!(r#"{{"num_experts":{experts},"num_experts_per_token":1}}"#);
    fs::write(dir.path().join("meta_info.json"), meta).unwrap();
    let message = read_dump(dir.path()).unwrap_err().to_string();
    assert!(message.ends_with("num_experts is 274877906944, at most 1048576 supported"), "{message}");
    let message = RankFile::open(&path, None).unwrap_err().to_string();
    assert!(
        message.ends_with("its tensors have 274877906944 values, at most 1048576 supported"),
        "{message}"
    );
}
