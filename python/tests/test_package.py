"""The package itself: constants and documentation, the program, the files of a C++ build."""

import enum
import importlib.metadata
import inspect
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import unittest

import eplb
import numpy
import recordings

ENUMS = {
    eplb.Status: "STATUS",
    eplb.Policy: "POLICY",
    eplb.Objective: "OBJECTIVE",
    eplb.Rule: "RULE",
    eplb.IdKind: "ID_KIND",
    eplb.Phase: "PHASE",
    eplb.FileFormat: "FILE_FORMAT",
    eplb.MissingLayers: "MISSING_LAYERS",
    eplb.IssueKind: "ISSUE_KIND",
    eplb.Buffering: "BUFFERING",
    eplb.Decision: "DECISION",
    eplb.KeepReason: "KEEP_REASON",
    eplb.TransferKind: "TRANSFER_KIND",
}
HEADERS = "".join(
    (recordings.ROOT / "include" / name).read_text() for name in ("eplb.h", "eplb_tools.h", "eplb_live.h")
)
MODULES = (eplb, eplb.vllm, eplb.sglang, eplb.vllm_ascend)
# Arguments and fields that hold an array, by the words of their type.
ARRAY = re.compile(r"Array|Loads|expert_ids|slot_ids|rank_counts")


def public():
    """Every public class, function, method and property, by its full name."""
    for module in MODULES:
        for name in module.__all__:
            item = getattr(module, name)
            if inspect.isclass(item) or inspect.isfunction(item):
                yield f"{module.__name__}.{name}", item
            for member, value in vars(item).items() if inspect.isclass(item) else ():
                value = getattr(value, "__func__", value)
                if not member.startswith("_") and (inspect.isfunction(value) or isinstance(value, property)):
                    yield f"{module.__name__}.{name}.{member}", value


def entries(text, heading):
    """The names of a part of a docstring, and what it says of each."""
    part = re.search(rf"^{heading}:\n(.*?)(?=^\S|\Z)", text, re.MULTILINE | re.DOTALL)
    found = re.findall(r"^    (\w+): (.*(?:\n {8}.*)*)", part.group(1) if part else "", re.MULTILINE)
    return {name: re.sub(r"\s+", " ", said) for name, said in found}


class Documentation(unittest.TestCase):
    def test_constants_are_those_of_the_headers(self):
        self.assertEqual(
            {item for _, item in public() if inspect.isclass(item) and issubclass(item, enum.Enum)}, set(ENUMS)
        )
        for kind, prefix in ENUMS.items():
            found = re.findall(rf"^  EPLB_{prefix}_(\w+) = (\d+),", HEADERS, re.MULTILINE)
            self.assertTrue(found, prefix)
            self.assertEqual(
                {member.name: int(member) for member in kind}, {name: int(number) for name, number in found}
            )
        self.assertEqual((eplb.DEVICE_HOST, eplb.DEVICE_CURRENT), (-1, -2))
        for name in ("HOST", "CURRENT"):
            self.assertIn(f"#define EPLB_DEVICE_{name} ({getattr(eplb, f'DEVICE_{name}')})", HEADERS)

    def test_every_public_name_says_what_it_is(self):
        checked = 0
        for name, item in public():
            text = inspect.getdoc(item)
            self.assertTrue(text and text[0].isupper() and "." in text, f"{name} has no docstring")
            self.assertNotIn("_fields", text)
            checked += 1
        self.assertGreater(checked, 100)

    def test_every_argument_is_documented_and_arrays_have_a_shape(self):
        for name, item in public():
            text = inspect.getdoc(item)
            function = item.__init__ if inspect.isclass(item) and "Args:" in text else item
            if not inspect.isfunction(function):
                continue
            said = entries(text, "Args")
            parameters = {
                key: parameter
                for key, parameter in inspect.signature(function).parameters.items()
                if key not in ("self", "cls")
            }
            self.assertEqual(list(said), list(parameters), name)
            for key, parameter in parameters.items():
                if ARRAY.search(f"{key} {parameter.annotation}"):
                    self.assertRegex(said[key], r"\[.*\]", f"{name}: {key} has no shape")

    def test_every_field_is_documented(self):
        for name, item in public():
            fields = getattr(item, "_fields", None)
            if fields:
                said = entries(inspect.getdoc(item), "Attributes")
                self.assertEqual(list(said), list(fields), name)

    def test_arrays_that_are_returned_have_a_shape(self):
        for name, item in public():
            function = item.fget if isinstance(item, property) else item
            if inspect.isfunction(function) and function.__annotations__.get("return") == "Array":
                self.assertRegex(inspect.getdoc(item), r"(int32|float64) \[", name)


class Examples(unittest.TestCase):
    def run_blocks(self, path, heading=""):
        """Runs the Python of a document in a folder with a dump, one block after the other, and returns the names."""
        text = (recordings.ROOT / path).read_text(encoding="utf-8")
        text = text[text.index(heading) :]
        blocks = re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
        self.assertTrue(blocks)
        with tempfile.TemporaryDirectory() as folder:
            shutil.copytree(recordings.TRANSLATION, pathlib.Path(folder) / "expert_statistic")
            code = "\n".join(blocks)
            run = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True)
            self.assertEqual(run.returncode, 0, f"{path}:\n{run.stderr}")
            return run.stdout, set(path.name for path in pathlib.Path(folder).iterdir())

    def test_the_example_of_the_readme_runs(self):
        printed, files = self.run_blocks("README.md", "## In Python")
        self.assertIn("moe_load_balancer.yaml", files)
        self.assertRegex(printed, r"imbalance ratio 0\.\d+, was 0\.\d+")

    def test_the_examples_of_the_documentation_run(self):
        self.run_blocks("docs/python.md")


class Distribution(unittest.TestCase):
    def test_importing_it_imports_numpy_and_no_framework(self):
        code = "import sys, eplb; print([name for name in ('torch', 'vllm', 'sglang', 'cupy') if name in sys.modules])"
        run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        self.assertEqual(run.stdout, "[]\n", run.stderr)

    def test_metadata_licences_and_bill_of_materials(self):
        distribution = importlib.metadata.distribution("eplb")
        self.assertEqual(distribution.version, eplb.__version__)
        requires = sorted(re.match(r"\w+", requirement).group() for requirement in distribution.requires)
        self.assertEqual(requires, ["cffi", "numpy"])
        names = {str(path).split("dist-info/")[-1] for path in distribution.files}
        for name in ("licenses/LICENSE", "licenses/NOTICE", "licenses/THIRD-PARTY", "sboms/eplb.cdx.json"):
            self.assertIn(name, names)
        self.assertIn("eplb/py.typed", names)

    def program(self, *args):
        return subprocess.run([sys.executable, "-m", "eplb", *args], capture_output=True, text=True)

    def test_the_program_runs_with_its_exit_codes(self):
        self.assertEqual(self.program("--version").stdout, f"eplb {eplb.__version__}\n")
        self.assertEqual(self.program("inspect", str(recordings.TRANSLATION)).returncode, 0)
        self.assertEqual(self.program("inspect", "/nonexistent").returncode, 3)
        self.assertEqual(self.program("inspekt").returncode, 2)

    @unittest.skipUnless(shutil.which("cmake") and shutil.which("cc"), "there is no CMake or C compiler")
    def test_a_cmake_project_finds_the_library_and_its_program_starts(self):
        folder = self.program("--cmake-dir").stdout.strip()
        with tempfile.TemporaryDirectory() as build:
            for command in (
                ["cmake", "-S", recordings.ROOT / "examples/minimal_c", "-B", build, f"-Deplb_DIR={folder}"],
                ["cmake", "--build", build],
                [f"{build}/minimal_c", recordings.TRANSLATION, "8", "72", f"{build}/config.yaml"],
            ):
                run = subprocess.run(command, capture_output=True, text=True)
                self.assertEqual(run.returncode, 0, run.stdout + run.stderr)
            expected = recordings.DATA / "expected/dsv2lite-translation.ep8.slots72.yaml"
            self.assertEqual(pathlib.Path(build, "config.yaml").read_bytes(), expected.read_bytes())


class Adapters(unittest.TestCase):
    """The adapters by themselves; peers/ has them with the packages they are for."""

    def test_the_policy_of_vllm_keeps_slots(self):
        loads = recordings.zipf(4, 32)
        fresh = eplb.vllm.EplbPolicy.rebalance_experts(loads, 40, 1, 1, 8)
        self.assertEqual((fresh.dtype, fresh.shape), (numpy.int64, (4, 40)))
        old = numpy.roll(fresh.reshape(4, 8, 5), 1, axis=2).reshape(4, 40)
        numpy.testing.assert_array_equal(eplb.vllm.EplbPolicy.rebalance_experts(loads, 40, 1, 1, 8, old), old)
        drifted = eplb.vllm.EplbPolicy.rebalance_experts(recordings.zipf(4, 32, seed=1), 40, 1, 1, 8)
        kept = eplb.vllm.EplbPolicy.rebalance_experts(recordings.zipf(4, 32, seed=1), 40, 1, 1, 8, old)
        numpy.testing.assert_array_equal(
            numpy.sort(kept.reshape(4, 8, 5), axis=2), numpy.sort(drifted.reshape(4, 8, 5), axis=2)
        )
        stays = [
            (rank_old == rank_new).sum() == len(set(rank_old) & set(rank_new))
            for rank_old, rank_new in zip(old.reshape(-1, 5), kept.reshape(-1, 5))
        ]
        self.assertTrue(all(stays))

    def test_the_policy_of_vllm_plans_without_an_old_map_that_fits(self):
        loads = recordings.zipf(1, 32)
        fresh = eplb.vllm.EplbPolicy.rebalance_experts(loads, 40, 1, 1, 8)
        for old in (numpy.zeros((1, 32), int), numpy.zeros((1, 40), int), numpy.full((1, 40), -1)):
            numpy.testing.assert_array_equal(eplb.vllm.EplbPolicy.rebalance_experts(loads, 40, 1, 1, 8, old), fresh)

    def test_files_in_one_call(self):
        with tempfile.TemporaryDirectory() as folder:
            location, experts = f"{folder}/location.json", f"{folder}/map.json"
            placement = eplb.sglang.save_expert_location(
                recordings.TRANSLATION, location, 8, 72, num_model_layers=27, num_threads=1
            )
            layers = placement.layer_ids
            again = eplb.Placement.load_file(location, num_ranks=8, layer_ids=layers)
            self.assertEqual(again.hash, placement.hash)
            stats = eplb.Stats.load(recordings.TRANSLATION)
            placement = eplb.vllm_ascend.save_expert_map(stats, experts, 8, 72)
            self.assertEqual(eplb.Placement.load_file(experts, layer_ids=layers).hash, placement.hash)


if __name__ == "__main__":
    unittest.main()
