// Products of many rows of int8 with a weight of at most four bits, for processors that
// add pairs of products of bytes in 16 bits: those hold the sums of 32 inputs. The outputs
// lie across the lanes of vectors; the weight may have scales by groups.
#pragma once

#include <algorithm>
#include <array>
#include <cstring>
#include <utility>

#include "floats.h"
#include "panel_lay.h"
#include "panel_weights.h"
#include "product.h"
#include "unrolled.h"

namespace jcompress {
namespace {

// A few rows and a strip of sixteen outputs.
struct NarrowPiece {
  const uint8_t* strip;  // [quad of inputs][output][4]
  const int8_t* x;       // [row][stride]
  int64_t stride;
  const int32_t* sums;   // [row][blocks], of the integers of each block of inputs
  int64_t blocks;
  int64_t quads;         // in a block
  int64_t in_group;      // blocks
  int32_t shift;         // of all weights, without zeros
  const int32_t* shifts;  // [group][output], with zeros
  const float* scales;    // [group][output], of a weight in groups
  float* out;             // [row][output], before they meet the scale of their row
};

// kGrouped: sums of groups are scaled and added up, else those of all inputs are whole
// numbers until the end.
template <class V, int kRows, bool kGrouped, bool kZeros>
[[gnu::noinline]] void multiply_narrow(const NarrowPiece& piece) {
  constexpr int kLanes = V::kLanes, kOutputs = kVectors * kLanes;
  const int64_t stride = piece.stride, quads = piece.quads;
  const int8_t* x[(kRows + 2) / 3];
  each<(kRows + 2) / 3>([&](auto b) JCOMPRESS_INLINE { x[b] = piece.x + 3 * b * stride; });
  const uint8_t* w = piece.strip;
  [[maybe_unused]] typename V::F scaled[kRows][kVectors];
  [[maybe_unused]] typename V::I whole[kRows][kVectors];
  each<kRows>([&](auto r) JCOMPRESS_INLINE {
    each<kVectors>([&](auto v) JCOMPRESS_INLINE {
      scaled[r][v] = V::zero_float();
      whole[r][v] = V::zero();
    });
  });
  for (int64_t block = 0; block < piece.blocks; ++block) {
    typename V::I pairs[kRows][kVectors];
    const auto weights = [&](typename V::I (&weight)[kVectors]) JCOMPRESS_INLINE {
      each<kVectors>([&](auto v) JCOMPRESS_INLINE { weight[v] = V::load(w + v * V::kBytes); });
      w += kVectors * V::kBytes;
    };
    typename V::I weight[kVectors];
    weights(weight);
    each<kRows>([&](auto r) JCOMPRESS_INLINE {
      V::start_bytes(pairs[r], weight, x[r / 3] + (r % 3) * stride);
    });
    for (int64_t q = 1; q < quads; ++q) {
      weights(weight);
      each<kRows>([&](auto r) JCOMPRESS_INLINE {
        V::add_bytes(pairs[r], weight, x[r / 3] + (r % 3) * stride + 4 * q);
      });
    }
    each<(kRows + 2) / 3>([&](auto b) JCOMPRESS_INLINE { x[b] += 4 * quads; });
    const int64_t group = block / piece.in_group;
    each<kRows>([&](auto r) JCOMPRESS_INLINE {
      const int32_t of_row = piece.sums[r * piece.blocks + block];
      each<kVectors>([&](auto v) JCOMPRESS_INLINE {
        const int64_t at = group * kOutputs + v * kLanes;
        typename V::I sum = V::sum_pairs(pairs[r][v]);
        if constexpr (kZeros) {
          sum = V::subtract(sum, V::multiply(V::load(piece.shifts + at),
                                             V::broadcast_word(of_row)));
        } else {
          sum = V::subtract(sum, V::broadcast_word(piece.shift * of_row));
        }
        if constexpr (kGrouped) {
          scaled[r][v] = V::add_scaled(scaled[r][v], sum, V::load_float(piece.scales + at));
        } else {
          whole[r][v] = V::plus(whole[r][v], sum);
        }
      });
    });
  }
  each<kRows>([&](auto r) JCOMPRESS_INLINE {
    each<kVectors>([&](auto v) JCOMPRESS_INLINE {
      typename V::F number = scaled[r][v];
      if constexpr (!kGrouped) number = V::to_float(whole[r][v]);
      V::store_float(piece.out + (r * kVectors + v) * kLanes, number);
    });
  });
}

template <class V, bool kGrouped, bool kZeros, int... kRows>
constexpr std::array<void (*)(const NarrowPiece&), sizeof...(kRows)> narrow_products(
    std::integer_sequence<int, kRows...>) {
  return {&multiply_narrow<V, kRows + 1, kGrouped, kZeros>...};
}

// Unpack `outputs` of the weight, a strip or fewer: strip[quad][output][4], each number
// plus half its range.
template <class V>
void lay_quads(const Weight& w, int64_t first, int64_t outputs, uint8_t* strip) {
  constexpr int kLanes = V::kLanes, kOutputs = kVectors * kLanes;
  constexpr int64_t kInputs = 64, kAhead = 512;
  const int64_t row_bytes = w.row_bytes();
  alignas(32) uint8_t plain[kOutputs][kInputs] = {};
  for (int64_t k = 0; k < w.inputs; k += kInputs, strip += kInputs * kOutputs) {
    const int64_t count = std::min(kInputs, w.inputs - k);
    for (int64_t n = 0; n < outputs; ++n) {
      const uint8_t* from = w.values + (first + n) * row_bytes + k * w.bits / 8;
      fetch_at<3>(from, kAhead);
      if (w.bits == 4 && count == kInputs) {
        V::unpack_nibbles(from, plain[n]);
      } else if (w.bits == 4) {
        unpack_bits<V, 4>(from, count, plain[n]);
      } else if (w.bits == 3) {
        unpack_bits<V, 3>(from, count, plain[n]);
      } else {
        unpack_bits<V, 2>(from, count, plain[n]);
      }
    }
    for (int64_t at = 0; at < kInputs; at += 4 * kLanes) {
      each<kVectors>([&](auto v) JCOMPRESS_INLINE {
        typename V::I words[kLanes];
        each<kLanes>([&](auto r) JCOMPRESS_INLINE {
          words[r] = V::load(plain[v * kLanes + r] + at);
        });
        V::transpose(words);
        each<kLanes>([&](auto r) JCOMPRESS_INLINE {
          V::store(strip + (at / 4 + r) * 4 * kOutputs + v * V::kBytes, words[r]);
        });
      });
    }
  }
}

// Write y[m0 : m1, first : last].
template <class V>
void multiply_narrow_rows(const PlainRows& rows, const Weight& w, const Result& result,
                          int64_t first, int64_t last, int64_t m0, int64_t m1) {
  constexpr int kLanes = V::kLanes, kOutputs = kVectors * kLanes, kMostRows = V::kStripRows;
  constexpr auto kRows = std::make_integer_sequence<int, kMostRows>{};
  static constexpr std::array<void (*)(const NarrowPiece&), kMostRows> kProducts[2][2] = {
      {narrow_products<V, false, false>(kRows), narrow_products<V, false, true>(kRows)},
      {narrow_products<V, true, false>(kRows), narrow_products<V, true, true>(kRows)}};
  const bool grouped = w.groups > 1;
  const auto& products = kProducts[grouped][w.zeros != nullptr];
  const int64_t laid = rows.filled() * kOutputs, most = strip_outputs(w.inputs);
  const int64_t strips = most / kOutputs, numbers = w.groups * kOutputs;
  Buffer<uint8_t> strip(strips * laid);
  Buffer<float> scales(strips * numbers);
  Buffer<int32_t> shifts(w.zeros ? strips * numbers : 0);
  alignas(32) float out[kMostRows * kOutputs];
  const int64_t blocks = (m1 - m0 + kMostRows - 1) / kMostRows;
  NarrowPiece piece{};
  piece.stride = rows.stride();
  piece.blocks = rows.blocks();
  piece.quads = rows.block / 4;
  piece.in_group = std::max<int64_t>(1, piece.blocks / w.groups);
  piece.shift = 1 << (w.bits - 1);
  if (!grouped) piece.in_group = piece.blocks;
  for (int64_t n0 = first; n0 < last; n0 += most) {
    const int64_t n1 = std::min(last, n0 + most);
    for (int64_t n = n0; n < n1; n += kOutputs) {
      const int64_t here = std::min<int64_t>(kOutputs, n1 - n), s = (n - n0) / kOutputs;
      lay_quads<V>(w, n, here, strip.data() + s * laid);
      float* to = scales.data() + s * numbers;
      for (int64_t g = 0; g < w.groups; ++g) {
        for (int64_t i = 0; i < kOutputs; ++i) {
          const bool there = i < here;
          to[g * kOutputs + i] = there ? w.scales[(n + i) * w.groups + g] : 0.0f;
          if (!w.zeros) continue;
          shifts[s * numbers + g * kOutputs + i] = there ? shift_of(w, n + i, g) : 0;
        }
      }
    }
    for (int64_t b = 0; b < blocks; ++b) {
      const int64_t m = m0 + (m1 - m0) * b / blocks, end = m0 + (m1 - m0) * (b + 1) / blocks;
      piece.x = static_cast<const int8_t*>(rows.packed) + m * piece.stride;
      piece.sums = rows.sums + m * piece.blocks;
      for (int64_t n = n0; n < n1; n += kOutputs) {
        const int64_t here = std::min<int64_t>(kOutputs, n1 - n), s = (n - n0) / kOutputs;
        piece.strip = strip.data() + s * laid;
        piece.scales = scales.data() + s * numbers;
        piece.shifts = shifts.data() + (w.zeros ? s * numbers : 0);
        piece.out = out;
        products[static_cast<size_t>(end - m - 1)](piece);
        for (int64_t i = m; i < end; ++i) {
          const typename V::F by_row = V::broadcast(rows.scale[i]);
          for (int64_t v = 0; v < here; v += kLanes) {
            typename V::F y = V::times(V::load_float(out + (i - m) * kOutputs + v), by_row);
            if (!grouped) y = V::times(y, V::load_float(piece.scales + v));
            const int64_t at = i * w.outputs + n + v, left = std::min<int64_t>(kLanes, here - v);
            if (result.bias && left == kLanes) {
              y = V::add(y, V::load_float(result.bias + n + v));
            } else if (result.bias) {
              alignas(32) float some[kLanes] = {};
              std::memcpy(some, result.bias + n + v, static_cast<size_t>(left) * sizeof(float));
              y = V::add(y, V::load_float(some));
            }
            write_vector<V>(y, result, at, left);
          }
        }
      }
    }
  }
}

}  // namespace
}  // namespace jcompress
