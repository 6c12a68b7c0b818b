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
#include "conv_ends_avx512.h"
#include "unrolled.h"
#include "vector_avx512.h"

namespace jcompress {
namespace {

constexpr int kRows = 6;  // positions together: 24 sums, 4 vectors of weights, 1 of data
constexpr int kFewRows = static_cast<int>(ConvKernels::kFewRows);

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
        const int64_t left = g.run_inputs - 4 * q;
        const __mmask64 some = left >= 64 ? ~__mmask64{0} : (__mmask64{1} << left) - 1;
        for (int r = 0; r < kLanes; ++r) {
          const int8_t* from = values + r * b.inputs + run * g.run_inputs + 4 * q;
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

// ---- Results ----

void multiply(const ConvImages& g, const ConvBlock& b, const ConvWeight& w,
              const ConvEnd& end, int64_t image0, int64_t row0, int64_t row1) {
  if (end.linear) {
    const LinearEnd last(end);
    const auto whole = rows_of<StoreLinear>(kRows, b.vectors());
    return through_rows<kRows, int8_t>(
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
  through_rows<kRows, int8_t>(g, b, row0, row1, [&](int64_t m, const int8_t* const* rows, int here) {
    const auto add = here == kRows ? whole : rows_of<StoreSums>(here, b.vectors());
    add(g, rows, b.packed, nullptr, {sums});
    finish(ends, sums, image0, m, here);
  });
}

void multiply_channels(const ConvImages& g, const ConvBlock& b, const ConvWeight& w,
                       const ConvEnd& end, int64_t image0, int64_t row0, int64_t row1) {
  __m512i start[4];
  const int parts = parts_of(b), width = 64 / parts;
  if (end.linear) {
    const LinearEnd last(end);
    each<4>([&](auto j) JCOMPRESS_INLINE {
      start[j] = _mm512_loadu_si512(b.linear->start + 16 * j);
    });
    return through_channels(
        g, b, start, row0, row1,
        [&](int64_t m, int64_t step, int64_t count, const __m512i (&sums)[4]) JCOMPRESS_INLINE {
          __m512i q[4];
          each<4>([&](auto j) JCOMPRESS_INLINE {
            q[j] = last.rounded(sums[j], *b.linear, j);
          });
          int8_t* to = end.integers + place_of(g, b, w, image0, m);
          const __m512i bytes = last.bytes(q);
          if (parts == 1) return store_bytes(to, bytes, b.count);
          store_parts(to, step * w.outputs, count, bytes, width, b.count);
        });
  }
  alignas(64) int32_t sums[ConvBlock::kOutputs];
  const Ends ends{b, w, end, g.scale, g.zero, g.positions};
  const Finish finish = finish_of(end.function);
  each<4>([&](auto j) JCOMPRESS_INLINE { start[j] = _mm512_setzero_si512(); });
  through_channels(g, b, start, row0, row1,
                   [&](int64_t m, int64_t step, int64_t count, const __m512i (&found)[4])
                       JCOMPRESS_INLINE {
                         store_channels(found, sums);
                         for (int i = 0; i < count; ++i) {
                           finish(ends, sums + i * width, image0, m + i * step, 1);
                         }
                       });
}

void prepare(const ConvImages& g, const ConvBlock& b, const ConvWeight& w, const ConvEnd& end,
             bool by_channel) {
  fill_linear(g, b, w, end, 128, [&](int i) {
    return by_channel ? channel_of(i / kLanes, i % kLanes, parts_of(b)) : i;
  });
}

void flip(const int8_t* x, int64_t count, int8_t* out) {
  const __m512i high = _mm512_set1_epi8(static_cast<char>(0x80));
  int64_t i = 0;
  for (; i + 64 <= count; i += 64) {
    _mm512_storeu_si512(out + i, _mm512_xor_si512(_mm512_loadu_si512(x + i), high));
  }
  for (; i < count; ++i) out[i] = static_cast<int8_t>(x[i] ^ -128);
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
  through_rows<kFewRows, int8_t>(
      g, b, row0, row1, [&](int64_t m, const int8_t* const* rows, int here) {
        for (int r = 0; r < here; ++r) {
          uint8_t* to = patches.data() + r * stride;
          for (int64_t run = 0; run < g.runs; ++run) {
            std::memcpy(to + run * g.run_inputs, rows[r] + g.offsets[run], g.run_inputs);
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

}  // namespace

const ConvKernels* avx512_vnni_conv() {
  static constexpr ConvKernels kKernels{
      1,        true,           &pack,    &multiply, &multiply_few, &pack_channels, &multiply_channels,
      &prepare, &quantize, &Avx512::largest, &flip, nullptr,   2 * kRows};
  return &kKernels;
}

}  // namespace jcompress
