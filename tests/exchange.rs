//! Reads files that PyTorch and NumPy wrote, reads back every format after writing it, and reads damaged files.

use std::fs;
use std::path::Path;

use eplb::exchange::{
    CountsFormat, CountsRead, Model, PlacementFormat, counts_from_bytes, detect, placement_from_bytes,
    read_counts, read_placement, write_counts, write_placement,
};
use eplb::placement::{Expected, Placement, Shape};
use eplb::stats::Stats;

/// A file of tests/exchange, which its make.py wrote.
fn fixture(name: &str) -> Vec<u8> {
    fs::read(Path::new("tests/exchange").join(name)).unwrap()
}

fn refused(bytes: &[u8], format: CountsFormat) -> String {
    counts_from_bytes(bytes, format, &Model::default()).unwrap_err().to_string()
}

/// Checks that these are the counts of make.py, `steps` steps from `first` on.
fn check_counts(stats: &Stats, first: u64, steps: u64) {
    let summary = stats.summary();
    assert_eq!((summary.num_experts, &summary.layers[..]), (8, &[1, 2, 3][..]));
    assert_eq!(summary.rows.len(), steps);
    for layer in 1..4 {
        let expected: Vec<u64> = (first..first + steps)
            .flat_map(|step| (0..8).map(move |expert| 100 * step + 10 * layer + expert))
            .collect();
        assert_eq!(stats.layer_counts(layer as u32).unwrap(), expected);
    }
}

#[test]
fn sglang_pt_is_read_without_dense_layers_and_empty_steps() {
    for name in ["recorder.pt", "double.pt"] {
        let CountsRead { stats, dense_layers, empty_steps } =
            counts_from_bytes(&fixture(name), CountsFormat::SglangPt, &Model::default()).unwrap();
        check_counts(&stats, 0, 2);
        assert_eq!((&dense_layers[..], empty_steps), (&[0][..], 1));
    }
    // A tensor that begins within its storage, and has no steps.
    let read = counts_from_bytes(&fixture("one_step.pt"), CountsFormat::SglangPt, &Model::default()).unwrap();
    check_counts(&read.stats, 1, 1);
}

#[test]
fn other_files_of_pytorch_are_rejected_by_name() {
    let refused = |name: &str| refused(&fixture(name), CountsFormat::SglangPt);
    assert_eq!(
        refused("per_pass.pt"),
        "it has \"records\", so it was recorded in the mode per_pass or per_token; \"logical_count\" of the mode stat expected"
    );
    assert_eq!(
        refused("view.pt"),
        "\"logical_count\" of shape [2, 3, 8] has strides [32, 8, 1]: save it with .contiguous()"
    );
    assert_eq!(
        refused("half.pt"),
        "\"logical_count\" is stored as HalfStorage; integers, floats or doubles expected"
    );
    assert_eq!(refused("legacy.pt"), "it does not end as a zip archive does: it is truncated, copy it again");
    let message = detect(Path::new("tests/exchange/legacy.pt")).unwrap_err().to_string();
    assert!(message.contains("it is a bare pickle, as torch.save wrote before PyTorch 1.6"), "{message}");
}

#[test]
fn npy_is_read_in_any_type_order_and_version() {
    for name in ["int32.npy", "float32.npy", "big_endian.npy", "fortran.npy", "version_2.npy"] {
        let read = counts_from_bytes(&fixture(name), CountsFormat::Npy, &Model::default()).unwrap();
        // Only a recorder's buffer has unused steps. Here the empty step is an iteration without load.
        assert_eq!((&read.dense_layers[..], read.empty_steps), (&[0][..], 0), "{name}");
        assert_eq!(read.stats.summary().rows.len(), 3);
        assert_eq!(
            read.stats.layer_counts(3).unwrap()[8..24],
            [130, 131, 132, 133, 134, 135, 136, 137, 0, 0, 0, 0, 0, 0, 0, 0]
        );
    }
}

#[test]
fn counts_are_equal_after_writing_and_reading_each_format() {
    let dir = tempfile::tempdir().unwrap();
    for name in ["dsv2lite-translation", "dsr1-extreme"] {
        let dump = Path::new("data/dumps").join(name);
        let original = read_counts(&dump, CountsFormat::Dump, &Model::default()).unwrap().stats;
        let layers = &original.summary().layers;
        let experts_per_token = Some(original.summary().experts_per_token);
        for format in CountsFormat::ALL.into_iter().filter(|&format| format != CountsFormat::SglangPt) {
            let path = dir.path().join(format!("{name}.{}", format.name()));
            write_counts(&original, &path, format, &Model::default()).unwrap();
            // An array has a row for each counted layer, other formats one for each layer of the model.
            let layers_of_rows = (format == CountsFormat::Npy).then_some(&layers[..]);
            let model = match format {
                CountsFormat::Dump => Model::default(),
                _ => Model { layers: layers_of_rows, experts_per_token, ..Model::default() },
            };
            let again = read_counts(&path, format, &model).unwrap();
            assert_eq!(&again.stats.summary().layers, layers, "{}", format.name());
            let dense: Vec<u32> =
                (0..layers[0]).filter(|_| layers_of_rows.is_none() && format != CountsFormat::Dump).collect();
            assert_eq!(again.dense_layers, dense);
            for &layer in layers {
                let expected = match format {
                    CountsFormat::Lmdeploy => original.layer_totals(layer).unwrap(),
                    _ => original.layer_counts(layer).unwrap().to_vec(),
                };
                assert!(again.stats.layer_counts(layer).unwrap() == expected, "{} {layer}", format.name());
            }
        }
    }
}

#[test]
fn placements_are_equal_after_writing_and_reading_each_format() {
    let dir = tempfile::tempdir().unwrap();
    for (name, num_ranks) in [("dsv2lite-translation.ep8.slots72", 8), ("dsr1-extreme.ep32.slots288", 32)] {
        let config = Path::new("data/expected").join(format!("{name}.yaml"));
        let expected = Expected { num_ranks: Some(num_ranks), ..Expected::default() };
        let original = Placement::load(&config, expected).unwrap();
        let model = Model { layers: Some(original.layers()), num_ranks: Some(num_ranks), ..Model::default() };
        for format in PlacementFormat::ALL {
            let path = dir.path().join(format!("{name}.{}", format.name()));
            write_placement(&original, &path, format, &model).unwrap();
            let again = read_placement(&path, format, &model).unwrap();
            assert_eq!(again, original);
            assert_eq!(again.hash(), original.hash());
            assert_eq!(placement_from_bytes(&fs::read(&path).unwrap(), format, &model).unwrap(), original);
        }
    }
}

/// 4 experts in 6 slots on 2 ranks, layers 2 and 3.
fn small_placement() -> Placement {
    Placement::new(Shape::new(4, 6, 2).unwrap(), &[2, 3], &[0, 1, 2, 3, 0, 1, 3, 2, 1, 0, 3, 2]).unwrap()
}

#[test]
fn written_files_have_the_exact_bytes_of_the_other_systems() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("file");
    let text = |format, model: &Model| {
        write_placement(&small_placement(), &path, format, model).unwrap();
        fs::read_to_string(&path).unwrap()
    };
    // Dense layers get SGLang's trivial location, slot modulo experts. num_layers adds a fifth layer.
    let trivial = "[0, 1, 2, 3, 0, 1]";
    let rows = format!("{trivial}, {trivial}, [0, 1, 2, 3, 0, 1], [3, 2, 1, 0, 3, 2]");
    assert_eq!(
        text(PlacementFormat::SglangMap, &Model::default()),
        format!("{{\"physical_to_logical_map\": [{rows}]}}\n")
    );
    assert_eq!(
        text(PlacementFormat::SglangMap, &Model { num_layers: Some(5), ..Model::default() }),
        format!("{{\"physical_to_logical_map\": [{rows}, {trivial}]}}\n")
    );
    assert_eq!(
        text(PlacementFormat::Phy2logJson, &Model::default()),
        "[[0, 1, 2, 3, 0, 1], [3, 2, 1, 0, 3, 2]]\n"
    );
    let layer = |id: u32, first: &str, second: &str| {
        format!(
            "{{\"layer_id\": {id}, \"device_count\": 2, \"device_list\": [{{\"device_id\": 0, \"device_expert\": {first}}}, \
             {{\"device_id\": 1, \"device_expert\": {second}}}]}}"
        )
    };
    let layers = [layer(0, "[0, 1, 2]", "[3, 0, 1]"), layer(1, "[3, 2, 1]", "[0, 3, 2]")].join(", ");
    assert_eq!(
        text(PlacementFormat::ExpertMap, &Model::default()),
        format!("{{\"moe_layer_count\": 2, \"layer_list\": [{layers}]}}\n")
    );

    let counts =
        counts_from_bytes(b"[[0, 0], [3, 4]]", CountsFormat::Lmdeploy, &Model::default()).unwrap().stats;
    let text = |format, model: &Model| {
        write_counts(&counts, &path, format, model).unwrap();
        fs::read_to_string(&path).unwrap()
    };
    let three = Model { num_layers: Some(3), ..Model::default() };
    assert_eq!(
        text(CountsFormat::SglangCount, &Model::default()),
        "{\"logical_count\": [[[0, 0], [3, 4]]]}\n"
    );
    assert_eq!(text(CountsFormat::SglangCount, &three), "{\"logical_count\": [[[0, 0], [3, 4], [0, 0]]]}\n");
    assert_eq!(text(CountsFormat::Lmdeploy, &three), "[[0, 0], [3, 4], [0, 0]]\n");
    let few = Model { num_layers: Some(1), ..Model::default() };
    assert_eq!(
        write_counts(&counts, &path, CountsFormat::Lmdeploy, &few).unwrap_err().to_string(),
        "num_layers is 1; 2, for layer 1, to 65536 expected"
    );
}

#[test]
fn layers_name_or_select_rows_and_no_count_is_dropped() {
    let read = |layers: &[u32]| {
        let model = Model { layers: Some(layers), ..Model::default() };
        counts_from_bytes(b"[[0, 0], [3, 4], [0, 0]]", CountsFormat::Lmdeploy, &model)
    };
    assert_eq!(read(&[1]).unwrap().stats.summary().layers, [1]);
    // A given layer is kept, even if all its counts are zero.
    assert_eq!(read(&[1, 2]).unwrap().stats.layer_totals(2).unwrap(), [0, 0]);
    assert_eq!(read(&[5, 6, 7]).unwrap().stats.layer_totals(6).unwrap(), [3, 4]);
    assert_eq!(read(&[2]).unwrap_err().to_string(), "row [1] has counts, but its layer was not given");
    assert_eq!(
        refused(b"[[0, 0], [0, 0]]", CountsFormat::Lmdeploy),
        "all counts are zero; give the layers' numbers to read them nevertheless"
    );
    assert_eq!(
        refused(b"{\"logical_count\": [[[0]]]}", CountsFormat::SglangCount),
        "every step has only zeros"
    );
}

#[test]
fn reader_checks_the_known_sizes_of_the_model() {
    let read = |model: Model| counts_from_bytes(b"[[1, 2, 3]]", CountsFormat::Lmdeploy, &model).map(|_| ());
    assert_eq!(
        read(Model { num_experts: Some(4), ..Model::default() }).unwrap_err().to_string(),
        "it has 3 experts, 4 expected"
    );
    assert_eq!(
        read(Model { experts_per_token: Some(4), ..Model::default() }).unwrap_err().to_string(),
        "experts_per_token is 4; 1 to the 3 experts expected"
    );
    let dump = Path::new("data/dumps/dsv2lite-translation");
    let read = |model: Model| read_counts(dump, CountsFormat::Dump, &model).unwrap_err().to_string();
    assert_eq!(
        read(Model { experts_per_token: Some(8), ..Model::default() }),
        "data/dumps/dsv2lite-translation: experts_per_token is 6, 8 expected"
    );
    assert_eq!(
        read(Model { layers: Some(&[1]), ..Model::default() }),
        "a dump contains its layers: do not set them"
    );
}

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
        "the file has no ep_size; set num_ranks"
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
        "bad JSON: unknown key \"physical_to_logical\"; \"physical_to_logical_map\" expected at line 1 column 22"
    );
    assert_eq!(sglang("{\"rank\": 0}"), "it has no \"physical_to_logical_map\"");
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
    let text = |text: &str| [b"X", &(text.len() as u32).to_le_bytes()[..], text.as_bytes()].concat();
    let storage =
        [&b"("[..], &text("storage"), b"ctorch\nLongStorage\n", &text("0"), &text("cuda:0"), b"K\x06tQ"]
            .concat();
    let shape = [b'K', rows, b'K', columns, 0x86, b'K', columns, b'K', 1, 0x86];
    let tensor = [
        b"ctorch._utils\n_rebuild_tensor_v2\n(",
        &storage[..],
        b"K\0",
        &shape,
        b"\x89ccollections\nOrderedDict\n)RtR",
    ];
    [&b"\x80\x02}"[..], &text("logical_count"), &tensor.concat(), b"s."].concat()
}

#[test]
fn malformed_file_of_pytorch_is_rejected_by_name() {
    let numbers: Vec<u8> = (1..=6i64).flat_map(i64::to_le_bytes).collect();
    let read =
        |files: &[(&str, &[u8])]| counts_from_bytes(&zip(files), CountsFormat::SglangPt, &Model::default());
    let refused = |files: &[(&str, &[u8])]| read(files).unwrap_err().to_string();
    let (data, good) = (("a/data/0", &numbers[..]), pickle(2, 3));
    let stats = read(&[("a/data.pkl", &good), data, ("a/byteorder", b"little")]).unwrap().stats;
    assert_eq!([stats.layer_totals(0).unwrap(), stats.layer_totals(1).unwrap()], [[1, 2, 3], [4, 5, 6]]);

    assert_eq!(refused(&[data]), "it has no data.pkl, or more than one, so torch.save did not write it");
    assert_eq!(refused(&[("a/data.pkl", &good)]), "it has no \"a/data/0\"");
    assert_eq!(refused(&[data, ("a/data.pkl", &good), data]), "\"a/data/0\" is in it twice");
    assert_eq!(
        refused(&[("a/data.pkl", &good), data, ("a/byteorder", b"big")]),
        "its byte order is \"big\", \"little\" expected"
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
        "logical_count[1][2] is -6, a whole number from 0 to 2^63 - 1 expected"
    );
    // Other functions, storages and shapes of what is pickled; names of the same length keep the rest in place.
    let edited = |was: &str, is: &str| {
        let at = good.windows(was.len()).position(|window| window == was.as_bytes()).unwrap();
        let mut pickle = good.clone();
        pickle.splice(at..at + was.len(), is.bytes());
        refused(&[("a/data.pkl", &pickle), data])
    };
    assert!(edited("_rebuild_tensor_v2", "_rebuild_qtensor").ends_with(
        " of its pickle: it would call torch._utils._rebuild_qtensor, which a dictionary of tensors does not need"
    ));
    assert_eq!(
        edited("LongStorage", "BoolStorage"),
        "\"logical_count\" is stored as BoolStorage; integers, floats or doubles expected"
    );
    assert_eq!(
        edited("logical_count", "logical_COUNT"),
        "unknown key \"logical_COUNT\"; \"logical_count\" expected"
    );
    assert_eq!(edited("storage", "garbage"), "\"logical_count\" is not a plain tensor");
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
    let counts =
        counts_from_bytes(b"[[0, 0], [3, 4]]", CountsFormat::Lmdeploy, &Model::default()).unwrap().stats;
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
        write_counts(&counts, &path, format, &Model::default()).unwrap();
        damage(&fs::read(&path).unwrap(), &|bytes| {
            counts_from_bytes(bytes, format, &Model::default()).is_ok()
        });
    }
    let read_pt = |bytes: &[u8]| counts_from_bytes(bytes, CountsFormat::SglangPt, &Model::default()).is_ok();
    damage(&fixture("recorder.pt"), &read_pt);
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

#[test]
fn empty_slots_are_minus_one_where_the_format_has_them() {
    let dir = tempfile::tempdir().unwrap();
    let none = eplb::placement::NO_EXPERT;
    let rows = [0, none, 1, 2, 3, none, none, 3, 2, 1, 0, none];
    let placement = Placement::with_empty_slots(Shape::new(4, 6, 2).unwrap(), None, &[2, 3], &rows).unwrap();
    let model = Model { layers: Some(&[2, 3]), num_ranks: Some(2), ..Model::default() };
    for (format, name) in [
        (PlacementFormat::Phy2logNpy, "map.npy"),
        (PlacementFormat::Phy2logJson, "map.json"),
        (PlacementFormat::Config, "map.eplb.yaml"),
    ] {
        let path = dir.path().join(name);
        write_placement(&placement, &path, format, &model).unwrap();
        assert_eq!(read_placement(&path, format, &model).unwrap(), placement, "{name}");
    }
    let text = fs::read_to_string(dir.path().join("map.json")).unwrap();
    assert_eq!(text, "[[0, -1, 1, 2, 3, -1], [-1, 3, 2, 1, 0, -1]]\n");
    for (format, name) in [
        (PlacementFormat::SglangMap, "sglang-map"),
        (PlacementFormat::ExpertMap, "vllm-ascend"),
        (PlacementFormat::Config, "TensorRT-LLM's configuration file"),
    ] {
        let path = dir.path().join("refused.json");
        let message = write_placement(&placement, &path, format, &model).unwrap_err().to_string();
        let expected = format!(
            "refused.json: layer 2, rank 0, slot 1 is empty: {name} cannot hold empty slots; save the placement as \
             *.eplb.yaml"
        );
        assert!(message.ends_with(&expected) && !path.exists(), "{message}");
    }
    // Expert maps with -1 are read. SGLang means the last expert by it.
    let map = |experts: [&str; 2]| {
        let device = |id: usize| format!("{{\"device_id\": {id}, \"device_expert\": {}}}", experts[id]);
        let layer = format!(
            "{{\"layer_id\": 0, \"device_count\": 2, \"device_list\": [{}, {}]}}",
            device(0),
            device(1)
        );
        format!("{{\"moe_layer_count\": 1, \"layer_list\": [{layer}]}}")
    };
    let read = |text: &str, format| {
        let model = Model { num_ranks: Some(2), ..Model::default() };
        placement_from_bytes(text.as_bytes(), format, &model)
    };
    let found = read(&map(["[0, -1]", "[-1, 1]"]), PlacementFormat::ExpertMap).unwrap();
    assert_eq!(found.layer_experts(0).unwrap(), [0, none, none, 1]);
    assert_eq!(
        read(&map(["[0, -2]", "[-1, 1]"]), PlacementFormat::ExpertMap).unwrap_err().to_string(),
        "layer_list[0], device_list[0], device_expert[1] is -2, which is no expert"
    );
    let sglang = "{\"physical_to_logical_map\": [[0, -1, 1, 0]]}";
    assert_eq!(
        read(sglang, PlacementFormat::SglangMap).unwrap_err().to_string(),
        "[0][1] is -1: SGLang serves the last expert in such a slot; give the slot that expert, or read the rows as \
         phy2log-json if the slot is empty"
    );
}
