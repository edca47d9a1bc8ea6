#include "engine/engine.h"

#include <unistd.h>

#include <algorithm>
#include <new>
#include <utility>

#include "engine/clock.h"
#include "engine/error.h"
#include "engine/steps.h"

namespace bnn {
namespace {

constexpr int64_t kChunkElements = 1 << 18;  // of the largest image: samples are run together while they fit the cache
constexpr int kMaxChunk = 64;
constexpr double kWorthThreads = 30e-6;  // seconds; waking a thread takes a few microseconds

bool same_layout(const ImageSpec& a, const ImageSpec& b) {
    return a.kind == b.kind && a.channels == b.channels && a.height == b.height && a.width == b.width &&
           a.top == b.top && a.left == b.left && a.bottom == b.bottom && a.right == b.right && a.planes == b.planes &&
           a.halo_of_ones == b.halo_of_ones && a.parts == b.parts;
}

// Whether a chain may write `written` over `other`: it has read every number of it just before, and nothing else reads
// it. In whole blocks, as a read of the last one would reach into the next pixel, which another thread may be writing.
bool may_overwrite(const StepSpec& step, int written, int other) {
    if (step.output == written || step.output == other) return false;
    if (step.input == other && step.kind != StepKind::map) return false;
    bool is_written = false, was_read = step.input == other;
    for (const ChainSpec& op : step.chain) {
        if (op.image == written) is_written = true;
        if (op.image != other) continue;
        if (!is_read(op.code) || is_written) return false;
        was_read = true;
    }
    return was_read;
}

// Bytes. More would not fail when it is asked for, but when it is written to.
int64_t machine_memory() {
    const int64_t pages = sysconf(_SC_PHYS_PAGES), size = sysconf(_SC_PAGESIZE);
    return pages > 0 && size > 0 ? pages * size : INT64_MAX;
}

// What padding reads: zeros, or all channels +1, or the byte that stands for zero.
void fill_halo(const ImageSpec& spec, Array<uint32_t>& buffer) {
    if (spec.kind == Kind::bytes) std::fill(buffer.data(), buffer.data() + buffer.size(), 0x80808080u);
    if (!spec.halo_of_ones) return;
    if (spec.kind == Kind::floats) return std::fill(buffer.data(), buffer.data() + buffer.size(), 0x3f800000u);
    const int words = (spec.channels + 31) / 32;
    const uint32_t last = spec.channels % 32 ? (1u << spec.channels % 32) - 1 : ~0u;
    for (size_t i = 0; i < buffer.size(); i++) buffer[i] = static_cast<int>(i % words) == words - 1 ? last : ~0u;
}

}  // namespace

void Step::tune(Pool& pool, Tuning&) {
    for (int i = 0; i < 2; i++) {
        const double start = now();
        run(parts, pool);
        const double took = now() - start;
        if (i == 0 || took < seconds) seconds = took;
    }
}

Engine::Engine(std::vector<uint8_t> bytes, const Plan& plan, int threads, Isa isa, int tile)
    : pool_(threads), kernels_(kernels_of(isa)), bytes_(std::move(bytes)),
      worth_threads_(tile == Tuning::kFastest ? kWorthThreads : 0) {
    plan_memory(plan);
    build(plan, tile);
}

// Images share a buffer where they have the same layout and are never in use at the same time; the one that was used
// last, as it is in the cache. Of the same layout only, as then the halo that was filled once stays as it is.
void Engine::plan_memory(const Plan& plan) {
    const size_t count = plan.images.size();
    std::vector<int> last_use(count, -1), buffer_of(count, -1);
    int64_t largest = 0;
    for (size_t i = 0; i < plan.steps.size(); i++)
        for (int image : plan.steps[i].images()) last_use[static_cast<size_t>(image)] = static_cast<int>(i);
    for (const ImageSpec& spec : plan.images) largest = std::max(largest, spec.sample());
    chunk_ = static_cast<int>(std::clamp<int64_t>(kChunkElements / std::max<int64_t>(largest, 1), 1, kMaxChunk));
    std::vector<int> owner;           // image that is in a buffer
    std::vector<size_t> first_image;  // that was put into it
    int64_t total = 0;                // bytes
    for (size_t i = 0; i < plan.steps.size(); i++)
        for (int number : plan.steps[i].images()) {
            const auto image = static_cast<size_t>(number);
            if (buffer_of[image] >= 0) continue;
            const ImageSpec& spec = plan.images[image];
            int newest = -1;
            for (size_t b = 0; b < owner.size(); b++) {
                const int used = last_use[static_cast<size_t>(owner[b])], now = static_cast<int>(i);
                const bool is_free = used < now || (used == now && spec.channels % kLanes == 0 &&
                                                    may_overwrite(plan.steps[i], number, owner[b]));
                const bool fits = is_free && same_layout(plan.images[static_cast<size_t>(owner[b])], spec);
                if (fits && used > newest) newest = used, buffer_of[image] = static_cast<int>(b);
            }
            if (buffer_of[image] >= 0) {
                owner[static_cast<size_t>(buffer_of[image])] = number;
                continue;
            }
            buffer_of[image] = static_cast<int>(owner.size());
            owner.push_back(number);
            first_image.push_back(image);
            total += spec.sample() * chunk_ * int64_t{sizeof(uint32_t)};
        }
    if (total > machine_memory()) throw std::bad_alloc();
    for (size_t image : first_image) {
        buffers_.emplace_back(static_cast<size_t>(plan.images[image].sample() * chunk_));
        fill_halo(plan.images[image], buffers_.back());
    }
    for (size_t i = 0; i < count; i++) {
        const ImageSpec& spec = plan.images[i];
        Image image{nullptr, spec.part(), spec.row(), spec.pixel()};
        if (buffer_of[i] >= 0)
            image.data = buffers_[static_cast<size_t>(buffer_of[i])].data() + spec.top * spec.row() +
                         spec.left * spec.pixel();
        images_.push_back(image);
    }
}

std::unique_ptr<Step> Engine::make_step(const StepSpec& step, const Build& build) const {
    switch (step.kind) {
        case StepKind::input: return make_input(step, build, static_cast<int>(input_sizes_.size()));
        case StepKind::output: return make_output(step, build, static_cast<int>(output_sizes_.size()));
        case StepKind::conv: return make_conv(step, build);
        case StepKind::window: return make_window(step, build);
        case StepKind::map: return make_map(step, build);
        case StepKind::softmax:
        case StepKind::normalize: return make_pixel_step(step, build);
        case StepKind::attention: return make_attention(step, build);
        case StepKind::masked: return make_masked(step, build);
        case StepKind::pool_bits: return make_pool_bits(step, build);
        case StepKind::copy: return make_copy(step, build);
        case StepKind::move: return make_move(step, build);
        case StepKind::constant: return make_constant(step, build);
    }
    return nullptr;
}

void Engine::build(const Plan& plan, int tile) {
    const Build build{plan, images_, kernels_, edges_, pool_.threads()};
    Tuning tuning{tile, {}};
    for (size_t i = 0; i < plan.steps.size(); i++) {
        const StepSpec& spec = plan.steps[i];
        std::unique_ptr<Step> step = make_bands(build, i, tile != Tuning::kFastest);
        if (step)
            i++;
        else
            step = make_step(spec, build);
        step->layer = spec.name;
        step->parts = spec.kind == StepKind::move ? 1 : spec.parts;
        const int64_t size = int64_t{spec.channels} * spec.height * spec.width * spec.parts;
        if (spec.kind == StepKind::input) input_sizes_.push_back(size);
        if (spec.kind == StepKind::output) output_sizes_.push_back(size);
        const bool is_edge = spec.kind == StepKind::input || spec.kind == StepKind::output;
        if (!is_edge) {
            step->is_parallel = false;
            step->tune(pool_, tuning);
        }
        steps_.push_back(std::move(step));
    }
}

int64_t Engine::memory() const {
    int64_t bytes = 0;
    for (const auto& buffer : buffers_) bytes += static_cast<int64_t>(buffer.size()) * 4;
    return bytes;
}

void Engine::run(int64_t samples, const float* const* inputs, float* const* outputs) {
    edges_ = {inputs, outputs, 0};
    const bool measures = profiles;
    if (measures)
        for (const auto& step : steps_) step->measured = 0;
    for (; edges_.first < samples; edges_.first += chunk_) {
        const int count = static_cast<int>(std::min<int64_t>(chunk_, samples - edges_.first));
        for (const auto& step : steps_) {
            step->is_parallel = step->seconds * count > worth_threads_;
            const double start = measures ? now() : 0;
            step->run(count * step->parts, pool_);
            if (measures) step->measured = step->measured + now() - start;
        }
    }
}

}  // namespace bnn
