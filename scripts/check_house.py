"""Checks the order of the modules and the length of the files: check_house.py [ROOT]. Test modules do not count.

Fails where a top-level module of src/ names one that it must not know, where modules of one folder name each other in a circle,
and where a file of src/ or kernels/ has more than 500 lines. Paths in documentation count as those in code do.
"""

import pathlib
import re
import sys

LONGEST = 500

# What each top-level module may name: everything on the lines above it, but for the exceptions below.
ORDER = [
    ["error"],
    ["page_buffer", "threads"],
    ["atomic_file"],
    ["placement", "device"],
    ["solve", "stats"],
    ["live"],
    ["dispatch"],
    ["report"],
    ["exchange", "generate"],
    ["ffi", "bin"],
]
# solve never sees a file or a device, placement never a device or a thread, and dispatch never plans. live never sees a device,
# a file or a dump.
NEVER = {
    ("solve", "atomic_file"),
    ("solve", "device"),
    ("placement", "threads"),
    ("dispatch", "solve"),
    ("dispatch", "live"),
    ("live", "atomic_file"),
    ("live", "device"),
    ("live", "stats"),
    ("dispatch", "atomic_file"),
}
# A module that may name only some items of another: stats never sees a slot, only the limit of all counts.
ONLY = {("stats", "placement"): {"MAX_COUNT"}}

# Where only the folders inside must not name each other in a circle: the arguments of a launch hold those of each rule, and each
# rule fills in its own.
FOLDERS_ONLY = {("dispatch",)}

PATH = re.compile(r"\b(crate|super|self|eplb)((?:::(?:super|[A-Za-z_][A-Za-z0-9_]*))*)(::\{|::\*)?")
WORD = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def without_tests(text):
    """The lines of a file without the items that are marked #[cfg(test)]. Relies on rustfmt's indentation."""
    kept, lines = [], iter(text.splitlines())
    for line in lines:
        if line.strip() != "#[cfg(test)]":
            kept.append(line)
            continue
        end = line[: len(line) - len(line.lstrip())] + "}"
        for line in lines:
            if line == end or line.endswith(";") and not line.startswith(end[:-1] + " "):
                break
    return kept


def tree(text, at):
    """The paths of a use tree that begins behind its brace at `at`, each a list of names."""
    paths, path, stack = [], [], []
    while True:
        if text[at] == "}":
            paths += [path] if path else []
            if not stack:
                return paths
            path = []
            stack.pop()
        elif text[at] == "{":
            stack.append(path)
            path = list(path)
        elif text[at] == ",":
            paths += [path] if path else []
            path = list(stack[-1]) if stack else []
        elif match := WORD.match(text, at):
            if match.group() == "as":
                match = WORD.match(text, match.end() + 1)
            else:
                path = path + [match.group()]
            at = match.end() - 1
        at += 1


class Module:
    def __init__(self, root, path):
        self.path = path
        parts = list(path.relative_to(root).with_suffix("").parts)
        self.is_folder = parts[-1] in ("mod", "lib", "main")
        self.name = tuple(parts[:-1] if self.is_folder else parts)
        self.lines = without_tests(path.read_text())
        self.text = "\n".join(self.lines)

    def absolute(self, base):
        """The paths that the file names, from the root of the modules."""
        for match in PATH.finditer(self.text):
            start, names = match.group(1), match.group(2).split("::")[1:]
            if start == "eplb":
                continue
            at = list(base) if start == "crate" else list(self.name)
            if start == "super":
                names = ["super"] + names
            while names[:1] == ["super"]:
                at, names = at[:-1], names[1:]
            if match.group(3) == "::{":
                for path in tree(self.text, match.end()):
                    yield at + names + path
            else:
                yield at + names


def load(root):
    """The modules of a folder by name, and the child that each name comes from which a module imports or exports from it."""
    modules = [Module(root, path) for path in sorted(root.rglob("*.rs"))]
    modules = {module.name: module for module in modules}
    exports = {}
    for name, module in modules.items():
        for match in re.finditer(r"\b(?:pub(?:\(.*?\))? )?use (?:self::)?(\w+)::(?:(\{)|(\w+))", module.text):
            child = name + (match.group(1),)
            if child in modules:
                items = tree(module.text, match.end()) if match.group(2) else [[match.group(3)]]
                exports.update({name + (item[-1],): child for item in items})
    return modules, exports


def resolve(path, modules, exports):
    """The module that holds what `path` names."""
    path = tuple(path)
    for length in range(1, len(path) + 1):
        if path[:length] not in modules:
            owner = exports.get(path[:length])
            return resolve(owner + path[length - 1 :], modules, exports) if owner else path[: length - 1]
    return path


def circle(edges):
    """A list of names each of which names the next, the last being the first again; None where there is none."""
    done, way = set(), []

    def visit(name):
        if name in way:
            return way[way.index(name) :] + [name]
        if name in done:
            return None
        way.append(name)
        for other in sorted(edges.get(name, ())):
            if found := visit(other):
                return found
        done.add(way.pop())
        return None

    return next(filter(None, map(visit, sorted(edges))), None)


def check_modules(root, base, failures):
    """Adds what is wrong between the modules of `root`; returns the names that each of its top-level modules uses."""
    modules, exports = load(root)
    siblings, used = {}, {}
    for name, module in modules.items():
        for path in module.absolute(base):
            other = resolve(path, modules, exports)
            if name and name[0] != "bin":
                used.setdefault(name[0], set()).add((module.path, tuple(path[:2])))
            # The place where the two part: an arrow between children of one folder.
            shared = 0
            while shared < min(len(name), len(other)) and name[shared] == other[shared]:
                shared += 1
            if shared < min(len(name), len(other)):
                folder = siblings.setdefault(name[:shared], {})
                folder.setdefault(name[shared], set()).add(other[shared])
    for folder, edges in sorted(siblings.items()):
        if folder in FOLDERS_ONLY:
            is_folder = {name for name in edges if modules[folder + (name,)].is_folder}
            edges = {name: others & is_folder for name, others in edges.items() if name in is_folder}
        if found := circle(edges):
            where = root.joinpath(*folder)
            failures.append(f"{where}: a circle of modules: {' -> '.join(found)}")
    return modules, used


def check_order(modules, used, failures):
    level = {name: index for index, line in enumerate(ORDER) for name in line}
    for name in sorted({name[0] for name in modules if name} - level.keys()):
        failures.append(f"src/{name}: scripts/check_house.py does not know where this module stands")
    for name, paths in sorted(used.items()):
        for file, path in sorted(paths):
            # Types of the crate's root are those of error.
            other = path[0] if path and (path[0],) in modules else "error"
            item = path[1] if len(path) > 1 else None
            if other == name or name not in level or other not in level:
                continue
            if level[other] >= level[name] or (name, other) in NEVER:
                failures.append(f"{file}: {name} must not name {other}: {'::'.join(('crate',) + path)}")
            elif item not in ONLY.get((name, other), {item}):
                failures.append(f"{file}: {name} may not use {other}::{item}")


def main():
    root = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else pathlib.Path(__file__).parent.parent)
    failures = []
    modules, used = check_modules(root / "src", (), failures)
    check_order(modules, used, failures)
    # The program is a crate of its own.
    check_modules(root / "src/bin/eplb", (), failures)
    lengths = {module.path: len(module.lines) for module in modules.values()}
    for path in sorted((root / "kernels").glob("*.cu*")):
        lengths[path] = len(path.read_text().splitlines())
    for path, length in lengths.items():
        if length > LONGEST:
            failures.append(f"{path}: {length} lines, at most {LONGEST} allowed")
    for failure in failures:
        print(failure.replace(f"{root}/", ""), file=sys.stderr)
    if failures:
        sys.exit(1)
    print(f"{len(lengths)} files: the modules' arrows go one way, and none has more than {LONGEST} lines")


main()
