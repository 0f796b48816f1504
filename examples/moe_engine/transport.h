// What expert parallelism needs of a communication library: one collective call.
#ifndef MOE_ENGINE_TRANSPORT_H
#define MOE_ENGINE_TRANSPORT_H

#include <limits>
#include <numeric>
#include <stdexcept>
#include <vector>

/// A rank's connection to the other ranks of its expert-parallel group. All ranks make the same calls in the
/// same order.
class transport {
  public:
    virtual ~transport() = default;
    virtual int rank() const = 0;
    virtual int num_ranks() const = 0;

    /// Sends send[r] to rank r, and returns what each rank sent here.
    std::vector<int> all_to_all(const std::vector<int> &send) {
        const std::vector<int> one_each(send.size(), 1);
        return all_to_all(send, one_each, one_each);
    }

    /// Sends send_counts[r] values to rank r, `send` being those for rank 0, then those for rank 1, and so
    /// on; returns the receive_counts[r] values that each rank r sent here, in the same order.
    template <class T>
    std::vector<T> all_to_all(const std::vector<T> &send, const std::vector<int> &send_counts,
                              const std::vector<int> &receive_counts) {
        std::vector<T> receive(std::accumulate(receive_counts.begin(), receive_counts.end(), size_t(0)));
        exchange(send.data(), bytes(send_counts, sizeof(T)), receive.data(),
                 bytes(receive_counts, sizeof(T)));
        return receive;
    }

    /// On rank 0 what all ranks gave, in their order; on the others nothing. All give equally much.
    template <class T> std::vector<T> gather(const std::vector<T> &values) {
        const int count = static_cast<int>(values.size());
        std::vector<int> send(num_ranks()), receive(num_ranks(), rank() == 0 ? count : 0);
        send[0] = count;
        return all_to_all(values, send, receive);
    }

  private:
    virtual void exchange(const void *send, const std::vector<int> &send_bytes, void *receive,
                          const std::vector<int> &receive_bytes) = 0;

    static std::vector<int> bytes(std::vector<int> counts, size_t size) {
        size_t sum = 0;
        for (int &count : counts) {
            count *= static_cast<int>(size);
            sum += static_cast<size_t>(count);
        }
        if (sum > static_cast<size_t>(std::numeric_limits<int>::max())) {
            throw std::runtime_error("a rank has more than 2 GiB for the others: choose a smaller --batch");
        }
        return counts;
    }
};

#endif
