// Routes a layer's ids to slots: eplb's rules, compared with a copy and TensorRT-LLM's kernel. Every slot is
// compared with route_reference.h.
#include <eplb_tools.hpp>
#include <stdexcept>

#include "baselines.h"
#include "bench.h"
#include "recording.h"
#include "route_reference.h"
#include "skewed_ids.h"

namespace {

constexpr uint32_t num_ranks = 8, num_slots = 320;
/// The rank that routes.
constexpr uint32_t this_rank = 3;
const std::vector<int32_t> rank_to_node = {0, 0, 0, 0, 1, 1, 1, 1};

/// [layers][ids].
using slots_of_layers = std::vector<std::vector<int32_t>>;

/// The placement for the ids of all ranks.
eplb::placement solve_for(const skewed_ids &ids) {
    std::vector<double> loads;
    std::vector<int32_t> layer_ids;
    for (size_t layer = 0; layer < ids.layers(); layer++) {
        std::vector<double> of_layer(num_experts);
        for (const auto &of_rank : ids.rank_counts(layer)) {
            std::transform(of_rank.begin(), of_rank.end(), of_layer.begin(), of_layer.begin(),
                           [](uint64_t count, double load) { return load + double(count); });
        }
        loads.insert(loads.end(), of_layer.begin(), of_layer.end());
        layer_ids.push_back(int32_t(layer));
    }
    eplb::placement_config shape;
    shape.num_experts = num_experts;
    shape.num_ranks = num_ranks;
    shape.num_slots = num_slots;
    return eplb::solve(shape, layer_ids, loads);
}

/// The expected slots of each rule.
struct expected_slots {
    slots_of_layers copy, round_robin, token_hash, nearest, least_loaded, least_loaded_of_all;

    expected_slots(const skewed_ids &ids, const eplb::placement &placement) {
        for (size_t layer = 0; layer < ids.layers(); layer++) {
            const auto experts = placement.layer_experts(int32_t(layer));
            const layer_placement placed = {num_experts, num_ranks, {experts.begin(), experts.end()}};
            const std::vector<int32_t> batch = ids.on_host(layer);
            copy.push_back(batch);
            round_robin.push_back(::round_robin(placed, batch, batch.size(), this_rank));
            token_hash.push_back(::token_hash(placed, batch, batch.size(), experts_per_token));
            nearest.push_back(::nearest(placed, batch, batch.size(), this_rank, rank_to_node));
            least_loaded.push_back(::least_loaded(placed, batch, batch.size()));
            least_loaded_of_all.push_back(
                ::least_loaded(placed, batch, batch.size(), this_rank, ids.rank_counts(layer)));
        }
    }
};

/// The buffers that every variant writes its slots to.
class slots_on_device {
  public:
    slots_on_device(size_t layers, uint32_t num_ids, const engine_stream &stream)
        : num_ids_(num_ids), stream_(stream), slots_(layers * num_ids), on_host_(layers * num_ids) {}

    int32_t *of(size_t layer) const { return slots_.data() + layer * num_ids_; }

    /// Checks that `work` writes the expected slots.
    variant::check check(const slots_of_layers &expected) const {
        return [this, &expected](const std::function<void()> &work, const std::string &name) {
            fill(slots_, 0xffffffff, stream_);
            work();
            on_host_.download(slots_, stream_);
            for (size_t layer = 0; layer < expected.size(); layer++) {
                for (size_t i = 0; i < num_ids_; i++) {
                    const int32_t found = on_host_[layer * num_ids_ + i], slot = expected[layer][i];
                    if (found != slot) {
                        throw std::runtime_error(name + " routes wrong: layer " + std::to_string(layer) +
                                                 ", id " + std::to_string(i) + " goes to " +
                                                 std::to_string(found) + ", expected " +
                                                 std::to_string(slot));
                    }
                }
            }
        };
    }

  private:
    uint32_t num_ids_;
    const engine_stream &stream_;
    engine_array<int32_t> slots_;
    pinned<int32_t> on_host_;
};

eplb::dispatch dispatch_by(const eplb::placement &placement, eplb_rule rule) {
    eplb::dispatch_config config;
    config.rank = this_rank;
    config.num_ranks = num_ranks;
    config.experts_per_token = experts_per_token;
    config.rank_to_node = rank_to_node;
    config.device = engine::get().device();
    config.rule = rule;
    config.offset_by_rank = true;
    return eplb::dispatch::create(placement, config);
}

/// int32 [layers][ranks][experts].
std::vector<int32_t> gathered_counts(const skewed_ids &ids) {
    std::vector<int32_t> gathered;
    for (size_t layer = 0; layer < ids.layers(); layer++) {
        for (const auto &of_rank : ids.rank_counts(layer)) {
            gathered.insert(gathered.end(), of_rank.begin(), of_rank.end());
        }
    }
    return gathered;
}

} // namespace

std::vector<timing> measure_routing(uint32_t num_ids, const effort &effort, const module &module) {
    const engine_stream stream;
    const skewed_ids ids(effort.layers, num_ids, stream, num_ranks, this_rank);
    const eplb::placement placement = solve_for(ids);
    const expected_slots expected(ids, placement);
    const slots_on_device slots(effort.layers, num_ids, stream);

    const eplb::dispatch round_robin = dispatch_by(placement, EPLB_RULE_ROUND_ROBIN),
                         token_hash = dispatch_by(placement, EPLB_RULE_TOKEN_HASH),
                         nearest = dispatch_by(placement, EPLB_RULE_NEAREST),
                         least_loaded = dispatch_by(placement, EPLB_RULE_LEAST_LOADED);
    const auto route_by = [&](const eplb::dispatch &dispatch) {
        return [&](size_t layer, CUstream on) {
            dispatch.route(int32_t(layer), ids.on_device(layer), ids.num_tokens(), nullptr, slots.of(layer),
                           on);
        };
    };

    eplb::dispatch least_loaded_of_all = dispatch_by(placement, EPLB_RULE_LEAST_LOADED);
    const std::vector<int32_t> gathered = gathered_counts(ids);
    const engine_array<int32_t> rank_counts(gathered.size());
    rank_counts.upload(gathered, stream);
    stream.synchronize();
    for (size_t layer = 0; layer < effort.layers; layer++) {
        least_loaded_of_all.register_rank_counts(
            int32_t(layer), rank_counts.data() + layer * num_ranks * num_experts, EPLB_DTYPE_INT32);
    }

    recording recording(ids, stream);
    const auto route_and_count = [&](size_t layer, CUstream on) {
        round_robin.route_and_count(recording.recorder(), int32_t(layer), ids.on_device(layer),
                                    ids.num_tokens(), nullptr, slots.of(layer), on);
    };
    const auto check_slots_and_counts = [&](const std::function<void()> &work, const std::string &name) {
        recording.verify([&] { slots.check(expected.round_robin)(work, name); }, name);
    };

    const kernel copy = {module["copy"], blocks_for(num_ids, 4 * COPY_THREADS), COPY_THREADS};
    const auto run_copy = [&](size_t layer, CUstream on) {
        copy.launch(on, ids.on_device(layer), slots.of(layer), num_ids);
    };
    const kernel trtllm = {module["trtllm_route"], blocks_for(num_ids, TRTLLM_BLOCK), TRTLLM_THREADS,
                           num_slots * sizeof(int16_t)};
    static_assert(num_experts <= TRTLLM_EXPERTS, "trtllm_route supports too few experts");
    std::vector<eplb_dispatch_tables> tables;
    for (size_t layer = 0; layer < effort.layers; layer++) {
        tables.push_back(round_robin.tables(int32_t(layer)));
    }
    const auto run_trtllm = [&](size_t layer, CUstream on) {
        const eplb_dispatch_tables &of_layer = tables[layer];
        trtllm.launch(on, ids.on_device(layer), slots.of(layer), num_ids, of_layer.replica_count,
                      of_layer.replica_start, of_layer.slot_ids, num_experts, num_slots, this_rank);
    };

    const auto same = [](const char *name, const variant::run &run, const variant::check &check) {
        return variant{name, run, run, check};
    };
    return measure(
        {
            same("copy", run_copy, slots.check(expected.copy)),
            same("eplb, round robin", route_by(round_robin), slots.check(expected.round_robin)),
            same("eplb, token hash", route_by(token_hash), slots.check(expected.token_hash)),
            same("eplb, nearest", route_by(nearest), slots.check(expected.nearest)),
            same("eplb, least loaded", route_by(least_loaded), slots.check(expected.least_loaded)),
            same("eplb, least loaded, all ranks' counts", route_by(least_loaded_of_all),
                 slots.check(expected.least_loaded_of_all)),
            same("eplb, round robin and counting", route_and_count, check_slots_and_counts),
            same("TensorRT-LLM-style", run_trtllm, slots.check(expected.round_robin)),
        },
        effort, stream);
}
