// Results of a convolution that are a linear function of its sums, then rounded and
// clipped: see ConvLinear.
#pragma once

#include <immintrin.h>

#include <algorithm>
#include <cstring>

#include "conv_direct.h"
#include "rows.h"

namespace jcompress {
namespace {

struct LinearEnd {
  __m512 limit;  // beyond it floats do not become integers
  __m512i zero, low, high;
  const int8_t* addend;
  __m512 addend_multiplier;

  explicit LinearEnd(const ConvEnd& end)
      : limit(_mm512_set1_ps(1e6f)),
        zero(_mm512_set1_epi16(static_cast<int16_t>(zero_point(end.y_zero)))),
        low(_mm512_set1_epi8(end.low)),
        high(_mm512_set1_epi8(end.high)),
        addend(end.addend_integers),
        addend_multiplier(_mm512_set1_ps(end.addend_scale * end.y_inverse)) {}

  // Sixteen sums of vector v of a block as integers, before their zero. What is no number
  // becomes the lowest.
  [[gnu::always_inline]] __m512i rounded(__m512i sums, const ConvLinear& l, int v) const {
    return whole(scaled(sums, l, v));
  }

  // The same with what is added to them.
  [[gnu::always_inline]] __m512i rounded(__m512i sums, const ConvLinear& l, int v,
                                         __m128i more) const {
    const __m512 x = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(more));
    return whole(_mm512_fmadd_ps(x, addend_multiplier, scaled(sums, l, v)));
  }

  // Four vectors as bytes, four numbers of each in turn.
  [[gnu::always_inline]] __m512i bytes(const __m512i (&q)[4]) const {
    const __m512i first = _mm512_adds_epi16(_mm512_packs_epi32(q[0], q[1]), zero);
    const __m512i second = _mm512_adds_epi16(_mm512_packs_epi32(q[2], q[3]), zero);
    const __m512i all = _mm512_packs_epi16(first, second);
    return _mm512_min_epi8(_mm512_max_epi8(all, low), high);
  }

 private:
  [[gnu::always_inline]] __m512 scaled(__m512i sums, const ConvLinear& l, int v) const {
    return _mm512_fmadd_ps(_mm512_cvtepi32_ps(sums), _mm512_loadu_ps(l.multiplier + 16 * v),
                           _mm512_loadu_ps(l.offset + 16 * v));
  }

  [[gnu::always_inline]] __m512i whole(__m512 y) const {
    return _mm512_cvtps_epi32(_mm512_min_ps(limit, y));
  }
};

// Bytes in the order of `LinearEnd::bytes` as those of one vector after the other.
[[gnu::always_inline]] inline __m512i in_order(__m512i bytes) {
  const __m512i places =
      _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
  return _mm512_permutexvar_epi32(places, bytes);
}

// Stores the first bytes without a mask, which takes much longer.
[[gnu::always_inline]] inline void store_bytes(int8_t* to, __m512i bytes, int count) {
  if (count == 64) return _mm512_storeu_si512(to, bytes);
  alignas(64) int8_t all[64];
  _mm512_store_si512(all, bytes);
  int i = 0;
  for (; i + 16 <= count; i += 16) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to + i),
                     _mm_load_si128(reinterpret_cast<const __m128i*>(all + i)));
  }
  if (i < count) std::memcpy(to + i, all + i, static_cast<size_t>(count - i));
}

[[gnu::always_inline]] inline __m128i load_some(const int8_t* from, int64_t count) {
  __m128i bytes = _mm_setzero_si128();
  if (count >= 16) return _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
  if (count > 0) std::memcpy(&bytes, from, static_cast<size_t>(count));
  return bytes;
}

}  // namespace
}  // namespace jcompress
