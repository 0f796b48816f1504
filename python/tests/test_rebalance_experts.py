"""The drop-in for DeepSeek's function, against an implementation of its own."""

import unittest

import deepseek
import eplb
import numpy
import recordings


def hottest(phy2log, loads, num_ranks):
    """Max / mean of the ranks' loads, the mean over layers; replicas share evenly."""
    ratios = []
    for experts, row in zip(phy2log, loads):
        shares = (row / numpy.maximum(1, numpy.bincount(experts, minlength=len(row))))[experts]
        ranks = shares.reshape(num_ranks, -1).sum(axis=1)
        ratios += [ranks.max() / ranks.mean()] if ranks.any() else []
    return numpy.mean(ratios)


def shapes(num_experts):
    """(slots, groups, nodes, ranks): one node, groups that split over nodes and that do not, and no spare slot."""
    spare = num_experts // 8
    return [
        (num_experts + spare, 1, 1, spare),
        (num_experts + spare, 8, 4, spare),
        (num_experts + spare, 8, 3, spare),
        (num_experts, 4, 2, 8),
    ]


class RebalanceExperts(unittest.TestCase):
    def assert_equal(self, weight, *shape):
        for ours, theirs in zip(eplb.rebalance_experts(weight, *shape), deepseek.rebalance_experts(weight, *shape)):
            self.assertEqual(ours.dtype, numpy.int64)
            numpy.testing.assert_array_equal(ours, theirs)

    def test_deepseek_equals_an_independent_implementation_on_every_recorded_load(self):
        for dump in recordings.dumps():
            loads = recordings.total(dump)
            for shape in shapes(loads.shape[1]):
                with self.subTest(dump=dump.name, shape=shape):
                    self.assert_equal(loads, *shape)

    def test_deepseek_equals_it_on_ties_and_fractions(self):
        random = numpy.random.default_rng(7)
        for loads in (
            numpy.zeros((2, 64)),
            numpy.ones((2, 64), numpy.int32),
            random.integers(0, 4, (5, 64)),
            random.random((5, 64)),
            recordings.zipf(3, 64).astype(numpy.float32),
        ):
            for shape in shapes(64):
                with self.subTest(dtype=loads.dtype, shape=shape):
                    self.assert_equal(loads, *shape)

    def test_search_is_more_balanced_and_consistent(self):
        loads = recordings.zipf(6)
        planned = {policy: eplb.rebalance_experts(loads, 288, 1, 1, 32, policy) for policy in ("deepseek", "search")}
        self.assertLess(hottest(planned["search"][0], loads, 32), hottest(planned["deepseek"][0], loads, 32))
        phy2log, log2phy, logcnt = planned["search"]
        for layer in range(len(loads)):
            numpy.testing.assert_array_equal(logcnt[layer], numpy.bincount(phy2log[layer], minlength=256))
            for expert in range(256):
                slots = numpy.flatnonzero(phy2log[layer] == expert)
                numpy.testing.assert_array_equal(log2phy[layer, expert, : len(slots)], slots)
                self.assertTrue((log2phy[layer, expert, len(slots) :] == -1).all())

    def test_search_keeps_groups_on_nodes_as_deepseek_does(self):
        loads = recordings.zipf(3, 64)
        phy2log = eplb.rebalance_experts(loads, 80, 8, 4, 16, "search")[0]
        for layer in phy2log:
            nodes_of_group = [set() for _ in range(8)]
            for slot, expert in enumerate(layer):
                nodes_of_group[expert // 8].add(slot // 20)
            self.assertEqual([len(nodes) for nodes in nodes_of_group], [1] * 8)

    def test_number_of_threads_and_fortran_order_change_nothing(self):
        loads = recordings.zipf(9, 64)
        for policy in ("deepseek", "search"):
            one = eplb.rebalance_experts(loads, 72, 1, 1, 8, policy, num_threads=1)
            two = eplb.rebalance_experts(numpy.asfortranarray(loads), 72, 1, 1, 8, policy, num_threads=2)
            for first, second in zip(one, two):
                numpy.testing.assert_array_equal(first, second)

    def test_results_are_new_arrays_of_each_call(self):
        first = eplb.rebalance_experts(recordings.zipf(2, 64), 72, 1, 1, 8)
        kept = [array.copy() for array in first]
        eplb.rebalance_experts(recordings.zipf(2, 64, seed=1), 72, 1, 1, 8)
        for array, copy in zip(first, kept):
            numpy.testing.assert_array_equal(array, copy)


if __name__ == "__main__":
    unittest.main()
