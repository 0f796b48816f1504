#include "nccl.h"

#include <chrono>
#include <cstring>
#include <set>
#include <string>
#include <thread>
#include <utility>

#include <dlfcn.h>
#include <unistd.h>

struct nccl_id {
    char bytes[128]; // NCCL_UNIQUE_ID_BYTES
};

/// The functions that the engine needs, as NCCL's nccl.h declares them.
struct nccl_functions {
    int (*ncclGetUniqueId)(nccl_id *id);
    int (*ncclCommInitRank)(ncclComm **comm, int num_ranks, nccl_id id, int rank);
    int (*ncclCommDestroy)(ncclComm *comm);
    int (*ncclCommAbort)(ncclComm *comm);
    int (*ncclCommGetAsyncError)(ncclComm *comm, int *result);
    const char *(*ncclGetErrorString)(int result);
    int (*ncclGroupStart)();
    int (*ncclGroupEnd)();
    int (*ncclSend)(const void *memory, size_t count, int type, int to, ncclComm *comm, CUstream_st *stream);
    int (*ncclRecv)(void *memory, size_t count, int type, int from, ncclComm *comm, CUstream_st *stream);

    /// NULL if the library or one of the functions is not found.
    static std::unique_ptr<nccl_functions> load() {
        void *library = dlopen("libnccl.so.2", RTLD_NOW);
        auto loaded = std::make_unique<nccl_functions>();
        bool is_complete = library != nullptr;
        const auto find = [&](auto &function, const char *name) {
            function = reinterpret_cast<std::decay_t<decltype(function)>>(
                library == nullptr ? nullptr : dlsym(library, name));
            is_complete = is_complete && function != nullptr;
        };
#define FIND(name) find(loaded->name, #name)
        FIND(ncclGetUniqueId);
        FIND(ncclCommInitRank);
        FIND(ncclCommDestroy);
        FIND(ncclCommAbort);
        FIND(ncclCommGetAsyncError);
        FIND(ncclGetErrorString);
        FIND(ncclGroupStart);
        FIND(ncclGroupEnd);
        FIND(ncclSend);
        FIND(ncclRecv);
#undef FIND
        return is_complete ? std::move(loaded) : nullptr;
    }
};

namespace {

constexpr int success = 0, in_progress = 7; // ncclSuccess, ncclInProgress
constexpr int chars = 0;                    // ncclChar
constexpr std::chrono::seconds most_wait(60);

/// Whether no two ranks use the same GPU: NCCL refuses that.
bool has_gpu_each(transport &ranks, const device &device) {
    const std::string id = device.uuid();
    std::vector<char> mine(16, 0);
    std::copy(id.begin(), id.end(), mine.begin());
    std::vector<char> send;
    for (int rank = 0; rank < ranks.num_ranks(); rank++) {
        send.insert(send.end(), mine.begin(), mine.end());
    }
    const std::vector<size_t> counts(static_cast<size_t>(ranks.num_ranks()), mine.size());
    const std::vector<char> all = ranks.all_to_all(send, counts, counts);
    std::set<std::string> different;
    for (size_t rank = 0; rank < counts.size(); rank++) {
        different.emplace(all.data() + rank * mine.size(), mine.size());
    }
    return different.size() == counts.size() && different.count(std::string(mine.size(), 0)) == 0;
}

} // namespace

std::unique_ptr<nccl> nccl::connect(transport &ranks, const device &device, size_t most_bytes) {
    std::unique_ptr<nccl_functions> functions = nccl_functions::load();
    const bool is_usable = has_gpu_each(ranks, device) && functions != nullptr;
    if (ranks.max(std::vector<int>{is_usable ? 0 : 1})[0] != 0) {
        return nullptr;
    }
    return std::unique_ptr<nccl>(new nccl(std::move(functions), ranks, device, most_bytes));
}

nccl::nccl(std::unique_ptr<nccl_functions> functions, transport &ranks, const device &device,
           size_t most_bytes)
    : functions_(std::move(functions)), device_(device), sent_(device, most_bytes),
      received_(device, most_bytes) {
    // Rank 0 makes the id. The others have zeros, so the sum is that id.
    nccl_id id = {};
    const int made = ranks.rank() == 0 ? functions_->ncclGetUniqueId(&id) : success;
    check(ranks.max(std::vector<int>{made})[0], "ncclGetUniqueId");
    const std::vector<char> bytes = ranks.sum(std::vector<char>(id.bytes, id.bytes + sizeof id.bytes));
    std::copy(bytes.begin(), bytes.end(), id.bytes);
    check(functions_->ncclCommInitRank(&comm_, ranks.num_ranks(), id, ranks.rank()), "ncclCommInitRank");
}

nccl::~nccl() {
    if (comm_ != nullptr) {
        functions_->ncclCommDestroy(comm_);
    }
}

std::vector<char> nccl::send_receive(const std::vector<char> &send, int to, int from, size_t receive_bytes) {
    std::copy(send.begin(), send.end(), sent_.host());
    if (to >= 0) {
        sent_.upload();
    }
    check(functions_->ncclGroupStart(), "ncclGroupStart");
    if (to >= 0) {
        check(functions_->ncclSend(sent_.on_device(), send.size(), chars, to, comm_, device_.stream()),
              "ncclSend");
    }
    if (from >= 0) {
        check(
            functions_->ncclRecv(received_.on_device(), receive_bytes, chars, from, comm_, device_.stream()),
            "ncclRecv");
    }
    check(functions_->ncclGroupEnd(), "ncclGroupEnd");
    wait();
    if (from < 0) {
        return {};
    }
    received_.download();
    device_.synchronize();
    return std::vector<char>(received_.host(), received_.host() + receive_bytes);
}

/// A peer that died never sends, so a wait without an end would hang this rank.
void nccl::wait() {
    const auto deadline = std::chrono::steady_clock::now() + most_wait;
    while (device_.is_busy()) {
        int state = success;
        check(functions_->ncclCommGetAsyncError(comm_, &state), "ncclCommGetAsyncError");
        if (state != success && state != in_progress) {
            check(state, "a message between ranks");
        }
        if (std::chrono::steady_clock::now() > deadline) {
            functions_->ncclCommAbort(std::exchange(comm_, nullptr));
            throw std::runtime_error("NCCL: no message from a rank for a minute: is it still running?");
        }
        std::this_thread::sleep_for(std::chrono::microseconds(20));
    }
}

void nccl::check(int result, const char *call) const {
    if (result != success) {
        throw std::runtime_error(std::string("NCCL: ") + call + ": " +
                                 functions_->ncclGetErrorString(result));
    }
}
