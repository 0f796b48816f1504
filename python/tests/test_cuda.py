"""Routing on a CUDA device, through the driver alone: a genuine one, or cpp_tests/fake_cuda on the LD_LIBRARY_PATH.

Skipped unless EPLB_TEST_DEVICE is cuda. fake_cuda fails the process at its end if an object of the driver is left.
"""

import ctypes
import gc
import os
import unittest

import eplb
import numpy
import recordings

ON_CUDA = os.environ.get("EPLB_TEST_DEVICE") == "cuda"


class Driver:
    """What a test needs of the driver."""

    def __init__(self):
        self.cuda = ctypes.CDLL("libcuda.so.1")
        self.call("cuInit", 0)
        self.context, self.stream = ctypes.c_void_p(), ctypes.c_void_p()
        self.call("cuDevicePrimaryCtxRetain", ctypes.byref(self.context), 0)
        self.call("cuCtxSetCurrent", self.context)
        self.call("cuStreamCreate", ctypes.byref(self.stream), 0)

    def call(self, name, *args):
        result = getattr(self.cuda, name)(*args)
        assert result == 0, f"{name}: CUDA error {result}"

    def end(self):
        self.call("cuStreamDestroy_v2", self.stream)
        self.call("cuDevicePrimaryCtxRelease_v2", 0)


class Tensor:
    """An array on the device, with __cuda_array_interface__."""

    def __init__(self, driver, array, strides=None):
        self.driver, self.host = driver, numpy.ascontiguousarray(array)
        pointer = ctypes.c_uint64()
        driver.call("cuMemAlloc_v2", ctypes.byref(pointer), ctypes.c_size_t(max(1, self.host.nbytes)))
        self.pointer = pointer.value
        driver.call(
            "cuMemcpyHtoD_v2", pointer, ctypes.c_void_p(self.host.ctypes.data), ctypes.c_size_t(self.host.nbytes)
        )
        self.__cuda_array_interface__ = {
            "version": 3,
            "shape": self.host.shape,
            "typestr": self.host.dtype.str,
            "data": (self.pointer, False),
            "strides": strides,
        }

    def get(self):
        self.driver.call("cuCtxSynchronize")
        back = numpy.empty_like(self.host)
        self.driver.call(
            "cuMemcpyDtoH_v2",
            ctypes.c_void_p(back.ctypes.data),
            ctypes.c_uint64(self.pointer),
            ctypes.c_size_t(back.nbytes),
        )
        return back

    def free(self):
        self.driver.call("cuMemFree_v2", ctypes.c_uint64(self.pointer))


class DLManagedTensor(ctypes.Structure):
    """DLPack's, with which a tensor is handed over."""

    _fields_ = [
        ("data", ctypes.c_void_p),
        ("device", ctypes.c_int32 * 2),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
        ("context", ctypes.c_void_p),
        ("deleter", ctypes.c_void_p),
    ]


CAPSULE_DESTRUCTOR = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
new_capsule = ctypes.pythonapi.PyCapsule_New
new_capsule.restype = ctypes.py_object
new_capsule.argtypes = [ctypes.c_void_p, ctypes.c_char_p, CAPSULE_DESTRUCTOR]


class DlpackTensor:
    """A tensor with DLPack alone."""

    def __init__(self, tensor, device=(2, 0)):
        self.tensor, self.device, self.live_capsules = tensor, device, 0
        self.shape = (ctypes.c_int64 * len(tensor.host.shape))(*tensor.host.shape)
        self.managed = DLManagedTensor(
            tensor.pointer, self.device, len(self.shape), 0, 8 * tensor.host.itemsize, 1, self.shape, None, 0
        )
        self.destructor = CAPSULE_DESTRUCTOR(self.destroyed)

    def destroyed(self, _):
        self.live_capsules -= 1

    def __dlpack_device__(self):
        return self.device

    def __dlpack__(self, stream=None):
        assert stream == -1
        self.live_capsules += 1
        return new_capsule(ctypes.addressof(self.managed), b"dltensor", self.destructor)


class TorchStream:
    """A stream as PyTorch has it."""

    def __init__(self, number):
        self.cuda_stream = number


class CudaStream:
    """A stream of the __cuda_stream__ protocol."""

    def __init__(self, number):
        self.number = number

    def __cuda_stream__(self):
        return (0, self.number)


@unittest.skipUnless(ON_CUDA, "EPLB_TEST_DEVICE is not cuda")
class Cuda(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        assert eplb.cuda_available()
        cls.driver = Driver()
        cls.placement = eplb.solve(recordings.zipf(2, 16), 4, 20)
        cls.ids = numpy.random.default_rng(0).integers(0, 16, (64, 4)).astype(numpy.int32)
        cls.expected = eplb.Dispatch(cls.placement, 1, experts_per_token=4, rule="token_hash").route(1, cls.ids)

    @classmethod
    def tearDownClass(cls):
        gc.collect()
        cls.driver.end()

    def setUp(self):
        self.tensors = []
        self.dispatch = eplb.Dispatch(self.placement, 1, experts_per_token=4, rule="token_hash", device=0, live=True)
        self.addCleanup(self.dispatch.destroy)

    def tearDown(self):
        for tensor in self.tensors:
            tensor.free()

    def tensor(self, array, **options):
        self.tensors.append(Tensor(self.driver, array, **options))
        return self.tensors[-1]

    def test_arrays_and_streams_of_every_kind(self):
        stream = self.driver.stream.value
        for given in (None, stream, TorchStream(stream), CudaStream(stream)):
            for dtype in (numpy.int32, numpy.int64):
                source, target = self.tensor(self.ids.astype(dtype)), self.tensor(numpy.zeros((64, 4), dtype))
                self.assertIs(self.dispatch.route(1, source, target, stream=given), target)
                numpy.testing.assert_array_equal(target.get(), self.expected)

    def test_dlpack(self):
        source, target = (
            DlpackTensor(self.tensor(self.ids)),
            DlpackTensor(self.tensor(numpy.zeros((64, 4), numpy.int32))),
        )
        self.dispatch.route(1, source, target)
        numpy.testing.assert_array_equal(target.tensor.get(), self.expected)
        self.assertEqual((source.live_capsules, target.live_capsules), (0, 0))

    def test_in_place_and_padding(self):
        both = self.tensor(self.ids)
        valid = self.tensor(numpy.array([60], numpy.int32))
        self.dispatch.route(1, both, both, num_valid=valid)
        numpy.testing.assert_array_equal(both.get()[:60], self.expected[:60])
        self.assertTrue((both.get()[60:] == 20).all())

    def test_tables_are_on_the_device(self):
        tables = self.dispatch.tables(1)
        interface = tables.slot_ids.__cuda_array_interface__
        slots = numpy.zeros(20, numpy.int32)
        self.driver.call(
            "cuMemcpyDtoH_v2",
            ctypes.c_void_p(slots.ctypes.data),
            ctypes.c_uint64(interface["data"][0]),
            ctypes.c_size_t(80),
        )
        self.assertEqual(sorted(slots.tolist()), list(range(20)))
        self.assertIs(tables.slot_ids.owner, self.dispatch)

    def test_a_plan_changes_the_tables(self):
        wanted = eplb.solve(recordings.zipf(2, 16, seed=5), 4, 20)
        plan = eplb.plan(self.placement, wanted)
        layer = int(plan.layer_ids[0])
        self.dispatch.stage_layer(plan, layer, stream=self.driver.stream.value)
        self.dispatch.commit_layer(layer, stream=self.driver.stream.value)
        self.assertEqual(self.dispatch.generation(layer), 2)
        source, target = self.tensor(self.ids), self.tensor(numpy.zeros((64, 4), numpy.int32))
        self.dispatch.route(layer, source, target, stream=self.driver.stream.value)
        numpy.testing.assert_array_equal(plan.layer_experts(layer)[target.get()], self.ids)

    def test_other_memory_is_refused(self):
        on_device, npu = self.tensor(self.ids), DlpackTensor(self.tensor(self.ids), device=(12, 0))
        for words, args, options in (
            ("expert_ids is on the host, and the dispatch on a CUDA device", (self.ids, on_device), {}),
            ("slot_ids is on the host", (on_device, self.ids.copy()), {}),
            ("slot_ids is None", (on_device,), {}),
            ("neither the host nor CUDA", (npu, on_device), {}),
            ("is on device 1, and the dispatch on device 0", (DlpackTensor(on_device, device=(2, 1)), on_device), {}),
            ("num_valid is a number", (on_device, on_device), {"num_valid": 3}),
            ("slot_ids overlaps expert_ids", (on_device, self.shifted(on_device)), {}),
        ):
            with self.assertRaises(eplb.EplbError) as caught:
                self.dispatch.route(1, *args, **options)
            self.assertIn(words, str(caught.exception))

    def shifted(self, tensor):
        class Shifted:
            __cuda_array_interface__ = {**tensor.__cuda_array_interface__, "data": (tensor.pointer + 16, False)}

        return Shifted()


class WithoutDriver(unittest.TestCase):
    @unittest.skipIf(ON_CUDA, "there is a driver")
    def test_a_device_without_a_driver_is_an_exception(self):
        if not eplb.cuda_available():
            with self.assertRaises(eplb.EplbError) as caught:
                eplb.Dispatch(eplb.solve(recordings.zipf(1, 16), 4), 0, experts_per_token=4, device=0)
            self.assertEqual(caught.exception.status, eplb.Status.NO_DRIVER)


if __name__ == "__main__":
    unittest.main()
