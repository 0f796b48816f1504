// NCCL's messages between ranks that are threads of a process, over fake_cuda: device memory is host memory.
// EPLB_FAKE_NCCL_FAIL=N makes the N-th message of each rank fail.
#include <condition_variable>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "cuda_driver.h"

namespace {

constexpr int success = 0, unhandled_cuda_error = 1, invalid_argument = 4, remote_error = 6;

/// The messages of a communicator's ranks that have not been received.
struct mailbox {
    std::mutex mutex;
    std::condition_variable changed;
    std::map<std::pair<int, int>, std::deque<std::vector<char>>> messages; // by sender and receiver
    int num_ranks = 0, joined = 0;
    bool has_failed = false;
};

struct operation {
    bool is_send;
    char *memory;
    size_t size;
    int peer;
    CUstream stream;
};

std::mutex communicators_mutex;
std::map<std::string, std::shared_ptr<mailbox>> communicators; // by id
int num_ids = 0;

long failing_message() {
    const char *number = std::getenv("EPLB_FAKE_NCCL_FAIL");
    return number == nullptr ? -1 : std::atol(number);
}

} // namespace

struct ncclComm {
    std::shared_ptr<mailbox> box;
    int rank;
    std::vector<operation> group;
    long num_messages = 0;
};

struct ncclUniqueId {
    char bytes[128];
};

namespace {

thread_local ncclComm *grouping = nullptr; // the communicator of the group that this thread has open
thread_local bool is_group_open = false;

int add(operation operation, ncclComm *comm) {
    if (!is_group_open || comm == nullptr || operation.peer < 0 || operation.peer >= comm->box->num_ranks ||
        operation.peer == comm->rank) {
        return invalid_argument;
    }
    grouping = comm;
    comm->group.push_back(operation);
    if (++comm->num_messages != failing_message()) {
        return success;
    }
    const std::lock_guard<std::mutex> lock(comm->box->mutex);
    comm->box->has_failed = true; // The others would wait for ever.
    comm->box->changed.notify_all();
    return remote_error;
}

/// In the stream's order: after all that was put on it before.
int run(const operation &operation, ncclComm &comm) {
    if (cuStreamSynchronize(operation.stream) != CUDA_SUCCESS) {
        return unhandled_cuda_error;
    }
    std::unique_lock<std::mutex> lock(comm.box->mutex);
    if (operation.is_send) {
        comm.box->messages[{comm.rank, operation.peer}].emplace_back(operation.memory,
                                                                     operation.memory + operation.size);
        comm.box->changed.notify_all();
        return success;
    }
    auto &queue = comm.box->messages[{operation.peer, comm.rank}];
    comm.box->changed.wait(lock, [&] { return !queue.empty() || comm.box->has_failed; });
    if (queue.empty()) {
        return remote_error;
    }
    const std::vector<char> message = std::move(queue.front());
    queue.pop_front();
    if (message.size() != operation.size) {
        return invalid_argument;
    }
    std::memcpy(operation.memory, message.data(), message.size());
    return success;
}

} // namespace

extern "C" {
#pragma GCC visibility push(default)

int ncclGetUniqueId(ncclUniqueId *id) {
    const std::lock_guard<std::mutex> lock(communicators_mutex);
    *id = {};
    // Bytes of both signs, as a genuine id has.
    std::strcpy(id->bytes + 1, ("\xfe\x80 fake NCCL " + std::to_string(num_ids++)).c_str());
    id->bytes[127] = char(0xff);
    return success;
}

int ncclCommInitRank(ncclComm **comm, int num_ranks, ncclUniqueId id, int rank) {
    std::shared_ptr<mailbox> box;
    {
        const std::lock_guard<std::mutex> lock(communicators_mutex);
        std::shared_ptr<mailbox> &known = communicators[std::string(id.bytes, sizeof id.bytes)];
        if (known == nullptr) {
            known = std::make_shared<mailbox>();
        }
        box = known;
    }
    std::unique_lock<std::mutex> lock(box->mutex);
    box->num_ranks = num_ranks;
    box->joined++;
    box->changed.notify_all();
    box->changed.wait(lock, [&] { return box->joined == num_ranks; });
    *comm = new ncclComm{box, rank, {}};
    return success;
}

int ncclCommDestroy(ncclComm *comm) {
    delete comm;
    return success;
}

int ncclCommAbort(ncclComm *comm) { return ncclCommDestroy(comm); }

int ncclCommGetAsyncError(ncclComm *, int *result) {
    *result = success;
    return success;
}

const char *ncclGetErrorString(int result) {
    return result == remote_error ? "remote process exited or there was a network error" : "invalid argument";
}

int ncclGroupStart() {
    is_group_open = true;
    return success;
}

int ncclGroupEnd() {
    is_group_open = false;
    int result = success;
    if (ncclComm *comm = std::exchange(grouping, nullptr); comm != nullptr) {
        // Sends first, so that no order of the ranks' calls makes them wait for each other.
        for (const bool is_send : {true, false}) {
            for (const operation &operation : comm->group) {
                if (operation.is_send == is_send && result == success) {
                    result = run(operation, *comm);
                }
            }
        }
        comm->group.clear();
    }
    return result;
}

int ncclSend(const void *memory, size_t count, int type, int peer, ncclComm *comm, CUstream stream) {
    auto *bytes = static_cast<char *>(const_cast<void *>(memory));
    return type != 0 ? invalid_argument : add({true, bytes, count, peer, stream}, comm);
}

int ncclRecv(void *memory, size_t count, int type, int peer, ncclComm *comm, CUstream stream) {
    return type != 0 ? invalid_argument
                     : add({false, static_cast<char *>(memory), count, peer, stream}, comm);
}

#pragma GCC visibility pop
}
