"""Nothing leaks: memory stays flat over 10,000 repetitions."""

import os
import pathlib
import tempfile
import unittest

import eplb
import numpy
import recordings

REPETITIONS = int(os.environ.get("EPLB_TEST_REPETITIONS", "10000"))
PAGE = os.sysconf("SC_PAGE_SIZE")


def resident_bytes():
    return int(pathlib.Path("/proc/self/statm").read_text().split()[1]) * PAGE


class Memory(unittest.TestCase):
    def assert_flat(self, call):
        for _ in range(REPETITIONS // 10):
            call()
        before = resident_bytes()
        for _ in range(REPETITIONS):
            call()
        if "valgrind" in os.environ.get("LD_PRELOAD", ""):
            return  # which keeps freed memory
        # 100 bytes a call are 1 MB.
        self.assertLess(resident_bytes() - before, max(100 * REPETITIONS, 1 << 20))

    def test_drop_in(self):
        loads = recordings.zipf(2, 32)
        self.assert_flat(lambda: eplb.rebalance_experts(loads, 40, 1, 1, 8))

    def test_objects_and_views(self):
        loads = recordings.zipf(1, 16)
        ids = numpy.zeros((4, 2), numpy.int32)

        def call():
            placement = eplb.solve(loads, 4, 20, policy="trtllm")
            views = placement.layer_experts(0), placement.layer_ids
            dispatch = eplb.Dispatch(placement, 0, experts_per_token=2)
            rebalancer = eplb.Rebalancer(placement, experts_per_token=2)
            rebalancer.observe(loads, 100)
            eplb.plan(placement, rebalancer.placement()).destroy()
            rebalancer.plan()
            dispatch.route(0, ids, num_valid=3)
            eplb.evaluate(placement, loads)
            eplb.Stats.create(loads).loads()
            return views

        self.assert_flat(call)

    def test_failures(self):
        loads = recordings.zipf(1, 16)
        placement = eplb.solve(loads, 4, 20)
        dispatch = eplb.Dispatch(placement, 0, experts_per_token=2)
        dead = eplb.solve(loads, 4, 20)
        dead.destroy()
        calls = (
            lambda: eplb.rebalance_experts(loads.astype(complex), 20, 1, 1, 4),
            lambda: eplb.rebalance_experts(loads, 21, 1, 1, 4),
            lambda: eplb.solve(-loads, 4, 20),
            lambda: dispatch.route(0, numpy.zeros((4, 2), numpy.float32)),
            lambda: dispatch.route(1, numpy.zeros((4, 2), numpy.int32)),
            lambda: dead.layer_experts(0),
        )

        def call():
            for refused in calls:
                with self.assertRaises(eplb.EplbError):
                    refused()

        self.assert_flat(call)

    def test_a_callback_that_raises(self):
        def progress(*_):
            raise ValueError

        with tempfile.TemporaryDirectory() as folder:
            stats = eplb.Stats.create(recordings.zipf(1, 16), experts_per_token=2)
            stats.save_file(pathlib.Path(folder) / "dump", "dump")

            def call():
                with self.assertRaises(ValueError):
                    eplb.generate(f"{folder}/dump", f"{folder}/config.yaml", num_ranks=4, progress=progress)

            self.assert_flat(call)


if __name__ == "__main__":
    unittest.main()
