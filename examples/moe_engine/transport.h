// The one collective call that expert parallelism needs of a communication library.
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

    /// Sends send[r] to rank r, and returns the value of each rank.
    template <class T> std::vector<T> all_to_all(const std::vector<T> &send) {
        const std::vector<size_t> one_each(send.size(), 1);
        return all_to_all(send, one_each, one_each);
    }

    /// Sends send_counts[r] values to rank r: `send` has those for rank 0, then those for rank 1, and so on.
    /// Returns the receive_counts[r] values of each rank r, in the same order.
    template <class T>
    std::vector<T> all_to_all(const std::vector<T> &send, const std::vector<size_t> &send_counts,
                              const std::vector<size_t> &receive_counts) {
        std::vector<T> receive(std::accumulate(receive_counts.begin(), receive_counts.end(), size_t(0)));
        exchange(send.data(), bytes(send_counts, sizeof(T)), receive.data(),
                 bytes(receive_counts, sizeof(T)));
        return receive;
    }

    /// Returns the values of all ranks on rank 0, in their order, and nothing on the others. All ranks send
    /// equally many.
    template <class T> std::vector<T> gather(const std::vector<T> &values) {
        const auto ranks = static_cast<size_t>(num_ranks());
        std::vector<size_t> send(ranks), receive(ranks, rank() == 0 ? values.size() : 0);
        send[0] = values.size();
        return all_to_all(values, send, receive);
    }

  private:
    virtual void exchange(const void *send, const std::vector<int> &send_bytes, void *receive,
                          const std::vector<int> &receive_bytes) = 0;

    static std::vector<int> bytes(const std::vector<size_t> &counts, size_t size) {
        constexpr size_t most = std::numeric_limits<int>::max(); // As MPI counts.
        std::vector<int> bytes;
        size_t left = most;
        for (const size_t count : counts) {
            if (count > left / size) {
                throw std::runtime_error(
                    "a rank has more than 2 GiB for the others: choose a smaller --batch");
            }
            left -= count * size;
            bytes.push_back(static_cast<int>(count * size));
        }
        return bytes;
    }
};

#endif
