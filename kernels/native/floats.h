// Conversions of rows of floats.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <cstring>

#include "buffer.h"
#include "product.h"

namespace jcompress {
namespace {

inline float from_bf16(uint16_t half) {
  const uint32_t word = uint32_t{half} << 16;
  float x;
  std::memcpy(&x, &word, 4);
  return x;
}

inline uint16_t to_bf16(float x) {
  uint32_t word;
  std::memcpy(&word, &x, 4);
  const uint32_t rounded = (word + 0x7fffu + ((word >> 16) & 1u)) >> 16;
  const uint32_t quiet = (word >> 16) | 0x40u;
  return static_cast<uint16_t>((word & 0x7fffffffu) > 0x7f800000u ? quiet : rounded);
}

inline float from_f16(uint16_t half) {
  const uint32_t sign = uint32_t{half & 0x8000u} << 16;
  const uint32_t rest = half & 0x7fffu;
  uint32_t word = rest << 13;
  float x;
  if (rest >= 0x7c00u) {
    word |= 0x7f800000u;
  } else if (rest >= 0x0400u) {
    word += uint32_t{127 - 15} << 23;
  } else {
    const float tiny = static_cast<float>(rest) * 5.9604645e-8f;  // 2^-24
    std::memcpy(&word, &tiny, 4);
  }
  word |= sign;
  std::memcpy(&x, &word, 4);
  return x;
}

inline uint16_t to_f16(float x) {
  uint32_t word;
  std::memcpy(&word, &x, 4);
  const uint32_t sign = (word >> 16) & 0x8000u;
  word &= 0x7fffffffu;
  if (word > 0x7f800000u) return static_cast<uint16_t>(sign | 0x7e00u);
  if (word >= 0x477ff000u) return static_cast<uint16_t>(sign | 0x7c00u);
  if (word < 0x38800000u) {
    // Adding 1/2 aligns the bits of a number below 2^-14 to steps of 2^-24.
    float low;
    std::memcpy(&low, &word, 4);
    low += 0.5f;
    std::memcpy(&word, &low, 4);
    return static_cast<uint16_t>(sign | (word - 0x3f000000u));
  }
  word += 0xfffu + ((word >> 13) & 1u) - (uint32_t{127 - 15} << 23);
  return static_cast<uint16_t>(sign | (word >> 13));
}

inline void widen(const void* x, Float dtype, int64_t start, int64_t count,
                  float* out) {
  if (dtype == Float::kF32) {
    std::memcpy(out, static_cast<const float*>(x) + start, count * sizeof(float));
    return;
  }
  const uint16_t* from = static_cast<const uint16_t*>(x) + start;
  if (dtype == Float::kBF16) {
    for (int64_t i = 0; i < count; ++i) out[i] = from_bf16(from[i]);
  } else {
    for (int64_t i = 0; i < count; ++i) out[i] = from_f16(from[i]);
  }
}

// The step of a symmetric format for numbers up to `width`.
inline float scale_of(float width, int bits) {
  const float scale = width * (1.0f / static_cast<float>((1 << (bits - 1)) - 1));
  return scale < 1.17549435e-38f ? 1.0f : scale;
}

// Write the first `count` of four floats.
template <class Quad>
inline void narrow(Quad x, void* out, Float dtype, int64_t start, int count) {
  if (dtype == Float::kF32) {
    float* to = static_cast<float*>(out) + start;
    if (count == 4) {
      std::memcpy(to, &x, 4 * sizeof(float));
    } else {
      for (int i = 0; i < count; ++i) to[i] = x[i];
    }
    return;
  }
  uint16_t* to = static_cast<uint16_t*>(out) + start;
  for (int i = 0; i < count; ++i) {
    to[i] = dtype == Float::kBF16 ? to_bf16(x[i]) : to_f16(x[i]);
  }
}

}  // namespace
}  // namespace jcompress
