// What an engine runs, as it was read from the bytes of a plan; nothing in it has been believed without a check.
//
// A plan is what the Python side compiles a program to: operators fused into steps, per-channel constants folded,
// weights still in rows. It holds no machine's layout.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "engine/conv_shape.h"
#include "kernels/attention/attention.h"
#include "kernels/window/window.h"

namespace bnn {

enum class Kind : uint8_t { floats, bits, bytes };

// A value of the plan, channels last, with a halo of constant pixels around it that kernels read as padding.
struct ImageSpec {
    Kind kind;
    int channels, height, width;
    int top, left, bottom, right;  // halo
    int planes;                    // bits only
    bool halo_of_ones;             // else of zeros
    int parts;                     // of a sample, such as its windows or frames, each with a halo of its own

    // Elements of 32 bits of one pixel.
    int64_t pixel() const {
        if (kind == Kind::floats) return channels;
        return kind == Kind::bits ? int64_t{planes} * ((channels + 31) / 32) : (channels + 3) / 4;
    }
    int64_t row() const { return (int64_t{left} + width + right) * pixel(); }
    int64_t part() const { return (int64_t{top} + height + bottom) * row(); }
    int64_t sample() const { return parts * part(); }
};

// Part of the plan's blob, of elements of a known size.
struct Blob {
    const uint8_t* data = nullptr;
    int64_t bytes = 0;
    template <class T>
    const T* as() const {
        return reinterpret_cast<const T*>(data);
    }
};

struct ChainSpec {
    ChainCode code;
    int image = -1;          // operand or destination
    int channel = 0;         // where in the destination it begins
    int levels = 0;
    float low = 0, high = 0;
    Blob a, b, start;
};

enum class StepKind : uint8_t { input, conv, window, map, softmax, pool_bits, copy, output, masked, normalize, attention, move, constant };

// Heads side by side in the channels of an image: of head h those from offset + h stride on.
struct HeadsSpec {
    int image = -1, offset = 0, stride = 0;
};

constexpr int64_t kRunBytes = 3 * sizeof(int32_t);  // of a move

struct StepSpec {
    StepKind kind;
    std::string name;        // the layer's path
    int input = -1, output = -1, mask = -1;  // images
    HeadsSpec operands[3];        // queries, keys, values
    int heads = 0, head_size = 0, value_size = 0;
    Signs signs{};                // which products of attention are of signs
    bool clears = false;          // the output, before a move
    Blob runs;                    // of a move: from, to, how many; numbers of a sample, halos not counted
    int height = 0, width = 0;    // of the positions that the chain runs over
    int channels = 0;             // that it runs over
    int parts = 0;                // of a sample, which it works on one by one; of a move those of its output
    ConvShape conv{};
    Blob weights, scale, bias, thresholds, start;
    Reduce reduce{};
    int divisor = 0;              // of a sum; 0 stands for the number of taps inside the image
    bool logarithm = false;
    float factor = 0;             // of an input that is taken in bytes; added to a variance; of scores
    bool is_tokens = false;       // outside the channels come last, too
    std::vector<ChainSpec> chain;

    // That it reads or writes, in that order.
    std::vector<int> images() const;
};

struct Plan {
    std::vector<ImageSpec> images;
    std::vector<StepSpec> steps;
};

// Raises: PlanError.
Plan read_plan(const uint8_t* bytes, size_t size);

}  // namespace bnn
