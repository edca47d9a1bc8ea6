#include <algorithm>
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>
#include <stdexcept>
#include <string>
#include <system_error>
#include <utility>
#include <vector>

#include "engine/clock.h"
#include "engine/engine.h"
#include "engine/error.h"
#include "include/bnnconvert.h"

struct bnn_engine {
    bnn::Engine engine;
    std::atomic<bool> runs{false};
};

namespace {

constexpr int kMaxThreads = 1024;
constexpr char kVariable[] = "BNNCONVERT_ISA";

thread_local char message[512];

bnn_status fail(bnn_status status, const char* text) {
    std::snprintf(message, sizeof message, "%s", text);
    return status;
}

// What goes wrong inside becomes a status; nothing is thrown through C.
template <class F>
bnn_status guarded(const F& work) {
    try {
        return work();
    } catch (const bnn::PlanError& error) {
        return fail(BNN_BAD_PLAN, error.what());
    } catch (const std::bad_alloc&) {
        return fail(BNN_NO_MEMORY, "the plan needs more memory than there is");
    } catch (const std::system_error&) {
        return fail(BNN_BAD_CALL, "the system does not start as many threads");
    } catch (const std::exception& error) {
        return fail(BNN_BAD_CALL, error.what());
    }
}

const bnn::Kernels* find_isa(const char* name) {
    for (const bnn::Kernels& row : bnn::all_kernels())
        if (std::strcmp(name, bnn::name_of(row.isa)) == 0) return &row;
    return nullptr;
}

// The best one that the machine has, up to `highest` where that is not null.
bnn::Isa best_isa(const bnn::Kernels* highest) {
    bnn::Isa best = bnn::Isa::portable;
    for (const bnn::Kernels& row : bnn::all_kernels()) {
        if (bnn::has(row.isa)) best = row.isa;
        if (&row == highest) break;
    }
    return best;
}

bnn::Isa chosen_isa(const char* given, int* tile) {
    if (given) {
        const std::string text = given, name = text.substr(0, text.find(':'));
        if (name != text) *tile = std::max(0, std::atoi(text.c_str() + name.size() + 1));
        const bnn::Kernels* found = find_isa(name.c_str());
        if (!found || !bnn::has(found->isa)) throw std::invalid_argument("this machine has no " + name);
        return found->isa;
    }
    const char* variable = std::getenv(kVariable);
    if (!variable) return best_isa(nullptr);
    const bnn::Kernels* highest = find_isa(variable);
    if (!highest) throw std::invalid_argument(std::string(kVariable) + " names no instruction set: " + variable);
    return best_isa(highest);
}

bnn_status open(std::vector<uint8_t> bytes, int threads, const char* isa, bnn_engine** engine) {
    if (threads < 1 || threads > kMaxThreads) return fail(BNN_BAD_CALL, "threads must be from 1 to 1024");
    int tile = bnn::Tuning::kFastest;
    const bnn::Isa chosen = chosen_isa(isa, &tile);
    const bnn::Plan plan = bnn::read_plan(bytes.data(), bytes.size());
    *engine = new bnn_engine{{std::move(bytes), plan, threads, chosen, tile}, {}};
    return BNN_OK;
}

int64_t size_at(const std::vector<int64_t>& sizes, int number) {
    return number < 0 || number >= static_cast<int>(sizes.size()) ? -1 : sizes[static_cast<size_t>(number)];
}

}  // namespace

extern "C" {

const char* bnn_error(void) { return message; }

const char* bnn_isa(int number) {
    const bnn::Span<bnn::Kernels> rows = bnn::all_kernels();
    for (int i = rows.size - 1; i >= 0; i--)
        if (bnn::has(rows.data[i].isa) && number-- == 0) return bnn::name_of(rows.data[i].isa);
    return nullptr;
}

bnn_status bnn_open(const void* plan, size_t size, int threads, const char* isa, bnn_engine** engine) {
    if (!plan || !engine) return fail(BNN_BAD_CALL, "bnn_open: plan and engine must not be null");
    const auto* bytes = static_cast<const uint8_t*>(plan);
    return guarded([&] { return open({bytes, bytes + size}, threads, isa, engine); });
}

bnn_status bnn_open_file(const char* path, int threads, const char* isa, bnn_engine** engine) {
    if (!path || !engine) return fail(BNN_BAD_CALL, "bnn_open_file: path and engine must not be null");
    return guarded([&] {
        std::unique_ptr<std::FILE, int (*)(std::FILE*)> file(std::fopen(path, "rb"), std::fclose);
        std::vector<uint8_t> bytes;
        uint8_t part[1 << 16];
        if (file)
            for (size_t count; (count = std::fread(part, 1, sizeof part, file.get())) > 0;)
                bytes.insert(bytes.end(), part, part + count);
        if (!file || std::ferror(file.get()))
            return fail(BNN_BAD_CALL, ("bnn_open_file: cannot read " + std::string(path)).c_str());
        return open(std::move(bytes), threads, isa, engine);
    });
}

void bnn_close(bnn_engine* engine) { delete engine; }

int bnn_inputs(const bnn_engine* engine) { return static_cast<int>(engine->engine.input_sizes().size()); }
int bnn_outputs(const bnn_engine* engine) { return static_cast<int>(engine->engine.output_sizes().size()); }

int64_t bnn_input_size(const bnn_engine* engine, int number) { return size_at(engine->engine.input_sizes(), number); }
int64_t bnn_output_size(const bnn_engine* engine, int number) { return size_at(engine->engine.output_sizes(), number); }

bnn_status bnn_run(bnn_engine* engine, int64_t samples, const float* const* inputs, float* const* outputs) {
    if (!engine || !inputs || !outputs || samples < 0)
        return fail(BNN_BAD_CALL, "bnn_run: nothing may be null, samples not negative");
    if (engine->runs.exchange(true)) return fail(BNN_BUSY, "bnn_run: this engine is running; open another one");
    const auto status = guarded([&] {
        engine->engine.run(samples, inputs, outputs);
        return BNN_OK;
    });
    engine->runs.store(false);
    return status;
}

int bnn_steps(const bnn_engine* engine) { return static_cast<int>(engine->engine.steps().size()); }

bnn_step bnn_step_at(const bnn_engine* engine, int number) {
    if (number < 0 || number >= bnn_steps(engine)) return {nullptr, nullptr, nullptr, 0};
    const bnn::Step& step = *engine->engine.steps()[static_cast<size_t>(number)];
    return {step.layer.c_str(), step.kernel(), step.tile(), step.measured};
}

void bnn_profile(bnn_engine* engine, int on) { engine->engine.profiles = on != 0; }

double bnn_peak(const char* isa) {
    const bnn::Kernels* kernels = isa ? find_isa(isa) : nullptr;
    if (!kernels || !bnn::has(kernels->isa)) return 0;
    double best = 0;
    for (int i = 0; i < 20; i++) {
        const double start = bnn::now();
        const auto done = static_cast<double>(kernels->spin(10000));
        best = std::max(best, done / (bnn::now() - start));
    }
    return best;
}

double bnn_clock(void) {
    constexpr int64_t kCycles = 1 << 20;
    double best = 0;
    for (int i = 0; i < 10; i++) {
        const double start = bnn::now();
        bnn::wait_cycles(kCycles);
        best = std::max(best, kCycles / (bnn::now() - start));
    }
    return best;
}

int64_t bnn_memory(const bnn_engine* engine) { return engine->engine.memory(); }

}  // extern "C"
