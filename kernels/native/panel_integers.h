// Products of panels of integers with blocks of a weight that has scales by groups.
#pragma once

#include <algorithm>
#include <cstring>

#include "floats.h"
#include "panel_floats.h"
#include "panel_weights.h"
#include "product.h"
#include "rows.h"
#include "unrolled.h"

namespace jcompress {
namespace {

// Scales and negated shifts of the groups of a block, [group][kChunk].
struct BlockGroups {
  const float* scales;
  const int32_t* shifts;
  const int32_t* sums;  // of the panel's first group of the block
  int64_t panel_sums;   // from one panel's to the next
  int64_t groups;
  bool symmetric;  // all shifts are the same
};

// What ends the sums of all inputs of a chunk.
struct Ends {
  const float* totals;  // [output][panel][lane]
  int64_t stride;
};

template <class V>
void finish_grouped_band(const Panels& p, const Weight& w, const Result& result,
                         const Ends& ends, int64_t first, int64_t outputs,
                         int64_t band0, int64_t band) {
  constexpr int kLanes = V::kLanes;
  using F = typename V::F;
  const F digit = V::broadcast(1.0f / static_cast<float>(kBase));
  const F row_scale = V::load_float(p.scale + band * kLanes);
  for (int64_t n = 0; n < outputs; n += kLanes) {
    alignas(64) float square[kLanes][kLanes] = {};
    for (int i = 0; i < kLanes && n + i < outputs; ++i) {
      const float* at =
          ends.totals + (n + i) * ends.stride + (band - band0) * p.digits * kLanes;
      F number = V::zero_float();
      for (int j = p.digits - 1; j >= 0; --j) {
        number = V::add(V::load_float(at + j * kLanes), V::times(number, digit));
      }
      number = V::times(number, row_scale);
      if (result.bias) number = V::add(number, V::broadcast(result.bias[first + n + i]));
      V::store_float(square[i], number);
    }
    write_square<V>(square, p, result, w, band, first + n, outputs - n);
  }
}

// Of at most `kChunk` outputs.
template <class V, class Core>
void multiply_chunk(const Panels& p, const Weight& w, const Result& result, int64_t first,
                    int64_t last, int64_t band0, int64_t band1) {
  constexpr int kLanes = V::kLanes;
  static_assert(kChunk % Core::kOutputs == 0);
  const int64_t outputs = last - first, unit = unit_of(w), size = w.group_size();
  const int64_t blocks = (p.inputs + kBlock - 1) / kBlock;
  int64_t block = ((p.inputs + blocks - 1) / blocks + unit - 1) / unit * unit;
  block = std::min(block, kBlock / unit * unit);
  const int64_t panel0 = band0 * p.digits, panel1 = band1 * p.digits;
  const int64_t stride = (panel1 - panel0) * kLanes;
  const int64_t filled = (outputs + Core::kOutputs - 1) / Core::kOutputs * Core::kOutputs;
  const int64_t most_groups = block / size;
  Buffer<uint8_t> integers(kChunk * kStride);
  Buffer<int32_t> shifts(most_groups * kChunk);
  Buffer<float> scales(most_groups * kChunk), totals(kChunk * stride);
  std::memset(totals.data(), 0, kChunk * stride * sizeof(float));
  std::memset(integers.data(), 0, kChunk * kStride);
  std::memset(scales.data(), 0, most_groups * kChunk * sizeof(float));
  std::memset(shifts.data(), 0, most_groups * kChunk * sizeof(int32_t));
  Core core(p, w);
  for (int64_t k = 0; k < p.inputs; k += block) {
    const int64_t count = std::min(block, p.inputs - k);
    unpack<V>(w, first, outputs, k, count, integers.data(), kStride);
    BlockGroups g{scales.data(), shifts.data(), nullptr, p.groups * kLanes,
                  count / size, w.zeros == nullptr};
    const int64_t group = k / size;
    for (int64_t n = 0; n < outputs; ++n) {
      for (int64_t i = 0; i < g.groups; ++i) {
        scales[i * kChunk + n] = w.scales[(first + n) * w.groups + group + i];
        shifts[i * kChunk + n] = -shift_of(w, first + n, group + i);
      }
    }
    for (int64_t panel = panel0; panel < panel1; panel += 2) {
      const int8_t* x = static_cast<const int8_t*>(p.packed) +
                        panel * p.panel_bytes() + k * kLanes;
      for (int64_t n = 0; n < filled; n += Core::kOutputs) {
        if (panel == panel0) {
          for (int64_t i = n; i < std::min(n + Core::kOutputs, outputs); ++i) {
            fetch(w, first + i, k + block, block);
          }
        }
        const uint8_t* q = integers.data() + n * kStride;
        float* sums = totals.data() + n * stride + (panel - panel0) * kLanes;
        BlockGroups here = g;
        here.scales += n;
        here.shifts += n;
        here.sums = p.sums + (panel * p.groups + group) * kLanes;
        if (panel + 1 < panel1) {
          core.template add<2>(q, x, p.panel_bytes(), count / 4, here, sums, stride);
        } else {
          core.template add<1>(q, x, p.panel_bytes(), count / 4, here, sums, stride);
        }
      }
    }
  }
  const Ends ends{totals.data(), stride};
  for (int64_t band = band0; band < band1; ++band) {
    finish_grouped_band<V>(p, w, result, ends, first, outputs, band0, band);
  }
}

template <class V, class Core>
void multiply_grouped(const Panels& p, const Weight& w, const Result& result,
                      int64_t first, int64_t last, int64_t band0, int64_t band1) {
  for (int64_t n = first; n < last; n += kChunk) {
    multiply_chunk<V, Core>(p, w, result, n, std::min(last, n + kChunk), band0, band1);
  }
}

}  // namespace
}  // namespace jcompress
