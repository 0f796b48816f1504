//! What to do about errors of the driver whose descriptions do not say it.

use std::ffi::c_int;

/// The way out of an error, by its number in cuda.h.
pub fn way_out(code: c_int) -> Option<&'static str> {
    Some(match code {
        // CUDA_ERROR_NOT_INITIALIZED. The library initialises the driver first, so only a fork can have undone it.
        3 => {
            "this process is a fork of one that had initialised CUDA, and cannot use it: create it by exec, in Python by the \
             multiprocessing method spawn"
        }
        // CUDA_ERROR_DEINITIALIZED
        4 => "the driver has shut down, as a process does that exits: destroy the handles before",
        // CUDA_ERROR_STUB_LIBRARY
        34 => "the library is the CUDA toolkit's stub: remove its folder from LD_LIBRARY_PATH",
        // CUDA_ERROR_CALL_REQUIRES_NEWER_DRIVER and CUDA_ERROR_UNSUPPORTED_PTX_VERSION
        36 | 222 => "the driver is too old: install NVIDIA's driver 525 or newer",
        // CUDA_ERROR_DEVICE_UNAVAILABLE
        46 => {
            "another process has the device for itself, or its compute mode is prohibited: nvidia-smi -q -d COMPUTE,PIDS shows \
             which; end that process, share the device by MPS, or choose another one"
        }
        // CUDA_ERROR_NO_DEVICE
        100 => {
            "the driver sees no GPU: compare nvidia-smi -L with CUDA_VISIBLE_DEVICES, and start a container with its GPUs"
        }
        // CUDA_ERROR_SYSTEM_NOT_READY
        802 => {
            "the NVLink fabric is not set up: start nvidia-fabricmanager in the driver's version, and wait until nvidia-smi -q \
             shows the fabric's state as Completed"
        }
        // CUDA_ERROR_SYSTEM_DRIVER_MISMATCH
        803 => {
            "libcuda.so.1 and the kernel's NVIDIA module are of different versions, as after an update: reboot or reload the \
             module; in a container, use the host's libcuda.so.1"
        }
        // CUDA_ERROR_COMPAT_NOT_SUPPORTED_ON_DEVICE
        804 => {
            "libcuda.so.1 is that of a cuda-compat package, which does not serve this GPU: remove its folder from \
             LD_LIBRARY_PATH"
        }
        // CUDA_ERROR_MPS_CONNECTION_FAILED
        805 => {
            "MPS is on, and its daemon does not answer: start nvidia-cuda-mps-control -d for this user with the same \
             CUDA_MPS_PIPE_DIRECTORY, or unset that variable to do without MPS"
        }
        // CUDA_ERROR_MPS_RPC_FAILURE
        806 => {
            "the MPS server has failed: its log in CUDA_MPS_LOG_DIRECTORY says why; restart nvidia-cuda-mps-control and this \
             process"
        }
        // CUDA_ERROR_MPS_SERVER_NOT_READY
        807 => {
            "the MPS server starts, or recovers from a client's fault: try again, and see its log if that lasts"
        }
        // CUDA_ERROR_MPS_MAX_CLIENTS_REACHED
        808 => {
            "the MPS server has as many clients as it takes: run fewer processes on this GPU, or end idle ones"
        }
        // CUDA_ERROR_MPS_MAX_CONNECTIONS_REACHED
        809 => {
            "the MPS server has as many connections as the GPU takes: run fewer processes on it, or set a lower \
             CUDA_DEVICE_MAX_CONNECTIONS"
        }
        // CUDA_ERROR_MPS_CLIENT_TERMINATED
        810 => "the MPS server has ended this client, as after a fault of another one: restart this process",
        _ => return None,
    })
}
