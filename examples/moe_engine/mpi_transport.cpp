#include "mpi_transport.h"

#include <cstdio>

#include <mpi.h>

#include "rebalance.h"

namespace {

class mpi_transport : public transport {
  public:
    mpi_transport() {
        MPI_Comm_rank(MPI_COMM_WORLD, &rank_);
        MPI_Comm_size(MPI_COMM_WORLD, &num_ranks_);
    }

    int rank() const override { return rank_; }
    int num_ranks() const override { return num_ranks_; }

    std::vector<char> send_receive(const std::vector<char> &send, int to, int from,
                                   size_t receive_bytes) override {
        std::vector<char> received(from >= 0 ? receive_bytes : 0);
        MPI_Sendrecv(send.data(), static_cast<int>(send.size()), MPI_BYTE, to >= 0 ? to : MPI_PROC_NULL, 0,
                     received.data(), static_cast<int>(received.size()), MPI_BYTE,
                     from >= 0 ? from : MPI_PROC_NULL, 0, MPI_COMM_WORLD, MPI_STATUS_IGNORE);
        return received;
    }

  private:
    void exchange(const void *send, const std::vector<int> &send_bytes, void *receive,
                  const std::vector<int> &receive_bytes) override {
        const std::vector<int> send_starts = starts(send_bytes), receive_starts = starts(receive_bytes);
        MPI_Alltoallv(send, send_bytes.data(), send_starts.data(), MPI_BYTE, receive, receive_bytes.data(),
                      receive_starts.data(), MPI_BYTE, MPI_COMM_WORLD);
    }

    static std::vector<int> starts(const std::vector<int> &bytes) {
        std::vector<int> starts(bytes.size());
        for (size_t rank = 1; rank < bytes.size(); rank++) {
            starts[rank] = starts[rank - 1] + bytes[rank - 1];
        }
        return starts;
    }

    int rank_, num_ranks_;
};

} // namespace

void run_on_mpi(const std::function<void(transport &)> &rank_main) {
    int provided = 0; // The recorder's own thread writes the dump and does not call MPI.
    MPI_Init_thread(nullptr, nullptr, MPI_THREAD_FUNNELED, &provided);
    mpi_transport transport;
    try {
        rank_main(transport);
    } catch (const std::exception &e) {
        std::fprintf(stderr, "rank %d: error: %s\n", transport.rank(), e.what());
        MPI_Abort(MPI_COMM_WORLD, exit_code(e));
    }
    MPI_Finalize();
}
