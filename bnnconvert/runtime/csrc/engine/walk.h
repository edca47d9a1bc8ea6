// Positions of an image one after another, over the samples.
#pragma once

#include "kernels/chain/chain.h"

namespace bnn {

class Walk {
  public:
    Walk(int64_t position, int height, int width) : height_(height), width_(width) {
        const int64_t row = position / width;
        place_ = {static_cast<int32_t>(row / height), static_cast<int32_t>(row % height),
                  static_cast<int32_t>(position % width)};
    }

    const Place& place() const { return place_; }

    void next() {
        if (++place_.x < width_) return;
        place_.x = 0;
        if (++place_.y < height_) return;
        place_.y = 0;
        place_.sample++;
    }

  private:
    int height_, width_;
    Place place_{};
};

}  // namespace bnn
