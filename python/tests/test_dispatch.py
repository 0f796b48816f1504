"""Routing of arrays on the host."""

import unittest

import eplb
import numpy
import recordings


class Routing(unittest.TestCase):
    def setUp(self):
        self.placement = eplb.solve(recordings.zipf(2, 16), 4, 20, layer_ids=[3, 4])
        self.ids = numpy.random.default_rng(0).integers(0, 16, (100, 4)).astype(numpy.int32)

    def dispatch(self, **options):
        return eplb.Dispatch(self.placement, 1, experts_per_token=4, **options)

    def assert_refused(self, words, call, *args, **kwargs):
        with self.assertRaises(eplb.EplbError) as caught:
            call(*args, **kwargs)
        self.assertIn(words, str(caught.exception))

    def test_every_slot_holds_its_expert(self):
        experts = self.placement.layer_experts(4)
        for rule in eplb.Rule:
            dispatch = self.dispatch(rule=rule)
            for dtype in (numpy.int32, numpy.int64):
                slots = dispatch.route(4, self.ids.astype(dtype))
                self.assertEqual(slots.dtype, dtype)
                numpy.testing.assert_array_equal(experts[slots], self.ids)
        self.assertEqual(self.dispatch().info.rule, eplb.Rule.LEAST_LOADED)
        self.assertEqual(self.dispatch().info.placement_hash, self.placement.hash)

    def test_token_hash_is_the_documented_rule(self):
        # docs/routing.md: replica (t * 2654435769 mod 2^32) mod count, with t the index of the token.
        dispatch = self.dispatch(rule="token_hash")
        tables = dispatch.tables(3)
        slots = dispatch.route(3, self.ids)
        for token, row in enumerate(self.ids):
            for expert, slot in zip(row, slots[token]):
                replica = token * 2654435769 % 2**32 % int(tables.replica_count[expert])
                self.assertEqual(tables.slot_ids[tables.replica_start[expert] + replica], slot)

    def test_outputs_of_the_caller(self):
        dispatch = self.dispatch(rule="round_robin")
        expected = dispatch.route(3, self.ids)
        wide = numpy.full((100, 6), -7, numpy.int64)
        self.assertIs(dispatch.route(3, self.ids, wide[:, :4]).base, wide)
        numpy.testing.assert_array_equal(wide[:, :4], expected)
        self.assertTrue((wide[:, 4:] == -7).all())
        in_place = self.ids.copy()
        self.assertIs(dispatch.route(3, in_place, in_place), in_place)
        numpy.testing.assert_array_equal(in_place, expected)
        rows = numpy.zeros((200, 4), numpy.int32)[::2]
        rows[...] = self.ids
        numpy.testing.assert_array_equal(dispatch.route(3, rows), expected)

    def test_padding_gets_the_invalid_slot(self):
        dispatch = self.dispatch(invalid_slot=-1)
        for num_valid in (60, numpy.int64(60), numpy.array([60], numpy.int32), numpy.array(60, numpy.int32)):
            slots = dispatch.route(3, self.ids, num_valid=num_valid)
            self.assertTrue((slots[60:] == -1).all())
            self.assertTrue((slots[:60] >= 0).all())
        self.assertEqual(dispatch.route(3, self.ids[:0]).shape, (0, 4))

    def test_counts_of_all_ranks_level_the_ranks(self):
        random = numpy.random.default_rng(1)
        batches = [random.integers(0, 16, (64, 4)).astype(numpy.int32) for _ in range(4)]
        counts = numpy.array([numpy.bincount(batch.ravel(), minlength=16) for batch in batches])
        received = numpy.zeros(4, int)
        for rank, batch in enumerate(batches):
            dispatch = eplb.Dispatch(self.placement, rank, experts_per_token=4)
            dispatch.register_rank_counts(3, counts)
            self.assertEqual(dispatch.info.num_layers_with_rank_counts, 1)
            received += numpy.bincount(dispatch.route(3, batch).ravel() // 5, minlength=4)
            dispatch.register_rank_counts(3, None)
        self.assertEqual(received.sum(), 1024)
        alone = sum(
            numpy.bincount(
                eplb.Dispatch(self.placement, r, experts_per_token=4, rule="token_hash").route(3, b).ravel() // 5,
                minlength=4,
            )
            for r, b in enumerate(batches)
        )
        self.assertLess(received.max(), alone.max())

    def test_tables_and_the_dense_map(self):
        tables = self.dispatch(max_replicas=8).tables(3)
        for expert in range(16):
            slots = numpy.flatnonzero(self.placement.layer_experts(3) == expert)
            start = tables.replica_start[expert]
            numpy.testing.assert_array_equal(tables.slot_ids[start : start + len(slots)], slots)
            numpy.testing.assert_array_equal(tables.expert_slots[expert, : len(slots)], slots)
        self.assertIsNone(self.dispatch().tables(3).expert_slots)

    def test_buffers_are_checked(self):
        route = self.dispatch().route
        ids = self.ids
        for dtype in (numpy.float32, numpy.int16, numpy.uint32, ">i4"):
            self.assert_refused("pass int32 or int64", route, 3, ids.astype(dtype))
        self.assert_refused("pass [tokens][4]", route, 3, ids.ravel())
        self.assert_refused("pass [tokens][4]", route, 3, ids[:, :3])
        self.assert_refused("numpy.ascontiguousarray(expert_ids)", route, 3, numpy.asfortranarray(ids))
        self.assert_refused("numpy.ascontiguousarray(expert_ids)", route, 3, ids[::-1])
        self.assert_refused("numpy.ascontiguousarray(expert_ids)", route, 3, numpy.zeros((9, 8), numpy.int32)[:, ::2])
        self.assert_refused("is a list; pass an array", route, 3, ids.tolist())
        self.assert_refused("not aligned", route, 3, numpy.frombuffer(b"\0" * 17, numpy.int32, offset=1, count=4)[None])
        read_only = ids.copy()
        read_only.flags.writeable = False
        self.assert_refused("slot_ids is read-only", route, 3, ids, read_only)
        self.assert_refused("slot_ids has 50 rows", route, 3, ids, ids[:50].copy())
        self.assert_refused("slot_ids overlaps expert_ids", route, 3, ids[:50], ids[1:51])
        self.assert_refused("slot_ids overlaps expert_ids", route, 3, ids[:50], ids.view(numpy.int64).reshape(50, 4))
        self.assert_refused("9", route, 9, ids)
        self.assert_refused("num_valid is -1", route, 3, ids, num_valid=-1)
        self.assert_refused("pass one int32", route, 3, ids, num_valid=numpy.array([1, 2], numpy.int32))
        self.assert_refused("pass one int32", route, 3, ids, num_valid=numpy.array([1]))
        self.assert_refused("is no stream", route, 3, ids, stream="main")

    def test_configs_are_checked(self):
        self.assert_refused("experts_per_token", eplb.Dispatch, self.placement, 1, experts_per_token=0)
        self.assert_refused("4", eplb.Dispatch, self.placement, 4, experts_per_token=4)
        self.assert_refused("rule is 'fast'", self.dispatch, rule="fast")
        self.assert_refused("5", self.dispatch, layer_ids=[5])
        counts = numpy.zeros((4, 15), numpy.int64)
        self.assert_refused("[4, 16]", self.dispatch().register_rank_counts, 3, counts)


class OnAnotherDevice(unittest.TestCase):
    """What a buffer says of itself is believed; none is read here."""

    class Buffer:
        def __init__(self, **fields):
            self.__cuda_array_interface__ = {
                "version": 3,
                "shape": (8, 4),
                "typestr": "<i4",
                "data": (4096, False),
                **fields,
            }

    def test_a_dispatch_on_the_host_refuses_memory_of_a_gpu(self):
        dispatch = eplb.Dispatch(eplb.solve(recordings.zipf(1, 16), 4), 0, experts_per_token=4)
        with self.assertRaises(eplb.EplbError) as caught:
            dispatch.route(0, self.Buffer())
        self.assertIn("expert_ids is on a GPU, and the dispatch on the host", str(caught.exception))
        for fields, words in (
            ({"data": None}, "no valid __cuda_array_interface__"),
            ({"mask": object()}, "mask"),
            ({"strides": (3, 1)}, "bytes apart"),
        ):
            with self.assertRaises(eplb.EplbError) as caught:
                dispatch.route(0, self.Buffer(**fields))
            self.assertIn(words, str(caught.exception))


if __name__ == "__main__":
    unittest.main()
