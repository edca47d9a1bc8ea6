// The steps that an engine is made of.
#pragma once

#include <memory>

#include "engine/chain.h"
#include "engine/engine.h"

namespace bnn {

// What a step needs to be built: its images with their memory, and the kernels.
struct Build {
    const Plan& plan;
    const std::vector<Image>& images;
    const Kernels& kernels;
    const Edges& edges;
    int threads;

    const ImageSpec& spec(int image) const { return plan.images[static_cast<size_t>(image)]; }
    const Image& image(int image) const { return images[static_cast<size_t>(image)]; }
};

std::unique_ptr<Step> make_conv(const StepSpec& step, const Build& build);
std::unique_ptr<Step> make_window(const StepSpec& step, const Build& build);
std::unique_ptr<Step> make_map(const StepSpec& step, const Build& build);
std::unique_ptr<Step> make_softmax(const StepSpec& step, const Build& build);
std::unique_ptr<Step> make_pool_bits(const StepSpec& step, const Build& build);
std::unique_ptr<Step> make_copy(const StepSpec& step, const Build& build);
std::unique_ptr<Step> make_input(const StepSpec& step, const Build& build, int number);
std::unique_ptr<Step> make_output(const StepSpec& step, const Build& build, int number);

}  // namespace bnn
