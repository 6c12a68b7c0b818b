// Products of many rows of small integers with a weight that has one scale an output. The
// outputs lie across the lanes of vectors, so that no result is ever turned round: a strip
// of the weight is turned once, and multiplies all rows.
#pragma once

#include <algorithm>
#include <array>
#include <cstring>
#include <optional>
#include <utility>

#include "floats.h"
#include "panel_lay.h"
#include "panel_rows.h"
#include "panel_weights.h"
#include "product.h"
#include "rows.h"
#include "unrolled.h"

namespace jcompress {
namespace {

// What is read later, a part with each piece of the products, so that memory is busy while
// they are multiplied.
class Ahead {
 public:
  // Of a weight, `row` bytes an output: while outputs n0 to n1 - 1 are multiplied with
  // `blocks` blocks of rows, in strips of so many outputs and words, those after them. If
  // they are laid out and read once, what is read soon.
  Ahead(const Weight& w, int64_t row, int64_t n0, int64_t n1, int64_t n2, int64_t blocks,
        int64_t outputs, int64_t words)
      : words_(words) {
    constexpr int64_t kSoon = 4 << 10;
    const bool soon = w.laid && blocks == 1;
    const int64_t bytes = (soon ? n1 - n0 : n2 - n1) * row;
    from_ = (w.laid ? w.laid : w.values) + (soon ? n0 * row + kSoon : n1 * row);
    end_ = from_ + bytes;
    const int64_t fetches = blocks * ((n1 - n0 + outputs - 1) / outputs) * words;
    step_ = (bytes + fetches - 1) / fetches;
  }

  // Where a piece begins to fetch, and how far it goes on with each word.
  void take(const uint8_t** from, int64_t* step) {
    *from = from_;
    *step = from_ < end_ ? step_ : 0;
    from_ += step_ * words_;
  }

 private:
  const uint8_t* from_;
  const uint8_t* end_;
  int64_t words_, step_;
};

// A few rows and a strip. A step is what is multiplied together: four inputs, or two.
template <class V>
struct StripPiece {
  const uint8_t* strip;  // [word][vector][lane][inputs of one or two steps]
  const typename V::Cell* x;  // [row][stride]
  int64_t stride;
  int64_t steps;         // of inputs filled up to sixteen
  const int32_t* sums;   // of each row
  // Read later, so that memory is busy while this is multiplied: `step` bytes a word.
  const uint8_t* ahead;
  int64_t step;
  // What follows if it is plain: a row has one digit, no number stands for 0 but 0.
  int32_t shift;
  const float* row_scales;
  const float* scales;  // of the outputs
  const float* biases;  // or null
  float* y;             // [row][outputs]
  int64_t outputs;
  // Else where the sums are written, [row][output of the strip].
  int32_t* out;
};

// With few rows a word meets two lines of what is ahead.
[[gnu::always_inline]] inline void fetch_ahead(const uint8_t* from, int64_t step, int64_t* at) {
  fetch_at<2>(from, *at);
  fetch_at<2>(from, *at + step / 2);
  *at += step;
}

// Calls `then(step, weight)` for each step of the words of a strip at `w`.
template <class V, int kBits, class Then>
[[gnu::always_inline]] inline void unpack_words(const uint8_t* w, Then&& then) {
  typename V::I words[kVectors];
  each<kVectors>([&](auto v) JCOMPRESS_INLINE { words[v] = V::load_strip(w + v * V::kStripBytes); });
  if constexpr (kBits == 8) {
    then(std::integral_constant<int, 0>{}, words);
  } else {
    each<2>([&](auto part) JCOMPRESS_INLINE {
      typename V::I weight[kVectors];
      each<kVectors>([&](auto v) JCOMPRESS_INLINE {
        weight[v] = V::template nibbles<part>(words[v]);
      });
      then(part, weight);
    });
  }
}

// kBits: of an integer in the strip. kPlain: the results are written.
template <class V, int kBits, int kRows, bool kPlain>
[[gnu::noinline]] void multiply_strip(const StripPiece<V>& piece) {
  constexpr int kLanes = V::kLanes, kTogether = 4, kInputs = V::kStepInputs;
  constexpr int kParts = 8 / kBits;
  constexpr int kLine = 64 / (kInputs * sizeof(typename V::Cell));
  typename V::I sums[kRows][kVectors];
  each<kRows>([&](auto r) JCOMPRESS_INLINE {
    typename V::I start = V::zero();
    if constexpr (kPlain) {
      start = V::broadcast_word(-piece.shift * piece.sums[r]);
      // The lines that are written in the end.
      __builtin_prefetch(piece.y + r * piece.outputs, 1, 3);
      __builtin_prefetch(piece.y + r * piece.outputs + kLanes, 1, 3);
    }
    each<kVectors>([&](auto v) JCOMPRESS_INLINE { sums[r][v] = start; });
  });
  // Three rows of each of these are within reach of one address.
  constexpr int kBases = (kRows + 2) / 3;
  const int64_t stride = piece.stride;
  const typename V::Cell* x[kBases];
  each<kBases>([&](auto b) JCOMPRESS_INLINE { x[b] = piece.x + 3 * b * stride; });
  const uint8_t* w = piece.strip;
  int64_t ahead = 0;
  for (int64_t k = 0; k < piece.steps; k += kTogether) {
    if (k % kLine == 0) {
      each<kRows>([&](auto r) JCOMPRESS_INLINE {
        fetch_at<3>(x[r / 3], (r % 3) * stride + 256);
      });
    }
    each<kTogether / kParts>([&](auto i) JCOMPRESS_INLINE {
      fetch_ahead(piece.ahead, piece.step, &ahead);
      unpack_words<V, kBits>(w, [&](auto part, const typename V::I (&weight)[kVectors])
                                    JCOMPRESS_INLINE {
        each<kRows>([&](auto r) JCOMPRESS_INLINE {
          V::dot_step(sums[r], weight,
                      x[r / 3] + (r % 3) * stride + kInputs * (i * kParts + part));
        });
      });
      w += kVectors * V::kStripBytes;
    });
    each<kBases>([&](auto b) JCOMPRESS_INLINE { x[b] += kInputs * kTogether; });
  }
  if constexpr (kPlain) {
    typename V::F scale[kVectors];
    each<kVectors>([&](auto v) JCOMPRESS_INLINE {
      scale[v] = V::load_float(piece.scales + v * kLanes);
    });
    each<kRows>([&](auto r) JCOMPRESS_INLINE {
      const typename V::F row = V::broadcast(piece.row_scales[r]);
      each<kVectors>([&](auto v) JCOMPRESS_INLINE {
        auto number = V::times(V::times(V::to_float(sums[r][v]), row), scale[v]);
        if (piece.biases) {
          number = V::add(number, V::load_float(piece.biases + v * kLanes));
        }
        V::store_float(piece.y + r * piece.outputs + v * kLanes, number);
      });
    });
  } else {
    each<kRows>([&](auto r) JCOMPRESS_INLINE {
      each<kVectors>([&](auto v) JCOMPRESS_INLINE {
        V::store(piece.out + (r * kVectors + v) * kLanes, sums[r][v]);
      });
    });
  }
}

// For each number of rows one.
template <class V>
using StripProducts = std::array<void (*)(const StripPiece<V>&), V::kStripRows>;

template <class V, int kBits, bool kPlain, int... kRows>
constexpr StripProducts<V> strip_products(std::integer_sequence<int, kRows...>) {
  return {&multiply_strip<V, kBits, kRows + 1, kPlain>...};
}

template <class V, int kBits>
const StripProducts<V>& strip_products_of(bool plain) {
  constexpr auto kRows = std::make_integer_sequence<int, V::kStripRows>{};
  static constexpr StripProducts<V> kPlain = strip_products<V, kBits, true>(kRows);
  static constexpr StripProducts<V> kOther = strip_products<V, kBits, false>(kRows);
  return plain ? kPlain : kOther;
}

template <class V>
const StripProducts<V>& strip_products_of(int bits, bool plain) {
  if constexpr (V::kStepInputs == 4) {
    if (bits == 4) return strip_products_of<V, 4>(plain);
  }
  return strip_products_of<V, 8>(plain);
}

// What is added to the weights of a strip, with the zero of a group.
template <class V>
int32_t strip_shift(const Weight& w, int64_t output) {
  return shift_of(w, output, 0) - (V::kSigned ? 1 << (w.bits - 1) : 0);
}

// What turns the sums of a strip into results, filled up.
template <class V>
struct StripEnds {
  static constexpr int kOutputs = kVectors * V::kLanes;
  alignas(64) int32_t shifts[kOutputs] = {};
  alignas(64) int32_t whole[kOutputs] = {};  // of the weights, for zeros of the rows
  alignas(64) float scales[kOutputs] = {};
  alignas(64) float biases[kOutputs] = {};

  StripEnds(const Weight& w, const Result& result, const PlainRows& rows, int64_t first,
            int64_t outputs, const uint8_t* strip, const typename V::Cell* ones) {
    for (int64_t n = 0; n < outputs; ++n) {
      shifts[n] = strip_shift<V>(w, first + n);
      scales[n] = w.scales[first + n];
      if (result.bias) biases[n] = result.bias[first + n];
    }
    if (!rows.zero) return;
    if constexpr (V::kStepInputs == 4) {
      if (laid_bits<V>(w.bits) == 4) {
        add_up<4>(w, strip, ones);
        return;
      }
    }
    add_up<8>(w, strip, ones);
  }

 private:
  template <int kBits>
  void add_up(const Weight& w, const uint8_t* strip, const typename V::Cell* ones) {
    constexpr int kInputs = V::kStepInputs * (8 / kBits);
    typename V::I sums[kVectors] = {V::zero(), V::zero()};
    for (int64_t k = 0; k < (w.inputs + 15) / 16 * 16; k += kInputs) {
      unpack_words<V, kBits>(strip, [&](auto part, const typename V::I (&weight)[kVectors])
                                        JCOMPRESS_INLINE {
        V::dot_step(sums, weight, ones + k + V::kStepInputs * part);
      });
      strip += kVectors * V::kStripBytes;
    }
    for (int v = 0; v < kVectors; ++v) {
      const typename V::I shift = V::load(shifts + v * V::kLanes);
      const typename V::I inputs = V::broadcast_word(static_cast<int32_t>(w.inputs));
      V::store(whole + v * V::kLanes, V::subtract(sums[v], V::multiply(inputs, shift)));
    }
  }
};

// Results of row m from the sums of its digits, sums[digit][output of the strip].
template <class V>
void finish_strip(const PlainRows& rows, const Weight& w, const Result& result,
                  const StripEnds<V>& ends, const int32_t* sums, int64_t m, int64_t first,
                  int64_t outputs) {
  constexpr int kLanes = V::kLanes;
  using F = typename V::F;
  const F digit = V::broadcast(1.0f / static_cast<float>(kBase));
  for (int64_t n = 0; n < outputs; n += kLanes) {
    F number = V::zero_float();
    for (int j = rows.digits - 1; j >= 0; --j) {
      typename V::I total = V::load(sums + j * kVectors * kLanes + n);
      const typename V::I left = V::broadcast_word(rows.sums[m * rows.digits + j]);
      total = V::subtract(total, V::multiply(V::load(ends.shifts + n), left));
      if (rows.zero) {
        const typename V::I point = V::broadcast_word(zero_point(rows.zero[m]));
        total = V::subtract(total, V::multiply(V::load(ends.whole + n), point));
      }
      const F sum = V::to_float(total);
      number = j + 1 == rows.digits ? sum : V::add(sum, V::times(number, digit));
    }
    number = V::times(V::times(number, V::broadcast(rows.scale[m])),
                      V::load_float(ends.scales + n));
    if (result.bias) number = V::add(number, V::load_float(ends.biases + n));
    write_vector<V>(number, result, m * w.outputs + first + n, outputs - n);
  }
}

// Write y[m0 : m1, first : last]; `first` begins a strip.
template <class V>
void multiply_strips_of(const PlainRows& rows, const Weight& w, const Result& result,
                        int64_t first, int64_t last, int64_t m0, int64_t m1) {
  using Cell = typename V::Cell;
  constexpr int kOutputs = kVectors * V::kLanes, kMostRows = V::kStripRows;
  const int bits = laid_bits<V>(w.bits);
  const StripProducts<V>& plain = strip_products_of<V>(bits, true);
  const StripProducts<V>& other = strip_products_of<V>(bits, false);
  const int64_t filled = rows.filled(), laid = laid_row<V>(w);
  const int64_t most = strip_outputs(laid);
  Buffer<uint8_t> strips(w.laid ? 0 : most * laid);
  alignas(64) int32_t out[kMostRows * kOutputs];
  // A row of ones, if what the weights sum up to is asked for.
  Buffer<Cell> ones(rows.zero ? filled : 0);
  if (rows.zero) {
    std::fill_n(ones.data(), w.inputs, Cell{1});
    std::fill_n(ones.data() + w.inputs, filled - w.inputs, Cell{0});
    order_inputs<V>(ones.data(), filled, w.bits);
  }
  // Rows as evenly in blocks as can be, each with all its digits.
  const int64_t in_block = std::max<int64_t>(1, kMostRows / rows.digits);
  const int64_t blocks = (m1 - m0 + in_block - 1) / in_block;
  StripPiece<V> piece{};
  piece.stride = rows.stride();
  piece.steps = (w.inputs + 15) / 16 * (16 / V::kStepInputs);
  piece.outputs = w.outputs;
  const int64_t words = piece.steps * bits / 8;
  const bool one_digit = rows.digits == 1 && !rows.zero && !w.zeros;
  for (int64_t n0 = first; n0 < last; n0 += most) {
    const int64_t n1 = std::min(last, n0 + most);
    std::array<std::optional<StripEnds<V>>, kStripOutputs / kOutputs> ends;
    const uint8_t* const here_laid = w.laid ? w.laid + n0 * laid : strips.data();
    for (int64_t n = n0; n < n1; n += kOutputs) {
      const int64_t here = std::min<int64_t>(kOutputs, n1 - n), at = (n - n0) * laid;
      if (!w.laid) lay_strip<V>(w, n, here, strips.data() + at);
      ends[(n - n0) / kOutputs].emplace(w, result, rows, n, here, here_laid + at, ones.data());
    }
    // The next strips are fetched a part with each block of rows.
    const int64_t row_bytes = w.laid ? laid : w.row_bytes();
    Ahead ahead(w, row_bytes, n0, n1, std::min(last, n1 + most), blocks, kOutputs, words);
    for (int64_t b = 0; b < blocks; ++b) {
      const int64_t m = m0 + (m1 - m0) * b / blocks;
      const int64_t end = m0 + (m1 - m0) * (b + 1) / blocks;
      const size_t count = static_cast<size_t>((end - m) * rows.digits);
      piece.x = static_cast<const Cell*>(rows.packed) + m * rows.digits * piece.stride;
      piece.sums = rows.sums + m * rows.digits;
      piece.row_scales = rows.scale + m;
      for (int64_t n = n0; n < n1; n += kOutputs) {
        const StripEnds<V>& end_of = *ends[(n - n0) / kOutputs];
        const int64_t here = std::min<int64_t>(kOutputs, n1 - n);
        piece.strip = here_laid + (n - n0) * laid;
        ahead.take(&piece.ahead, &piece.step);
        if (one_digit && here == kOutputs && result.dtype == Float::kF32) {
          piece.shift = end_of.shifts[0];
          piece.scales = end_of.scales;
          piece.biases = result.bias ? end_of.biases : nullptr;
          piece.y = static_cast<float*>(result.y) + m * w.outputs + n;
          plain[count - 1](piece);
          continue;
        }
        piece.out = out;
        other[count - 1](piece);
        for (int64_t i = m; i < end; ++i) {
          finish_strip<V>(rows, w, result, end_of, out + (i - m) * rows.digits * kOutputs,
                          i, n, here);
        }
      }
    }
  }
}

}  // namespace
}  // namespace jcompress
