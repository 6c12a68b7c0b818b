// Rows of floats as integers, the same as those of rows.h, by AVX-512.
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>

namespace jcompress {
namespace {

struct Avx512Rows {
  static constexpr bool kDealsSteps = true;

  // The largest absolute value, as `largest` in rows.h.
  static float largest(const float* x, int64_t count) {
    const __m512i magnitude = _mm512_set1_epi32(0x7fffffff), none = _mm512_setzero_si512();
    __m512i top[4] = {none, none, none, none};
    const auto without_sign = [&](__m512i floats) {
      return _mm512_and_si512(floats, magnitude);
    };
    int64_t i = 0;
    for (; i + 64 <= count; i += 64) {
      for (int j = 0; j < 4; ++j) {
        const __m512i floats = _mm512_loadu_si512(x + i + 16 * j);
        top[j] = _mm512_max_epu32(top[j], without_sign(floats));
      }
    }
    for (; i < count; i += 16) {
      const __m512i some = _mm512_maskz_loadu_epi32(lanes_of(count - i), x + i);
      top[0] = _mm512_max_epu32(top[0], without_sign(some));
    }
    const __m512i all = _mm512_max_epu32(_mm512_max_epu32(top[0], top[1]),
                                         _mm512_max_epu32(top[2], top[3]));
    const uint32_t word = _mm512_reduce_max_epu32(all);
    float width;
    std::memcpy(&width, &word, 4);
    return width;
  }
  // The integers of the steps of x, as `round_row` in rows.h: what is no number becomes
  // the lowest.
  static void round(const float* x, int64_t count, float inverse, int bits,
                    const float* zero, int8_t* q) {
    const float most = static_cast<float>((1 << (bits - 1)) - 1);
    const __m512 high = _mm512_set1_ps(most);
    const __m512 low = _mm512_set1_ps(zero ? -most - 1.0f : -most);
    const __m512 factor = _mm512_set1_ps(inverse);
    const __m512 point = _mm512_set1_ps(zero ? *zero : 0.0f);
    const auto integers = [&](__m512 floats) {
      __m512 steps = _mm512_mul_ps(floats, factor);
      if (zero) steps = _mm512_add_ps(_mm512_roundscale_ps(steps, 0x0c), point);
      return _mm512_cvtps_epi32(_mm512_max_ps(_mm512_min_ps(high, steps), low));
    };
    int64_t i = 0;
    for (; i + 16 <= count; i += 16) {
      _mm_storeu_si128(reinterpret_cast<__m128i*>(q + i),
                       _mm512_cvtepi32_epi8(integers(_mm512_loadu_ps(x + i))));
    }
    if (i < count) {
      const __mmask16 some = lanes_of(count - i);
      _mm512_mask_cvtepi32_storeu_epi8(q + i, some,
                                       integers(_mm512_maskz_loadu_ps(some, x + i)));
    }
  }

  // Bytes in the order in which the integers of a weight of four bits unpack.
  static void deal_nibbles(int8_t* q, int64_t count) {
    const __m512i orders = _mm512_broadcast_i32x4(
        _mm_setr_epi8(0, 2, 4, 6, 1, 3, 5, 7, 8, 10, 12, 14, 9, 11, 13, 15));
    for (int64_t i = 0; i < count; i += 64) {
      _mm512_storeu_si512(q + i, _mm512_shuffle_epi8(_mm512_loadu_si512(q + i), orders));
    }
  }

  // Deal the bytes of each step of a row, of `kParts` vectors: byte p of every `kParts` to
  // vector p, `apart` from the one before; those of the next step lie `stride` further.
  // With `sums`, what the bytes of a lane in all vectors of a step sum up to, times
  // `factor`; those of the next step lie `next` further.
  template <int kParts>
  static void deal_steps(const int8_t* q, int64_t steps, int64_t stride, int64_t apart,
                         int8_t* out, int32_t* sums, int64_t next, int32_t factor) {
    static_assert(kParts == 1 || kParts == 2 || kParts == 4);
    for (int64_t s = 0; s < steps; ++s) {
      __m512i sum = _mm512_setzero_si512();
      for (int part = 0; part < kParts; ++part) {
        const __m512i bytes = part_of<kParts>(q, part);
        _mm512_storeu_si512(out + part * apart, bytes);
        sum = _mm512_dpbusd_epi32(sum, _mm512_set1_epi8(1), bytes);
      }
      if (sums) {
        const __m512i scaled = _mm512_mullo_epi32(sum, _mm512_set1_epi32(factor));
        _mm512_storeu_si512(sums + s * next, scaled);
      }
      q += 64 * kParts;
      out += stride;
    }
  }

 private:
  // Byte `part` of every `kParts` from so many vectors.
  template <int kParts>
  static __m512i part_of(const int8_t* q, int part) {
    const auto load = [&](int i) { return _mm512_loadu_si512(q + 64 * i); };
    const auto shift = _mm_cvtsi32_si128(8 * part);
    if constexpr (kParts == 1) {
      return load(0);
    } else if constexpr (kParts == 2) {
      const __m256i low = _mm512_cvtepi16_epi8(_mm512_srl_epi16(load(0), shift));
      const __m256i high = _mm512_cvtepi16_epi8(_mm512_srl_epi16(load(1), shift));
      return _mm512_inserti64x4(_mm512_castsi256_si512(low), high, 1);
    } else {
      const auto quarter = [&](int i) {
        return _mm512_cvtepi32_epi8(_mm512_srl_epi32(load(i), shift));
      };
      __m512i all = _mm512_castsi128_si512(quarter(0));
      all = _mm512_inserti32x4(all, quarter(1), 1);
      all = _mm512_inserti32x4(all, quarter(2), 2);
      return _mm512_inserti32x4(all, quarter(3), 3);
    }
  }
  static __mmask16 lanes_of(int64_t count) {
    return static_cast<__mmask16>(count < 16 ? (1u << count) - 1 : 0xffffu);
  }
};

}  // namespace
}  // namespace jcompress
