// Streams, events and operations. Each operation has those that must run before it, so that a call that needs
// one runs only these.
#include <algorithm>
#include <cstdio>

#include "state.h"

using namespace fake_cuda;

namespace fake_cuda {

stream &stream_of(CUstream handle) {
    context &current = current_context();
    if (handle == nullptr || handle == CU_STREAM_LEGACY) {
        return *current.legacy;
    }
    if (handle == CU_STREAM_PER_THREAD) {
        auto &own = current.per_thread[std::this_thread::get_id()];
        if (own == nullptr) {
            own = std::make_shared<stream>();
            own->context = &current;
            own->blocking = true;
        }
        return *own;
    }
    stream &stream = *driver_state().streams.get(handle);
    check_not_failed(*stream.context);
    return stream;
}

namespace {

void run_one(operation &operation) {
    context &context = *operation.context;
    if (context.failure == CUDA_SUCCESS && operation.work) {
        try {
            operation.work();
        } catch (const emulation::error &error) {
            std::fprintf(stderr, "fake_cuda: %s\n", error.what());
            context.failure = CUDA_ERROR_LAUNCH_FAILED;
        } catch (const call_failure &failure) {
            context.failure = failure.error;
        }
    }
    operation.done = true;
    operation.finished = std::chrono::steady_clock::now();
    operation.work = nullptr;
    operation.after.clear();
    auto &pending = context.pending;
    const auto is_it = [&](const auto &candidate) { return candidate.get() == &operation; };
    pending.erase(std::remove_if(pending.begin(), pending.end(), is_it), pending.end());
}

} // namespace

void finish(const std::shared_ptr<operation> &last) {
    // Not recursive, since queues may be long.
    std::vector<std::shared_ptr<operation>> stack = {last};
    while (!stack.empty()) {
        const auto next = stack.back();
        if (next == nullptr || next->done) {
            stack.pop_back();
            continue;
        }
        const auto is_open = [](const auto &earlier) { return earlier != nullptr && !earlier->done; };
        const auto open = std::find_if(next->after.begin(), next->after.end(), is_open);
        if (open != next->after.end()) {
            stack.push_back(*open);
        } else {
            run_one(*next);
        }
    }
}

void finish_all(context &context) {
    while (!context.pending.empty()) {
        finish(context.pending.front());
    }
}

void finish(stream &stream) {
    if (stream.legacy) {
        submit(stream, nullptr); // It waits for the same work as the legacy stream.
    }
    finish(stream.last);
}

void submit(stream &stream, std::function<void()> work, std::vector<std::shared_ptr<operation>> after) {
    if (stream.capture != nullptr) {
        check_is_valid(*stream.capture);
        auto &nodes = stream.capture->graph.nodes;
        nodes.push_back({std::move(work), stream.last_nodes});
        stream.last_nodes = {nodes.size() - 1};
        return;
    }
    check_legacy_is_allowed(stream);
    context &context = *stream.context;
    after.push_back(stream.last);
    if (stream.legacy) {
        for (const auto &earlier : context.pending) {
            if (earlier->blocking) {
                after.push_back(earlier);
            }
        }
    } else if (stream.blocking) {
        after.push_back(context.legacy->last);
    }
    stream.last = std::make_shared<operation>();
    stream.last->context = &context;
    stream.last->work = std::move(work);
    stream.last->after = std::move(after);
    stream.last->blocking = stream.blocking;
    context.pending.push_back(stream.last);
    if (!driver_state().deferred) {
        finish(stream.last);
        check_not_failed(context);
    }
}

} // namespace fake_cuda

CUresult cuStreamCreate(CUstream *stream, unsigned int flags) {
    return call(__func__, [&] {
        if (flags > CU_STREAM_NON_BLOCKING) {
            fail(CUDA_ERROR_INVALID_VALUE);
        }
        store(stream, CUstream(nullptr));
        auto created = std::make_shared<fake_cuda::stream>();
        created->context = &current_context();
        created->blocking = flags == CU_STREAM_DEFAULT;
        created->legacy = false;
        *stream = driver_state().streams.add(created);
    });
}

CUresult cuStreamDestroy_v2(CUstream stream) {
    return call_that_releases(__func__, [&] {
        current_context_even_failed();
        const auto dying = driver_state().streams.get(stream);
        if (dying->capture != nullptr) {
            invalidate(*dying->capture);
            if (dying->capture->origin == dying.get()) {
                dying->capture->origin = nullptr;
            }
        }
        // Its pending operations remain in the context.
        driver_state().streams.erase(stream);
        check_not_failed(*dying->context);
    });
}

CUresult cuStreamSynchronize(CUstream handle) {
    return call(__func__, [&] {
        stream &stream = stream_of(handle);
        check_can_wait_for(stream);
        check_call_is_safe();
        finish(stream);
        check_not_failed(*stream.context);
    });
}

CUresult cuStreamQuery(CUstream handle) {
    return call(__func__, [&] {
        const stream &stream = stream_of(handle);
        check_can_wait_for(stream);
        check_call_is_safe();
        const auto &pending = stream.context->pending;
        const auto is_blocking = [](const auto &operation) { return operation->blocking; };
        const bool busy = stream.legacy ? std::any_of(pending.begin(), pending.end(), is_blocking)
                                        : stream.last != nullptr && !stream.last->done;
        if (busy) {
            fail(CUDA_ERROR_NOT_READY);
        }
    });
}

CUresult cuStreamGetCtx(CUstream stream, CUcontext *context) {
    return call(__func__, [&] {
        // This call finds a stream's context, so it needs a current context only for the default streams.
        const bool of_current =
            stream == nullptr || stream == CU_STREAM_LEGACY || stream == CU_STREAM_PER_THREAD;
        store(context,
              of_current ? current_context().handle : driver_state().streams.get(stream)->context->handle);
    });
}

CUresult cuStreamWaitEvent(CUstream stream_handle, CUevent event_handle, unsigned int flags) {
    return call(__func__, [&] {
        stream &stream = stream_of(stream_handle);
        const event &event = *driver_state().events.get(event_handle);
        if (flags != 0) {
            fail(CUDA_ERROR_INVALID_VALUE);
        }
        if (event.capture != nullptr && stream.capture == nullptr) {
            // The stream joins the capture.
            if (event.capture->origin == nullptr) {
                fail(CUDA_ERROR_CAPTURED_EVENT);
            }
            check_is_valid(*event.capture);
            check_legacy_is_allowed(stream);
            if (stream.legacy) {
                invalidate(*event.capture);
                fail(CUDA_ERROR_STREAM_CAPTURE_IMPLICIT);
            }
            stream.capture = event.capture;
            stream.last_nodes = event.last_nodes;
        } else if (stream.capture != nullptr) {
            check_is_valid(*stream.capture);
            if (event.capture == nullptr || event.capture->origin == nullptr) {
                invalidate(*stream.capture);
                fail(CUDA_ERROR_STREAM_CAPTURE_ISOLATION);
            }
            if (event.capture != stream.capture) {
                invalidate(*stream.capture);
                invalidate(*event.capture);
                fail(CUDA_ERROR_STREAM_CAPTURE_MERGE);
            }
            stream.last_nodes.insert(stream.last_nodes.end(), event.last_nodes.begin(),
                                     event.last_nodes.end());
        } else {
            submit(stream, nullptr, {event.recorded});
        }
    });
}

CUresult cuEventCreate(CUevent *event, unsigned int flags) {
    return call(__func__, [&] {
        if (flags > (CU_EVENT_BLOCKING_SYNC | CU_EVENT_DISABLE_TIMING)) {
            fail(CUDA_ERROR_INVALID_VALUE);
        }
        store(event, CUevent(nullptr));
        auto created = std::make_shared<fake_cuda::event>();
        created->context = &current_context();
        created->timing = (flags & CU_EVENT_DISABLE_TIMING) == 0;
        *event = driver_state().events.add(created);
    });
}

CUresult cuEventDestroy_v2(CUevent event) {
    return call_that_releases(__func__, [&] {
        current_context_even_failed();
        const auto dying = driver_state().events.get(event);
        driver_state().events.erase(event);
        check_not_failed(*dying->context);
    });
}

CUresult cuEventRecord(CUevent event_handle, CUstream stream_handle) {
    return call(__func__, [&] {
        stream &stream = stream_of(stream_handle);
        event &event = *driver_state().events.get(event_handle);
        if (event.context != stream.context) {
            fail(CUDA_ERROR_INVALID_HANDLE);
        }
        if (stream.capture != nullptr) {
            check_is_valid(*stream.capture);
            event.capture = stream.capture;
            event.last_nodes = stream.last_nodes;
        } else {
            submit(stream, nullptr);
            event.capture = nullptr;
            event.recorded = stream.last;
        }
    });
}

namespace {

const event &event_to_wait_for(CUevent handle) {
    current_context();
    const event &event = *driver_state().events.get(handle);
    check_not_failed(*event.context);
    if (event.capture != nullptr) {
        invalidate(*event.capture);
        fail(CUDA_ERROR_CAPTURED_EVENT);
    }
    check_call_is_safe();
    return event;
}

} // namespace

CUresult cuEventSynchronize(CUevent handle) {
    return call(__func__, [&] {
        const event &event = event_to_wait_for(handle);
        finish(event.recorded);
        check_not_failed(*event.context);
    });
}

CUresult cuEventQuery(CUevent handle) {
    return call(__func__, [&] {
        const event &event = event_to_wait_for(handle);
        if (event.recorded != nullptr && !event.recorded->done) {
            fail(CUDA_ERROR_NOT_READY);
        }
    });
}

CUresult cuEventElapsedTime(float *milliseconds, CUevent start_handle, CUevent end_handle) {
    return call(__func__, [&] {
        const event &start = event_to_wait_for(start_handle);
        const event &end = event_to_wait_for(end_handle);
        if (!start.timing || !end.timing || start.recorded == nullptr || end.recorded == nullptr ||
            start.context != end.context) {
            fail(CUDA_ERROR_INVALID_HANDLE);
        }
        if (!start.recorded->done || !end.recorded->done) {
            fail(CUDA_ERROR_NOT_READY);
        }
        const std::chrono::duration<float, std::milli> elapsed =
            end.recorded->finished - start.recorded->finished;
        store(milliseconds, elapsed.count());
    });
}
