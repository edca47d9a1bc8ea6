// The geometry of a convolution or linear layer.
#pragma once

#include <cstdint>

#include "kernels/conv/conv.h"

namespace bnn {

constexpr int kGatherElements = 512;  // of a window that is copied, so that those of a tile stay in the first-level cache

struct ConvShape {
    Dot dot;
    int channels, outputs, groups;       // channels are those of one input plane
    int input_planes, weight_planes;     // 1 unless binary
    int kernel_h, kernel_w, stride_h, stride_w, dilation_h, dilation_w;
    int top, left;                       // padding
    int input_height, input_width, height, width;
    bool pads_zero;                      // binary: a padded tap adds 0, although its bit says -1

    int group_channels() const { return channels / groups; }
    int group_outputs() const { return outputs / groups; }
    int planes() const { return input_planes * weight_planes; }
    bool reads_floats() const { return dot == Dot::float32 || dot == Dot::signs; }
    int taps() const { return kernel_h * kernel_w; }
    // Elements of 32 bits that one tap reads.
    int tap_elements() const {
        const int per_element = dot == Dot::binary ? 32 : dot == Dot::bytes ? 4 : 1;
        return (group_channels() + per_element - 1) / per_element;
    }
    int elements() const { return taps() * tap_elements(); }
    // Groups of signs that do not begin at a word are moved there first.
    bool extracts() const { return groups > 1 && dot == Dot::binary && group_channels() % 32 != 0; }
};

}  // namespace bnn
