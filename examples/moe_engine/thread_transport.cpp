#include "thread_transport.h"

#include <condition_variable>
#include <cstring>
#include <exception>
#include <mutex>
#include <string>
#include <thread>

namespace {

/// Thrown in ranks that wait for a failed one.
struct abandoned {};

/// The place where the ranks meet.
class meeting_point {
  public:
    explicit meeting_point(int num_ranks) : posts(num_ranks), num_ranks_(num_ranks) {}

    /// What a rank sends, for the others to take.
    struct post {
        const char *send;
        const std::vector<int> *bytes;
    };
    std::vector<post> posts;

    /// Waits for all ranks.
    void meet() {
        std::unique_lock<std::mutex> lock(mutex_);
        const unsigned meeting = meeting_;
        if (++arrived_ == num_ranks_) {
            arrived_ = 0;
            meeting_++;
            all_here_.notify_all();
        }
        all_here_.wait(lock, [&] { return meeting_ != meeting || failure_ != nullptr; });
        if (meeting_ == meeting) {
            throw abandoned();
        }
    }

    void fail(std::exception_ptr failure) {
        const std::lock_guard<std::mutex> lock(mutex_);
        if (failure_ == nullptr) {
            failure_ = std::move(failure);
        }
        all_here_.notify_all();
    }

    void rethrow() const {
        if (failure_ != nullptr) {
            std::rethrow_exception(failure_);
        }
    }

  private:
    const int num_ranks_;
    std::mutex mutex_;
    std::condition_variable all_here_;
    int arrived_ = 0;
    unsigned meeting_ = 0;
    std::exception_ptr failure_;
};

class thread_transport : public transport {
  public:
    thread_transport(int rank, meeting_point &point) : rank_(rank), point_(point) {}

    int rank() const override { return rank_; }
    int num_ranks() const override { return static_cast<int>(point_.posts.size()); }

  private:
    void exchange(const void *send, const std::vector<int> &send_bytes, void *receive,
                  const std::vector<int> &receive_bytes) override {
        point_.posts[rank_] = {static_cast<const char *>(send), &send_bytes};
        point_.meet();
        char *to = static_cast<char *>(receive);
        std::string mismatch;
        for (size_t from = 0; from < point_.posts.size(); from++) {
            const auto &[data, bytes] = point_.posts[from];
            const size_t before = std::accumulate(bytes->begin(), bytes->begin() + rank_, size_t(0));
            if ((*bytes)[rank_] != receive_bytes[from]) {
                mismatch = "rank " + std::to_string(from) + " sends rank " + std::to_string(rank_) +
                           " another number of bytes than it expects";
            } else if (receive_bytes[from] != 0) {
                std::memcpy(to, data + before, receive_bytes[from]);
            }
            to += receive_bytes[from];
        }
        point_.meet(); // The sent values must live until all ranks have copied theirs.
        if (!mismatch.empty()) {
            throw std::logic_error(mismatch);
        }
    }

    int rank_;
    meeting_point &point_;
};

} // namespace

void run_on_threads(int num_ranks, const std::function<void(transport &)> &rank_main) {
    meeting_point point(num_ranks);
    std::vector<std::thread> threads;
    const auto on_thread = [&point, &rank_main](int rank) {
        try {
            thread_transport transport(rank, point);
            rank_main(transport);
        } catch (const abandoned &) {
        } catch (...) {
            point.fail(std::current_exception());
        }
    };
    try {
        for (int rank = 0; rank < num_ranks; rank++) {
            threads.emplace_back(on_thread, rank);
        }
    } catch (...) { // A thread could not be started.
        point.fail(std::current_exception());
    }
    for (std::thread &thread : threads) {
        thread.join();
    }
    point.rethrow();
}
