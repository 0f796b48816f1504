// What expert parallelism needs of a communication library: one collective call, and pairs of messages.
#ifndef MOE_ENGINE_TRANSPORT_H
#define MOE_ENGINE_TRANSPORT_H

#include <algorithm>
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

    /// The sum of all ranks' values, and their maximum, on every rank: all-reduces. All have equally many.
    template <class T> std::vector<T> sum(const std::vector<T> &values) {
        return reduce(values, [](T a, T b) { return a + b; });
    }
    template <class T> std::vector<T> max(const std::vector<T> &values) {
        return reduce(values, [](T a, T b) { return std::max(a, b); });
    }

    /// Sends `send` to rank `to` and returns `receive_bytes` from rank `from`; -1: nothing. All ranks call it
    /// together, and each one's `to` has it as its `from`.
    virtual std::vector<char> send_receive(const std::vector<char> &send, int to, int from,
                                           size_t receive_bytes) = 0;

  private:
    template <class T, class Operation>
    std::vector<T> reduce(const std::vector<T> &values, Operation operation) {
        const auto ranks = static_cast<size_t>(num_ranks());
        std::vector<T> send;
        for (size_t rank = 0; rank < ranks; rank++) {
            send.insert(send.end(), values.begin(), values.end());
        }
        const std::vector<size_t> counts(ranks, values.size());
        const std::vector<T> of_ranks = all_to_all(send, counts, counts);
        std::vector<T> result = values;
        for (size_t i = 0; i < values.size(); i++) {
            result[i] = of_ranks[i];
            for (size_t rank = 1; rank < ranks; rank++) {
                result[i] = operation(result[i], of_ranks[rank * values.size() + i]);
            }
        }
        return result;
    }

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
