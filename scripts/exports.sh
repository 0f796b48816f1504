#!/bin/sh
# Prints the functions that the headers declare, one on each line. The compiler removes comments first.
set -eu
cd "$(dirname "$0")/.."
for header in include/eplb*.h; do
    echo "#include \"$header\""
done | "${CC:-cc}" -E -P -x c -I include -I . - | grep -oE '\beplb_[a-z0-9_]+ ?\(' | tr -d ' (' | LC_ALL=C sort -u
