// Float layers that are computed only where a mask of bits says so.
#include <cstring>

#include "engine/tiles.h"

namespace bnn {
namespace {

class Masked : public Step {
  public:
    Masked(const StepSpec& step, const Build& build)
        : positions_{step.height, step.width, step.channels}, shape_(step.conv), input_(build.image(step.input)),
          mask_(build.image(step.mask)), kernel_(build.kernels.masked), chain_(step, build),
          bias_(step.bias.as<float>()) {
        const bool row_is_run = shape_.dilation_w == 1 && shape_.channels == input_.column;
        const int per_row = row_is_run ? 1 : shape_.kernel_w;
        run_length_ = row_is_run ? shape_.channels * shape_.kernel_w : shape_.channels;
        for (int y = 0; y < shape_.kernel_h; y++)
            for (int x = 0; x < per_row; x++)
                runs_.push_back(static_cast<int32_t>(y * shape_.dilation_h * input_.row +
                                                     x * shape_.dilation_w * input_.column));
        gathers_ = run_length_ % kLanes != 0 && shape_.elements() <= kGatherElements;
        lay_out(step.weights.as<float>());
    }

    const char* kernel() const override { return "masked"; }

    void run(int samples, Pool& pool) override {
        run_tiles(positions_, samples, is_parallel ? pool.threads() : 1, pool, chain_, [&](const Tile& tile) {
            for (int q = 0; q < tile.blocks; q++)
                for (int p = 0; p < tile.pixels; p++) fill(tile, p, q);
        });
    }

    // There is no mask yet; half of the outputs stand for what it will name.
    void tune(Pool& pool, Tuning& tuning) override {
        is_tuning_ = true;
        Step::tune(pool, tuning);
        is_tuning_ = false;
    }

  private:
    static constexpr uint16_t kHalf = 0x5555;

    // Rows in the order (kh, kw, c), which is that of the runs; outputs that fill up the last block stay 0.
    void lay_out(const float* rows) {
        const int runs = gathers_ ? 1 : static_cast<int>(runs_.size());
        const int length = gathers_ ? shape_.elements() : run_length_;
        const int64_t padded = int64_t{blocks_for(length)} * kLanes;
        row_ = masked_row(runs, length);
        weights_ = Array<float>(static_cast<size_t>(blocks_for(shape_.outputs) * kLanes * row_));
        for (int64_t o = 0; o < shape_.outputs; o++)
            for (int64_t r = 0; r < runs; r++)
                std::memcpy(weights_.data() + o * row_ + r * padded, rows + (o * runs + r) * length,
                            sizeof *rows * static_cast<size_t>(length));
    }

    void fill(const Tile& tile, int p, int q) const {
        const Place& place = tile.places[p];
        const int block = tile.first + q;
        const uint16_t mask = is_tuning_ ? kHalf : reinterpret_cast<const uint16_t*>(at(mask_, place))[block];
        const Place first{place.sample, place.y * shape_.stride_h - shape_.top,
                          place.x * shape_.stride_w - shape_.left};
        const float* pixel = reinterpret_cast<const float*>(at(input_, first));
        MaskedWindow window{pixel, runs_.data(), static_cast<int>(runs_.size()), run_length_};
        alignas(64) float copy[kGatherElements];
        const int32_t none = 0;
        if (gathers_ && mask) {
            const int padded = blocks_for(shape_.elements()) * kLanes;
            float* to = copy;
            for (const int32_t run : runs_)
                for (int k = 0; k < run_length_; k++) *to++ = pixel[run + k];
            std::fill(to, copy + padded, 0.0f);
            window = {copy, &none, 1, padded};
        }
        kernel_(window, weights_.data() + int64_t{block} * kLanes * row_, bias_ + kLanes * block, mask,
                tile.data + (int64_t{p} * tile.row + q) * kLanes);
    }

    Positions positions_;
    ConvShape shape_;
    Image input_, mask_;
    MaskedFn kernel_;
    Chain chain_;
    const float* bias_;
    std::vector<int32_t> runs_;
    int run_length_ = 0;
    bool gathers_ = false;  // windows are copied together first, as their runs end within a vector
    int64_t row_ = 0;
    Array<float> weights_;  // [output][run][number]
    bool is_tuning_ = false;
};

}  // namespace

std::unique_ptr<Step> make_masked(const StepSpec& step, const Build& build) {
    return std::make_unique<Masked>(step, build);
}

}  // namespace bnn
