"""Plans, the rebalancer, and tables that change."""

import unittest

import eplb
import numpy
import recordings

GATES_OFF = {
    "min_tokens": -1,
    "noise": -1,
    "cooldown": -1,
    "trigger": -1,
    "release": -1,
    "min_gain": -1,
    "min_relative_gain": -1,
}


def in_order(num_layers, num_experts, num_slots):
    return numpy.tile(numpy.arange(num_slots) % num_experts, (num_layers, 1))


class Plans(unittest.TestCase):
    def test_transfers_turn_one_placement_into_the_other(self):
        loads = recordings.zipf(4, 32)
        before = eplb.Placement.create(in_order(4, 32, 40), 8)
        after = eplb.solve(loads, 8, 40)
        plan = eplb.plan(before, after)
        self.assertEqual(plan.info.decision, eplb.Decision.MOVE)
        self.assertEqual(plan.info.num_moves, sum(plan.layer_info(layer).num_moves for layer in plan.layer_ids))
        for layer in plan.layer_ids:
            slots = before.layer_experts(layer).copy()
            for transfer in plan.transfers(layer):
                self.assertEqual(before.layer_experts(layer)[transfer.src_slot], transfer.expert)
                self.assertEqual(transfer.dst_slot // 5, transfer.dst_rank)
                slots[transfer.dst_slot] = transfer.expert
            numpy.testing.assert_array_equal(slots, plan.layer_experts(layer))
            numpy.testing.assert_array_equal(
                numpy.sort(slots.reshape(8, 5)), numpy.sort(after.layer_experts(layer).reshape(8, 5))
            )
            readers = sum(plan.num_readers(layer, slot) for slot in range(40))
            self.assertEqual(readers, len(plan.transfers(layer)))

    def test_equal_placements_keep(self):
        placement = eplb.Placement.create(in_order(1, 8, 8), 2)
        info = eplb.plan(placement, placement).info
        self.assertEqual((info.decision, info.reason, info.num_layers), (eplb.Decision.KEEP, eplb.KeepReason.SAME, 0))
        self.assertEqual(info.agreement[0], info.agreement[1] ^ (2**64 - 1))

    def test_other_shapes_are_refused(self):
        placement = eplb.Placement.create(in_order(1, 8, 8), 2)
        with self.assertRaises(eplb.EplbError) as caught:
            eplb.plan(placement, eplb.Placement.create(in_order(1, 8, 10), 2))
        self.assertEqual(caught.exception.status, eplb.Status.INVALID_SHAPE)


class Rebalancers(unittest.TestCase):
    def test_observe_plan_and_commit_even_the_ranks_out(self):
        counts = recordings.zipf(3, 32)
        placement = eplb.Placement.create(in_order(3, 32, 40), 8, layer_ids=[3, 4, 5])
        rebalancer = eplb.Rebalancer(placement, experts_per_token=4, **GATES_OFF)
        dispatch = eplb.Dispatch(placement, 0, experts_per_token=4, live=True)
        rebalancer.observe(counts, num_tokens=int(counts[0].sum()) // 4)
        plan = rebalancer.plan(max_layer_moves=12)
        self.assertEqual(sorted(plan.layer_ids.tolist()), [3, 4, 5])
        in_flight = rebalancer.plan()
        self.assertEqual(in_flight.info.reason, eplb.KeepReason.IN_FLIGHT)
        for layer in plan.layer_ids.tolist():
            self.assertLessEqual(plan.layer_info(layer).num_moves, 12)
            dispatch.update_layer(plan, layer)
            rebalancer.commit_layer(plan, layer)
            self.assertEqual(dispatch.generation(layer), 2)
            numpy.testing.assert_array_equal(rebalancer.placement().layer_experts(layer), plan.layer_experts(layer))
            tables = dispatch.tables(layer)
            numpy.testing.assert_array_equal(
                tables.replica_count, numpy.bincount(plan.layer_experts(layer), minlength=32)
            )
        self.assertGreater(plan.info.balance_after, plan.info.balance_before)
        info = rebalancer.info
        self.assertEqual((info.num_plans, info.num_commits, info.num_layers_in_flight), (1, 3, 0))
        self.assertEqual(info.num_moves, plan.info.num_moves)
        self.assertEqual(info.num_kept[eplb.KeepReason.IN_FLIGHT], 1)
        self.assertEqual(info.generations.tolist(), [2, 2, 2])

    def test_keeping_has_a_reason(self):
        placement = eplb.Placement.create(in_order(1, 8, 8), 2)
        rebalancer = eplb.Rebalancer(placement, experts_per_token=1)
        self.assertEqual(rebalancer.plan().info.reason, eplb.KeepReason.NO_COUNTS)
        rebalancer.observe(None, num_tokens=0)
        self.assertEqual(rebalancer.info.num_windows, 0)
        rebalancer.observe(numpy.ones((1, 8), numpy.int64), num_tokens=8)
        self.assertEqual(rebalancer.plan().info.reason, eplb.KeepReason.FEW_TOKENS)

    def test_dead_ranks(self):
        placement = eplb.Placement.create(in_order(1, 8, 12), 4)
        rebalancer = eplb.Rebalancer(placement, experts_per_token=1, **GATES_OFF)
        rebalancer.set_active_ranks([True, True, True, False])
        self.assertEqual(rebalancer.info.num_active_ranks, 3)
        dispatch = eplb.Dispatch(placement, 0, experts_per_token=1, live=True)
        dispatch.set_active_ranks([1, 1, 1, 0])
        slots = dispatch.route(0, numpy.arange(8, dtype=numpy.int32)[:, None])
        self.assertLess(slots.max(), 9)
        with self.assertRaises(eplb.EplbError) as caught:
            rebalancer.set_active_ranks([1, 0, 0, 0])
        self.assertEqual(caught.exception.status, eplb.Status.NO_REPLICA)
        rebalancer.reset(placement)
        self.assertEqual(rebalancer.info.num_active_ranks, 4)

    def test_arguments_are_checked(self):
        placement = eplb.Placement.create(in_order(1, 8, 8), 2)
        rebalancer = eplb.Rebalancer(placement, experts_per_token=1)
        for words, call in (
            ("counts has [2, 8] layers", lambda: rebalancer.observe(numpy.ones((2, 8), numpy.int64), 1)),
            ("counts has dtype float64", lambda: rebalancer.observe(numpy.ones((1, 8)), 1)),
            ("num_windows is -1", lambda: eplb.Rebalancer(placement, experts_per_token=1, num_windows=-1)),
            (
                "pinned_slots has 2 numbers",
                lambda: eplb.Rebalancer(placement, experts_per_token=1, pinned_slots=[0, 1]),
            ),
            ("active has 1 numbers", lambda: rebalancer.set_active_ranks([1])),
            (
                "num_ranks is 1, the dispatch has 2 ranks",
                lambda: eplb.Dispatch(placement, 0, experts_per_token=1, live=True).set_active_ranks([1]),
            ),
        ):
            with self.assertRaises(eplb.EplbError) as caught:
                call()
            self.assertIn(words, str(caught.exception))
        plan = rebalancer.plan()
        with self.assertRaises(eplb.EplbError) as caught:
            rebalancer.commit_layer(plan, 0)
        rebalancer.abort(plan)
        rebalancer.abort()


if __name__ == "__main__":
    unittest.main()
