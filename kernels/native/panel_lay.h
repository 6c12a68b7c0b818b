// Strips of a weight, for products whose lanes are outputs.
#pragma once

#include <algorithm>
#include <cstring>

#include "product.h"

namespace jcompress {
namespace {

constexpr int kVectors = 2;  // of a strip: 32 outputs

// A strip's inputs, filled up to what a turn gives.
inline int64_t laid_inputs(const Weight& w) {
  const int64_t turned = w.bits == 3 ? 64 : 512 / w.bits;
  return (w.inputs + turned - 1) / turned * turned;
}

// Unpack `outputs` of the weight, a strip or fewer: strip[quad][vector][lane][4].
template <class V, int kBits>
void lay_bits(const Weight& w, int64_t first, int64_t outputs, uint8_t* strip) {
  constexpr int kLanes = V::kLanes, kTaken = kBits == 3 ? 8 : kBits;
  constexpr int64_t kBytes = kBits == 3 ? 24 : 64, kQuads = 16 * (8 / kTaken);
  constexpr int64_t kApart = kVectors * V::kBytes;
  const int64_t row_bytes = w.row_bytes();
  for (int v = 0; v < kVectors; ++v) {
    const int64_t here = std::clamp<int64_t>(outputs - v * kLanes, 0, kLanes);
    const uint8_t* from = w.values + (first + v * kLanes) * row_bytes;
    uint8_t* to = strip + v * V::kBytes;
    for (int64_t at = 0; at < row_bytes; at += kBytes, to += kQuads * kApart) {
      const int64_t bytes = std::min(kBytes, row_bytes - at);
      if (kBits != 3 && here == kLanes && bytes == kBytes) {
        V::template turn<kTaken>(from + at, row_bytes, to, kApart);
        continue;
      }
      alignas(64) uint8_t plain[kLanes][64] = {};
      for (int n = 0; n < here; ++n) {
        const uint8_t* row = from + n * row_bytes + at;
        if constexpr (kBits == 3) {
          // As bytes of the stored range, which `turn` takes.
          V::store(plain[n], V::template unpack<kBits>(row, bytes));
          for (uint8_t& integer : plain[n]) integer ^= 0x80;
        } else {
          std::memcpy(plain[n], row, static_cast<size_t>(bytes));
        }
      }
      V::template turn<kTaken>(plain[0], 64, to, kApart);
    }
  }
}

template <class V>
void lay_strip(const Weight& w, int64_t first, int64_t outputs, uint8_t* strip) {
  switch (w.bits) {
    case 2:
      return lay_bits<V, 2>(w, first, outputs, strip);
    case 3:
      return lay_bits<V, 3>(w, first, outputs, strip);
    case 4:
      return lay_bits<V, 4>(w, first, outputs, strip);
    default:
      return lay_bits<V, 8>(w, first, outputs, strip);
  }
}

}  // namespace
}  // namespace jcompress
