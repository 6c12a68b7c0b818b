// Strips of a weight, for products whose lanes are outputs.
#pragma once

#include <algorithm>
#include <cstring>

#include "panel_weights.h"
#include "product.h"
#include "unrolled.h"

namespace jcompress {
namespace {

constexpr int kVectors = 2;  // of outputs, of a strip
constexpr int64_t kStripBytes = 224 << 10;  // of strips that stay in the second-level cache
constexpr int64_t kStripOutputs = 128;      // most outputs of them

// How many outputs are unpacked at a time, of so many bytes each.
inline int64_t strip_outputs(int64_t bytes) {
  return std::clamp<int64_t>(kStripBytes / bytes / 32 * 32, 32, kStripOutputs);
}

// Bits of an integer in a strip: those of two and three bits become bytes, and all where
// two inputs are multiplied together.
template <class V>
constexpr int laid_bits(int bits) {
  return V::kStepInputs == 4 && bits == 4 ? 4 : 8;
}

// An output's bytes in a strip, filled up to what a turn gives.
template <class V>
int64_t laid_row(const Weight& w) {
  const int64_t bits = laid_bits<V>(w.bits), turned = 512 / bits;
  return (w.inputs + turned - 1) / turned * turned * bits / 8;
}

// Turn `outputs` of the weight, a strip or fewer: strip[word][vector][lane][4].
template <class V, int kBits>
void lay_words(const Weight& w, int64_t first, int64_t outputs, uint8_t* strip) {
  constexpr int kLanes = V::kLanes, kTaken = laid_bits<V>(kBits);
  constexpr int64_t kBytes = kBits == 4 ? 64 : 8 * kBits, kApart = kVectors * V::kBytes;
  const int64_t row_bytes = w.row_bytes();
  for (int v = 0; v < kVectors; ++v) {
    const int64_t here = std::clamp<int64_t>(outputs - v * kLanes, 0, kLanes);
    const uint8_t* from = w.values + (first + v * kLanes) * row_bytes;
    uint8_t* to = strip + v * V::kBytes;
    for (int64_t at = 0; at < row_bytes; at += kBytes, to += 16 * kApart) {
      const int64_t bytes = std::min(kBytes, row_bytes - at);
      if (kBits == kTaken && here == kLanes && bytes == kBytes) {
        V::template turn<kTaken>(from + at, row_bytes, to, kApart);
        continue;
      }
      alignas(64) uint8_t plain[kLanes][64] = {};
      for (int n = 0; n < here; ++n) {
        const uint8_t* row = from + n * row_bytes + at;
        if constexpr (kBits != kTaken) {
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

// The same of signed integers by pairs, sixteen outputs: strip[pair][output][2].
template <class V, int kBits>
void lay_pairs(const Weight& w, int64_t first, int64_t outputs, uint8_t* strip) {
  constexpr int kOutputs = kVectors * V::kLanes;
  constexpr int64_t kInputs = 64, kAhead = 512;
  constexpr int kHalf = 1 << (kBits - 1);
  const int64_t row_bytes = w.row_bytes();
  alignas(32) int8_t plain[kOutputs][kInputs] = {};
  for (int64_t k = 0; k < w.inputs; k += kInputs) {
    const int64_t count = std::min(kInputs, w.inputs - k);
    for (int64_t n = 0; n < outputs; ++n) {
      const uint8_t* from = w.values + (first + n) * row_bytes + k * kBits / 8;
      fetch_at<3>(from, kAhead * kBits / 8);
      if constexpr (kBits == 8) {
        std::memcpy(plain[n], from, static_cast<size_t>(count));
        if (count < kInputs) std::memset(plain[n] + count, 0, static_cast<size_t>(kInputs - count));
      } else {
        alignas(32) uint8_t raised[2 * kInputs];
        unpack_bits<V, kBits>(from, count, raised);
        for (int64_t i = 0; i < kInputs; ++i) {
          plain[n][i] = static_cast<int8_t>(i < count ? raised[i] - kHalf : 0);
        }
      }
    }
    for (int64_t at = 0; at < kInputs; at += 16, strip += 16 * kOutputs) {
      typename V::I words[V::kLanes];
      each<V::kLanes>([&](auto r) JCOMPRESS_INLINE {
        words[r] = V::load_halves(plain[r] + at, plain[r + V::kLanes] + at);
      });
      V::turn_pairs(words);
      each<V::kLanes>([&](auto r) JCOMPRESS_INLINE {
        V::store(strip + r * 2 * kOutputs, words[r]);
      });
    }
  }
}

template <class V, int kBits>
void lay_bits_of(const Weight& w, int64_t first, int64_t outputs, uint8_t* strip) {
  if constexpr (V::kStepInputs == 2) {
    lay_pairs<V, kBits>(w, first, outputs, strip);
  } else {
    lay_words<V, kBits>(w, first, outputs, strip);
  }
}

template <class V>
void lay_strip(const Weight& w, int64_t first, int64_t outputs, uint8_t* strip) {
  switch (w.bits) {
    case 2:
      return lay_bits_of<V, 2>(w, first, outputs, strip);
    case 3:
      return lay_bits_of<V, 3>(w, first, outputs, strip);
    case 4:
      return lay_bits_of<V, 4>(w, first, outputs, strip);
    default:
      return lay_bits_of<V, 8>(w, first, outputs, strip);
  }
}

}  // namespace
}  // namespace jcompress
