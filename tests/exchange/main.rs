//! Reads files that PyTorch and NumPy wrote, reads back every format after writing it, and reads damaged files.

mod malformed;
mod sglang;

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
