// Rows of floats as integers, the same as XLA's form makes of them.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "floats.h"
#include "product.h"

namespace jcompress {
namespace {

// The largest absolute value. As integers, the absolute values of floats are in the order
// of the floats, and infinities and what is no number come last.
inline float largest(const float* x, int64_t count) {
  uint32_t top = 0;
  for (int64_t i = 0; i < count; ++i) {
    uint32_t word;
    std::memcpy(&word, x + i, 4);
    word &= 0x7fffffffu;
    top = word > top ? word : top;
  }
  float width;
  std::memcpy(&width, &top, 4);
  return width;
}

// Scales floats to steps of their integers; returns the scale.
inline float scale_row(const Activations& a, int64_t m, int64_t count, float* x) {
  const float scale = a.scale ? a.scale[m] : scale_of(largest(x, count), a.bits);
  const float inverse = std::isfinite(scale) ? 1.0f / scale : 0.0f;
  for (int64_t i = 0; i < count; ++i) x[i] = x[i] * inverse;
  return scale;
}

// The integers of a row, as `quantize_values` makes them; what is no number becomes the
// lowest. The rest, for one more digit, takes the place of the steps.
inline void round_row(const Activations& a, int64_t m, int64_t count, bool last,
                      float* __restrict steps, int8_t* __restrict q) {
  const float high = static_cast<float>((1 << (a.bits - 1)) - 1);
  const float low = a.zero ? -high - 1.0f : -high;
  const float zero = a.zero ? a.zero[m] : 0.0f;
  for (int64_t i = 0; i < count; ++i) {
    float number = std::nearbyint(steps[i]) + zero;
    number = number > high ? high : number;
    number = number >= low ? number : low;
    q[i] = static_cast<int8_t>(static_cast<int32_t>(number));
  }
  if (last) return;
  for (int64_t i = 0; i < count; ++i) {
    steps[i] = (steps[i] - static_cast<float>(q[i])) * static_cast<float>(kBase);
  }
}

// The integer that a float holds, between those of two bytes; what is no number is 0.
inline int32_t zero_point(float x) {
  const float low = x > -256.0f ? x : (x <= -256.0f ? -256.0f : 0.0f);
  return static_cast<int32_t>(low < 256.0f ? low : 256.0f);
}

}  // namespace
}  // namespace jcompress
