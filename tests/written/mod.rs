//! Writes dumps from the format's description, without the library.

#![allow(dead_code, reason = "each test file uses a part")]

use std::fs;
use std::path::Path;

use serde_json::{Map, Value, json};

pub const EXPERTS: usize = 4;

/// The count of a cell, different for any two cells of fewer than 100,000 iterations.
pub fn count(file: u32, iteration: u64, layer: u32, expert: usize) -> u64 {
    u64::from(file) * 100_000_000 + iteration % 100_000 * 1000 + u64::from(layer) * 10 + expert as u64
}

/// The file of one rank, with the metadata that eplb writes.
#[derive(Clone)]
pub struct RankFile {
    pub file: u32,
    /// `__metadata__`; none in a file of TensorRT-LLM.
    pub metadata: Option<Map<String, Value>>,
    pub layers: Vec<u32>,
    pub keys: Vec<u64>,
}

impl RankFile {
    /// Writes a tensor for each key and layer: a little-endian length, a JSON header, and the counts without gaps.
    pub fn write(&self, directory: &Path) {
        let mut header = Map::new();
        if let Some(metadata) = &self.metadata {
            header.insert("__metadata__".into(), Value::Object(metadata.clone()));
        }
        let mut data = Vec::new();
        for &key in &self.keys {
            for &layer in &self.layers {
                let start = data.len();
                for expert in 0..EXPERTS {
                    data.extend(count(self.file, key, layer, expert).to_le_bytes());
                }
                let tensor = json!({"dtype": "I64", "shape": [EXPERTS], "data_offsets": [start, data.len()]});
                header.insert(format!("{key}_{layer}"), tensor);
            }
        }
        let mut header = serde_json::to_vec(&header).unwrap();
        header.resize(header.len().next_multiple_of(8), b' ');
        let length = (header.len() as u64).to_le_bytes();
        let path = directory.join(format!("rank{}.safetensors", self.file));
        fs::write(path, [&length[..], &header, &data].concat()).unwrap();
    }
}

/// A dump with the metadata of eplb.
#[derive(Clone)]
pub struct WrittenDump {
    /// The `eplb` object of the meta file.
    pub info: Map<String, Value>,
    pub files: Vec<RankFile>,
}

impl WrittenDump {
    /// `num_files` files with `layers` and a tensor for each of `keys`. `start` and `stop` are the range.
    pub fn new(num_files: u32, layers: &[u32], keys: &[u64], start: u64, stop: u64) -> WrittenDump {
        let info = json!({"version": "0.1.0", "num_ranks": num_files, "iter_start": start, "iter_stop": stop,
            "layers": layers, "counts": "experts"});
        let file = |file: u32| {
            let list: Vec<String> = layers.iter().map(u32::to_string).collect();
            let metadata = json!({"rank": file.to_string(), "num_ranks": num_files.to_string(), "layers": list.join(","),
                "iter_start": start.to_string(), "iter_stop": stop.to_string(), "counts": "experts"});
            RankFile {
                file,
                metadata: metadata.as_object().cloned(),
                layers: layers.to_vec(),
                keys: keys.to_vec(),
            }
        };
        WrittenDump { info: info.as_object().unwrap().clone(), files: (0..num_files).map(file).collect() }
    }

    /// Sets a number of the meta file and of all files.
    pub fn with(mut self, key: &str, number: u64) -> WrittenDump {
        self.info.insert(key.into(), number.into());
        for file in &mut self.files {
            file.set(key, &number.to_string());
        }
        self
    }

    pub fn write(&self, directory: &Path) {
        fs::create_dir_all(directory).unwrap();
        let meta = json!({"num_experts": EXPERTS, "num_experts_per_token": 2, "eplb": self.info});
        fs::write(directory.join("meta_info.json"), meta.to_string()).unwrap();
        self.files.iter().for_each(|file| file.write(directory));
    }
}

impl RankFile {
    /// Sets a key of the metadata.
    pub fn set(&mut self, key: &str, value: &str) {
        self.metadata.as_mut().unwrap().insert(key.into(), value.into());
    }

    /// Gives the file other layers.
    pub fn set_layers(&mut self, layers: &[u32]) {
        self.layers = layers.to_vec();
        let list: Vec<String> = layers.iter().map(u32::to_string).collect();
        self.set("layers", &list.join(","));
    }
}

/// A file of TensorRT-LLM, without metadata.
pub fn foreign(file: u32, layers: &[u32], keys: &[u64]) -> RankFile {
    RankFile { file, metadata: None, layers: layers.to_vec(), keys: keys.to_vec() }
}
