#include "engine/chain.h"

#include <algorithm>

#include "engine/steps.h"

namespace bnn {
namespace {

std::vector<ChainOp> operations(const StepSpec& step, const Build& build) {
    std::vector<ChainOp> chain;
    for (const ChainSpec& from : step.chain) {
        ChainOp op{};
        op.code = from.code;
        op.channels = step.channels;
        op.levels = from.levels;
        op.low = from.low, op.high = from.high;
        op.a = from.a.as<float>(), op.b = from.b.as<float>(), op.start = from.start.as<uint16_t>();
        if (from.image >= 0) {
            const ImageSpec& spec = build.spec(from.image);
            op.image = build.image(from.image);
            op.image.data += from.channel;
            op.planes = spec.planes;
            if (!is_written(from.code) && spec.height == 1 && spec.width == 1) op.image.row = op.image.column = 0;
        }
        chain.push_back(op);
    }
    return chain;
}

}  // namespace

Chain::Chain(const StepSpec& step, const Build& build, const Image* source)
    : Chain(step, build, source ? Source::image : Source::tile, source, nullptr, nullptr) {}

Chain Chain::on_counts(const StepSpec& step, const Build& build, bool are_mismatches) {
    return {step,    build, are_mismatches ? Source::mismatches : Source::products,
            nullptr, step.scale.as<float>(), step.bias.as<float>()};
}

Chain::Chain(const StepSpec& step, const Build& build, Source source, const Image* image, const float* scale,
             const float* bias)
    : ops_(operations(step, build)), kernel_(build.kernels.chain), scale_(scale), bias_(bias),
      are_mismatches_(source == Source::mismatches) {
    const auto padded = static_cast<size_t>(blocks_for(step.channels)) * kLanes;
    ones_ = Array<float>(padded), zeros_ = Array<float>(padded);
    std::fill(ones_.data(), ones_.data() + padded, 1.0f);
    if (image) parts_.source = *image;
    if (!fuse(source)) fused_ = nullptr;
    if (image) {
        ChainOp load{};
        load.code = ChainCode::load;
        load.image = *image;
        ops_.insert(ops_.begin(), load);
    }
}

// Finds the parts of the common form; false where an operation is left over.
bool Chain::fuse(Source source) {
    const float *ones = ones_.data(), *zeros = zeros_.data();
    auto op = ops_.begin();
    const auto is = [&](ChainCode code) { return op != ops_.end() && op->code == code; };
    const auto is_then = [&](ChainCode code) { return ops_.end() - op > 1 && op[1].code == code; };
    const auto affine = [&](const float*& a, const float*& b) {
        a = ones, b = zeros;
        if (is(ChainCode::affine)) a = op->a, b = op->b, ++op;
    };
    Form form{source, false, Activation::none, Write::floats};
    if (source == Source::mismatches || source == Source::products)
        parts_.scale = scale_ ? scale_ : ones, parts_.bias = bias_ ? bias_ : zeros;
    else
        affine(parts_.scale, parts_.bias);
    if (is(ChainCode::add)) {
        form.adds = true;
        parts_.operand = op->image, parts_.factor = op->low, ++op;
    }
    if (is(ChainCode::clamp)) {
        form.activation = Activation::clamp;
        parts_.low = op->low, parts_.high = op->high, ++op;
    } else if ((is(ChainCode::affine) && !is_then(ChainCode::encode)) || is(ChainCode::prelu)) {
        form.activation = Activation::prelu;
        affine(parts_.before_a, parts_.before_b);
        parts_.slope = ones;
        if (is(ChainCode::prelu)) parts_.slope = op->a, ++op;
        affine(parts_.after_a, parts_.after_b);
    }
    bool stores = false, encodes = false, scales = false;
    for (; op != ops_.end(); ++op) {
        if (op->code == ChainCode::affine && !scales && !encodes && is_then(ChainCode::encode)) {
            scales = true;
            parts_.bits_a = op->a, parts_.bits_b = op->b;
        } else if (op->code == ChainCode::store && !stores && !scales && op->channels % kLanes == 0) {
            stores = true;
            parts_.floats = op->image;
        } else if (op->code == ChainCode::encode && !encodes && op->planes == 1 && op->levels == 1 &&
                   op->channels % (2 * kLanes) == 0) {
            encodes = true;
            parts_.bits = op->image, parts_.thresholds = op->a, parts_.start = op->start;
        } else {
            return false;
        }
    }
    if (!stores && !encodes) return false;
    if (encodes)
        form.write = stores ? scales ? Write::both_scaled : Write::both : scales ? Write::scaled_bits : Write::bits;
    fused_ = kernel_.fused[form.number()];
    return true;
}

void Chain::run(const Tile& tile) const {
    if (fused_)
        fused_(parts_, nullptr, nullptr, tile);
    else
        kernel_.run(ops_.data(), static_cast<int>(ops_.size()), tile);
}

void Chain::run(const int32_t* counts, const int32_t* const* base, const Tile& tile) const {
    if (fused_) return fused_(parts_, counts, base, tile);
    kernel_.combine({counts, base, scale_, bias_, are_mismatches_, true}, tile);
    kernel_.run(ops_.data(), static_cast<int>(ops_.size()), tile);
}

}  // namespace bnn
