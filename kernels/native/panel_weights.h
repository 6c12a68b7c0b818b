// A block of a weight, unpacked for products with panels. That costs as much as the
// products of a few rows.
#pragma once

#include <algorithm>
#include <cstring>

#include "floats.h"
#include "product.h"

namespace jcompress {
namespace {

constexpr int64_t kBlock = 512;       // inputs of integers that are unpacked at a time,
constexpr int64_t kFloatBlock = 128;  // and of floats
// Outputs of a block lie so far apart that they fall into different sets of the cache.
constexpr int64_t kStride = kBlock + 64;
constexpr int64_t kFloatStride = kFloatBlock + 16;

// `count` integers from the beginning of a byte, plus half their range. Up to
// sixty-three more are written.
template <int kBits>
void unpack_plainly(const uint8_t* __restrict from, int64_t count,
                    uint8_t* __restrict out) {
  constexpr int kHalf = 1 << (kBits - 1), kMask = (1 << kBits) - 1;
  if constexpr (kBits == 8) {
    for (int64_t i = 0; i < count; ++i) out[i] = from[i] ^ kHalf;
  } else if constexpr (kBits == 3) {
    const int64_t bytes = (count * kBits + 7) / 8;
    for (int64_t i = 0; 3 * i < bytes; ++i) {
      uint32_t word = from[3 * i];
      if (3 * i + 1 < bytes) word |= from[3 * i + 1] << 8;
      if (3 * i + 2 < bytes) word |= from[3 * i + 2] << 16;
      for (int j = 0; j < 8; ++j) out[8 * i + j] = ((word >> (3 * j)) & kMask) ^ kHalf;
    }
  } else {
    constexpr int kIn = 8 / kBits;
    const int64_t bytes = (count + kIn - 1) / kIn;
    for (int64_t i = 0; i < bytes; ++i) {
      for (int j = 0; j < kIn; ++j) {
        out[kIn * i + j] = ((from[i] >> (kBits * j)) & kMask) ^ kHalf;
      }
    }
  }
}

template <class V, int kBits>
inline void unpack_bits(const uint8_t* from, int64_t count, uint8_t* out) {
  if constexpr (V::kIntegerPanels) {
    constexpr int64_t kWhole = 8 * kBits;
    int64_t bytes = (count * kBits + 7) / 8;
    for (; bytes >= kWhole; bytes -= kWhole) {
      V::store(out, V::template unpack<kBits>(from, kWhole));
      from += kWhole;
      out += 64;
    }
    if (bytes > 0) V::store(out, V::template unpack<kBits>(from, bytes));
  } else {
    unpack_plainly<kBits>(from, count, out);
  }
}

// The same inputs of some outputs, each `stride` from the one before.
template <class V, int kBits>
void unpack_outputs(const Weight& w, int64_t first, int64_t outputs, int64_t start,
                    int64_t count, uint8_t* out, int64_t stride) {
  const int64_t row_bytes = w.row_bytes();
  const uint8_t* from = w.values + first * row_bytes + start * kBits / 8;
  for (int64_t n = 0; n < outputs; ++n) {
    unpack_bits<V, kBits>(from + n * row_bytes, count, out + n * stride);
  }
}

template <class V>
void unpack(const Weight& w, int64_t first, int64_t outputs, int64_t start,
            int64_t count, uint8_t* out, int64_t stride) {
  switch (w.bits) {
    case 2:
      return unpack_outputs<V, 2>(w, first, outputs, start, count, out, stride);
    case 3:
      return unpack_outputs<V, 3>(w, first, outputs, start, count, out, stride);
    case 4:
      return unpack_outputs<V, 4>(w, first, outputs, start, count, out, stride);
    default:
      return unpack_outputs<V, 8>(w, first, outputs, start, count, out, stride);
  }
}

// What `unpack` adds, with the zero of a group.
inline int32_t shift_of(const Weight& w, int64_t output, int64_t group) {
  const int32_t half = 1 << (w.bits - 1);
  return w.zeros ? half + w.zeros[output * w.groups + group] : half;
}

inline void scale_integers(const uint8_t* __restrict q, int64_t count, int32_t shift,
                           float scale, float* __restrict out) {
  for (int64_t i = 0; i < count; ++i) {
    out[i] = static_cast<float>(static_cast<int32_t>(q[i]) - shift) * scale;
  }
}

template <class V>
void unpack_floats(const Weight& w, int64_t output, int64_t start, int64_t count,
                   float* out) {
  alignas(64) uint8_t q[kFloatBlock];
  unpack<V>(w, output, 1, start, count, q, kFloatBlock);
  const int64_t size = w.group_size();
  for (int64_t k = start; k < start + count;) {
    const int64_t group = k / size;
    const int64_t end = std::min(start + count, (group + 1) * size);
    scale_integers(q + (k - start), end - k, shift_of(w, output, group),
                   w.scales[output * w.groups + group], out + (k - start));
    k = end;
  }
}

// Fetch what the next block unpacks of a row of the weight.
inline void fetch(const Weight& w, int64_t output, int64_t start, int64_t count) {
  const int64_t first = start * w.bits / 8, end = (start + count) * w.bits / 8;
  const uint8_t* from = w.values + output * w.row_bytes();
  for (int64_t i = first; i < std::min(end, w.row_bytes()); i += 64) {
    __builtin_prefetch(from + i, 0, 2);
  }
}

// A prefetch may point anywhere: it never faults.
template <int kNear>
inline void fetch_at(const void* from, int64_t offset) {
  __builtin_prefetch(reinterpret_cast<const void*>(reinterpret_cast<uintptr_t>(from) +
                                                   static_cast<uintptr_t>(offset)),
                     0, kNear);
}

// The first `count` numbers of a vector, to a result.
template <class V>
void write_some(typename V::F number, const Result& result, int64_t at, int64_t count) {
  using Four = float __attribute__((vector_size(16)));
  alignas(64) float some[V::kLanes];
  V::store_float(some, number);
  for (int64_t i = 0; i < count; i += 4) {
    Four four;
    std::memcpy(&four, some + i, sizeof(four));
    narrow(four, result.y, result.dtype, at + i,
           static_cast<int>(std::min<int64_t>(4, count - i)));
  }
}

// A vector of which `outputs` numbers are left in their row, to a result.
template <class V>
[[gnu::always_inline]] inline void write_vector(typename V::F number, const Result& result,
                                                int64_t at, int64_t outputs) {
  if (result.dtype == Float::kF32 && outputs >= V::kLanes) {
    V::store_float(static_cast<float*>(result.y) + at, number);
  } else {
    write_some<V>(number, result, at, std::min<int64_t>(V::kLanes, outputs));
  }
}

}  // namespace
}  // namespace jcompress
