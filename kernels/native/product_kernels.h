// The product kernels, written once over a vector type `V` (see vector_*.h) and compiled
// once for each instruction set. Everything here has internal linkage: each translation
// unit must keep the code that was compiled for it.
//
// A sum runs along the inputs, which lie next to each other both in a row of
// activations and in a row of the weight: so the weight is read as it is stored, once,
// and never rearranged. For many rows panel_kernels.h has what is faster.
#pragma once

#include <algorithm>
#include <cstring>
#include <optional>

#include "epilogue.h"
#include "floats.h"
#include "panel_kernels.h"
#include "product.h"
#include "tile_ends.h"
#include "tile_sums.h"

namespace jcompress {
namespace {

constexpr int64_t kFirstCache = 22 << 10;    // bytes for which a set and a tile are cut
constexpr int64_t kSecondCache = 384 << 10;  // bytes of activations that stay close

// The last outputs of a weight whose number is no multiple of a set, filled up.
class LastSet {
 public:
  LastSet(const Weight& w, int64_t first, int64_t outputs)
      : values_(kSet * w.row_bytes()),
        scales_(kSet * w.groups),
        zeros_(kSet * w.groups),
        has_zeros_(w.zeros != nullptr) {
    const int64_t bytes = w.row_bytes();
    std::memset(values_.data(), 0, kSet * bytes);
    std::memcpy(values_.data(), w.values + first * bytes, outputs * bytes);
    std::memset(scales_.data(), 0, kSet * w.groups * sizeof(float));
    std::memcpy(scales_.data(), w.scales + first * w.groups,
                outputs * w.groups * sizeof(float));
    if (has_zeros_) {
      std::memset(zeros_.data(), 0, kSet * w.groups);
      std::memcpy(zeros_.data(), w.zeros + first * w.groups, outputs * w.groups);
    }
  }
  const uint8_t* values() const { return values_.data(); }
  const float* scales() const { return scales_.data(); }
  const int8_t* zeros() const { return has_zeros_ ? zeros_.data() : nullptr; }

 private:
  Buffer<uint8_t> values_;
  Buffer<float> scales_;
  Buffer<int8_t> zeros_;
  bool has_zeros_;
};

// ---- The whole ----

// Fetch what the first outputs read first, all at once.
inline void fetch_beginning(const Weight& w, int64_t first, int64_t last) {
  const int64_t row_bytes = w.row_bytes(), each = kAhead / (last - first);
  for (int64_t n = first; n < last; ++n) {
    fetch_lines(reinterpret_cast<uintptr_t>(w.values + n * row_bytes),
                std::min(row_bytes, each));
    if (w.groups > 1) {
      fetch_lines(reinterpret_cast<uintptr_t>(w.scales + n * w.groups),
                  std::min(4 * w.groups, each / 4));
    }
  }
}

constexpr int64_t kExactInputs = 32768;  // of which int32 holds the sum of products

template <class V, int kBits, Grouping kGrouping>
void multiply_outputs(const Rows& rows, const Weight& w, const Result& result,
                      int64_t m_count, int64_t first, int64_t last) {
  constexpr int kStep = step_bytes<V, kBits>();
  constexpr bool kExact = kGrouping == Grouping::kNone;
  const int64_t row_bytes = w.row_bytes();
  const int64_t whole = row_bytes / kStep;
  const int64_t ahead = fetched_ahead(row_bytes);
  const int tail = static_cast<int>(row_bytes - whole * kStep);
  const int64_t per_row = rows.sums_per_row(w.groups);
  Groups g{w.scales, w.zeros, rows.sums, w.groups, 1, 1, 0};
  if (kGrouping == Grouping::kSteps) g.steps = w.group_size() / rows.cut.step_inputs();
  if (kGrouping == Grouping::kLanes) g.in_step = rows.cut.step_inputs() / w.group_size();

  // Rows in blocks that stay in the second-level cache; steps in blocks of which a tile
  // and a set of outputs stay in the first.
  const int64_t block_tiles = std::clamp<int64_t>(
      kSecondCache / std::max<int64_t>(1, rows.tile_bytes()), 1, 64);
  const int64_t one_step = kSet * kStep + Rows::kTile * rows.step_bytes();
  int64_t block_steps = std::max<int64_t>(1, whole);
  if (rows.tiles() > 1) {
    block_steps = std::max<int64_t>(4, kFirstCache / one_step);
    block_steps = std::max(g.steps, block_steps / g.steps * g.steps);
    // Blocks of nearly equal length.
    const int64_t blocks = (whole + block_steps - 1) / block_steps;
    if (blocks > 0) {
      block_steps = (whole + blocks - 1) / blocks;
      block_steps = (block_steps + g.steps - 1) / g.steps * g.steps;
    }
  }
  const bool long_sums = kExact && w.inputs > kExactInputs;
  if (long_sums) block_steps = std::min(block_steps, kExactInputs / rows.cut.step_inputs());
  const int64_t block_rows = std::min(block_tiles, rows.tiles()) * rows.tile;
  Buffer<int32_t> sums(block_rows * kSet);
  Buffer<int64_t> wide(long_sums ? block_rows * kSet : 0);
  Buffer<int64_t> ones(rows.ones ? (last - first + kSet) : 0);

  for (int64_t t0 = 0; t0 < rows.tiles(); t0 += block_tiles) {
    const int64_t t1 = std::min(rows.tiles(), t0 + block_tiles);
    const int64_t r0 = t0 * rows.tile;
    const int64_t r1 = std::min(rows.count, t1 * rows.tile);
    const int64_t in_block = (r1 - r0) * kSet;
    const bool with_ones = rows.ones && t0 == 0;
    const int64_t m0 = (r0 - rows.ones + (with_ones ? 1 : 0)) / rows.digits;
    const int64_t m1 = std::min(m_count, (r1 - rows.ones) / rows.digits);
    fetch_beginning(w, first, std::min(last, first + ahead));
    for (int64_t n = first; n < last; n += kSet) {
      const int outputs = static_cast<int>(std::min<int64_t>(kSet, last - n));
      const uint8_t* values = w.values + n * row_bytes;
      Groups set = g;
      set.scales += n * w.groups;
      if (set.zeros) set.zeros += n * w.groups;
      // Beyond the end another thread reads.
      set.later = n + ahead < last ? ahead : 0;
      std::optional<LastSet> filled;
      if (outputs < kSet) {
        filled.emplace(w, n, outputs);
        values = filled->values();
        set.scales = filled->scales();
        set.zeros = filled->zeros();
      }
      const uintptr_t later = reinterpret_cast<uintptr_t>(values) +
                              static_cast<uintptr_t>(set.later * row_bytes);
      std::memset(sums.data(), 0, block_rows * kSet * sizeof(int32_t));
      if (long_sums) std::memset(wide.data(), 0, in_block * sizeof(int64_t));
      for (int64_t s = 0; s < rows.steps; s += block_steps) {
        const int64_t end = std::min(whole, s + block_steps);
        for (int64_t t = t0; t < t1 && s < end; ++t) {
          const Tile tile = tile_of(rows, t);
          set.sums = rows.sums + tile.first * per_row;
          tile_rows<V, kBits, kGrouping>(
              tile.padded,
              {tile.x, values + s * kStep, row_bytes, s, end, set.later && t == t0, later},
              set,
              sums.data() + (tile.first - r0) * kSet);
        }
        if (end == whole && tail && s + block_steps >= whole) {
          // The rest of each row of the weight, filled up to a step.
          alignas(64) uint8_t rest[kSet * kStep] = {};
          for (int i = 0; i < kSet; ++i) {
            std::memcpy(rest + i * kStep, values + i * row_bytes + whole * kStep, tail);
          }
          for (int64_t t = t0; t < t1; ++t) {
            const Tile tile = tile_of(rows, t);
            set.sums = rows.sums + tile.first * per_row;
            tile_rows<V, kBits, kGrouping>(
                tile.padded, {tile.x, rest, kStep, whole, whole + 1, false, 0}, set,
                sums.data() + (tile.first - r0) * kSet);
          }
          s = rows.steps;
        }
        if (long_sums) {
          for (int64_t i = 0; i < in_block; ++i) wide[i] += sums[i];
          std::memset(sums.data(), 0, in_block * sizeof(int32_t));
        }
      }
      const int64_t skip = with_ones ? kSet : 0;
      if constexpr (kExact) {
        if (with_ones) {
          for (int i = 0; i < kSet; ++i) {
            ones[n - first + i] = long_sums ? wide[i] : sums[i];
          }
        }
        int32_t narrow_ones[kSet] = {};
        for (int i = 0; i < kSet && rows.ones; ++i) {
          narrow_ones[i] = static_cast<int32_t>(ones[n - first + i]);
        }
        if (long_sums) {
          finish_exact<int64_t>(rows, w, result, m0, m1, n, outputs, wide.data() + skip,
                                rows.ones ? ones.data() + (n - first) : nullptr);
        } else {
          finish_exact<int32_t>(rows, w, result, m0, m1, n, outputs, sums.data() + skip,
                                narrow_ones);
        }
      } else {
        finish_grouped(rows, w, result, m0, m1, n, outputs,
                       reinterpret_cast<const float*>(sums.data()));
      }
    }
  }
}

template <class V, int kBits>
void multiply_bits(const Rows& rows, const Weight& w, const Result& result,
                   int64_t m_count, int64_t first, int64_t last) {
  switch (rows.grouping) {
    case Grouping::kNone:
      return multiply_outputs<V, kBits, Grouping::kNone>(rows, w, result, m_count,
                                                         first, last);
    case Grouping::kSteps:
      return multiply_outputs<V, kBits, Grouping::kSteps>(rows, w, result, m_count,
                                                          first, last);
    default:
      return multiply_outputs<V, kBits, Grouping::kLanes>(rows, w, result, m_count,
                                                          first, last);
  }
}

template <class V>
void multiply(const Rows& rows, const Weight& w, const Result& result, int64_t m_count,
              int64_t first, int64_t last) {
  switch (w.bits) {
    case 2:
      return multiply_bits<V, 2>(rows, w, result, m_count, first, last);
    case 3:
      return multiply_bits<V, 3>(rows, w, result, m_count, first, last);
    case 4:
      return multiply_bits<V, 4>(rows, w, result, m_count, first, last);
    default:
      return multiply_bits<V, 8>(rows, w, result, m_count, first, last);
  }
}

template <class V>
constexpr Products products_for() {
  return Products{&cut_of<V>,      &pack_rows<V>,  &multiply<V>,
                  &largest_of,     &write_digits,  &pack_patches<V>,
                  many_rows<V>(), &finish_block};
}

}  // namespace
}  // namespace jcompress
