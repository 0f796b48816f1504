#include "mpi_transport.h"

#include <cstdio>

#include <mpi.h>

namespace {

class mpi_transport : public transport {
  public:
    mpi_transport() {
        MPI_Comm_rank(MPI_COMM_WORLD, &rank_);
        MPI_Comm_size(MPI_COMM_WORLD, &num_ranks_);
    }

    int rank() const override { return rank_; }
    int num_ranks() const override { return num_ranks_; }

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
        MPI_Abort(MPI_COMM_WORLD, 1);
    }
    MPI_Finalize();
}
