"""What is wrong with an argument is an EplbError that says what to do."""

import pathlib
import pickle
import tempfile
import unittest

import eplb
import numpy
import recordings

LOADS = recordings.zipf(2, 8)


class OnGpu:
    """A tensor on a GPU, as far as it says."""

    shape = (2, 8)
    __cuda_array_interface__ = {"version": 3, "shape": (2, 8), "typestr": "<f4", "data": (4096, False)}

    def __array__(self, *_):
        raise AssertionError("memory of a GPU is read on the host")


class OnNpu(OnGpu):
    """A tensor on a device without a number of DLPack."""

    __cuda_array_interface__ = None

    def __dlpack_device__(self):
        raise BufferError("no DLPack for npu:0")

    def __dlpack__(self, **_):
        raise BufferError("no DLPack for npu:0")


class NeedsGradient(OnGpu):
    """A tensor that does not hand its memory out, as PyTorch's that require a gradient."""

    @property
    def __cuda_array_interface__(self):
        raise RuntimeError("call .detach() first")


class Raises(unittest.TestCase):
    def refused(self, words, call, *args, status=eplb.Status.INVALID_ARGUMENT, **kwargs):
        with self.assertRaises(eplb.EplbError) as caught:
            call(*args, **kwargs)
        self.assertEqual(caught.exception.status, status)
        for word in words.split("|"):
            self.assertIn(word, str(caught.exception))


class Loads(Raises):
    def test_memory_of_a_gpu_is_not_read(self):
        for tensor in (OnGpu(), OnNpu()):
            self.refused("weight is on a GPU|.cpu()", eplb.rebalance_experts, tensor, 8, 1, 1, 2)
            self.refused("loads is on a GPU|.cpu()", eplb.solve, tensor, 2)
            self.refused("counts is on a GPU|.cpu()", eplb.Stats.create, tensor)
            self.refused("slot_experts is on a GPU|.cpu()", eplb.Placement.create, tensor, 2)

    def test_memory_that_is_not_handed_out(self):
        self.refused("weight cannot be exported|.detach()", eplb.rebalance_experts, NeedsGradient(), 8, 1, 1, 2)
        dispatch = eplb.Dispatch(eplb.solve(LOADS, 2), 0, experts_per_token=8)
        self.refused("expert_ids cannot be exported|.detach()", dispatch.route, 0, NeedsGradient())

    def test_dtypes(self):
        for loads in (LOADS.astype(complex), LOADS.astype(str), LOADS.astype(bool), LOADS.astype(object)):
            self.refused("weight has dtype|pass numbers", eplb.rebalance_experts, loads, 8, 1, 1, 2)
        self.refused("number above 2^53|divide", eplb.solve, LOADS + 2**53, 2)
        self.refused("masked array|.filled(0)", eplb.solve, numpy.ma.masked_array(LOADS), 2)
        self.refused("counts has dtype float64|.astype(numpy.int64)", eplb.Stats.create, LOADS / 2)
        self.refused("slot_experts has dtype float64", eplb.Placement.create, LOADS / 2, 2)

    def test_shapes(self):
        self.refused("shape [8]; pass [layers][experts]", eplb.rebalance_experts, LOADS[0], 8, 1, 1, 2)
        self.refused("[layers][samples][experts]", eplb.solve, LOADS[None, None], 2)
        self.refused("layer_ids has 1 numbers, and there are 2 layers", eplb.solve, LOADS, 2, layer_ids=[3])
        self.refused("rank_to_node has 3 numbers, and there are 2 ranks", eplb.solve, LOADS, 2, rank_to_node=[0, 0, 1])
        self.refused("sample_weights has 2 numbers", eplb.solve, LOADS, 2, sample_weights=[1, 2])
        self.refused("pinned_experts has 3 slots", eplb.solve, LOADS, 2, pinned_experts=[0, 1, 2])
        self.refused("weight has no layer", eplb.rebalance_experts, LOADS[:0], 8, 1, 1, 2)
        self.refused("loads ", eplb.solve, [[1, 2], [3]], 2)

    def test_order_does_not_matter_where_arrays_are_copied(self):
        strided = numpy.zeros((2, 16), numpy.int64)[:, ::2]
        strided[...] = LOADS
        for loads in (numpy.asfortranarray(LOADS), strided, LOADS.astype(">i8"), LOADS.tolist()):
            self.assertEqual(eplb.solve(loads, 2).hash, eplb.solve(LOADS, 2).hash)

    def test_the_library_refuses_what_cannot_be_planned(self):
        self.refused("10|8|12", eplb.solve, LOADS, 4, 10, status=eplb.Status.INVALID_SHAPE)
        self.refused("-1", eplb.solve, -numpy.ones((1, 8)), 2, status=eplb.Status.INVALID_LOADS)
        self.refused("", eplb.solve, numpy.full((1, 8), numpy.nan), 2, status=eplb.Status.INVALID_LOADS)
        self.refused("", eplb.rebalance_experts, LOADS, 9, 1, 1, 2, status=eplb.Status.INVALID_SHAPE)
        for wrong in (numpy.nan, numpy.inf, -1.0):
            loads = numpy.ones((2, 8))
            loads[1, 3] = wrong
            for policy in ("deepseek", "search"):
                self.refused(
                    "layer 1|expert 3",
                    eplb.rebalance_experts,
                    loads,
                    10,
                    1,
                    1,
                    2,
                    policy,
                    status=eplb.Status.INVALID_LOADS,
                )

    def test_numbers_of_slots_without_memory(self):
        loads = recordings.zipf(16, 64)
        for num_slots in (2**30, 2**32 - 64):
            with self.assertRaises(eplb.EplbError):
                eplb.rebalance_experts(loads, num_slots, 8, 4, 8)
            with self.assertRaises(eplb.EplbError):
                eplb.rebalance_experts(loads, num_slots, 1, 1, 8)

    def test_numbers_and_constants(self):
        self.refused("-1", eplb.solve, LOADS, -1)
        self.refused("num_slots is 4294967296", eplb.solve, LOADS, 2, 2**32)
        self.refused("num_threads is 'two'", eplb.solve, LOADS, 2, num_threads="two")
        self.refused('policy is \'best\'|pass one of "default", "trtllm"', eplb.solve, LOADS, 2, policy="best")
        self.refused("policy is 4", eplb.solve, LOADS, 2, policy=4)
        stats = eplb.Stats.create(LOADS)
        self.refused("num_samples is 0", stats.layer_loads, 0, 0)
        self.refused("wrong type, or is out of range", stats.layer_loads, 2**40)
        self.refused("wrong type, or is out of range", stats.layer_loads, "3")
        self.refused("num_samples is for Stats", eplb.solve, LOADS, 2, num_samples=2)


class Files(Raises):
    def test_paths(self):
        self.refused("", eplb.Stats.load, "/nonexistent", status=eplb.Status.READ_FAILED)
        self.refused("3 is no path", eplb.Stats.load, 3)
        self.refused("NUL", eplb.Stats.load, "a\0b")
        self.refused("no path, Stats or Placement", eplb.report, 3)

    def test_placements(self):
        self.refused("expert", eplb.Placement.create, [[0, 1, 1, 3]], 2, status=eplb.Status.INVALID_PLACEMENT)
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder) / "config.yaml"
            path.write_text("num_slots: 4\ninitial_global_assignments: {3: [0, 1, 2, 4]}\n")
            self.refused(
                "config.yaml",
                eplb.Placement.load,
                path,
                num_ranks=2,
                num_experts=4,
                status=eplb.Status.INVALID_PLACEMENT,
            )


class Handles(Raises):
    def test_a_destroyed_object_is_refused_and_its_views_stay(self):
        placement = eplb.solve(LOADS, 2)
        experts, copy = placement.layer_experts(0), placement.layer_experts(0).copy()
        placement.destroy()
        placement.destroy()
        self.refused("this Placement was destroyed|load it again", placement.layer_experts, 0)
        self.refused("this Placement was destroyed", lambda: placement.hash)
        self.refused("this Placement was destroyed", lambda: placement.layer_ids)
        self.refused("this Placement was destroyed", eplb.evaluate, placement, LOADS)
        self.refused("this Placement was destroyed", eplb.Dispatch, placement, 0, experts_per_token=1)
        self.refused("this Placement was destroyed", eplb.Rebalancer, placement, experts_per_token=1)
        self.refused("this Placement was destroyed", eplb.plan, placement, placement)
        numpy.testing.assert_array_equal(experts, copy)
        self.assertIs(experts.base.owner, placement)
        self.assertIn("destroyed", repr(placement))

    def test_every_kind_of_object(self):
        placement = eplb.solve(LOADS, 2)
        stats = eplb.Stats.create(LOADS)
        dispatch = eplb.Dispatch(placement, 0, experts_per_token=1)
        rebalancer = eplb.Rebalancer(placement, experts_per_token=1)
        plan = eplb.plan(placement, placement)
        for handle, use in (
            (stats, lambda: stats.loads()),
            (dispatch, lambda: dispatch.route(0, numpy.zeros((1, 1), numpy.int32))),
            (rebalancer, lambda: rebalancer.placement()),
            (plan, lambda: plan.info),
        ):
            with handle:
                use()
            self.refused(f"this {type(handle).__name__} was destroyed", use)

    def test_an_object_of_another_class_is_refused(self):
        placement = eplb.solve(LOADS, 2)
        self.refused("is no Placement", eplb.evaluate, eplb.Stats.create(LOADS), LOADS)
        self.refused("is no Placement", eplb.plan, placement, "config.yaml")
        self.refused("is no Plan", eplb.Rebalancer(placement, experts_per_token=1).commit_layer, placement, 0)

    def test_views_are_read_only(self):
        placement = eplb.solve(LOADS, 2)
        for array in (placement.layer_ids, placement.layer_experts(0), placement.rank_experts(0, 1)):
            with self.assertRaises(ValueError):
                array[0] = 1

    def test_a_view_outlives_its_object(self):
        experts = eplb.solve(LOADS, 2).layer_experts(0)
        self.assertEqual(sorted(experts.tolist()), list(range(8)))

    def test_errors_survive_pickling(self):
        error = pickle.loads(pickle.dumps(eplb.EplbError(eplb.Status.STALE, "plan again")))
        self.assertEqual((error.status, str(error)), (eplb.Status.STALE, "plan again"))


if __name__ == "__main__":
    unittest.main()
