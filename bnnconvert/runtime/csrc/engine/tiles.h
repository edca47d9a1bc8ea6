// Steps that fill tiles of pixels channel block by channel block and hand them to a chain.
#pragma once

#include <algorithm>

#include "engine/steps.h"
#include "engine/walk.h"

namespace bnn {

constexpr int kPixels = 8, kBlocks = 8;  // of a tile: 4 KiB

struct Positions {
    int height, width, channels;
};

// Calls fill(tile) for every tile of the pixels [begin, end), then the chain on it.
template <class F>
void fill_tiles(const Positions& positions, int64_t begin, int64_t end, const Chain& chain, F&& fill) {
    const int blocks = blocks_for(positions.channels);
    alignas(64) float data[kPixels * kBlocks * kLanes];
    Place places[kPixels];
    Walk walk(begin, positions.height, positions.width);
    for (int64_t i = begin; i < end; i += kPixels) {
        const int count = static_cast<int>(std::min<int64_t>(kPixels, end - i));
        for (int p = 0; p < count; p++, walk.next()) places[p] = walk.place();
        for (int first = 0; first < blocks; first += kBlocks) {
            const Tile tile{data, places, count, kBlocks, first, std::min(kBlocks, blocks - first)};
            fill(tile);
            chain.run(tile);
        }
    }
}

// The same for all pixels of `samples` images, which threads share.
template <class F>
void run_tiles(const Positions& positions, int samples, int threads, Pool& pool, const Chain& chain, F&& fill) {
    const int64_t pixels = int64_t{samples} * positions.height * positions.width;
    const int64_t tiles = (pixels + kPixels - 1) / kPixels;
    const int parts = static_cast<int>(std::min<int64_t>(threads == 1 ? 1 : 2 * threads, tiles));
    pool.run(parts, [&](int part) {
        const int64_t end = std::min(tiles * (part + 1) / parts * kPixels, pixels);
        fill_tiles(positions, tiles * part / parts * kPixels, end, chain, fill);
    });
}

}  // namespace bnn
