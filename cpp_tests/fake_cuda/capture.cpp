// Stream capture, and the calls that it forbids: section "Creating a Graph Using Stream
// Capture" of the CUDA programming guide, and cuThreadExchangeStreamCaptureMode of the driver's manual.
#include <algorithm>

#include "state.h"

using namespace fake_cuda;

namespace fake_cuda {

void invalidate(capture &capture) { capture.invalid = true; }

void check_is_valid(const capture &capture) {
    if (capture.invalid) {
        fail(CUDA_ERROR_STREAM_CAPTURE_INVALIDATED);
    }
}

void check_call_is_safe() {
    const thread &self = this_thread();
    bool unsafe = false;
    for (const auto &[handle, stream] : driver_state().streams) {
        if (stream->capture == nullptr) {
            continue;
        }
        capture &capture = *stream->capture;
        const bool forbids_own = capture.thread == self.number &&
                                 capture.mode != CU_STREAM_CAPTURE_MODE_RELAXED &&
                                 self.capture_mode != CU_STREAM_CAPTURE_MODE_RELAXED;
        const bool forbids_all = capture.mode == CU_STREAM_CAPTURE_MODE_GLOBAL &&
                                 self.capture_mode == CU_STREAM_CAPTURE_MODE_GLOBAL;
        if (forbids_own || forbids_all) {
            invalidate(capture);
            unsafe = true;
        }
    }
    if (unsafe) {
        fail(CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED);
    }
}

void check_legacy_is_allowed(const stream &stream) {
    if (!stream.legacy) {
        return;
    }
    bool captures = false;
    for (const auto &[handle, other] : driver_state().streams) {
        if (other->capture != nullptr && other->blocking && other->context == stream.context) {
            invalidate(*other->capture);
            captures = true;
        }
    }
    if (captures) {
        fail(CUDA_ERROR_STREAM_CAPTURE_IMPLICIT);
    }
}

void check_can_wait_for(const stream &stream) {
    if (stream.capture != nullptr) {
        invalidate(*stream.capture);
        fail(CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED);
    }
    check_legacy_is_allowed(stream);
}

/// Runs the nodes in a random order that their dependencies allow.
void run(const graph &graph) {
    std::vector<size_t> remaining(graph.nodes.size());
    std::vector<bool> done(graph.nodes.size());
    for (size_t i = 0; i < remaining.size(); i++) {
        remaining[i] = i;
    }
    while (!remaining.empty()) {
        std::shuffle(remaining.begin(), remaining.end(), driver_state().random);
        const auto is_done = [&](size_t node) { return done[node]; };
        const auto is_ready = [&](size_t node) {
            const auto &after = graph.nodes[node].after;
            return std::all_of(after.begin(), after.end(), is_done);
        };
        const auto next = std::find_if(remaining.begin(), remaining.end(), is_ready);
        if (graph.nodes[*next].work) {
            graph.nodes[*next].work();
        }
        done[*next] = true;
        remaining.erase(next);
    }
}

} // namespace fake_cuda

namespace {

/// Whether `last` depends on all nodes of the graph, or has them.
bool leads_to(const graph &graph, const std::vector<size_t> &last) {
    std::vector<bool> reached(graph.nodes.size());
    for (const size_t node : last) {
        reached[node] = true;
    }
    for (size_t node = graph.nodes.size(); node-- > 0;) {
        if (!reached[node]) {
            return false;
        }
        for (const size_t earlier : graph.nodes[node].after) {
            reached[earlier] = true;
        }
    }
    return true;
}

void end_capture(const std::shared_ptr<capture> &ended) {
    for (const auto &[handle, stream] : driver_state().streams) {
        if (stream->capture == ended) {
            stream->capture = nullptr;
            stream->last_nodes.clear();
        }
    }
    ended->origin = nullptr;
}

} // namespace

CUresult cuStreamBeginCapture_v2(CUstream handle, CUstreamCaptureMode mode) {
    return call(__func__, [&] {
        stream &stream = stream_of(handle);
        if (mode > CU_STREAM_CAPTURE_MODE_RELAXED) {
            fail(CUDA_ERROR_INVALID_VALUE);
        }
        if (stream.legacy) {
            fail(CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED);
        }
        if (stream.capture != nullptr) {
            fail(CUDA_ERROR_ILLEGAL_STATE);
        }
        stream.capture = std::make_shared<capture>();
        stream.capture->origin = &stream;
        stream.capture->mode = mode;
        stream.capture->thread = this_thread().number;
    });
}

CUresult cuStreamEndCapture(CUstream handle, CUgraph *graph) {
    return call(__func__, [&] {
        const stream &stream = stream_of(handle);
        store(graph, CUgraph(nullptr));
        const auto capture = stream.capture;
        if (capture == nullptr) {
            fail(CUDA_ERROR_ILLEGAL_STATE);
        }
        if (capture->origin != &stream) {
            fail(CUDA_ERROR_STREAM_CAPTURE_UNMATCHED);
        }
        if (capture->mode != CU_STREAM_CAPTURE_MODE_RELAXED && capture->thread != this_thread().number) {
            fail(CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD);
        }
        const bool joined = leads_to(capture->graph, stream.last_nodes);
        end_capture(capture);
        check_is_valid(*capture);
        if (!joined) {
            fail(CUDA_ERROR_STREAM_CAPTURE_UNJOINED);
        }
        *graph = driver_state().graphs.add(std::make_shared<fake_cuda::graph>(std::move(capture->graph)));
    });
}

CUresult cuStreamIsCapturing(CUstream handle, CUstreamCaptureStatus *status) {
    return call(__func__, [&] {
        if (handle == nullptr || handle == CU_STREAM_LEGACY) {
            // The only use of the legacy stream that does not invalidate captures.
            const context &current = current_context();
            for (const auto &[other_handle, other] : driver_state().streams) {
                if (other->capture != nullptr && other->blocking && other->context == &current) {
                    fail(CUDA_ERROR_STREAM_CAPTURE_IMPLICIT);
                }
            }
            store(status, CU_STREAM_CAPTURE_STATUS_NONE);
            return;
        }
        const auto &capture = handle == CU_STREAM_PER_THREAD ? stream_of(handle).capture
                                                             : driver_state().streams.get(handle)->capture;
        store(status, capture == nullptr ? CU_STREAM_CAPTURE_STATUS_NONE
                      : capture->invalid ? CU_STREAM_CAPTURE_STATUS_INVALIDATED
                                         : CU_STREAM_CAPTURE_STATUS_ACTIVE);
    });
}

CUresult cuThreadExchangeStreamCaptureMode(CUstreamCaptureMode *mode) {
    return call(__func__, [&] {
        if (mode == nullptr || *mode > CU_STREAM_CAPTURE_MODE_RELAXED) {
            fail(CUDA_ERROR_INVALID_VALUE);
        }
        std::swap(*mode, this_thread().capture_mode);
    });
}

CUresult cuGraphInstantiateWithFlags(CUgraphExec *exec, CUgraph graph, unsigned long long) {
    return call(__func__, [&] {
        current_context();
        store(exec, CUgraphExec(nullptr));
        *exec = driver_state().graph_execs.add(
            std::make_shared<graph_exec>(graph_exec{*driver_state().graphs.get(graph)}));
    });
}

CUresult cuGraphLaunch(CUgraphExec exec, CUstream handle) {
    return call(__func__, [&] {
        // The copied pointer keeps the graph alive if it is destroyed before it runs.
        submit(stream_of(handle),
               [launched = driver_state().graph_execs.get(exec)] { run(launched->graph); });
    });
}

CUresult cuGraphExecDestroy(CUgraphExec exec) {
    return call_that_releases(__func__, [&] {
        driver_state().graph_execs.get(exec);
        driver_state().graph_execs.erase(exec);
    });
}

CUresult cuGraphDestroy(CUgraph graph) {
    return call_that_releases(__func__, [&] {
        driver_state().graphs.get(graph);
        driver_state().graphs.erase(graph);
    });
}
