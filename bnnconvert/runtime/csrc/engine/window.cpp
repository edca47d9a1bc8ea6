// Pools and depthwise convolutions. Taps outside the image are left out, so no halo is needed.
#include "engine/tiles.h"

namespace bnn {
namespace {

class Windows : public Step {
  public:
    Windows(const StepSpec& step, const Build& build)
        : positions_{step.height, step.width, step.channels}, shape_(step.conv), reduce_(step.reduce),
          divisor_(step.divisor), input_(build.image(step.input)), kernels_(build.kernels),
          chain_(make_chain(step, build)), weights_(step.weights.as<float>()) {}

    const char* kernel() const override { return reduce_ == Reduce::weighted ? "depthwise" : "pool"; }

    void run(int samples, Pool& pool) override {
        run_tiles(positions_, samples, is_parallel ? pool.threads() : 1, pool, kernels_.chain, chain_,
                  [&](const Tile& tile) {
                      for (int p = 0; p < tile.pixels; p++) fill(tile, p);
                  });
    }

  private:
    static constexpr int kAtOnce = 64;  // taps

    void fill(const Tile& tile, int p) const {
        const Place& place = tile.places[p];
        const int y0 = place.y * shape_.stride_h - shape_.top, x0 = place.x * shape_.stride_w - shape_.left;
        const int row = (positions_.channels + kLanes - 1) / kLanes * kLanes, first = kLanes * tile.first;
        float* out = tile.data + int64_t{p} * tile.row * kLanes;
        Tap taps[kAtOnce];
        int held = 0, inside = 0;
        for (int i = 0; i < shape_.kernel_h; i++) {
            const int y = y0 + i * shape_.dilation_h;
            if (y < 0 || y >= shape_.input_height) continue;
            for (int j = 0; j < shape_.kernel_w; j++) {
                const int x = x0 + j * shape_.dilation_w;
                if (x < 0 || x >= shape_.input_width) continue;
                if (held == kAtOnce) {
                    kernels_.window(reduce_, taps, held, inside > kAtOnce, out, tile.blocks);
                    held = 0;
                }
                const float* from = reinterpret_cast<const float*>(at(input_, {place.sample, y, x}));
                taps[held++] = {from + first, weights_ ? weights_ + int64_t{i * shape_.kernel_w + j} * row + first
                                                       : nullptr};
                inside++;
            }
        }
        kernels_.window(reduce_, taps, held, inside > kAtOnce, out, tile.blocks);
        if (reduce_ != Reduce::sum) return;
        const float scale = 1.0f / static_cast<float>(divisor_ ? divisor_ : std::max(inside, 1));
        for (int c = 0; c < kLanes * tile.blocks; c++) out[c] *= scale;
    }

    Positions positions_;
    ConvShape shape_;
    Reduce reduce_;
    int divisor_;  // 0: the number of taps inside the image
    Image input_;
    const Kernels& kernels_;
    std::vector<ChainOp> chain_;
    const float* weights_;
};

}  // namespace

std::unique_ptr<Step> make_window(const StepSpec& step, const Build& build) {
    return std::make_unique<Windows>(step, build);
}

}  // namespace bnn
