// Vectors of floats: the types `V` that the sparse kernels are written over. Which are
// here depends on the flags that a translation unit is compiled with.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__AVX2__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#include "floats.h"

namespace jcompress {
namespace {

// For each byte of a mask: the place of each lane's value among those kept, 0x80 for a
// lane that keeps none.
struct KeptPlaces {
  uint8_t of[256][8];
  constexpr KeptPlaces() : of() {
    for (int mask = 0; mask < 256; ++mask) {
      uint8_t next = 0;
      for (int i = 0; i < 8; ++i) of[mask][i] = mask >> i & 1 ? next++ : 0x80;
    }
  }
};
[[maybe_unused]] constexpr KeptPlaces kKeptPlaces;

inline float float_of_stored(float x) { return x; }
inline float float_of_stored(uint16_t x) { return from_bf16(x); }
inline float float_of_stored(int8_t x) { return x; }

#if !defined(__AVX2__)
// Four floats, in the vector extensions of the compiler.
struct Floats4 {
  using F = float __attribute__((vector_size(16)));
  static constexpr int kLanes = 4;
  static constexpr int outputs(int rows) { return rows <= 3 ? 4 : rows <= 6 ? 2 : 1; }

  static F zero() { return F{}; }
  static F broadcast(float x) { return F{x, x, x, x}; }
  static F load(const float* p) {
    F v;
    std::memcpy(&v, p, sizeof(v));
    return v;
  }
  static void store(float* p, F v) { std::memcpy(p, &v, sizeof(v)); }
  static F fma(F a, F b, F sum) {
#if defined(__aarch64__)
    return (F)vfmaq_f32((float32x4_t)sum, (float32x4_t)a, (float32x4_t)b);
#else
    return sum + a * b;
#endif
  }
  static float sum(F v) { return (v[0] + v[2]) + (v[1] + v[3]); }
  template <class T>
  static F from(const T* p) {
    return F{float_of_stored(p[0]), float_of_stored(p[1]), float_of_stored(p[2]),
             float_of_stored(p[3])};
  }
  template <class T>
  static F expand(const T* p, uint32_t mask) {
    F v;
    for (int i = 0; i < 4; ++i) {
      const bool kept = mask >> i & 1;
      v[i] = kept ? float_of_stored(*p) : 0.0f;
      p += kept;
    }
    return v;
  }
  template <int kSpan>
  static F repeat(const float* p) {
    return F{p[0], p[1 % kSpan], p[2 % kSpan], p[3 % kSpan]};
  }
};
#else
struct Floats8 {
  using F = __m256;
  static constexpr int kLanes = 8;
#if defined(__AVX512F__)
  static constexpr int outputs(int rows) { return rows <= 4 ? 4 : 2; }
#else
  static constexpr int outputs(int rows) { return rows <= 3 ? 4 : rows <= 6 ? 2 : 1; }
#endif

  static F zero() { return _mm256_setzero_ps(); }
  static F broadcast(float x) { return _mm256_set1_ps(x); }
  static F load(const float* p) { return _mm256_loadu_ps(p); }
  static void store(float* p, F v) { _mm256_storeu_ps(p, v); }
  static F fma(F a, F b, F sum) { return _mm256_fmadd_ps(a, b, sum); }
  static float sum(F v) {
    __m128 d = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    d = _mm_hadd_ps(d, d);
    d = _mm_hadd_ps(d, d);
    return _mm_cvtss_f32(d);
  }
  static F from(const float* p) { return _mm256_loadu_ps(p); }
  static F from(const uint16_t* p) {
    const __m128i half = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(half), 16));
  }
  static F from(const int8_t* p) {
    const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(p));
    return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes));
  }
  template <class T>
  static F expand(const T* p, uint32_t mask) {
    const __m128i places =
        _mm_loadl_epi64(reinterpret_cast<const __m128i*>(kKeptPlaces.of[mask]));
    if constexpr (sizeof(T) == 1) {
      const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(p));
      const __m128i put = _mm_shuffle_epi8(bytes, places);
      return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(put));
    } else {
      const __m256i wide = _mm256_cvtepi8_epi32(places);
      const __m256 put = _mm256_permutevar8x32_ps(from(p), wide);
      const __m256i none = _mm256_srai_epi32(wide, 31);
      return _mm256_andnot_ps(_mm256_castsi256_ps(none), put);
    }
  }
  template <int kSpan>
  static F repeat(const float* p) {
    if constexpr (kSpan == 1) return _mm256_broadcast_ss(p);
    if constexpr (kSpan == 2) {
      return _mm256_castpd_ps(
          _mm256_broadcast_sd(reinterpret_cast<const double*>(p)));
    }
    return _mm256_broadcast_ps(reinterpret_cast<const __m128*>(p));
  }
  // The inputs of neighbouring blocks of one row and four columns.
  template <int kSpan>
  static F join(const float* x, const int32_t* columns) {
    static_assert(kSpan == 4);
    return _mm256_insertf128_ps(
        _mm256_castps128_ps256(_mm_loadu_ps(x + int64_t{4} * columns[0])),
        _mm_loadu_ps(x + int64_t{4} * columns[1]), 1);
  }
};
#endif

#if defined(__AVX512F__)
struct Floats16 {
  using F = __m512;
  static constexpr int kLanes = 16;
  static constexpr int outputs(int rows) { return rows <= 4 ? 4 : 2; }

  static F zero() { return _mm512_setzero_ps(); }
  static F broadcast(float x) { return _mm512_set1_ps(x); }
  static F load(const float* p) { return _mm512_loadu_ps(p); }
  static void store(float* p, F v) { _mm512_storeu_ps(p, v); }
  static F fma(F a, F b, F sum) { return _mm512_fmadd_ps(a, b, sum); }
  static float sum(F v) { return _mm512_reduce_add_ps(v); }
  static F from(const float* p) { return _mm512_loadu_ps(p); }
  static F from(const uint16_t* p) {
    const __m256i half = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
  }
  static F from(const int8_t* p) {
    const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(bytes));
  }
  template <class T>
  static F expand(const T* p, uint32_t mask) {
    return _mm512_maskz_expand_ps(static_cast<__mmask16>(mask), from(p));
  }
  template <int kSpan>
  static F repeat(const float* p) {
    if constexpr (kSpan == 1) return _mm512_set1_ps(*p);
    if constexpr (kSpan == 2) {
      double pair;
      std::memcpy(&pair, p, sizeof(pair));
      return _mm512_castpd_ps(_mm512_set1_pd(pair));
    }
    if constexpr (kSpan == 4) return _mm512_broadcast_f32x4(_mm_loadu_ps(p));
    return _mm512_broadcast_f32x8(_mm256_loadu_ps(p));
  }
  template <int kSpan>
  static F join(const float* x, const int32_t* columns) {
    if constexpr (kSpan == 4) {
      const __m256 low = Floats8::join<4>(x, columns);
      const __m256 high = Floats8::join<4>(x, columns + 2);
      return _mm512_insertf32x8(_mm512_castps256_ps512(low), high, 1);
    } else {
      return _mm512_insertf32x8(
          _mm512_castps256_ps512(_mm256_loadu_ps(x + int64_t{8} * columns[0])),
          _mm256_loadu_ps(x + int64_t{8} * columns[1]), 1);
    }
  }
};
#endif

// The widest vector of this translation unit, and one of about half a cache line.
#if defined(__AVX512F__)
using WideFloats = Floats16;
using FewFloats = Floats8;
#elif defined(__AVX2__)
using WideFloats = Floats8;
using FewFloats = Floats8;
#else
using WideFloats = Floats4;
using FewFloats = Floats4;
#endif

}  // namespace
}  // namespace jcompress
