// Attention: each head of queries against its keys and values, which lie side by side in the channels of tokens.
#include <algorithm>

#include "engine/steps.h"

namespace bnn {
namespace {

class Attention : public Step {
  public:
    Attention(const StepSpec& step, const Build& build)
        : heads_(step.heads), queries_(step.height * step.width), output_(build.image(step.output)),
          kernel_(build.kernels.attention) {
        const Image* images[3];
        for (int i = 0; i < 3; i++) {
            images[i] = &build.image(step.operands[i].image);
            parts_[i] = {reinterpret_cast<const float*>(images[i]->data) + step.operands[i].offset,
                         step.operands[i].stride, images[i]->sample};
        }
        const ImageSpec& keys = build.spec(step.operands[1].image);
        head_.q_row = images[0]->column, head_.k_row = images[1]->column, head_.v_row = images[2]->column;
        head_.out_row = output_.column;
        head_.keys = keys.height * keys.width, head_.size = step.head_size, head_.value_size = step.value_size;
        head_.scale = step.factor, head_.signs = step.signs;
        room_ = attention_scratch(head_.keys, head_.size, head_.value_size, head_.signs);
        scratch_ = Array<float>(static_cast<size_t>(room_ * build.threads));
    }

    const char* kernel() const override { return head_.signs == Signs::none ? "attention" : "attention by signs"; }

    void run(int samples, Pool& pool) override {
        const int threads = is_parallel ? pool.threads() : 1;
        // Where threads share the heads of a sample, half of the queries are a task, as heads are few.
        const int pieces = threads == 1 ? 1 : 2, tasks = samples * heads_ * pieces;
        pool.run(std::min(threads, tasks), [&](int part) {
            const int parts = std::min(threads, tasks);
            for (int64_t task = int64_t{tasks} * part / parts; task < int64_t{tasks} * (part + 1) / parts; task++)
                attend(static_cast<int>(task), pieces, scratch_.data() + part * room_);
        });
    }

  private:
    struct Part {
        const float* first;
        int64_t stride, sample;

        const float* of(int sample_number, int head) const { return first + sample_number * sample + head * stride; }
    };

    void attend(int task, int pieces, float* scratch) const {
        const int sample = task / (heads_ * pieces), head = task / pieces % heads_, piece = task % pieces;
        AttentionHead given = head_;
        given.q = parts_[0].of(sample, head), given.k = parts_[1].of(sample, head);
        given.v = parts_[2].of(sample, head);
        given.out = reinterpret_cast<float*>(output_.data) + sample * output_.sample + head * given.value_size;
        given.scratch = scratch;
        kernel_(given, queries_ * piece / pieces, queries_ * (piece + 1) / pieces);
    }

    int heads_, queries_;
    Image output_;
    AttentionFn kernel_;
    Part parts_[3];
    AttentionHead head_{};
    int64_t room_ = 0;
    Array<float> scratch_;  // of each thread
};

}  // namespace

std::unique_ptr<Step> make_attention(const StepSpec& step, const Build& build) {
    return std::make_unique<Attention>(step, build);
}

}  // namespace bnn
