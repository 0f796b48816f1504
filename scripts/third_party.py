"""The crates that are linked into the library and into the program.

    third_party.py notices [--check]   writes packaging/THIRD-PARTY, or fails if it is not up to date
    third_party.py sbom                prints a CycloneDX bill of materials

Both are made from Cargo.lock and cargo's sources. The same lock file gives the same bytes.
"""

import json
import os
import re
import subprocess
import sys
import textwrap

PREAMBLE = "packaging/rust-std.txt"
NOTICES = "packaging/THIRD-PARTY"
# Other Linux machines link the same crates.
PLATFORM = "x86_64-unknown-linux-gnu"
LICENCE_FILE = re.compile(r"(LICEN[CS]E|COPYING|COPYRIGHT|NOTICE|UNLICENSE|AUTHORS)", re.IGNORECASE)


def linked_crates(*options):
    """The packages that are linked with these options of cargo, by id, and the ids of their dependencies."""
    metadata = json.loads(
        run("cargo", "metadata", "--locked", "--format-version", "1", "--filter-platform", PLATFORM, *options)
    )
    packages = {package["id"]: package for package in metadata["packages"]}
    nodes = {node["id"]: node for node in metadata["resolve"]["nodes"]}
    dependencies = {}
    waiting = [metadata["resolve"]["root"]]
    while waiting:
        crate = waiting.pop()
        if crate in dependencies:
            continue
        # Leaves out dependencies of builds and tests, and procedural macros, which run in the compiler.
        dependencies[crate] = [
            dependency["pkg"]
            for dependency in nodes[crate]["deps"]
            if any(kind["kind"] is None for kind in dependency["dep_kinds"])
            and not any("proc-macro" in target["kind"] for target in packages[dependency["pkg"]]["targets"])
        ]
        waiting.extend(dependencies[crate])
    return packages, dependencies


def run(*command):
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, encoding="utf-8").stdout


def licence_texts(package):
    folder = os.path.dirname(package["manifest_path"])
    names = sorted(name for name in os.listdir(folder) if LICENCE_FILE.match(name))
    texts = []
    for name in names:
        path = os.path.join(folder, name)
        if os.path.isfile(path):
            with open(path, encoding="utf-8") as file:
                texts.append("\n".join(line.rstrip() for line in file.read().strip("\r\n").splitlines()) + "\n")
    if not texts:
        sys.exit(f"{package['name']} {package['version']} has no licence text in {folder}: add it by hand")
    return texts


def notices():
    packages, program = linked_crates("--features", "cli")
    _, library = linked_crates()
    crates = sorted((packages[crate] for crate in program if packages[crate]["source"]), key=by_name)
    lines = ["Software of others that is linked into eplb", ""]
    with open(PREAMBLE, encoding="utf-8") as file:
        lines += [file.read().rstrip("\n"), "", "", "Crates", "======", ""]
    users = {}
    for package in crates:
        where = "library and program" if package["id"] in library else "program"
        lines.append(f"{package['name']} {package['version']}, in the {where}: {package['license']}")
        for text in licence_texts(package):
            users.setdefault(text, []).append(f"{package['name']} {package['version']}")
    for text, names in users.items():
        lines += ["", "", "-" * 80, *textwrap.wrap(", ".join(names), 80, break_on_hyphens=False), "-" * 80, "", text.rstrip("\n")]
    return "\n".join(lines) + "\n"


def sbom():
    packages, dependencies = linked_crates("--features", "cli")
    _, library = linked_crates()
    with open("Cargo.lock", encoding="utf-8") as file:
        checksums = dict(
            ((name, version), checksum)
            for name, version, checksum in re.findall(
                r'name = "(.*)"\nversion = "(.*)"\nsource = ".*"\nchecksum = "(.*)"', file.read()
            )
        )
    own = [package for package in packages.values() if package["id"] in dependencies and not package["source"]][0]
    rust = re.search(r"^release: (.*)$", run("rustc", "-vV"), re.MULTILINE).group(1)
    standard_library = {
        "type": "library",
        "bom-ref": f"pkg:generic/rust-std@{rust}",
        "name": "rust-std",
        "version": rust,
        "description": "The Rust standard library",
        "licenses": [{"expression": "MIT OR Apache-2.0"}],
        "purl": f"pkg:generic/rust-std@{rust}",
    }
    components = [standard_library]
    for package in sorted((packages[crate] for crate in dependencies), key=by_name):
        if package is own:
            continue
        components.append(
            {
                **described(package, "library"),
                "hashes": [{"alg": "SHA-256", "content": checksums[package["name"], package["version"]]}],
                "properties": [
                    {
                        "name": "eplb:linked-into",
                        "value": "library, program" if package["id"] in library else "program",
                    }
                ],
            }
        )
    graph = [
        {
            "ref": purl(packages[crate]),
            "dependsOn": sorted(purl(packages[used]) for used in set(uses))
            + ([standard_library["bom-ref"]] if packages[crate] is own else []),
        }
        for crate, uses in sorted(dependencies.items(), key=lambda item: by_name(packages[item[0]]))
    ]
    document = {
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "version": 1,
        "metadata": {"component": described(own, "library")},
        "components": components,
        "dependencies": graph,
    }
    return json.dumps(document, indent=2) + "\n"


def described(package, kind):
    return {
        "type": kind,
        "bom-ref": purl(package),
        "name": package["name"],
        "version": package["version"],
        "description": " ".join((package["description"] or "").split()),
        # The old form of "or".
        "licenses": [{"expression": package["license"].replace("/", " OR ")}],
        "purl": purl(package),
    }


def purl(package):
    return f"pkg:cargo/{package['name']}@{package['version']}"


def by_name(package):
    return package["name"], package["version"]


def main(arguments):
    os.chdir(os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))
    if arguments == ["sbom"]:
        sys.stdout.write(sbom())
    elif arguments == ["notices"]:
        with open(NOTICES, "w", encoding="utf-8") as file:
            file.write(notices())
    elif arguments == ["notices", "--check"]:
        with open(NOTICES, encoding="utf-8") as file:
            if file.read() != notices():
                sys.exit(f"{NOTICES} is out of date with Cargo.lock: run scripts/third_party.py notices")
        print(f"{NOTICES} has the licences of all crates that are linked in")
    else:
        sys.exit(__doc__)


main(sys.argv[1:])
