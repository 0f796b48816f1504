#!/bin/sh
# Links build/lib/libeplb.a as hosts do: beside another Rust static library built in several ways, in programs and in
# plugins, dynamic and static. Checks its symbols and its size. Checks that a static program reports why it has no CUDA.
# $RUSTC_SECOND compiles the other library; a rustc of another version than eplb's tests more.
set -eu
cd "$(dirname "$0")/.."
work=$PWD/build/check_static
rm -rf "$work"
mkdir -p "$work"
library=$PWD/build/lib/libeplb.a
system="-lpthread -ldl -lm"
warnings="-std=c99 -Wall -Wextra -Wpedantic -Werror"

fail() {
    echo "$1" >&2
    exit 1
}

# One object; its global symbols are the headers' functions, hidden; no bitcode; small.
[ "$(ar t "$library" | wc -l)" = 1 ] || fail "libeplb.a has more than one member"
scripts/exports.sh >"$work/declared"
nm --defined-only --extern-only "$library" | awk 'NF == 3 { print $3 }' | LC_ALL=C sort >"$work/defined"
diff "$work/declared" "$work/defined" || fail "declared in the headers (<) and defined by libeplb.a (>) are not the same"
if nm -a "$library" | grep -q '\.llvm'; then fail "libeplb.a has LLVM bitcode"; fi
size=$(stat -c %s "$library")
[ "$size" -lt 10000000 ] || fail "libeplb.a has $size bytes"
echo "libeplb.a: $(wc -l <"$work/defined") functions of the headers and no other global symbol, $size bytes"

# Every program has these: the C library's symbols and the unwinder's. Weak ones may be missing.
nm --undefined-only "$library" | awk '$1 == "U" { print $2 }' | sort -u >"$work/undefined"
for file in libc.so.6 libm.so.6 libgcc_s.so.1 ld-linux-x86-64.so.2; do
    nm -D --defined-only "$(cc -print-file-name=$file)" | awk '{ sub(/@.*/, "", $3); print $3 }'
done | sort -u >"$work/system"
if comm -23 "$work/undefined" "$work/system" | grep .; then fail "libeplb.a needs these symbols"; fi

for unit in use_eplb host plugin; do
    # shellcheck disable=SC2086
    cc $warnings -fPIC -fvisibility=hidden -I include -c "tests/linking/$unit.c" -o "$work/$unit.o"
done
cd "$work"
# Panics print a message, which is shown where something fails.
run() {
    "$@" >log 2>&1 || {
        cat log >&2
        fail "$* failed"
    }
}

# Compiles the other library and links it before and after eplb.
second() { # NAME OPTION...
    name=$1
    shift
    ${RUSTC_SECOND:-rustc} --crate-name second --edition 2021 --crate-type staticlib "$@" \
        ../../tests/linking/second_library.rs -o "libsecond-$name.a"
    panics=unwind
    case $name in *abort*) panics=abort ;; esac
    # shellcheck disable=SC2086
    cc $warnings -fPIC -fvisibility=hidden -DSECOND_LIBRARY="\"$panics\"" -I ../../include \
        -c ../../tests/linking/use_eplb.c -o "use-$name.o"
    # shellcheck disable=SC2086
    {
        cc host.o "use-$name.o" "libsecond-$name.a" "$library" $system -o "first-$name"
        cc host.o "use-$name.o" "$library" "libsecond-$name.a" $system -Wl,--gc-sections -o "last-$name"
        cc -shared plugin.o "use-$name.o" "libsecond-$name.a" "$library" $system -Wl,-z,defs -o "plugin-$name.so"
        cc -static host.o "use-$name.o" "libsecond-$name.a" "$library" $system -o "static-$name" 2>/dev/null
    }
    for program in "first-$name" "last-$name" "static-$name"; do
        run "./$program"
    done
    run "./first-$name" "./plugin-$name.so"
    echo "links and runs beside a Rust static library ($*)"
}
second lto -C opt-level=3 -C lto=fat
second plain -C opt-level=0 -g
second abort -C opt-level=s -C lto=fat -C codegen-units=1 -C panic=abort

# A plugin with the library inside, in hosts that have the library in either form.
# shellcheck disable=SC2086
cc -shared plugin.o use_eplb.o "$library" $system -Wl,-z,defs -o plugin.so
exported=$(nm -D --defined-only plugin.so | awk '{ print $3 }')
[ "$exported" = plugin_run ] || fail "the plugin exports more than its own function: $exported"
cp ../../target/release/libeplb.so "$(readelf -d ../../target/release/libeplb.so | sed -n 's/.*SONAME.*\[\(.*\)\]/\1/p')"
ln -s libeplb.so.* libeplb.so
# The program exports its clock_gettime, so that libeplb.so calls it.
cc -fPIC -I ../../include -c ../../tests/linking/use_eplb.c -o use_shared.o
cc -fPIC -fvisibility=hidden -DSHARED_PLUGIN -I ../../include -c ../../tests/linking/use_eplb.c -o use_shared_plugin.o
cc -shared plugin.o use_shared_plugin.o -L. -leplb -Wl,-z,defs,-rpath,"$work" -o plugin-shared.so
# shellcheck disable=SC2086
cc host.o use_eplb.o "$library" $system -o host-static
cc host.o use_shared.o -L. -leplb -ldl -Wl,-rpath,"$work" -o host-shared
for host in host-static host-shared; do
    run ./$host ./plugin.so ./plugin-shared.so
done
echo "a plugin exports its own function only, beside hosts and plugins with another copy of the library"

# A static program cannot load the driver and must not open it, even where one is installed.
# shellcheck disable=SC2086
cc -static host.o use_eplb.o "$library" $system -o static 2>/dev/null
# shellcheck disable=SC2086
cc -static-pie host.o use_eplb.o "$library" $system -o static-pie 2>/dev/null
mkdir driver
echo 'int cuInit(unsigned flags) { return (int)flags; }' >driver/libcuda.c
cc -shared -fPIC -Wl,-soname,libcuda.so.1 driver/libcuda.c -o driver/libcuda.so.1
for program in static static-pie; do
    run ./$program
    LD_LIBRARY_PATH=driver ./$program cuda >cuda.txt
    grep -q "^0 .*linked statically" cuda.txt || fail "$program cuda: $(cat cuda.txt)"
done
LD_LIBRARY_PATH=driver ./host-static cuda >cuda.txt
grep -q "^0 .*it lacks" cuda.txt || fail "a dynamic program does not try the driver: $(cat cuda.txt)"
echo "static programs: $(./static cuda)"
