// Laying out activations in panels.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>

#include "buffer.h"
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

// Deal the integers of the rows of a band, `filled` each, to the quads of a panel.
template <class V>
void deal_panel(const int8_t* integers, int64_t filled, char* out) {
  constexpr int kLanes = V::kLanes;
  const int64_t quads = filled / 4;
  for (int64_t k = 0; k < quads; k += kLanes) {
    alignas(64) float square[kLanes][kLanes];
    const int64_t count = std::min<int64_t>(kLanes, quads - k);
    for (int r = 0; r < kLanes; ++r) {
      const int8_t* from = integers + r * filled + 4 * k;
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
}

// `scratch`: the integers of the rows of a band, [digit][lane][filled], then floats.
template <class V>
inline void pack_integer_band(const Activations& a, const Panels& p, int64_t band,
                              float* scratch) {
  const int64_t rows = p.lanes, first = band * rows, filled = 4 * p.quads();
  const int64_t here = std::min(rows, p.rows - first);
  int8_t* integers = reinterpret_cast<int8_t*>(scratch);
  const int64_t panel = rows * filled;
  float* steps = scratch + p.digits * panel / 4;
  for (int64_t r = 0; r < rows; ++r) {
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
  const int64_t in_group = filled / p.groups;
  for (int j = 0; j < p.digits; ++j) {
    const int64_t number = band * p.digits + j;
    const int8_t* q = integers + j * panel;
    deal_panel<V>(q, filled, static_cast<char*>(p.packed) + number * p.panel_bytes());
    for (int64_t i = 0; i < rows * p.groups; ++i) {
      const int64_t r = i % rows, g = i / rows;
      p.sums[(number * p.groups + g) * rows + r] =
          V::sum_bytes(q + r * filled + g * in_group, in_group);
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

// The integers of a row, filled up, in the order in which a weight's unpack.
template <class V, class Cell>
void order_inputs(Cell* q, int64_t filled, int bits) {
  if constexpr (V::kStepInputs == 4) {
    if (bits == 4) V::deal_nibbles(q, filled);
  }
}

// Write the integers of row m of floats, of one digit; returns their scale.
template <class V>
float round_floats(const Activations& a, int64_t m, float* scratch, int8_t* q) {
  const float* x = static_cast<const float*>(a.x) + m * a.inputs;
  if (a.dtype != Float::kF32) {
    widen(a.x, a.dtype, m * a.inputs, a.inputs, scratch);
    x = scratch;
  }
  const float scale = a.scale ? a.scale[m] : scale_of(V::largest(x, a.inputs), a.bits);
  const float inverse = std::isfinite(scale) ? 1.0f / scale : 0.0f;
  V::round(x, a.inputs, inverse, a.bits, a.zero ? a.zero + m : nullptr, q);
  return scale;
}

// Rows first to last - 1, one after the other; `scratch` holds `inputs` floats.
template <class V, class Cell>
void pack_plain_rows(const Activations& a, const PlainRows& rows, int64_t first,
                     int64_t last, float* scratch) {
  constexpr bool kWide = sizeof(Cell) > 1;
  const int64_t stride = rows.stride(), inputs = rows.inputs;
  Buffer<int8_t> narrow(kWide ? rows.digits * inputs : 0);
  for (int64_t m = first; m < last; ++m) {
    Cell* const to = static_cast<Cell*>(rows.packed) + m * rows.digits * stride;
    // The digits, one `apart` from the next.
    int8_t* q = narrow.data();
    int64_t apart = inputs;
    if constexpr (!kWide) {
      q = to;
      apart = stride;
    }
    if (a.dtype == Float::kS8) {
      std::memcpy(q, static_cast<const int8_t*>(a.x) + m * inputs, inputs);
      rows.scale[m] = a.scale[m];
    } else if (rows.digits == 1) {
      rows.scale[m] = round_floats<V>(a, m, scratch, q);
    } else {
      widen(a.x, a.dtype, m * inputs, inputs, scratch);
      rows.scale[m] = scale_row(a, m, inputs, scratch);
      for (int j = 0; j < rows.digits; ++j) {
        round_row(a, m, inputs, j + 1 == rows.digits, scratch, q + j * apart);
      }
    }
    for (int j = 0; j < rows.digits; ++j) {
      Cell* const digit = to + j * stride;
      const int64_t blocks = rows.blocks(), block = rows.block > 0 ? rows.block : inputs;
      for (int64_t i = 0; i < blocks; ++i) {
        rows.sums[(m * rows.digits + j) * blocks + i] = V::sum_bytes(
            q + j * apart + i * block, std::min(block, inputs - i * block));
      }
      if constexpr (kWide) std::copy_n(q + j * apart, inputs, digit);
      std::fill_n(digit + inputs, stride - inputs, Cell{0});
      order_inputs<V>(digit, rows.filled(), rows.bits);
    }
  }
}

}  // namespace
}  // namespace jcompress
