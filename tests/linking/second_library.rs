//! A Rust static library that a host links beside libeplb.a: it allocates, starts a thread, and catches a panic of its own.

use std::collections::HashMap;

/// The sum of 0 to `count` - 1, by way of a thread and a hash map.
#[unsafe(no_mangle)]
pub extern "C" fn second_sum(count: u64) -> u64 {
    let map: HashMap<u64, u64> = (0..count).map(|index| (index, index)).collect();
    std::thread::spawn(move || map.values().sum()).join().unwrap_or(0)
}

/// 1 if a panic unwinds and is caught.
#[unsafe(no_mangle)]
pub extern "C" fn second_catches_panics() -> i32 {
    i32::from(std::panic::catch_unwind(|| panic!("the second library's")).is_err())
}
