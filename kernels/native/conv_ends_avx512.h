// From the sums of a convolution to its results, by AVX-512.
#pragma once

#include <immintrin.h>

#include <algorithm>
#include <cstring>

#include "conv_direct.h"
#include "conv_linear_avx512.h"
#include "conv_rows.h"
#include "epilogue.h"
#include "rows.h"
#include "unrolled.h"
#include "vector_avx512.h"

namespace jcompress {
namespace {

constexpr int kLanes = ConvBlock::kLanes;

inline __mmask16 some16(int64_t count) {
  return count >= 16 ? 0xffff : static_cast<__mmask16>((1u << std::max<int64_t>(0, count)) - 1);
}

// Sums written down, [row][64].
struct StoreSums {
  int32_t* out;

  template <int kVectors>
  [[gnu::always_inline]] void operator()(Number<kVectors>, int row,
                                         const __m512i (&sums)[4]) const {
    each<kVectors>([&](auto v) JCOMPRESS_INLINE {
      _mm512_store_si512(out + row * ConvBlock::kOutputs + v * kLanes, sums[v]);
    });
  }
};

// Results written down as integers, `stride` bytes from row to row.
struct StoreLinear {
  const LinearEnd& end;
  const ConvLinear& numbers;
  int count;
  int64_t stride;
  int64_t at;
  int8_t* out;

  template <int kVectors>
  [[gnu::always_inline]] void operator()(Number<kVectors>, int row,
                                         const __m512i (&sums)[4]) const {
    const int64_t start = at + row * stride;
    __m512i q[4];
    each<4>([&](auto v) JCOMPRESS_INLINE {
      if constexpr (v >= kVectors) {
        q[v] = _mm512_setzero_si512();
      } else if (end.addend) {
        const __m128i more = load_some(end.addend + start + v * kLanes, count - v * kLanes);
        q[v] = end.rounded(sums[v], numbers, v, more);
      } else {
        q[v] = end.rounded(sums[v], numbers, v);
      }
    });
    const __m512i bytes = in_order(end.bytes(q));
    if constexpr (kVectors == 1) {
      if (count == kLanes) {
        _mm_storeu_si128(reinterpret_cast<__m128i*>(out + start), _mm512_castsi512_si128(bytes));
        return;
      }
    }
    store_bytes(out + start, bytes, count);
  }
};

struct Rounding {
  __m512 inverse, zero, low, high;

  Rounding(float by, float at, int bits, bool symmetric) {
    const float top = static_cast<float>((1 << (bits - 1)) - 1);
    inverse = _mm512_set1_ps(by);
    zero = _mm512_set1_ps(at);
    high = _mm512_set1_ps(top);
    low = _mm512_set1_ps(symmetric ? -top : -top - 1.0f);
  }

  // What is no number becomes the lowest.
  [[gnu::always_inline]] __m128i operator()(__m512 x) const {
    constexpr int kNearest = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
    const __m512 whole = _mm512_roundscale_ps(_mm512_mul_ps(x, inverse), kNearest);
    const __m512 within = _mm512_min_ps(_mm512_max_ps(_mm512_add_ps(whole, zero), low), high);
    return _mm512_cvtepi32_epi8(_mm512_cvttps_epi32(within));
  }
};

// Stores some lanes without a mask, which takes much longer.
[[gnu::always_inline]] inline void store_some(const ConvEnd& end, const Rounding& rounding,
                                              int64_t at, int64_t count, __m512 y) {
  if (end.integers) {
    const __m128i bytes = rounding(y);
    if (count >= kLanes) {
      _mm_storeu_si128(reinterpret_cast<__m128i*>(end.integers + at), bytes);
    } else {
      std::memcpy(end.integers + at, &bytes, static_cast<size_t>(count));
    }
  } else if (count >= kLanes) {
    _mm512_storeu_ps(end.floats + at, y);
  } else {
    std::memcpy(end.floats + at, &y, static_cast<size_t>(count) * sizeof(float));
  }
}

// Results of some positions of one image: see `finish_conv`. The sums are of images that
// have 128 more.
template <Function kFunction>
[[gnu::always_inline]] inline void finish_image(const Ends& rows, const int32_t* sums,
                                                float image_scale, int32_t zero,
                                                int64_t start, int64_t count) {
  const __m512 scale = _mm512_set1_ps(image_scale);
  const int32_t shift = 128 + zero;
  const ConvBlock& b = rows.block;
  const ConvEnd& end = rows.end;
  const Rounding rounding(end.y_inverse, end.y_zero, end.y_bits, end.y_symmetric);
  const __m512 addend_scale = _mm512_set1_ps(end.addend_scale);
  const __m512 addend_zero = _mm512_set1_ps(end.addend_zero);
  for (int64_t n = 0; n < b.count; n += kLanes) {
    const int64_t here = std::min<int64_t>(kLanes, b.count - n);
    const __mmask16 some = some16(here);
    const __m512i less =
        _mm512_mullo_epi32(_mm512_set1_epi32(shift), _mm512_loadu_si512(b.sums + n));
    const __m512 by = _mm512_maskz_loadu_ps(some, rows.weight.scales + b.first + n);
    const __m512 bias = end.bias ? _mm512_maskz_loadu_ps(some, end.bias + b.first + n)
                                 : _mm512_setzero_ps();
    for (int64_t i = 0; i < count; ++i) {
      const int64_t at = start + i * rows.weight.outputs + n;
      const __m512i sum =
          _mm512_sub_epi32(_mm512_load_si512(sums + i * ConvBlock::kOutputs + n), less);
      __m512 y = _mm512_mul_ps(_mm512_mul_ps(_mm512_cvtepi32_ps(sum), scale), by);
      y = _mm512_add_ps(y, bias);
      if (end.addend_integers) {
        const __m512 more = _mm512_cvtepi32_ps(
            _mm512_cvtepi8_epi32(load_some(end.addend_integers + at, here)));
        y = _mm512_add_ps(y, _mm512_mul_ps(_mm512_sub_ps(more, addend_zero), addend_scale));
      } else if (end.addend) {
        y = _mm512_add_ps(y, _mm512_maskz_loadu_ps(some, end.addend + at));
      }
      y = (__m512)apply<WideFloats, kFunction>((WideFloats::F)y);
      if (end.residual) {
        y = _mm512_add_ps(y, _mm512_maskz_loadu_ps(some, end.residual + at));
      }
      store_some(end, rounding, at, here, y);
    }
  }
}

struct WideEnd {
  template <Function kFunction>
  static void finish(const Ends& rows, const int32_t* sums, float scale, int32_t zero,
                     int64_t start, int64_t count) {
    finish_image<kFunction>(rows, sums, scale, zero, start, count);
  }
};

inline Finish finish_of(Function function) { return finish_by<WideEnd>(function); }

}  // namespace
}  // namespace jcompress
