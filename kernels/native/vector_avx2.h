// Vectors of AVX2; with AVX-VNNI, products of bytes are summed in one instruction.
#pragma once

#include <immintrin.h>

#include <cmath>
#include <cstdint>
#include <cstring>

#include "unrolled.h"

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

  alignas(32) static constexpr int16_t kOnes[16] = {1, 1, 1, 1, 1, 1, 1, 1,
                                                    1, 1, 1, 1, 1, 1, 1, 1};

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
  static constexpr bool kStrips = false;
  // Whether exact sums take all parts of a step of one output at a time.
  static constexpr bool kPartsTogether = false;
#else
  static constexpr bool kStrips = true;
  static constexpr bool kPartsTogether = true;
#endif
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

  // Eight rows of eight pairs of bytes in each half become columns.
  static void turn_pairs(I (&rows)[8]) {
    I a[8], b[8];
    each<4>([&](auto i) JCOMPRESS_INLINE {
      a[2 * i] = _mm256_unpacklo_epi16(rows[2 * i], rows[2 * i + 1]);
      a[2 * i + 1] = _mm256_unpackhi_epi16(rows[2 * i], rows[2 * i + 1]);
    });
    each<2>([&](auto half) JCOMPRESS_INLINE {
      each<2>([&](auto j) JCOMPRESS_INLINE {
        constexpr int kAt = 4 * half;
        b[kAt + 2 * j] = _mm256_unpacklo_epi32(a[kAt + j], a[kAt + 2 + j]);
        b[kAt + 2 * j + 1] = _mm256_unpackhi_epi32(a[kAt + j], a[kAt + 2 + j]);
      });
    });
    each<4>([&](auto c) JCOMPRESS_INLINE {
      rows[2 * c] = _mm256_unpacklo_epi64(b[c], b[4 + c]);
      rows[2 * c + 1] = _mm256_unpackhi_epi64(b[c], b[4 + c]);
    });
  }

  // ---- Of strips: see panel_strips.h. Two products of bytes may exceed 16 bits, so that
  // rows are of 16 bits and weights are widened as they are read.
  using Cell = int16_t;
  static constexpr int kStripRows = 6;   // 12 sums, 2 vectors of weights, 2 of data
  static constexpr int kStepInputs = 2;  // that are multiplied together
  static constexpr int kStripBytes = 16;  // of a vector of a step
  static constexpr bool kSigned = true;  // the weights' integers are as they are

  static I load_strip(const uint8_t* p) {
    return _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  }
  static I load_halves(const void* low, const void* high) {
    return _mm256_set_m128i(_mm_loadu_si128(static_cast<const __m128i*>(high)),
                            _mm_loadu_si128(static_cast<const __m128i*>(low)));
  }
  // As intrinsics they make GCC 12 keep sums in memory.
  static void dot_step(I (&sums)[2], const I (&weight)[2], const Cell* x) {
    using Pair = int32_t __attribute__((may_alias, aligned(1)));
    I pair, products;
    __asm__(
        "vpbroadcastd %4, %2\n\t"
        "vpmaddwd %5, %2, %3\n\t"
        "vpmaddwd %6, %2, %2\n\t"
        "vpaddd %3, %0, %0\n\t"
        "vpaddd %2, %1, %1"
        : "+x"(sums[0]), "+x"(sums[1]), "=&x"(pair), "=&x"(products)
        : "m"(*reinterpret_cast<const Pair*>(x)), "x"(weight[0]), "x"(weight[1]));
  }
  static I broadcast_word(int32_t x) { return _mm256_set1_epi32(x); }
  static void store(void* p, I x) { _mm256_storeu_si256(static_cast<__m256i*>(p), x); }
  static I multiply(I a, I b) { return _mm256_mullo_epi32(a, b); }
  static I subtract(I a, I b) { return _mm256_sub_epi32(a, b); }
  static F to_float(I x) { return _mm256_cvtepi32_ps(x); }
  static F add(F a, F b) { return _mm256_add_ps(a, b); }
  static F times(F a, F b) { return _mm256_mul_ps(a, b); }

  // Of weights of at most four bits: pairs of products with four bytes of a row, in 16 bits.
  static void start_bytes(I (&pairs)[2], const I (&weight)[2], const int8_t* x) {
    const I row = load_word(x);
    for (int v = 0; v < 2; ++v) pairs[v] = _mm256_maddubs_epi16(weight[v], row);
  }
  static void add_bytes(I (&pairs)[2], const I (&weight)[2], const int8_t* x) {
    using Word = int32_t __attribute__((may_alias, aligned(1)));
    I row, products;
    __asm__(
        "vpbroadcastd %4, %2\n\t"
        "vpmaddubsw %2, %5, %3\n\t"
        "vpmaddubsw %2, %6, %2\n\t"
        "vpaddw %3, %0, %0\n\t"
        "vpaddw %2, %1, %1"
        : "+x"(pairs[0]), "+x"(pairs[1]), "=&x"(row), "=&x"(products)
        : "m"(*reinterpret_cast<const Word*>(x)), "x"(weight[0]), "x"(weight[1]));
  }
  static I sum_pairs(I pairs) { return _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)); }
  static I load_word(const void* p) {
    int32_t word;
    std::memcpy(&word, p, 4);
    return _mm256_set1_epi32(word);
  }
  // Sixty-four integers of four bits in their order, plus half their range.
  static void unpack_nibbles(const uint8_t* from, uint8_t* out) {
    const __m128i low = _mm_set1_epi8(15), half = _mm_set1_epi8(8);
    for (int i = 0; i < 2; ++i) {
      const __m128i raw = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from + 16 * i));
      const __m128i even = _mm_xor_si128(_mm_and_si128(raw, low), half);
      const __m128i odd = _mm_xor_si128(_mm_and_si128(_mm_srli_epi16(raw, 4), low), half);
      __m128i* to = reinterpret_cast<__m128i*>(out + 32 * i);
      _mm_storeu_si128(to, _mm_unpacklo_epi8(even, odd));
      _mm_storeu_si128(to + 1, _mm_unpackhi_epi8(even, odd));
    }
  }
  static I plus(I a, I b) { return _mm256_add_epi32(a, b); }

  // The sum of signed bytes.
  static int32_t sum_bytes(const int8_t* q, int64_t count) {
    int32_t sum = 0;
    for (int64_t i = 0; i < count; ++i) sum += q[i];
    return sum;
  }
  // The largest absolute value, as `largest` in rows.h.
  static float largest(const float* x, int64_t count) {
    const I magnitude = _mm256_set1_epi32(0x7fffffff);
    I top[2] = {zero(), zero()};
    int64_t i = 0;
    for (; i + 16 <= count; i += 16) {
      for (int j = 0; j < 2; ++j) {
        top[j] = _mm256_max_epi32(top[j], _mm256_and_si256(load(x + i + 8 * j), magnitude));
      }
    }
    alignas(32) uint32_t words[8];
    store(words, _mm256_max_epi32(top[0], top[1]));
    uint32_t most = 0;
    for (uint32_t word : words) most = word > most ? word : most;
    for (; i < count; ++i) {
      uint32_t word;
      std::memcpy(&word, x + i, 4);
      word &= 0x7fffffffu;
      most = word > most ? word : most;
    }
    float width;
    std::memcpy(&width, &most, 4);
    return width;
  }
  // The integers of the steps of x, as `round_row` in rows.h: what is no number becomes
  // the lowest.
  static void round(const float* x, int64_t count, float inverse, int bits,
                    const float* zero, int8_t* q) {
    const float most = static_cast<float>((1 << (bits - 1)) - 1);
    const F high = broadcast(most), low = broadcast(zero ? -most - 1.0f : -most);
    const F factor = broadcast(inverse), point = broadcast(zero ? *zero : 0.0f);
    for (int64_t i = 0; i < count; i += 8) {
      const int64_t here = count - i < 8 ? count - i : 8;
      F numbers = zero_float();
      if (here == 8) {
        numbers = _mm256_loadu_ps(x + i);
      } else {
        std::memcpy(&numbers, x + i, static_cast<size_t>(here) * sizeof(float));
      }
      F steps = _mm256_round_ps(_mm256_mul_ps(numbers, factor), 0x08);
      if (zero) steps = _mm256_add_ps(steps, point);
      const I words = _mm256_cvtps_epi32(_mm256_max_ps(_mm256_min_ps(high, steps), low));
      const __m128i halves =
          _mm_packs_epi32(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
      const int64_t bytes = _mm_cvtsi128_si64(_mm_packs_epi16(halves, halves));
      std::memcpy(q + i, &bytes, static_cast<size_t>(here));
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
    } else if constexpr (kCount == 2) {
      const I a = _mm256_hadd_epi32(v[0], v[1]);
      __m128i d = _mm_add_epi32(_mm256_castsi256_si128(a), _mm256_extracti128_si256(a, 1));
      d = _mm_hadd_epi32(d, d);
      _mm_storeu_si64(out, _mm_add_epi32(_mm_loadu_si64(out), d));
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
#if !defined(__AVXVNNI__)
    // All parts of a step; those of a part lie `apart` bytes from those of the one before.
    // As intrinsics they make GCC 12 keep sums in memory.
    static void dot_parts(I& sums, const I (&weights)[kParts], const int8_t* x, int64_t apart) {
      const auto vector = [&](int part) JCOMPRESS_INLINE -> const __m256i_u& {
        return *reinterpret_cast<const __m256i_u*>(x + part * apart);
      };
      I first, next;
      if constexpr (kWide) {
        each<kParts>([&](auto part) JCOMPRESS_INLINE {
          __asm__(
              "vpmaddwd %3, %2, %1\n\t"
              "vpaddd %1, %0, %0"
              : "+x"(sums), "=&x"(first)
              : "x"(weights[part]), "m"(vector(part)));
        });
      } else {
        // Sixteen bits hold the sums of products of four numbers of 4 bits, of eight of 2.
        __asm__("vpmaddubsw %2, %1, %0" : "=x"(first) : "x"(weights[0]), "m"(vector(0)));
        each<kParts - 1>([&](auto part) JCOMPRESS_INLINE {
          __asm__(
              "vpmaddubsw %3, %2, %1\n\t"
              "vpaddw %1, %0, %0"
              : "+x"(first), "=&x"(next)
              : "x"(weights[part + 1]), "m"(vector(part + 1)));
        });
        __asm__(
            "vpmaddwd %2, %1, %1\n\t"
            "vpaddd %1, %0, %0"
            : "+x"(sums), "+x"(first)
            : "m"(kOnes));
      }
    }
#endif
  };
};

}  // namespace
}  // namespace jcompress
