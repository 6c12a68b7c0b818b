// Direct convolutions with AVX-512 VNNI. Outputs lie across the lanes, so that results
// come in the order of the images; of a position four neighbouring inputs are broadcast
// at a time and meet four inputs of sixteen outputs.
//
// The instruction multiplies unsigned with signed bytes: the activations get 128 more,
// which the sums of the weight take away again.

#include <immintrin.h>

#include <algorithm>
#include <cmath>
#include <cstring>

#include "conv_direct.h"
#include "epilogue.h"
#include "rows.h"
#include "unrolled.h"
#include "vector_avx512.h"

namespace jcompress {
namespace {

constexpr int kRows = 6;  // positions together: 24 sums, 4 vectors of weights, 1 of data
constexpr int kFewRows = static_cast<int>(ConvKernels::kFewRows);
constexpr int kLanes = ConvBlock::kLanes;

inline __m512i dot(__m512i sums, __m512i x, __m512i w) {
  return Avx512::dot_bytes(sums, x, w);
}

inline __mmask16 some16(int64_t count) {
  return count >= 16 ? 0xffff : static_cast<__mmask16>((1u << std::max<int64_t>(0, count)) - 1);
}

// ---- Weights ----

void pack(const ConvImages& g, const ConvBlock& b) {
  const int64_t run_quads = g.run_quads();
  const int vectors = b.vectors();
  for (int v = 0; v < vectors; ++v) {
    const int rows = std::min(kLanes, b.count - v * kLanes);
    const int8_t* values = b.values + v * kLanes * b.inputs;
    __m512i sums = _mm512_setzero_si512();
    const __m512i ones = _mm512_set1_epi8(1);
    for (int64_t run = 0; run < g.runs; ++run) {
      for (int64_t q = 0; q < run_quads; q += kLanes) {
        alignas(64) float square[kLanes][kLanes];
        const int64_t left = g.run_bytes - 4 * q;
        const __mmask64 some = left >= 64 ? ~__mmask64{0} : (__mmask64{1} << left) - 1;
        for (int r = 0; r < kLanes; ++r) {
          const __m512i row =
              r < rows ? _mm512_maskz_loadu_epi8(
                             some, values + r * b.inputs + run * g.run_bytes + 4 * q)
                       : _mm512_setzero_si512();
          _mm512_store_si512(square[r], row);
        }
        Avx512::transpose(square);
        const int64_t count = std::min<int64_t>(kLanes, run_quads - q);
        int8_t* to = b.packed + ((run * run_quads + q) * vectors + v) * 64;
        for (int64_t i = 0; i < count; ++i) {
          const __m512i four = _mm512_load_si512(square[i]);
          sums = dot(sums, ones, four);
          _mm512_store_si512(to + i * vectors * 64, four);
        }
      }
    }
    _mm512_storeu_si512(b.sums + v * kLanes, sums);
  }
}

// Sums in the order of `deal`, in which quarter i has the channels 4 i to 4 i + 3 of every
// sixteen, to the order of the channels.
[[gnu::always_inline]] inline void store_channels(const __m512i (&s)[4], int32_t* out) {
  const __m512i a = _mm512_shuffle_i32x4(s[0], s[1], 0x44);
  const __m512i b = _mm512_shuffle_i32x4(s[2], s[3], 0x44);
  const __m512i c = _mm512_shuffle_i32x4(s[0], s[1], 0xee);
  const __m512i d = _mm512_shuffle_i32x4(s[2], s[3], 0xee);
  _mm512_store_si512(out, _mm512_shuffle_i32x4(a, b, 0x88));
  _mm512_store_si512(out + 16, _mm512_shuffle_i32x4(a, b, 0xdd));
  _mm512_store_si512(out + 32, _mm512_shuffle_i32x4(c, d, 0x88));
  _mm512_store_si512(out + 48, _mm512_shuffle_i32x4(c, d, 0xdd));
}

// The taps t to t + 3 of channels, `taps` bytes apart; of fewer than four the rest is 0.
[[gnu::always_inline]] inline __m512i gather_taps(const int8_t* values, __m512i channels,
                                                  __mmask16 some, int64_t t,
                                                  int64_t taps) {
  const __m512i places =
      _mm512_mullo_epi32(channels, _mm512_set1_epi32(static_cast<int32_t>(taps)));
  const __m512i none = _mm512_setzero_si512();
  const int64_t missing = std::max<int64_t>(0, t + 4 - taps);
  const __m512i four =
      _mm512_mask_i32gather_epi32(none, some, places, values + t - missing, 1);
  return _mm512_srlv_epi32(four, _mm512_set1_epi32(static_cast<int32_t>(8 * missing)));
}

void pack_channels(const ConvImages& g, const ConvBlock& b) {
  const int64_t taps = g.runs;
  const __m512i ones = _mm512_set1_epi8(1);
  __m512i sums[4];
  each<4>([&](auto j) JCOMPRESS_INLINE {
    sums[j] = _mm512_setzero_si512();
    const __m512i channels = _mm512_add_epi32(
        _mm512_setr_epi32(0, 1, 2, 3, 16, 17, 18, 19, 32, 33, 34, 35, 48, 49, 50, 51),
        _mm512_set1_epi32(4 * j));
    const __mmask16 some = _mm512_cmplt_epi32_mask(channels, _mm512_set1_epi32(b.count));
    for (int64_t t = 0; t < taps; t += 4) {
      __m512i four;
      if (taps >= 4) {
        four = gather_taps(b.values, channels, some, t, taps);
      } else {
        alignas(64) int8_t bytes[64] = {};
        for (int i = 0; i < kLanes; ++i) {
          const int channel = i / 4 * 16 + 4 * j + i % 4;
          if (channel < b.count) std::memcpy(bytes + 4 * i, b.values + channel * taps, taps);
        }
        four = _mm512_load_si512(bytes);
      }
      sums[j] = dot(sums[j], ones, four);
      _mm512_store_si512(b.packed + (t + j) * 64, four);
    }
  });
  store_channels(sums, b.sums);
}

// ---- Sums ----

// Sums of a few positions with the outputs of a block, [row][64].
template <int kHere, int kVectors>
[[gnu::noinline]] void add_rows(const ConvImages& g, const int8_t* const* rows,
                                const int8_t* w, int32_t* out) {
  __m512i sums[kHere][kVectors];
  each<kHere>([&](auto r) JCOMPRESS_INLINE {
    each<kVectors>([&](auto v) JCOMPRESS_INLINE { sums[r][v] = _mm512_setzero_si512(); });
  });
  const __m512i flip = _mm512_set1_epi8(static_cast<char>(0x80));
  const int64_t quads = g.run_quads();
  for (int64_t run = 0; run < g.runs; ++run) {
    const int8_t* x[kHere];
    each<kHere>([&](auto r) JCOMPRESS_INLINE { x[r] = rows[r] + g.offsets[run]; });
    for (int64_t q = 0; q < quads; ++q) {
      __m512i weight[kVectors];
      each<kVectors>([&](auto v) JCOMPRESS_INLINE {
        weight[v] = _mm512_load_si512(w + v * 64);
      });
      w += kVectors * 64;
      each<kHere>([&](auto r) JCOMPRESS_INLINE {
        const __m512i data = _mm512_xor_si512(Avx512::load_word(x[r] + 4 * q), flip);
        each<kVectors>([&](auto v) JCOMPRESS_INLINE {
          sums[r][v] = dot(sums[r][v], data, weight[v]);
        });
      });
    }
  }
  each<kHere>([&](auto r) JCOMPRESS_INLINE {
    each<kVectors>([&](auto v) JCOMPRESS_INLINE {
      _mm512_store_si512(out + r * ConvBlock::kOutputs + v * kLanes, sums[r][v]);
    });
  });
}

using AddRows = void (*)(const ConvImages&, const int8_t* const*, const int8_t*, int32_t*);

template <int kVectors>
AddRows rows_of(int here) {
  switch (here) {
    case 1:
      return add_rows<1, kVectors>;
    case 2:
      return add_rows<2, kVectors>;
    case 3:
      return add_rows<3, kVectors>;
    case 4:
      return add_rows<4, kVectors>;
    case 5:
      return add_rows<5, kVectors>;
    default:
      return add_rows<6, kVectors>;
  }
}

AddRows rows_of(int here, int vectors) {
  switch (vectors) {
    case 1:
      return rows_of<1>(here);
    case 2:
      return rows_of<2>(here);
    case 3:
      return rows_of<3>(here);
    default:
      return rows_of<4>(here);
  }
}

// Four bytes of each of 64 channels together: quarter i gets the channels 4 i to 4 i + 3
// of every sixteen.
[[gnu::always_inline]] inline void deal(const __m512i (&taps)[4], __m512i (&out)[4]) {
  const __m512i low01 = _mm512_unpacklo_epi8(taps[0], taps[1]);
  const __m512i high01 = _mm512_unpackhi_epi8(taps[0], taps[1]);
  const __m512i low23 = _mm512_unpacklo_epi8(taps[2], taps[3]);
  const __m512i high23 = _mm512_unpackhi_epi8(taps[2], taps[3]);
  out[0] = _mm512_unpacklo_epi16(low01, low23);
  out[1] = _mm512_unpackhi_epi16(low01, low23);
  out[2] = _mm512_unpacklo_epi16(high01, high23);
  out[3] = _mm512_unpackhi_epi16(high01, high23);
}

// kTaps: as many, or 0 for any number.
template <int kTaps>
[[gnu::noinline]] void add_channels(const ConvImages& g, const int8_t* const* rows,
                                    int here, const int8_t* w, int32_t* out) {
  const __m512i flip = _mm512_set1_epi8(static_cast<char>(0x80));
  const int64_t taps = kTaps ? kTaps : g.runs;
  const auto fours = [&](auto&& four) JCOMPRESS_INLINE {
    if constexpr (kTaps > 0) {
      each<(kTaps + 3) / 4>([&](auto i) JCOMPRESS_INLINE { four(int64_t{i}); });
    } else {
      for (int64_t i = 0; 4 * i < taps; ++i) four(i);
    }
  };
  for (int row = 0; row < here; ++row) {
    const int8_t* x = rows[row];
    __m512i sums[4];
    each<4>([&](auto i) JCOMPRESS_INLINE { sums[i] = _mm512_setzero_si512(); });
    fours([&](int64_t i) JCOMPRESS_INLINE {
      __m512i in[4], dealt[4];
      each<4>([&](auto t) JCOMPRESS_INLINE {
        const int64_t tap = 4 * i + t;
        in[t] = tap < taps
                    ? _mm512_xor_si512(_mm512_loadu_si512(x + g.offsets[tap]), flip)
                    : _mm512_setzero_si512();
      });
      deal(in, dealt);
      each<4>([&](auto j) JCOMPRESS_INLINE {
        sums[j] = dot(sums[j], dealt[j], _mm512_load_si512(w + (4 * i + j) * 64));
      });
    });
    store_channels(sums, out + row * ConvBlock::kOutputs);
  }
}

// ---- Results ----

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

struct Ends {
  const ConvBlock& block;
  const ConvWeight& weight;
  const ConvEnd& end;
  const float* scale;  // of the images
  const float* zero;
  int64_t positions;
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

// Results of some positions of one image, from their sums; `start` is the place of the
// first of them.
template <Function kFunction>
[[gnu::always_inline]] inline void finish_image(const Ends& rows, const int32_t* sums,
                                                __m512 scale, int32_t shift,
                                                int64_t start, int64_t count) {
  const ConvBlock& b = rows.block;
  const ConvEnd& end = rows.end;
  const Rounding rounding(end.y_inverse, end.y_zero, end.y_bits, end.y_symmetric);
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
      if (end.addend) y = _mm512_add_ps(y, _mm512_maskz_loadu_ps(some, end.addend + at));
      y = (__m512)apply<WideFloats, kFunction>((WideFloats::F)y);
      if (end.residual) {
        y = _mm512_add_ps(y, _mm512_maskz_loadu_ps(some, end.residual + at));
      }
      store_some(end, rounding, at, here, y);
    }
  }
}

// Results of some positions, `first` counted through the images from `image0` on.
template <Function kFunction>
void finish_conv(const Ends& rows, const int32_t* sums, int64_t image0, int64_t first,
                 int64_t count) {
  while (count > 0) {
    const int64_t image = first / rows.positions;
    const int64_t here = std::min(count, (image + 1) * rows.positions - first);
    const int32_t zero = rows.zero ? zero_point(rows.zero[image0 + image]) : 0;
    const int64_t start =
        (image0 * rows.positions + first) * rows.weight.outputs + rows.block.first;
    finish_image<kFunction>(rows, sums, _mm512_set1_ps(rows.scale[image0 + image]),
                            128 + zero, start, here);
    sums += here * ConvBlock::kOutputs;
    first += here;
    count -= here;
  }
}

using Finish = void (*)(const Ends&, const int32_t*, int64_t, int64_t, int64_t);

Finish finish_of(Function function) {
  switch (function) {
    case Function::kRelu:
      return finish_conv<Function::kRelu>;
    case Function::kRelu6:
      return finish_conv<Function::kRelu6>;
    case Function::kSquaredRelu:
      return finish_conv<Function::kSquaredRelu>;
    case Function::kGelu:
      return finish_conv<Function::kGelu>;
    case Function::kGeluTanh:
      return finish_conv<Function::kGeluTanh>;
    case Function::kSilu:
      return finish_conv<Function::kSilu>;
    case Function::kTanh:
      return finish_conv<Function::kTanh>;
    case Function::kSigmoid:
      return finish_conv<Function::kSigmoid>;
    default:
      return finish_conv<Function::kNone>;
  }
}

// Calls `add(rows, count, sums)` for a few positions at a time, then finishes them.
template <int kTogether, class Add>
void through_rows(const ConvImages& g, const ConvBlock& b, const ConvWeight& w,
                  const ConvEnd& end, int64_t image0, int64_t row0, int64_t row1, Add&& add) {
  alignas(64) int32_t sums[kTogether * ConvBlock::kOutputs];
  const Ends rows{b, w, end, g.scale, g.zero, g.positions};
  const Finish finish = finish_of(end.function);
  int64_t image = row0 / g.positions, position = row0 % g.positions;
  int64_t line = position / g.line, column = position % g.line;
  for (int64_t m = row0; m < row1; m += kTogether) {
    const int here = static_cast<int>(std::min<int64_t>(kTogether, row1 - m));
    const int8_t* from[kTogether];
    for (int r = 0; r < here; ++r) {
      from[r] = g.images + image * g.image_bytes + g.lines[line] + column * g.stride +
                b.channel;
      if (++column < g.line) continue;
      column = 0;
      if (++line * g.line < g.positions) continue;
      line = 0;
      ++image;
    }
    add(from, here, sums);
    finish(rows, sums, image0, m, here);
  }
}

void multiply(const ConvImages& g, const ConvBlock& b, const ConvWeight& w,
              const ConvEnd& end, int64_t image0, int64_t row0, int64_t row1) {
  const AddRows whole = rows_of(kRows, b.vectors());
  through_rows<kRows>(g, b, w, end, image0, row0, row1,
               [&](const int8_t* const* rows, int here, int32_t* sums) {
                 const AddRows add = here == kRows ? whole : rows_of(here, b.vectors());
                 add(g, rows, b.packed, sums);
               });
}

void multiply_channels(const ConvImages& g, const ConvBlock& b, const ConvWeight& w,
                       const ConvEnd& end, int64_t image0, int64_t row0, int64_t row1) {
  const auto add = g.runs == 9 ? add_channels<9> : add_channels<0>;
  through_rows<kRows>(g, b, w, end, image0, row0, row1,
               [&](const int8_t* const* rows, int here, int32_t* sums) {
                 add(g, rows, here, b.packed, sums);
               });
}

// ---- Few positions ----

// Sums of a few positions with four outputs of a weight as it is stored.
template <int kHere>
[[gnu::noinline]] void add_few(const uint8_t* rows, int64_t stride, const ConvBlock& b,
                               int first, int32_t* out, int32_t* weights) {
  const __m512i ones = _mm512_set1_epi8(1);
  const int8_t* w[4];
  each<4>([&](auto n) JCOMPRESS_INLINE {
    w[n] = b.values + std::min<int64_t>(first + n, b.count - 1) * b.inputs;
  });
  __m512i sums[kHere + 1][4];
  each<kHere + 1>([&](auto r) JCOMPRESS_INLINE {
    each<4>([&](auto n) JCOMPRESS_INLINE { sums[r][n] = _mm512_setzero_si512(); });
  });
  const auto step = [&](int64_t k, __mmask64 some) JCOMPRESS_INLINE {
    __m512i x[kHere];
    each<kHere>([&](auto r) JCOMPRESS_INLINE {
      x[r] = _mm512_loadu_si512(rows + r * stride + k);
    });
    each<4>([&](auto n) JCOMPRESS_INLINE {
      const __m512i weight = _mm512_maskz_loadu_epi8(some, w[n] + k);
      sums[kHere][n] = dot(sums[kHere][n], ones, weight);
      each<kHere>([&](auto r) JCOMPRESS_INLINE {
        sums[r][n] = dot(sums[r][n], x[r], weight);
      });
    });
  };
  int64_t k = 0;
  for (; k + 64 <= b.inputs; k += 64) step(k, ~__mmask64{0});
  if (k < b.inputs) step(k, (__mmask64{1} << (b.inputs - k)) - 1);
  each<kHere + 1>([&](auto r) JCOMPRESS_INLINE {
    int32_t* to = r == kHere ? weights + first : out + r * ConvBlock::kOutputs + first;
    std::memset(to, 0, 16);
    Avx512::add_sums<4>({sums[r][0], sums[r][1], sums[r][2], sums[r][3]}, to);
  });
}

void multiply_few(const ConvImages& g, const ConvBlock& b, const ConvWeight& w,
                  const ConvEnd& end, int64_t image0, int64_t row0, int64_t row1) {
  const int64_t stride = (b.inputs + 63) / 64 * 64;
  Buffer<uint8_t> patches(kFewRows * stride);
  const __m512i flip = _mm512_set1_epi8(static_cast<char>(0x80));
  through_rows<kFewRows>(
      g, b, w, end, image0, row0, row1,
      [&](const int8_t* const* rows, int here, int32_t* sums) {
        for (int r = 0; r < here; ++r) {
          uint8_t* to = patches.data() + r * stride;
          for (int64_t run = 0; run < g.runs; ++run) {
            std::memcpy(to + run * g.run_bytes, rows[r] + g.offsets[run], g.run_bytes);
          }
          for (int64_t k = 0; k < stride; k += 64) {
            _mm512_store_si512(to + k, _mm512_xor_si512(_mm512_load_si512(to + k), flip));
          }
        }
        const auto add = here == 1   ? add_few<1>
                         : here == 2 ? add_few<2>
                         : here == 3 ? add_few<3>
                                     : add_few<4>;
        for (int n = 0; n < b.count; n += 4) {
          add(patches.data(), stride, b, n, sums, b.sums);
        }
      });
}

// ---- Activations ----

void quantize(const float* x, int64_t count, float inverse, float zero, int bits,
              bool symmetric, int8_t* out) {
  const Rounding rounding(inverse, zero, bits, symmetric);
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(out + i), rounding(_mm512_loadu_ps(x + i)));
  }
  const __mmask16 some = some16(count - i);
  if (some) _mm_mask_storeu_epi8(out + i, some, rounding(_mm512_maskz_loadu_ps(some, x + i)));
}

// The largest absolute value; as integers infinities and what is no number come last.
float largest_value(const float* x, int64_t count) {
  const __m512i clear = _mm512_set1_epi32(0x7fffffff);
  __m512i top[4];
  for (__m512i& one : top) one = _mm512_setzero_si512();
  int64_t i = 0;
  for (; i + 4 * kLanes <= count; i += 4 * kLanes) {
    for (int j = 0; j < 4; ++j) {
      const __m512i word = _mm512_loadu_si512(x + i + j * kLanes);
      top[j] = _mm512_max_epi32(top[j], _mm512_and_si512(word, clear));
    }
  }
  for (; i < count; i += kLanes) {
    const __m512i word = _mm512_maskz_loadu_epi32(some16(count - i), x + i);
    top[0] = _mm512_max_epi32(top[0], _mm512_and_si512(word, clear));
  }
  const int32_t all = _mm512_reduce_max_epi32(_mm512_max_epi32(
      _mm512_max_epi32(top[0], top[1]), _mm512_max_epi32(top[2], top[3])));
  float width;
  std::memcpy(&width, &all, 4);
  return width;
}

}  // namespace

const ConvKernels* avx512_vnni_conv() {
  static constexpr ConvKernels kKernels{&pack,         &multiply,          &multiply_few,
                                        &pack_channels, &multiply_channels, &quantize,
                                        &largest_value};
  return &kKernels;
}

}  // namespace jcompress
