// Laying out a few rows of activations for an instruction set: the integers of each row
// are dealt to the vectors that meet a weight as it unpacks (`Cut`, `Rows`).
#pragma once

#include <algorithm>
#include <cstring>

#include "floats.h"
#include "panel_rows.h"
#include "product.h"
#include "rows.h"

namespace jcompress {
namespace {

template <class V, int kBits>
using Format = typename V::template Format<kBits>;

template <class V, int kBits>
constexpr int step_bytes() {
  using T = Format<V, kBits>;
  return T::kParts * T::kPartInputs * kBits / 8;
}

template <class V, int kBits>
Cut cut_for() {
  using T = Format<V, kBits>;
  return Cut{T::kParts, T::kPartInputs, V::kBytes, V::kLanes, T::kOffset};
}

template <class V>
Cut cut_of(int bits) {
  switch (bits) {
    case 2:
      return cut_for<V, 2>();
    case 3:
      return cut_for<V, 3>();
    case 4:
      return cut_for<V, 4>();
    default:
      return cut_for<V, 8>();
  }
}

// Where the rows of a tile begin, how many there are, and how many the kernels multiply:
// they exist for 1, 2, 3, 4 and 6; rows of zeros fill up.
struct Tile {
  int8_t* x;
  int64_t first;
  int rows;
  int padded;
};

inline Tile tile_of(const Rows& rows, int64_t index) {
  const int64_t first = index * rows.tile;
  const int here = static_cast<int>(std::min(rows.tile, rows.count - first));
  return {rows.packed + index * rows.tile_bytes(), first, here,
          here <= 4 ? here : static_cast<int>(Rows::kTile)};
}

// ---- Activations ----

template <int kParts, class Element>
void deal(const int8_t* in, int64_t steps, int part_inputs, int64_t stride,
          int64_t vector_stride, int8_t* out) {
  for (int64_t s = 0; s < steps; ++s) {
    const int8_t* from = in + s * kParts * part_inputs;
    for (int p = 0; p < kParts; ++p) {
      Element* to =
          reinterpret_cast<Element*>(out + s * stride + p * vector_stride);
      for (int e = 0; e < part_inputs; ++e) to[e] = from[kParts * e + p];
    }
  }
}

inline int32_t sum_of(const int8_t* q, int64_t count) {
  int32_t sum = 0;
  for (int64_t i = 0; i < count; ++i) sum += q[i];
  return sum;
}

// Deal the integers of a row to the steps of a tile; with `sums`, what each lane of a step
// sums up to, times `factor`; those of the next step lie `next` further.
template <class V>
void deal_row(const int8_t* q, const Rows& rows, int64_t vector_stride, int8_t* out,
              int32_t* sums, int64_t next, int32_t factor) {
  const Cut& cut = rows.cut;
  const int64_t stride = cut.parts * vector_stride;
  if constexpr (V::kDealsSteps) {
    const auto deal = cut.parts == 1   ? V::template deal_steps<1>
                      : cut.parts == 2 ? V::template deal_steps<2>
                                       : V::template deal_steps<4>;
    return deal(q, rows.steps, stride, vector_stride, out, sums, next, factor);
  } else {
    const bool wide = cut.vector_bytes != cut.part_inputs;
    const auto dealt = wide             ? deal<2, int16_t>
                       : cut.parts == 1 ? deal<1, int8_t>
                       : cut.parts == 2 ? deal<2, int8_t>
                                        : deal<4, int8_t>;
    dealt(q, rows.steps, cut.part_inputs, stride, vector_stride, out);
    const int span = cut.lane_span();
    for (int64_t i = 0; sums && i < rows.steps * cut.lanes; ++i) {
      sums[i / cut.lanes * next + i % cut.lanes] = factor * sum_of(q + i * span, span);
    }
  }
}

// Lay out row `row` of a tile, given its integers in their order, padded with zeros.
template <class V>
void place_row(const int8_t* q, const Weight& w, const Rows& rows, const Tile& tile,
               int row) {
  const bool lanes = rows.grouping == Grouping::kLanes;
  const int64_t per_row = rows.sums_per_row(w.groups), span = w.inputs / per_row;
  const int64_t wide = lanes ? rows.cut.lanes : 1, next = wide * tile.padded;
  int32_t* sums = rows.sums + tile.first * per_row + wide * row;
  const bool scaled = rows.grouping != Grouping::kNone && w.zeros == nullptr;
  const int32_t factor = scaled ? -rows.cut.offset : 1;
  deal_row<V>(q, rows, tile.padded * rows.cut.vector_bytes,
              tile.x + int64_t{row} * rows.cut.vector_bytes, lanes ? sums : nullptr, next,
              factor);
  for (int64_t i = 0; !lanes && i < per_row; ++i) {
    if constexpr (V::kDealsSteps) {
      sums[i * next] = factor * V::sum_bytes(q + i * span, span);
    } else {
      sums[i * next] = factor * sum_of(q + i * span, span);
    }
  }
}

template <class V>
void pack_rows(const Activations& a, const Weight& w, const Rows& rows,
               int64_t index, float* scratch) {
  const Tile tile = tile_of(rows, index);
  const int64_t padded = rows.steps * rows.cut.step_inputs();
  float* rest = scratch;
  int8_t* q = reinterpret_cast<int8_t*>(scratch + a.inputs);
  std::memset(q + a.inputs, 0, padded - a.inputs);
  for (int row = 0; row < tile.rows; ++row) {
    if (rows.ones && tile.first + row == 0) {
      std::memset(q, 1, a.inputs);
      place_row<V>(q, w, rows, tile, row);
      continue;
    }
    const int64_t number = tile.first + row - rows.ones;
    const int64_t m = number / rows.digits;
    if (a.dtype == Float::kS8) {
      std::memcpy(q, static_cast<const int8_t*>(a.x) + m * a.inputs, a.inputs);
      rows.scale[m] = a.scale[m];
      place_row<V>(q, w, rows, tile, row);
      continue;
    }
    if constexpr (V::kDealsSteps) {
      if (rows.digits == 1) {
        rows.scale[m] = round_floats<V>(a, m, rest, q);
        place_row<V>(q, w, rows, tile, row);
        continue;
      }
    }
    if (number % rows.digits == 0) {
      widen(a.x, a.dtype, m * a.inputs, a.inputs, rest);
      rows.scale[m] = scale_row(a, m, a.inputs, rest);
    }
    round_row(a, m, a.inputs, rows.digits == 1, rest, q);
    place_row<V>(q, w, rows, tile, row);
  }
  std::memset(q, 0, a.inputs);
  for (int row = tile.rows; row < tile.padded; ++row) place_row<V>(q, w, rows, tile, row);
}

// ---- Patches of images ----

inline float largest_of(const Activations& a, int64_t start, int64_t count,
                        float* scratch) {
  widen(a.x, a.dtype, start, count, scratch);
  return largest(scratch, count);
}

inline void write_digits(const Activations& a, int64_t m, int64_t start, int64_t count,
                         int64_t stride, int8_t* out, float* scratch) {
  widen(a.x, a.dtype, start, count, scratch);
  scale_row(a, m, count, scratch);
  for (int digit = 0; digit < a.digits; ++digit) {
    round_row(a, m, count, digit + 1 == a.digits, scratch, out + digit * stride);
  }
}

template <class V>
void pack_patches(const Patches& p, const Weight& w, const Rows& rows, int64_t index,
                  int8_t* q) {
  const Tile tile = tile_of(rows, index);
  const int64_t padded = rows.steps * rows.cut.step_inputs();
  const int64_t inputs = p.runs * p.run_bytes;
  for (int row = 0; row < tile.rows; ++row) {
    if (rows.ones && tile.first + row == 0) {
      std::memset(q, 1, w.inputs);
      std::memset(q + w.inputs, 0, padded - w.inputs);
    } else {
      const int64_t number = tile.first + row - rows.ones;
      const int64_t pixel = p.first + number / rows.digits;
      const int64_t image = pixel / p.positions, position = pixel % p.positions;
      const int8_t* from = p.images +
                           (image * rows.digits + number % rows.digits) * p.image_bytes +
                           p.lines[position / p.line] + position % p.line * p.stride;
      // What is copied beyond the end of a run the next one overwrites.
      int8_t* to = q;
      for (int64_t r = 0; r < p.runs; ++r) {
        for (int64_t i = 0; i < p.run_bytes; i += Patches::kSlack) {
          std::memcpy(to + i, from + p.offsets[r] + i, Patches::kSlack);
        }
        to += p.run_bytes;
      }
      std::memset(q + inputs, 0, padded - inputs);
    }
    place_row<V>(q, w, rows, tile, row);
  }
  if (tile.rows < tile.padded) std::memset(q, 0, padded);
  for (int row = tile.rows; row < tile.padded; ++row) place_row<V>(q, w, rows, tile, row);
}

}  // namespace
}  // namespace jcompress
