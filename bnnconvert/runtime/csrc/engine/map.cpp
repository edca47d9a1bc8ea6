// Element-wise operations on an image: the load is the chain's first operation.
#include "engine/tiles.h"

namespace bnn {
namespace {

class Map : public Step {
  public:
    Map(const StepSpec& step, const Build& build)
        : positions_{step.height, step.width, step.channels}, chain_(step, build, &build.image(step.input)) {}

    const char* kernel() const override { return "map"; }

    void run(int samples, Pool& pool) override {
        run_tiles(positions_, samples, is_parallel ? pool.threads() : 1, pool, chain_, [](const Tile&) {});
    }

  private:
    Positions positions_;
    Chain chain_;
};

}  // namespace

std::unique_ptr<Step> make_map(const StepSpec& step, const Build& build) {
    return std::make_unique<Map>(step, build);
}

}  // namespace bnn
