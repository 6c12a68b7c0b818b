// Square matrices of floats in registers, turned.
#pragma once

#include "sparse_floats.h"
#include "unrolled.h"

namespace jcompress {
namespace {

#if defined(__AVX512F__)
inline void transpose(__m512 (&x)[16]) {
  __m512 y[16];
  each<8>([&](auto i) JCOMPRESS_INLINE {
    y[2 * i] = _mm512_unpacklo_ps(x[2 * i], x[2 * i + 1]);
    y[2 * i + 1] = _mm512_unpackhi_ps(x[2 * i], x[2 * i + 1]);
  });
  each<4>([&](auto i) JCOMPRESS_INLINE {
    each<2>([&](auto j) JCOMPRESS_INLINE {
      const __m512d a = _mm512_castps_pd(y[4 * i + j]);
      const __m512d b = _mm512_castps_pd(y[4 * i + 2 + j]);
      x[4 * i + 2 * j] = _mm512_castpd_ps(_mm512_unpacklo_pd(a, b));
      x[4 * i + 2 * j + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(a, b));
    });
  });
  // Now x[4 i + j] holds columns j, j + 4, j + 8, j + 12 of rows 4 i to 4 i + 3.
  each<4>([&](auto j) JCOMPRESS_INLINE {
    const __m512 a = _mm512_shuffle_f32x4(x[j], x[j + 4], 0x88);
    const __m512 b = _mm512_shuffle_f32x4(x[j], x[j + 4], 0xdd);
    const __m512 c = _mm512_shuffle_f32x4(x[j + 8], x[j + 12], 0x88);
    const __m512 d = _mm512_shuffle_f32x4(x[j + 8], x[j + 12], 0xdd);
    y[j] = _mm512_shuffle_f32x4(a, c, 0x88);
    y[j + 4] = _mm512_shuffle_f32x4(b, d, 0x88);
    y[j + 8] = _mm512_shuffle_f32x4(a, c, 0xdd);
    y[j + 12] = _mm512_shuffle_f32x4(b, d, 0xdd);
  });
  each<16>([&](auto i) JCOMPRESS_INLINE { x[i] = y[i]; });
}
#endif

#if defined(__AVX2__)
inline void transpose(__m256 (&x)[8]) {
  __m256 y[8];
  each<4>([&](auto i) JCOMPRESS_INLINE {
    y[2 * i] = _mm256_unpacklo_ps(x[2 * i], x[2 * i + 1]);
    y[2 * i + 1] = _mm256_unpackhi_ps(x[2 * i], x[2 * i + 1]);
  });
  each<2>([&](auto i) JCOMPRESS_INLINE {
    each<2>([&](auto j) JCOMPRESS_INLINE {
      const __m256d a = _mm256_castps_pd(y[4 * i + j]);
      const __m256d b = _mm256_castps_pd(y[4 * i + 2 + j]);
      x[4 * i + 2 * j] = _mm256_castpd_ps(_mm256_unpacklo_pd(a, b));
      x[4 * i + 2 * j + 1] = _mm256_castpd_ps(_mm256_unpackhi_pd(a, b));
    });
  });
  each<4>([&](auto j) JCOMPRESS_INLINE {
    y[j] = _mm256_permute2f128_ps(x[j], x[j + 4], 0x20);
    y[j + 4] = _mm256_permute2f128_ps(x[j], x[j + 4], 0x31);
  });
  each<8>([&](auto i) JCOMPRESS_INLINE { x[i] = y[i]; });
}
#else
inline void transpose(Floats4::F (&x)[4]) {
  const Floats4::F a = x[0], b = x[1], c = x[2], d = x[3];
  for (int i = 0; i < 4; ++i) x[i] = Floats4::F{a[i], b[i], c[i], d[i]};
}
#endif

// `put(i, j, x)` for i < count with x the element i of the rows in vector j:
// `base[rows[n] + i * step]` for each of its lanes n.
template <class V, int kVectors, class T, class Put>
[[gnu::always_inline]] inline void turned(const T* base, const int64_t* rows,
                                          int64_t step, int64_t count, Put&& put) {
  constexpr int kLanes = V::kLanes;
  for (int j = 0; j < kVectors; ++j) {
    const int64_t* at = rows + j * kLanes;
    int64_t i = 0;
    if (step == 1) {
      for (; i + kLanes <= count; i += kLanes) {
        typename V::F x[kLanes];
        each<kLanes>([&](auto n) JCOMPRESS_INLINE { x[n] = V::from(base + at[n] + i); });
        transpose(x);
        each<kLanes>([&](auto n) JCOMPRESS_INLINE { put(i + n, j, x[n]); });
      }
    }
    for (; i < count; ++i) {
      float x[kLanes];
      for (int n = 0; n < kLanes; ++n) x[n] = base[at[n] + i * step];
      put(i, j, V::load(x));
    }
  }
}

}  // namespace
}  // namespace jcompress
