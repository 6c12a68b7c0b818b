// Products of panels of floats with blocks of a weight that became floats. A number of the
// weight multiplies a whole vector of rows.
#pragma once

#include <algorithm>
#include <cstring>

#include "floats.h"
#include "panel_weights.h"
#include "product.h"
#include "unrolled.h"

namespace jcompress {
namespace {

// Write sixteen (or as many as there are lanes) outputs of a band, `square[output][lane]`.
template <class V>
void write_square(float (&square)[V::kLanes][V::kLanes], const Panels& p,
                  const Result& result, const Weight& w, int64_t band, int64_t output,
                  int64_t outputs) {
  constexpr int kLanes = V::kLanes;
  V::transpose(square);
  const int64_t end = std::min<int64_t>(p.rows, (band + 1) * kLanes);
  for (int64_t m = band * kLanes; m < end; ++m) {
    const float* row = square[m - band * kLanes];
    const int64_t start = m * w.outputs + output;
    if (result.dtype == Float::kF32 && outputs >= kLanes) {
      std::memcpy(static_cast<float*>(result.y) + start, row, sizeof(square[0]));
      continue;
    }
    for (int64_t i = 0; i < std::min<int64_t>(kLanes, outputs); ++i) {
      if (result.dtype == Float::kF32) {
        static_cast<float*>(result.y)[start + i] = row[i];
      } else {
        static_cast<uint16_t*>(result.y)[start + i] =
            result.dtype == Float::kBF16 ? to_bf16(row[i]) : to_f16(row[i]);
      }
    }
  }
}

template <class V, int kVectors, int kOutputs>
[[gnu::noinline]] void add_float_products(const float* w, const float* x,
                                          int64_t panel, int64_t inputs, float* totals,
                                          int64_t stride) {
  constexpr int kLanes = V::kLanes;
  typename V::F sums[kOutputs][kVectors];
  each<kOutputs>([&](auto n) JCOMPRESS_INLINE {
    each<kVectors>([&](auto v) JCOMPRESS_INLINE {
      sums[n][v] = V::load_float(totals + n * stride + v * kLanes);
    });
  });
  for (int64_t k = 0; k < inputs; ++k) {
    typename V::F row[kVectors];
    each<kVectors>([&](auto v) JCOMPRESS_INLINE {
      row[v] = V::load_float(x + v * panel + k * kLanes);
    });
    each<kOutputs>([&](auto n) JCOMPRESS_INLINE {
      const typename V::F weight = V::broadcast(w[n * kFloatStride + k]);
      each<kVectors>([&](auto v) JCOMPRESS_INLINE {
        sums[n][v] = V::fma(weight, row[v], sums[n][v]);
      });
    });
  }
  each<kOutputs>([&](auto n) JCOMPRESS_INLINE {
    each<kVectors>([&](auto v) JCOMPRESS_INLINE {
      V::store_float(totals + n * stride + v * kLanes, sums[n][v]);
    });
  });
}

template <class V>
void multiply_floats(const Panels& p, const Weight& w, const Result& result,
                     int64_t first, int64_t last, int64_t band0, int64_t band1) {
  constexpr int kLanes = V::kLanes, kOutputs = V::kFloatOutputs;
  static_assert(kChunk % kOutputs == 0 && kChunk % kLanes == 0);
  const int64_t outputs = last - first;
  const int64_t stride = (band1 - band0) * kLanes, panel = p.panel_bytes() / 4;
  Buffer<float> block(kChunk * kFloatStride), totals(kChunk * stride);
  const int64_t filled = (outputs + kOutputs - 1) / kOutputs * kOutputs;
  std::memset(totals.data(), 0, kChunk * stride * sizeof(float));
  std::memset(block.data(), 0, kChunk * kFloatStride * sizeof(float));
  const float* packed = static_cast<const float*>(p.packed);
  for (int64_t k = 0; k < p.inputs; k += kFloatBlock) {
    const int64_t count = std::min(kFloatBlock, p.inputs - k);
    for (int64_t n = 0; n < outputs; ++n) {
      unpack_floats<V>(w, first + n, k, count, block.data() + n * kFloatStride);
    }
    for (int64_t band = band0; band < band1; band += 2) {
      const float* x = packed + band * panel + k * kLanes;
      for (int64_t n = 0; n < filled; n += kOutputs) {
        float* sums = totals.data() + n * stride + (band - band0) * kLanes;
        const float* weight = block.data() + n * kFloatStride;
        if (band == band0) {
          for (int64_t i = n; i < std::min(n + kOutputs, outputs); ++i) {
            fetch(w, first + i, k + kFloatBlock, kFloatBlock);
          }
        }
        if (band + 1 < band1) {
          add_float_products<V, 2, kOutputs>(weight, x, panel, count, sums, stride);
        } else {
          add_float_products<V, 1, kOutputs>(weight, x, panel, count, sums, stride);
        }
      }
    }
  }
  for (int64_t band = band0; band < band1; ++band) {
    for (int64_t n = 0; n < outputs; n += kLanes) {
      alignas(64) float square[kLanes][kLanes];
      for (int i = 0; i < kLanes; ++i) {
        const bool there = result.bias && n + i < outputs;
        const float bias = there ? result.bias[first + n + i] : 0.0f;
        const float* sums = totals.data() + (n + i) * stride + (band - band0) * kLanes;
        for (int lane = 0; lane < kLanes; ++lane) square[i][lane] = sums[lane] + bias;
      }
      write_square<V>(square, p, result, w, band, first + n, outputs - n);
    }
  }
}

}  // namespace
}  // namespace jcompress
