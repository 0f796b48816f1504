// Times of counting and routing a layer on a GPU, compared with the kernels of baselines.cu.
//
//     gpu_bench [--quick] [--image FILE]
//
// FILE is the compiled baselines.cu, by default baselines.ptx in the program's folder. `make gpu-bundle`
// makes a folder with both, which runs on any machine with a driver.
#include <cstdio>
#include <eplb.h>
#include <stdexcept>

#include "bench.h"
#include "files.h"

namespace {

/// The numbers of ids of a layer to measure: decoding, and a long prefill.
constexpr uint32_t few_ids = 2048, many_ids = 65536;

/// The target of eplb: microseconds to count `few_ids` ids of a layer in a graph, on an H100.
constexpr double counting_aim = 3;
/// The target for routing by these rules, relative to the copy.
constexpr double routing_aim = 1.5;
constexpr const char *rules_with_a_target[] = {"eplb, round robin", "eplb, token hash", "eplb, nearest"};

/// 2,048
std::string with_comma(uint32_t number) {
    std::string text = std::to_string(number);
    if (text.size() > 3) {
        text.insert(text.size() - 3, ",");
    }
    return text;
}

bool emulated() { return engine::get().fake() != nullptr; }

const timing &timing_of(const std::vector<timing> &timings, const std::string &name) {
    for (const timing &timing : timings) {
        if (timing.name == name) {
            return timing;
        }
    }
    throw std::runtime_error("no variant " + name);
}

/// The tables of a section, as Markdown. Ratios are to the section's first variant.
class section {
  public:
    void add(uint32_t num_ids, const std::vector<timing> &timings) {
        char line[200];
        const std::string ids = with_comma(num_ids);
        for (const auto &[mode, us] :
             {std::pair("eager", &timing::eager_us), std::pair("graph", &timing::graph_us)}) {
            for (const timing &timing : timings) {
                std::snprintf(line, sizeof line, "| %s | %s | %s | %.2f | %.2f |\n", ids.c_str(), mode,
                              timing.name.c_str(), timing.*us, timing.*us / timings.front().*us);
                device_ += line;
            }
        }
        for (const timing &timing : timings) {
            std::snprintf(line, sizeof line, "| %s | %s | %.0f |\n", ids.c_str(), timing.name.c_str(),
                          timing.host_ns);
            host_ += line;
        }
    }

    void print(const char *title, const char *first, const char *notes) const {
        std::printf(
            "## %s\n\n| ids | mode | variant | µs per layer | ratio to %s |\n|---:|---|---|---:|---:|\n"
            "%s\n%s\n\n",
            title, first, device_.c_str(), notes);
        std::printf("| ids | variant | host ns per layer, eager (CPU time of the calling thread) |\n"
                    "|---:|---|---:|\n%s\n",
                    host_.c_str());
    }

  private:
    std::string device_, host_;
};

/// Whether a target was reached. It is only reported.
const char *answer(bool reached) {
    return emulated() ? "not measurable on fake_cuda" : reached ? "yes" : "no";
}

void describe_device(const effort &effort) {
    char name[256] = "";
    int version = 0, multiprocessors = 0;
    const int device = engine::get().device();
    engine::check(driver().cuDeviceGetName(name, sizeof name, device), "cuDeviceGetName");
    engine::check(driver().cuDriverGetVersion(&version), "cuDriverGetVersion");
    engine::check(
        driver().cuDeviceGetAttribute(&multiprocessors, CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT, device),
        "cuDeviceGetAttribute");
    std::printf("%s, %d multiprocessors, driver for CUDA %d.%d, eplb %s\n", name, multiprocessors,
                version / 1000, version % 1000 / 10, eplb_version_string());
    if (emulated()) {
        std::printf("THE DRIVER IS fake_cuda, WHICH EMULATES A GPU. THE TIMES ARE MEANINGLESS.\n");
    }
    std::printf("%u experts, %u a token, int32 ids, %zu layers, medians of %zu repetitions. Each result is "
                "verified before it is measured.\neager: a layer's launches one after the other on a "
                "stream. graph: all layers in one CUDA graph.\n\n",
                num_experts, experts_per_token, effort.layers, effort.repetitions);
    std::fflush(stdout);
}

/// The baselines' kernels, compiled. fake_cuda contains them, and accepts any text that looks like PTX.
std::string baselines_image(const std::string &path) {
    std::string image = read_file(path);
    if (image.empty()) {
        if (!emulated()) {
            throw std::runtime_error(path + " could not be read; pass its path as --image FILE");
        }
        image = ".version 7.0\n";
    }
    return image;
}

void count(const effort &effort, const module &module) {
    section section;
    double us = 0;
    for (const uint32_t num_ids : {few_ids, many_ids}) {
        const std::vector<timing> timings = measure_counting(num_ids, effort, module);
        section.add(num_ids, timings);
        us = num_ids == few_ids ? timing_of(timings, "eplb").graph_us : us;
    }
    section.print("Counting", "eplb",
                  "off: nothing is being counted. torch.bincount-style: eager, the host waits for the "
                  "maximum; the graph, which cannot, skips that.");
    std::printf("%s ids in a graph take at most %.0f µs a layer (the aim on an H100): %.2f µs, %s\n\n",
                with_comma(few_ids).c_str(), counting_aim, us, answer(us <= counting_aim));
    std::fflush(stdout);
}

void route(const effort &effort, const module &module) {
    section section;
    std::string aims;
    // With a fiber for each thread, `many_ids` would take half a minute.
    for (const uint32_t num_ids : {few_ids, emulated() ? 2 * few_ids : many_ids}) {
        const std::vector<timing> timings = measure_routing(num_ids, effort, module);
        section.add(num_ids, timings);
        double ratio = 0;
        for (const char *rule : rules_with_a_target) {
            ratio = std::max(ratio, timing_of(timings, rule).graph_us / timings.front().graph_us);
        }
        char line[200];
        std::snprintf(line, sizeof line,
                      "%s ids in a graph take at most %.1f times as long as the copy by round robin, token "
                      "hash and nearest (the target): %.2f, %s\n",
                      with_comma(num_ids).c_str(), routing_aim, ratio, answer(ratio <= routing_aim));
        aims += line;
    }
    section.print(
        "Routing", "copy",
        "copy: reads the ids and writes as many. all ranks' counts: registered, so that the rule "
        "splits their sum. and counting: in the same pass. TensorRT-LLM-style: its route kernel, the "
        "same slots as round robin.");
    std::printf("%s", aims.c_str());
}

} // namespace

int main(int argc, char **argv) {
    const std::string program = argv[0];
    std::string image = program.substr(0, program.rfind('/') + 1) + "baselines.ptx";
    bool quick = false;
    for (int i = 1; i < argc; i++) {
        const std::string argument = argv[i];
        if (argument == "--quick") {
            quick = true;
        } else if (argument == "--image" && i + 1 < argc) {
            image = argv[++i];
        } else {
            std::fprintf(stderr, "usage: gpu_bench [--quick] [--image FILE]\n");
            return 2;
        }
    }
    // engine.h reads it.
    setenv("EPLB_TEST_DEVICE", "cuda", 1);
    try {
        const effort effort = emulated() ? ::effort{2, 1, 0}
                              : quick    ? ::effort{58, 50, 0.1}
                                         : ::effort{58, 500, 0.5};
        describe_device(effort);
        const module module(baselines_image(image));
        count(effort, module);
        route(effort, module);
    } catch (const std::exception &error) {
        std::fflush(stdout);
        std::fprintf(stderr, "gpu_bench: %s\n", error.what());
        return 1;
    }
}
