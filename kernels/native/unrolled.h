// Loops of constants.
#pragma once

#include <type_traits>
#include <utility>

#define JCOMPRESS_INLINE __attribute__((always_inline))

namespace jcompress {
namespace {

// `f(0), ..., f(kCount - 1)` with constants, so that arrays indexed by them are registers.
template <int... kIndex, class F>
[[gnu::always_inline]] inline void each(std::integer_sequence<int, kIndex...>, F&& f) {
  (f(std::integral_constant<int, kIndex>{}), ...);
}
template <int kCount, class F>
[[gnu::always_inline]] inline void each(F&& f) {
  each(std::make_integer_sequence<int, kCount>{}, f);
}

}  // namespace
}  // namespace jcompress
