// A convolution and the pool behind it, a band of rows at a time, so that the large image between them never leaves the
// cache: of its buffer only the first rows are in use, a band for each thread.
#include <algorithm>
#include <cstring>
#include <utility>

#include "engine/steps.h"

namespace bnn {
namespace {

constexpr int64_t kWorthBands = 1 << 19;  // bytes of the image between
constexpr int64_t kBandBytes = 1 << 18;

class Bands : public Step {
  public:
    Bands(std::unique_ptr<BandStep> conv, std::unique_ptr<BandStep> pool, const StepSpec& pooled, const Image& between,
          int64_t band_rows)
        : conv_(std::move(conv)), pool_(std::move(pool)), shape_(pooled.conv), height_(pooled.height),
          between_(between), extent_((shape_.kernel_h - 1) * shape_.dilation_h + 1) {
        at_once_ = static_cast<int>(std::clamp<int64_t>((band_rows - extent_) / shape_.stride_h + 1, 1, height_));
        band_rows_ = (at_once_ - 1) * shape_.stride_h + extent_;
    }

    const char* kernel() const override { return conv_->kernel(); }
    const char* tile() const override { return conv_->tile(); }

    // Bands that the image between has room for.
    int room() const { return shape_.input_height / band_rows_; }

    void tune(Pool& pool, Tuning& tuning) override {
        conv_->is_parallel = pool_->is_parallel = false;
        conv_->tune(pool, tuning);
        pool_->tune(pool, tuning);
        Step::tune(pool, tuning);
    }

    void run(int samples, Pool& pool) override {
        const int64_t rows = int64_t{samples} * height_;
        const int threads = is_parallel ? pool.threads() : 1;
        const int parts = static_cast<int>(std::min<int64_t>(threads == 1 ? 1 : std::min(2 * threads, room()), rows));
        pool.run(parts, [&](int part) { run_rows(rows * part / parts, rows * (part + 1) / parts, part * band_rows_); });
    }

  private:
    // Rows [begin, end) of the pool over all samples, by way of the rows from `place` on of the image between.
    void run_rows(int64_t begin, int64_t end, int place) const {
        int sample = -1, first = 0, last = 0;  // rows that are there
        for (int64_t row = begin; row < end;) {
            const int from = static_cast<int>(row % height_);
            const int to = static_cast<int>(std::min<int64_t>({height_, from + at_once_, from + end - row}));
            const int needs = within(from * shape_.stride_h - shape_.top);
            const int until = within((to - 1) * shape_.stride_h - shape_.top + extent_);
            if (sample != row / height_) sample = static_cast<int>(row / height_), first = last = needs;
            const int kept = std::clamp(last - needs, 0, until - needs);
            if (kept) {
                const int64_t numbers = (kept - 1) * between_.row + shape_.input_width * between_.column;
                std::memmove(row_at(place), row_at(place + needs - first), sizeof(float) * static_cast<size_t>(numbers));
            }
            first = needs, last = until;
            const Place shift{sample, first - place, 0};
            if (needs + kept < until) conv_->run_band({sample, needs + kept, until, shift});
            pool_->run_band({sample, from, to, shift});
            row += to - from;
        }
    }

    int within(int row) const { return std::clamp(row, 0, shape_.input_height); }
    uint32_t* row_at(int y) const { return at(between_, {0, y, 0}); }

    std::unique_ptr<BandStep> conv_, pool_;
    ConvShape shape_;
    int height_;
    Image between_;
    int extent_;     // rows that a window covers
    int at_once_;    // rows of the pool
    int band_rows_;  // of the image between
};

bool uses(const StepSpec& step, int image) {
    const std::vector<int> images = step.images();
    return std::find(images.begin(), images.end(), image) != images.end();
}

// The image that a convolution stores, all of it and nothing else; -1 where there is none.
int stored(const StepSpec& step) {
    const bool is_whole = step.kind == StepKind::conv && step.conv.groups == 1 && step.output < 0;
    if (!is_whole || step.conv.dot == Dot::binary) return -1;
    int found = -1;
    for (const ChainSpec& op : step.chain) {
        if (op.image < 0) continue;
        if (found >= 0 || op.code != ChainCode::store) return -1;
        found = op.image;
    }
    return found;
}

}  // namespace

std::unique_ptr<Step> make_bands(const Build& build, size_t number, bool always) {
    const std::vector<StepSpec>& steps = build.plan.steps;
    if (number + 1 >= steps.size()) return nullptr;
    const StepSpec &conv = steps[number], &pool = steps[number + 1];
    const int between = stored(conv);
    if (between < 0 || conv.input == between || pool.kind != StepKind::window || pool.input != between) return nullptr;
    const ImageSpec& spec = build.spec(between);
    // In whole blocks, as a read of the last one would reach into the next band, which another thread may be writing.
    if (spec.channels != conv.channels || spec.channels % kLanes != 0) return nullptr;
    if (!always && spec.sample() * 4 < kWorthBands) return nullptr;
    for (const ChainSpec& op : pool.chain)
        if (op.image == between) return nullptr;
    for (size_t i = 0; i < steps.size(); i++)
        if (i != number && i != number + 1 && uses(steps[i], between)) return nullptr;
    const int64_t rows = always ? 1 : kBandBytes / (4 * std::max<int64_t>(spec.row(), 1));
    auto bands = std::make_unique<Bands>(make_conv(conv, build), make_window(pool, build), pool, build.image(between),
                                         rows);
    if (!bands->room()) return nullptr;
    return bands;
}

}  // namespace bnn
