#ifndef MOE_ENGINE_MPI_TRANSPORT_H
#define MOE_ENGINE_MPI_TRANSPORT_H

#include <functional>

#include "transport.h"

/// Runs `rank_main` as this process's rank of those that mpirun started. Where it throws, all of them end.
void run_on_mpi(const std::function<void(transport &)> &rank_main);

#endif
