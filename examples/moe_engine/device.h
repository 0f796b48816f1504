// Where ids are counted and routed: host memory, a GPU, or a device that eplb does not know. CUDA's driver is
// loaded only if requested, so that the engine builds and runs without CUDA.
#ifndef MOE_ENGINE_DEVICE_H
#define MOE_ENGINE_DEVICE_H

#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>

#include "other_device.h"

struct CUctx_st;
struct CUstream_st;
struct CUgraphExec_st;
struct cuda_driver;

/// A rank's device, and a stream of its own on it.
class device {
  public:
    /// `name` is host, cuda (then rank r takes GPU r modulo the number of GPUs), or other.
    device(const std::string &name, int rank);
    ~device();
    device(const device &) = delete;
    device &operator=(const device &) = delete;

    /// For eplb's configs: EPLB_DEVICE_HOST or the ordinal of the GPU. Beside another device, eplb works on
    /// the host.
    int32_t ordinal() const { return ordinal_; }
    /// For eplb's calls: NULL except on a GPU.
    CUstream_st *stream() const { return stream_; }
    /// NULL unless it is the other device.
    other_device *other() const { return other_.get(); }

    /// Runs `work` on the stream: on a GPU as a CUDA graph, captured the first time that `key` is passed and
    /// replayed afterwards.
    void replay(size_t key, const std::function<void()> &work);
    void synchronize() const;
    /// Whether the stream of a GPU has work left.
    bool is_busy() const;
    /// The 16 bytes that tell GPUs of all nodes apart; empty except on a GPU.
    std::string uuid() const;

  private:
    template <class T> friend class mirrored;

    void *allocate(size_t bytes, bool on_host) const;
    void free(void *memory, bool on_host) const;
    void copy(void *to, const void *from, size_t bytes, bool to_host) const;

    bool is_host() const { return driver_ == nullptr && other_ == nullptr; }

    std::unique_ptr<cuda_driver> driver_; // NULL except on a GPU
    std::unique_ptr<other_device> other_;
    int32_t ordinal_;
    CUctx_st *context_ = nullptr;
    CUstream_st *stream_ = nullptr;
    std::map<size_t, CUgraphExec_st *> graphs_;
};

/// An array in host memory and its mirror on the device; on the host they are one.
template <class T> class mirrored {
  public:
    mirrored(const device &device, size_t size)
        : device_(device), bytes_(size * sizeof(T)), host_(static_cast<T *>(device.allocate(bytes_, true))),
          on_device_(device.is_host() ? host_ : static_cast<T *>(device.allocate(bytes_, false))) {}
    ~mirrored() {
        if (on_device_ != host_) {
            device_.free(on_device_, false);
        }
        device_.free(host_, true);
    }
    mirrored(const mirrored &) = delete;
    mirrored &operator=(const mirrored &) = delete;

    T *host() const { return host_; }
    T *on_device() const { return on_device_; }
    size_t size() const { return bytes_ / sizeof(T); }

    /// In the order of the device's stream.
    void upload() const { device_.copy(on_device_, host_, bytes_, false); }
    void download() const { device_.copy(host_, on_device_, bytes_, true); }

  private:
    const device &device_;
    size_t bytes_;
    T *host_, *on_device_;
};

#endif
