#!/bin/sh
# Fails if a file needs a symbol of a glibc newer than 2.17: check_glibc.sh FILE...
set -eu
newest=2.17
for file in "$@"; do
    for version in $(objdump -T "$file" | grep -oE 'GLIBC_[0-9.]+' | sort -uV); do
        version=${version#GLIBC_}
        if [ "$(printf '%s\n' "$version" $newest | sort -V | tail -n 1)" != $newest ]; then
            echo "$file needs glibc $version:" >&2
            objdump -T "$file" | grep "GLIBC_$version\b" >&2
            exit 1
        fi
    done
    echo "${file##*/} needs glibc $newest or older"
done
