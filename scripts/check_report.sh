#!/bin/sh
# Tests the pages of `eplb report --html` and `eplb replay --html` in a real browser. Their figures must equal the JSON's. They
# must log nothing and request nothing. Leaves screenshots in build/check_report.
set -eu
cd "$(dirname "$0")/.."
scripts/need.sh chromium:chromium
cargo build --quiet --locked --release --features cli
python=$(scripts/python.sh)
rm -rf build/check_report
mkdir -p build/check_report
"$python" scripts/check_report.py target/release/eplb build/check_report
