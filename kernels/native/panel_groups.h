// The same as panel_strips.h with a weight that has scales by groups. Of a strip its scales,
// and what its groups' zeros take away, lie behind its integers.
#pragma once

#include <algorithm>
#include <array>
#include <cstring>
#include <utility>

#include "floats.h"
#include "panel_lay.h"
#include "panel_rows.h"
#include "panel_strips.h"
#include "panel_weights.h"
#include "product.h"
#include "unrolled.h"

namespace jcompress {
namespace {

constexpr int kGroupRows = 6;  // 12 sums, 12 totals, 4 vectors of weights, 1 of data

// A few rows and a strip.
struct GroupPiece {
  const uint8_t* strip;   // [word][vector][lane][4]
  const int8_t* x;        // [row][stride]
  int64_t stride;
  int64_t groups;
  int64_t words;          // of a group
  const int32_t* sums;    // [row][group], of the integers
  int32_t shift;          // of all weights, without zeros
  const int32_t* shifts;  // [group][output of the strip], with zeros
  const float* scales;    // the same
  const uint8_t* ahead;   // as in StripPiece
  int64_t step;
  // What follows if a row has one digit.
  const float* row_scales;
  const float* biases;  // or null
  float* y;             // [row][outputs]
  int64_t outputs;
  // Else where what the groups add up to is written, [row][output of the strip].
  float* out;
};

template <class V, int kBits, int kRows, bool kZeros>
[[gnu::noinline]] void multiply_groups(const GroupPiece& piece) {
  constexpr int kLanes = V::kLanes, kOutputs = kVectors * kLanes, kParts = 8 / kBits;
  constexpr int kBases = (kRows + 2) / 3;
  const int64_t stride = piece.stride, words = piece.words, groups = piece.groups;
  const int8_t* x[kBases];
  each<kBases>([&](auto b) JCOMPRESS_INLINE { x[b] = piece.x + 3 * b * stride; });
  const uint8_t* w = piece.strip;
  int64_t ahead = 0;
  typename V::F totals[kRows][kVectors];
  each<kRows>([&](auto r) JCOMPRESS_INLINE {
    each<kVectors>([&](auto v) JCOMPRESS_INLINE { totals[r][v] = V::zero_float(); });
  });
  const int64_t group_bytes = 4 * kParts * words;  // of a row
  for (int64_t group = 0; group < groups; ++group) {
    for (int64_t at = 0; at < group_bytes; at += 64) {
      each<kRows>([&](auto r) JCOMPRESS_INLINE {
        fetch_at<3>(x[r / 3], (r % 3) * stride + 256 + at);
      });
    }
    typename V::I sums[kRows][kVectors];
    each<kRows>([&](auto r) JCOMPRESS_INLINE {
      const int32_t of_row = piece.sums[r * groups + group];
      if constexpr (kZeros) {
        const typename V::I left = V::broadcast_word(-of_row);
        each<kVectors>([&](auto v) JCOMPRESS_INLINE {
          sums[r][v] = V::multiply(V::load(piece.shifts + group * kOutputs + v * kLanes), left);
        });
      } else {
        const typename V::I start = V::broadcast_word(-piece.shift * of_row);
        each<kVectors>([&](auto v) JCOMPRESS_INLINE { sums[r][v] = start; });
      }
    });
    for (int64_t word = 0; word < words; ++word) {
      fetch_ahead(piece.ahead, piece.step, &ahead);
      unpack_words<V, kBits>(w, [&](auto part, const typename V::I (&weight)[kVectors])
                                    JCOMPRESS_INLINE {
        each<kRows>([&](auto r) JCOMPRESS_INLINE {
          V::dot_step(sums[r], weight, x[r / 3] + (r % 3) * stride + 4 * part);
        });
      });
      w += kVectors * V::kStripBytes;
      each<kBases>([&](auto b) JCOMPRESS_INLINE { x[b] += 4 * kParts; });
    }
    each<kVectors>([&](auto v) JCOMPRESS_INLINE {
      const typename V::F scale = V::load_float(piece.scales + group * kOutputs + v * kLanes);
      each<kRows>([&](auto r) JCOMPRESS_INLINE {
        totals[r][v] = V::add_scaled(totals[r][v], sums[r][v], scale);
      });
    });
  }
  each<kRows>([&](auto r) JCOMPRESS_INLINE {
    each<kVectors>([&](auto v) JCOMPRESS_INLINE {
      if (piece.out) {
        V::store_float(piece.out + r * kOutputs + v * kLanes, totals[r][v]);
      } else {
        auto number = V::times(totals[r][v], V::broadcast(piece.row_scales[r]));
        if (piece.biases) {
          number = V::add(number, V::load_float(piece.biases + v * kLanes));
        }
        V::store_float(piece.y + r * piece.outputs + v * kLanes, number);
      }
    });
  });
}

using GroupProducts = std::array<void (*)(const GroupPiece&), kGroupRows>;

template <class V, int kBits, bool kZeros, int... kRows>
constexpr GroupProducts group_products(std::integer_sequence<int, kRows...>) {
  return {&multiply_groups<V, kBits, kRows + 1, kZeros>...};
}

template <class V>
const GroupProducts& group_products_of(int bits, bool zeros) {
  constexpr auto kRows = std::make_integer_sequence<int, kGroupRows>{};
  static constexpr GroupProducts kProducts[2][2] = {
      {group_products<V, 8, false>(kRows), group_products<V, 8, true>(kRows)},
      {group_products<V, 4, false>(kRows), group_products<V, 4, true>(kRows)}};
  return kProducts[bits == 4][zeros];
}

// Sixteen numbers of as many groups of sixteen outputs, from [output][groups] to
// [group][output of the strip].
template <class V>
void turn_groups(const float* from, int64_t groups, int64_t outputs, float* to) {
  constexpr int kLanes = V::kLanes, kOutputs = kVectors * kLanes;
  for (int v = 0; v < kVectors; ++v) {
    const int64_t here = std::clamp<int64_t>(outputs - v * kLanes, 0, kLanes);
    for (int64_t g = 0; g < groups; g += kLanes) {
      alignas(64) float square[kLanes][kLanes] = {};
      const int64_t count = std::min<int64_t>(kLanes, groups - g);
      for (int64_t i = 0; i < here; ++i) {
        const float* row = from + (v * kLanes + i) * groups + g;
        if (count == kLanes) {
          std::memcpy(square[i], row, sizeof(square[i]));
        } else {
          std::memcpy(square[i], row, static_cast<size_t>(count) * sizeof(float));
        }
      }
      V::transpose(square);
      for (int64_t i = 0; i < count; ++i) {
        std::memcpy(to + (g + i) * kOutputs + v * kLanes, square[i], sizeof(square[i]));
      }
    }
  }
}

// The bytes of a strip and of what lies behind it.
template <class V>
int64_t group_strip_bytes(const Weight& w) {
  constexpr int64_t kOutputs = kVectors * V::kLanes;
  const int64_t numbers = w.groups * kOutputs * (w.zeros ? 2 : 1);
  return kOutputs * laid_row<V>(w) + 4 * numbers;
}

template <class V>
void lay_group_strip(const Weight& w, int64_t first, int64_t outputs, uint8_t* strip) {
  constexpr int64_t kOutputs = kVectors * V::kLanes;
  lay_strip<V>(w, first, outputs, strip);
  float* const scales = reinterpret_cast<float*>(strip + kOutputs * laid_row<V>(w));
  turn_groups<V>(w.scales + first * w.groups, w.groups, outputs, scales);
  if (!w.zeros) return;
  int32_t* const shifts = reinterpret_cast<int32_t*>(scales + w.groups * kOutputs);
  std::fill_n(shifts, w.groups * kOutputs, 0);
  for (int64_t n = 0; n < outputs; ++n) {
    for (int64_t g = 0; g < w.groups; ++g) {
      shifts[g * kOutputs + n] = shift_of(w, first + n, g);
    }
  }
}

// Results of row m, of several digits or not of float32, from what the groups of its digits
// add up to, totals[digit][output of the strip].
template <class V>
void finish_groups(const PlainRows& rows, const Weight& w, const Result& result,
                   const float* biases, const float* totals, int64_t m, int64_t first,
                   int64_t outputs) {
  constexpr int kLanes = V::kLanes, kOutputs = kVectors * kLanes;
  using F = typename V::F;
  const F digit = V::broadcast(1.0f / static_cast<float>(kBase));
  for (int64_t n = 0; n < outputs; n += kLanes) {
    F number = V::load_float(totals + (rows.digits - 1) * kOutputs + n);
    for (int j = rows.digits - 2; j >= 0; --j) {
      number = V::add(V::load_float(totals + j * kOutputs + n), V::times(number, digit));
    }
    number = V::times(number, V::broadcast(rows.scale[m]));
    if (result.bias) number = V::add(number, V::load_float(biases + n));
    write_vector<V>(number, result, m * w.outputs + first + n, outputs - n);
  }
}

// As `multiply_strips_of`.
template <class V>
void multiply_groups_of(const PlainRows& rows, const Weight& w, const Result& result,
                        int64_t first, int64_t last, int64_t m0, int64_t m1) {
  constexpr int kOutputs = kVectors * V::kLanes;
  const GroupProducts& products =
      group_products_of<V>(laid_bits<V>(w.bits), w.zeros != nullptr);
  const int64_t bytes = group_strip_bytes<V>(w), most = strip_outputs(bytes / kOutputs);
  Buffer<uint8_t> strips(w.laid ? 0 : most / kOutputs * bytes);
  alignas(64) float out[kGroupRows * kOutputs], biases[kOutputs] = {};
  const int64_t in_block = std::max<int64_t>(1, kGroupRows / rows.digits);
  const int64_t blocks = (m1 - m0 + in_block - 1) / in_block;
  GroupPiece piece{};
  piece.stride = rows.stride();
  piece.groups = w.groups;
  piece.words = w.group_size() * laid_bits<V>(w.bits) / 32;
  piece.shift = 1 << (w.bits - 1);
  piece.outputs = w.outputs;
  const int64_t words = piece.words * w.groups;
  for (int64_t n0 = first; n0 < last; n0 += most) {
    const int64_t n1 = std::min(last, n0 + most);
    const uint8_t* const here_laid = w.laid ? w.laid + n0 / kOutputs * bytes : strips.data();
    for (int64_t n = n0; n < n1 && !w.laid; n += kOutputs) {
      lay_group_strip<V>(w, n, std::min<int64_t>(kOutputs, n1 - n),
                         strips.data() + (n - n0) / kOutputs * bytes);
    }
    const int64_t row_bytes = w.laid ? bytes / kOutputs : w.row_bytes();
    Ahead ahead(w, row_bytes, n0, n1, std::min(last, n1 + most), blocks, kOutputs, words);
    for (int64_t b = 0; b < blocks; ++b) {
      const int64_t m = m0 + (m1 - m0) * b / blocks;
      const int64_t end = m0 + (m1 - m0) * (b + 1) / blocks;
      piece.x = static_cast<const int8_t*>(rows.packed) + m * rows.digits * piece.stride;
      piece.sums = rows.sums + m * rows.digits * w.groups;
      piece.row_scales = rows.scale + m;
      for (int64_t n = n0; n < n1; n += kOutputs) {
        const int64_t here = std::min<int64_t>(kOutputs, n1 - n);
        piece.strip = here_laid + (n - n0) / kOutputs * bytes;
        piece.scales = reinterpret_cast<const float*>(piece.strip + kOutputs * laid_row<V>(w));
        piece.shifts = reinterpret_cast<const int32_t*>(piece.scales + w.groups * kOutputs);
        ahead.take(&piece.ahead, &piece.step);
        const bool plain =
            rows.digits == 1 && here == kOutputs && result.dtype == Float::kF32;
        piece.out = plain ? nullptr : out;
        piece.y = plain ? static_cast<float*>(result.y) + m * w.outputs + n : nullptr;
        piece.biases = result.bias ? result.bias + n : nullptr;
        products[static_cast<size_t>((end - m) * rows.digits - 1)](piece);
        if (plain) continue;
        if (result.bias) {
          std::memcpy(biases, result.bias + n, static_cast<size_t>(here) * sizeof(float));
        }
        for (int64_t i = m; i < end; ++i) {
          finish_groups<V>(rows, w, result, biases, out + (i - m) * rows.digits * kOutputs,
                           i, n, here);
        }
      }
    }
  }
}

// ---- Weights in groups or not ----

// The bytes of a whole weight in strips, the last one filled up; 0 if that would take more
// memory than the weight as it is stored.
template <class V>
int64_t laid_bytes(const Weight& w) {
  constexpr int64_t kOutputs = kVectors * V::kLanes;
  if (laid_bits<V>(w.bits) != w.bits) return 0;
  const int64_t strips = (w.outputs + kOutputs - 1) / kOutputs;
  if constexpr (V::kStepInputs == 4) {
    if (w.groups > 1) return strips * group_strip_bytes<V>(w);
  }
  return strips * kOutputs * laid_row<V>(w);
}

template <class V>
void lay_weight(const Weight& w, uint8_t* out) {
  constexpr int64_t kOutputs = kVectors * V::kLanes;
  for (int64_t n = 0; n < w.outputs; n += kOutputs) {
    const int64_t here = std::min(kOutputs, w.outputs - n);
    if constexpr (V::kStepInputs == 4) {
      if (w.groups > 1) {
        lay_group_strip<V>(w, n, here, out + n / kOutputs * group_strip_bytes<V>(w));
        continue;
      }
    }
    lay_strip<V>(w, n, here, out + n * laid_row<V>(w));
  }
}

// Write y[m0 : m1, first : last]; `first` begins a strip.
template <class V>
void multiply_rows(const PlainRows& rows, const Weight& w, const Result& result,
                   int64_t first, int64_t last, int64_t m0, int64_t m1) {
  if constexpr (V::kStepInputs == 4) {
    if (w.groups > 1) {
      return multiply_groups_of<V>(rows, w, result, first, last, m0, m1);
    }
  }
  multiply_strips_of<V>(rows, w, result, first, last, m0, m1);
}

}  // namespace
}  // namespace jcompress
