#ifndef MOE_ENGINE_NCCL_H
#define MOE_ENGINE_NCCL_H

#include <memory>
#include <vector>

#include "device.h"
#include "transport.h"

struct nccl_functions;
struct ncclComm;

/// Messages between the ranks' GPUs by NCCL, which is found at run time.
class nccl {
  public:
    /// NULL unless each rank has a GPU of its own and finds libnccl.so.2. Messages have up to `most_bytes`.
    /// All ranks call it together.
    static std::unique_ptr<nccl> connect(transport &ranks, const device &device, size_t most_bytes);
    ~nccl();
    nccl(const nccl &) = delete;
    nccl &operator=(const nccl &) = delete;

    /// As transport::send_receive(). Throws if a message has not arrived after a minute.
    std::vector<char> send_receive(const std::vector<char> &send, int to, int from, size_t receive_bytes);

  private:
    nccl(std::unique_ptr<nccl_functions> functions, transport &ranks, const device &device,
         size_t most_bytes);
    void check(int result, const char *call) const;
    void wait();

    std::unique_ptr<nccl_functions> functions_;
    const device &device_;
    ncclComm *comm_ = nullptr;
    mirrored<char> sent_, received_;
};

#endif
