// Convolutions and linear layers as steps: weights from the plan's rows into elements, the tile by timing.
#include <algorithm>
#include <cstring>
#include <utility>
#include <vector>

#include "engine/clock.h"
#include "engine/conv.h"
#include "engine/steps.h"

namespace bnn {
namespace {

bool bit_at(const uint8_t* row, int64_t i) { return row[i / 8] >> (i % 8) & 1; }

// Rows in the order (kh, kw, c) to [plane][output][tap][element]; those of signs stay rows.
ConvWeights elements_of(const StepSpec& step) {
    const ConvShape& s = step.conv;
    const int64_t rows = int64_t{s.weight_planes} * s.outputs, taps = s.taps(), channels = s.group_channels();
    const int64_t row_bytes = step.weights.bytes / rows, row_words = (row_bytes + 3) / 4;
    const bool is_whole = s.dot == Dot::signs || s.dot == Dot::float32;
    ConvWeights weights{Array<uint32_t>(static_cast<size_t>(rows * (is_whole ? row_words : s.elements())))};
    uint32_t* to = weights.elements.data();
    for (int64_t r = 0; r < rows; r++) {
        const uint8_t* row = step.weights.data + r * row_bytes;
        if (is_whole) {
            std::memcpy(to, row, static_cast<size_t>(row_bytes));
            to += row_words;
            continue;
        }
        const int64_t per_tap = s.dot == Dot::bytes ? channels : channels % 8 == 0 ? channels / 8 : 0;
        for (int64_t t = 0; t < taps; t++, to += s.tap_elements()) {
            if (per_tap) std::memcpy(to, row + t * per_tap, static_cast<size_t>(per_tap));
            for (int64_t c = 0; !per_tap && c < channels; c++)
                to[c / 32] |= uint32_t{bit_at(row, t * channels + c)} << c % 32;
        }
    }
    return weights;
}

class ConvStep : public BandStep {
  public:
    ConvStep(const StepSpec& step, const Build& build)
        : conv_(make(step, build)), dot_(step.conv.dot), height_(step.conv.height), width_(step.conv.width),
          parts_(step.parts) {
        const ConvShape& s = step.conv;
        key_ = {static_cast<int>(s.dot), s.channels, s.outputs, s.groups, s.input_planes, s.weight_planes, s.kernel_h,
                s.kernel_w, s.stride_h, s.stride_w, s.dilation_h, s.dilation_w, s.height, s.width,
                step.thresholds.bytes > 0, step.bias.bytes > 0, static_cast<int>(step.chain.size()), step.parts};
    }

    const char* kernel() const override {
        return dot_ == Dot::binary ? "binary" : dot_ == Dot::bytes ? "int8" : dot_ == Dot::signs ? "signs" : "float";
    }
    const char* tile() const override { return conv_.tile().name; }

    void run(int samples, Pool& pool) override {
        conv_.is_parallel = is_parallel;
        conv_.run(samples, pool);
    }

    void run_band(const Band& band) const override {
        const int64_t row = int64_t{band.sample} * height_;
        conv_.run_pixels((row + band.begin) * width_, (row + band.end) * width_, band.shift);
    }

    void tune(Pool& pool, Tuning& tuning) override {
        if (tuning.number != Tuning::kFastest) {
            conv_.use(*conv_.tiles()[static_cast<size_t>(tuning.number) % conv_.tiles().size()]);
            conv_.keep_tile();
            return Step::tune(pool, tuning);
        }
        const auto found = tuning.known.find(key_);
        if (found == tuning.known.end())
            tuning.known[key_] = {fastest(), seconds};
        else
            seconds = found->second.second;
        conv_.use(*tuning.known[key_].first);
        conv_.keep_tile();
    }

  private:
    // The clock of a processor drifts by more than two tiles differ, and it is slow at first after a pause. So after a
    // first look the best few take turns, and with them the first in the table, which is the best as a rule.
    static constexpr size_t kFinalists = 4;
    static constexpr int kTurns = 3;
    static constexpr double kNear = 1.5, kEqual = 1.12;
    static constexpr double kLook = 100e-6;  // seconds: of a longer layer only the first pixels are timed

    double timed(const ConvTile& tile, int64_t pixels) {
        conv_.look_at(tile);
        double least = 0;
        for (int i = 0; i < 2; i++) {
            const double start = now();
            conv_.run_first(pixels);
            const double took = now() - start;
            if (i == 0 || took < least) least = took;
        }
        return least * conv_.filters_per_look();
    }

    const ConvTile* fastest() {
        const int64_t pixels = int64_t{height_} * width_;
        const int64_t eighth = (pixels + 7) / 8;
        const double rate = static_cast<double>(eighth) / timed(*conv_.tiles().front(), eighth);
        const int64_t some = std::clamp<int64_t>(static_cast<int64_t>(kLook * rate), 1, pixels);
        std::vector<std::pair<double, const ConvTile*>> looks;
        for (const ConvTile* tile : conv_.tiles()) looks.emplace_back(timed(*tile, some), tile);
        std::sort(looks.begin() + 1, looks.end());
        while (looks.size() > kFinalists || (looks.size() > 2 && looks.back().first > kNear * looks[1].first))
            looks.pop_back();
        for (int turn = 0; turn < kTurns && looks.size() > 1; turn++)
            for (auto& [least, tile] : looks) least = std::min(least, timed(*tile, some));
        // Of equals the first in the table, whatever the noise says.
        const double enough = kEqual * std::min_element(looks.begin(), looks.end())->first;
        const ConvTile* best = nullptr;
        for (const auto& [least, tile] : looks)
            if (least <= enough && (!best || tile < best)) best = tile, seconds = least * parts_ * static_cast<double>(pixels) / static_cast<double>(some);
        return best;
    }

    static Chain chain_of(const StepSpec& step, const Build& build) {
        if (step.conv.reads_floats() || step.conv.planes() > 1) return {step, build};
        return Chain::on_counts(step, build, step.conv.dot == Dot::binary);
    }

    static Conv make(const StepSpec& step, const Build& build) {
        Thresholds thresholds{};
        if (step.thresholds.bytes)
            thresholds = {step.thresholds.as<int32_t>(), step.start.data, build.image(step.output)};
        return Conv(step.conv, elements_of(step), build.image(step.input), chain_of(step, build),
                    step.scale.as<float>(), step.bias.as<float>(), step.thresholds.bytes ? &thresholds : nullptr,
                    build.kernels, build.threads);
    }

    Conv conv_;
    Dot dot_;
    int height_, width_, parts_;
    std::vector<int> key_;
};

}  // namespace

std::unique_ptr<BandStep> make_conv(const StepSpec& step, const Build& build) {
    return std::make_unique<ConvStep>(step, build);
}

}  // namespace bnn
