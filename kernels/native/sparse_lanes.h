// Products with rows that keep few of their inputs, anywhere. The activations are
// transposed, so that a vector has one input of many rows: every kept weight meets it
// once, whatever is around it. Which inputs a row keeps is read from its mask before.
#pragma once

#include <algorithm>
#include <cstring>

#include "product_kernels.h"
#include "sparse_decode.h"

namespace jcompress {
namespace {

inline void write_quad(const CodedWeight& w, const Result& result, int64_t rows,
                       int64_t output, int64_t last, const float* sums,
                       int64_t stride) {
  const int count = static_cast<int>(std::min<int64_t>(kQuad, last - output));
  Quad scale = {1.0f, 1.0f, 1.0f, 1.0f};
  const bool after = w.scales && w.coding != Coding::kMaskScaled;
  if (after) scale = quad_of<Quad>(w.scales + output, count);
  for (int64_t m = 0; m < rows; ++m) {
    narrow(load_quad<Quad>(sums + m * stride) * scale, result.y, result.dtype,
           m * w.outputs + output, count);
  }
}

// Whether enough rows fill a vector: fewer meet the weights as these are put in their
// places. With registers of 16 floats that is faster up to 6 rows.
template <class V>
bool by_lanes(const CodedWeight& w, int64_t rows) {
  return w.starts && rows > (V::kLanes == 16 ? 6 : 4);
}

// How rows are cut into tiles of one or two vectors.
template <class V>
struct LaneCut {
  int vectors;
  int64_t tiles;

  explicit LaneCut(int64_t rows) {
    vectors = rows > V::kLanes ? 2 : 1;
    tiles = (rows + vectors * V::kLanes - 1) / (vectors * V::kLanes);
  }
  int64_t stride() const { return int64_t{vectors} * V::kLanes; }
};

// [tile][input][row of the tile]
template <class V>
void pack_lanes(const Inputs& x, float* packed, int64_t piece) {
  const int64_t stride = LaneCut<V>(x.rows).stride(), first = piece * stride;
  const int64_t count = std::min(stride, x.rows - first);
  float* out = packed + piece * x.inputs * stride;
  Buffer<float> row(x.inputs);
  for (int64_t r = 0; r < stride; ++r) {
    if (r < count) {
      widen(x.x, x.dtype, (first + r) * x.inputs, x.inputs, row.data());
      for (int64_t k = 0; k < x.inputs; ++k) out[k * stride + r] = row[k];
    } else {
      for (int64_t k = 0; k < x.inputs; ++k) out[k * stride + r] = 0.0f;
    }
  }
}

// For each byte of a mask the numbers of its bits that are set, in order.
struct KeptInputs {
  uint8_t of[256][8];
  constexpr KeptInputs() : of() {
    for (int mask = 0; mask < 256; ++mask) {
      int next = 0;
      for (int i = 0; i < 8; ++i) {
        if (mask >> i & 1) of[mask][next++] = i;
      }
    }
  }
};
[[maybe_unused]] constexpr KeptInputs kKeptInputs;

// Room behind what is listed, of which whole vectors are written.
constexpr int64_t kListSlack = 16;

// The kept inputs of a row, times `stride`, in order; returns how many.
inline int64_t list_kept(const uint8_t* mask, int64_t inputs, int32_t stride,
                         int32_t* out) {
  int32_t* at = out;
  const auto bits = [&](uint64_t word, int64_t first) {
    for (; word; word &= word - 1) {
      *at++ = static_cast<int32_t>(first + __builtin_ctzll(word)) * stride;
    }
  };
  int64_t k = 0;
#if defined(__AVX512F__)
  const __m512i step = _mm512_set1_epi32(16 * stride);
  __m512i place = _mm512_mullo_epi32(
      _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15),
      _mm512_set1_epi32(stride));
  for (; k + 64 <= inputs; k += 64) {
    const uint64_t word = load_word(mask + k / 8);
    for (int part = 0; part < 64; part += 16) {
      const auto some = static_cast<__mmask16>(word >> part);
      _mm512_storeu_si512(at, _mm512_maskz_compress_epi32(some, place));
      at += __builtin_popcount(some);
      place = _mm512_add_epi32(place, step);
    }
  }
#elif defined(__AVX2__)
  const __m256i scale = _mm256_set1_epi32(stride);
  for (; k + 64 <= inputs; k += 64) {
    const uint64_t word = load_word(mask + k / 8);
    for (int part = 0; part < 64; part += 8) {
      const int some = static_cast<int>(word >> part & 255);
      const __m128i few =
          _mm_loadl_epi64(reinterpret_cast<const __m128i*>(kKeptInputs.of[some]));
      const __m256i place = _mm256_add_epi32(
          _mm256_cvtepu8_epi32(few), _mm256_set1_epi32(static_cast<int>(k) + part));
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(at),
                          _mm256_mullo_epi32(place, scale));
      at += __builtin_popcount(some);
    }
  }
#else
  for (; k + 64 <= inputs; k += 64) bits(load_word(mask + k / 8), k);
#endif
  if (k < inputs) bits(last_mask_word(mask, inputs), k);
  return at - out;
}

// The sums of a row of weights with a tile: [vectors][lane].
template <class V, int kVectors>
[[gnu::noinline]] void dot_lanes(const float* x, const float* weights,
                                 const int32_t* places, int64_t count, float* out) {
  constexpr int kChains = kVectors == 1 ? 4 : 2;
  typename V::F sums[kChains][kVectors];
  each<kChains>([&](auto c) JCOMPRESS_INLINE {
    each<kVectors>([&](auto v) JCOMPRESS_INLINE { sums[c][v] = V::zero(); });
  });
  const auto add = [&](auto c, int64_t t) JCOMPRESS_INLINE {
    const typename V::F weight = V::broadcast(weights[t]);
    const float* at = x + places[t];
    each<kVectors>([&](auto v) JCOMPRESS_INLINE {
      sums[c][v] = V::fma(weight, V::load(at + v * V::kLanes), sums[c][v]);
    });
  };
  int64_t t = 0;
  for (; t + kChains <= count; t += kChains) {
    each<kChains>([&](auto c) JCOMPRESS_INLINE { add(c, t + c); });
  }
  for (; t < count; ++t) add(std::integral_constant<int, 0>(), t);
  each<kVectors>([&](auto v) JCOMPRESS_INLINE {
    typename V::F all = sums[0][v];
    const typename V::F one = V::broadcast(1.0f);
    each<kChains - 1>([&](auto c) JCOMPRESS_INLINE {
      all = V::fma(sums[c + 1][v], one, all);
    });
    V::store(out + v * V::kLanes, all);
  });
}

// Integers with the scales of their groups, in place of a type of stored weights.
struct Scaled {};

// The kept weights of an output as floats; `room` holds those that are stored otherwise.
template <class T>
const float* floats_of(const CodedWeight& w, int64_t output, int64_t count, int8_t* few,
                       float* room) {
  if constexpr (std::is_same_v<T, Scaled>) {
    scale_kept(w, output, count, few, room);
    return room;
  } else {
    const T* stored = static_cast<const T*>(w.values) + w.first(output);
    if constexpr (std::is_same_v<T, float>) return stored;
    for (int64_t t = 0; t < count; ++t) room[t] = float_of_stored(stored[t]);
    return room;
  }
}

template <class V, class T>
bool multiply_lanes(const CodedWeight& w, const float* packed, int64_t rows,
                    const Result& result, int64_t first, int64_t last) {
  const LaneCut<V> cut(rows);
  const int64_t stride = cut.stride(), filled = cut.tiles * stride;
  Buffer<int32_t> places(w.inputs + kListSlack);
  Buffer<float> room(w.inputs);
  Buffer<int8_t> few(w.inputs);
  Buffer<float> found(stride);
  Buffer<float> sums(filled * kQuad);
  for (int64_t n = first; n < last; n += kQuad) {
    const int64_t outputs = std::min<int64_t>(kQuad, last - n);
    for (int64_t i = 0; i < outputs; ++i) {
      const int64_t count =
          list_kept(w.mask + (n + i) * w.mask_bytes(), w.inputs,
                    static_cast<int32_t>(stride), places.data());
      if (count > w.kept(n + i)) return false;
      const float* weights =
          floats_of<T>(w, n + i, count, few.data(), room.data());
      for (int64_t t = 0; t < cut.tiles; ++t) {
        const float* x = packed + t * w.inputs * stride;
        if (cut.vectors == 1) {
          dot_lanes<V, 1>(x, weights, places.data(), count, found.data());
        } else {
          dot_lanes<V, 2>(x, weights, places.data(), count, found.data());
        }
        for (int64_t r = 0; r < stride; ++r) {
          sums[(t * stride + r) * kQuad + i] = found[r];
        }
      }
    }
    write_quad(w, result, rows, n, last, sums.data(), kQuad);
  }
  return true;
}

}  // namespace
}  // namespace jcompress
