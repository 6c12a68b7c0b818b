// From the sums of a convolution to its results, by AVX2: see conv_ends_avx512.h.
#pragma once

#include <immintrin.h>

#include <algorithm>
#include <cstring>

#include "conv_rows.h"
#include "epilogue.h"
#include "rows.h"
#include "unrolled.h"

namespace jcompress {
namespace {

constexpr int kSixteen = ConvBlock::kLanes;  // outputs together: two vectors
constexpr int kEight = 8;

[[gnu::always_inline]] inline __m256i load_words(const int32_t* from) {
  return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
}

// At most sixteen; what comes behind the end of some numbers is 0.
[[gnu::always_inline]] inline __m128i load_bytes(const int8_t* from, int64_t count) {
  if (count >= kSixteen) return _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
  if (count == kEight) return _mm_loadu_si64(from);
  __m128i bytes = _mm_setzero_si128();
  if (count > 0) std::memcpy(&bytes, from, static_cast<size_t>(count));
  return bytes;
}

[[gnu::always_inline]] inline __m256 load_floats(const float* from, int64_t count) {
  if (count >= kEight) return _mm256_loadu_ps(from);
  __m256 some = _mm256_setzero_ps();
  if (count > 0) std::memcpy(&some, from, static_cast<size_t>(count) * sizeof(float));
  return some;
}

[[gnu::always_inline]] inline void store_bytes(int8_t* to, __m128i bytes, int64_t count) {
  if (count >= kSixteen) return _mm_storeu_si128(reinterpret_cast<__m128i*>(to), bytes);
  if (count == kEight) return _mm_storeu_si64(to, bytes);
  std::memcpy(to, &bytes, static_cast<size_t>(count));
}

// Integers that are a linear function of the sums: see ConvLinear.
struct LinearEnd {
  __m256 limit;  // beyond it floats do not become integers
  __m256i zero;
  __m128i low, high;
  const int8_t* addend;
  __m256 addend_multiplier;

  explicit LinearEnd(const ConvEnd& end)
      : limit(_mm256_set1_ps(1e6f)),
        zero(_mm256_set1_epi16(static_cast<int16_t>(zero_point(end.y_zero)))),
        low(_mm_set1_epi8(end.low)),
        high(_mm_set1_epi8(end.high)),
        addend(end.addend_integers),
        addend_multiplier(_mm256_set1_ps(end.addend_scale * end.y_inverse)) {}

  // Eight sums, of outputs n to n + 7 of a block. What is no number becomes the lowest.
  [[gnu::always_inline]] __m256i rounded(__m256i sums, const ConvLinear& l, int n) const {
    return whole(scaled(sums, l, n));
  }
  [[gnu::always_inline]] __m256i rounded(__m256i sums, const ConvLinear& l, int n,
                                         __m128i more) const {
    const __m256 x = _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(more));
    return whole(_mm256_fmadd_ps(x, addend_multiplier, scaled(sums, l, n)));
  }

  // The first four numbers of both, the last four of both.
  [[gnu::always_inline]] __m128i dealt_bytes(__m256i a, __m256i b) const {
    return bytes(_mm256_packs_epi32(a, b));
  }
  // All of the first, all of the second.
  [[gnu::always_inline]] __m128i bytes_in_order(__m256i a, __m256i b) const {
    return bytes(_mm256_permute4x64_epi64(_mm256_packs_epi32(a, b), 0xd8));
  }

 private:
  [[gnu::always_inline]] __m256 scaled(__m256i sums, const ConvLinear& l, int n) const {
    return _mm256_fmadd_ps(_mm256_cvtepi32_ps(sums), _mm256_loadu_ps(l.multiplier + n),
                           _mm256_loadu_ps(l.offset + n));
  }
  [[gnu::always_inline]] __m256i whole(__m256 y) const {
    return _mm256_cvtps_epi32(_mm256_min_ps(limit, y));
  }
  [[gnu::always_inline]] __m128i bytes(__m256i words) const {
    const __m256i moved = _mm256_adds_epi16(words, zero);
    const __m128i all = _mm_packs_epi16(_mm256_castsi256_si128(moved),
                                        _mm256_extracti128_si256(moved, 1));
    return _mm_min_epi8(_mm_max_epi8(all, low), high);
  }
};

struct Rounding {
  __m256 inverse, zero, low, high;

  Rounding(float by, float at, int bits, bool symmetric) {
    const float top = static_cast<float>((1 << (bits - 1)) - 1);
    inverse = _mm256_set1_ps(by);
    zero = _mm256_set1_ps(at);
    high = _mm256_set1_ps(top);
    low = _mm256_set1_ps(symmetric ? -top : -top - 1.0f);
  }

  // What is no number becomes the lowest.
  [[gnu::always_inline]] __m128i operator()(__m256 x) const {
    constexpr int kNearest = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
    const __m256 whole = _mm256_round_ps(_mm256_mul_ps(x, inverse), kNearest);
    const __m256 within = _mm256_min_ps(_mm256_max_ps(_mm256_add_ps(whole, zero), low), high);
    const __m256i words = _mm256_cvttps_epi32(within);
    const __m128i halves = _mm_packs_epi32(_mm256_castsi256_si128(words),
                                           _mm256_extracti128_si256(words, 1));
    return _mm_packs_epi16(halves, halves);
  }
};

// Results of some positions of one image: see `finish_conv`.
struct NarrowEnd {
  template <Function kFunction>
  static void finish(const Ends& rows, const int32_t* sums, float scale, int32_t zero,
                     int64_t start, int64_t count) {
    const ConvBlock& b = rows.block;
    const ConvEnd& end = rows.end;
    const Rounding rounding(end.y_inverse, end.y_zero, end.y_bits, end.y_symmetric);
    const __m256 by_image = _mm256_set1_ps(scale);
    const __m256 addend_scale = _mm256_set1_ps(end.addend_scale);
    const __m256 addend_zero = _mm256_set1_ps(end.addend_zero);
    for (int64_t n = 0; n < b.count; n += kEight) {
      const int64_t here = std::min<int64_t>(kEight, b.count - n);
      const __m256i less = _mm256_mullo_epi32(_mm256_set1_epi32(zero), load_words(b.sums + n));
      const __m256 by = load_floats(rows.weight.scales + b.first + n, here);
      const __m256 bias =
          end.bias ? load_floats(end.bias + b.first + n, here) : _mm256_setzero_ps();
      for (int64_t i = 0; i < count; ++i) {
        const int64_t at = start + i * rows.weight.outputs + n;
        const __m256i sum =
            _mm256_sub_epi32(load_words(sums + i * ConvBlock::kOutputs + n), less);
        __m256 y = _mm256_mul_ps(_mm256_mul_ps(_mm256_cvtepi32_ps(sum), by_image), by);
        y = _mm256_add_ps(y, bias);
        if (end.addend_integers) {
          const __m128i bytes = load_bytes(end.addend_integers + at, here);
          const __m256 more = _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes));
          y = _mm256_add_ps(y, _mm256_mul_ps(_mm256_sub_ps(more, addend_zero), addend_scale));
        } else if (end.addend) {
          y = _mm256_add_ps(y, load_floats(end.addend + at, here));
        }
        y = (__m256)apply<WideFloats, kFunction>((WideFloats::F)y);
        if (end.residual) y = _mm256_add_ps(y, load_floats(end.residual + at, here));
        if (end.integers) {
          store_bytes(end.integers + at, rounding(y), here);
        } else if (here == kEight) {
          _mm256_storeu_ps(end.floats + at, y);
        } else {
          std::memcpy(end.floats + at, &y, static_cast<size_t>(here) * sizeof(float));
        }
      }
    }
  }
};

inline Finish finish_of(Function function) { return finish_by<NarrowEnd>(function); }

}  // namespace
}  // namespace jcompress
