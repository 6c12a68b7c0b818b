// Maxima of windows, with the vectors that the compiler has for a translation unit.
#pragma once

#include <algorithm>
#include <cstring>
#include <type_traits>

#include "max_pool.h"

namespace jcompress {
namespace {

constexpr int64_t kPoolBytes = 64;  // of channels that are compared together

template <class T>
[[gnu::always_inline]] inline T larger(T one, T other) {
  if constexpr (std::is_floating_point_v<T>) {
    return other > one || other != other ? other : one;
  } else {
    return other > one ? other : one;
  }
}

// The maxima of kLanes channels at one position, or of fewer.
template <class T, int kLanes>
[[gnu::always_inline]] inline void pool_channels(const PoolLine& p, int64_t first,
                                                 int64_t last, int64_t channel, T* y) {
  T top[kLanes], next[kLanes];
  const auto at = [&](int64_t line, int64_t column) {
    return reinterpret_cast<const T*>(p.lines[line]) + column * p.channels + channel;
  };
  std::memcpy(top, at(0, first), sizeof(top));
  for (int64_t line = 0; line < p.line_count; ++line) {
    for (int64_t column = first; column < last; ++column) {
      std::memcpy(next, at(line, column), sizeof(next));
      for (int i = 0; i < kLanes; ++i) top[i] = larger(top[i], next[i]);
    }
  }
  std::memcpy(y, top, sizeof(top));
}

template <class T>
void pool_line(const PoolLine& p) {
  constexpr int kLanes = kPoolBytes / sizeof(T);
  for (int64_t i = 0; i < p.count; ++i) {
    const int64_t start = i * p.stride - p.low;
    const int64_t first = std::max<int64_t>(0, start);
    const int64_t last = std::min(p.width, start + p.window);
    T* y = reinterpret_cast<T*>(p.y) + i * p.channels;
    int64_t c = 0;
    for (; c + kLanes <= p.channels; c += kLanes) {
      pool_channels<T, kLanes>(p, first, last, c, y + c);
    }
    for (; c < p.channels; ++c) pool_channels<T, 1>(p, first, last, c, y + c);
  }
}

inline const PoolKernels kPool{&pool_line<signed char>, &pool_line<float>};

}  // namespace
}  // namespace jcompress
