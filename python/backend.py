"""Builds the wheel and the sdist of eplb (PEP 517).

The wheel is the package and an installed tree of the C library, as of `make install`. Two variables of the environment choose it:

    EPLB_TREE      the installed tree to pack; without it, `make install` builds one with cargo
    EPLB_PLATFORM  the platform tags of that tree, such as manylinux_2_17_x86_64; without it, linux_<machine>

SOURCE_DATE_EPOCH is the time of all files; without it, 1980. The same source gives the same bytes.
"""

import base64
import contextlib
import gzip
import hashlib
import io
import os
import pathlib
import re
import subprocess
import sys
import tarfile
import tempfile
import time
import zipfile

try:
    import tomllib
except ImportError:
    import tomli as tomllib

ROOT = pathlib.Path(__file__).resolve().parent.parent
HEADERS = ("eplb.h", "eplb_tools.h", "eplb_live.h")
# What a C++ build and the package need of the tree. Archive, manual and pkg-config file are those of the tarball of `make dist`.
TREE = ("bin/eplb", "include/*", "lib/libeplb.so.*", "lib/cmake/eplb/*")
LICENCES = ("LICENSE", "NOTICE", "THIRD-PARTY")


def build_wheel(wheel_directory, config_settings=None, metadata_directory=None):
    platform = os.environ.get("EPLB_PLATFORM") or f"linux_{os.uname().machine}"
    info = f"eplb-{version()}.dist-info"
    with tempfile.TemporaryDirectory() as folder:
        tree = pathlib.Path(os.environ.get("EPLB_TREE") or installed(folder)).resolve()
        files = {f"eplb/{path.name}": path.read_bytes() for path in (ROOT / "python/eplb").iterdir() if path.is_file()}
        files["eplb/_header.py"] = header_module(tree / "include")
        for pattern in TREE:
            found = [path for path in tree.glob(pattern) if not path.is_symlink()]
            if not found:
                sys.exit(f"{tree} has no {pattern}: EPLB_TREE must be a tree of `make install` or `make dist`")
            files.update((f"eplb/sdk/{path.relative_to(tree)}", path.read_bytes()) for path in found)
        documents = tree / "share/doc/eplb"
        files.update((f"{info}/licenses/{name}", (documents / name).read_bytes()) for name in LICENCES)
        files[f"{info}/sboms/eplb.cdx.json"] = bill_of_materials(documents)
    files[f"{info}/METADATA"] = metadata()
    tags = "".join(f"Tag: py3-none-{tag}\n" for tag in platform.split("."))
    files[f"{info}/WHEEL"] = f"Wheel-Version: 1.0\nGenerator: eplb\nRoot-Is-Purelib: false\n{tags}".encode()
    record = [f"{name},sha256={digest(data)},{len(data)}\n" for name, data in sorted(files.items())]
    files[f"{info}/RECORD"] = "".join([*record, f"{info}/RECORD,,\n"]).encode()

    name = f"eplb-{version()}-py3-none-{platform}.whl"
    date = time.gmtime(timestamp())[:6]
    with zipfile.ZipFile(os.path.join(wheel_directory, name), "w") as wheel:
        # The metadata last, as wheels have it.
        for path in sorted(files, key=lambda path: (path.startswith(info), path)):
            entry = zipfile.ZipInfo(path, date)
            entry.external_attr = (0o100755 if path.startswith("eplb/sdk/bin/") else 0o100644) << 16
            entry.create_system = 3
            wheel.writestr(entry, files[path], zipfile.ZIP_DEFLATED, 9)
    return name


def build_sdist(sdist_directory, config_settings=None):
    base = f"eplb-{version()}"
    listed = run("cargo", "package", "--list", "--allow-dirty", "--no-verify").split("\n")
    files = {name: (ROOT / name).read_bytes() for name in listed if name and (ROOT / name).is_file()}
    pyproject = files["python/pyproject.toml"].decode()
    files["pyproject.toml"] = pyproject.replace('backend-path = ["."]', 'backend-path = ["python"]').encode()
    files["PKG-INFO"] = metadata()

    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name in sorted(files):
            entry = tarfile.TarInfo(f"{base}/{name}")
            entry.size, entry.mtime = len(files[name]), timestamp()
            entry.mode = 0o755 if (ROOT / name).is_file() and os.access(ROOT / name, os.X_OK) else 0o644
            tar.addfile(entry, io.BytesIO(files[name]))
    with open(os.path.join(sdist_directory, f"{base}.tar.gz"), "wb") as file:
        with gzip.GzipFile("", "wb", 9, file, mtime=timestamp()) as compressed:
            compressed.write(packed.getvalue())
    return f"{base}.tar.gz"


def installed(folder):
    """Builds the library and the program with cargo, and returns the tree."""
    run("make", "install", "DESTDIR=", f"PREFIX={folder}/tree", "LIBDIR=lib")
    return f"{folder}/tree"


def bill_of_materials(documents):
    bill = documents / "eplb.cdx.json"
    return bill.read_bytes() if bill.exists() else run(sys.executable, "scripts/third_party.py", "sbom").encode()


def header_module(include):
    """The module eplb._header: cffi's tables of the headers, and the fields of _INIT that are not zero."""
    import cffi

    text = "".join((include / name).read_text(encoding="utf-8") for name in HEADERS)
    text = re.sub(r"/\*.*?\*/|//[^\n]*", "", text, flags=re.DOTALL).replace("\\\n", " ")
    initializers = re.findall(r"^#define EPLB_\w+_INIT\s+\{ sizeof\((\w+)\),\s*(.*) \}$", text, re.MULTILINE)
    numbers = dict(re.findall(r"^#define (EPLB_\w+) \(?(-?\d+)\)?$", text, re.MULTILINE))
    text = re.sub(r'^#.*$|^extern "C" \{|^\} *$|EPLB_API', "", text, flags=re.MULTILINE)
    ffi = cffi.FFI()
    ffi.cdef(text + "".join(f"\n#define {name} {number}" for name, number in numbers.items()))

    defaults = {}
    for struct, values in initializers:
        fields = [name for name, _ in ffi.typeof(struct).fields[1:]]
        values = re.split(r",\s*", values)
        if len(values) != len(fields):
            sys.exit(f"{struct} has {len(fields)} fields, and its _INIT {len(values)} values")
        defaults[struct] = {
            field: int(numbers.get(value, value))
            for field, value in zip(fields, values)
            if value not in ("0", "NULL", "{ 0 }")
        }
    ffi.set_source("eplb._header", None)
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "_header.py"
        with contextlib.redirect_stdout(sys.stderr):
            ffi.emit_python_code(str(path))
        code = path.read_text(encoding="utf-8")
    defaults = {struct: fields for struct, fields in defaults.items() if fields}
    return f'"""Generated from the headers by backend.py."""\n{code}DEFAULTS = {defaults!r}\n'.encode()


def metadata():
    project = tomllib.loads((ROOT / "python/pyproject.toml").read_text(encoding="utf-8"))["project"]
    lines = [
        "Metadata-Version: 2.4",
        f"Name: {project['name']}",
        f"Version: {version()}",
        f"Summary: {project['description']}",
        f"License-Expression: {project['license']}",
        *(f"License-File: {name}" for name in LICENCES),
        f"Keywords: {','.join(project['keywords'])}",
        *(f"Classifier: {classifier}" for classifier in project["classifiers"]),
        f"Requires-Python: {project['requires-python']}",
        *(f"Requires-Dist: {dependency}" for dependency in project["dependencies"]),
        "Description-Content-Type: text/markdown",
        "",
        (ROOT / "docs/python.md").read_text(encoding="utf-8"),
    ]
    return "\n".join(lines).encode()


def version():
    return re.search(r'^version = "(.*)"', (ROOT / "Cargo.toml").read_text(encoding="utf-8"), re.MULTILINE).group(1)


def timestamp():
    return int(os.environ.get("SOURCE_DATE_EPOCH") or 315532800)


def digest(data):
    return base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()


def run(*command):
    """Runs a command in the source tree and returns its output; its errors are shown."""
    return subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, encoding="utf-8").stdout
