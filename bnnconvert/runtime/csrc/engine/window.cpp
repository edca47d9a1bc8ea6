// Pools and depthwise convolutions. Taps outside the image are left out, so no halo is needed.
#include "engine/tiles.h"

namespace bnn {
namespace {

class Windows : public BandStep {
  public:
    Windows(const StepSpec& step, const Build& build)
        : positions_{step.height, step.width, step.channels}, shape_(step.conv), reduce_(step.reduce),
          divisor_(step.divisor), input_(build.image(step.input)), kernels_(build.kernels),
          chain_(step, build), weights_(step.weights.as<float>()) {
        const int64_t row = int64_t{blocks_for(step.channels)} * kLanes;
        for (int i = 0; i < shape_.kernel_h; i++)
            for (int j = 0; j < shape_.kernel_w; j++)
                taps_.push_back({i * shape_.dilation_h * input_.row + j * shape_.dilation_w * input_.column,
                                 weights_ ? (int64_t{i} * shape_.kernel_w + j) * row : 0});
    }

    const char* kernel() const override { return reduce_ == Reduce::weighted ? "depthwise" : "pool"; }

    void run(int samples, Pool& pool) override {
        run_tiles(positions_, samples, is_parallel ? pool.threads() : 1, pool, chain_, [&](const Tile& tile) {
            for (int p = 0; p < tile.pixels; p++) fill(tile, p, {});
        });
    }

    void run_band(const Band& band) const override {
        const int64_t row = int64_t{band.sample} * positions_.height;
        const int64_t begin = (row + band.begin) * positions_.width, end = (row + band.end) * positions_.width;
        fill_tiles(positions_, begin, end, chain_, [&](const Tile& tile) {
            for (int p = 0; p < tile.pixels; p++) fill(tile, p, band.shift);
        });
    }

  private:
    static constexpr int kAtOnce = 64;  // taps of a window at the border

    void fill(const Tile& tile, int p, const Place& shift) const {
        const Place& place = tile.places[p];
        const int y = place.y * shape_.stride_h - shape_.top, x = place.x * shape_.stride_w - shape_.left;
        const int below = y + (shape_.kernel_h - 1) * shape_.dilation_h;
        const int right = x + (shape_.kernel_w - 1) * shape_.dilation_w;
        float* out = tile.data + int64_t{p} * tile.row * kLanes;
        const float* from = reinterpret_cast<const float*>(at(input_, {place.sample - shift.sample, y - shift.y, x})) + kLanes * tile.first;
        WindowInput input{from, weights_ ? weights_ + kLanes * tile.first : nullptr, taps_.data(),
                          static_cast<int>(taps_.size())};
        int inside = input.count;
        if (y >= 0 && x >= 0 && below < shape_.input_height && right < shape_.input_width)
            kernels_.window(reduce_, input, false, out, tile.blocks);
        else
            inside = fill_border(input, y, x, out, tile.blocks);
        if (reduce_ != Reduce::sum) return;
        const float scale = 1.0f / static_cast<float>(divisor_ ? divisor_ : std::max(inside, 1));
        for (int c = 0; c < kLanes * tile.blocks; c++) out[c] *= scale;
    }

    // The taps that lie inside the image, a few at a time; returns how many those are.
    int fill_border(WindowInput input, int y, int x, float* out, int blocks) const {
        Tap taps[kAtOnce];
        int inside = 0;
        input.taps = taps, input.count = 0;
        const auto flush = [&] {
            kernels_.window(reduce_, input, inside > input.count, out, blocks);
            input.count = 0;
        };
        for (size_t t = 0; t < taps_.size(); t++) {
            const int row = y + static_cast<int>(t) / shape_.kernel_w * shape_.dilation_h;
            const int column = x + static_cast<int>(t) % shape_.kernel_w * shape_.dilation_w;
            if (row < 0 || row >= shape_.input_height || column < 0 || column >= shape_.input_width) continue;
            if (input.count == kAtOnce) flush();
            taps[input.count++] = taps_[t];
            inside++;
        }
        flush();
        return inside;
    }

    Positions positions_;
    ConvShape shape_;
    Reduce reduce_;
    int divisor_;  // 0: the number of taps inside the image
    Image input_;
    const Kernels& kernels_;
    Chain chain_;
    const float* weights_;
    std::vector<Tap> taps_;  // of a window that lies inside the image
};

}  // namespace

std::unique_ptr<BandStep> make_window(const StepSpec& step, const Build& build) {
    return std::make_unique<Windows>(step, build);
}

}  // namespace bnn
