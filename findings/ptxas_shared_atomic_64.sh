#!/bin/sh
# NVIDIA ptxas 13.2.78: adding to a 64-bit counter in shared memory is a loop, in global memory one instruction.
#
# Guess: red.shared.add.u64 is one instruction, as red.shared.add.u32 and red.global.add.u64 are.
# Seen:  for sm_80, sm_90, sm_100 and sm_120 it is a load, an add and ATOMS.CAST.SPIN.64, repeated until no other
#        thread came between. The 32-bit add is one ATOMS, and the 64-bit add to global memory one RED.
# Why it matters: threads that count the same expert retry in turn, and the hot expert is what a recorder is there to
#        count. Count in 32 bits a block, and add to 64 bits in global memory.
set -eu
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
trap 'exit 1' HUP INT TERM
python3 -m venv "$dir/venv"
py="$dir/venv/bin/python"
"$py" -m pip install -q --disable-pip-version-check --no-deps --target "$dir" nvidia-cuda-nvcc==13.2.78 \
    nvidia-cuda-nvdisasm==13.2.78
tools="$dir/nvidia/cu13/bin"

# One kernel a case: thread t adds t to the counter of its expert, and the block writes the counter it looked at.
kernel() { # name, space, bits
    cat <<PTX
.visible .entry $1(.param .u64 counters, .param .u64 experts)
{
    .reg .b32 %thread, %expert;
    .reg .b64 %base, %ids, %at, %wide;
    .shared .align 8 .b8 block_counters[2048];
    mov.u32 %thread, %tid.x;
    ld.param.u64 %ids, [experts];
    cvta.to.global.u64 %ids, %ids;
    mul.wide.u32 %wide, %thread, 4;
    add.u64 %ids, %ids, %wide;
    ld.global.u32 %expert, [%ids];
    and.b32 %expert, %expert, 255;
    mul.wide.u32 %wide, %expert, 8;
    ld.param.u64 %base, [counters];
    cvta.to.global.u64 %base, %base;
    mov.u64 %at, block_counters;
    add.u64 %at, %at, %wide;
    add.u64 %base, %base, %wide;
    .reg .b$3 %add, %sum;
    cvt.u$3.u32 %add, %thread;
    red.$2.add.u$3 [$4], %add;
    bar.sync 0;
    ld.$2.u$3 %sum, [$4];
    st.global.u$3 [%base], %sum;
    ret;
}
PTX
}
{
    printf '.version 7.0\n.target sm_80\n.address_size 64\n'
    kernel shared_32 shared 32 %at | sed 's/cvt.u32.u32/mov.u32/'
    kernel shared_64 shared 64 %at
    kernel global_64 global 64 %base
} >"$dir/count.ptx"

"$tools/ptxas" --version | tail -n 1 | sed 's/^/VERSION ptxas /'
echo "GUESS   one atomic instruction and no loop in each kernel"
for arch in sm_80 sm_90 sm_100 sm_120; do
    "$tools/ptxas" -arch=$arch "$dir/count.ptx" -o "$dir/count.cubin"
    "$tools/nvdisasm" -c "$dir/count.cubin" >"$dir/count.sass"
    for kernel in shared_32 shared_64 global_64; do
        # A branch under a predicate is the loop; the one without is the end that every kernel has.
        seen=$(awk -v start=".text.$kernel:" '
            $1 ~ /^\.text\./ { inside = ($1 == start) }
            inside && /ATOMS|RED/ { for (i = 1; i <= NF; i++) if ($i ~ /^(ATOMS|RED)/) printf "%s ", $i }
            inside && /@!?P[0-9]+ BRA/ { printf "loop " }' "$dir/count.sass")
        echo "SEEN    $arch $kernel: $seen"
        case "$kernel $seen" in
        "shared_32 ATOMS.ADD ") ;;
        "shared_64 ATOMS.CAST.SPIN.64 loop ") ;;
        "global_64 RED.E.ADD.64.STRONG.GPU " | "global_64 REDG.E.ADD.64.STRONG.GPU ") ;;
        *)
            echo "the behaviour is not as stated" >&2
            exit 1
            ;;
        esac
    done
done
