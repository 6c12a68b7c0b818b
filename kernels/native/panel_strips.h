// Products of many rows of small integers with a weight that has one scale an output. The
// outputs lie across the lanes of vectors, so that no result is ever turned round: a strip
// of the weight is unpacked and turned once, and multiplies all rows.
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

constexpr int kMostRows = 12;  // that a strip multiplies at once, all in registers
constexpr int64_t kStripBytes = 224 << 10;  // of strips that stay in the second-level cache
constexpr int64_t kStripOutputs = 128;      // most outputs of them

// How many outputs are unpacked at a time.
inline int64_t strip_outputs(int64_t inputs) {
  return std::clamp<int64_t>(kStripBytes / inputs / 32 * 32, 32, kStripOutputs);
}

// A few rows and a strip.
struct StripPiece {
  const uint8_t* strip;  // [quad][vector][lane][4]
  const int8_t* x;       // [row][stride]
  int64_t stride;
  int64_t quads;         // filled up to four
  const int32_t* sums;   // of each row
  // Read later, so that memory is busy while this is multiplied: `step` bytes a quad.
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

template <class V, int kRows, bool kPlain>
[[gnu::noinline]] void multiply_strip(const StripPiece& piece) {
  constexpr int kLanes = V::kLanes, kTogether = 4, kLine = 64 / 4;
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
  const int8_t* x[kBases];
  each<kBases>([&](auto b) JCOMPRESS_INLINE { x[b] = piece.x + 3 * b * stride; });
  const uint8_t* w = piece.strip;
  int64_t ahead = 0;
  for (int64_t k = 0; k < piece.quads; k += kTogether) {
    if (k % kLine == 0) {
      each<kRows>([&](auto r) JCOMPRESS_INLINE {
        fetch_at<3>(x[r / 3], (r % 3) * stride + 256);
      });
    }
    each<kTogether>([&](auto q) JCOMPRESS_INLINE {
      fetch_at<2>(piece.ahead, ahead);
      ahead += piece.step;
      typename V::I weight[kVectors];
      each<kVectors>([&](auto v) JCOMPRESS_INLINE {
        weight[v] = V::load(w + (q * kVectors + v) * V::kBytes);
      });
      each<kRows>([&](auto r) JCOMPRESS_INLINE {
        const int8_t* from = x[r / 3] + (r % 3) * stride + 4 * q;
        each<kVectors>([&](auto v) JCOMPRESS_INLINE {
          sums[r][v] = V::dot_word(sums[r][v], weight[v], from);
        });
      });
    });
    w += kTogether * kVectors * V::kBytes;
    each<kBases>([&](auto b) JCOMPRESS_INLINE { x[b] += 4 * kTogether; });
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
template <class V, bool kPlain, int... kRows>
constexpr std::array<void (*)(const StripPiece&), sizeof...(kRows)> strip_products(
    std::integer_sequence<int, kRows...>) {
  return {&multiply_strip<V, kRows + 1, kPlain>...};
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
            int64_t outputs, const uint8_t* strip, const int8_t* ones) {
    for (int64_t n = 0; n < outputs; ++n) {
      shifts[n] = shift_of(w, first + n, 0);
      scales[n] = w.scales[first + n];
      if (result.bias) biases[n] = result.bias[first + n];
    }
    if (!rows.zero) return;
    for (int v = 0; v < kVectors; ++v) {
      typename V::I sum = V::zero();
      for (int64_t k = 0; k < (w.inputs + 15) / 16 * 4; ++k) {
        const uint8_t* weight = strip + (k * kVectors + v) * V::kBytes;
        sum = V::dot_word(sum, V::load(weight), ones + 4 * k);
      }
      const typename V::I shift = V::load(shifts + v * V::kLanes);
      const typename V::I inputs = V::broadcast_word(static_cast<int32_t>(w.inputs));
      V::store(whole + v * V::kLanes, V::subtract(sum, V::multiply(inputs, shift)));
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
    const int64_t start = m * w.outputs + first + n;
    if (result.dtype == Float::kF32 && outputs - n >= kLanes) {
      V::store_float(static_cast<float*>(result.y) + start, number);
    } else {
      write_some<V>(number, result, start, std::min<int64_t>(kLanes, outputs - n));
    }
  }
}

// Write y[m0 : m1, first : last].
template <class V>
void multiply_rows(const PlainRows& rows, const Weight& w, const Result& result,
                   int64_t first, int64_t last, int64_t m0, int64_t m1) {
  constexpr int kOutputs = kVectors * V::kLanes;
  static constexpr auto kPlain =
      strip_products<V, true>(std::make_integer_sequence<int, kMostRows>{});
  static constexpr auto kOther =
      strip_products<V, false>(std::make_integer_sequence<int, kMostRows>{});
  const int64_t filled = rows.filled(), laid = laid_inputs(w);
  const int64_t most = strip_outputs(w.inputs);
  Buffer<uint8_t> strips(most * laid);
  alignas(64) int32_t out[kMostRows * kOutputs];
  // A row of ones, if what the weights sum up to is asked for.
  Buffer<int8_t> ones(rows.zero ? filled : 0);
  if (rows.zero) {
    std::memset(ones.data(), 1, w.inputs);
    std::memset(ones.data() + w.inputs, 0, filled - w.inputs);
    order_inputs<V>(ones.data(), filled, w.bits);
  }
  // Rows as evenly in blocks as can be, each with all its digits.
  const int64_t in_block = std::max<int64_t>(1, kMostRows / rows.digits);
  const int64_t blocks = (m1 - m0 + in_block - 1) / in_block;
  StripPiece piece{};
  piece.stride = rows.stride();
  piece.quads = (w.inputs + 15) / 16 * 4;
  piece.outputs = w.outputs;
  const bool one_digit = rows.digits == 1 && !rows.zero && !w.zeros;
  for (int64_t n0 = first; n0 < last; n0 += most) {
    const int64_t n1 = std::min(last, n0 + most);
    std::array<std::optional<StripEnds<V>>, kStripOutputs / kOutputs> ends;
    for (int64_t n = n0; n < n1; n += kOutputs) {
      uint8_t* strip = strips.data() + (n - n0) * laid;
      const int64_t here = std::min<int64_t>(kOutputs, n1 - n);
      lay_strip<V>(w, n, here, strip);
      ends[(n - n0) / kOutputs].emplace(w, result, rows, n, here, strip, ones.data());
    }
    // The next strips are fetched a part with each block of rows.
    const int64_t bytes = (std::min(last, n1 + most) - n1) * w.row_bytes();
    const int64_t fetches = blocks * ((n1 - n0 + kOutputs - 1) / kOutputs) * piece.quads;
    const uint8_t* ahead = w.values + n1 * w.row_bytes();
    const uint8_t* end_ahead = ahead + bytes;
    piece.step = bytes ? std::max<int64_t>(1, (bytes + fetches - 1) / fetches) : 0;
    for (int64_t b = 0; b < blocks; ++b) {
      const int64_t m = m0 + (m1 - m0) * b / blocks;
      const int64_t end = m0 + (m1 - m0) * (b + 1) / blocks;
      const size_t count = static_cast<size_t>((end - m) * rows.digits);
      piece.x = rows.packed + m * rows.digits * piece.stride;
      piece.sums = rows.sums + m * rows.digits;
      piece.row_scales = rows.scale + m;
      for (int64_t n = n0; n < n1; n += kOutputs) {
        const StripEnds<V>& end_of = *ends[(n - n0) / kOutputs];
        const int64_t here = std::min<int64_t>(kOutputs, n1 - n);
        piece.strip = strips.data() + (n - n0) * laid;
        piece.ahead = ahead;
        ahead += piece.step * piece.quads;
        if (ahead >= end_ahead) piece.step = 0;
        if (one_digit && here == kOutputs && result.dtype == Float::kF32) {
          piece.shift = end_of.shifts[0];
          piece.scales = end_of.scales;
          piece.biases = result.bias ? end_of.biases : nullptr;
          piece.y = static_cast<float*>(result.y) + m * w.outputs + n;
          kPlain[count - 1](piece);
          continue;
        }
        piece.out = out;
        kOther[count - 1](piece);
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
