// Sums of products of a few rows with a few outputs, in registers, for each number of rows.
#pragma once

#include <algorithm>

#include "product.h"
#include "tile_rows.h"
#include "unrolled.h"

namespace jcompress {
namespace {

constexpr int kSet = 8;         // outputs taken together: so many streams keep memory busy
constexpr int64_t kLine = 64;   // bytes that memory delivers together
constexpr int64_t kAhead = 4096;  // bytes on their way while so many are multiplied

// ---- Sums of products of one tile with a few outputs ----

template <class V, int kBits, int kRows, int kOutputs, bool kExact = false, class Load>
[[gnu::always_inline]] inline void add_step(typename V::I (&sums)[kRows][kOutputs],
                                            const int8_t* x, Load load) {
  using T = Format<V, kBits>;
  if constexpr (kExact && V::kPartsTogether) {
    each<kOutputs>([&](auto n) JCOMPRESS_INLINE {
      const typename V::I raw = load(n);
      typename V::I weight[T::kParts];
      each<T::kParts>([&](auto part) JCOMPRESS_INLINE {
        weight[part] = T::template decode<part>(raw);
      });
      each<kRows>([&](auto r) JCOMPRESS_INLINE {
        T::dot_parts(sums[r][n], weight, x + r * V::kBytes, int64_t{kRows} * V::kBytes);
      });
    });
  } else {
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
}

// What a micro-kernel works on: some steps of a tile and of the rows of a few outputs.
struct Span {
  const int8_t* x;   // of step 0
  const uint8_t* w;  // of the first step, and of the next outputs `row_bytes` on
  int64_t row_bytes;
  int64_t first;  // step
  int64_t last;
  bool fetches;     // what is read later
  uintptr_t later;  // where rows of as many outputs begin that are read later

  // What is fetched first for a kernel whose steps read so many bytes of its outputs.
  uintptr_t fetched(int64_t bytes) const {
    return later + static_cast<uintptr_t>(first * bytes);
  }
};

// Rows of a weight are short for the processor's own prefetching, which starts anew with
// each: what is read later is fetched line by line in the order of memory, the rows of a
// few outputs being one stretch. A prefetch may point anywhere: it never faults.
[[gnu::always_inline]] inline void fetch_lines(uintptr_t from, int64_t bytes) {
  for (int64_t i = 0; i < bytes; i += kLine) {
    const uintptr_t line = from + static_cast<uintptr_t>(i);
    __builtin_prefetch(reinterpret_cast<const void*>(line), 0, 3);
  }
}

// How many outputs later those are that are fetched: a few sets if they are short.
inline int64_t fetched_ahead(int64_t row_bytes) {
  const int64_t set = kSet * row_bytes;
  return (kAhead + set - 1) / set * kSet;
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
  uintptr_t later = span.fetched(kStep * kOutputs);
  const int8_t* x = span.x + span.first * kStride;
  for (int64_t s = span.first; s < span.last; ++s) {
    add_step<V, kBits, kRows, kOutputs, true>(
        sums, x, [&](auto n) JCOMPRESS_INLINE {
          return T::load(w + n * row_bytes);
        });
    if (span.fetches) fetch_lines(later, kStep * kOutputs);
    w += kStep;
    later += kStep * kOutputs;
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
  const int32_t* sums;   // of the tile
  int64_t groups;
  int64_t steps;    // kSteps: in a group
  int64_t in_step;  // kLanes: groups in a step
  int64_t later;    // outputs from those that are read to those that are fetched

  // Where the scales (or zeros) begin that a kernel of so many outputs fetches.
  template <class Number>
  uintptr_t fetched(const Number* numbers, int64_t first, int64_t outputs) const {
    const int64_t from = later * groups + outputs * first;
    return reinterpret_cast<uintptr_t>(numbers) +
           static_cast<uintptr_t>(from) * sizeof(Number);
  }
};

template <class V, int kBits, int kRows, int kOutputs, bool kZeros>
[[gnu::noinline]] void sums_of_steps(const Span& span, const Groups& g, float* out) {
  using T = Format<V, kBits>;
  constexpr int kStep = step_bytes<V, kBits>();
  constexpr int64_t kStride = int64_t{T::kParts} * kRows * V::kBytes;
  typename V::F totals[kRows][kOutputs];
  each<kRows>([&](auto r) JCOMPRESS_INLINE {
    each<kOutputs>([&](auto n) JCOMPRESS_INLINE { totals[r][n] = V::zero_float(); });
  });
  const int64_t row_bytes = span.row_bytes, groups = g.groups, steps = g.steps;
  const int64_t first = span.first / steps;
  const bool fetches = span.fetches;
  const uint8_t* w = span.w;
  uintptr_t later = span.fetched(kStep * kOutputs);
  const int8_t* x = span.x + span.first * kStride;
  const int32_t* left = g.sums + first * kRows;
  const float* scales = g.scales + first;
  const int8_t* zeros = kZeros ? g.zeros + first : nullptr;
  uintptr_t later_scales = g.fetched(g.scales, first, kOutputs);
  uintptr_t later_zeros = g.fetched(g.zeros, first, kOutputs);
  for (int64_t i = span.last / steps - first; i > 0; --i) {
    typename V::I sums[kRows][kOutputs];
    each<kOutputs>([&](auto n) JCOMPRESS_INLINE {
      const int32_t zero = kZeros ? -T::kOffset - zeros[n * groups] : 1;
      each<kRows>([&](auto r) JCOMPRESS_INLINE {
        sums[r][n] = V::first(kZeros ? zero * left[r] : left[r]);
      });
    });
    for (int64_t s = 0; s < steps; ++s) {
      add_step<V, kBits, kRows, kOutputs>(
          sums, x, [&](auto n) JCOMPRESS_INLINE { return T::load(w + n * row_bytes); });
      if (fetches) fetch_lines(later, kStep * kOutputs);
      w += kStep;
      later += kStep * kOutputs;
      x += kStride;
    }
    if (fetches) fetch_lines(later_scales, 1);
    if (kZeros && fetches) fetch_lines(later_zeros, 1);
    each<kOutputs>([&](auto n) JCOMPRESS_INLINE {
      const typename V::F scale = V::broadcast(scales[n * groups]);
      each<kRows>([&](auto r) JCOMPRESS_INLINE {
        totals[r][n] = V::add_scaled(totals[r][n], sums[r][n], scale);
      });
    });
    left += kRows;
    ++scales;
    later_scales += kOutputs * sizeof(float);
    if constexpr (kZeros) {
      ++zeros;
      later_zeros += kOutputs;
    }
  }
  each<kRows>([&](auto r) JCOMPRESS_INLINE {
    V::template add_totals<kOutputs>(totals[r], out + kSet * r);
  });
}

template <class V, int kBits, int kRows, int kOutputs, bool kZeros>
[[gnu::noinline]] void sums_of_lanes(const Span& span, const Groups& g, float* out) {
  using T = Format<V, kBits>;
  constexpr int kStep = step_bytes<V, kBits>();
  constexpr int64_t kStride = int64_t{T::kParts} * kRows * V::kBytes;
  typename V::F totals[kRows][kOutputs];
  each<kRows>([&](auto r) JCOMPRESS_INLINE {
    each<kOutputs>([&](auto n) JCOMPRESS_INLINE { totals[r][n] = V::zero_float(); });
  });
  const int64_t row_bytes = span.row_bytes, groups = g.groups, in_step = g.in_step;
  const typename V::I index = V::lane_groups(static_cast<int>(in_step));
  const bool fetches = span.fetches;
  const uint8_t* w = span.w;
  uintptr_t later = span.fetched(kStep * kOutputs);
  const int8_t* x = span.x + span.first * kStride;
  const int32_t* left = g.sums + span.first * kRows * V::kLanes;
  const float* scales = g.scales + span.first * in_step;
  const int8_t* zeros = kZeros ? g.zeros + span.first * in_step : nullptr;
  uintptr_t later_scales = g.fetched(g.scales, span.first * in_step, kOutputs);
  uintptr_t later_zeros = g.fetched(g.zeros, span.first * in_step, kOutputs);
  // The last step may hold fewer groups.
  int64_t rest = groups - span.first * in_step;
  for (int64_t s = span.last - span.first; s > 0; --s) {
    const int count = static_cast<int>(std::min(in_step, rest));
    typename V::I sums[kRows][kOutputs];
    each<kRows>([&](auto r) JCOMPRESS_INLINE {
      const typename V::I start = V::load(left + r * V::kLanes);
      each<kOutputs>([&](auto n) JCOMPRESS_INLINE { sums[r][n] = start; });
    });
    if constexpr (kZeros) {
      each<kOutputs>([&](auto n) JCOMPRESS_INLINE {
        const typename V::I zero =
            V::zero_lanes(zeros + n * groups, count, index, T::kOffset);
        each<kRows>([&](auto r) JCOMPRESS_INLINE {
          sums[r][n] = V::minus_product(sums[r][n], zero);
        });
      });
    }
    add_step<V, kBits, kRows, kOutputs>(
        sums, x, [&](auto n) JCOMPRESS_INLINE { return T::load(w + n * row_bytes); });
    if (fetches) {
      fetch_lines(later, kStep * kOutputs);
      fetch_lines(later_scales, 4 * kOutputs * in_step);
      if constexpr (kZeros) fetch_lines(later_zeros, kOutputs * in_step);
    }
    each<kOutputs>([&](auto n) JCOMPRESS_INLINE {
      const typename V::F scale = V::scale_lanes(scales + n * groups, count, index);
      each<kRows>([&](auto r) JCOMPRESS_INLINE {
        totals[r][n] = V::add_scaled(totals[r][n], sums[r][n], scale);
      });
    });
    w += kStep;
    later += kStep * kOutputs;
    x += kStride;
    left += kRows * V::kLanes;
    scales += in_step;
    rest -= in_step;
    later_scales += 4 * kOutputs * in_step;
    if constexpr (kZeros) {
      zeros += in_step;
      later_zeros += kOutputs * in_step;
    }
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
    } else {
      constexpr bool kSteps = kGrouping == Grouping::kSteps;
      constexpr auto kPlain = kSteps ? sums_of_steps<V, kBits, kRows, kOutputs, false>
                                     : sums_of_lanes<V, kBits, kRows, kOutputs, false>;
      constexpr auto kMoved = kSteps ? sums_of_steps<V, kBits, kRows, kOutputs, true>
                                     : sums_of_lanes<V, kBits, kRows, kOutputs, true>;
      (g.zeros ? kMoved : kPlain)(part, g, static_cast<float*>(out) + n);
    }
    part.w += kOutputs * span.row_bytes;
    part.later += static_cast<uintptr_t>(kOutputs * span.row_bytes);
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

}  // namespace
}  // namespace jcompress
