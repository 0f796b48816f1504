//! Damaged and hostile files.

use super::*;

#[test]
fn reader_names_the_place_of_an_invalid_entry() {
    let refused = |text: &str, format, model: &Model| {
        placement_from_bytes(text.as_bytes(), format, model).unwrap_err().to_string()
    };
    let two_ranks = Model { num_ranks: Some(2), ..Model::default() };
    let rows = |text: &str| refused(text, PlacementFormat::Phy2logJson, &two_ranks);
    assert_eq!(rows("[[0, 1, 3, 0]]"), "layer 0: expert 2 has no slot; every expert needs one");
    assert_eq!(
        rows("[[0, 1, 2]]"),
        "3 slots cannot be split evenly over 2 ranks; for 3 experts the nearest valid number of slots is 4"
    );
    assert_eq!(rows("[[0, 1], [0, 1048576]]"), "[1][1] is 1048576: there are at most 1048576 experts");
    assert_eq!(rows("[[[0, 1]]]"), "it has 3 dimensions, [layers][slots] expected");
    assert_eq!(
        refused("[[0, 1]]", PlacementFormat::Phy2logJson, &Model::default()),
        "the file has no ep_size; set num_ranks (--ep_size)"
    );
    assert_eq!(
        refused("[[0, 1, 2, 0]]", PlacementFormat::Phy2logJson, &Model { num_experts: Some(2), ..two_ranks }),
        "layer 0, rank 1, slot 2: expert 2 does not exist; experts are 0 to 1"
    );
    let layers = Model { layers: Some(&[3, 4]), ..two_ranks };
    assert_eq!(
        refused("[[0, 1], [1, 0], [0, 1]]", PlacementFormat::Phy2logJson, &layers),
        "it has 3 rows, expected one for each of 2 layers, or more than 4"
    );

    let sglang = |text: &str| refused(text, PlacementFormat::SglangMap, &two_ranks);
    assert_eq!(
        sglang("{\"physical_to_logical_map\": [[0, 1], [1]]}"),
        "bad JSON: [1] has 1 elements, 2 expected at line 1 column 40"
    );
    assert_eq!(
        sglang("{\"logical_count\": [[0, 1]]}"),
        "bad JSON: it has \"logical_count\", so it holds counts; \"physical_to_logical_map\" expected at line 1 column 16"
    );
    assert_eq!(
        sglang("{\"physical_to_logical\": []}"),
        "it has no \"physical_to_logical_map\"; its keys are physical_to_logical"
    );
    assert_eq!(sglang("{}"), "it has no \"physical_to_logical_map\"");
    let twice = "{\"physical_to_logical_map\": [[0]], \"physical_to_logical_map\": [[0]]}";
    assert!(sglang(twice).starts_with("bad JSON: \"physical_to_logical_map\" appears twice at "));

    let map = |devices: &str, model: &Model| {
        let text = format!(
            "{{\"moe_layer_count\": 1, \"layer_list\": [{{\"layer_id\": 0, \"device_count\": 2, \"device_list\": [{devices}]}}]}}"
        );
        refused(&text, PlacementFormat::ExpertMap, model)
    };
    let device = |id: u32, experts: &str| format!("{{\"device_id\": {id}, \"device_expert\": [{experts}]}}");
    let devices = [device(0, "0, 1"), device(1, "2, 0")].join(", ");
    let three_ranks = Model { num_ranks: Some(3), ..Model::default() };
    assert_eq!(map(&devices, &three_ranks), "it has 2 devices, 3 ranks expected");
    assert_eq!(map(&devices, &layers), "it has 1 layers, 2 expected");
    let gap = [device(0, "0, 1"), device(1, "3, 0")].join(", ");
    assert_eq!(map(&gap, &Model::default()), "layer 0: expert 2 has no slot; every expert needs one");
    let none = [device(0, ""), device(1, "")].join(", ");
    assert_eq!(map(&none, &Model::default()), "0 experts: there must be 1 to 1048576");
}

/// A minimal archive of stored files.
fn zip(files: &[(&str, &[u8])]) -> Vec<u8> {
    let (mut archive, mut list) = (Vec::new(), Vec::new());
    for (name, bytes) in files {
        let mut crc = !0u32;
        for byte in *bytes {
            crc ^= u32::from(*byte);
            (0..8).for_each(|_| crc = if crc & 1 == 1 { crc >> 1 ^ 0xedb8_8320 } else { crc >> 1 });
        }
        let sizes = [!crc, bytes.len() as u32, bytes.len() as u32].map(u32::to_le_bytes).concat();
        let name_len = (name.len() as u16).to_le_bytes();
        let start = (archive.len() as u32).to_le_bytes();
        // Version, flags, method, time and date, then the sizes, the name's length, no extra field.
        let common = [&[20, 0, 0, 0, 0, 0, 0, 0, 0, 0][..], &sizes, &name_len, &[0, 0]].concat();
        archive.extend([b"PK\x03\x04", &common[..], name.as_bytes(), bytes].concat());
        // No comment, disk 0, no attributes.
        list.extend([b"PK\x01\x02\x14\0", &common[..], &[0; 10], &start, name.as_bytes()].concat());
    }
    let count = (files.len() as u16).to_le_bytes();
    let (size, start) = ((list.len() as u32).to_le_bytes(), (archive.len() as u32).to_le_bytes());
    [archive, list, [b"PK\x05\x06\0\0\0\0", &count[..], &count, &size, &start, &[0, 0]].concat()].concat()
}

/// The pickle of `{"logical_count": tensor}`, a tensor of int64 with these rows and columns.
fn pickle(rows: u8, columns: u8) -> Vec<u8> {
    tensor([[b'K', rows], [b'K', columns]], [columns, 1])
}

/// The same with pickled sizes, and with strides.
fn tensor<T: AsRef<[u8]>>([rows, columns]: [T; 2], [row_stride, column_stride]: [u8; 2]) -> Vec<u8> {
    let text = |text: &str| [b"X", &(text.len() as u32).to_le_bytes()[..], text.as_bytes()].concat();
    let storage =
        [&b"("[..], &text("storage"), b"ctorch\nLongStorage\n", &text("0"), &text("cuda:0"), b"K\x06tQ"]
            .concat();
    let strides = [0x86, b'K', row_stride, b'K', column_stride, 0x86];
    let shape = [rows.as_ref(), columns.as_ref(), &strides].concat();
    let tensor = [
        b"ctorch._utils\n_rebuild_tensor_v2\n(",
        &storage[..],
        b"K\0",
        &shape,
        b"\x89ccollections\nOrderedDict\n)RtR",
    ];
    [&b"\x80\x02}"[..], &text("logical_count"), &tensor.concat(), b"s."].concat()
}

/// Pickles of values in any nesting.
mod pickled {
    pub fn text(text: &str) -> Vec<u8> {
        [b"X", &(text.len() as u32).to_le_bytes()[..], text.as_bytes()].concat()
    }

    pub fn int(value: i32) -> Vec<u8> {
        [b"J", &value.to_le_bytes()[..]].concat()
    }

    pub fn list(items: &[Vec<u8>]) -> Vec<u8> {
        [&b"]("[..], &items.concat(), b"e"].concat()
    }

    pub fn ints(values: &[i32]) -> Vec<u8> {
        list(&values.iter().copied().map(int).collect::<Vec<_>>())
    }

    pub fn dict(items: &[(&str, Vec<u8>)]) -> Vec<u8> {
        let items: Vec<_> = items.iter().map(|(key, value)| [text(key), value.clone()].concat()).collect();
        [&b"}("[..], &items.concat(), b"u"].concat()
    }

    pub fn file(root: &[u8]) -> Vec<u8> {
        super::zip(&[("a/data.pkl", &[b"\x80\x02", root, b"."].concat())])
    }
}

#[test]
fn malformed_records_are_rejected_by_name() {
    use pickled::{dict, file, int, ints, list, text};
    let record = |pass: i32, rank: i32, counts: &[i32]| {
        vec![
            ("forward_pass_id", int(pass)),
            ("rank", int(rank)),
            ("gatherer_key", text("primary")),
            ("global_physical_count", list(&[ints(counts)])),
        ]
    };
    let read = |records: &[Vec<(&str, Vec<u8>)>], map: &[i32]| {
        let records: Vec<_> = records.iter().map(|record| dict(record)).collect();
        let root = dict(&[("records", list(&records)), ("last_physical_to_logical_map", list(&[ints(map)]))]);
        counts_from_bytes(&file(&root), CountsFormat::SglangPt, &Model::default())
    };
    let refused = |records: &[Vec<(&str, Vec<u8>)>], map: &[i32]| read(records, map).unwrap_err().to_string();
    // Two gatherers of one pass are two halves of it. Pass 9 comes after pass 5. No expert is in the last slot.
    let mut half = record(9, 4, &[1, 0, 5, 0]);
    half[2].1 = text("child_a");
    let good = [record(9, 4, &[1, 2, 3, 0]), half, record(5, 4, &[7, 0, 0, 0])];
    let counted = read(&good, &[1, 0, 1, -1]).unwrap();
    assert_eq!(stats(&counted).layer_counts(0).unwrap(), [0, 7, 2, 10]);

    // A pass without tokens is an idle iteration, and no gap of a buffer.
    let idle = [record(1, 0, &[1, 0]), record(2, 0, &[0, 0]), record(3, 0, &[0, 3])];
    let counted = read(&idle, &[0, 1]).unwrap();
    assert_eq!(stats(&counted).layer_counts(0).unwrap(), [1, 0, 0, 0, 0, 3]);
    assert_eq!((counted.first_step, counted.empty_steps), (None, 0));

    let one = |counts: &[i32]| [record(1, 0, counts)];
    assert_eq!(
        refused(&[record(5, 0, &[1, 1]), record(5, 0, &[1, 1])], &[0, 1]),
        "records[1]: forward pass 5 is there twice"
    );
    assert_eq!(
        refused(&[record(5, 0, &[1, 1]), record(6, 2, &[1, 1])], &[0, 1]),
        "records[1]: it is of rank 2, others in the file of rank 0"
    );
    assert_eq!(
        refused(&one(&[1, 1]), &[0, -1]),
        "records[0]: global_physical_count[0][1] is 1, but last_physical_to_logical_map[0][1] is -1, no expert"
    );
    assert_eq!(
        refused(&one(&[1, 1, 1]), &[0, 1]),
        "records[0]: global_physical_count has 1 layers and 3 slots, last_physical_to_logical_map 1 and 2"
    );
    assert_eq!(
        refused(&one(&[1, -1]), &[0, 1]),
        "records[0]: global_physical_count: [0][1] is -1, a number from 0 to below 2^63 expected"
    );
    assert_eq!(refused(&one(&[1, 1]), &[-1, -1]), "last_physical_to_logical_map has no expert");
    assert_eq!(
        refused(&[record(1, 0, &[1])[..3].to_vec()], &[0]),
        "records[0]: it has no \"global_physical_count\"; its keys are forward_pass_id, rank, gatherer_key"
    );
    let root = dict(&[("records", b"]".to_vec()), ("last_physical_to_logical_map", list(&[ints(&[0])]))]);
    let message = counts_from_bytes(&file(&root), CountsFormat::SglangPt, &Model::default()).unwrap_err();
    assert_eq!(message.to_string(), "its \"records\" are empty: no forward pass was between start and dump");
}

#[test]
fn small_pickle_cannot_stand_for_much_memory() {
    use pickled::{dict, file, int, list};
    // A list of a thousand numbers, a thousand times in a list, and that a thousand times.
    let thousand = list(&vec![int(1); 1000]);
    let nested = |inner: &[u8], memo: u8| {
        let repeated: Vec<u8> = [b'h', memo].repeat(999);
        [&b"]("[..], inner, &[b'q', memo], &repeated, b"e"].concat()
    };
    let bytes = file(&dict(&[("logical_count", nested(&nested(&thousand, 0), 1))]));
    assert!(bytes.len() < 10_000);
    let message =
        counts_from_bytes(&bytes, CountsFormat::SglangPt, &Model::default()).unwrap_err().to_string();
    assert_eq!(message, "logical_count: it repeats lists for more than 4194304 numbers: save a tensor");
    // A tensor of one number with strides of 0.
    let bytes = zip(&[("a/data.pkl", &tensor([b"M\xff\xff"; 2], [0, 0])), ("a/data/0", &[1; 8])]);
    let message =
        counts_from_bytes(&bytes, CountsFormat::SglangPt, &Model::default()).unwrap_err().to_string();
    assert_eq!(
        message,
        "\"logical_count\" of shape [65535, 65535] with strides [0, 0] repeats its 1 stored numbers: save it with .contiguous()"
    );
    // A list within itself.
    let bytes = file(&dict(&[("logical_count", b"]q\0h\0a".to_vec())]));
    let message =
        counts_from_bytes(&bytes, CountsFormat::SglangPt, &Model::default()).unwrap_err().to_string();
    assert_eq!(message, "logical_count: [0][0][0] is a list where a number is expected");
}

#[test]
fn malformed_file_of_pytorch_is_rejected_by_name() {
    let numbers: Vec<u8> = (1..=6i64).flat_map(i64::to_le_bytes).collect();
    let read =
        |files: &[(&str, &[u8])]| counts_from_bytes(&zip(files), CountsFormat::SglangPt, &Model::default());
    let refused = |files: &[(&str, &[u8])]| read(files).unwrap_err().to_string();
    let (data, good) = (("a/data/0", &numbers[..]), pickle(2, 3));
    let little = read(&[("a/data.pkl", &good), data, ("a/byteorder", b"little")]).unwrap();
    let stats = stats(&little);
    let swapped: Vec<u8> = (1..=6i64).flat_map(i64::to_be_bytes).collect();
    let big = read(&[("a/data.pkl", &good), ("a/data/0", &swapped), ("a/byteorder", b"big")]).unwrap();
    assert_eq!(big, little);
    assert_eq!([stats.layer_totals(0).unwrap(), stats.layer_totals(1).unwrap()], [[1, 2, 3], [4, 5, 6]]);

    assert_eq!(refused(&[data]), "it has no data.pkl, or more than one, so torch.save did not write it");
    assert_eq!(refused(&[("a/data.pkl", &good)]), "it has no \"a/data/0\"");
    assert_eq!(refused(&[data, ("a/data.pkl", &good), data]), "\"a/data/0\" is in it twice");
    assert_eq!(
        refused(&[("a/data.pkl", &good), data, ("a/byteorder", b"middle")]),
        "its byte order is \"middle\", \"little\" or \"big\" expected"
    );
    assert_eq!(
        refused(&[("a/data.pkl", &pickle(3, 3)), data]),
        "\"logical_count\" of shape [3, 3] goes beyond the 48 bytes of its storage"
    );
    assert_eq!(
        refused(&[("a/data.pkl", &pickle(0, 3)), data]),
        "its shape is [0, 3]: sizes of 1 to 1048576 expected, not 0"
    );
    let negative: Vec<u8> = [1, 2, 3, 4, 5, -6i64].iter().flat_map(|number| number.to_le_bytes()).collect();
    assert_eq!(
        refused(&[("a/data.pkl", &good), ("a/data/0", &negative)]),
        "logical_count[1][2] is -6, a number from 0 to below 2^63 expected"
    );
    // Other functions, storages and shapes of what is pickled; names of the same length keep the rest in place.
    let edited = |was: &str, is: &str| {
        let at = good.windows(was.len()).position(|window| window == was.as_bytes()).unwrap();
        let mut pickle = good.clone();
        pickle.splice(at..at + was.len(), is.bytes());
        refused(&[("a/data.pkl", &pickle), data])
    };
    assert!(edited("_rebuild_tensor_v2", "_rebuild_qtensor").ends_with(
        " of its pickle: it would call torch._utils._rebuild_qtensor, which is not allowed: save a dictionary of tensors, \
         lists and numbers"
    ));
    assert_eq!(
        edited("LongStorage", "BoolStorage"),
        "\"logical_count\" is stored as BoolStorage; integers or floats of 2, 4 or 8 bytes expected"
    );
    assert_eq!(
        edited("logical_count", "logical_COUNT"),
        "it has no \"logical_count\"; its keys are logical_COUNT"
    );
    assert_eq!(
        edited("storage", "garbage"),
        "\"logical_count\" is neither a plain tensor nor lists of numbers"
    );
    let mut compressed = zip(&[("a/data.pkl", &good), data]);
    let listed = compressed.windows(4).position(|window| window == b"PK\x01\x02").unwrap();
    compressed[listed + 10] = 8;
    let message =
        counts_from_bytes(&compressed, CountsFormat::SglangPt, &Model::default()).unwrap_err().to_string();
    assert_eq!(message, "\"a/data.pkl\" is compressed; PyTorch neither compresses nor encrypts");
}

#[test]
fn truncated_file_is_rejected_and_a_flipped_bit_never_panics() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("file");
    let read = counts_from_bytes(b"[[0, 0], [3, 4]]", CountsFormat::Lmdeploy, &Model::default()).unwrap();
    let counts = stats(&read);
    let two_ranks = Model { num_ranks: Some(2), layers: Some(&[2, 3]), ..Model::default() };
    let damage = |bytes: &[u8], read: &dyn Fn(&[u8]) -> bool| {
        assert!(read(bytes));
        // A text's last line break may be missing.
        let whole = bytes.strip_suffix(b"\n").unwrap_or(bytes).len();
        assert!((0..whole).all(|end| !read(&bytes[..end])));
        for at in 0..bytes.len() {
            for bit in 0..8 {
                let mut bytes = bytes.to_vec();
                bytes[at] ^= 1 << bit;
                read(&bytes);
            }
        }
    };
    for format in [CountsFormat::SglangCount, CountsFormat::Lmdeploy, CountsFormat::Npy] {
        write_counts(counts, &path, format, &Model::default()).unwrap();
        damage(&fs::read(&path).unwrap(), &|bytes| {
            counts_from_bytes(bytes, format, &Model::default()).is_ok()
        });
    }
    let read_pt = |bytes: &[u8]| counts_from_bytes(bytes, CountsFormat::SglangPt, &Model::default()).is_ok();
    for name in ["recorder.pt", "per_pass.pt", "lists.pt"] {
        damage(&fixture(name), &read_pt);
    }
    let formats = [
        PlacementFormat::SglangMap,
        PlacementFormat::ExpertMap,
        PlacementFormat::Phy2logNpy,
        PlacementFormat::Phy2logJson,
    ];
    for format in formats {
        write_placement(&small_placement(), &path, format, &Model::default()).unwrap();
        damage(&fs::read(&path).unwrap(), &|bytes| placement_from_bytes(bytes, format, &two_ranks).is_ok());
    }
}
