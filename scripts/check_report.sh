#!/bin/sh
# Tests the page of `eplb report --html` in a real browser. Its figures must equal the JSON's. It must log nothing and request
# nothing. Leaves screenshots in build/check_report.
set -eu
cd "$(dirname "$0")/.."
scripts/need.sh chromium:chromium
cargo build --quiet --locked --release --features cli
python=$(scripts/python.sh)
rm -rf build/check_report
mkdir -p build/check_report
"$python" scripts/check_report.py target/release/eplb build/check_report
