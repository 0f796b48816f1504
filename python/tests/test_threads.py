"""Threads, processes, and the GIL."""

import multiprocessing
import subprocess
import sys
import threading
import time
import unittest

import eplb
import numpy
import recordings


def in_threads(num_threads, call):
    """Runs call(index) on threads, and returns what they raised."""
    raised = []

    def run(index):
        try:
            call(index)
        except BaseException as error:
            raised.append(error)

    threads = [threading.Thread(target=run, args=(index,)) for index in range(num_threads)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return raised


class Threads(unittest.TestCase):
    def test_const_calls_of_one_object_run_at_once(self):
        loads = recordings.zipf(4, 32)
        placement = eplb.solve(loads, 8, 40)
        dispatch = eplb.Dispatch(placement, 0, experts_per_token=4)
        ids = numpy.random.default_rng(0).integers(0, 32, (64, 4)).astype(numpy.int32)
        expected = dispatch.route(0, ids)

        def call(index):
            for _ in range(50):
                numpy.testing.assert_array_equal(dispatch.route(0, ids), expected)
                self.assertEqual(eplb.solve(loads, 8, 40, num_threads=1 + index % 2).hash, placement.hash)

        self.assertEqual(in_threads(4, call), [])

    def test_each_thread_has_its_own_error(self):
        def call(index):
            for _ in range(500):
                with self.assertRaises(eplb.EplbError) as caught:
                    eplb.solve(numpy.ones((1, 8)), 2, 100 + 2 * index + 1)
                self.assertIn(str(100 + 2 * index + 1), str(caught.exception))

        self.assertEqual(in_threads(4, call), [])

    def test_calls_that_change_a_rebalancer_take_turns(self):
        placement = eplb.Placement.create(numpy.arange(40)[None] % 32, 8)
        rebalancer = eplb.Rebalancer(placement, experts_per_token=4)
        counts = recordings.zipf(1, 32)

        def call(_):
            for _ in range(100):
                rebalancer.observe(counts, 1000)
                rebalancer.plan()
                rebalancer.abort()
                rebalancer.info

        self.assertEqual(in_threads(4, call), [])
        self.assertEqual(rebalancer.info.num_observations, 400)

    def test_long_calls_release_the_gil(self):
        loads = recordings.zipf(58)
        done, ticks = threading.Event(), 0

        def call():
            eplb.solve(loads, 72, 288, policy="search", objective="best_split", num_threads=1, effort=20)
            done.set()

        interval = sys.getswitchinterval()
        sys.setswitchinterval(100)  # a call that kept the GIL would keep it for all of its time
        try:
            thread = threading.Thread(target=call)
            start = time.monotonic()
            thread.start()
            while not done.wait(0.001):
                ticks += 1
            took = time.monotonic() - start
            thread.join()
        finally:
            sys.setswitchinterval(interval)
        self.assertGreater(ticks, 5, f"{took} s")


def plan_in_child(placement, loads, expected, queue):
    inherited = placement.hash
    planned = eplb.solve(loads, 8, 40).hash
    placement.destroy()
    queue.put((inherited, planned) == (expected, expected))


class Processes(unittest.TestCase):
    def test_a_forked_child_uses_and_releases_what_it_inherits(self):
        loads = recordings.zipf(4, 32)
        placement = eplb.solve(loads, 8, 40)
        context = multiprocessing.get_context("fork")
        queue = context.SimpleQueue()
        for _ in range(3):
            child = context.Process(target=plan_in_child, args=(placement, loads, placement.hash, queue))
            child.start()
            child.join(60)
            self.assertEqual(child.exitcode, 0)
            self.assertTrue(queue.get())
        self.assertEqual(eplb.solve(loads, 8, 40).hash, placement.hash)

    def test_a_process_ends_with_live_objects_and_threads(self):
        code = """
import eplb, threading
loads = [[8, 4, 2, 1]]
kept = eplb.solve(loads, 2), eplb.Stats.create(loads)
views = kept[0].layer_experts(0)
threading.Thread(target=lambda: [eplb.solve(loads, 2) for _ in range(1000)], daemon=True).start()
"""
        run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
        self.assertEqual((run.returncode, run.stderr), (0, ""))


if __name__ == "__main__":
    unittest.main()
