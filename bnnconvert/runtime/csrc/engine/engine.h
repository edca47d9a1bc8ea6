// A plan made ready to run: memory planned, weights laid out, tiles chosen.
#pragma once

#include <atomic>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "engine/memory.h"
#include "engine/plan.h"
#include "kernels/table.h"
#include "threads/pool.h"

namespace bnn {

// Which tile a layer takes: the fastest, or for tests the one of a given number, and then threads share every step.
struct Tuning {
    static constexpr int kFastest = -1;
    int number = kFastest;
    // Tiles that were found to be the fastest, by all that a layer's speed depends on, with their seconds.
    std::map<std::vector<int>, std::pair<const ConvTile*, double>> known;
};

struct Build;

class Step {
  public:
    virtual ~Step() = default;
    virtual void run(int samples, Pool& pool) = 0;
    virtual const char* kernel() const = 0;
    virtual const char* tile() const { return ""; }
    // Try the ways there are to do it and keep the fastest.
    virtual void tune(Pool& pool, Tuning& tuning);

    std::string layer;
    int parts = 1;  // of a sample: `run` gets so many times its number of samples
    double seconds = 0;  // of one sample and one thread, when it was tuned
    std::atomic<double> measured{0};  // of the last run
    bool is_parallel = true;
};

// Where the caller's numbers are during a run.
struct Edges {
    const float* const* inputs = nullptr;
    float* const* outputs = nullptr;
    int64_t first = 0;  // sample
};

class Engine {
  public:
    // The plan refers to the bytes. Raises: PlanError, std::bad_alloc, std::system_error.
    Engine(std::vector<uint8_t> bytes, const Plan& plan, int threads, Isa isa, int tile);

    void run(int64_t samples, const float* const* inputs, float* const* outputs);

    const std::vector<std::unique_ptr<Step>>& steps() const { return steps_; }
    const std::vector<int64_t>& input_sizes() const { return input_sizes_; }
    const std::vector<int64_t>& output_sizes() const { return output_sizes_; }
    int64_t memory() const;

    std::atomic<bool> profiles{false};

  private:
    void plan_memory(const Plan& plan);
    void build(const Plan& plan, int tile);
    std::unique_ptr<Step> make_step(const StepSpec& step, const Build& build) const;

    Pool pool_;
    const Kernels& kernels_;
    std::vector<uint8_t> bytes_;
    std::vector<Array<uint32_t>> buffers_;
    std::vector<Image> images_;
    std::vector<std::unique_ptr<Step>> steps_;
    std::vector<int64_t> input_sizes_, output_sizes_;
    Edges edges_;
    int chunk_ = 1;  // samples that are run at a time
    double worth_threads_;  // seconds
};

}  // namespace bnn
