// Vectors of AVX2; with AVX-VNNI, products of bytes are summed in one instruction.
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>

namespace jcompress {
namespace {

struct Avx2 {
  using I = __m256i;
  using F = __m256;
  static constexpr int kBytes = 32;
  static constexpr int kLanes = 8;

  static constexpr int outputs(int rows, bool grouped) {
    if (!grouped) return rows <= 3 ? 4 : 2;
    return rows == 1 ? 4 : rows <= 3 ? 2 : 1;
  }

  static I zero() { return _mm256_setzero_si256(); }
  static F zero_float() { return _mm256_setzero_ps(); }
  static F broadcast(float x) { return _mm256_set1_ps(x); }
  static I load(const void* p) {
    return _mm256_loadu_si256(static_cast<const __m256i*>(p));
  }
  static I first(int32_t x) {
    return _mm256_zextsi128_si256(_mm_cvtsi32_si128(x));
  }
  static F add_scaled(F total, I sums, F scale) {
    return _mm256_fmadd_ps(_mm256_cvtepi32_ps(sums), scale, total);
  }

  // Of products of many rows.
  static constexpr bool kDealsSteps = false;
  static constexpr bool kIntegerPanels = false;
  static constexpr int kFloatOutputs = 6;
#if defined(__AVXVNNI__)
  static constexpr int64_t kFloatRows = 0, kGroupedFloatRows = 16;
#else
  static constexpr int64_t kFloatRows = 8, kGroupedFloatRows = 8;
#endif

  static F load_float(const float* p) { return _mm256_loadu_ps(p); }
  static void store_float(float* p, F x) { _mm256_storeu_ps(p, x); }
  static F fma(F a, F b, F c) { return _mm256_fmadd_ps(a, b, c); }
  static void transpose(float (&square)[8][8]) {
    I words[8];
    for (int i = 0; i < 8; ++i) words[i] = load(square[i]);
    transpose(words);
    for (int i = 0; i < 8; ++i) {
      _mm256_storeu_si256(reinterpret_cast<I*>(square[i]), words[i]);
    }
  }
  // Of words.
  static void transpose(I (&rows)[8]) {
    I a[8], b[8];
    for (int i = 0; i < 8; i += 2) {
      a[i] = _mm256_unpacklo_epi32(rows[i], rows[i + 1]);
      a[i + 1] = _mm256_unpackhi_epi32(rows[i], rows[i + 1]);
    }
    for (int i = 0; i < 8; i += 4) {
      for (int j = 0; j < 2; ++j) {
        b[i + 2 * j] = _mm256_unpacklo_epi64(a[i + j], a[i + 2 + j]);
        b[i + 2 * j + 1] = _mm256_unpackhi_epi64(a[i + j], a[i + 2 + j]);
      }
    }
    // Now b[4 r + c] holds the columns c and c + 4 of the rows 4 r to 4 r + 3.
    for (int c = 0; c < 4; ++c) {
      rows[c] = _mm256_permute2x128_si256(b[c], b[4 + c], 0x20);
      rows[c + 4] = _mm256_permute2x128_si256(b[c], b[4 + c], 0x31);
    }
  }

  static I lane_groups(int groups) {
    const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    return _mm256_srli_epi32(_mm256_mullo_epi32(lane, _mm256_set1_epi32(groups)), 3);
  }
  static F scale_lanes(const float* scales, int count, I index) {
    const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    const __m256i mask = _mm256_cmpgt_epi32(_mm256_set1_epi32(count), lane);
    return _mm256_permutevar8x32_ps(_mm256_maskload_ps(scales, mask), index);
  }
  static I zero_lanes(const int8_t* zeros, int count, I index, int offset) {
    int64_t few = 0;
    std::memcpy(&few, zeros, count);
    const I wide = _mm256_cvtepi8_epi32(_mm_cvtsi64_si128(few));
    return _mm256_add_epi32(_mm256_permutevar8x32_epi32(wide, index),
                            _mm256_set1_epi32(offset));
  }
  static I minus_product(I a, I b) {
    return _mm256_sub_epi32(zero(), _mm256_mullo_epi32(a, b));
  }

  template <int kCount>
  static void add_sums(const I (&v)[kCount], int32_t* out) {
    if constexpr (kCount == 4) {
      const I a = _mm256_hadd_epi32(v[0], v[1]);
      const I b = _mm256_hadd_epi32(v[2], v[3]);
      const I c = _mm256_hadd_epi32(a, b);
      const __m128i d = _mm_add_epi32(_mm256_castsi256_si128(c),
                                      _mm256_extracti128_si256(c, 1));
      __m128i* to = reinterpret_cast<__m128i*>(out);
      _mm_storeu_si128(to, _mm_add_epi32(_mm_loadu_si128(to), d));
    } else {
      for (int n = 0; n < kCount; ++n) {
        __m128i d = _mm_add_epi32(_mm256_castsi256_si128(v[n]),
                                  _mm256_extracti128_si256(v[n], 1));
        d = _mm_hadd_epi32(d, d);
        d = _mm_hadd_epi32(d, d);
        out[n] += _mm_cvtsi128_si32(d);
      }
    }
  }
  template <int kCount>
  static void add_totals(const F (&v)[kCount], float* out) {
    for (int n = 0; n < kCount; ++n) {
      __m128 d = _mm_add_ps(_mm256_castps256_ps128(v[n]), _mm256_extractf128_ps(v[n], 1));
      d = _mm_hadd_ps(d, d);
      d = _mm_hadd_ps(d, d);
      out[n] += _mm_cvtss_f32(d);
    }
  }

  template <int kBits>
  struct Format {
#if defined(__AVXVNNI__)
    static constexpr bool kWide = false;
#else
    // Pairs of products of bytes may exceed 16 bits: whole bytes are widened first.
    static constexpr bool kWide = kBits == 8;
#endif
    static constexpr int kParts = kWide || kBits == 4 ? 2 : kBits == 2 ? 4 : 1;
    static constexpr int kPartInputs = kWide ? 16 : 32;
    static constexpr int kOffset = kWide ? 0 : 1 << (kBits - 1);
    static constexpr int kStepBytes = kParts * kPartInputs * kBits / 8;

    static I load(const uint8_t* p) {
      if constexpr (kStepBytes == 32) {
        return Avx2::load(p);
      } else {
        alignas(32) uint8_t part[32] = {};
        std::memcpy(part, p, kStepBytes);
        return Avx2::load(part);
      }
    }
    template <int kPart>
    static I decode(I raw) {
      if constexpr (kWide) {
        return _mm256_srai_epi16(kPart ? raw : _mm256_slli_epi16(raw, 8), 8);
      } else if constexpr (kBits == 8) {
        return _mm256_xor_si256(raw, _mm256_set1_epi8(static_cast<char>(0x80)));
      } else if constexpr (kBits == 4) {
        const I flipped = _mm256_xor_si256(raw, _mm256_set1_epi8(static_cast<char>(0x88)));
        return _mm256_and_si256(kPart ? _mm256_srli_epi16(flipped, 4) : flipped,
                                _mm256_set1_epi8(15));
      } else if constexpr (kBits == 2) {
        const I flipped = _mm256_xor_si256(raw, _mm256_set1_epi8(static_cast<char>(0xaa)));
        return _mm256_and_si256(kPart ? _mm256_srli_epi16(flipped, 2 * kPart) : flipped,
                                _mm256_set1_epi8(3));
      } else {
        alignas(32) uint8_t in[32], out[32];
        _mm256_store_si256(reinterpret_cast<__m256i*>(in), raw);
        for (int i = 0; i < 4; ++i) {
          const uint32_t word = in[3 * i] | in[3 * i + 1] << 8 | in[3 * i + 2] << 16;
          for (int j = 0; j < 8; ++j) out[8 * i + j] = ((word >> (3 * j)) & 7) ^ 4;
        }
        return Avx2::load(out);
      }
    }
    static I dot(I sums, I weight, I x) {
#if defined(__AVXVNNI__)
      return _mm256_dpbusd_avx_epi32(sums, weight, x);
#else
      if constexpr (kWide) {
        return _mm256_add_epi32(sums, _mm256_madd_epi16(weight, x));
      } else {
        const I pairs = _mm256_maddubs_epi16(weight, x);
        return _mm256_add_epi32(sums, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
      }
#endif
    }
  };
};

}  // namespace
}  // namespace jcompress
