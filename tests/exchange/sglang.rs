//! Recordings and maps of SGLang, and other files of PyTorch.

use super::*;

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
