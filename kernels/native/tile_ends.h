// From sums of products to results: offsets, zeros and digits put together, scaled, written.
#pragma once

#include <algorithm>
#include <cstring>
#include <type_traits>

#include "floats.h"
#include "product.h"
#include "rows.h"
#include "tile_sums.h"

namespace jcompress {
namespace {

constexpr int kQuad = 4;  // numbers in vectors of results of sparse products

using Set = float __attribute__((vector_size(4 * kSet)));
using IntSet = int32_t __attribute__((vector_size(4 * kSet)));
using LongSet = int64_t __attribute__((vector_size(8 * kSet)));

using Quad = float __attribute__((vector_size(4 * kQuad)));

template <class T, class Element>
inline T quad_of(const Element* from, int count) {
  T quad = {};
  for (int i = 0; i < count; ++i) quad[i] = from[i];
  return quad;
}

template <class T, class Element>
inline T load_quad(const Element* from) {
  T quad;
  std::memcpy(&quad, from, sizeof(T));
  return quad;
}

template <class T>
inline T load_set(const void* from) {
  T set;
  std::memcpy(&set, from, sizeof(T));
  return set;
}

// The first `count` numbers, converted.
template <class T, class Element>
inline T set_of(const Element* from, int count) {
  typedef Element Stored __attribute__((vector_size(sizeof(Element) * kSet)));
  if (count == kSet) return __builtin_convertvector(load_set<Stored>(from), T);
  T set = {};
  for (int i = 0; i < count; ++i) set[i] = from[i];
  return set;
}

inline void write_set(Set x, const Result& result, int64_t start, int count) {
  if (result.dtype == Float::kF32) {
    float* to = static_cast<float*>(result.y) + start;
    if (count == kSet) {
      std::memcpy(to, &x, sizeof(x));
    } else {
      for (int i = 0; i < count; ++i) to[i] = x[i];
    }
    return;
  }
  uint16_t* to = static_cast<uint16_t*>(result.y) + start;
  for (int i = 0; i < count; ++i) {
    to[i] = result.dtype == Float::kBF16 ? to_bf16(x[i]) : to_f16(x[i]);
  }
}

template <class Sum>
void finish_exact(const Rows& rows, const Weight& w, const Result& result,
                  int64_t m0, int64_t m1, int64_t output, int outputs, const Sum* sums,
                  const Sum* ones) {
  using Sums = std::conditional_t<sizeof(Sum) == 4, IntSet, LongSet>;
  const Set scale = set_of<Set>(w.scales + output, outputs);
  Set bias = {};
  if (result.bias) bias = set_of<Set>(result.bias + output, outputs);
  Sums shift = {};
  if (w.zeros) shift = set_of<Sums>(w.zeros + output, outputs);
  shift += static_cast<Sum>(rows.cut.offset);
  Sums whole = {};
  if (rows.zero) whole = load_set<Sums>(ones) - shift * static_cast<Sum>(w.inputs);
  const float digit = 1.0f / static_cast<float>(kBase);
  for (int64_t m = m0; m < m1; ++m) {
    const int32_t* left = rows.sums + rows.ones + m * rows.digits;
    const Sum* sum = sums + (m - m0) * rows.digits * kSet;
    Set number = {};
    for (int64_t j = rows.digits - 1; j >= 0; --j) {
      Sums total = load_set<Sums>(sum + j * kSet) - shift * static_cast<Sum>(left[j]);
      if (rows.zero) total -= whole * static_cast<Sum>(zero_point(rows.zero[m]));
      number = __builtin_convertvector(total, Set) + number * digit;
    }
    number = number * rows.scale[m] * scale + bias;
    write_set(number, result, m * w.outputs + output, outputs);
  }
}

inline void finish_grouped(const Rows& rows, const Weight& w, const Result& result,
                           int64_t m0, int64_t m1, int64_t output, int outputs,
                           const float* sums) {
  Set bias = {};
  if (result.bias) bias = set_of<Set>(result.bias + output, outputs);
  const float digit = 1.0f / static_cast<float>(kBase);
  for (int64_t m = m0; m < m1; ++m) {
    const float* sum = sums + (m - m0) * rows.digits * kSet;
    Set number = {};
    for (int64_t j = rows.digits - 1; j >= 0; --j) {
      number = load_set<Set>(sum + j * kSet) + number * digit;
    }
    number = number * rows.scale[m] + bias;
    write_set(number, result, m * w.outputs + output, outputs);
  }
}

}  // namespace
}  // namespace jcompress
