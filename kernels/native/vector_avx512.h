// Vectors of AVX-512 with VNNI; with VBMI, 3-bit integers unpack in three instructions.
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>

#include "rows_avx512.h"
#include "unrolled.h"

namespace jcompress {
namespace {

struct Avx512 : Avx512Rows {
  using I = __m512i;
  using F = __m512;
  static constexpr int kBytes = 64;
  static constexpr int kLanes = 16;

  static constexpr int outputs(int rows, bool grouped) {
    if (rows == 1) return 8;
    return !grouped || rows <= 3 ? 4 : 2;
  }

  static I zero() { return _mm512_setzero_si512(); }
  static F zero_float() { return _mm512_setzero_ps(); }
  static F broadcast(float x) { return _mm512_set1_ps(x); }
  static I load(const void* p) { return _mm512_loadu_si512(p); }
  static I first(int32_t x) {
    return _mm512_zextsi128_si512(_mm_cvtsi32_si128(x));
  }
  static F add_scaled(F total, I sums, F scale) {
    return _mm512_fmadd_ps(_mm512_cvtepi32_ps(sums), scale, total);
  }

  // Of products of many rows.
  static constexpr bool kPartsTogether = false;
  static constexpr bool kIntegerPanels = true;
  static constexpr int kFloatOutputs = 12;
  static constexpr int64_t kFloatRows = 0, kGroupedFloatRows = 0;

  static I broadcast_word(int32_t x) { return _mm512_set1_epi32(x); }
  static I load_word(const void* p) {
    int32_t word;
    std::memcpy(&word, p, 4);
    return _mm512_set1_epi32(word);
  }
  // The sum of signed bytes.
  static int32_t sum_bytes(const int8_t* q, int64_t count) {
    I sum = zero();
    const I ones = broadcast_word(0x01010101);
    for (int64_t i = 0; i < count; i += 64) {
      const int64_t left = count - i;
      const uint64_t some = left < 64 ? (uint64_t{1} << left) - 1 : ~uint64_t{0};
      sum = dot_bytes(sum, ones, _mm512_maskz_loadu_epi8(some, q + i));
    }
    return _mm512_reduce_add_epi32(sum);
  }
  static void store(void* p, I x) { _mm512_storeu_si512(p, x); }
  static I multiply(I a, I b) { return _mm512_mullo_epi32(a, b); }
  static I plus(I a, I b) { return _mm512_add_epi32(a, b); }
  static I subtract(I a, I b) { return _mm512_sub_epi32(a, b); }
  static F to_float(I x) { return _mm512_cvtepi32_ps(x); }
  static F load_float(const float* p) { return _mm512_loadu_ps(p); }
  static void store_float(float* p, F x) { _mm512_storeu_ps(p, x); }
  static F add(F a, F b) { return _mm512_add_ps(a, b); }
  static F times(F a, F b) { return _mm512_mul_ps(a, b); }
  static F fma(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }

  static void transpose(float (&square)[16][16]) {
    F a[16], b[16];
    for (int i = 0; i < 16; i += 2) {
      const F even = _mm512_load_ps(square[i]), odd = _mm512_load_ps(square[i + 1]);
      a[i] = _mm512_unpacklo_ps(even, odd);
      a[i + 1] = _mm512_unpackhi_ps(even, odd);
    }
    for (int i = 0; i < 16; i += 4) {
      for (int j = 0; j < 2; ++j) {
        const __m512d low = _mm512_castps_pd(a[i + j]);
        const __m512d high = _mm512_castps_pd(a[i + 2 + j]);
        b[i + 2 * j] = _mm512_castpd_ps(_mm512_unpacklo_pd(low, high));
        b[i + 2 * j + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(low, high));
      }
    }
    // Now b[4 r + c] holds the columns c, c + 4, c + 8, c + 12 of the rows 4 r to 4 r + 3.
    for (int c = 0; c < 4; ++c) {
      const F one = _mm512_shuffle_f32x4(b[c], b[4 + c], 0x44);
      const F two = _mm512_shuffle_f32x4(b[c], b[4 + c], 0xee);
      const F three = _mm512_shuffle_f32x4(b[8 + c], b[12 + c], 0x44);
      const F four = _mm512_shuffle_f32x4(b[8 + c], b[12 + c], 0xee);
      _mm512_store_ps(square[c], _mm512_shuffle_f32x4(one, three, 0x88));
      _mm512_store_ps(square[c + 4], _mm512_shuffle_f32x4(one, three, 0xdd));
      _mm512_store_ps(square[c + 8], _mm512_shuffle_f32x4(two, four, 0x88));
      _mm512_store_ps(square[c + 12], _mm512_shuffle_f32x4(two, four, 0xdd));
    }
  }

  // Sums of products of unsigned and signed bytes, by fours.
  static I dot_bytes(I sums, I weight, I x) {
    // As an intrinsic it makes GCC 12 keep most of the sums in memory.
    __asm__("vpdpbusd %2, %1, %0" : "+v"(sums) : "v"(weight), "v"(x));
    return sums;
  }

  // ---- Of strips: see panel_strips.h.
  using Cell = int8_t;
  static constexpr bool kStrips = true;
  static constexpr int kStripRows = 12;
  static constexpr int kStepInputs = 4;   // that are multiplied together
  static constexpr int kStripBytes = 64;  // of a vector of a step
  static constexpr bool kSigned = false;  // half their range is added to the weights

  static I load_strip(const uint8_t* p) { return load(p); }
  // Every second integer of four bits of what `turn` wrote, the first or the others.
  template <int kPart>
  static I nibbles(I words) {
    return _mm512_and_si512(kPart ? _mm512_srli_epi16(words, 4) : words, _mm512_set1_epi8(15));
  }
  static void dot_step(I (&sums)[2], const I (&weight)[2], const Cell* x) {
    // Once for both: two loads a cycle are as many as products.
    const I word = load_word(x);
    sums[0] = dot_bytes(sums[0], weight[0], word);
    sums[1] = dot_bytes(sums[1], weight[1], word);
  }

  // Sixteen rows of sixteen words, `stride` bytes apart, become columns, `apart` bytes
  // apart; half their range is added to all integers. The rows are read in their order,
  // each once, as they may fall into one set of the cache.
  template <int kBits>
  static void turn(const uint8_t* rows, int64_t stride, uint8_t* out, int64_t apart) {
    I a[4][4];  // of four words of each row, rows i, i + 4, i + 8, i + 12
    each<16>([&](auto row) JCOMPRESS_INLINE {
      const uint8_t* from = rows + row * stride;
      each<4>([&](auto c) JCOMPRESS_INLINE {
        const __m128i four =
            _mm_loadu_si128(reinterpret_cast<const __m128i*>(from + 16 * c));
        constexpr __mmask16 kLanesOfRow = static_cast<__mmask16>(0xf << (row / 4 * 4));
        I& to = a[c][row % 4];
        to = row < 4 ? _mm512_castsi128_si512(four)
                     : _mm512_mask_broadcast_i32x4(to, kLanesOfRow, four);
      });
    });
    const I half = _mm512_set1_epi8(static_cast<char>(kBits == 8 ? 0x80 : 0x88));
    each<4>([&](auto c) JCOMPRESS_INLINE {
      const I low = _mm512_unpacklo_epi32(a[c][0], a[c][1]);
      const I high = _mm512_unpackhi_epi32(a[c][0], a[c][1]);
      const I low2 = _mm512_unpacklo_epi32(a[c][2], a[c][3]);
      const I high2 = _mm512_unpackhi_epi32(a[c][2], a[c][3]);
      const auto write = [&](int i, I words) {
        store(out + (4 * c + i) * apart, _mm512_xor_si512(words, half));
      };
      write(0, _mm512_unpacklo_epi64(low, low2));
      write(1, _mm512_unpackhi_epi64(low, low2));
      write(2, _mm512_unpacklo_epi64(high, high2));
      write(3, _mm512_unpackhi_epi64(high, high2));
    });
  }

  // Sixty-four integers in their order, plus half their range; no more than `bytes`
  // are read.
  template <int kBits>
  static I unpack(const uint8_t* p, int64_t bytes) {
    const uint64_t some = bytes < 64 ? (uint64_t{1} << bytes) - 1 : ~uint64_t{0};
    if constexpr (kBits == 8) {
      return Format<8>::template decode<0>(_mm512_maskz_loadu_epi8(some, p));
    } else if constexpr (kBits == 4) {
      const __m256i raw = _mm256_maskz_loadu_epi8(static_cast<__mmask32>(some), p);
      const I wide = _mm512_cvtepu8_epi16(raw);
      const I both = _mm512_or_si512(wide, _mm512_slli_epi16(wide, 4));
      return _mm512_xor_si512(_mm512_and_si512(both, _mm512_set1_epi8(15)),
                              _mm512_set1_epi8(8));
    } else if constexpr (kBits == 2) {
      const __m128i raw = _mm_maskz_loadu_epi8(static_cast<__mmask16>(some), p);
      const I wide = _mm512_cvtepu8_epi32(raw);
      const I two = _mm512_or_si512(wide, _mm512_slli_epi32(wide, 6));
      const I all = _mm512_or_si512(two, _mm512_slli_epi32(two, 12));
      return _mm512_xor_si512(_mm512_and_si512(all, _mm512_set1_epi8(3)),
                              _mm512_set1_epi8(2));
    } else {
      const __mmask32 few = static_cast<__mmask32>(some) & 0xffffffu;
      return Format<3>::template decode<0>(
          _mm512_castsi256_si512(_mm256_maskz_loadu_epi8(few, p)));
    }
  }

  static I lane_groups(int groups) {
    const __m512i lane = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13,
                                           14, 15);
    return _mm512_srli_epi32(_mm512_mullo_epi32(lane, _mm512_set1_epi32(groups)), 4);
  }
  static F scale_lanes(const float* scales, int count, I index) {
    const __mmask16 mask = static_cast<__mmask16>((1u << count) - 1);
    return _mm512_permutexvar_ps(index, _mm512_maskz_loadu_ps(mask, scales));
  }
  static I zero_lanes(const int8_t* zeros, int count, I index, int offset) {
    const __mmask16 mask = static_cast<__mmask16>((1u << count) - 1);
    const __m128i few = _mm_maskz_loadu_epi8(mask, zeros);
    const I wide = _mm512_permutexvar_epi32(index, _mm512_cvtepi8_epi32(few));
    return _mm512_add_epi32(wide, _mm512_set1_epi32(offset));
  }
  static I minus_product(I a, I b) {
    return _mm512_sub_epi32(zero(), _mm512_mullo_epi32(a, b));
  }

  template <int kCount>
  static void add_sums(const I (&v)[kCount], int32_t* out) {
    if constexpr (kCount == 8) {
      add_sums<4>({v[0], v[1], v[2], v[3]}, out);
      add_sums<4>({v[4], v[5], v[6], v[7]}, out + 4);
    } else if constexpr (kCount == 4) {
      const I a = _mm512_add_epi32(_mm512_unpacklo_epi32(v[0], v[1]),
                                   _mm512_unpackhi_epi32(v[0], v[1]));
      const I b = _mm512_add_epi32(_mm512_unpacklo_epi32(v[2], v[3]),
                                   _mm512_unpackhi_epi32(v[2], v[3]));
      const I c = _mm512_add_epi32(_mm512_unpacklo_epi64(a, b),
                                   _mm512_unpackhi_epi64(a, b));
      const __m256i d = _mm256_add_epi32(_mm512_castsi512_si256(c),
                                         _mm512_extracti64x4_epi64(c, 1));
      const __m128i e = _mm_add_epi32(_mm256_castsi256_si128(d),
                                      _mm256_extracti128_si256(d, 1));
      __m128i* to = reinterpret_cast<__m128i*>(out);
      _mm_storeu_si128(to, _mm_add_epi32(_mm_loadu_si128(to), e));
    } else {
      for (int n = 0; n < kCount; ++n) out[n] += _mm512_reduce_add_epi32(v[n]);
    }
  }
  template <int kCount>
  static void add_totals(const F (&v)[kCount], float* out) {
    if constexpr (kCount == 8) {
      add_totals<4>({v[0], v[1], v[2], v[3]}, out);
      add_totals<4>({v[4], v[5], v[6], v[7]}, out + 4);
    } else if constexpr (kCount == 4) {
      const F a = _mm512_add_ps(_mm512_unpacklo_ps(v[0], v[1]),
                                _mm512_unpackhi_ps(v[0], v[1]));
      const F b = _mm512_add_ps(_mm512_unpacklo_ps(v[2], v[3]),
                                _mm512_unpackhi_ps(v[2], v[3]));
      const __m512d lo = _mm512_unpacklo_pd(_mm512_castps_pd(a), _mm512_castps_pd(b));
      const __m512d hi = _mm512_unpackhi_pd(_mm512_castps_pd(a), _mm512_castps_pd(b));
      const F c = _mm512_add_ps(_mm512_castpd_ps(lo), _mm512_castpd_ps(hi));
      const __m256 d = _mm256_add_ps(
          _mm512_castps512_ps256(c),
          _mm256_castpd_ps(_mm512_extractf64x4_pd(_mm512_castps_pd(c), 1)));
      const __m128 e = _mm_add_ps(_mm256_castps256_ps128(d), _mm256_extractf128_ps(d, 1));
      _mm_storeu_ps(out, _mm_add_ps(_mm_loadu_ps(out), e));
    } else {
      for (int n = 0; n < kCount; ++n) out[n] += _mm512_reduce_add_ps(v[n]);
    }
  }

  // Weights become unsigned, by an offset of half their range, as the instruction wants.
  template <int kBits>
  struct Format {
    static constexpr int kParts = kBits == 4 ? 2 : kBits == 2 ? 4 : 1;
    static constexpr int kPartInputs = 64;
    static constexpr int kOffset = 1 << (kBits - 1);

    static I load(const uint8_t* p) {
      if constexpr (kBits == 3) {
        return _mm512_castsi256_si512(_mm256_maskz_loadu_epi8(0xffffffu, p));
      } else {
        return _mm512_loadu_si512(p);
      }
    }
    template <int kPart>
    static I decode(I raw) {
      if constexpr (kBits == 8) {
        return _mm512_xor_si512(raw, _mm512_set1_epi8(static_cast<char>(0x80)));
      } else if constexpr (kBits == 4) {
        const I flipped = _mm512_xor_si512(raw, _mm512_set1_epi8(static_cast<char>(0x88)));
        return _mm512_and_si512(kPart ? _mm512_srli_epi16(flipped, 4) : flipped,
                                _mm512_set1_epi8(15));
      } else if constexpr (kBits == 2) {
        const I flipped = _mm512_xor_si512(raw, _mm512_set1_epi8(static_cast<char>(0xaa)));
        return _mm512_and_si512(kPart ? _mm512_srli_epi16(flipped, 2 * kPart) : flipped,
                                _mm512_set1_epi8(3));
      } else {
        return _mm512_xor_si512(triples(raw), _mm512_set1_epi8(4));
      }
    }
    static I dot(I sums, I weight, I x) { return dot_bytes(sums, weight, x); }

   private:
    // Sixty-four 3-bit integers from 24 bytes.
    static I triples(I raw) {
#if defined(__AVX512VBMI__)
      const I spread = _mm512_setr_epi64(0x020100, 0x050403, 0x080706, 0x0b0a09, 0x0e0d0c,
                                         0x11100f, 0x141312, 0x171615);
      const I shifts = _mm512_set1_epi64(0x15120f0c09060300);
      const I eights = _mm512_permutexvar_epi8(spread, raw);
      return _mm512_and_si512(_mm512_multishift_epi64_epi8(shifts, eights),
                              _mm512_set1_epi8(7));
#else
      alignas(64) uint8_t in[64], out[64];
      _mm512_store_si512(in, raw);
      for (int i = 0; i < 8; ++i) {
        const uint32_t word = in[3 * i] | in[3 * i + 1] << 8 | in[3 * i + 2] << 16;
        for (int j = 0; j < 8; ++j) out[8 * i + j] = (word >> (3 * j)) & 7;
      }
      return _mm512_load_si512(out);
#endif
    }
  };
};

}  // namespace
}  // namespace jcompress
