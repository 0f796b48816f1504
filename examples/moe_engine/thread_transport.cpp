#include "thread_transport.h"

#include <condition_variable>
#include <cstring>
#include <exception>
#include <mutex>
#include <string>
#include <thread>

namespace {

/// Thrown in ranks that wait for a rank that failed.
struct aborted {};

/// A barrier of all ranks, and the messages that they exchange at it.
class rank_barrier {
  public:
    explicit rank_barrier(int num_ranks) : messages(num_ranks), num_ranks_(num_ranks) {}

    /// The data that a rank sends. The other ranks copy theirs from it.
    struct message {
        const char *send;
        const std::vector<int> *bytes;
    };
    std::vector<message> messages;

    /// Waits for all ranks.
    void wait() {
        std::unique_lock<std::mutex> lock(mutex_);
        const unsigned generation = generation_;
        if (++arrived_ == num_ranks_) {
            arrived_ = 0;
            generation_++;
            all_arrived_.notify_all();
        }
        all_arrived_.wait(lock, [&] { return generation_ != generation || failure_ != nullptr; });
        if (generation_ == generation) {
            throw aborted();
        }
    }

    void fail(std::exception_ptr failure) {
        const std::lock_guard<std::mutex> lock(mutex_);
        if (failure_ == nullptr) {
            failure_ = std::move(failure);
        }
        all_arrived_.notify_all();
    }

    void rethrow() const {
        if (failure_ != nullptr) {
            std::rethrow_exception(failure_);
        }
    }

  private:
    const int num_ranks_;
    std::mutex mutex_;
    std::condition_variable all_arrived_;
    int arrived_ = 0;
    unsigned generation_ = 0;
    std::exception_ptr failure_;
};

class thread_transport : public transport {
  public:
    thread_transport(int rank, rank_barrier &barrier) : rank_(rank), barrier_(barrier) {}

    int rank() const override { return rank_; }
    int num_ranks() const override { return static_cast<int>(barrier_.messages.size()); }

    std::vector<char> send_receive(const std::vector<char> &send, int to, int from,
                                   size_t receive_bytes) override {
        std::vector<int> send_to(barrier_.messages.size());
        if (to >= 0) {
            send_to[static_cast<size_t>(to)] = static_cast<int>(send.size());
        }
        std::vector<int> receive_from(barrier_.messages.size());
        std::vector<char> received(from >= 0 ? receive_bytes : 0);
        if (from >= 0) {
            receive_from[static_cast<size_t>(from)] = static_cast<int>(receive_bytes);
        }
        exchange(send.data(), send_to, received.data(), receive_from);
        return received;
    }

  private:
    void exchange(const void *send, const std::vector<int> &send_bytes, void *receive,
                  const std::vector<int> &receive_bytes) override {
        barrier_.messages[rank_] = {static_cast<const char *>(send), &send_bytes};
        barrier_.wait();
        char *to = static_cast<char *>(receive);
        std::string mismatch;
        for (size_t from = 0; from < barrier_.messages.size(); from++) {
            const auto &[data, bytes] = barrier_.messages[from];
            const size_t before = std::accumulate(bytes->begin(), bytes->begin() + rank_, size_t(0));
            if ((*bytes)[rank_] != receive_bytes[from]) {
                mismatch = "rank " + std::to_string(from) + " sends rank " + std::to_string(rank_) +
                           " another number of bytes than it expects";
            } else if (receive_bytes[from] != 0) {
                std::memcpy(to, data + before, receive_bytes[from]);
            }
            to += receive_bytes[from];
        }
        barrier_.wait(); // The sent values must live until all ranks have copied theirs.
        if (!mismatch.empty()) {
            throw std::logic_error(mismatch);
        }
    }

    int rank_;
    rank_barrier &barrier_;
};

} // namespace

void run_on_threads(int num_ranks, const std::function<void(transport &)> &rank_main) {
    rank_barrier barrier(num_ranks);
    std::vector<std::thread> threads;
    const auto on_thread = [&barrier, &rank_main](int rank) {
        try {
            thread_transport transport(rank, barrier);
            rank_main(transport);
        } catch (const aborted &) {
        } catch (...) {
            barrier.fail(std::current_exception());
        }
    };
    try {
        for (int rank = 0; rank < num_ranks; rank++) {
            threads.emplace_back(on_thread, rank);
        }
    } catch (...) { // A thread could not be started.
        barrier.fail(std::current_exception());
    }
    for (std::thread &thread : threads) {
        thread.join();
    }
    barrier.rethrow();
}
