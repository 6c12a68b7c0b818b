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

#include "conv_channels_avx512.h"
#include "conv_direct.h"
#include "conv_linear_avx512.h"
#include "epilogue.h"
#include "rows.h"
#include "unrolled.h"
#include "vector_avx512.h"

namespace jcompress {
namespace {

constexpr int kRows = 6;  // positions together: 24 sums, 4 vectors of weights, 1 of data
constexpr int kFewRows = static_cast<int>(ConvKernels::kFewRows);
constexpr int kLanes = ConvBlock::kLanes;

template <int kNumber>
using Number = std::integral_constant<int, kNumber>;

inline __mmask16 some16(int64_t count) {
  return count >= 16 ? 0xffff : static_cast<__mmask16>((1u << std::max<int64_t>(0, count)) - 1);
}

// ---- Weights ----

void pack(const ConvImages& g, const ConvBlock& b) {
  constexpr int kAhead = 512;
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
          const int8_t* from = values + r * b.inputs + run * g.run_bytes + 4 * q;
          // Of sixteen rows at once the processor fetches none by itself.
          _mm_prefetch(reinterpret_cast<const char*>(from) + kAhead, _MM_HINT_T0);
          const __m512i row = r < rows ? _mm512_maskz_loadu_epi8(some, from)
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

// ---- Sums ----

// Sums of a few positions with the outputs of a block, which begin with `start` if that is
// not null; `then(row, sums of the row)` is called for each.
template <int kHere, int kVectors, class Then>
[[gnu::noinline]] void add_rows(const ConvImages& g, const int8_t* const* rows,
                                const int8_t* w, const int32_t* start, const Then& then) {
  __m512i sums[kHere][4];
  each<kHere>([&](auto r) JCOMPRESS_INLINE {
    each<kVectors>([&](auto v) JCOMPRESS_INLINE {
      sums[r][v] = start ? _mm512_loadu_si512(start + v * kLanes) : _mm512_setzero_si512();
    });
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
    then(Number<kVectors>{}, static_cast<int>(r), sums[r]);
  });
}

template <int kVectors, class Then>
auto rows_of(int here) {
  switch (here) {
    case 1:
      return add_rows<1, kVectors, Then>;
    case 2:
      return add_rows<2, kVectors, Then>;
    case 3:
      return add_rows<3, kVectors, Then>;
    case 4:
      return add_rows<4, kVectors, Then>;
    case 5:
      return add_rows<5, kVectors, Then>;
    default:
      return add_rows<6, kVectors, Then>;
  }
}

template <class Then>
auto rows_of(int here, int vectors) {
  switch (vectors) {
    case 1:
      return rows_of<1, Then>(here);
    case 2:
      return rows_of<2, Then>(here);
    case 3:
      return rows_of<3, Then>(here);
    default:
      return rows_of<4, Then>(here);
  }
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

// Calls `add(row, pointers to their images, count)` for a few positions at a time.
template <int kTogether, class Add>
void through_rows(const ConvImages& g, const ConvBlock& b, int64_t row0, int64_t row1,
                  Add&& add) {
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
    add(m, from, here);
  }
}

// Where the results of a block at a position begin.
int64_t place_of(const ConvImages& g, const ConvBlock& b, const ConvWeight& w, int64_t image0,
                 int64_t row) {
  return (image0 * g.positions + row) * w.outputs + b.first;
}

void multiply(const ConvImages& g, const ConvBlock& b, const ConvWeight& w,
              const ConvEnd& end, int64_t image0, int64_t row0, int64_t row1) {
  if (end.linear) {
    const LinearEnd last(end);
    const auto whole = rows_of<StoreLinear>(kRows, b.vectors());
    return through_rows<kRows>(
        g, b, row0, row1, [&](int64_t m, const int8_t* const* rows, int here) {
          const auto add = here == kRows ? whole : rows_of<StoreLinear>(here, b.vectors());
          const int64_t at = place_of(g, b, w, image0, m);
          add(g, rows, b.packed, b.linear->start,
              {last, *b.linear, b.count, w.outputs, at, end.integers});
        });
  }
  alignas(64) int32_t sums[kRows * ConvBlock::kOutputs];
  const Ends ends{b, w, end, g.scale, g.zero, g.positions};
  const Finish finish = finish_of(end.function);
  const auto whole = rows_of<StoreSums>(kRows, b.vectors());
  through_rows<kRows>(g, b, row0, row1, [&](int64_t m, const int8_t* const* rows, int here) {
    const auto add = here == kRows ? whole : rows_of<StoreSums>(here, b.vectors());
    add(g, rows, b.packed, nullptr, {sums});
    finish(ends, sums, image0, m, here);
  });
}

void multiply_channels(const ConvImages& g, const ConvBlock& b, const ConvWeight& w,
                       const ConvEnd& end, int64_t image0, int64_t row0, int64_t row1) {
  __m512i start[4];
  if (end.linear) {
    const LinearEnd last(end);
    each<4>([&](auto j) JCOMPRESS_INLINE {
      start[j] = _mm512_loadu_si512(b.linear->start + 16 * j);
    });
    return through_channels(
        g, b, start, row0, row1, [&](int64_t m, const __m512i (&sums)[4]) JCOMPRESS_INLINE {
          __m512i q[4];
          each<4>([&](auto j) JCOMPRESS_INLINE {
            q[j] = last.rounded(sums[j], *b.linear, j);
          });
          store_bytes(end.integers + place_of(g, b, w, image0, m), last.bytes(q), b.count);
        });
  }
  alignas(64) int32_t sums[ConvBlock::kOutputs];
  const Ends ends{b, w, end, g.scale, g.zero, g.positions};
  const Finish finish = finish_of(end.function);
  each<4>([&](auto j) JCOMPRESS_INLINE { start[j] = _mm512_setzero_si512(); });
  through_channels(g, b, start, row0, row1,
                   [&](int64_t m, const __m512i (&found)[4]) JCOMPRESS_INLINE {
                     store_channels(found, sums);
                     finish(ends, sums, image0, m, 1);
                   });
}

void prepare(const ConvImages& g, const ConvBlock& b, const ConvWeight& w, const ConvEnd& end,
             bool by_channel) {
  const int32_t zero = g.zero ? zero_point(g.zero[0]) : 0;
  const float by = g.scale[0] * end.y_inverse;
  const float less =
      end.addend_integers ? end.addend_zero * (end.addend_scale * end.y_inverse) : 0.0f;
  for (int i = 0; i < ConvBlock::kOutputs; ++i) {
    const int n = by_channel ? channel_of(i / kLanes, i % kLanes) : i;
    const bool there = n < b.count;
    b.linear->multiplier[i] = there ? by * w.scales[b.first + n] : 0.0f;
    b.linear->offset[i] =
        there && end.bias ? end.bias[b.first + n] * end.y_inverse - less : -less;
    b.linear->start[i] = there ? -(128 + zero) * b.sums[n] : 0;
  }
}

void flip(int8_t* x, int64_t count) {
  const __m512i high = _mm512_set1_epi8(static_cast<char>(0x80));
  int64_t i = 0;
  for (; i + 64 <= count; i += 64) {
    _mm512_storeu_si512(x + i, _mm512_xor_si512(_mm512_loadu_si512(x + i), high));
  }
  for (; i < count; ++i) x[i] = static_cast<int8_t>(x[i] ^ -128);
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
  alignas(64) int32_t sums[kFewRows * ConvBlock::kOutputs];
  const Ends ends{b, w, end, g.scale, g.zero, g.positions};
  const Finish finish = finish_of(end.function);
  through_rows<kFewRows>(
      g, b, row0, row1, [&](int64_t m, const int8_t* const* rows, int here) {
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
        finish(ends, sums, image0, m, here);
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
                                        &pack_channels, &multiply_channels, &prepare,
                                        &quantize,     &largest_value,     &flip};
  return &kKernels;
}

}  // namespace jcompress
