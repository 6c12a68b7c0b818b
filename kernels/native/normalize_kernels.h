// Normalisation of rows, over the vector types of sparse_floats.h. A row is read from
// memory once: it is in the cache when its mean, its variance and its result are computed.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>

#include "normalize.h"
#include "sparse_floats.h"

namespace jcompress {
namespace {

// Four sums at once, so that an addition need not wait for the one before.
template <class V, class Term>
[[gnu::always_inline]] inline float sum_over(int64_t width, Term term) {
  constexpr int kLanes = V::kLanes;
  typename V::F sums[4] = {V::zero(), V::zero(), V::zero(), V::zero()};
  int64_t i = 0;
  for (; i + 4 * kLanes <= width; i += 4 * kLanes) {
    for (int j = 0; j < 4; ++j) sums[j] = term(i + j * kLanes, sums[j]);
  }
  for (; i + kLanes <= width; i += kLanes) sums[0] = term(i, sums[0]);
  return V::sum((sums[0] + sums[1]) + (sums[2] + sums[3]));
}

template <class V>
void normalize_rows(const Normalization& n, int64_t first, int64_t last) {
  using F = typename V::F;
  constexpr int kLanes = V::kLanes;
  const int64_t width = n.width, whole = width / kLanes * kLanes;
  const float share = 1.0f / static_cast<float>(width);
  for (int64_t row = first; row < last; ++row) {
    const float* x = n.x + row * width;
    float* y = n.y + row * width;
    if (n.residual) {
      // The sum is written once, where it is kept or in the place of the result.
      const float* more = n.residual + row * width;
      float* sum = n.sum ? n.sum + row * width : y;
      for (int64_t i = 0; i < whole; i += kLanes) {
        V::store(sum + i, V::load(x + i) + V::load(more + i));
      }
      for (int64_t i = whole; i < width; ++i) sum[i] = x[i] + more[i];
      x = sum;
    }
    float mean = 0.0f;
    if (n.centered) {
      mean = sum_over<V>(width, [&](int64_t i, F sum) { return sum + V::load(x + i); });
      for (int64_t i = whole; i < width; ++i) mean += x[i];
      mean *= share;
    }
    const F center = V::broadcast(mean);
    float square = sum_over<V>(width, [&](int64_t i, F sum) {
      const F left = V::load(x + i) - center;
      return V::fma(left, left, sum);
    });
    for (int64_t i = whole; i < width; ++i) square += (x[i] - mean) * (x[i] - mean);
    const float factor = 1.0f / std::sqrt(square * share + n.epsilon);
    const F every = V::broadcast(factor);
    for (int64_t i = 0; i < whole; i += kLanes) {
      F number = (V::load(x + i) - center) * every;
      if (n.scale) number = number * V::load(n.scale + i);
      if (n.bias) number = number + V::load(n.bias + i);
      V::store(y + i, number);
    }
    for (int64_t i = whole; i < width; ++i) {
      float number = (x[i] - mean) * factor;
      if (n.scale) number *= n.scale[i];
      if (n.bias) number += n.bias[i];
      y[i] = number;
    }
  }
}

}  // namespace
}  // namespace jcompress
