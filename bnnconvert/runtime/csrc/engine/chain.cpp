#include "engine/steps.h"

namespace bnn {

std::vector<ChainOp> make_chain(const StepSpec& step, const Build& build) {
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
            const bool is_operand = from.code != ChainCode::store && from.code != ChainCode::encode &&
                                    from.code != ChainCode::quantize;
            if (is_operand && spec.height == 1 && spec.width == 1) op.image.row = op.image.column = 0;
        }
        chain.push_back(op);
    }
    return chain;
}

}  // namespace bnn
