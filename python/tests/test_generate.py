"""eplb.generate(), its progress, and its cancellation."""

import os
import pathlib
import signal
import tempfile
import unittest

import eplb
import recordings


class Stop(Exception):
    """What a progress function raises."""


class Generate(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.path = pathlib.Path(folder.name) / "config.yaml"

    def generate(self, **options):
        return eplb.generate(recordings.TRANSLATION, self.path, num_ranks=8, num_slots=72, **options)

    def test_the_file_is_that_of_the_original_script(self):
        report = self.generate(policy="trtllm")
        expected = recordings.DATA / "expected/dsv2lite-translation.ep8.slots72.yaml"
        self.assertEqual(self.path.read_bytes(), expected.read_bytes())
        self.assertEqual((report.num_ranks, report.num_slots, report.num_experts, report.num_layers), (8, 72, 64, 26))
        self.assertLess(report.imbalance_after, report.imbalance_before)
        self.assertEqual(report.hash, eplb.Placement.load(self.path, num_ranks=8).hash)

    def test_it_plans_as_solve_does(self):
        report = self.generate()
        self.assertEqual(report.hash, eplb.solve(eplb.Stats.load(recordings.TRANSLATION), 8, 72).hash)

    def test_several_dumps_have_weights(self):
        dumps = [recordings.TRANSLATION, str(recordings.DATA / "dumps/dsv2lite-law")]
        reports = [
            eplb.generate(dumps, self.path, num_ranks=8, num_slots=72, path_weights=weights)
            for weights in (None, [1, 1], [1, 100])
        ]
        self.assertEqual(reports[0].hash, reports[1].hash)
        self.assertNotEqual(reports[0].hash, reports[2].hash)

    def test_progress_goes_through_the_phases(self):
        seen = []
        self.generate(progress=lambda phase, done, total: seen.append((phase, done, total)))
        phases = [phase for phase, _, _ in seen]
        self.assertEqual(phases, sorted(phases))
        self.assertEqual(set(phases), set(eplb.Phase))
        for phase, done, total in seen:
            self.assertIsInstance(phase, eplb.Phase)
            self.assertLessEqual(done, total)
        self.assertIn((eplb.Phase.SOLVE, 26, 26), seen)

    def test_a_progress_function_that_raises_cancels(self):
        self.path.write_text("as before")
        for phase in eplb.Phase:
            raised = Stop(phase)

            def progress(current, done, total):
                if current == phase:
                    raise raised

            with self.assertRaises(Stop) as caught:
                self.generate(progress=progress)
            self.assertIs(caught.exception, raised)
            # The last phase is reported when it is done, too.
            self.assertEqual(self.path.read_text(), "as before")
        with self.assertRaises(SystemExit):
            self.generate(progress=lambda *_: exit(3))
        self.assertEqual(os.listdir(self.path.parent), ["config.yaml"])

    def test_a_signal_cancels_without_a_progress_function(self):
        def handler(*_):
            raise Stop

        before = signal.signal(signal.SIGALRM, handler)
        try:
            with self.assertRaises(Stop):
                signal.setitimer(signal.ITIMER_REAL, 0.05)
                # Takes seconds. A layer is planned between two calls of the progress function.
                self.generate(objective="best_split", effort=2000, num_threads=1)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)
        self.assertFalse(self.path.exists())

    def test_failures_have_their_status(self):
        with self.assertRaises(eplb.EplbError) as caught:
            eplb.generate("/nonexistent", self.path)
        self.assertEqual(caught.exception.status, eplb.Status.READ_FAILED)
        with self.assertRaises(eplb.EplbError) as caught:
            eplb.generate(recordings.TRANSLATION, "/nonexistent/config.yaml", num_ranks=8, num_slots=72)
        self.assertEqual(caught.exception.status, eplb.Status.WRITE_FAILED)
        for options, words in (
            ({"sample_weights": [1]}, "needs num_samples"),
            ({"rank_to_node": [0] * 8, "num_ranks": 0}, "need num_ranks"),
            ({"path_weights": [1, 2]}, "there are 1 dumps"),
            ({"pinned_experts": [1, 2]}, "2 slots in a row"),
        ):
            with self.assertRaises(eplb.EplbError) as caught:
                eplb.generate(recordings.TRANSLATION, self.path, **{"num_ranks": 8, "num_slots": 72, **options})
            self.assertIn(words, str(caught.exception))


if __name__ == "__main__":
    unittest.main()
