// Products with coded rows. A few rows of activations meet the vectors as they are
// decoded, which hides the decoding and the way from memory behind the products; for
// more, a panel of outputs is decoded into memory that stays in the first cache, and
// multiplied from there.
#pragma once

#include <algorithm>
#include <cstring>
#include <optional>
#include <vector>

#include "product_kernels.h"
#include "sparse_decode.h"
#include "sparse_lanes.h"
#include "sparse_vectors.h"

namespace jcompress {
namespace {

constexpr int kPanel = 16;       // outputs of a panel
constexpr int64_t kPanelInputs = 512;

// Rows that are multiplied together: for 1, 2, 3, 4, 6 and 8 there are kernels. Rows of
// zeros fill up.
struct RowCut {
  int64_t tile;
  int64_t tiles;

  // `at_once`: up to so many rows meet the vectors as they are decoded.
  RowCut(int64_t rows, int64_t at_once) {
    const int64_t most = rows <= at_once ? std::min<int64_t>(8, at_once) : 6;
    tiles = (rows + most - 1) / most;
    tile = rows <= at_once ? (rows + tiles - 1) / tiles : most;
    if (tile == 5 || tile == 7) ++tile;
  }
};

template <class D>
int64_t padded_inputs(int64_t inputs) {
  return (inputs + D::kStep - 1) / D::kStep * D::kStep;
}

// [tile][step][part][row of the tile][lane]
template <class V, class D>
void pack_rows_for(const Inputs& x, float* packed, int64_t piece) {
  const int64_t padded = padded_inputs<D>(x.inputs);
  const int64_t count = RowCut(x.rows, D::kAtOnce).tile, first = piece * count;
  float* out = packed + first * padded;
  Buffer<float> row(padded);
  std::memset(row.data() + x.inputs, 0, (padded - x.inputs) * sizeof(float));
  for (int64_t r = 0; r < count; ++r) {
    if (first + r < x.rows) {
      widen(x.x, x.dtype, (first + r) * x.inputs, x.inputs, row.data());
    } else {
      std::memset(row.data(), 0, x.inputs * sizeof(float));
    }
    float* to = out + r * V::kLanes;
    for (int64_t s = 0; s < padded; s += D::kStep) {
      for (int p = 0; p < D::kParts; ++p) {
        for (int lane = 0; lane < V::kLanes; ++lane) {
          to[lane] = row[s + D::input(p, lane)];
        }
        to += count * V::kLanes;
      }
    }
  }
}

// Add the products of `steps` steps to sums [kRows][stride].
template <class V, class D, int kRows, int kOutputs>
[[gnu::noinline]] void dot_rows(const float* x, int64_t steps,
                                int64_t ahead, typename D::Cursor* cursors,
                                float* out, int64_t stride) {
  typename V::F sums[kRows][kOutputs];
  typename D::Cursor at[kOutputs];
  each<kOutputs>([&](auto n) JCOMPRESS_INLINE {
    at[n] = cursors[n];
    each<kRows>([&](auto r) JCOMPRESS_INLINE { sums[r][n] = V::zero(); });
  });
  for (int64_t s = 0; s < steps; ++s) {
    typename D::State states[kOutputs];
    each<kOutputs>([&](auto n) JCOMPRESS_INLINE { states[n] = D::open(at[n], ahead); });
    each<D::kParts>([&](auto p) JCOMPRESS_INLINE {
      typename V::F weight[kOutputs];
      each<kOutputs>([&](auto n) JCOMPRESS_INLINE {
        weight[n] = D::template part<p>(states[n], at[n]);
      });
      each<kRows>([&](auto r) JCOMPRESS_INLINE {
        const typename V::F row = V::load(x + (p * kRows + r) * V::kLanes);
        each<kOutputs>([&](auto n) JCOMPRESS_INLINE {
          sums[r][n] = V::fma(row, weight[n], sums[r][n]);
        });
      });
    });
    x += int64_t{D::kParts} * kRows * V::kLanes;
  }
  each<kOutputs>([&](auto n) JCOMPRESS_INLINE {
    cursors[n] = at[n];
    each<kRows>([&](auto r) JCOMPRESS_INLINE {
      out[r * stride + n] += V::sum(sums[r][n]);
    });
  });
}

template <class V, class D, int kRows>
void dot_quad(const float* x, int64_t steps, int64_t ahead, typename D::Cursor* cursors,
              float* out, int64_t stride) {
  constexpr int kOutputs = D::outputs(kRows);
  for (int n = 0; n < kQuad; n += kOutputs) {
    dot_rows<V, D, kRows, kOutputs>(x, steps, ahead, cursors + n, out + n, stride);
  }
}

template <class V, class D>
void dot_tile(int64_t rows, const float* x, int64_t steps, int64_t ahead,
              typename D::Cursor* cursors, float* out, int64_t stride) {
  switch (rows) {
    case 1:
      return dot_quad<V, D, 1>(x, steps, ahead, cursors, out, stride);
    case 2:
      return dot_quad<V, D, 2>(x, steps, ahead, cursors, out, stride);
    case 3:
      return dot_quad<V, D, 3>(x, steps, ahead, cursors, out, stride);
    case 4:
      return dot_quad<V, D, 4>(x, steps, ahead, cursors, out, stride);
    case 6:
      if constexpr (D::kAtOnce == 0 || D::kAtOnce >= 6) {
        dot_quad<V, D, 6>(x, steps, ahead, cursors, out, stride);
      }
      return;
    default:
      if constexpr (D::kAtOnce >= 8) {
        dot_quad<V, D, 8>(x, steps, ahead, cursors, out, stride);
      }
  }
}

template <class V, class D>
[[gnu::noinline]] void decode_steps(typename D::Cursor* cursor, int64_t steps,
                                    int64_t ahead, float* out) {
  typename D::Cursor at = *cursor;
  for (int64_t s = 0; s < steps; ++s) {
    typename D::State state = D::open(at, ahead);
    each<D::kParts>([&](auto p) JCOMPRESS_INLINE {
      V::store(out + p * V::kLanes, D::template part<p>(state, at));
    });
    out += D::kParts * V::kLanes;
  }
  *cursor = at;
}

// The rows of a weight that are decoded together; the last of all fills up.
template <class D, int kCount>
struct CodedRows {
  typename D::Cursor cursors[kCount];
  std::optional<typename D::Spare> spare[kCount];
  alignas(64) uint8_t rest[kCount][64];

  bool start(const CodedWeight& w, int64_t first) {
    for (int i = 0; i < kCount; ++i) {
      if (!D::start(w, output(w, first, i), cursors[i], spare[i])) return false;
    }
    return true;
  }
  // Let cursors that are at the last step go on with what is left of a step.
  void tail(const CodedWeight& w, int64_t first, typename D::Cursor* at) {
    for (int i = 0; i < kCount; ++i) {
      D::tail(w, output(w, first, i), at[i], rest[i]);
    }
  }

 private:
  static int64_t output(const CodedWeight& w, int64_t first, int i) {
    return std::min(first + i, w.outputs - 1);
  }
};

template <class V, class D>
bool multiply_few(const CodedWeight& w, const float* packed, int64_t rows,
                  const Result& result, int64_t first, int64_t last) {
  const int64_t steps = w.inputs / D::kStep, padded = padded_inputs<D>(w.inputs);
  const RowCut cut(rows, D::kAtOnce);
  const int64_t ahead = kQuad * w.row_bytes();
  for (int64_t n = first; n < last; n += kQuad) {
    CodedRows<D, kQuad> coded;
    if (!coded.start(w, n)) return false;
    float sums[D::kAtOnce * kQuad] = {};
    for (int64_t t = 0; t < cut.tiles; ++t) {
      const float* x = packed + t * cut.tile * padded;
      float* out = sums + t * cut.tile * kQuad;
      typename D::Cursor cursors[kQuad];
      std::copy_n(coded.cursors, kQuad, cursors);
      // Only the first tile waits for memory.
      dot_tile<V, D>(cut.tile, x, steps, t == 0 ? ahead : 0, cursors, out, kQuad);
      if (w.inputs % D::kStep) {
        coded.tail(w, n, cursors);
        dot_tile<V, D>(cut.tile, x + steps * D::kStep * cut.tile, 1, 0, cursors, out,
                       kQuad);
      }
    }
    write_quad(w, result, rows, n, last, sums, kQuad);
  }
  return true;
}

template <class V, class D>
bool multiply_many(const CodedWeight& w, const float* packed, int64_t rows,
                   const Result& result, int64_t first, int64_t last) {
  using Floats = Plain<V>;
  const int64_t padded = padded_inputs<D>(w.inputs);
  const int64_t all = padded / D::kStep, whole = w.inputs / D::kStep;
  const int64_t most = std::max<int64_t>(1, kPanelInputs / D::kStep);
  Buffer<float> panel(kPanel * most * D::kStep);
  const RowCut cut(rows, D::kAtOnce);
  const int64_t filled = cut.tile * cut.tiles, ahead = kPanel * w.row_bytes();
  Buffer<float> sums(filled * kPanel);
  for (int64_t n = first; n < last; n += kPanel) {
    CodedRows<D, kPanel> coded;
    if (!coded.start(w, n)) return false;
    std::memset(sums.data(), 0, filled * kPanel * sizeof(float));
    for (int64_t s = 0; s < all; s += most) {
      const int64_t end = std::min(all, s + most), length = (end - s) * D::kStep;
      const bool with_tail = end > whole;
      for (int i = 0; i < kPanel; ++i) {
        decode_steps<V, D>(&coded.cursors[i], end - s - with_tail, ahead,
                           panel.data() + i * length);
      }
      if (with_tail) {
        coded.tail(w, n, coded.cursors);
        for (int i = 0; i < kPanel; ++i) {
          decode_steps<V, D>(&coded.cursors[i], 1, 0,
                             panel.data() + (i + 1) * length - D::kStep);
        }
      }
      for (int64_t r = 0; r < filled; r += cut.tile) {
        const float* x = packed + r * padded + s * D::kStep * cut.tile;
        for (int q = 0; q < kPanel && n + q < last; q += kQuad) {
          typename Floats::Cursor cursors[kQuad];
          for (int i = 0; i < kQuad; ++i) {
            cursors[i].values = panel.data() + (q + i) * length;
          }
          dot_tile<V, Floats>(cut.tile, x, length / V::kLanes, 0, cursors,
                              sums.data() + r * kPanel + q, kPanel);
        }
      }
    }
    for (int q = 0; q < kPanel && n + q < last; q += kQuad) {
      write_quad(w, result, rows, n + q, last, sums.data() + q, kPanel);
    }
  }
  return true;
}

template <class V, int kLength, class F>
auto with_vectors(const CodedWeight& w, F&& f) {
  if (w.codes == 1) return f(static_cast<Vectors<V, kLength, 1>*>(nullptr));
  if (w.codes == 2) return f(static_cast<Vectors<V, kLength, 2>*>(nullptr));
  return f(static_cast<Vectors<V, kLength, 0>*>(nullptr));
}

// `f(decoder)` with the decoder of a coding, as the type of a null pointer.
template <class V, class F>
auto with_decoder(const CodedWeight& w, F&& f) {
  switch (w.coding) {
    case Coding::kMaskF32:
      return f(static_cast<Masked<V, float>*>(nullptr));
    case Coding::kMaskBF16:
      return f(static_cast<Masked<V, uint16_t>*>(nullptr));
    case Coding::kMaskS8:
      return f(static_cast<Masked<V, int8_t>*>(nullptr));
    case Coding::kMaskScaled:
      return f(static_cast<MaskedScaled<V>*>(nullptr));
    case Coding::kNibbles:
      return f(static_cast<Nibbles<V>*>(nullptr));
    case Coding::kVectors:
      switch (w.length) {
        case 2:
          return with_vectors<V, 2>(w, f);
        case 4:
          return with_vectors<V, 4>(w, f);
        default:
          return with_vectors<V, 8>(w, f);
      }
    default:
      return f(static_cast<Bytes<V>*>(nullptr));
  }
}

template <class V>
void lay_table(const float* values, int64_t floats, float* out) {
  if (floats == CodedWeight::kTable) return Bytes<V>::lay(values, out);
  std::memcpy(out, values, floats * sizeof(float));
}

// `f(vector)` with the one that holds as many rows as there are, or the widest.
template <class V, class Few, class F>
auto with_lanes(int64_t rows, F&& f) {
  if (rows <= Few::kLanes) return f(static_cast<Few*>(nullptr));
  return f(static_cast<V*>(nullptr));
}

template <class V, class Few>
int64_t coded_size(const CodedWeight& w, int64_t rows) {
  if (by_lanes<V>(w, rows)) {
    return with_lanes<V, Few>(rows, [&](auto* v) {
      const LaneCut<std::remove_pointer_t<decltype(v)>> cut(rows);
      return cut.tiles * cut.stride() * w.inputs;
    });
  }
  return with_decoder<V>(w, [&](auto* d) {
    using D = std::remove_pointer_t<decltype(d)>;
    const RowCut cut(rows, D::kAtOnce);
    return cut.tile * cut.tiles * padded_inputs<D>(w.inputs);
  });
}

template <class V, class Few>
int64_t coded_pieces(const CodedWeight& w, int64_t rows) {
  if (by_lanes<V>(w, rows)) {
    return with_lanes<V, Few>(rows, [&](auto* v) {
      return LaneCut<std::remove_pointer_t<decltype(v)>>(rows).tiles;
    });
  }
  return with_decoder<V>(w, [&](auto* d) {
    return RowCut(rows, std::remove_pointer_t<decltype(d)>::kAtOnce).tiles;
  });
}

template <class V, class Few>
void pack_coded(const CodedWeight& w, const Inputs& x, float* packed, int64_t piece) {
  if (by_lanes<V>(w, x.rows)) {
    return with_lanes<V, Few>(x.rows, [&](auto* v) {
      pack_lanes<std::remove_pointer_t<decltype(v)>>(x, packed, piece);
    });
  }
  with_decoder<V>(w, [&](auto* d) {
    pack_rows_for<V, std::remove_pointer_t<decltype(d)>>(x, packed, piece);
  });
}

template <class V>
bool multiply_by_lanes(const CodedWeight& w, const float* packed, int64_t rows,
                       const Result& result, int64_t first, int64_t last) {
  switch (w.coding) {
    case Coding::kMaskF32:
      return multiply_lanes<V, float>(w, packed, rows, result, first, last);
    case Coding::kMaskBF16:
      return multiply_lanes<V, uint16_t>(w, packed, rows, result, first, last);
    case Coding::kMaskScaled:
      return multiply_lanes<V, Scaled>(w, packed, rows, result, first, last);
    default:
      return multiply_lanes<V, int8_t>(w, packed, rows, result, first, last);
  }
}

template <class V, class Few>
bool multiply_coded(const CodedWeight& w, const float* packed, int64_t rows,
                    const Result& result, int64_t first, int64_t last) {
  if (by_lanes<V>(w, rows)) {
    return with_lanes<V, Few>(rows, [&](auto* v) {
      return multiply_by_lanes<std::remove_pointer_t<decltype(v)>>(
          w, packed, rows, result, first, last);
    });
  }
  return with_decoder<V>(w, [&](auto* d) {
    using D = std::remove_pointer_t<decltype(d)>;
    const auto multiply =
        rows <= D::kAtOnce ? &multiply_few<V, D> : &multiply_many<V, D>;
    return multiply(w, packed, rows, result, first, last);
  });
}

}  // namespace
}  // namespace jcompress
