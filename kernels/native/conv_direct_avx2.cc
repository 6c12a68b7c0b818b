// Direct convolutions with AVX2. Outputs lie across the lanes, so that results come in the
// order of the images; of a position two neighbouring inputs are broadcast at a time and
// meet two inputs of sixteen outputs.
//
// Two products of bytes may exceed 16 bits, so that images are widened to 16 bits, weights
// as they are read, of which the instruction adds two products in 32.

#include <immintrin.h>

#include <algorithm>
#include <cstring>

#include "conv_direct.h"
#include "conv_ends_avx2.h"
#include "conv_rows.h"
#include "unrolled.h"
#include "vector_avx2.h"

namespace jcompress {
namespace {

constexpr int kRows = 6;  // positions together: 12 sums, 2 vectors of weights, 2 of data
constexpr int kManyRows = 8 * kRows;
constexpr int kFewRows = static_cast<int>(ConvKernels::kFewRows);
constexpr int kFewOutputs = 2;
constexpr int kOutputs = ConvBlock::kOutputs;

using Cell = int16_t;

// Sums of products of pairs.
[[gnu::always_inline]] inline __m256i dot(__m256i sums, __m256i x, __m256i w) {
  return _mm256_add_epi32(sums, _mm256_madd_epi16(x, w));
}

[[gnu::always_inline]] inline __m256i load_cells(const Cell* from) {
  return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
}

[[gnu::always_inline]] inline __m256i widened(const int8_t* from) {
  return _mm256_cvtepi8_epi16(load_bytes(from, kSixteen));
}

[[gnu::always_inline]] inline void store_words(void* to, __m256i words) {
  _mm256_storeu_si256(static_cast<__m256i*>(to), words);
}

// A prefetch may point anywhere: it never faults.
[[gnu::always_inline]] inline void fetch_at(const int8_t* from, int64_t offset) {
  __builtin_prefetch(reinterpret_cast<const void*>(reinterpret_cast<uintptr_t>(from) +
                                                   static_cast<uintptr_t>(offset)));
}

inline void widen(const int8_t* x, int64_t count, Cell* out) {
  int64_t i = 0;
  for (; i + kSixteen <= count; i += kSixteen) {
    store_words(out + i, widened(x + i));
  }
  for (; i < count; ++i) out[i] = x[i];
}

// ---- Weights ----

// [vector of sixteen outputs][run][pair of inputs][output][2], bytes.
void pack(const ConvImages& g, const ConvBlock& b) {
  constexpr int kAhead = 512;
  const int64_t pairs = 2 * g.run_quads();
  const __m256i ones = _mm256_set1_epi8(1);
  int8_t* to = b.packed;
  for (int n = 0; n < b.count; n += kSixteen) {
    const int here = std::min(kSixteen, b.count - n);
    const auto row = [&](int r, int64_t start, int64_t left) JCOMPRESS_INLINE {
      const int8_t* from = b.values + (n + r) * b.inputs + start;
      // Of sixteen rows at once the processor fetches none by itself.
      fetch_at(from, kAhead);
      return r < here ? load_bytes(from, left) : _mm_setzero_si128();
    };
    __m256i sums[2] = {_mm256_setzero_si256(), _mm256_setzero_si256()};
    for (int64_t run = 0; run < g.runs; ++run) {
      for (int64_t p = 0; p < pairs; p += kEight) {
        const int64_t start = run * g.run_inputs + 2 * p, left = g.run_inputs - 2 * p;
        __m256i words[kEight];
        for (int r = 0; r < kEight; ++r) {
          words[r] = _mm256_set_m128i(row(r + kEight, start, left), row(r, start, left));
        }
        Avx2::turn_pairs(words);
        const int64_t count = std::min<int64_t>(kEight, pairs - p);
        for (int64_t i = 0; i < count; ++i, to += 2 * kSixteen) {
          store_words(to, words[i]);
          if (!g.zero) continue;
          const __m256i both = _mm256_maddubs_epi16(ones, words[i]);
          sums[0] = _mm256_add_epi32(
              sums[0], _mm256_cvtepi16_epi32(_mm256_castsi256_si128(both)));
          sums[1] = _mm256_add_epi32(
              sums[1], _mm256_cvtepi16_epi32(_mm256_extracti128_si256(both, 1)));
        }
      }
    }
    store_words(b.sums + n, sums[0]);
    store_words(b.sums + n + kEight, sums[1]);
  }
}

// ---- Sums ----

// Sums of a few positions with sixteen outputs, which begin with `start` if that is not
// null; `then(row, first eight, last eight)` is called for each.
template <int kHere, class Then>
[[gnu::noinline]] void add_rows(const ConvImages& g, const Cell* const* rows, const int8_t* w,
                                const int32_t* start, const Then& then) {
  __m256i sums[kHere][2];
  each<kHere>([&](auto r) JCOMPRESS_INLINE {
    each<2>([&](auto v) JCOMPRESS_INLINE {
      sums[r][v] = start ? load_words(start + v * kEight) : _mm256_setzero_si256();
    });
  });
  const int64_t quads = g.run_quads();
  for (int64_t run = 0; run < g.runs; ++run) {
    const Cell* x[kHere];
    each<kHere>([&](auto r) JCOMPRESS_INLINE { x[r] = rows[r] + g.offsets[run]; });
    for (int64_t q = 0; q < quads; ++q) {
      each<2>([&](auto pair) JCOMPRESS_INLINE {
        const __m256i weights[2] = {widened(w + pair * 2 * kSixteen),
                                    widened(w + pair * 2 * kSixteen + kSixteen)};
        each<kHere>([&](auto r) JCOMPRESS_INLINE {
          Avx2::dot_step(sums[r], weights, x[r] + 4 * q + 2 * pair);
        });
      });
      w += 4 * kSixteen;
    }
  }
  each<kHere>([&](auto r) JCOMPRESS_INLINE {
    then(static_cast<int>(r), sums[r][0], sums[r][1]);
  });
}

template <class Then>
auto rows_of(int here) {
  switch (here) {
    case 1:
      return add_rows<1, Then>;
    case 2:
      return add_rows<2, Then>;
    case 3:
      return add_rows<3, Then>;
    case 4:
      return add_rows<4, Then>;
    case 5:
      return add_rows<5, Then>;
    default:
      return add_rows<6, Then>;
  }
}

// ---- Results ----

// Sixteen sums written down, [row][64].
struct StoreSums {
  int32_t* out;

  [[gnu::always_inline]] void operator()(int row, __m256i first, __m256i last) const {
    store_words(out + row * kOutputs, first);
    store_words(out + row * kOutputs + kEight, last);
  }
};

// Sixteen results written down as integers, `stride` bytes from row to row; they are
// outputs n to n + 15 of their block, of which there are `count`.
struct StoreLinear {
  const LinearEnd& end;
  const ConvLinear& numbers;
  int n;
  int64_t count;
  int64_t stride;
  int64_t at;
  int8_t* out;

  [[gnu::always_inline]] void operator()(int row, __m256i first, __m256i last) const {
    const int64_t start = at + row * stride;
    __m256i q[2];
    if (end.addend) {
      const __m128i more = load_bytes(end.addend + start, count);
      q[0] = end.rounded(first, numbers, n, more);
      q[1] = end.rounded(last, numbers, n + kEight, _mm_srli_si128(more, kEight));
    } else {
      q[0] = end.rounded(first, numbers, n);
      q[1] = end.rounded(last, numbers, n + kEight);
    }
    store_bytes(out + start, end.bytes_in_order(q[0], q[1]), count);
  }
};

void multiply(const ConvImages& g, const ConvBlock& b, const ConvWeight& w,
              const ConvEnd& end, int64_t image0, int64_t row0, int64_t row1) {
  const int64_t sixteen = g.quads() * 4 * kSixteen;
  // Weights of sixteen outputs stay in the second-level cache for some positions.
  if (end.linear) {
    const LinearEnd last(end);
    return through_rows<kManyRows, Cell>(
        g, b, row0, row1, [&](int64_t m, const Cell* const* rows, int here) {
          const int64_t at = place_of(g, b, w, image0, m);
          for (int n = 0; n < b.count; n += kSixteen) {
            StoreLinear store{last, *b.linear, n, b.count - n, w.outputs, at + n, end.integers};
            for (int r = 0; r < here; r += kRows, store.at += kRows * w.outputs) {
              rows_of<StoreLinear>(here - r)(g, rows + r, b.packed + n / kSixteen * sixteen,
                                             b.linear->start + n, store);
            }
          }
        });
  }
  alignas(32) int32_t sums[kManyRows * kOutputs];
  const Ends ends{b, w, end, g.scale, g.zero, g.positions};
  const Finish finish = finish_of(end.function);
  through_rows<kManyRows, Cell>(
      g, b, row0, row1, [&](int64_t m, const Cell* const* rows, int here) {
        for (int n = 0; n < b.count; n += kSixteen) {
          for (int r = 0; r < here; r += kRows) {
            rows_of<StoreSums>(here - r)(g, rows + r, b.packed + n / kSixteen * sixteen, nullptr,
                                         {sums + r * kOutputs + n});
          }
        }
        finish(ends, sums, image0, m, here);
      });
}

// ---- Few positions ----

// Sums of a few positions, as 16 bits, with some outputs of a weight as it is stored; with
// kSums those of the weight itself.
template <int kHere, bool kSums>
[[gnu::noinline]] void add_few(const Cell* rows, int64_t stride, const ConvBlock& b,
                               int first, int32_t* out) {
  constexpr int kAll = kHere + kSums, kAhead = 512;
  const __m256i ones = _mm256_set1_epi16(1);
  const int8_t* w[kFewOutputs];
  each<kFewOutputs>([&](auto n) JCOMPRESS_INLINE {
    w[n] = b.values + std::min<int64_t>(first + n, b.count - 1) * b.inputs;
  });
  __m256i sums[kAll][kFewOutputs];
  each<kAll>([&](auto r) JCOMPRESS_INLINE {
    each<kFewOutputs>([&](auto n) JCOMPRESS_INLINE { sums[r][n] = _mm256_setzero_si256(); });
  });
  const auto step = [&](int64_t k, int64_t left) JCOMPRESS_INLINE {
    each<kFewOutputs>([&](auto n) JCOMPRESS_INLINE {
      const __m256i weight = _mm256_cvtepi8_epi16(load_bytes(w[n] + k, left));
      if constexpr (kSums) sums[kHere][n] = dot(sums[kHere][n], ones, weight);
      each<kHere>([&](auto r) JCOMPRESS_INLINE {
        sums[r][n] = dot(sums[r][n], load_cells(rows + r * stride + k), weight);
      });
    });
  };
  int64_t k = 0;
  for (; k + kSixteen <= b.inputs; k += kSixteen) {
    if (k % 64 == 0) {
      each<kFewOutputs>([&](auto n) JCOMPRESS_INLINE { fetch_at(w[n] + k, kAhead); });
    }
    step(k, kSixteen);
  }
  if (k < b.inputs) step(k, b.inputs - k);
  each<kAll>([&](auto r) JCOMPRESS_INLINE {
    int32_t* to = r == kHere ? b.sums + first : out + r * kOutputs + first;
    each<kFewOutputs>([&](auto n) JCOMPRESS_INLINE { to[n] = 0; });
    Avx2::add_sums<kFewOutputs>(sums[r], to);
  });
}

template <bool kSums>
auto few_of(int here) {
  return here == 1   ? add_few<1, kSums>
         : here == 2 ? add_few<2, kSums>
         : here == 3 ? add_few<3, kSums>
                     : add_few<4, kSums>;
}

void multiply_few(const ConvImages& g, const ConvBlock& b, const ConvWeight& w,
                  const ConvEnd& end, int64_t image0, int64_t row0, int64_t row1) {
  const int64_t stride = (b.inputs + kSixteen - 1) / kSixteen * kSixteen;
  Buffer<Cell> patches(kFewRows * stride);
  std::memset(patches.data(), 0, static_cast<size_t>(kFewRows * stride) * sizeof(Cell));
  alignas(32) int32_t sums[kFewRows * kOutputs];
  std::memset(b.sums, 0, kOutputs * sizeof(int32_t));
  const Ends ends{b, w, end, g.scale, g.zero, g.positions};
  const Finish finish = finish_of(end.function);
  through_rows<kFewRows, Cell>(
      g, b, row0, row1, [&](int64_t m, const Cell* const* rows, int here) {
        for (int r = 0; r < here; ++r) {
          Cell* to = patches.data() + r * stride;
          for (int64_t run = 0; run < g.runs; ++run) {
            std::memcpy(to + run * g.run_inputs, rows[r] + g.offsets[run],
                        static_cast<size_t>(g.run_inputs) * sizeof(Cell));
          }
        }
        const auto add = g.zero ? few_of<true>(here) : few_of<false>(here);
        for (int n = 0; n < b.count; n += kFewOutputs) add(patches.data(), stride, b, n, sums);
        finish(ends, sums, image0, m, here);
      });
}

// ---- A kernel for each channel ----

// Two vectors of sixteen channels interleave into pairs of the channels 0 to 3 and 8 to
// 11, and 4 to 7 and 12 to 15. So the channel of a place in two vectors of sums:
inline int channel_of(int place) {
  return place / 4 % 2 * 8 + place / 8 % 2 * 4 + place % 4 + place / 16 * 16;
}

// Pairs of taps, [sixteen channels][pair][place][2].
void pack_channels(const ConvImages& g, const ConvBlock& b) {
  constexpr int64_t kUsual = 9;  // taps
  const int64_t taps = g.runs, pairs = (taps + 1) / 2;
  const __m256i ones = _mm256_set1_epi16(1);
  Cell* to = reinterpret_cast<Cell*>(b.packed);
  for (int half = 0; half < (b.count + kSixteen - 1) / kSixteen * kSixteen; half += kEight) {
    __m256i sums = _mm256_setzero_si256();
    for (int64_t t = 0; t < taps; t += kSixteen) {
      __m256i words[kEight];
      for (int i = 0; i < kEight; ++i) {
        const int n = channel_of(half + i);
        __m128i bytes = _mm_setzero_si128();
        if (n < b.count && taps == kUsual) {
          std::memcpy(&bytes, b.values + n * kUsual, kUsual);
        } else if (n < b.count) {
          bytes = load_bytes(b.values + n * taps + t, taps - t);
        }
        words[i] = _mm256_cvtepi8_epi16(bytes);
      }
      Avx2::transpose(words);
      for (int64_t p = t / 2; p < std::min(pairs, t / 2 + kEight); ++p) {
        store_words(to + p * 2 * kSixteen + half % kSixteen * 2, words[p - t / 2]);
        sums = dot(sums, ones, words[p - t / 2]);
      }
    }
    alignas(32) int32_t all[kEight];
    store_words(all, sums);
    for (int i = 0; i < kEight; ++i) b.sums[channel_of(half + i)] = all[i];
    if (half % kSixteen) to += pairs * 2 * kSixteen;
  }
}

// Calls `store(position, sums, sums)` for the positions of a stretch. kTaps: as many, whose
// weights stay in registers, or 0 for any number.
template <int kTaps, class Store>
[[gnu::always_inline]] inline void add_stretch(const ConvImages& g, const Cell* x,
                                               const Cell* w, __m256i first, __m256i last,
                                               int64_t m, int64_t count, Store&& store) {
  const int64_t taps = kTaps ? kTaps : g.runs;
  constexpr int kPairs = kTaps ? (kTaps + 1) / 2 : 1;
  __m256i weights[kPairs][2];
  const Cell* from[kTaps ? kTaps : 1];
  if constexpr (kTaps > 0) {
    each<kPairs>([&](auto p) JCOMPRESS_INLINE {
      weights[p][0] = load_cells(w + p * 2 * kSixteen);
      weights[p][1] = load_cells(w + p * 2 * kSixteen + kSixteen);
    });
    each<kTaps>([&](auto t) JCOMPRESS_INLINE { from[t] = x + g.offsets[t]; });
  }
  for (int64_t i = 0; i < count; ++i) {
    __m256i low = first, high = last;
    if constexpr (kTaps > 0) {
      each<kPairs>([&](auto p) JCOMPRESS_INLINE {
        const __m256i one = load_cells(from[2 * p] + i * g.stride);
        __m256i other = _mm256_setzero_si256();
        if constexpr (2 * p + 1 < kTaps) other = load_cells(from[2 * p + 1] + i * g.stride);
        low = dot(low, _mm256_unpacklo_epi16(one, other), weights[p][0]);
        high = dot(high, _mm256_unpackhi_epi16(one, other), weights[p][1]);
      });
    } else {
      for (int64_t t = 0; t < taps; t += 2) {
        const Cell* at = x + i * g.stride;
        const __m256i one = load_cells(at + g.offsets[t]);
        const __m256i other = load_cells(at + g.offsets[std::min(t + 1, taps - 1)]);
        low = dot(low, _mm256_unpacklo_epi16(one, other), load_cells(w + t * kSixteen));
        high = dot(high, _mm256_unpackhi_epi16(one, other),
                   load_cells(w + t * kSixteen + kSixteen));
      }
    }
    store(m + i, low, high);
  }
}

// All positions of sixteen channels.
template <class Store>
[[gnu::always_inline]] inline void add_channels(const ConvImages& g, const ConvBlock& b,
                                                const Cell* w, __m256i first, __m256i last,
                                                int64_t row0, int64_t row1, Store&& store) {
  through_lines<Cell>(g, b, row0, row1, [&](int64_t m, const Cell* x, int64_t count)
                                            JCOMPRESS_INLINE {
    if (g.runs == 9) {
      add_stretch<9>(g, x, w, first, last, m, count, store);
    } else {
      add_stretch<0>(g, x, w, first, last, m, count, store);
    }
  });
}

void multiply_channels(const ConvImages& g, const ConvBlock& b, const ConvWeight& w,
                       const ConvEnd& end, int64_t image0, int64_t row0, int64_t row1) {
  const int64_t pairs = (g.runs + 1) / 2;
  for (int n = 0; n < b.count; n += kSixteen) {
    const Cell* const weights =
        reinterpret_cast<const Cell*>(b.packed) + n / kSixteen * pairs * 2 * kSixteen;
    ConvBlock part = b;
    part.first += n;
    part.channel += n;
    part.count = std::min(kSixteen, b.count - n);
    part.sums += n;
    if (end.linear) {
      const LinearEnd last(end);
      const int32_t* start = b.linear->start + n;
      add_channels(g, part, weights, load_words(start), load_words(start + kEight), row0, row1,
                   [&](int64_t m, __m256i low, __m256i high) JCOMPRESS_INLINE {
                     const __m128i bytes =
                         last.dealt_bytes(last.rounded(low, *b.linear, n),
                                          last.rounded(high, *b.linear, n + kEight));
                     store_bytes(end.integers + place_of(g, part, w, image0, m), bytes,
                                 part.count);
                   });
      continue;
    }
    alignas(32) int32_t sums[kOutputs];
    const Ends ends{part, w, end, g.scale, g.zero, g.positions};
    const Finish finish = finish_of(end.function);
    const __m256i none = _mm256_setzero_si256();
    add_channels(g, part, weights, none, none, row0, row1,
                 [&](int64_t m, __m256i low, __m256i high) JCOMPRESS_INLINE {
                   store_words(sums, _mm256_permute2x128_si256(low, high, 0x20));
                   store_words(sums + kEight, _mm256_permute2x128_si256(low, high, 0x31));
                   finish(ends, sums, image0, m, 1);
                 });
  }
}

void prepare(const ConvImages& g, const ConvBlock& b, const ConvWeight& w, const ConvEnd& end,
             bool by_channel) {
  fill_linear(g, b, w, end, 0, [&](int i) { return by_channel ? channel_of(i) : i; });
}

void quantize(const float* x, int64_t count, float inverse, float zero, int bits,
              bool symmetric, int8_t* out) {
  Avx2::round(x, count, inverse, bits, symmetric ? nullptr : &zero, out);
}

}  // namespace

const ConvKernels* avx2_conv() {
  static constexpr ConvKernels kKernels{
      sizeof(Cell), false,     &pack,          &multiply, &multiply_few, &pack_channels,
      &multiply_channels, &prepare, &quantize, &Avx2::largest, nullptr,  &widen,
      2 * kRows};
  return &kKernels;
}

}  // namespace jcompress
