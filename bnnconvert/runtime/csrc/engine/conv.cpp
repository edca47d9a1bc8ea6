#include "engine/conv.h"

#include <algorithm>
#include <climits>
#include <map>
#include <utility>

#include "engine/walk.h"

namespace bnn {
namespace {

constexpr int kShortRun = 6;  // elements; below, the loop around a run costs more than copying it
constexpr uint32_t kOne = 0x3f800000, kMinusOne = 0xbf800000;  // as floats

int words_for(int bits) { return (bits + 31) / 32; }

// Bits [first, first + count) of a row of words, moved to the front; the rest of the last word is 0.
void extract_bits(const uint32_t* from, int first, int count, uint32_t* to) {
    for (int done = 0; done < count; done += 32, first += 32) {
        const int shift = first % 32, left = count - done;
        uint32_t word = from[first / 32] >> shift;
        if (shift && left > 32 - shift) word |= from[first / 32 + 1] << (32 - shift);
        *to++ = left >= 32 ? word : word & ((1u << left) - 1);
    }
}

// The set of taps that fall inside the image, as the first and the number behind the last, for each output position.
std::pair<int, int> inside(int position, int stride, int padding, int dilation, int kernel, int size) {
    int first = 0, last = kernel;
    const int begin = position * stride - padding;
    while (first < kernel && begin + first * dilation < 0) first++;
    while (last > first && begin + (last - 1) * dilation >= size) last--;
    return {first, last};
}

struct Classes {
    std::vector<int32_t> of_position;
    std::vector<std::pair<int, int>> taps;
};

Classes classes_of(int outputs, int stride, int padding, int dilation, int kernel, int size) {
    Classes result;
    std::map<std::pair<int, int>, int> known;
    for (int position = 0; position < outputs; position++) {
        const auto taps = inside(position, stride, padding, dilation, kernel, size);
        const auto [found, is_new] = known.emplace(taps, static_cast<int>(result.taps.size()));
        if (is_new) result.taps.push_back(taps);
        result.of_position.push_back(found->second);
    }
    return result;
}

}  // namespace

Conv::Conv(const ConvShape& shape, ConvWeights weights, Image input, Chain chain, const float* scale,
           const float* bias, const Thresholds* thresholds, const Kernels& kernels, int threads)
    : shape_(shape), weights_(std::move(weights)), input_(input), chain_(std::move(chain)), scale_(scale), bias_(bias),
      has_thresholds_(thresholds != nullptr), kernels_(kernels), threads_(threads) {
    if (thresholds) thresholds_ = *thresholds;
    padded_outputs_ = blocks_for(shape.outputs) * kLanes;
    make_runs();
    if (shape.dot == Dot::bytes) make_byte_base();
    if (shape.dot == Dot::binary) {
        make_classes();
        make_base();
        if (thresholds) make_limits();
    }
    const int blocks = blocks_for(shape.group_outputs());
    for (const ConvTile& tile : kernels.conv) {
        // Bits beyond the last block would be those of the next pixel.
        const bool fits = !has_thresholds_ || blocks % tile.blocks == 0;
        const bool takes = tile.dot == shape.dot || (shape.dot == Dot::signs && tile.dot == Dot::float32);
        if (takes && fits) fitting_.push_back(&tile);
    }
    use(*fitting_.front());
}

void Conv::make_runs() {
    const int tap = shape_.tap_elements();
    extracts_ = shape_.extracts();
    const bool row_is_run = shape_.dilation_w == 1 && tap == input_.column && !extracts_;
    const int per_row = row_is_run ? 1 : shape_.kernel_w;
    run_length_ = row_is_run ? tap * shape_.kernel_w : tap;
    for (int y = 0; y < shape_.kernel_h; y++)
        for (int x = 0; x < per_row; x++)
            runs_.push_back(static_cast<int32_t>(y * shape_.dilation_h * input_.row +
                                                 x * shape_.dilation_w * input_.column));
    gathers_ = extracts_ || (runs_.size() > 1 && run_length_ < kShortRun && shape_.elements() <= kGatherElements &&
                             shape_.input_planes == 1);
    plane_words_ = shape_.dot == Dot::binary ? (shape_.channels + 31) / 32 : 0;
    makes_rows_ = shape_.groups > 1 &&
                  (shape_.group_outputs() % kLanes != 0 || (extracts_ && shape_.input_planes > 1));
}

// The input is stored with 128 added to each byte.
void Conv::make_byte_base() {
    const auto elements = static_cast<size_t>(shape_.elements());
    base_ = Array<int32_t>(padded_outputs_);
    for (int o = 0; o < shape_.outputs; o++) {
        int sum = 0;
        for (size_t k = 0; k < elements; k++)
            for (int shift = 0; shift < 32; shift += 8)
                sum += static_cast<int8_t>(weights_.elements[static_cast<size_t>(o) * elements + k] >> shift);
        base_[o] = -128 * sum;
    }
}

void Conv::make_classes() {
    const ConvShape& s = shape_;
    row_taps_ = {{0, s.kernel_h}}, column_taps_ = {{0, s.kernel_w}};
    if (!s.pads_zero) return;
    Classes rows = classes_of(s.height, s.stride_h, s.top, s.dilation_h, s.kernel_h, s.input_height);
    Classes columns = classes_of(s.width, s.stride_w, s.left, s.dilation_w, s.kernel_w, s.input_width);
    row_class_ = std::move(rows.of_position), row_taps_ = std::move(rows.taps);
    column_class_ = std::move(columns.of_position), column_taps_ = std::move(columns.taps);
    row_classes_ = static_cast<int>(row_taps_.size()), column_classes_ = static_cast<int>(column_taps_.size());
}

// What a mismatch count m is subtracted from depends on the taps that fall outside the image. Their bits are 0, so each
// set weight bit there counts as a mismatch that is none:
//
//     acc = K_inside - 2 (m - m_outside) = base - 2 m
void Conv::make_base() {
    const ConvShape& s = shape_;
    const int tap = s.tap_elements(), row = s.kernel_w + 1;
    base_ = Array<int32_t>(static_cast<size_t>(s.weight_planes) * classes() * padded_outputs_);
    std::vector<int32_t> ones(static_cast<size_t>(s.kernel_h + 1) * row);  // in the taps above and to the left
    const auto within = [&](int top, int bottom, int left, int right) {
        return ones[bottom * row + right] - ones[top * row + right] - ones[bottom * row + left] + ones[top * row + left];
    };
    for (int i = 0; i < s.weight_planes * s.outputs; i++) {
        const uint32_t* w = &weights_.elements[static_cast<size_t>(i) * s.elements()];
        for (int y = 0; y < s.kernel_h; y++)
            for (int x = 0; x < s.kernel_w; x++) {
                int count = 0;
                for (int k = 0; k < tap; k++) count += __builtin_popcount(*w++);
                int32_t* here = &ones[(y + 1) * row + x + 1];
                *here = count + here[-1] + here[-row] - here[-row - 1];
            }
        const int all = within(0, s.kernel_h, 0, s.kernel_w);
        for (int c = 0; c < classes(); c++) {
            const auto [top, bottom] = row_taps_[c / column_classes_];
            const auto [left, right] = column_taps_[c % column_classes_];
            const int inside = (bottom - top) * (right - left) * s.group_channels();
            const size_t place = (static_cast<size_t>(i / s.outputs) * classes() + c) * padded_outputs_;
            base_[place + i % s.outputs] = inside + 2 * (all - within(top, bottom, left, right));
        }
    }
}

// acc >= threshold where m <= limit; a falling bit is a rising one of the flipped filter, whose mismatches are all - m.
void Conv::make_limits() {
    const ConvShape& s = shape_;
    const int all = s.taps() * s.group_channels(), tap = s.tap_elements();
    limits_ = Array<int32_t>(base_.size());
    std::fill(limits_.data(), limits_.data() + limits_.size(), -1);
    for (int o = 0; o < s.outputs; o++) {
        const int64_t threshold = thresholds_.at[o];
        const bool flips = thresholds_.start[o];
        for (int c = 0; c < classes(); c++) {
            const size_t place = static_cast<size_t>(c) * padded_outputs_ + o;
            const int64_t difference = base_[place] - threshold;
            int64_t limit = difference >= 0 ? difference / 2 : -((1 - difference) / 2);
            if (threshold == INT32_MAX || limit < -1) limit = -1;
            if (limit > all) limit = all;
            limits_[place] = static_cast<int32_t>(flips ? all - limit - 1 : limit);
        }
        if (!flips) continue;
        uint32_t* w = &weights_.elements[static_cast<size_t>(o) * s.elements()];
        for (int t = 0; t < s.taps(); t++)
            for (int k = 0; k < tap; k++) {
                const int bits = s.group_channels() - 32 * k;
                w[t * tap + k] ^= bits >= 32 ? ~0u : (1u << bits) - 1;
            }
    }
    base_ = {};
}

void Conv::lay_out(const ConvTile& tile, size_t bytes) {
    tile_ = &tile;
    const int blocks = blocks_for(shape_.group_outputs()), q = tile.blocks;
    const int row = shape_.dot == Dot::signs ? words_for(shape_.elements()) : shape_.elements();
    packed_elements_ = shape_.elements();
    if (tile.dot == Dot::signs)
        packed_elements_ = shape_.elements() / read_length() * words_for(read_length());
    block_groups_ = (blocks + q - 1) / q;
    const size_t filters = static_cast<size_t>(shape_.weight_planes) * shape_.groups;
    const size_t group_words = static_cast<size_t>(q) * packed_elements_ * kLanes;
    const size_t fitting = std::max<size_t>(1, bytes / (group_words * sizeof(uint32_t)));
    laid_out_ = filters > 1 ? block_groups_ : static_cast<int>(std::min<size_t>(fitting, block_groups_));
    const int outputs = std::min(shape_.group_outputs(), laid_out_ * q * kLanes);
    packed_ = {};  // first, as both may be large
    packed_ = Array<uint32_t>(filters * laid_out_ * group_words);
    if (makes_rows_) scratch_ = Array<uint32_t>(static_cast<size_t>(2 * threads_) * 2 * tile.pixels * padded_outputs_);
    for (size_t f = 0; f < filters; f++)
        for (int o = 0; o < outputs; o++) {
            const int block = o / kLanes;
            pack_row(&weights_.elements[(f * shape_.group_outputs() + o) * row],
                     &packed_[(f * block_groups_ + block / q) * q * packed_elements_ * kLanes + block % q * kLanes +
                              o % kLanes],
                     q * kLanes);
        }
}

// One filter to every `step`-th place.
void Conv::pack_row(const uint32_t* row, uint32_t* to, int step) const {
    if (shape_.dot != Dot::signs) {
        for (int k = 0; k < packed_elements_; k++) to[static_cast<size_t>(k) * step] = row[k];
    } else if (tile_->dot == Dot::float32) {
        for (int k = 0; k < packed_elements_; k++)
            to[static_cast<size_t>(k) * step] = row[k / 32] >> (k % 32) & 1 ? kOne : kMinusOne;
    } else {
        const int length = read_length();
        std::vector<uint32_t> words(static_cast<size_t>(words_for(length)));
        for (int begin = 0; begin < shape_.elements(); begin += length) {
            extract_bits(row, begin, length, words.data());
            for (uint32_t word : words) *to = word, to += step;
        }
    }
}

void Conv::run(int samples, Pool& pool) {
    const int64_t pixels = static_cast<int64_t>(samples) * shape_.height * shape_.width;
    const int threads = is_parallel ? pool.threads() : 1;
    const int64_t tiles = (pixels + tile_->pixels - 1) / tile_->pixels;
    const bool splits_pixels = tiles >= 4 * threads || makes_rows_;
    const int64_t work = splits_pixels ? tiles : block_groups_;
    const int parts = static_cast<int>(std::min<int64_t>(threads == 1 ? 1 : 2 * threads, work));
    const size_t room = static_cast<size_t>(2 * tile_->pixels) * padded_outputs_;
    pool.run(parts, [&](int part) {
        const int64_t begin = work * part / parts, end = work * (part + 1) / parts;
        const int64_t first = begin * tile_->pixels, last = std::min(end * tile_->pixels, pixels);
        if (makes_rows_)
            accumulate_rows(first, last, &scratch_[room * part]);
        else if (splits_pixels)
            run_part(first, last, 0, block_groups_, {});
        else
            run_part(0, pixels, static_cast<int>(begin), static_cast<int>(end), {});
    });
}

void Conv::run_part(int64_t begin, int64_t end, int first, int last, const Place& shift) const {
    for (int group = 0; group < shape_.groups; group++)
        for (int i = first; i < last; i++)
            has_thresholds_ ? threshold(begin, end, group, i) : accumulate(begin, end, group, i, shift);
}

namespace {

// The pixels of one tile: where they are and where their windows begin. A short tile repeats its last pixel.
struct TilePixels {
    Place places[kMaxTilePixels];
    const uint32_t* windows[kMaxTilePixels];
    int count;
};

}  // namespace

// Where one plane of one group is read from.
struct Conv::Source {
    int group, plane;
    Place shift{};  // of the places that are written to
};

// Calls use(pixels, window) for each tile of a range.
template <class F>
void Conv::for_tiles(const Source& source, int64_t begin, int64_t end, F&& use) const {
    const int P = tile_->pixels, elements = shape_.elements(), tap = shape_.tap_elements();
    alignas(64) uint32_t copies[kMaxTilePixels * kGatherElements];
    const int32_t none = 0;
    Window window{nullptr, runs_.data(), static_cast<int32_t>(runs_.size()), run_length_};
    if (gathers_) window = {nullptr, &none, 1, elements};
    const int64_t offset = int64_t{source.plane} * plane_words_ + (extracts_ ? 0 : int64_t{source.group} * tap);
    Walk walk(begin, shape_.height, shape_.width);
    TilePixels pixels;
    for (int64_t i = begin; i < end; i += P) {
        pixels.count = static_cast<int>(std::min<int64_t>(P, end - i));
        for (int p = 0; p < pixels.count; p++, walk.next()) {
            const Place& place = walk.place();
            pixels.places[p] = {place.sample - source.shift.sample, place.y - source.shift.y, place.x};
            const uint32_t* from = at(input_, {place.sample, place.y * shape_.stride_h - shape_.top,
                                              place.x * shape_.stride_w - shape_.left}) + offset;
            if (gathers_) {
                uint32_t* copy = copies + p * elements;
                pixels.windows[p] = copy;
                for (int32_t run : runs_) {
                    if (extracts_)
                        extract_bits(from + run, source.group * shape_.group_channels(), shape_.group_channels(), copy);
                    else
                        for (int k = 0; k < run_length_; k++) copy[k] = from[run + k];
                    copy += run_length_;
                }
            } else {
                pixels.windows[p] = from;
            }
        }
        for (int p = pixels.count; p < P; p++) pixels.windows[p] = pixels.windows[pixels.count - 1];
        window.pixels = pixels.windows;
        use(pixels, window);
    }
}

const uint32_t* Conv::weights_of(int plane, int group, int block_group) const {
    const size_t row = static_cast<size_t>(plane) * shape_.groups + group;
    return &packed_[(row * block_groups_ + block_group) * tile_->blocks * packed_elements_ * kLanes];
}

int Conv::class_of(const Place& place) const {
    if (classes() == 1) return 0;
    return row_class_[place.y] * column_classes_ + column_class_[place.x];
}

void Conv::threshold(int64_t begin, int64_t end, int group, int block_group) const {
    const int P = tile_->pixels;
    const uint32_t* weights = weights_of(0, group, block_group);
    const int first = group * shape_.group_outputs() / kLanes + block_group * tile_->blocks;
    const int32_t* table = limits_.data() + first * kLanes;
    uint16_t unused[kMaxTileBlocks];
    for_tiles({group, 0}, begin, end, [&](const TilePixels& pixels, const Window& window) {
        const int32_t* limits[kMaxTilePixels];
        uint16_t* bits[kMaxTilePixels];
        for (int p = 0; p < P; p++) {
            const Place& place = pixels.places[std::min(p, pixels.count - 1)];
            limits[p] = table + static_cast<size_t>(class_of(place)) * padded_outputs_;
            bits[p] = p < pixels.count ? reinterpret_cast<uint16_t*>(at(thresholds_.image, place)) + first : unused;
        }
        tile_->threshold(window, weights, limits, bits);
    });
}

// What one input plane and one weight plane of a tile come to, now that its counts are known: the accumulators of the
// chain, or with several planes a part of them.
void Conv::sum_up(int input_plane, int weight_plane, const int32_t* counts, const Tile& tile) const {
    const int32_t* base[kMaxTilePixels];
    for (int p = 0; p < tile.pixels; p++) {
        const size_t row = static_cast<size_t>(weight_plane) * classes() + class_of(tile.places[p]);
        base[p] = base_.data() + row * padded_outputs_;
    }
    if (shape_.planes() == 1) return chain_.run(counts, base, tile);
    const int plane = input_plane * shape_.weight_planes + weight_plane;
    const float* scale = scale_ + static_cast<size_t>(plane) * padded_outputs_;
    kernels_.chain.combine({counts, base, scale, plane == 0 ? bias_ : nullptr, true, plane == 0}, tile);
    if (plane + 1 == shape_.planes()) chain_.run(tile);
}

void Conv::accumulate(int64_t begin, int64_t end, int group, int block_group, const Place& shift) const {
    const int P = tile_->pixels, Q = tile_->blocks;
    const int first = group * shape_.group_outputs() / kLanes + block_group * Q;
    const int blocks = std::min(Q, blocks_for(shape_.group_outputs()) - block_group * Q);
    alignas(64) float data[kMaxTilePixels * kMaxTileBlocks * kLanes];
    alignas(64) int32_t counts[kMaxTilePixels * kMaxTileBlocks * kLanes];
    Place places[kMaxTilePixels];
    int held = 0;  // pixels of the tiles that wait for the chain: a short tile's way through it is mostly waiting
    const auto run_chain = [&] {
        const Tile tile{data, places, held, Q, first, blocks};
        if (held) shape_.reads_floats() ? chain_.run(tile) : sum_up(0, 0, counts, tile);
        held = 0;
    };
    for_tiles({group, 0, shift}, begin, end, [&](TilePixels& pixels, Window& window) {
        for (int plane = 0; shape_.planes() > 1 && plane < shape_.planes(); plane++) {
            const int weight_plane = plane % shape_.weight_planes;
            if (plane && weight_plane == 0)
                for (const uint32_t*& from : pixels.windows) from += plane_words_;
            tile_->accumulate(window, weights_of(weight_plane, group, block_group), counts);
            sum_up(plane / shape_.weight_planes, weight_plane, counts,
                   {data, pixels.places, pixels.count, Q, first, blocks});
        }
        if (shape_.planes() > 1) return;
        void* sums = shape_.reads_floats() ? static_cast<void*>(data + held * Q * kLanes) : counts + held * Q * kLanes;
        tile_->accumulate(window, weights_of(0, group, block_group), sums);
        std::copy(pixels.places, pixels.places + pixels.count, places + held);
        held += pixels.count;
        if (held + P > kMaxTilePixels) run_chain();
    });
    run_chain();
}

// Groups whose outputs do not fill blocks: group after group, a tile's accumulators are put together before anything
// is done with them.
void Conv::accumulate_rows(int64_t begin, int64_t end, uint32_t* scratch) const {
    const int P = tile_->pixels, Q = tile_->blocks, outputs = shape_.group_outputs();
    const int row = padded_outputs_ / kLanes;
    uint32_t* counts = scratch;
    float* data = reinterpret_cast<float*>(scratch + static_cast<size_t>(P) * padded_outputs_);
    alignas(64) uint32_t part[kMaxTilePixels * kMaxTileBlocks * kLanes];
    for (int64_t i = begin; i < end; i += P) {
        Place places[kMaxTilePixels];
        const int count = static_cast<int>(std::min<int64_t>(P, end - i));
        Walk walk(i, shape_.height, shape_.width);
        for (int p = 0; p < count; p++, walk.next()) places[p] = walk.place();
        const bool is_float = shape_.reads_floats();
        const Tile tile{data, places, count, row, 0, row};
        for (int plane = 0; plane < shape_.input_planes; plane++)
            for (int m = 0; m < shape_.weight_planes; m++) {
                for (int group = 0; group < shape_.groups; group++)
                    for (int g = 0; g < block_groups_; g++)
                        for_tiles({group, plane}, i, i + count, [&](TilePixels&, Window& window) {
                            tile_->accumulate(window, weights_of(m, group, g), part);
                            const int from = g * Q * kLanes, many = std::min(outputs - from, Q * kLanes);
                            for (int p = 0; p < count; p++)
                                std::memcpy((is_float ? reinterpret_cast<uint32_t*>(data) : counts) +
                                                static_cast<size_t>(p) * padded_outputs_ + group * outputs + from,
                                            part + p * Q * kLanes, sizeof *part * static_cast<size_t>(many));
                        });
                is_float ? chain_.run(tile) : sum_up(plane, m, reinterpret_cast<const int32_t*>(counts), tile);
            }
    }
}

}  // namespace bnn
