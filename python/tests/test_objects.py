"""Statistics, solving, placements, files, evaluation and reports."""

import os
import pathlib
import tempfile
import unittest
import xml.etree.ElementTree

import eplb
import numpy
import recordings

EXPECTED = recordings.DATA / "expected"


class Statistics(unittest.TestCase):
    def test_a_dump_has_its_numbers(self):
        stats = eplb.Stats.load(recordings.TRANSLATION)
        self.assertEqual((stats.num_layers, stats.num_experts, stats.experts_per_token), (26, 64, 6))
        self.assertEqual(stats.layer_ids.tolist(), list(range(1, 27)))
        self.assertEqual(stats.num_rows, stats.iter_stop - stats.iter_start)
        self.assertEqual(stats.loads(1).shape, (26, 1, 64))
        # Each token of each layer chooses 6 experts, so all layers have as many ids.
        sums = stats.loads(1).sum(axis=2)
        self.assertEqual(len(numpy.unique(sums)), 1)
        numpy.testing.assert_array_equal(stats.loads(stats.num_rows).sum(axis=1), stats.loads(1)[:, 0])

    def test_arrays_come_back_as_loads(self):
        counts = numpy.random.default_rng(0).integers(0, 100, (5, 3, 8))
        for dtype in (numpy.int64, numpy.int32, numpy.uint8):
            stats = eplb.Stats.create(counts.astype(dtype), layer_ids=[3, 5, 9], iter_start=100)
            self.assertEqual((stats.iter_start, stats.iter_stop, stats.num_rows), (100, 105, 5))
            numpy.testing.assert_array_equal(stats.layer_loads(5, 5), counts[:, 1])
            numpy.testing.assert_array_equal(stats.loads(1)[:, 0], counts.sum(axis=0))

    def test_every_format_of_counts_comes_back(self):
        stats = eplb.Stats.load(recordings.TRANSLATION)
        with tempfile.TemporaryDirectory() as name:
            folder = pathlib.Path(name)
            for file_format, path in (
                ("npy", "counts.npy"),
                ("sglang_count", "c.json"),
                ("lmdeploy", "l.json"),
                ("dump", "d"),
            ):
                stats.save_file(folder / path, file_format)
                layers = {"npy": {"layer_ids": stats.layer_ids}}.get(file_format, {})
                again = eplb.Stats.load_file(folder / path, file_format, **layers)
                numpy.testing.assert_array_equal(again.layer_ids, stats.layer_ids)
                numpy.testing.assert_array_equal(again.loads(1), stats.loads(1))
            numpy.testing.assert_array_equal(numpy.load(folder / "counts.npy").sum(axis=0), stats.loads(1)[:, 0])


class Placements(unittest.TestCase):
    def test_trtllm_writes_the_file_of_the_original_script(self):
        stats = eplb.Stats.load(recordings.TRANSLATION)
        placement = eplb.solve(stats, 8, 72, policy="trtllm")
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, "config.yaml")
            placement.save(path)
            expected = (EXPECTED / "dsv2lite-translation.ep8.slots72.yaml").read_bytes()
            self.assertEqual(pathlib.Path(path).read_bytes(), expected)
            again = eplb.Placement.load(path, num_ranks=8)
        self.assertEqual(again.hash, placement.hash)
        numpy.testing.assert_array_equal(again.slot_experts, placement.slot_experts)
        self.assertEqual(len(placement.validate()), placement.num_duplicates)
        issue = placement.validate()[0]
        experts = placement.layer_experts(issue.layer)
        self.assertEqual((experts[issue.slot], experts[issue.other_slot]), (issue.expert, issue.expert))

    def test_arrays_come_back(self):
        experts = numpy.array([[0, 1, 2, 3, 0, 2], [3, 2, 1, 0, 3, 1]])
        placement = eplb.Placement.create(experts, 2, layer_ids=[7, 8])
        self.assertEqual((placement.num_experts, placement.num_slots, placement.slots_per_rank), (4, 6, 3))
        numpy.testing.assert_array_equal(placement.slot_experts, experts)
        numpy.testing.assert_array_equal(placement.rank_experts(8, 1), [0, 3, 1])
        numpy.testing.assert_array_equal(placement.distinct_experts(7, 1), [0, 2, 3])
        self.assertEqual(placement.max_replicas, 2)

    def test_every_format_of_placements_comes_back(self):
        placement = eplb.solve(eplb.Stats.load(recordings.TRANSLATION), 8, 72)
        with tempfile.TemporaryDirectory() as name:
            for file_format, path, known in (
                ("config", "config.yaml", {"num_ranks": 8}),
                ("config", "own.eplb.yaml", {}),
                ("sglang_map", "map.json", {"num_ranks": 8, "layer_ids": placement.layer_ids}),
                ("expert_map", "experts.json", {"layer_ids": placement.layer_ids}),
                ("phy2log_npy", "phy2log.npy", {"num_ranks": 8, "layer_ids": placement.layer_ids}),
                ("phy2log_json", "phy2log.json", {"num_ranks": 8, "layer_ids": placement.layer_ids}),
            ):
                file = pathlib.Path(name) / path
                placement.save_file(file, file_format)
                self.assertEqual(eplb.Placement.load_file(file, file_format, **known).hash, placement.hash, path)
            numpy.testing.assert_array_equal(numpy.load(pathlib.Path(name) / "phy2log.npy"), placement.slot_experts)

    def test_options_reach_the_search(self):
        loads = recordings.zipf(2, 16)
        pinned = numpy.full(20, -1)
        pinned[7] = 3
        placement = eplb.solve(loads, 4, 20, policy="search", pinned_experts=pinned)
        self.assertEqual(placement.slot_experts[:, 7].tolist(), [3, 3])
        uneven = eplb.solve(loads, 4, rank_num_slots=[4, 4, 4, 5])
        self.assertEqual([len(uneven.rank_experts(0, rank)) for rank in range(4)], [4, 4, 4, 5])
        self.assertEqual(eplb.solve(loads, 4, 20, num_nodes=2, num_groups=4, off_node_price=numpy.inf).num_ranks, 4)

    def test_suggest_num_slots(self):
        self.assertEqual(eplb.suggest_num_slots(8, 4, 10), (8, 12))


class Evaluations(unittest.TestCase):
    def test_figures_by_hand(self):
        # Ranks (0, 1) and (2, 3): loads 1 + 2 and 3 + 4; mean 5, max 7.
        placement = eplb.Placement.create([[0, 1, 2, 3]], 2, layer_ids=[5])
        found = eplb.evaluate(placement, [[1, 2, 3, 4]])[5]
        self.assertEqual((found.mean_load, found.max_load, found.worst_rank, found.max_replicas), (5, 7, 1, 1))
        self.assertAlmostEqual(found.imbalance_ratio, 0.4)
        self.assertAlmostEqual(found.balancedness, 5 / 7)
        self.assertEqual(found.lower_bound, 5)
        self.assertTrue(numpy.isnan(found.off_node_share))

    def test_counts_are_evaluated_by_row(self):
        stats = eplb.Stats.load(recordings.TRANSLATION)
        placement = eplb.solve(stats, 8, 72)
        by_row = eplb.evaluate(placement, stats)
        self.assertEqual(list(by_row), stats.layer_ids.tolist())
        self.assertEqual(by_row, eplb.evaluate(placement, stats.loads(stats.num_rows)) | by_row)
        self.assertLess(eplb.evaluate(placement, stats, num_samples=1)[1].max_load, stats.loads(1)[0].sum())


class Reports(unittest.TestCase):
    def test_a_report_has_the_figures_and_the_picture(self):
        stats = eplb.Stats.load(recordings.TRANSLATION)
        placement = eplb.solve(stats, 8, 72, policy="trtllm")
        by_file = eplb.report(recordings.TRANSLATION, EXPECTED / "dsv2lite-translation.ep8.slots72.yaml", num_ranks=8)
        by_object = eplb.report(recordings.TRANSLATION, placement)
        self.assertEqual(by_file["projected"], by_object["projected"])
        # Iterations' mean of the ratio, which the library evaluates row by row.
        found = eplb.evaluate(placement, stats)
        for layer, row in by_object["projected"].items():
            self.assertAlmostEqual(row["imbalance_ratio"], found[int(layer)].imbalance_ratio, places=12)
        picture = by_object._repr_html_()
        self.assertTrue(xml.etree.ElementTree.fromstring(picture).tag.endswith("svg"))

    def test_counts_of_arrays_and_a_second_dump(self):
        stats = eplb.Stats.load(recordings.TRANSLATION)
        placement = eplb.solve(stats, 8, 72)
        report = eplb.report(stats, placement, against=recordings.DATA / "dumps/dsv2lite-law")
        self.assertEqual(len(report["against"]["layers"]), 26)
        self.assertEqual(report["dump"]["path"], "dump")
        with self.assertRaises(eplb.EplbError) as caught:
            eplb.report(recordings.TRANSLATION, arguments=["--iter_start", "900"])
        self.assertIn("900", str(caught.exception))
        with self.assertRaises(eplb.EplbError) as caught:
            eplb.report("/nonexistent")
        self.assertEqual(caught.exception.status, eplb.Status.READ_FAILED)


if __name__ == "__main__":
    unittest.main()
