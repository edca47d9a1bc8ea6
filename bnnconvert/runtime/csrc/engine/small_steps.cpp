// Steps without a tile: the way in and out, softmax, normalization, pools of bits, copies into another order.
#include <algorithm>
#include <cstring>
#include <utility>
#include <vector>

#include "engine/steps.h"
#include "engine/walk.h"

namespace bnn {
namespace {

constexpr double kSecondsPerNumber = 4e-10;  // at the way in and out, which cannot be timed before there is a caller

float* floats(uint32_t* elements) { return reinterpret_cast<float*>(elements); }

// Calls work(row) for rows [0, rows), which threads share.
template <class F>
void share_rows(int64_t rows, bool is_parallel, Pool& pool, const F& work) {
    const int64_t parts = is_parallel ? std::min<int64_t>(2 * pool.threads(), rows) : 1;
    pool.run(static_cast<int>(parts), [&](int part) {
        for (int64_t row = rows * part / parts; row < rows * (part + 1) / parts; row++) work(row);
    });
}

// Between the caller's order (channels, height, width) and ours (height, width, channels), which is that of tokens.
class Edge : public Step {
  public:
    Edge(const StepSpec& step, const Build& build, int number, bool is_input)
        : channels_(step.channels), height_(step.height), width_(step.width), number_(number), is_input_(is_input),
          image_(build.image(is_input ? step.output : step.input)), edges_(build.edges),
          rows_(build.kernels.rows), takes_bytes_(is_input && build.spec(step.output).kind == Kind::bytes),
          is_tokens_(step.is_tokens), factor_(step.factor), parts_(step.parts) {
        seconds = kSecondsPerNumber * channels_ * height_ * width_ * parts_;
    }

    const char* kernel() const override { return is_input_ ? "input" : "output"; }

    void run(int samples, Pool& pool) override {
        const int64_t plane = int64_t{height_} * width_, size = channels_ * plane;
        share_rows(int64_t{samples} * height_, is_parallel, pool, [&](int64_t row) {
            const Place place{static_cast<int32_t>(row / height_), static_cast<int32_t>(row % height_), 0};
            uint32_t* elements = at(image_, place);
            float* ours = floats(elements);
            if (is_tokens_) return copy_tokens(ours, (edges_.first * parts_ + place.sample) * size + place.y * numbers());
            const int64_t theirs = (edges_.first * parts_ + place.sample) * size + int64_t{place.y} * width_;
            if (is_input_ && takes_bytes_)
                rows_.interleave_bytes(edges_.inputs[number_] + theirs, plane, channels_, width_, factor_, elements);
            else if (is_input_)
                rows_.interleave(edges_.inputs[number_] + theirs, plane, channels_, width_, ours);
            else
                for (int c = 0; c < channels_; c++)
                    for (int x = 0; x < width_; x++)
                        edges_.outputs[number_][theirs + c * plane + x] = ours[x * image_.column + c];
        });
    }

  private:
    int64_t numbers() const { return int64_t{width_} * channels_; }  // in a row

    void copy_tokens(float* ours, int64_t theirs) const {
        const size_t bytes = sizeof(float) * static_cast<size_t>(numbers());
        if (is_input_)
            std::memcpy(ours, edges_.inputs[number_] + theirs, bytes);
        else
            std::memcpy(edges_.outputs[number_] + theirs, ours, bytes);
    }

    int channels_, height_, width_, number_;
    bool is_input_;
    Image image_;
    const Edges& edges_;
    const RowKernels& rows_;
    bool takes_bytes_, is_tokens_;
    float factor_;
    int64_t parts_;
};

// What becomes of the channels of each pixel: softmax, or mean 0 and variance 1.
class PixelStep : public Step {
  public:
    PixelStep(const StepSpec& step, const Build& build)
        : channels_(step.channels), height_(step.height), width_(step.width),
          is_softmax_(step.kind == StepKind::softmax), logarithm_(step.logarithm), eps_(step.factor),
          input_(build.image(step.input)), output_(build.image(step.output)), kernels_(build.kernels.rows) {}

    const char* kernel() const override { return is_softmax_ ? "softmax" : "normalize"; }

    void run(int samples, Pool& pool) override {
        share_rows(int64_t{samples} * height_, is_parallel, pool, [&](int64_t row) {
            Walk walk(row * width_, height_, width_);
            for (int x = 0; x < width_; x++, walk.next()) {
                float* to = floats(at(output_, walk.place()));
                std::memcpy(to, at(input_, walk.place()), sizeof(float) * static_cast<size_t>(channels_));
                if (is_softmax_)
                    kernels_.softmax(to, channels_, logarithm_);
                else
                    kernels_.normalize(to, channels_, eps_);
            }
        });
    }

  private:
    int channels_, height_, width_;
    bool is_softmax_, logarithm_;
    float eps_;
    Image input_, output_;
    const RowKernels& kernels_;
};

// The maximum of numbers before their thresholds: an OR of rising bits, an AND of falling ones.
class PoolBits : public Step {
  public:
    PoolBits(const StepSpec& step, const Build& build)
        : shape_(step.conv), words_(build.spec(step.input).pixel()), input_(build.image(step.input)),
          output_(build.image(step.output)), falling_(step.weights.as<uint32_t>()) {}

    const char* kernel() const override { return "pool bits"; }

    void run(int samples, Pool& pool) override {
        share_rows(int64_t{samples} * shape_.height, is_parallel, pool, [&](int64_t row) {
            Walk walk(row * shape_.width, shape_.height, shape_.width);
            for (int x = 0; x < shape_.width; x++, walk.next()) fill(walk.place());
        });
    }

  private:
    void fill(const Place& place) const {
        uint32_t* to = at(output_, place);
        std::memset(to, 0, sizeof(uint32_t) * static_cast<size_t>(words_));
        for (int a = 0; a < shape_.kernel_h; a++)
            for (int b = 0; b < shape_.kernel_w; b++) {
                const int y = place.y * shape_.stride_h - shape_.top + a * shape_.dilation_h;
                const int x = place.x * shape_.stride_w - shape_.left + b * shape_.dilation_w;
                if (y < 0 || y >= shape_.input_height || x < 0 || x >= shape_.input_width) continue;
                const uint32_t* from = at(input_, {place.sample, y, x});
                for (int64_t k = 0; k < words_; k++) to[k] |= from[k] ^ falling_[k];
            }
        for (int64_t k = 0; k < words_; k++) to[k] ^= falling_[k];
    }

    ConvShape shape_;
    int64_t words_;
    Image input_, output_;
    const uint32_t* falling_;  // a word of bits for each word of a pixel
};

// The same numbers in the model's order under another shape, such as a flatten in front of a linear layer.
class Copy : public Step {
  public:
    Copy(const StepSpec& step, const Build& build)
        : from_(build.spec(step.input)), to_(build.spec(step.output)), input_(build.image(step.input)),
          output_(build.image(step.output)) {}

    const char* kernel() const override { return "copy"; }

    void run(int samples, Pool&) override {
        for (int n = 0; n < samples; n++) {
            int32_t c = 0;
            Place place{n, 0, 0};
            for (int k = 0; k < from_.channels; k++)
                for (int y = 0; y < from_.height; y++)
                    for (int x = 0; x < from_.width; x++) {
                        at(output_, place)[c] = at(input_, {n, y, x})[k];
                        if (++place.x < to_.width) continue;
                        place.x = 0;
                        if (++place.y < to_.height) continue;
                        place.y = 0, c++;
                    }
        }
    }

  private:
    ImageSpec from_, to_;
    Image input_, output_;
};

// Some numbers of an image to other places in another, run by run.
class Move : public Step {
  public:
    Move(const StepSpec& step, const Build& build)
        : input_(build.image(step.input)), output_(build.image(step.output)) {
        const ImageSpec &from = build.spec(step.input), &to = build.spec(step.output);
        input_.sample = from.sample(), output_.sample = to.sample();
        if (step.clears) {
            rows_ = int64_t{to.parts} * to.height, row_ = int64_t{to.width} * to.channels;
            for (int64_t row = 0; row < rows_; row++) cleared_.push_back(place(to, row * row_).first);
        }
        const int32_t* run = step.runs.as<int32_t>();
        for (int64_t i = 0; i < step.runs.bytes / kRunBytes; i++, run += 3) {
            // Rows are whole in memory, between them lies a halo.
            for (int32_t done = 0; done < run[2];) {
                const auto [source, left] = place(from, run[0] + done);
                const auto [target, room] = place(to, run[1] + done);
                const int64_t count = std::min({left, room, int64_t{run[2]} - done});
                const bool continues = !runs_.empty() && runs_.back().from + runs_.back().count == source &&
                                       runs_.back().to + runs_.back().count == target;
                if (continues)
                    runs_.back().count += count;
                else
                    runs_.push_back({source, target, count});
                done += static_cast<int32_t>(count);
            }
        }
    }

    const char* kernel() const override { return "move"; }

    void run(int samples, Pool& pool) override {
        for (int64_t sample = 0; sample < samples; sample++)
            for (int64_t row : cleared_)
                std::memset(output_.data + sample * output_.sample + row, 0, sizeof(uint32_t) * static_cast<size_t>(row_));
        const auto runs = static_cast<int64_t>(runs_.size());
        const int64_t parts = is_parallel ? std::clamp<int64_t>(runs / kRunsPerPart, 1, pool.threads()) : 1;
        share_rows(samples * parts, is_parallel, pool, [&](int64_t row) {
            const int64_t sample = row / parts, part = row % parts;
            const uint32_t* from = input_.data + sample * input_.sample;
            uint32_t* to = output_.data + sample * output_.sample;
            for (int64_t i = runs * part / parts; i < runs * (part + 1) / parts; i++) {
                const Run& r = runs_[static_cast<size_t>(i)];
                if (r.count == 1)
                    to[r.to] = from[r.from];
                else
                    std::memcpy(to + r.to, from + r.from, sizeof(uint32_t) * static_cast<size_t>(r.count));
            }
        });
    }

  private:
    struct Run {
        int64_t from, to, count;
    };
    static constexpr int64_t kRunsPerPart = 256;

    // Where a number lies behind the first of its sample, and how many follow to the end of its row.
    static std::pair<int64_t, int64_t> place(const ImageSpec& image, int64_t number) {
        const int64_t row = int64_t{image.width} * image.channels, part = row * image.height, inside = number % part;
        return {number / part * image.part() + inside / row * image.row() + inside % row, row - inside % row};
    }

    Image input_, output_;
    std::vector<Run> runs_;
    std::vector<int64_t> cleared_;  // rows of the output
    int64_t rows_ = 0, row_ = 0;    // how many, and the numbers of one
};

// Numbers that are the same for all samples, such as the positions of tokens.
class Constant : public Step {
  public:
    Constant(const StepSpec& step, const Build& build)
        : rows_(step.height), parts_(step.parts), row_(sizeof(float) * static_cast<size_t>(step.width) * step.channels),
          numbers_(step.weights.data), output_(build.image(step.output)) {}

    const char* kernel() const override { return "constant"; }

    void run(int samples, Pool&) override {
        for (int sample = 0; sample < samples; sample++)
            for (int y = 0; y < rows_; y++) {
                const size_t row = static_cast<size_t>(sample % parts_) * rows_ + y;
                std::memcpy(at(output_, {sample, y, 0}), numbers_ + row * row_, row_);
            }
    }

  private:
    int rows_, parts_;
    size_t row_;
    const uint8_t* numbers_;
    Image output_;
};

}  // namespace

std::unique_ptr<Step> make_input(const StepSpec& step, const Build& build, int number) {
    return std::make_unique<Edge>(step, build, number, true);
}

std::unique_ptr<Step> make_output(const StepSpec& step, const Build& build, int number) {
    return std::make_unique<Edge>(step, build, number, false);
}

std::unique_ptr<Step> make_pixel_step(const StepSpec& step, const Build& build) {
    return std::make_unique<PixelStep>(step, build);
}

std::unique_ptr<Step> make_pool_bits(const StepSpec& step, const Build& build) {
    return std::make_unique<PoolBits>(step, build);
}

std::unique_ptr<Step> make_move(const StepSpec& step, const Build& build) {
    return std::make_unique<Move>(step, build);
}

std::unique_ptr<Step> make_constant(const StepSpec& step, const Build& build) {
    return std::make_unique<Constant>(step, build);
}

std::unique_ptr<Step> make_copy(const StepSpec& step, const Build& build) {
    return std::make_unique<Copy>(step, build);
}

}  // namespace bnn
