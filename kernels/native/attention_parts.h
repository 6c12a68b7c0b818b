// Parts of attention that the kernels for many rows and for few share: which keys a
// mask leaves, and sums of values by weights.
#pragma once

#include <algorithm>
#include <cstring>

#include "attention.h"
#include "sparse_floats.h"
#include "unrolled.h"
#include "vector_math.h"

namespace jcompress {
namespace {

// The keys from the first to the last that a mask leaves to any of some rows.
struct Left {
  int64_t first, last;
  bool all;  // each of these is left to each row
};

constexpr int64_t kMaskPiece = 64;

// Of keys [first, last), at most `kMaskPiece`: `any` and `all` of each.
inline void join_masks(const AttentionShape& shape, const AttentionRows& rows,
                       int64_t count, int64_t first, int64_t last, uint8_t* any,
                       uint8_t* all) {
  std::memset(any, 0, kMaskPiece);
  std::memset(all, 1, kMaskPiece);
  for (int64_t r = 0; r < count; ++r) {
    const uint8_t* mask = rows.mask + rows.mask_rows[r] + first * shape.mask_key;
    if (shape.mask_key == 1 && last - first == kMaskPiece) {
      for (int64_t i = 0; i < kMaskPiece; ++i) {
        any[i] |= mask[i];
        all[i] &= mask[i];
      }
    } else {
      for (int64_t i = 0; i < last - first; ++i) {
        any[i] |= mask[i * shape.mask_key];
        all[i] &= mask[i * shape.mask_key];
      }
    }
  }
}

inline bool equal_rows(const int64_t* offsets, int64_t count) {
  bool equal = true;
  for (int64_t r = 1; r < count; ++r) equal = equal && offsets[r] == offsets[0];
  return equal;
}

inline Left left_of(const AttentionShape& shape, const AttentionRows& rows,
                    int64_t first, int64_t last) {
  if (!rows.mask) return {first, last, true};
  const int64_t count = equal_rows(rows.mask_rows, rows.count) ? 1 : rows.count;
  Left left{last, first, true};
  uint8_t any[kMaskPiece], all[kMaskPiece];
  bool between = false;
  for (int64_t at = first; at < last; at += kMaskPiece) {
    const int64_t end = std::min(last, at + kMaskPiece);
    join_masks(shape, rows, count, at, end, any, all);
    for (int64_t i = at; i < end; ++i) {
      if (!any[i - at]) {
        between = true;
        continue;
      }
      left.all = left.all && all[i - at] && (!between || left.first == last);
      left.first = std::min(left.first, i);
      left.last = i + 1;
      between = false;
    }
  }
  if (left.first > left.last) left.first = left.last = first;
  return left;
}

// e^x within 2e-7 of its value for x that is not above 0, 0 below -87.3; what is no
// number stays so. `Math::exp` with fewer steps.
template <class V>
[[gnu::always_inline]] inline typename V::F exp_down(typename V::F x) {
  using M = Math<V>;
  using F = typename V::F;
  using I = typename M::I;
  const F low = V::broadcast(-87.33654f);
  const F within = M::at_least(x, low);
  const F magic = V::broadcast(12582912.0f);  // 1.5 * 2^23: integers end its sums
  const F shifted = V::fma(within, V::broadcast(1.44269504f), magic);
  const F power = shifted - magic;
  F r = V::fma(power, V::broadcast(-0.693359375f), within);
  r = V::fma(power, V::broadcast(2.12194440e-4f), r);
  F p = V::broadcast(1.3814477e-3f);
  p = V::fma(p, r, V::broadcast(8.3687771e-3f));
  p = V::fma(p, r, V::broadcast(4.1668393e-2f));
  p = V::fma(p, r, V::broadcast(1.6666520e-1f));
  p = V::fma(p, r, V::broadcast(4.9999994e-1f));
  p = V::fma(p, r, V::broadcast(1.0f));
  p = V::fma(p, r, V::broadcast(1.0f));
  const F result = p * (F)(((I)shifted - (0x4b400000 - 127)) << 23);
  return x < low ? V::zero() : result;
}

#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int kSums = 16;  // vectors that are summed up at once: registers are 32
#else
constexpr int kSums = 8;
#endif

// Where the weight of row r and key s lies.
struct ByKey {
  int64_t key;
  int64_t operator()(int64_t r, int64_t s) const { return s * key + r; }
};
struct ByRow {
  int64_t row;
  int64_t operator()(int64_t r, int64_t s) const { return r * row + s; }
};

// `out[r] = factors[r] out[r] + sum over s of weights[r, s] v[s]` for kCount rows and
// kWide vectors of features; without factors, out is only written.
template <class V, int kCount, int kWide, class At>
void mix_tile(const float* weights, At at, int64_t keys, const float* v, int64_t v_key,
              const float* factors, float* out, int64_t out_row) {
  using F = typename V::F;
  F sum[kCount][kWide];
  each<kCount>([&](auto r) JCOMPRESS_INLINE {
    each<kWide>([&](auto j) JCOMPRESS_INLINE {
      sum[r][j] = factors ? V::broadcast(factors[r]) *
                                V::load(out + r * out_row + j * V::kLanes)
                          : V::zero();
    });
  });
  for (int64_t s = 0; s < keys; ++s) {
    F x[kWide];
    each<kWide>([&](auto j) JCOMPRESS_INLINE {
      x[j] = V::load(v + s * v_key + j * V::kLanes);
    });
    each<kCount>([&](auto r) JCOMPRESS_INLINE {
      const F w = V::broadcast(weights[at(r, s)]);
      each<kWide>([&](auto j) JCOMPRESS_INLINE {
        sum[r][j] = V::fma(w, x[j], sum[r][j]);
      });
    });
  }
  each<kCount>([&](auto r) JCOMPRESS_INLINE {
    each<kWide>([&](auto j) JCOMPRESS_INLINE {
      V::store(out + r * out_row + j * V::kLanes, sum[r][j]);
    });
  });
}

// The same for any number of vectors of features.
template <class V, int kCount, int kWide, class At>
void mix_rows(const float* weights, At at, int64_t keys, const float* v, int64_t v_key,
              int64_t vectors, const float* factors, float* out, int64_t out_row) {
  int64_t j = 0;
  for (; j + kWide <= vectors; j += kWide) {
    mix_tile<V, kCount, kWide>(weights, at, keys, v + j * V::kLanes, v_key, factors,
                               out + j * V::kLanes, out_row);
  }
  if constexpr (kWide > 1) {
    if (j < vectors) {
      mix_rows<V, kCount, kWide / 2>(weights, at, keys, v + j * V::kLanes, v_key,
                                     vectors - j, factors, out + j * V::kLanes, out_row);
    }
  }
}

// The same for any number of rows.
template <class V, int kCount, class At>
void mix(const float* weights, At at, int64_t rows, int64_t keys, const float* v,
         int64_t v_key, int64_t vectors, const float* factors, float* out,
         int64_t out_row) {
  int64_t r = 0;
  for (; r + kCount <= rows; r += kCount) {
    mix_rows<V, kCount, kSums / kCount>(weights + at(r, 0), at, keys, v, v_key, vectors,
                                        factors ? factors + r : nullptr,
                                        out + r * out_row, out_row);
  }
  if constexpr (kCount > 1) {
    if (r < rows) {
      mix<V, kCount / 2>(weights + at(r, 0), at, rows - r, keys, v, v_key, vectors,
                         factors ? factors + r : nullptr, out + r * out_row, out_row);
    }
  }
}

}  // namespace
}  // namespace jcompress
