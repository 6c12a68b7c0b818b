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

// Stores the first bytes without a mask, which takes much longer, and without a call, before
// which all registers would be stored.
[[gnu::always_inline]] inline void store_bytes(int8_t* to, __m512i bytes, int count) {
  if (count == 64) return _mm512_storeu_si512(to, bytes);
  __m256i half = _mm512_castsi512_si256(bytes);
  if (count & 32) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), half);
    half = _mm512_extracti64x4_epi64(bytes, 1);
    to += 32;
  }
  __m128i quarter = _mm256_castsi256_si128(half);
  if (count & 16) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to), quarter);
    quarter = _mm256_extracti128_si256(half, 1);
    to += 16;
  }
  if (!(count & 15)) return;
  uint64_t word = static_cast<uint64_t>(_mm_cvtsi128_si64(quarter));
  if (count & 8) {
    std::memcpy(to, &word, 8);
    word = static_cast<uint64_t>(_mm_extract_epi64(quarter, 1));
    to += 8;
  }
  if (count & 4) {
    std::memcpy(to, &word, 4);
    word >>= 32;
    to += 4;
  }
  if (count & 2) {
    std::memcpy(to, &word, 2);
    word >>= 16;
    to += 2;
  }
  if (count & 1) std::memcpy(to, &word, 1);
}

// Stores `count` parts of 32 or 16 bytes, each `stride` after the one before, of each the
// first `some` bytes.
[[gnu::always_inline]] inline void store_parts(int8_t* to, int64_t stride, int64_t count,
                                               __m512i bytes, int width, int some) {
  alignas(64) int8_t all[64];
  _mm512_store_si512(all, bytes);
  if (some == 16) {
    for (int64_t i = 0; i < count; ++i) {
      _mm_storeu_si128(reinterpret_cast<__m128i*>(to + i * stride),
                       _mm_load_si128(reinterpret_cast<const __m128i*>(all + 16 * i)));
    }
  } else if (some == 32) {
    for (int64_t i = 0; i < count; ++i) {
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + i * stride),
                          _mm256_load_si256(reinterpret_cast<const __m256i*>(all + 32 * i)));
    }
  } else {
    for (int64_t i = 0; i < count; ++i) {
      std::memcpy(to + i * stride, all + width * i, static_cast<size_t>(some));
    }
  }
}

[[gnu::always_inline]] inline __m128i load_some(const int8_t* from, int64_t count) {
  if (count >= 16) return _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
  if (count <= 0) return _mm_setzero_si128();
  uint64_t words[2] = {};
  uint64_t* word = words;
  if (count & 8) {
    std::memcpy(word++, from, 8);
    from += 8;
  }
  int bits = 0;
  if (count & 4) {
    uint32_t part;
    std::memcpy(&part, from, 4);
    *word = part;
    from += 4;
    bits = 32;
  }
  if (count & 2) {
    uint16_t part;
    std::memcpy(&part, from, 2);
    *word |= uint64_t{part} << bits;
    from += 2;
    bits += 16;
  }
  if (count & 1) *word |= uint64_t{static_cast<uint8_t>(*from)} << bits;
  return _mm_set_epi64x(static_cast<int64_t>(words[1]), static_cast<int64_t>(words[0]));
}

}  // namespace
}  // namespace jcompress
