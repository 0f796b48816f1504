//! Reads files that PyTorch and NumPy wrote, reads back every format after writing it, and reads damaged files.

use std::fs;
use std::path::Path;

use eplb::exchange::{
    CountsFormat, CountsRead, Load, Loads, Model, PlacementFormat, counts_from_bytes, detect,
    placement_from_bytes, read_counts, read_placement, sum_iterations, write_counts, write_loads,
    write_placement,
};
use eplb::placement::{Expected, Placement, Shape};
use eplb::stats::Stats;

/// A file of tests/exchange, which its make.py wrote.
fn fixture(name: &str) -> Vec<u8> {
    fs::read(Path::new("tests/exchange").join(name)).unwrap()
}

fn stats(read: &CountsRead) -> &Stats {
    read.load.counts().unwrap()
}

fn loads(read: &CountsRead) -> &Loads {
    let Load::Fractions(loads) = &read.load else { panic!("{read:?}") };
    loads
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
        let read = counts_from_bytes(&fixture(name), CountsFormat::SglangPt, &Model::default()).unwrap();
        check_counts(stats(&read), 0, 2);
        assert_eq!((&read.dense_layers[..], read.empty_steps, read.first_step), (&[0][..], 1, None));
    }
    // A tensor that begins within its storage, and has no steps.
    let read = counts_from_bytes(&fixture("one_step.pt"), CountsFormat::SglangPt, &Model::default()).unwrap();
    check_counts(stats(&read), 1, 1);
}

#[test]
fn sglang_pt_is_read_in_any_form_that_sglang_reads() {
    for (name, steps) in [
        ("ordered.pt", 2),
        ("transposed.pt", 2),
        ("lists.pt", 2),
        ("uint32.pt", 2),
        ("half.pt", 1),
        ("bfloat16.pt", 1),
    ] {
        let read = counts_from_bytes(&fixture(name), CountsFormat::SglangPt, &Model::default());
        check_counts(stats(&read.unwrap_or_else(|error| panic!("{name}: {error}"))), 0, steps);
    }
    // A view without the dense layer's row.
    let layers = Model { layers: Some(&[1, 2, 3]), ..Model::default() };
    check_counts(
        stats(&counts_from_bytes(&fixture("view.pt"), CountsFormat::SglangPt, &layers).unwrap()),
        0,
        2,
    );
}

#[test]
fn later_dump_of_a_recorder_is_put_in_order_at_its_gap() {
    let read = counts_from_bytes(&fixture("rotated.pt"), CountsFormat::SglangPt, &Model::default()).unwrap();
    assert_eq!((read.first_step, read.empty_steps), (Some(4), 3));
    // make.py: step 0, the sum of steps 0 and 1, step 1; of layer 1 and expert 2.
    let counts: Vec<u64> =
        stats(&read).layer_counts(1).unwrap().chunks(8).map(|experts| experts[2]).collect();
    assert_eq!(counts, [12, 124, 112]);
}

#[test]
fn records_of_slots_are_summed_to_experts_over_ranks() {
    let read = |path: &str, model: &Model| {
        read_counts(&Path::new("tests/exchange").join(path), CountsFormat::SglangPt, model)
    };
    // The counts of make.py's first step as one pass, each slot with the expert of its number.
    check_counts(stats(&read("per_pass.pt", &Model::default()).unwrap()), 0, 1);
    // Both ranks together have 20 layer + 2 slot + 100 tokens of each slot in pass 7, and three times as many in pass 9.
    // Expert 0 has the slots 0, 8 and 10, expert 3 the slots 3 and 9, and no expert is in slot 11.
    let both = read("per_token", &Model::default()).unwrap();
    assert_eq!((&both.dense_layers[..], stats(&both).summary().num_experts), (&[0][..], 8));
    for layer in 1..4u64 {
        let slot = |slot: u64| 20 * layer + 2 * slot + 100;
        let first = [
            slot(0) + slot(8) + slot(10),
            slot(1),
            slot(2),
            slot(3) + slot(9),
            slot(4),
            slot(5),
            slot(6),
            slot(7),
        ];
        let expected = [first, first.map(|count| 3 * count)].concat();
        assert_eq!(stats(&both).layer_counts(layer as u32).unwrap(), expected);
    }
    // One file alone has that rank's counts.
    let one = read("per_token/expert_distribution_recorder_1.5_1.pt", &Model::default()).unwrap();
    assert_eq!(stats(&one).layer_counts(1).unwrap()[1], 10 + 1 + 100);
    // More experts than the map names have no counts, fewer are an error.
    let ten = read("per_token", &Model { num_experts: Some(10), ..Model::default() }).unwrap();
    assert_eq!(stats(&ten).layer_totals(1).unwrap()[8..], [0, 0]);
    let message =
        read("per_pass.pt", &Model { num_experts: Some(7), ..Model::default() }).unwrap_err().to_string();
    assert!(message.ends_with(": last_physical_to_logical_map[0][7] is 7: there are 7 experts"), "{message}");
}

#[test]
fn directory_of_records_must_be_one_recording_of_all_ranks() {
    let dir = tempfile::tempdir().unwrap();
    let copy =
        |from: &str, to: &str| fs::copy(Path::new("tests/exchange").join(from), dir.path().join(to)).unwrap();
    let read = || read_counts(dir.path(), CountsFormat::SglangPt, &Model::default());
    let message = || read().unwrap_err().to_string();
    assert!(message().ends_with(": it has no files"), "{}", message());
    copy("per_token/expert_distribution_recorder_1.5_1.pt", "a_1.pt");
    assert_eq!(detect(dir.path()).unwrap().name(), "sglang-pt");
    copy("per_token/expert_distribution_recorder_1.5_1.pt", "b_1.pt");
    assert!(
        message().ends_with(
            "b_1.pt: it is of rank 1, as another file: keep one recording, with one file a rank, in a directory"
        ),
        "{}",
        message()
    );
    copy("per_pass.pt", "b_1.pt");
    assert!(
        message().ends_with("b_1.pt: its 8 slots of 4 layers hold 8 experts; other files have 12, 4 and 8"),
        "{}",
        message()
    );
    copy("recorder.pt", "b_1.pt");
    assert!(
        message().ends_with(
            "b_1.pt: it is of the mode stat, so it has the counts of all ranks: read the file by itself"
        ),
        "{}",
        message()
    );
    fs::remove_file(dir.path().join("a_1.pt")).unwrap();
    copy("per_token/expert_distribution_recorder_1.5_0.pt", "b_1.pt");
    read().unwrap();
}

#[test]
fn map_of_sglang_is_read_from_a_file_of_pytorch() {
    let path = Path::new("tests/exchange/map.pt");
    let format = detect(path).unwrap();
    assert_eq!(format.name(), "sglang-map");
    let two_ranks = Model { num_ranks: Some(2), ..Model::default() };
    let placement = read_placement(path, format.of_placement().unwrap(), &two_ranks).unwrap().placement;
    assert_eq!(placement.layers(), [0, 1, 2, 3]);
    for layer in 0..4 {
        assert_eq!(placement.layer_experts(layer).unwrap(), [0, 1, 2, 3, 4, 5, 6, 7, 0, 1]);
    }
    let wrong = placement_from_bytes(&fixture("recorder.pt"), PlacementFormat::SglangMap, &two_ranks);
    assert_eq!(
        wrong.unwrap_err().to_string(),
        "it has \"logical_count\", so it holds counts; \"physical_to_logical_map\" expected"
    );
}

#[test]
fn fractions_are_loads_that_every_format_but_a_dump_holds_exactly() {
    let dir = tempfile::tempdir().unwrap();
    let text = br#"{"logical_count": [[0.0, 0, 0], [0.1, 3, 16777217.5], [1e-9, 0.25, 9007199254740992]]}"#;
    let read = counts_from_bytes(text, CountsFormat::SglangCount, &Model::default()).unwrap();
    assert_eq!(read.dense_layers, [0]);
    let original = loads(&read);
    assert_eq!(original.layer(1).unwrap(), [0.1, 3.0, 16_777_217.5]);
    assert_eq!(original.values(), [0.1, 3.0, 16_777_217.5, 1e-9, 0.25, 9_007_199_254_740_992.0]);
    assert_eq!(original.layer_samples(2, 1, 3).unwrap(), [1e-9, 0.25, 9_007_199_254_740_992.0]);
    for format in [CountsFormat::SglangCount, CountsFormat::Lmdeploy, CountsFormat::Npy] {
        let path = dir.path().join(format.name());
        let model = Model { layers: (format == CountsFormat::Npy).then_some(&[1, 2]), ..Model::default() };
        write_loads(original, &path, format, &model).unwrap();
        assert_eq!(loads(&read_counts(&path, format, &model).unwrap()), original, "{}", format.name());
    }
    // One step is two axes.
    let array = fs::read(dir.path().join("npy")).unwrap();
    assert!(
        array.starts_with(b"\x93NUMPY\x01\0v\0{'descr': '<f8', 'fortran_order': False, 'shape': (2, 3), }")
    );
    let message = write_loads(original, dir.path(), CountsFormat::Dump, &Model::default()).unwrap_err();
    assert_eq!(
        message.to_string(),
        "layer 1, step 0, expert 0: 0.1 is a fraction, so the file has loads and not counts; solve from them, or write them as \
         sglang-count, lmdeploy or npy"
    );
    assert_eq!(read.load.counts().unwrap_err().to_string(), message.to_string());
    // make.py: a quarter of 100 + 2 (10 layer + expert).
    let read = counts_from_bytes(&fixture("averages.pt"), CountsFormat::SglangPt, &Model::default()).unwrap();
    assert_eq!(loads(&read).layer(2).unwrap()[..4], [35.0, 35.5, 36.0, 36.5]);
}

#[test]
fn loads_are_split_into_samples_as_counts_are() {
    let text = b"{\"logical_count\": [[[0.5, 1]], [[2, 4]], [[8, 16]]]}";
    let read = counts_from_bytes(text, CountsFormat::SglangCount, &Model::default()).unwrap();
    let counts = b"{\"logical_count\": [[[1, 2]], [[4, 8]], [[16, 32]]]}";
    let counts = counts_from_bytes(counts, CountsFormat::SglangCount, &Model::default()).unwrap();
    for num_samples in 1..=3 {
        let twice: Vec<f64> =
            loads(&read).layer_samples(0, num_samples, 2).unwrap().iter().map(|load| 2.0 * load).collect();
        assert_eq!(twice, stats(&counts).layer_samples(0, num_samples, 2).unwrap());
    }
    let refused = |layer, samples, experts| {
        loads(&read).layer_samples(layer, samples, experts).unwrap_err().to_string()
    };
    assert_eq!(refused(0, 4, 2), "num_samples is 4; 1 to 3, the number of steps, expected");
    assert_eq!(refused(0, 1, 3), "num_experts is 3, the loads have 2");
    assert_eq!(refused(1, 1, 2), "layer 1 is not among the 1 layers");
}

#[test]
fn other_files_of_pytorch_are_rejected_by_name() {
    let refused = |name: &str| refused(&fixture(name), CountsFormat::SglangPt);
    assert_eq!(
        refused("map.pt"),
        "it has \"physical_to_logical_map\", so it holds a placement; \"logical_count\" expected"
    );
    assert_eq!(
        refused("bool.pt"),
        "\"logical_count\" is stored as BoolStorage; integers or floats of 2, 4 or 8 bytes expected"
    );
    let legacy = "it is a bare pickle, as torch.save wrote before PyTorch 1.6: rewrite it with \
                  torch.save(torch.load(FILE), FILE)";
    assert_eq!(refused("legacy.pt"), legacy);
    let message = detect(Path::new("tests/exchange/legacy.pt")).unwrap_err().to_string();
    assert!(message.ends_with(legacy), "{message}");
}

#[test]
fn npy_is_read_in_any_type_order_and_version() {
    for name in ["int32.npy", "float32.npy", "big_endian.npy", "fortran.npy", "version_2.npy"] {
        let read = counts_from_bytes(&fixture(name), CountsFormat::Npy, &Model::default()).unwrap();
        // Only a recorder's buffer has unused steps. Here the empty step is an iteration without load.
        assert_eq!((&read.dense_layers[..], read.empty_steps), (&[0][..], 0), "{name}");
        assert_eq!(stats(&read).summary().rows.len(), 3);
        assert_eq!(
            stats(&read).layer_counts(3).unwrap()[8..24],
            [130, 131, 132, 133, 134, 135, 136, 137, 0, 0, 0, 0, 0, 0, 0, 0]
        );
    }
}

#[test]
fn counts_are_equal_after_writing_and_reading_each_format() {
    let dir = tempfile::tempdir().unwrap();
    for name in ["dsv2lite-translation", "dsr1-extreme"] {
        let dump = Path::new("data/dumps").join(name);
        let read = read_counts(&dump, CountsFormat::Dump, &Model::default()).unwrap();
        let original = stats(&read);
        let layers = &original.summary().layers;
        let experts_per_token = Some(original.summary().experts_per_token);
        for format in CountsFormat::ALL.into_iter().filter(|&format| format != CountsFormat::SglangPt) {
            let path = dir.path().join(format!("{name}.{}", format.name()));
            write_counts(original, &path, format, &Model::default()).unwrap();
            // An array has a row for each counted layer, other formats one for each layer of the model.
            let layers_of_rows = (format == CountsFormat::Npy).then_some(&layers[..]);
            let model = match format {
                CountsFormat::Dump => Model::default(),
                _ => Model { layers: layers_of_rows, experts_per_token, ..Model::default() },
            };
            let again = read_counts(&path, format, &model).unwrap();
            assert_eq!(&stats(&again).summary().layers, layers, "{}", format.name());
            let dense: Vec<u32> =
                (0..layers[0]).filter(|_| layers_of_rows.is_none() && format != CountsFormat::Dump).collect();
            assert_eq!(again.dense_layers, dense);
            for &layer in layers {
                let expected = match format {
                    CountsFormat::Lmdeploy => original.layer_totals(layer).unwrap(),
                    _ => original.layer_counts(layer).unwrap().to_vec(),
                };
                assert!(stats(&again).layer_counts(layer).unwrap() == expected, "{} {layer}", format.name());
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
        // The policy trtllm places an expert twice on a first device.
        let layers = Some(original.layers());
        let model = Model { layers, num_ranks: Some(num_ranks), allow_lossy: true, ..Model::default() };
        for format in PlacementFormat::ALL {
            let path = dir.path().join(format!("{name}.{}", format.name()));
            write_placement(&original, &path, format, &model).unwrap();
            let again = read_placement(&path, format, &model).unwrap().placement;
            assert_eq!(again, original);
            assert_eq!(again.hash(), original.hash());
            assert_eq!(
                placement_from_bytes(&fs::read(&path).unwrap(), format, &model).unwrap().placement,
                original
            );
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

    let read = counts_from_bytes(b"[[0, 0], [3, 4]]", CountsFormat::Lmdeploy, &Model::default()).unwrap();
    let counts = stats(&read);
    let text = |format, model: &Model| {
        write_counts(counts, &path, format, model).unwrap();
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
        write_counts(counts, &path, CountsFormat::Lmdeploy, &few).unwrap_err().to_string(),
        "num_layers is 1; 2, for layer 1, to 65536 expected; to leave layers out, give those to write"
    );
}

#[test]
fn layers_name_or_select_rows_and_no_count_is_dropped() {
    let read = |layers: &[u32]| {
        let model = Model { layers: Some(layers), ..Model::default() };
        counts_from_bytes(b"[[0, 0], [3, 4], [0, 0]]", CountsFormat::Lmdeploy, &model)
    };
    assert_eq!(stats(&read(&[1]).unwrap()).summary().layers, [1]);
    // A given layer is kept, even if all its counts are zero.
    assert_eq!(stats(&read(&[1, 2]).unwrap()).layer_totals(2).unwrap(), [0, 0]);
    assert_eq!(stats(&read(&[5, 6, 7]).unwrap()).layer_totals(6).unwrap(), [3, 4]);
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
        read(Model { layers: Some(&[27]), ..Model::default() }),
        "data/dumps/dsv2lite-translation: layer 27 is not in this dump of 26 layers from 1 to 26"
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
        assert_eq!(read_placement(&path, format, &model).unwrap().placement, placement, "{name}");
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
    let found = read(&map(["[0, -1]", "[-1, 1]"]), PlacementFormat::ExpertMap).unwrap().placement;
    assert_eq!(found.layer_experts(0).unwrap(), [0, none, none, 1]);
    // So are devices with fewer experts, as MindIE has them.
    let found = read(&map(["[0, -1, 2]", "[1]"]), PlacementFormat::ExpertMap).unwrap().placement;
    assert_eq!(found.rank_num_slots(), [3, 1]);
    assert_eq!(found.layer_experts(0).unwrap(), [0, none, 2, 1, none, none]);
    assert_eq!(found.rank_experts(0, 1).unwrap(), [1]);
    assert_eq!(
        read(&map(["[0, 1]", "[]"]), PlacementFormat::ExpertMap).unwrap_err().to_string(),
        "rank 1 has 0 slots, 1 to 2 expected"
    );
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

/// Counts of layers 3 and 5, so many iterations of 2 experts: 0, 1, 2, ...
fn counts(iterations: u64) -> Stats {
    let lists: Vec<String> = (0..iterations)
        .map(|step| {
            let row = |layer: u64| format!("[{}, {}]", 4 * step + 2 * layer, 4 * step + 2 * layer + 1);
            format!("[{}, {}]", row(0), row(1))
        })
        .collect();
    let text = format!("[{}]", lists.join(", "));
    let model = Model { layers: Some(&[3, 5]), experts_per_token: Some(1), ..Model::default() };
    let text = format!("{{\"logical_count\": {text}}}");
    stats(&counts_from_bytes(text.as_bytes(), CountsFormat::SglangCount, &model).unwrap()).clone()
}

#[test]
fn an_array_of_one_iteration_has_two_axes() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("counts.npy");
    let shape = |stats: &Stats| {
        write_counts(stats, &path, CountsFormat::Npy, &Model::default()).unwrap();
        let bytes = fs::read(&path).unwrap();
        let text = String::from_utf8_lossy(&bytes[..128]).into_owned();
        (
            text.split_once("'shape': ").unwrap().1.split_once(", }").unwrap().0.to_owned(),
            bytes[128..].to_vec(),
        )
    };
    let as_int64 = |values: &[u64]| values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>();
    assert_eq!(shape(&counts(1)), ("(2, 2)".into(), as_int64(&[0, 1, 2, 3])));
    assert_eq!(shape(&counts(2)), ("(2, 2, 2)".into(), as_int64(&[0, 1, 2, 3, 4, 5, 6, 7])));
    let sum = sum_iterations(&counts(2)).unwrap();
    assert_eq!(shape(&sum), ("(2, 2)".into(), as_int64(&[4, 6, 8, 10])));
    // The sum is one row of both iterations, in a dump too.
    let dump = dir.path().join("dump");
    write_counts(&sum, &dump, CountsFormat::Dump, &Model::default()).unwrap();
    let read = read_counts(&dump, CountsFormat::Dump, &Model::default()).unwrap();
    let (read, rows) = (stats(&read), stats(&read).summary().rows.first());
    assert_eq!((rows.len(), rows.num_counted()), (1, 2));
    assert_eq!(read.layer_counts(5).unwrap(), [8, 10]);
}

#[test]
fn a_byte_order_mark_before_json_is_skipped() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("marked.json");
    fs::write(&path, "\u{feff}{\"logical_count\": [[1, 2], [3, 4]]}").unwrap();
    assert_eq!(detect(&path).unwrap().name(), "sglang-count");
    let read = read_counts(&path, CountsFormat::SglangCount, &Model::default()).unwrap();
    assert_eq!(stats(&read).layer_counts(1).unwrap(), [3, 4]);
    fs::write(&path, "\u{feff}{\"physical_to_logical_map\": [[0, 1], [1, 0]]}").unwrap();
    assert_eq!(detect(&path).unwrap().name(), "sglang-map");
    let two_ranks = Model { num_ranks: Some(2), ..Model::default() };
    let read = read_placement(&path, PlacementFormat::SglangMap, &two_ranks).unwrap();
    assert_eq!(read.placement.layer_experts(1).unwrap(), [1, 0]);
}

#[test]
fn fractions_are_selected_and_summed_as_counts_are() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("loads.npy");
    let text = r#"{"logical_count": [[[0.5, 1], [2, 3]], [[4, 5], [6.25, 7]]]}"#;
    let model = Model { layers: Some(&[3, 5]), ..Model::default() };
    let load = counts_from_bytes(text.as_bytes(), CountsFormat::SglangCount, &model).unwrap().load;
    let only_last = Model { layers: Some(&[5]), ..Model::default() };
    let read = |load: &Load, model: &Model| {
        load.write(&path, CountsFormat::Npy, model).unwrap();
        let read = counts_from_bytes(&fs::read(&path).unwrap(), CountsFormat::Npy, model).unwrap();
        (loads(&read).values().to_vec(), read.load.summary().rows.len())
    };
    assert_eq!(read(&load, &only_last), (vec![2.0, 3.0, 6.25, 7.0], 2));
    let sum = load.sum_iterations().unwrap();
    assert_eq!(sum.summary().rows.first().num_counted(), 2);
    assert_eq!(read(&sum, &model), (vec![4.5, 6.0, 8.25, 10.0], 1));
    assert!(String::from_utf8_lossy(&fs::read(&path).unwrap()[..128]).contains("'shape': (2, 2)"));
    let none = Model { layers: Some(&[4]), ..Model::default() };
    let message = load.write(&path, CountsFormat::Npy, &none).unwrap_err().to_string();
    assert_eq!(message, "layer 4 is not among the 2 layers");
}

#[test]
fn layers_filter_what_is_read_and_written_in_every_format() {
    let dir = tempfile::tempdir().unwrap();
    let both = counts(2);
    let of_last = both.layer_counts(5).unwrap();
    let only_last = Model { layers: Some(&[5]), experts_per_token: Some(1), ..Model::default() };
    for format in CountsFormat::ALL.into_iter().filter(|&format| format != CountsFormat::SglangPt) {
        let path = dir.path().join(format.name());
        write_counts(&both, &path, format, &only_last).unwrap();
        let read = read_counts(&path, format, &only_last).unwrap();
        let read = stats(&read);
        assert_eq!(read.summary().layers, [5], "{}", format.name());
        match format {
            CountsFormat::Lmdeploy => assert_eq!(read.layer_counts(5).unwrap(), [8, 10]),
            _ => assert_eq!(read.layer_counts(5).unwrap(), of_last, "{}", format.name()),
        }
        let none = Model { layers: Some(&[4]), ..Model::default() };
        let path = dir.path().join("none");
        let message = write_counts(&both, &path, format, &none).unwrap_err().to_string();
        assert!(message.starts_with("layer 4 is not in this dump") && !path.exists(), "{message}");
    }
    let dump = dir.path().join("both");
    write_counts(&both, &dump, CountsFormat::Dump, &Model::default()).unwrap();
    let read = read_counts(&dump, CountsFormat::Dump, &only_last).unwrap();
    assert_eq!((&stats(&read).summary().layers[..], &read.left_out[..]), (&[5][..], &[3][..]));
    assert_eq!(stats(&read).layer_counts(5).unwrap(), of_last);

    // Layers 2 and 3.
    let placement = small_placement();
    let only_last = Model { layers: Some(&[3]), num_ranks: Some(2), ..Model::default() };
    for format in PlacementFormat::ALL {
        let path = dir.path().join(format!("placement.{}", format.name()));
        write_placement(&placement, &path, format, &only_last).unwrap();
        let read = read_placement(&path, format, &only_last).unwrap();
        assert_eq!(read.placement.layers(), [3], "{}", format.name());
        assert_eq!(read.placement.layer_experts(3).unwrap(), placement.layer_experts(3).unwrap());
        // SGLang's map has a row for each dense layer.
        let dense = if format == PlacementFormat::SglangMap { &[0, 1, 2][..] } else { &[] };
        assert_eq!(read.left_out, dense, "{}", format.name());
    }
    let path = dir.path().join("config.yaml");
    placement.save(&path).unwrap();
    let read = read_placement(&path, PlacementFormat::Config, &only_last).unwrap();
    assert_eq!((read.placement.layers(), &read.left_out[..]), (&[3][..], &[2][..]));
    // Row i is layer i: rows 0 and 2 are told.
    let text = b"[[0, 1], [1, 0], [0, 1]]";
    let second = Model { layers: Some(&[1]), num_ranks: Some(2), ..Model::default() };
    let read = placement_from_bytes(text, PlacementFormat::Phy2logJson, &second).unwrap();
    assert_eq!((read.placement.layer_experts(1).unwrap(), &read.left_out[..]), (&[1, 0][..], &[0, 2][..]));
}

#[test]
fn expert_maps_that_vllm_ascend_serves_wrongly_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("map.json");
    let write = |rows: &[u32], num_ranks, allow_lossy| {
        let num_slots = rows.len() / 2;
        let shape = Shape::new(4, num_slots, num_ranks).unwrap();
        let placement = Placement::new(shape, &[2, 3], rows).unwrap();
        let model = Model { allow_lossy, ..Model::default() };
        write_placement(&placement, &path, PlacementFormat::ExpertMap, &model)
            .map_err(|error| error.to_string())
    };
    let twice_on_first = [0, 1, 2, 3, 0, 1, 1, 1, 0, 2, 3, 0];
    let message = write(&twice_on_first, 2, false).unwrap_err();
    assert!(
        message.ends_with(
            "map.json: layer 3, device 0: slot 1 repeats expert 1 of slot 0; vllm-ascend counts the distinct experts of the \
             first device, and then sends the tokens of all other devices to wrong experts: plan with the policy search, \
             which avoids that; --force, in C allow_lossy, writes the map for MindIE, which serves it"
        ) && !path.exists(),
        "{message}"
    );
    write(&twice_on_first, 2, true).unwrap();
    assert!(fs::read_to_string(&path).unwrap().contains("\"device_expert\": [1, 1, 0]"));
    // More slots on a rank than experts: no policy can avoid it.
    let message = write(&[0, 1, 2, 3, 0, 0, 1, 2, 3, 0], 1, false).unwrap_err();
    assert!(
        message.contains(": use at most as many slots for each rank as there are experts; --force"),
        "{message}"
    );
    // Twice on another device leaves one of the two unused.
    write(&[0, 1, 2, 3, 3, 1, 1, 0, 2, 3, 2, 0], 2, false).unwrap();
}
