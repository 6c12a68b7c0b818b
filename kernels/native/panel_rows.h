// Laying out activations in panels.
#pragma once

#include <algorithm>
#include <cstring>

#include "floats.h"
#include "product.h"
#include "rows.h"

namespace jcompress {
namespace {

template <class V>
inline void pack_float_band(const Activations& a, const Panels& p, int64_t band) {
  constexpr int kLanes = V::kLanes;
  const int64_t first = band * kLanes;
  const int here = static_cast<int>(std::min<int64_t>(kLanes, p.rows - first));
  float* out = static_cast<float*>(p.packed) + band * p.panel_bytes() / 4;
  for (int64_t k = 0; k < p.inputs; k += kLanes) {
    alignas(64) float square[kLanes][kLanes] = {};
    const int64_t count = std::min<int64_t>(kLanes, p.inputs - k);
    for (int r = 0; r < here; ++r) {
      const int64_t start = (first + r) * p.inputs + k;
      if (count == kLanes) {
        widen(a.x, a.dtype, start, kLanes, square[r]);
      } else {
        widen(a.x, a.dtype, start, count, square[r]);
      }
    }
    V::transpose(square);
    std::memcpy(out + k * kLanes, square, count * kLanes * sizeof(float));
  }
}

// `scratch`: the integers of the rows of a band, [digit][lane][filled], then floats.
template <class V>
inline void pack_integer_band(const Activations& a, const Panels& p, int64_t band,
                              float* scratch) {
  constexpr int kLanes = V::kLanes;
  const int64_t first = band * kLanes, filled = 4 * p.quads();
  const int here = static_cast<int>(std::min<int64_t>(kLanes, p.rows - first));
  int8_t* integers = reinterpret_cast<int8_t*>(scratch);
  const int64_t panel = kLanes * filled;
  float* steps = scratch + p.digits * panel / 4;
  for (int r = 0; r < kLanes; ++r) {
    const int64_t m = first + r;
    int8_t* q = integers + r * filled;
    if (r >= here) {
      for (int j = 0; j < p.digits; ++j) std::memset(q + j * panel, 0, filled);
      p.scale[m] = 0;
      continue;
    }
    if (a.dtype == Float::kS8) {
      std::memcpy(q, static_cast<const int8_t*>(a.x) + m * p.inputs, p.inputs);
      p.scale[m] = a.scale[m];
    } else {
      widen(a.x, a.dtype, m * p.inputs, p.inputs, steps);
      p.scale[m] = scale_row(a, m, p.inputs, steps);
      for (int j = 0; j < p.digits; ++j) {
        round_row(a, m, p.inputs, j + 1 == p.digits, steps, q + j * panel);
      }
    }
    for (int j = 0; j < p.digits; ++j) {
      std::memset(q + j * panel + p.inputs, 0, filled - p.inputs);
    }
  }
  const int64_t in_group = p.quads() / p.groups;
  const typename V::I ones = V::broadcast_word(0x01010101);
  for (int j = 0; j < p.digits; ++j) {
    const int64_t number = band * p.digits + j;
    char* out = static_cast<char*>(p.packed) + number * p.panel_bytes();
    for (int64_t k = 0; k < p.quads(); k += kLanes) {
      alignas(64) float square[kLanes][kLanes];
      const int64_t count = std::min<int64_t>(kLanes, p.quads() - k);
      for (int r = 0; r < kLanes; ++r) {
        const int8_t* from = integers + j * panel + r * filled + 4 * k;
        if (count == kLanes) {
          std::memcpy(square[r], from, 4 * kLanes);
        } else {
          std::memset(square[r], 0, 4 * kLanes);
          std::memcpy(square[r], from, 4 * count);
        }
      }
      V::transpose(square);
      std::memcpy(out + 4 * k * kLanes, square, 4 * count * kLanes);
    }
    for (int64_t g = 0; g < p.groups; ++g) {
      typename V::I sum = V::zero();
      for (int64_t i = g * in_group; i < (g + 1) * in_group; ++i) {
        sum = V::dot_bytes(sum, ones, V::load(out + 4 * i * kLanes));
      }
      V::store(p.sums + (number * p.groups + g) * kLanes, sum);
    }
  }
}

template <class V>
void pack_band(const Activations& a, const Panels& p, int64_t band, float* scratch) {
  if constexpr (V::kIntegerPanels) {
    if (p.digits > 0) return pack_integer_band<V>(a, p, band, scratch);
  }
  pack_float_band<V>(a, p, band);
}

}  // namespace
}  // namespace jcompress
