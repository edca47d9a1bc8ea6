// From the bytes of a plan to a Plan. Every number is checked before it is used.
//
// The bytes are 64-bit little-endian words, then the blob. Text and tensors are references (offset, bytes) into it.
#include <algorithm>
#include <cstring>
#include <utility>

#include "engine/error.h"
#include "engine/plan.h"

namespace bnn {
namespace {

constexpr int64_t kMagic = 0x336e616c706e6e62;  // "bnnplan3"
constexpr int64_t kMaxImages = 1 << 16, kMaxSteps = 1 << 16, kMaxChain = 1 << 16;
constexpr int64_t kMaxSize = 1 << 24, kMaxHalo = 1 << 16, kMaxElements = int64_t{1} << 28;
constexpr int64_t kMaxTaps = 1 << 20, kMaxBytes = 1 << 16;

class Words {
  public:
    Words(const uint8_t* bytes, size_t size) : bytes_(bytes), count_(size / 8), size_(size) {}

    int64_t next() {
        if (position_ >= count_) throw PlanError("the plan ends too early");
        int64_t word;
        std::memcpy(&word, bytes_ + 8 * position_++, sizeof word);
        return word;
    }

    int64_t between(int64_t low, int64_t high, const char* what) {
        const int64_t word = next();
        if (word < low || word > high)
            throw PlanError(std::string(what) + " is " + std::to_string(word) + " and must be from " +
                            std::to_string(low) + " to " + std::to_string(high));
        return word;
    }

    int number(int64_t low, int64_t high, const char* what) { return static_cast<int>(between(low, high, what)); }

    float real() {
        const int64_t word = next();
        double value;
        std::memcpy(&value, &word, sizeof value);
        return static_cast<float>(value);
    }

    // Of `bytes` bytes; -1 stands for any number. A length of 0 is a reference to nothing.
    Blob blob(int64_t bytes, const char* what) {
        const int64_t offset = next(), length = next();
        if (length == 0 && bytes <= 0) return {};
        const auto end = static_cast<int64_t>(size_);
        if (offset < 0 || length < 0 || offset > end || length > end - offset || offset % 8 != 0)
            throw PlanError(std::string(what) + " does not lie in the plan");
        if (bytes >= 0 && length != bytes)
            throw PlanError(std::string(what) + " has " + std::to_string(length) + " bytes and must have " +
                            std::to_string(bytes));
        return {bytes_ + offset, length};
    }

    std::string text() {
        const Blob blob = this->blob(-1, "a name");
        return {blob.as<char>(), static_cast<size_t>(blob.bytes)};
    }

  private:
    const uint8_t* bytes_;
    size_t count_, position_ = 0, size_;
};

int64_t padded(int channels) { return int64_t{blocks_for(channels)} * kLanes; }

ImageSpec read_image(Words& words) {
    ImageSpec image{};
    image.kind = static_cast<Kind>(words.number(0, 2, "the kind of an image"));
    image.channels = words.number(1, kMaxSize, "the channels of an image");
    image.height = words.number(1, kMaxSize, "the height of an image");
    image.width = words.number(1, kMaxSize, "the width of an image");
    for (int* halo : {&image.top, &image.left, &image.bottom, &image.right}) *halo = words.number(0, kMaxHalo, "a halo");
    image.planes = words.number(1, 64, "the planes of an image");
    image.halo_of_ones = words.number(0, 1, "the halo's kind");
    image.parts = words.number(1, kMaxSize, "the parts of an image");
    if (image.kind != Kind::bits && image.planes != 1) throw PlanError("only bits have planes");
    if (image.kind == Kind::bytes && image.halo_of_ones) throw PlanError("bytes have no halo of ones");
    const double elements = (double(image.top) + image.height + image.bottom) *
                            (double(image.left) + image.width + image.right) * static_cast<double>(image.pixel()) *
                            image.parts;
    if (elements > static_cast<double>(kMaxElements)) throw PlanError("an image has more than 2^28 elements");
    return image;
}

class StepReader {
  public:
    StepReader(Words& words, const Plan& plan) : words_(words), plan_(plan) {}

    StepSpec read() {
        step_.kind = static_cast<StepKind>(words_.number(0, static_cast<int>(StepKind::constant), "the kind of a step"));
        step_.name = words_.text();
        switch (step_.kind) {
            case StepKind::input:
            case StepKind::output: read_edge(); break;
            case StepKind::conv: read_conv(); break;
            case StepKind::window: read_window(); break;
            case StepKind::map:
                step_.input = image(Kind::floats);
                take_positions(spec(step_.input));
                break;
            case StepKind::softmax:
            case StepKind::normalize: read_pixel_step(); break;
            case StepKind::attention: read_attention(); break;
            case StepKind::pool_bits: read_pool_bits(); break;
            case StepKind::copy: read_copy(); break;
            case StepKind::move: read_move(); break;
            case StepKind::constant: read_constant(); break;
            case StepKind::masked: read_masked(); break;
        }
        const bool makes_tiles = step_.kind == StepKind::conv || step_.kind == StepKind::masked ||
                                 step_.kind == StepKind::window || step_.kind == StepKind::map;
        if (makes_tiles) read_chain();
        return std::move(step_);
    }

  private:
    const ImageSpec& spec(int image) const { return plan_.images[static_cast<size_t>(image)]; }

    int image(Kind kind) {
        const int number = words_.number(0, static_cast<int64_t>(plan_.images.size()) - 1, "an image's number");
        require(spec(number).kind == kind, "reads or writes an image of another kind");
        return with_parts(number);
    }

    int with_parts(int number) {
        require(step_.parts == 0 || step_.parts == spec(number).parts || step_.kind == StepKind::move,
                "its images have different numbers of parts");
        step_.parts = spec(number).parts;
        return number;
    }

    std::string where() const { return (step_.name.empty() ? std::string("a step") : step_.name) + ": "; }

    void require(bool holds, const char* what) const {
        if (!holds) throw PlanError(where() + what);
    }

    void take_positions(const ImageSpec& image) {
        step_.height = image.height, step_.width = image.width, step_.channels = image.channels;
    }

    void read_edge() {
        if (step_.kind == StepKind::output) {
            step_.input = image(Kind::floats);
            step_.is_tokens = words_.number(0, 1, "the order of a way out");
            return take_positions(spec(step_.input));
        }
        step_.output = with_parts(words_.number(0, static_cast<int64_t>(plan_.images.size()) - 1, "an image's number"));
        step_.factor = words_.real();
        step_.is_tokens = words_.number(0, 1, "the order of a way in");
        require(spec(step_.output).kind != Kind::bits, "the way in takes no signs");
        require(spec(step_.output).kind == Kind::floats || !step_.is_tokens, "bytes come in with their channels first");
        take_positions(spec(step_.output));
    }

    void read_geometry(ConvShape& conv, const ImageSpec& input) {
        conv.kernel_h = words_.number(1, 65535, "a kernel"), conv.kernel_w = words_.number(1, 65535, "a kernel");
        conv.stride_h = words_.number(1, 65535, "a stride"), conv.stride_w = words_.number(1, 65535, "a stride");
        conv.dilation_h = words_.number(1, 65535, "a dilation"), conv.dilation_w = words_.number(1, 65535, "a dilation");
        conv.top = words_.number(0, 65535, "a padding"), conv.left = words_.number(0, 65535, "a padding");
        conv.height = words_.number(1, kMaxSize, "a height"), conv.width = words_.number(1, kMaxSize, "a width");
        conv.input_height = input.height, conv.input_width = input.width;
        step_.height = conv.height, step_.width = conv.width;
        require(int64_t{conv.kernel_h} * conv.kernel_w < kMaxTaps, "its windows are too large");
        for (const auto& [count, step] : {std::pair{conv.height, conv.stride_h}, {conv.width, conv.stride_w},
                                         {conv.kernel_h, conv.dilation_h}, {conv.kernel_w, conv.dilation_w}})
            require((count - int64_t{1}) * step <= kMaxSize, "its windows lie too far apart");
    }

    // Whether the last window ends in the halo at the latest.
    void check_reach(const ConvShape& conv, const ImageSpec& input) const {
        const int64_t down = int64_t{conv.height - 1} * conv.stride_h - conv.top +
                             int64_t{conv.kernel_h - 1} * conv.dilation_h;
        const int64_t right = int64_t{conv.width - 1} * conv.stride_w - conv.left +
                              int64_t{conv.kernel_w - 1} * conv.dilation_w;
        require(conv.top <= input.top && conv.left <= input.left && down < int64_t{input.height} + input.bottom &&
                    right < int64_t{input.width} + input.right,
                "its windows leave the image and its halo");
    }

    void read_conv() {
        ConvShape& conv = step_.conv;
        conv.dot = static_cast<Dot>(words_.number(0, 3, "the kind of a product"));
        step_.input = image(conv.dot == Dot::binary ? Kind::bits : conv.dot == Dot::bytes ? Kind::bytes : Kind::floats);
        const ImageSpec& input = spec(step_.input);
        read_geometry(conv, input);
        check_reach(conv, input);
        conv.channels = input.channels, conv.input_planes = input.planes;
        conv.outputs = words_.number(1, kMaxSize, "the outputs of a layer");
        conv.groups = words_.number(1, conv.channels, "the groups of a layer");
        conv.weight_planes = words_.number(1, 64, "the planes of a layer");
        conv.pads_zero = words_.number(0, 1, "the padding's kind");
        require(conv.channels % conv.groups == 0 && conv.outputs % conv.groups == 0,
                "its channels do not divide by its groups");
        require(conv.dot == Dot::binary || conv.weight_planes == 1, "only binary layers have planes");
        const int64_t weights = int64_t{conv.taps()} * conv.group_channels();
        require(weights < 1 << 24, "it has more than 2^24 weights per output");
        if (conv.dot == Dot::bytes) {
            require(weights <= kMaxBytes, "it has more than 2^16 bytes per output");
            require(conv.groups == 1 || conv.group_channels() % 4 == 0, "its groups of bytes do not fill words");
        }
        require(!conv.extracts() || conv.elements() <= kGatherElements, "its groups of signs are too large to move");
        const int64_t rows = int64_t{conv.outputs} * conv.weight_planes;
        const int64_t row = conv.dot == Dot::float32 ? 4 * weights : conv.dot == Dot::bytes ? weights : (weights + 7) / 8;
        require(double(rows) * double(conv.elements()) < double(kMaxElements) * 16, "its weights are too many");
        step_.weights = words_.blob(rows * row, "a weight");
        step_.channels = conv.outputs;
        const int64_t planes = int64_t{conv.input_planes} * conv.weight_planes;
        step_.scale = words_.blob(-1, "a scale");
        require(step_.scale.bytes == 0 ||
                    (!conv.reads_floats() && step_.scale.bytes == planes * padded(conv.outputs) * 4),
                "its scales are not as many as its outputs");
        require(step_.scale.bytes || planes == 1, "several planes need scales");
        step_.bias = words_.blob(-1, "a bias");
        require(step_.bias.bytes == 0 || (!conv.reads_floats() && step_.bias.bytes == padded(conv.outputs) * 4),
                "its biases are not as many as its outputs");
        step_.thresholds = words_.blob(-1, "a threshold");
        step_.start = words_.blob(-1, "a start");
        if (step_.thresholds.bytes == 0) return;
        require(conv.dot == Dot::binary && planes == 1, "only a binary layer of one plane has thresholds");
        require(step_.thresholds.bytes == 4 * int64_t{conv.outputs} && step_.start.bytes == conv.outputs,
                "its thresholds are not as many as its outputs");
        step_.output = image(Kind::bits);
        const ImageSpec& output = spec(step_.output);
        require(output.planes == 1 && output.channels == conv.outputs && output.height == conv.height &&
                    output.width == conv.width,
                "its output has another shape");
        require(conv.groups == 1 || conv.group_outputs() % kLanes == 0, "its groups do not end at whole blocks");
    }

    void read_masked() {
        ConvShape& conv = step_.conv;
        step_.input = image(Kind::floats);
        const ImageSpec& input = spec(step_.input);
        read_geometry(conv, input);
        check_reach(conv, input);
        conv.dot = Dot::float32, conv.channels = input.channels, conv.groups = 1;
        conv.outputs = words_.number(1, kMaxSize, "the outputs of a layer");
        step_.channels = conv.outputs;
        step_.mask = image(Kind::bits);
        require(spec(step_.mask).planes == 1, "its mask has several planes");
        check_same(spec(step_.mask), conv.outputs);
        const double padded_row = double(conv.taps()) * double(padded(conv.channels));
        require(padded_row * double(padded(conv.outputs)) <= double(kMaxElements), "its weights are too many");
        step_.weights = words_.blob(int64_t{conv.outputs} * conv.taps() * conv.channels * 4, "a weight");
        step_.bias = words_.blob(padded(conv.outputs) * 4, "a bias");
    }

    void read_window() {
        step_.input = image(Kind::floats);
        const ImageSpec& input = spec(step_.input);
        read_geometry(step_.conv, input);
        step_.reduce = static_cast<Reduce>(words_.number(0, 2, "the kind of a window"));
        step_.divisor = words_.number(0, kMaxSize, "the divisor of an average");
        step_.channels = input.channels;
        const int64_t taps = int64_t{step_.conv.kernel_h} * step_.conv.kernel_w;
        step_.weights = words_.blob(step_.reduce == Reduce::weighted ? taps * padded(input.channels) * 4 : 0,
                                    "a depthwise weight");
    }

    void read_pixel_step() {
        step_.input = image(Kind::floats), step_.output = image(Kind::floats);
        if (step_.kind == StepKind::softmax)
            step_.logarithm = words_.number(0, 1, "the kind of a softmax");
        else
            step_.factor = words_.real();
        take_positions(spec(step_.input));
        check_same(spec(step_.output), step_.channels);
    }

    void read_attention() {
        step_.heads = words_.number(1, kMaxSize, "the heads of attention");
        step_.head_size = words_.number(1, kMaxSize, "the size of a head");
        step_.value_size = words_.number(1, kMaxSize, "the size of a value");
        step_.signs = static_cast<Signs>(words_.number(0, static_cast<int>(Signs::both), "the signs of attention"));
        step_.factor = words_.real();
        for (HeadsSpec& operand : step_.operands) {
            operand.image = image(Kind::floats);
            operand.offset = words_.number(0, kMaxSize, "where heads begin");
            operand.stride = words_.number(0, kMaxSize, "from head to head");
            const int64_t size = &operand == &step_.operands[2] ? step_.value_size : step_.head_size;
            require(operand.offset + int64_t{step_.heads - 1} * operand.stride + size <= spec(operand.image).channels,
                    "its heads leave the channels");
            require(has_no_halo(spec(operand.image)), "it reads an image with a halo");
        }
        step_.output = image(Kind::floats);
        const ImageSpec &queries = spec(step_.operands[0].image), &keys = spec(step_.operands[1].image),
                        &values = spec(step_.operands[2].image), &output = spec(step_.output);
        take_positions(output);
        require(has_no_halo(output), "it writes an image with a halo");
        require(output.channels == int64_t{step_.heads} * step_.value_size, "its output has another shape");
        require(int64_t{queries.height} * queries.width == int64_t{output.height} * output.width,
                "it has other queries than outputs");
        require(int64_t{keys.height} * keys.width == int64_t{values.height} * values.width,
                "it has other keys than values");
        require(int64_t{keys.height} * keys.width <= kMaxSize, "it has too many keys");
        require(double(step_.head_size) * double(padded(keys.height * keys.width)) <= double(kMaxElements) &&
                    double(step_.value_size) * double(padded(keys.height * keys.width)) <= double(kMaxElements),
                "its heads are too large");
    }

    static bool has_no_halo(const ImageSpec& image) {
        return image.top == 0 && image.left == 0 && image.bottom == 0 && image.right == 0;
    }

    void read_pool_bits() {
        step_.input = image(Kind::bits);
        const ImageSpec& input = spec(step_.input);
        read_geometry(step_.conv, input);
        step_.output = image(Kind::bits);
        const ImageSpec& output = spec(step_.output);
        require(output.planes == input.planes && output.channels == input.channels, "its output has another shape");
        require(output.height == step_.height && output.width == step_.width, "its output has another shape");
        step_.weights = words_.blob(4 * input.pixel(), "the falling channels");
    }

    void read_copy() {
        step_.input = image(Kind::floats), step_.output = image(Kind::floats);
        const ImageSpec &from = spec(step_.input), &to = spec(step_.output);
        require(int64_t{from.channels} * from.height * from.width == int64_t{to.channels} * to.height * to.width,
                "it copies to another number of elements");
    }

    void read_move() {
        step_.input = image(Kind::floats), step_.output = image(Kind::floats);
        const auto numbers = [](const ImageSpec& image) {
            return int64_t{image.channels} * image.height * image.width * image.parts;
        };
        const int64_t from = numbers(spec(step_.input)), to = numbers(spec(step_.output));
        step_.clears = words_.number(0, 1, "whether a move clears");
        step_.runs = words_.blob(-1, "a run");
        require(step_.input != step_.output, "it moves numbers within an image");
        require(step_.runs.bytes % kRunBytes == 0, "its runs are not whole");
        for (int64_t i = 0; i < step_.runs.bytes / kRunBytes; i++) {
            int32_t run[3];
            std::memcpy(run, step_.runs.data + i * kRunBytes, kRunBytes);
            require(run[0] >= 0 && run[1] >= 0 && run[2] >= 1 && run[0] + int64_t{run[2]} <= from &&
                        run[1] + int64_t{run[2]} <= to,
                    "a run leaves its image");
        }
    }

    void read_constant() {
        step_.output = image(Kind::floats);
        take_positions(spec(step_.output));
        step_.weights = words_.blob(
            int64_t{step_.parts} * step_.height * step_.width * step_.channels * int64_t{sizeof(float)}, "a number");
    }

    void check_same(const ImageSpec& image, int channels) const {
        require(image.height == step_.height && image.width == step_.width && image.channels == channels,
                "an image of its chain has another shape");
    }

    void read_chain() {
        const int count = words_.number(0, kMaxChain, "the length of a chain");
        for (int i = 0; i < count; i++) step_.chain.push_back(read_op());
        if (step_.thresholds.bytes) return require(count == 0, "a layer with thresholds has no chain");
        // An image that is written bounds the positions that the chain runs over.
        const auto writes = [](const ChainSpec& op) { return is_written(op.code); };
        require(std::any_of(step_.chain.begin(), step_.chain.end(), writes), "its result goes nowhere");
    }

    ChainSpec read_op() {
        ChainSpec op{};
        op.code = static_cast<ChainCode>(words_.number(0, kChainCodes - 1, "an operation"));
        op.low = words_.real(), op.high = words_.real();
        const int64_t vector = padded(step_.channels) * 4;
        switch (op.code) {
            case ChainCode::load:
            case ChainCode::add:
            case ChainCode::multiply: {
                op.image = image(Kind::floats);
                const ImageSpec& operand = spec(op.image);
                const bool is_one_pixel = operand.height == 1 && operand.width == 1;
                if (!is_one_pixel) check_same(operand, step_.channels);
                require(operand.channels == step_.channels, "an operand has another number of channels");
                break;
            }
            case ChainCode::gain: {
                op.image = image(Kind::floats);
                check_same(spec(op.image), 1);
                break;
            }
            case ChainCode::affine:
                op.a = words_.blob(vector, "a factor"), op.b = words_.blob(vector, "a summand");
                break;
            case ChainCode::prelu: op.a = words_.blob(vector, "a slope"); break;
            case ChainCode::store: {
                op.image = image(Kind::floats);
                const ImageSpec& to = spec(op.image);
                op.channel = words_.number(0, to.channels - 1, "a channel");
                require(int64_t{op.channel} + step_.channels <= to.channels && to.height == step_.height &&
                            to.width == step_.width,
                        "it stores into an image of another shape");
                break;
            }
            case ChainCode::encode: {
                op.image = image(Kind::bits);
                check_same(spec(op.image), step_.channels);
                const int64_t planes = spec(op.image).planes;
                op.levels = words_.number(0, 1 << 16, "the levels of an encoding");
                op.a = words_.blob(planes * op.levels * vector, "a threshold");
                op.start = words_.blob(planes * (vector / 64) * 2, "a start");
                break;
            }
            case ChainCode::quantize:
                op.image = image(Kind::bytes);
                check_same(spec(op.image), step_.channels);
                break;
            default: break;
        }
        return op;
    }

    Words& words_;
    const Plan& plan_;
    StepSpec step_{};
};

}  // namespace

std::vector<int> StepSpec::images() const {
    std::vector<int> found;
    for (int image : {input, output, mask})
        if (image >= 0) found.push_back(image);
    for (const HeadsSpec& operand : operands)
        if (operand.image >= 0) found.push_back(operand.image);
    for (const ChainSpec& op : chain)
        if (op.image >= 0) found.push_back(op.image);
    return found;
}

Plan read_plan(const uint8_t* bytes, size_t size) {
    Words words(bytes, size);
    if (words.next() != kMagic) throw PlanError("these bytes are no plan of this version");
    Plan plan;
    const int images = words.number(0, kMaxImages, "the number of images");
    for (int i = 0; i < images; i++) plan.images.push_back(read_image(words));
    const int steps = words.number(0, kMaxSteps, "the number of steps");
    for (int i = 0; i < steps; i++) plan.steps.push_back(StepReader(words, plan).read());
    return plan;
}

}  // namespace bnn
