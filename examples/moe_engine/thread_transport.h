#ifndef MOE_ENGINE_THREAD_TRANSPORT_H
#define MOE_ENGINE_THREAD_TRANSPORT_H

#include <functional>

#include "transport.h"

/// Runs `rank_main` on a thread for each rank. If one throws, the others stop at their next exchange, and the
/// first exception is rethrown.
void run_on_threads(int num_ranks, const std::function<void(transport &)> &rank_main);

#endif
