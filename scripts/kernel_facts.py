"""Prints the table in docs/gpu.md, the facts about the kernels that need no GPU: kernel_facts.py NVCC_BIN FATBIN.

Registers, spills and static shared memory are from cuobjdump, all else from the machine code. In the counting kernels, the loop
with a 16-byte load handles every id.
"""

import re
import subprocess
import sys

ARCHITECTURES = ["sm_80", "sm_90", "sm_100"]
INSTRUCTION = re.compile(r"/\*([0-9a-f]{4,})\*/\s+(.*?)\s*;")


def cuobjdump(*arguments):
    return subprocess.run([f"{bin_folder}/cuobjdump", *arguments], check=True, capture_output=True, text=True).stdout


def resources(arch):
    """The registers of each kernel, and its bytes of stack, static shared memory and local memory."""
    text = cuobjdump("-res-usage", "-arch", arch, fatbin)
    found = re.findall(r"Function (\w+):\s*REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)", text)
    return {name: [int(number) for number in numbers] for name, *numbers in found}


def instructions(arch, kernel):
    """The address and text of each instruction, without the padding after the last branch."""
    found = INSTRUCTION.findall(cuobjdump("-sass", "-arch", arch, "-fun", kernel, fatbin))
    return [(int(address, 16), text) for address, text in found if not text.startswith("NOP")]


def loops(code):
    """The instructions of each loop with a 16-byte load."""
    for address, text in code:
        branch = re.search(r"BRA (0x[0-9a-f]+)", text)
        if branch and int(branch[1], 16) < address:
            body = [t for a, t in code if int(branch[1], 16) <= a <= address]
            if any("LDG.E.128" in t for t in body):
                yield body


def row(arch, kernel, usage):
    registers, stack, shared, local = usage
    code = instructions(arch, kernel)
    number_of = lambda opcode: sum(1 for _, text in code if re.search(rf"\b{opcode}\b", text))
    assert stack == local == number_of("LDL") == number_of("STL") == 0, f"{kernel} on {arch} uses local memory"
    if kernel == "eplb_add_counts":
        return f"| `{kernel}` | {arch} | {registers} | {stack} | {shared} | {adding(arch, kernel, code, number_of)} |  |  |  |"
    if kernel in ("eplb_copy_tables", "eplb_snapshot"):
        is_vector = any("LDG.E.128" in text for _, text in code) and any("STG.E.128" in text for _, text in code)
        assert is_vector or kernel == "eplb_snapshot", f"{kernel} on {arch}: no vector loads and stores"
        return f"| `{kernel}` | {arch} | {registers} | {stack} | {shared} | {len(code)} |  |  |  |"
    width = 8 if "_i64" in kernel else 4
    bins, cells = counting(arch, kernel, code, width, number_of) if "_count_" in kernel else routing(arch, kernel, code)
    width = "4 or 8" if "_general" in kernel else width
    return f"| `{kernel}` | {arch} | {registers} | {stack} | {shared} | {len(code)} | {bins} | {cells} | {width} |"


def counting(arch, kernel, code, width, number_of):
    """Instructions an id, in bins and in cells."""
    per_id = {}
    for body in loops(code):
        # The third loop only tells ids of -1 apart, where a batch has ids without an expert.
        kind = "bins" if any("ATOMS" in text for text in body) else "cells" if any("RED" in text for text in body) else "others"
        per_id[kind] = f"{len(body) * width / 16:g}"
    is_general = "_general" in kernel
    assert is_general or per_id.keys() >= {"bins", "cells"}, f"{kernel} on {arch}: a loop without vector loads: {per_id}"
    # Blocks and warps run concurrently, which the emulator cannot show, so all counting must be atomic. The one plain store clears
    # the bins.
    assert number_of("STG") == 0 and number_of("STS") == 1, f"{kernel} on {arch} counts without atomics"
    return per_id.get("bins", ""), per_id.get("cells", "")


def adding(arch, kernel, code, number_of):
    """The number of instructions. Checks that cells and totals change by atomics. The plain stores are of last values, which have
    64 bits; the compiler may repeat the loop for each type."""
    stores = [text for _, text in code if re.search(r"\bST[GS]\b", text)]
    assert len(stores) <= 4 and all("STG.E.64" in text for text in stores), f"{kernel} on {arch} stores {stores}"
    assert number_of("REDG?") >= 4, f"{kernel} on {arch} counts without atomics"
    return len(code)


def routing(arch, kernel, code):
    """Routing an id has no loop to count. Checks that token hash uses vector loads and stores where ids have no gaps, and that
    the other rules find equal ids of a warp by one instruction."""
    has = lambda opcode: any(opcode in text for _, text in code)
    if kernel.endswith("token_hash_general"):
        pass
    elif "token_hash" in kernel:
        assert has("LDG.E.128") and has("STG.E.128"), f"{kernel} on {arch}: no vector loads and stores"
    else:
        assert has("MATCH.ANY"), f"{kernel} on {arch}: no match"
    return "", ""


bin_folder, fatbin = sys.argv[1:]
print("| kernel | GPU | registers | stack and spills | static shared memory | instructions "
      "| per id, in bins | per id, in cells | bytes per id |")
print("|---|---|---|---|---|---|---|---|---|")
for arch in ARCHITECTURES:
    for kernel, usage in sorted(resources(arch).items()):
        print(row(arch, kernel, usage))
