// What follows a product, number by number, in float32: on a block of the result that is
// still in the cache, with the widest vectors of the translation unit.
#pragma once

#include <algorithm>
#include <cstring>

#include "floats.h"
#include "product.h"
#include "vector_math.h"

namespace jcompress {
namespace {

template <class V, Function kFunction>
[[gnu::always_inline]] inline typename V::F apply(typename V::F x) {
  using M = Math<V>;
  using F = typename V::F;
  if constexpr (kFunction == Function::kRelu) {
    return M::at_least(x, V::zero());
  } else if constexpr (kFunction == Function::kRelu6) {
    return M::at_most(M::at_least(x, V::zero()), M::of(6.0f));
  } else if constexpr (kFunction == Function::kSquaredRelu) {
    const F positive = M::at_least(x, V::zero());
    return positive * positive;
  } else if constexpr (kFunction == Function::kGelu) {
    const F half = M::of(0.5f) * x;
    return V::fma(half, M::erf(x * M::of(0.70710678f)), half);
  } else if constexpr (kFunction == Function::kGeluTanh) {
    // (1 + tanh(u)) / 2 = sigmoid(2 u)
    const F cubic = V::fma(x * x, M::of(0.044715f), M::of(1.0f));
    return x * M::sigmoid(M::of(1.5957691f) * x * cubic);
  } else if constexpr (kFunction == Function::kSilu) {
    return x * M::sigmoid(x);
  } else if constexpr (kFunction == Function::kTanh) {
    return M::tanh(x);
  } else if constexpr (kFunction == Function::kSigmoid) {
    return M::sigmoid(x);
  } else {
    return x;
  }
}

// `out`, which may be `y`, = function(y) * factor + residual; `factor` and `residual` may
// be null.
template <class V, Function kFunction>
void finish_floats(const float* y, const float* factor, const float* residual, float* out,
                   int64_t count) {
  constexpr int kLanes = V::kLanes;
  const auto vector = [&](const float* from, const float* by, const float* more) {
    typename V::F number = apply<V, kFunction>(V::load(from));
    if (by) number = number * V::load(by);
    if (more) number = number + V::load(more);
    return number;
  };
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    V::store(out + i, vector(y + i, factor ? factor + i : nullptr,
                             residual ? residual + i : nullptr));
  }
  if (i == count) return;
  float rest[3][kLanes] = {};
  const size_t bytes = static_cast<size_t>(count - i) * sizeof(float);
  std::memcpy(rest[0], y + i, bytes);
  if (factor) std::memcpy(rest[1], factor + i, bytes);
  if (residual) std::memcpy(rest[2], residual + i, bytes);
  V::store(rest[0], vector(rest[0], factor ? rest[1] : nullptr,
                           residual ? rest[2] : nullptr));
  std::memcpy(out + i, rest[0], bytes);
}

// A row of a block in the dtype of the result: `start` is its place in the arrays.
template <class V, Function kFunction>
void finish_row(const After& after, const float* y, int64_t start, int64_t count) {
  if (after.dtype == Float::kF32) {
    const auto at = [&](const void* a) {
      return a ? static_cast<const float*>(a) + start : nullptr;
    };
    return finish_floats<V, kFunction>(y + start, at(after.factor), at(after.residual),
                                       static_cast<float*>(after.y) + start, count);
  }
  constexpr int64_t kPart = 128;
  float factor[kPart], residual[kPart], out[kPart];
  uint16_t* to = static_cast<uint16_t*>(after.y) + start;
  for (int64_t i = 0; i < count; i += kPart) {
    const int64_t part = std::min(kPart, count - i);
    if (after.factor) widen(after.factor, after.dtype, start + i, part, factor);
    if (after.residual) widen(after.residual, after.dtype, start + i, part, residual);
    finish_floats<V, kFunction>(y + start + i, after.factor ? factor : nullptr,
                                after.residual ? residual : nullptr, out, part);
    if (after.dtype == Float::kBF16) {
      for (int64_t j = 0; j < part; ++j) to[i + j] = to_bf16(out[j]);
    } else {
      for (int64_t j = 0; j < part; ++j) to[i + j] = to_f16(out[j]);
    }
  }
}

// Fetch a part of a row of one of the arrays: rows lie too far apart for the processor to
// do it by itself. A prefetch may point anywhere: it never faults.
inline void fetch_row(const void* a, Float dtype, int64_t start, int64_t count) {
  constexpr uintptr_t kLine = 64;
  if (!a) return;
  const uintptr_t size = dtype == Float::kF32 ? 4 : 2;
  const uintptr_t from = reinterpret_cast<uintptr_t>(a) + size * static_cast<uintptr_t>(start);
  const uintptr_t end = from + size * static_cast<uintptr_t>(count);
  for (uintptr_t i = from; i < end; i += kLine) {
    __builtin_prefetch(reinterpret_cast<const void*>(i), 0, 3);
  }
}

template <class V, Function kFunction>
void finish_rows(const After& after, const float* y, int64_t outputs, int64_t m0,
                 int64_t m1, int64_t first, int64_t last) {
  constexpr int64_t kAhead = 4;
  for (int64_t m = m0; m < m1; ++m) {
    const int64_t next = (m + kAhead) * outputs + first;
    fetch_row(after.factor, after.dtype, next, last - first);
    fetch_row(after.residual, after.dtype, next, last - first);
    finish_row<V, kFunction>(after, y, m * outputs + first, last - first);
  }
}

inline void finish_block(const After& after, float* y, int64_t outputs, int64_t m0,
                         int64_t m1, int64_t first, int64_t last) {
  using V = WideFloats;
  const auto run = [&](auto rows) { rows(after, y, outputs, m0, m1, first, last); };
  switch (after.function) {
    case Function::kRelu:
      return run(finish_rows<V, Function::kRelu>);
    case Function::kRelu6:
      return run(finish_rows<V, Function::kRelu6>);
    case Function::kSquaredRelu:
      return run(finish_rows<V, Function::kSquaredRelu>);
    case Function::kGelu:
      return run(finish_rows<V, Function::kGelu>);
    case Function::kGeluTanh:
      return run(finish_rows<V, Function::kGeluTanh>);
    case Function::kSilu:
      return run(finish_rows<V, Function::kSilu>);
    case Function::kTanh:
      return run(finish_rows<V, Function::kTanh>);
    case Function::kSigmoid:
      return run(finish_rows<V, Function::kSigmoid>);
    default:
      return run(finish_rows<V, Function::kNone>);
  }
}

}  // namespace
}  // namespace jcompress
