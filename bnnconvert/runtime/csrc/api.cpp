#include <atomic>
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <memory>
#include <new>
#include <string>
#include <vector>

#include "engine/engine.h"
#include "engine/error.h"
#include "include/bnnconvert.h"

struct bnn_engine {
    bnn::Engine engine;
    std::atomic<bool> runs{false};
};

namespace {

constexpr int kMaxThreads = 1024;

thread_local char message[512];

bnn_status fail(bnn_status status, const char* text) {
    std::snprintf(message, sizeof message, "%s", text);
    return status;
}

// The instruction sets of the machine, best first.
std::vector<bnn::Isa> usable() {
    std::vector<bnn::Isa> found;
    for (const bnn::Kernels& row : bnn::all_kernels())
        if (bnn::has(row.isa)) found.insert(found.begin(), row.isa);
    return found;
}

bool find_isa(const char* name, bnn::Isa& isa) {
    for (bnn::Isa each : usable())
        if (std::string(name) == bnn::name_of(each)) {
            isa = each;
            return true;
        }
    return false;
}

}  // namespace

extern "C" {

const char* bnn_error(void) { return message; }

const char* bnn_isa(int number) {
    const std::vector<bnn::Isa> found = usable();
    return number < 0 || number >= static_cast<int>(found.size()) ? nullptr
                                                                  : bnn::name_of(found[static_cast<size_t>(number)]);
}

bnn_status bnn_open(const void* plan, size_t size, int threads, const char* isa, bnn_engine** engine) {
    if (!plan || !engine) return fail(BNN_BAD_CALL, "bnn_open: plan and engine must not be null");
    if (threads < 1 || threads > kMaxThreads) return fail(BNN_BAD_CALL, "bnn_open: threads must be from 1 to 1024");
    try {
        bnn::Isa chosen = bnn::best_isa();
        if (isa && !find_isa(isa, chosen))
            return fail(BNN_BAD_CALL, ("bnn_open: this machine has no " + std::string(isa)).c_str());
        *engine = new bnn_engine{{static_cast<const uint8_t*>(plan), size, threads, chosen}, {}};
        return BNN_OK;
    } catch (const bnn::PlanError& error) {
        return fail(BNN_BAD_PLAN, error.what());
    } catch (const std::bad_alloc&) {
        return fail(BNN_NO_MEMORY, "bnn_open: the plan needs more memory than there is");
    } catch (const std::exception& error) {
        return fail(BNN_NO_MEMORY, error.what());
    }
}

bnn_status bnn_open_file(const char* path, int threads, const char* isa, bnn_engine** engine) {
    if (!path) return fail(BNN_BAD_CALL, "bnn_open_file: path must not be null");
    std::unique_ptr<std::FILE, int (*)(std::FILE*)> file(std::fopen(path, "rb"), std::fclose);
    if (!file) return fail(BNN_BAD_CALL, ("bnn_open_file: cannot read " + std::string(path)).c_str());
    std::vector<uint8_t> bytes;
    uint8_t part[1 << 16];
    for (size_t count; (count = std::fread(part, 1, sizeof part, file.get())) > 0;)
        bytes.insert(bytes.end(), part, part + count);
    return bnn_open(bytes.data(), bytes.size(), threads, isa, engine);
}

void bnn_close(bnn_engine* engine) { delete engine; }

int bnn_inputs(const bnn_engine* engine) { return static_cast<int>(engine->engine.input_sizes().size()); }
int bnn_outputs(const bnn_engine* engine) { return static_cast<int>(engine->engine.output_sizes().size()); }

int64_t bnn_input_size(const bnn_engine* engine, int number) {
    return engine->engine.input_sizes().at(static_cast<size_t>(number));
}

int64_t bnn_output_size(const bnn_engine* engine, int number) {
    return engine->engine.output_sizes().at(static_cast<size_t>(number));
}

bnn_status bnn_run(bnn_engine* engine, int64_t samples, const float* const* inputs, float* const* outputs) {
    if (!engine || samples < 0) return fail(BNN_BAD_CALL, "bnn_run: engine must not be null, samples not negative");
    if (engine->runs.exchange(true)) return fail(BNN_BUSY, "bnn_run: this engine is running; open another one");
    engine->engine.run(samples, inputs, outputs);
    engine->runs.store(false);
    return BNN_OK;
}

int bnn_steps(const bnn_engine* engine) { return static_cast<int>(engine->engine.steps().size()); }

bnn_step bnn_step_at(const bnn_engine* engine, int number) {
    const bnn::Step& step = *engine->engine.steps().at(static_cast<size_t>(number));
    return {step.layer.c_str(), step.kernel(), step.tile(), step.seconds};
}

void bnn_profile(bnn_engine* engine, int on) { engine->engine.profiles = on != 0; }

double bnn_peak(const char* isa) {
    bnn::Isa chosen;
    if (!isa || !find_isa(isa, chosen)) return 0;
    const auto now = [] {
        return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
    };
    const bnn::Kernels& kernels = bnn::kernels_of(chosen);
    double best = 0;
    for (int i = 0; i < 20; i++) {
        const double start = now();
        const auto done = static_cast<double>(kernels.spin(10000));
        best = std::max(best, done / (now() - start));
    }
    return best;
}

int64_t bnn_memory(const bnn_engine* engine) { return engine->engine.memory(); }

}  // extern "C"
