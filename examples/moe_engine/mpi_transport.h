#ifndef MOE_ENGINE_MPI_TRANSPORT_H
#define MOE_ENGINE_MPI_TRANSPORT_H

#include <functional>

#include "transport.h"

/// Runs `rank_main` as this process's rank under mpirun. If it throws, all ranks end.
void run_on_mpi(const std::function<void(transport &)> &rank_main);

#endif
