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

// Some rows of one sample, to be made in the calling thread. `shift` is about the image between two steps that work in
// bands: what belongs to a place of this sample is found at the place minus the shift.
struct Band {
    int sample, begin, end;
    Place shift;
};

class BandStep : public Step {
  public:
    virtual void run_band(const Band& band) const = 0;
};

std::unique_ptr<BandStep> make_conv(const StepSpec& step, const Build& build);
std::unique_ptr<BandStep> make_window(const StepSpec& step, const Build& build);
// A convolution and the pool behind it as one step; null where step `number` is none, or nothing would be gained.
std::unique_ptr<Step> make_bands(const Build& build, size_t number, bool always);
std::unique_ptr<Step> make_map(const StepSpec& step, const Build& build);
std::unique_ptr<Step> make_pixel_step(const StepSpec& step, const Build& build);
std::unique_ptr<Step> make_attention(const StepSpec& step, const Build& build);
std::unique_ptr<Step> make_masked(const StepSpec& step, const Build& build);
std::unique_ptr<Step> make_pool_bits(const StepSpec& step, const Build& build);
std::unique_ptr<Step> make_copy(const StepSpec& step, const Build& build);
std::unique_ptr<Step> make_move(const StepSpec& step, const Build& build);
std::unique_ptr<Step> make_constant(const StepSpec& step, const Build& build);
std::unique_ptr<Step> make_input(const StepSpec& step, const Build& build, int number);
std::unique_ptr<Step> make_output(const StepSpec& step, const Build& build, int number);

}  // namespace bnn
