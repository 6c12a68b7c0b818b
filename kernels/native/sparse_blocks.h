// Products with blocks. For a few rows of activations a vector runs along the inputs of
// a block, if blocks of that shape fill vectors; else vectors run along the rows, which
// are transposed first, and each weight of a block multiplies a vector.
#pragma once

#include <algorithm>
#include <cstring>

#include "product_kernels.h"
#include "sparse_floats.h"
#include "sparse.h"

namespace jcompress {
namespace {

template <class F>
auto with_stored(Float dtype, const void* values, F&& f) {
  switch (dtype) {
    case Float::kF32:
      return f(static_cast<const float*>(values));
    case Float::kBF16:
      return f(static_cast<const uint16_t*>(values));
    default:
      return f(static_cast<const int8_t*>(values));
  }
}

// ---- Vectors along the inputs ----

// How vectors of kLanes lie in a block.
enum class Along : int32_t {
  kNever,
  kInputs,   // in one row of it
  kOutputs,  // a vector is some whole rows of it
  kBlocks,   // a vector is some whole blocks of one row
};

constexpr int64_t kAlongRows = 3;      // up to which vectors run along inputs
constexpr int64_t kAlongWideRows = 8;  // the same, for vectors in a row of a block

inline Along along(const BlockWeight& w, int lanes) {
  if (w.wide % lanes == 0) return Along::kInputs;
  const bool power = w.wide == 1 || w.wide == 2 || w.wide == 4 || w.wide == 8;
  if (!power || w.wide >= lanes) return Along::kNever;
  if (w.high * w.wide % lanes == 0) return Along::kOutputs;
  const bool joined = w.high == 1 && (w.wide == 4 || w.wide == 8);
  return joined && lanes > 4 ? Along::kBlocks : Along::kNever;
}

// One row of blocks: the first of them, where their columns are, how many.
template <class T>
struct BlockRow {
  const T* blocks;
  const int32_t* columns;
  int64_t count;
};

template <class V, class T, int kOutputs>
[[gnu::noinline]] void dot_inputs(const BlockRow<T>& row, const float* x, int64_t size,
                                  int64_t wide, int64_t first, float* out) {
  typename V::F sums[kOutputs];
  each<kOutputs>([&](auto n) JCOMPRESS_INLINE { sums[n] = V::zero(); });
  const T* w = row.blocks + first * wide;
  for (int64_t b = 0; b < row.count; ++b, w += size) {
    const float* from = x + row.columns[b] * wide;
    for (int64_t k = 0; k < wide; k += V::kLanes) {
      const typename V::F part = V::load(from + k);
      each<kOutputs>([&](auto n) JCOMPRESS_INLINE {
        sums[n] = V::fma(V::from(w + n * wide + k), part, sums[n]);
      });
    }
  }
  each<kOutputs>([&](auto n) JCOMPRESS_INLINE { out[n] = V::sum(sums[n]); });
}

template <class V, class T, int kSpan, int kVectors>
[[gnu::noinline]] void dot_outputs(const BlockRow<T>& row, const float* x, int64_t size,
                                   float* out) {
  typename V::F sums[kVectors];
  each<kVectors>([&](auto v) JCOMPRESS_INLINE { sums[v] = V::zero(); });
  const T* w = row.blocks;
  for (int64_t b = 0; b < row.count; ++b, w += size) {
    const typename V::F part =
        V::template repeat<kSpan>(x + int64_t{row.columns[b]} * kSpan);
    each<kVectors>([&](auto v) JCOMPRESS_INLINE {
      sums[v] = V::fma(V::from(w + v * V::kLanes), part, sums[v]);
    });
  }
  float lanes[kVectors * V::kLanes];
  each<kVectors>([&](auto v) JCOMPRESS_INLINE {
    V::store(lanes + v * V::kLanes, sums[v]);
  });
  for (int n = 0; n < kVectors * V::kLanes / kSpan; ++n) {
    float sum = 0.0f;
    for (int k = 0; k < kSpan; ++k) sum += lanes[n * kSpan + k];
    out[n] = sum;
  }
}

template <class V, class T, int kSpan>
void row_of_outputs(BlockRow<T> row, const float* x, int64_t high, float* out) {
  const int64_t size = high * kSpan;
  int64_t left = size / V::kLanes;
  while (left > 0) {
    const int take = left >= 4 ? 4 : left >= 2 ? 2 : 1;
    if (take == 4) dot_outputs<V, T, kSpan, 4>(row, x, size, out);
    if (take == 2) dot_outputs<V, T, kSpan, 2>(row, x, size, out);
    if (take == 1) dot_outputs<V, T, kSpan, 1>(row, x, size, out);
    row.blocks += take * V::kLanes;
    out += take * V::kLanes / kSpan;
    left -= take;
  }
}

template <class V, class T, int kSpan>
[[gnu::noinline]] void dot_blocks(const BlockRow<T>& row, const float* x, float* out) {
  constexpr int kJoined = V::kLanes / kSpan;
  typename V::F even = V::zero(), odd = V::zero();
  const T* w = row.blocks;
  int64_t b = 0;
  for (; b + 2 * kJoined <= row.count; b += 2 * kJoined, w += 2 * V::kLanes) {
    const int32_t* columns = row.columns + b;
    even = V::fma(V::from(w), V::template join<kSpan>(x, columns), even);
    odd = V::fma(V::from(w + V::kLanes), V::template join<kSpan>(x, columns + kJoined),
                 odd);
  }
  float sum = V::sum(even) + V::sum(odd);
  for (; b < row.count; ++b, w += kSpan) {
    const float* from = x + int64_t{row.columns[b]} * kSpan;
    for (int k = 0; k < kSpan; ++k) sum += float_of_stored(w[k]) * from[k];
  }
  *out = sum;
}

template <class V, class T>
void row_along(const BlockWeight& w, const BlockRow<T>& row, const float* x,
               float* out) {
  const int64_t size = w.high * w.wide;
  const Along how = along(w, V::kLanes);
  if (how == Along::kInputs) {
    int64_t n = 0;
    for (; n + 4 <= w.high; n += 4) {
      dot_inputs<V, T, 4>(row, x, size, w.wide, n, out + n);
    }
    for (; n < w.high; ++n) dot_inputs<V, T, 1>(row, x, size, w.wide, n, out + n);
  } else if (how == Along::kBlocks) {
    if constexpr (V::kLanes > 8) {
      if (w.wide == 8) return dot_blocks<V, T, 8>(row, x, out);
    }
    if constexpr (V::kLanes > 4) dot_blocks<V, T, 4>(row, x, out);
  } else if (w.wide == 1) {
    row_of_outputs<V, T, 1>(row, x, w.high, out);
  } else if (w.wide == 2) {
    row_of_outputs<V, T, 2>(row, x, w.high, out);
  } else {
    if constexpr (V::kLanes > 8) {
      if (w.wide == 8) return row_of_outputs<V, T, 8>(row, x, w.high, out);
    }
    if constexpr (V::kLanes > 4) row_of_outputs<V, T, 4>(row, x, w.high, out);
  }
}

// ---- Vectors along the rows of activations ----

// Rows are cut into tiles of two vectors; of the last tile, one may do, or a small one.
// Tile t holds [inputs][width] from float t * 2 * lanes * inputs on.
struct RowTile {
  int64_t first;
  int64_t rows;
  int64_t width;
};

template <class V, class Few>
RowTile row_tile_of(int64_t rows, int64_t index) {
  constexpr int64_t kFull = 2 * V::kLanes;
  const int64_t first = index * kFull, here = std::min(kFull, rows - first);
  const int64_t width = here <= Few::kLanes ? Few::kLanes
                        : here <= V::kLanes ? V::kLanes
                                            : kFull;
  return {first, here, width};
}

// Add the products of a row of blocks of floats with a tile to sums [outputs][width].
template <class V, int kOutputs, int kVectors, int kInputs>
[[gnu::noinline]] void add_outer(const BlockRow<float>& row, const float* x,
                                 int64_t size, int64_t wide, float* out) {
  constexpr int kWidth = kVectors * V::kLanes;
  typename V::F sums[kInputs][kOutputs][kVectors];
  each<kInputs>([&](auto k) JCOMPRESS_INLINE {
    each<kOutputs>([&](auto n) JCOMPRESS_INLINE {
      each<kVectors>([&](auto v) JCOMPRESS_INLINE { sums[k][n][v] = V::zero(); });
    });
  });
  const float* w = row.blocks;
  for (int64_t b = 0; b < row.count; ++b, w += size) {
    const float* from = x + row.columns[b] * wide * kWidth;
    for (int64_t k0 = 0; k0 < wide; k0 += kInputs, from += kInputs * kWidth) {
      each<kInputs>([&](auto k) JCOMPRESS_INLINE {
        typename V::F part[kVectors];
        each<kVectors>([&](auto v) JCOMPRESS_INLINE {
          part[v] = V::load(from + k * kWidth + v * V::kLanes);
        });
        each<kOutputs>([&](auto n) JCOMPRESS_INLINE {
          const typename V::F weight = V::broadcast(w[n * wide + k0 + k]);
          each<kVectors>([&](auto v) JCOMPRESS_INLINE {
            sums[k][n][v] = V::fma(weight, part[v], sums[k][n][v]);
          });
        });
      });
    }
  }
  each<kOutputs>([&](auto n) JCOMPRESS_INLINE {
    each<kVectors>([&](auto v) JCOMPRESS_INLINE {
      float* to = out + n * kWidth + v * V::kLanes;
      typename V::F total = V::load(to);
      each<kInputs>([&](auto k) JCOMPRESS_INLINE { total += sums[k][n][v]; });
      V::store(to, total);
    });
  });
}

template <class V, int kVectors, int kOutputs>
void outer_outputs(BlockRow<float> row, const float* x, int64_t size, int64_t wide,
                   float* out) {
  // Enough sums at a time that none waits for the one before.
  constexpr int kInputs =
      kOutputs * kVectors >= 8 ? 1 : std::min(4, 8 / (kOutputs * kVectors));
  if (kInputs == 1 || wide % kInputs == 0) {
    add_outer<V, kOutputs, kVectors, kInputs>(row, x, size, wide, out);
  } else {
    add_outer<V, kOutputs, kVectors, 1>(row, x, size, wide, out);
  }
}

template <class V, int kVectors>
void outer_row(const BlockRow<float>& row, const float* x, int64_t high, int64_t wide,
               float* out) {
  constexpr int kMost = V::kLanes == FewFloats::kLanes && kVectors == 2 ? 4 : 8;
  const int64_t size = high * wide;
  for (int64_t n = 0; n < high;) {
    const BlockRow<float> part{row.blocks + n * wide, row.columns, row.count};
    float* to = out + n * kVectors * V::kLanes;
    const int64_t left = high - n;
    if (left >= 8 && kMost == 8) {
      outer_outputs<V, kVectors, kMost>(part, x, size, wide, to);
      n += kMost;
    } else if (left >= 4) {
      outer_outputs<V, kVectors, 4>(part, x, size, wide, to);
      n += 4;
    } else if (left >= 2) {
      outer_outputs<V, kVectors, 2>(part, x, size, wide, to);
      n += 2;
    } else {
      outer_outputs<V, kVectors, 1>(part, x, size, wide, to);
      n += 1;
    }
  }
}

template <class V, class Few>
void outer_tile(const RowTile& tile, const BlockRow<float>& row, const float* x,
                int64_t high, int64_t wide, float* out) {
  if (tile.width == 2 * V::kLanes) return outer_row<V, 2>(row, x, high, wide, out);
  if (tile.width == V::kLanes) return outer_row<V, 1>(row, x, high, wide, out);
  outer_row<Few, 1>(row, x, high, wide, out);
}

template <class V, class T>
void widen_stored(const T* from, int64_t count, float* out) {
  int64_t i = 0;
  for (; i + V::kLanes <= count; i += V::kLanes) V::store(out + i, V::from(from + i));
  for (; i < count; ++i) out[i] = float_of_stored(from[i]);
}

// ---- The whole ----

constexpr int64_t kTogether = 16;        // outputs that are written together, at least
constexpr int64_t kWidened = 4096;       // weights that are made floats at a time
constexpr int64_t kTransposed = 1 << 16; // floats of a piece of packing

// Sums [outputs][stride] of one row each or of a tile of rows, to y.
inline void write_sums(const BlockWeight& w, const Result& result, int64_t first_row,
                       int64_t rows, int64_t output, int64_t count, const float* sums,
                       int64_t by_output, int64_t by_row) {
  for (int64_t m = 0; m < rows; ++m) {
    const float* from = sums + m * by_row;
    for (int64_t n = 0; n < count; n += kQuad) {
      const int here = static_cast<int>(std::min<int64_t>(kQuad, count - n));
      Quad quad = {};
      for (int i = 0; i < here; ++i) quad[i] = from[(n + i) * by_output];
      if (w.scales) quad = quad * quad_of<Quad>(w.scales + output + n, here);
      narrow(quad, result.y, result.dtype, (first_row + m) * w.outputs() + output + n,
             here);
    }
  }
}

template <class T>
BlockRow<T> block_row(const BlockWeight& w, const T* blocks, int64_t row) {
  const int64_t start = w.starts[row];
  return {blocks + start * w.high * w.wide, w.columns + start,
          w.starts[row + 1] - start};
}

template <class V, class T>
void multiply_along(const BlockWeight& w, const T* blocks, const float* x, int64_t rows,
                    const Result& result, int64_t first, int64_t last) {
  const int64_t together = (kTogether + w.high - 1) / w.high;
  Buffer<float> sums(rows * together * w.high);
  for (int64_t r0 = first; r0 < last; r0 += together) {
    const int64_t r1 = std::min(last, r0 + together), count = (r1 - r0) * w.high;
    for (int64_t r = r0; r < r1; ++r) {
      const BlockRow<T> row = block_row(w, blocks, r);
      for (int64_t m = 0; m < rows; ++m) {
        row_along<V, T>(w, row, x + m * w.inputs,
                        sums.data() + m * count + (r - r0) * w.high);
      }
    }
    write_sums(w, result, 0, rows, r0 * w.high, count, sums.data(), 1, count);
  }
}

template <class V, class Few, class T>
void multiply_outer(const BlockWeight& w, const T* blocks, const float* packed,
                    int64_t rows, const Result& result, int64_t first, int64_t last) {
  constexpr int64_t kFull = 2 * V::kLanes;
  const int64_t together = (kTogether + w.high - 1) / w.high;
  const int64_t size = w.high * w.wide;
  const int64_t batch = std::max<int64_t>(1, kWidened / size);
  Buffer<float> sums(together * w.high * kFull);
  Buffer<float> widened(sizeof(T) == 4 ? 0 : batch * size);
  for (int64_t t = 0; t * kFull < rows; ++t) {
    const RowTile tile = row_tile_of<V, Few>(rows, t);
    const float* x = packed + tile.first * w.inputs;
    for (int64_t r0 = first; r0 < last; r0 += together) {
      const int64_t r1 = std::min(last, r0 + together), count = (r1 - r0) * w.high;
      std::memset(sums.data(), 0, count * tile.width * sizeof(float));
      for (int64_t r = r0; r < r1; ++r) {
        const BlockRow<T> row = block_row(w, blocks, r);
        float* out = sums.data() + (r - r0) * w.high * tile.width;
        if constexpr (sizeof(T) == 4) {
          outer_tile<V, Few>(tile, row, x, w.high, w.wide, out);
        } else {
          for (int64_t b = 0; b < row.count; b += batch) {
            const int64_t here = std::min(batch, row.count - b);
            widen_stored<V>(row.blocks + b * size, here * size, widened.data());
            outer_tile<V, Few>(tile, {widened.data(), row.columns + b, here}, x, w.high,
                               w.wide, out);
          }
        }
      }
      write_sums(w, result, tile.first, tile.rows, r0 * w.high, count, sums.data(),
                 tile.width, 1);
    }
  }
}

template <class V, class Few>
int along_lanes(const BlockWeight& w, int64_t rows) {
  for (int lanes : {V::kLanes, Few::kLanes}) {
    const Along how = along(w, lanes);
    const int64_t most = how == Along::kInputs ? kAlongWideRows : kAlongRows;
    if (how != Along::kNever && rows <= most) return lanes;
  }
  return 0;
}

template <class V, class Few>
int64_t blocks_size(const BlockWeight& w, int64_t rows) {
  if (along_lanes<V, Few>(w, rows)) return rows * w.inputs;
  const int64_t tile = 2 * V::kLanes;
  return (rows + tile - 1) / tile * tile * w.inputs;
}

// Pieces are runs of inputs, the same for every tile of rows.
template <class V, class Few>
int64_t blocks_pieces(const BlockWeight& w, int64_t rows) {
  if (along_lanes<V, Few>(w, rows)) return 1;
  return std::min<int64_t>(w.inputs, (rows * w.inputs + kTransposed - 1) / kTransposed);
}

template <class V, class Few>
void pack_blocks(const BlockWeight& w, const Inputs& x, float* packed, int64_t piece) {
  if (along_lanes<V, Few>(w, x.rows)) {
    widen(x.x, x.dtype, 0, x.rows * x.inputs, packed);
    return;
  }
  const int64_t pieces = blocks_pieces<V, Few>(w, x.rows);
  const int64_t k0 = x.inputs * piece / pieces, k1 = x.inputs * (piece + 1) / pieces;
  constexpr int64_t kRun = 64;
  constexpr int64_t kFull = 2 * V::kLanes;
  float run[kFull][kRun];
  for (int64_t t = 0; t * kFull < x.rows; ++t) {
    const RowTile tile = row_tile_of<V, Few>(x.rows, t);
    float* out = packed + tile.first * x.inputs;
    std::memset(run, 0, sizeof(run));
    for (int64_t k = k0; k < k1; k += kRun) {
      const int64_t here = std::min(kRun, k1 - k);
      for (int64_t r = 0; r < tile.rows; ++r) {
        widen(x.x, x.dtype, (tile.first + r) * x.inputs + k, here, run[r]);
      }
      for (int64_t i = 0; i < here; ++i) {
        float* to = out + (k + i) * tile.width;
        for (int64_t r = 0; r < tile.width; ++r) to[r] = run[r][i];
      }
    }
  }
}

template <class V, class Few>
void multiply_blocks(const BlockWeight& w, const float* packed, int64_t rows,
                     const Result& result, int64_t first, int64_t last) {
  const int lanes = along_lanes<V, Few>(w, rows);
  with_stored(w.dtype, w.blocks, [&](auto* blocks) {
    if (lanes == V::kLanes) {
      multiply_along<V>(w, blocks, packed, rows, result, first, last);
    } else if (lanes) {
      multiply_along<Few>(w, blocks, packed, rows, result, first, last);
    } else {
      multiply_outer<V, Few>(w, blocks, packed, rows, result, first, last);
    }
  });
}

}  // namespace
}  // namespace jcompress
