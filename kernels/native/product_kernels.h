// The product kernels, written once over a vector type `V` (see vector_*.h) and compiled
// once for each instruction set. Everything here has internal linkage: each translation
// unit must keep the code that was compiled for it.
//
// A sum runs along the inputs, which lie next to each other both in a row of
// activations and in a row of the weight: so the weight is read as it is stored, once,
// and never rearranged. For many rows panel_kernels.h has what is faster.
#pragma once

#include <algorithm>
#include <cstring>
#include <optional>
#include <type_traits>

#include "epilogue.h"
#include "floats.h"
#include "panel_kernels.h"
#include "product.h"
#include "rows.h"
#include "unrolled.h"

namespace jcompress {
namespace {

constexpr int kQuad = 4;  // numbers in vectors of results of sparse products
constexpr int kSet = 8;   // outputs taken together: so many streams keep memory busy
constexpr int64_t kFirstCache = 22 << 10;    // bytes for which a set and a tile are cut
constexpr int64_t kSecondCache = 384 << 10;  // bytes of activations that stay close

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
  const int64_t first = index * Rows::kTile;
  const int here = static_cast<int>(std::min(Rows::kTile, rows.count - first));
  return {rows.packed + index * rows.tile_bytes(), first, here,
          here <= 4 ? here : static_cast<int>(Rows::kTile)};
}

// ---- Activations ----

template <int kParts, class Element>
void deal(const int8_t* in, int64_t steps, int part_inputs, int64_t stride,
          int vector_stride, int8_t* out) {
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

// Lay out row `row` of a tile, given its integers in their order, padded with zeros.
inline void place_row(const int8_t* q, const Weight& w, const Rows& rows,
                      const Tile& tile, int row) {
  const Cut& cut = rows.cut;
  const int vector_stride = tile.padded * cut.vector_bytes;
  const int64_t stride = int64_t{cut.parts} * vector_stride;
  int8_t* out = tile.x + int64_t{row} * cut.vector_bytes;
  const bool wide = cut.vector_bytes != cut.part_inputs;
  if (cut.parts == 1 && !wide) {
    deal<1, int8_t>(q, rows.steps, cut.part_inputs, stride, vector_stride, out);
  } else if (cut.parts == 2 && !wide) {
    deal<2, int8_t>(q, rows.steps, cut.part_inputs, stride, vector_stride, out);
  } else if (cut.parts == 4 && !wide) {
    deal<4, int8_t>(q, rows.steps, cut.part_inputs, stride, vector_stride, out);
  } else {
    deal<2, int16_t>(q, rows.steps, cut.part_inputs, stride, vector_stride, out);
  }
  const int64_t per_row = rows.sums_per_row(w.groups);
  int32_t* sums = rows.sums + (tile.first + row) * per_row;
  if (rows.grouping == Grouping::kLanes) {
    const int span = cut.lane_span();
    const int32_t factor = w.zeros ? 1 : -cut.offset;
    for (int64_t i = 0; i < per_row; ++i) sums[i] = factor * sum_of(q + i * span, span);
  } else {
    const int64_t size = w.inputs / per_row;
    for (int64_t i = 0; i < per_row; ++i) sums[i] = sum_of(q + i * size, size);
  }
}

inline void pack_rows(const Activations& a, const Weight& w, const Rows& rows,
                      int64_t index, float* scratch) {
  const Tile tile = tile_of(rows, index);
  const int64_t padded = rows.steps * rows.cut.step_inputs();
  float* rest = scratch;
  int8_t* q = reinterpret_cast<int8_t*>(scratch + a.inputs);
  std::memset(q + a.inputs, 0, padded - a.inputs);
  for (int row = 0; row < tile.rows; ++row) {
    if (rows.ones && tile.first + row == 0) {
      std::memset(q, 1, a.inputs);
      place_row(q, w, rows, tile, row);
      continue;
    }
    const int64_t number = tile.first + row - rows.ones;
    const int64_t m = number / rows.digits;
    if (a.dtype == Float::kS8) {
      std::memcpy(q, static_cast<const int8_t*>(a.x) + m * a.inputs, a.inputs);
      rows.scale[m] = a.scale[m];
      place_row(q, w, rows, tile, row);
      continue;
    }
    if (number % rows.digits == 0) {
      widen(a.x, a.dtype, m * a.inputs, a.inputs, rest);
      rows.scale[m] = scale_row(a, m, a.inputs, rest);
    }
    round_row(a, m, a.inputs, rows.digits == 1, rest, q);
    place_row(q, w, rows, tile, row);
  }
  std::memset(q, 0, a.inputs);
  for (int row = tile.rows; row < tile.padded; ++row) place_row(q, w, rows, tile, row);
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

inline void pack_patches(const Patches& p, const Weight& w, const Rows& rows,
                         int64_t index, int8_t* q) {
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
    place_row(q, w, rows, tile, row);
  }
  if (tile.rows < tile.padded) std::memset(q, 0, padded);
  for (int row = tile.rows; row < tile.padded; ++row) place_row(q, w, rows, tile, row);
}

// ---- Sums of products of one tile with a few outputs ----

template <class V, int kBits, int kRows, int kOutputs, class Load>
[[gnu::always_inline]] inline void add_step(typename V::I (&sums)[kRows][kOutputs],
                                            const int8_t* x, Load load) {
  using T = Format<V, kBits>;
  each<T::kParts>([&](auto part) JCOMPRESS_INLINE {
    typename V::I weight[kOutputs];
    each<kOutputs>([&](auto n) JCOMPRESS_INLINE {
      weight[n] = T::template decode<part>(load(n));
    });
    each<kRows>([&](auto r) JCOMPRESS_INLINE {
      const typename V::I row = V::load(x + (part * kRows + r) * V::kBytes);
      each<kOutputs>([&](auto n) JCOMPRESS_INLINE {
        sums[r][n] = T::dot(sums[r][n], weight[n], row);
      });
    });
  });
}

// What a micro-kernel works on: some steps of a tile and of the rows of a few outputs.
struct Span {
  const int8_t* x;   // of step 0
  const uint8_t* w;  // of the first step, and of the next outputs `row_bytes` on
  int64_t row_bytes;
  int64_t first;  // step
  int64_t last;
  int64_t ahead;  // bytes from what is read to what is fetched for later

  uintptr_t far() const {
    return reinterpret_cast<uintptr_t>(w) + static_cast<uintptr_t>(ahead);
  }
};

// Rows of a weight are short for the processor's own prefetching, which starts anew with
// each; fetching what the next outputs need, at `far`, keeps the memory busy. A prefetch
// may point anywhere: it never faults.
template <class T>
[[gnu::always_inline]] inline auto read(const uint8_t* w, uintptr_t far) {
  __builtin_prefetch(reinterpret_cast<const void*>(far), 0, 2);
  return T::load(w);
}

inline int64_t fetched_ahead(int64_t row_bytes) {
  constexpr int64_t kFar = 4096;
  if (row_bytes >= 2 * kFar) return 2 * kFar;
  const int64_t set = kSet * row_bytes;
  return (kFar + set - 1) / set * set;
}

template <class V, int kBits, int kRows, int kOutputs>
[[gnu::noinline]] void sums_of_none(const Span& span, int32_t* out) {
  using T = Format<V, kBits>;
  constexpr int kStep = step_bytes<V, kBits>();
  constexpr int64_t kStride = int64_t{T::kParts} * kRows * V::kBytes;
  typename V::I sums[kRows][kOutputs];
  each<kRows>([&](auto r) JCOMPRESS_INLINE {
    each<kOutputs>([&](auto n) JCOMPRESS_INLINE { sums[r][n] = V::zero(); });
  });
  const int64_t row_bytes = span.row_bytes;
  const uint8_t* w = span.w;
  uintptr_t far = span.far();
  const int8_t* x = span.x + span.first * kStride;
  for (int64_t s = span.first; s < span.last; ++s) {
    add_step<V, kBits, kRows, kOutputs>(
        sums, x, [&](auto n) JCOMPRESS_INLINE {
          return read<T>(w + n * row_bytes, far + static_cast<uintptr_t>(n * row_bytes));
        });
    w += kStep;
    far += kStep;
    x += kStride;
  }
  each<kRows>([&](auto r) JCOMPRESS_INLINE {
    V::template add_sums<kOutputs>(sums[r], out + kSet * r);
  });
}

// Scales, zeros and sums of activations that a grouped micro-kernel needs.
struct Groups {
  const float* scales;   // [output, groups]
  const int8_t* zeros;   // [output, groups] or null
  const int32_t* sums;   // [row, per_row]
  int64_t per_row;
  int64_t groups;
  int64_t steps;    // kSteps: in a group
  int64_t in_step;  // kLanes: groups in a step
};

template <class V, int kBits, int kRows, int kOutputs>
[[gnu::noinline]] void sums_of_steps(const Span& span, const Groups& g, float* out) {
  using T = Format<V, kBits>;
  constexpr int kStep = step_bytes<V, kBits>();
  constexpr int64_t kStride = int64_t{T::kParts} * kRows * V::kBytes;
  typename V::F totals[kRows][kOutputs];
  each<kRows>([&](auto r) JCOMPRESS_INLINE {
    each<kOutputs>([&](auto n) JCOMPRESS_INLINE { totals[r][n] = V::zero_float(); });
  });
  const int64_t row_bytes = span.row_bytes;
  const int64_t groups = g.groups, per_row = g.per_row;
  const uint8_t* w = span.w;
  uintptr_t far = span.far();
  const int8_t* x = span.x + span.first * kStride;
  for (int64_t i = span.first / g.steps; i < span.last / g.steps; ++i) {
    typename V::I sums[kRows][kOutputs];
    const int32_t* left = g.sums + i;
    if (g.zeros == nullptr) {
      each<kRows>([&](auto r) JCOMPRESS_INLINE {
        const typename V::I start =
            T::kOffset ? V::first(-T::kOffset * left[r * per_row]) : V::zero();
        each<kOutputs>([&](auto n) JCOMPRESS_INLINE { sums[r][n] = start; });
      });
    } else {
      each<kOutputs>([&](auto n) JCOMPRESS_INLINE {
        const int32_t zero = T::kOffset + g.zeros[n * groups + i];
        each<kRows>([&](auto r) JCOMPRESS_INLINE {
          sums[r][n] = V::first(-zero * left[r * per_row]);
        });
      });
    }
    for (int64_t s = 0; s < g.steps; ++s) {
      add_step<V, kBits, kRows, kOutputs>(
          sums, x, [&](auto n) JCOMPRESS_INLINE {
            return read<T>(w + n * row_bytes,
                           far + static_cast<uintptr_t>(n * row_bytes));
          });
      w += kStep;
      far += kStep;
      x += kStride;
    }
    const float* scales = g.scales + i;
    each<kOutputs>([&](auto n) JCOMPRESS_INLINE {
      const typename V::F scale = V::broadcast(scales[n * groups]);
      each<kRows>([&](auto r) JCOMPRESS_INLINE {
        totals[r][n] = V::add_scaled(totals[r][n], sums[r][n], scale);
      });
    });
  }
  each<kRows>([&](auto r) JCOMPRESS_INLINE {
    V::template add_totals<kOutputs>(totals[r], out + kSet * r);
  });
}

template <class V, int kBits, int kRows, int kOutputs>
[[gnu::noinline]] void sums_of_lanes(const Span& span, const Groups& g, float* out) {
  using T = Format<V, kBits>;
  constexpr int kStep = step_bytes<V, kBits>();
  constexpr int64_t kStride = int64_t{T::kParts} * kRows * V::kBytes;
  typename V::F totals[kRows][kOutputs];
  each<kRows>([&](auto r) JCOMPRESS_INLINE {
    each<kOutputs>([&](auto n) JCOMPRESS_INLINE { totals[r][n] = V::zero_float(); });
  });
  const typename V::I index = V::lane_groups(static_cast<int>(g.in_step));
  const int64_t row_bytes = span.row_bytes;
  const uint8_t* w = span.w;
  uintptr_t far = span.far();
  const int8_t* x = span.x + span.first * kStride;
  for (int64_t s = span.first; s < span.last; ++s) {
    const int64_t group = s * g.in_step;
    const int count = static_cast<int>(std::min(g.in_step, g.groups - group));
    typename V::I sums[kRows][kOutputs];
    each<kRows>([&](auto r) JCOMPRESS_INLINE {
      const typename V::I start = V::load(g.sums + r * g.per_row + s * V::kLanes);
      each<kOutputs>([&](auto n) JCOMPRESS_INLINE { sums[r][n] = start; });
    });
    if (g.zeros) {
      each<kOutputs>([&](auto n) JCOMPRESS_INLINE {
        const typename V::I zero =
            V::zero_lanes(g.zeros + n * g.groups + group, count, index, T::kOffset);
        each<kRows>([&](auto r) JCOMPRESS_INLINE {
          sums[r][n] = V::minus_product(sums[r][n], zero);
        });
      });
    }
    add_step<V, kBits, kRows, kOutputs>(
        sums, x, [&](auto n) JCOMPRESS_INLINE {
          return read<T>(w + n * row_bytes, far + static_cast<uintptr_t>(n * row_bytes));
        });
    w += kStep;
    far += kStep;
    x += kStride;
    each<kOutputs>([&](auto n) JCOMPRESS_INLINE {
      const typename V::F scale =
          V::scale_lanes(g.scales + n * g.groups + group, count, index);
      each<kRows>([&](auto r) JCOMPRESS_INLINE {
        totals[r][n] = V::add_scaled(totals[r][n], sums[r][n], scale);
      });
    });
  }
  each<kRows>([&](auto r) JCOMPRESS_INLINE {
    V::template add_totals<kOutputs>(totals[r], out + kSet * r);
  });
}

// ---- A tile with a set of outputs, all steps of a span ----

template <class V, int kBits, Grouping kGrouping, int kRows>
void tile_outputs(const Span& span, const Groups& groups, void* out) {
  constexpr int kOutputs = V::outputs(kRows, kGrouping != Grouping::kNone);
  if constexpr (kGrouping == Grouping::kNone && kOutputs == kSet) {
    return sums_of_none<V, kBits, kRows, kOutputs>(span, static_cast<int32_t*>(out));
  }
  Span part = span;
  Groups g = groups;
  for (int n = 0; n < kSet; n += kOutputs) {
    if constexpr (kGrouping == Grouping::kNone) {
      sums_of_none<V, kBits, kRows, kOutputs>(part, static_cast<int32_t*>(out) + n);
    } else if constexpr (kGrouping == Grouping::kSteps) {
      sums_of_steps<V, kBits, kRows, kOutputs>(part, g, static_cast<float*>(out) + n);
    } else {
      sums_of_lanes<V, kBits, kRows, kOutputs>(part, g, static_cast<float*>(out) + n);
    }
    part.w += kOutputs * span.row_bytes;
    g.scales += kOutputs * g.groups;
    if (g.zeros) g.zeros += kOutputs * g.groups;
  }
}

template <class V, int kBits, Grouping kGrouping>
void tile_rows(int rows, const Span& span, const Groups& g, void* out) {
  switch (rows) {
    case 1:
      return tile_outputs<V, kBits, kGrouping, 1>(span, g, out);
    case 2:
      return tile_outputs<V, kBits, kGrouping, 2>(span, g, out);
    case 3:
      return tile_outputs<V, kBits, kGrouping, 3>(span, g, out);
    case 4:
      return tile_outputs<V, kBits, kGrouping, 4>(span, g, out);
    default:
      return tile_outputs<V, kBits, kGrouping, 6>(span, g, out);
  }
}

// The last outputs of a weight whose number is no multiple of a set, filled up.
class LastSet {
 public:
  LastSet(const Weight& w, int64_t first, int64_t outputs)
      : values_(kSet * w.row_bytes()),
        scales_(kSet * w.groups),
        zeros_(kSet * w.groups),
        has_zeros_(w.zeros != nullptr) {
    const int64_t bytes = w.row_bytes();
    std::memset(values_.data(), 0, kSet * bytes);
    std::memcpy(values_.data(), w.values + first * bytes, outputs * bytes);
    std::memset(scales_.data(), 0, kSet * w.groups * sizeof(float));
    std::memcpy(scales_.data(), w.scales + first * w.groups,
                outputs * w.groups * sizeof(float));
    if (has_zeros_) {
      std::memset(zeros_.data(), 0, kSet * w.groups);
      std::memcpy(zeros_.data(), w.zeros + first * w.groups, outputs * w.groups);
    }
  }
  const uint8_t* values() const { return values_.data(); }
  const float* scales() const { return scales_.data(); }
  const int8_t* zeros() const { return has_zeros_ ? zeros_.data() : nullptr; }

 private:
  Buffer<uint8_t> values_;
  Buffer<float> scales_;
  Buffer<int8_t> zeros_;
  bool has_zeros_;
};

// ---- From sums to results ----

using Set = float __attribute__((vector_size(4 * kSet)));
using IntSet = int32_t __attribute__((vector_size(4 * kSet)));
using LongSet = int64_t __attribute__((vector_size(8 * kSet)));

using Quad = float __attribute__((vector_size(4 * kQuad)));

template <class T, class Element>
inline T quad_of(const Element* from, int count) {
  T quad = {};
  for (int i = 0; i < count; ++i) quad[i] = from[i];
  return quad;
}

template <class T, class Element>
inline T load_quad(const Element* from) {
  T quad;
  std::memcpy(&quad, from, sizeof(T));
  return quad;
}

template <class T>
inline T load_set(const void* from) {
  T set;
  std::memcpy(&set, from, sizeof(T));
  return set;
}

// The first `count` numbers, converted.
template <class T, class Element>
inline T set_of(const Element* from, int count) {
  typedef Element Stored __attribute__((vector_size(sizeof(Element) * kSet)));
  if (count == kSet) return __builtin_convertvector(load_set<Stored>(from), T);
  T set = {};
  for (int i = 0; i < count; ++i) set[i] = from[i];
  return set;
}

inline void write_set(Set x, const Result& result, int64_t start, int count) {
  if (result.dtype == Float::kF32) {
    float* to = static_cast<float*>(result.y) + start;
    if (count == kSet) {
      std::memcpy(to, &x, sizeof(x));
    } else {
      for (int i = 0; i < count; ++i) to[i] = x[i];
    }
    return;
  }
  uint16_t* to = static_cast<uint16_t*>(result.y) + start;
  for (int i = 0; i < count; ++i) {
    to[i] = result.dtype == Float::kBF16 ? to_bf16(x[i]) : to_f16(x[i]);
  }
}

template <class Sum>
void finish_exact(const Rows& rows, const Weight& w, const Result& result,
                  int64_t m0, int64_t m1, int64_t output, int outputs, const Sum* sums,
                  const Sum* ones) {
  using Sums = std::conditional_t<sizeof(Sum) == 4, IntSet, LongSet>;
  const Set scale = set_of<Set>(w.scales + output, outputs);
  Set bias = {};
  if (result.bias) bias = set_of<Set>(result.bias + output, outputs);
  Sums shift = {};
  if (w.zeros) shift = set_of<Sums>(w.zeros + output, outputs);
  shift += static_cast<Sum>(rows.cut.offset);
  Sums whole = {};
  if (rows.zero) whole = load_set<Sums>(ones) - shift * static_cast<Sum>(w.inputs);
  const float digit = 1.0f / static_cast<float>(kBase);
  for (int64_t m = m0; m < m1; ++m) {
    const int32_t* left = rows.sums + rows.ones + m * rows.digits;
    const Sum* sum = sums + (m - m0) * rows.digits * kSet;
    Set number = {};
    for (int64_t j = rows.digits - 1; j >= 0; --j) {
      Sums total = load_set<Sums>(sum + j * kSet) - shift * static_cast<Sum>(left[j]);
      if (rows.zero) total -= whole * static_cast<Sum>(zero_point(rows.zero[m]));
      number = __builtin_convertvector(total, Set) + number * digit;
    }
    number = number * rows.scale[m] * scale + bias;
    write_set(number, result, m * w.outputs + output, outputs);
  }
}

inline void finish_grouped(const Rows& rows, const Weight& w, const Result& result,
                           int64_t m0, int64_t m1, int64_t output, int outputs,
                           const float* sums) {
  Set bias = {};
  if (result.bias) bias = set_of<Set>(result.bias + output, outputs);
  const float digit = 1.0f / static_cast<float>(kBase);
  for (int64_t m = m0; m < m1; ++m) {
    const float* sum = sums + (m - m0) * rows.digits * kSet;
    Set number = {};
    for (int64_t j = rows.digits - 1; j >= 0; --j) {
      number = load_set<Set>(sum + j * kSet) + number * digit;
    }
    number = number * rows.scale[m] + bias;
    write_set(number, result, m * w.outputs + output, outputs);
  }
}

// ---- The whole ----

constexpr int64_t kExactInputs = 32768;  // of which int32 holds the sum of products

template <class V, int kBits, Grouping kGrouping>
void multiply_outputs(const Rows& rows, const Weight& w, const Result& result,
                      int64_t m_count, int64_t first, int64_t last) {
  constexpr int kStep = step_bytes<V, kBits>();
  constexpr bool kExact = kGrouping == Grouping::kNone;
  const int64_t row_bytes = w.row_bytes();
  const int64_t whole = row_bytes / kStep;
  const int64_t ahead = fetched_ahead(row_bytes);
  const int tail = static_cast<int>(row_bytes - whole * kStep);
  const int64_t per_row = rows.sums_per_row(w.groups);
  Groups g{w.scales, w.zeros, rows.sums, per_row, w.groups, 1, 1};
  if (kGrouping == Grouping::kSteps) g.steps = w.group_size() / rows.cut.step_inputs();
  if (kGrouping == Grouping::kLanes) g.in_step = rows.cut.step_inputs() / w.group_size();

  // Rows in blocks that stay in the second-level cache; steps in blocks of which a tile
  // and a set of outputs stay in the first.
  const int64_t block_tiles = std::clamp<int64_t>(
      kSecondCache / std::max<int64_t>(1, rows.tile_bytes()), 1, 64);
  const int64_t one_step = kSet * kStep + Rows::kTile * rows.step_bytes();
  int64_t block_steps = std::max<int64_t>(1, whole);
  if (rows.tiles() > 1) {
    block_steps = std::max<int64_t>(4, kFirstCache / one_step);
    block_steps = std::max(g.steps, block_steps / g.steps * g.steps);
    // Blocks of nearly equal length.
    const int64_t blocks = (whole + block_steps - 1) / block_steps;
    if (blocks > 0) {
      block_steps = (whole + blocks - 1) / blocks;
      block_steps = (block_steps + g.steps - 1) / g.steps * g.steps;
    }
  }
  const bool long_sums = kExact && w.inputs > kExactInputs;
  if (long_sums) block_steps = std::min(block_steps, kExactInputs / rows.cut.step_inputs());
  const int64_t block_rows = std::min(block_tiles, rows.tiles()) * Rows::kTile;
  Buffer<int32_t> sums(block_rows * kSet);
  Buffer<int64_t> wide(long_sums ? block_rows * kSet : 0);
  Buffer<int64_t> ones(rows.ones ? (last - first + kSet) : 0);

  for (int64_t t0 = 0; t0 < rows.tiles(); t0 += block_tiles) {
    const int64_t t1 = std::min(rows.tiles(), t0 + block_tiles);
    const int64_t r0 = t0 * Rows::kTile;
    const int64_t r1 = std::min(rows.count, t1 * Rows::kTile);
    const int64_t in_block = (r1 - r0) * kSet;
    const bool with_ones = rows.ones && t0 == 0;
    const int64_t m0 = (r0 - rows.ones + (with_ones ? 1 : 0)) / rows.digits;
    const int64_t m1 = std::min(m_count, (r1 - rows.ones) / rows.digits);
    for (int64_t n = first; n < last; n += kSet) {
      const int outputs = static_cast<int>(std::min<int64_t>(kSet, last - n));
      const uint8_t* values = w.values + n * row_bytes;
      Groups set = g;
      set.scales += n * w.groups;
      if (set.zeros) set.zeros += n * w.groups;
      std::optional<LastSet> filled;
      if (outputs < kSet) {
        filled.emplace(w, n, outputs);
        values = filled->values();
        set.scales = filled->scales();
        set.zeros = filled->zeros();
      }
      std::memset(sums.data(), 0, block_rows * kSet * sizeof(int32_t));
      if (long_sums) std::memset(wide.data(), 0, in_block * sizeof(int64_t));
      for (int64_t s = 0; s < rows.steps; s += block_steps) {
        const int64_t end = std::min(whole, s + block_steps);
        for (int64_t t = t0; t < t1 && s < end; ++t) {
          const Tile tile = tile_of(rows, t);
          set.sums = rows.sums + tile.first * per_row;
          tile_rows<V, kBits, kGrouping>(
              tile.padded, {tile.x, values + s * kStep, row_bytes, s, end, ahead}, set,
              sums.data() + (tile.first - r0) * kSet);
        }
        if (end == whole && tail && s + block_steps >= whole) {
          // The rest of each row of the weight, filled up to a step.
          alignas(64) uint8_t rest[kSet * kStep] = {};
          for (int i = 0; i < kSet; ++i) {
            std::memcpy(rest + i * kStep, values + i * row_bytes + whole * kStep, tail);
          }
          for (int64_t t = t0; t < t1; ++t) {
            const Tile tile = tile_of(rows, t);
            set.sums = rows.sums + tile.first * per_row;
            tile_rows<V, kBits, kGrouping>(
                tile.padded, {tile.x, rest, kStep, whole, whole + 1, 0}, set,
                sums.data() + (tile.first - r0) * kSet);
          }
          s = rows.steps;
        }
        if (long_sums) {
          for (int64_t i = 0; i < in_block; ++i) wide[i] += sums[i];
          std::memset(sums.data(), 0, in_block * sizeof(int32_t));
        }
      }
      const int64_t skip = with_ones ? kSet : 0;
      if constexpr (kExact) {
        if (with_ones) {
          for (int i = 0; i < kSet; ++i) {
            ones[n - first + i] = long_sums ? wide[i] : sums[i];
          }
        }
        int32_t narrow_ones[kSet] = {};
        for (int i = 0; i < kSet && rows.ones; ++i) {
          narrow_ones[i] = static_cast<int32_t>(ones[n - first + i]);
        }
        if (long_sums) {
          finish_exact<int64_t>(rows, w, result, m0, m1, n, outputs, wide.data() + skip,
                                rows.ones ? ones.data() + (n - first) : nullptr);
        } else {
          finish_exact<int32_t>(rows, w, result, m0, m1, n, outputs, sums.data() + skip,
                                narrow_ones);
        }
      } else {
        finish_grouped(rows, w, result, m0, m1, n, outputs,
                       reinterpret_cast<const float*>(sums.data()));
      }
    }
  }
}

template <class V, int kBits>
void multiply_bits(const Rows& rows, const Weight& w, const Result& result,
                   int64_t m_count, int64_t first, int64_t last) {
  switch (rows.grouping) {
    case Grouping::kNone:
      return multiply_outputs<V, kBits, Grouping::kNone>(rows, w, result, m_count,
                                                         first, last);
    case Grouping::kSteps:
      return multiply_outputs<V, kBits, Grouping::kSteps>(rows, w, result, m_count,
                                                          first, last);
    default:
      return multiply_outputs<V, kBits, Grouping::kLanes>(rows, w, result, m_count,
                                                          first, last);
  }
}

template <class V>
void multiply(const Rows& rows, const Weight& w, const Result& result, int64_t m_count,
              int64_t first, int64_t last) {
  switch (w.bits) {
    case 2:
      return multiply_bits<V, 2>(rows, w, result, m_count, first, last);
    case 3:
      return multiply_bits<V, 3>(rows, w, result, m_count, first, last);
    case 4:
      return multiply_bits<V, 4>(rows, w, result, m_count, first, last);
    default:
      return multiply_bits<V, 8>(rows, w, result, m_count, first, last);
  }
}

template <class V>
constexpr Products products_for() {
  return Products{&cut_of<V>,  &pack_rows,    &multiply<V>,
                  &largest_of, &write_digits, &pack_patches,
                  many_rows<V>(), &finish_block};
}

}  // namespace
}  // namespace jcompress
