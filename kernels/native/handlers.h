// What the XLA handlers share: reading and checking the arrays of a call.
#pragma once

#include <algorithm>
#include <cstdint>
#include <initializer_list>

#include "floats.h"
#include "product.h"
#include "xla/ffi/api/ffi.h"

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace jcompress {
namespace {

namespace ffi = xla::ffi;
using Any = ffi::AnyBuffer;

// Of the arrays, as the leaves document them; raised when that changes.
constexpr int64_t kLayout = 1;

template <class Shape>
bool is(const Any& a, ffi::DataType dtype, const Shape& shape) {
  const auto dims = a.dimensions();
  return a.element_type() == dtype && dims.size() == shape.size() &&
         std::equal(shape.begin(), shape.end(), dims.begin());
}

inline bool is(const Any& a, ffi::DataType dtype, std::initializer_list<int64_t> shape) {
  return is<std::initializer_list<int64_t>>(a, dtype, shape);
}

inline bool absent(const Any& a) { return a.element_count() == 0; }

inline bool float_of(ffi::DataType dtype, Float* out) {
  switch (dtype) {
    case ffi::DataType::F32:
      *out = Float::kF32;
      return true;
    case ffi::DataType::BF16:
      *out = Float::kBF16;
      return true;
    case ffi::DataType::F16:
      *out = Float::kF16;
      return true;
    default:
      return false;
  }
}

// The array of one matrix of a stack; null if there is none.
template <class T>
const T* part(const Any& a, int64_t stack, int64_t count, int64_t bytes = sizeof(T)) {
  if (absent(a)) return nullptr;
  const char* all = static_cast<const char*>(a.untyped_data());
  return reinterpret_cast<const T*>(all + stack * count * bytes);
}

// Ask for huge pages where a large result will be written: XLA frees its memory after each
// call, and new memory then costs a fault for each page, more than to fill it. The ends
// lie in pages that others use as well, to whom it makes no difference.
inline void expect_large(void* data, size_t bytes) {
#if defined(__linux__)
  constexpr uintptr_t kHuge = uintptr_t{2} << 20;
  if (bytes < kHuge / 2) return;
  const uintptr_t start = reinterpret_cast<uintptr_t>(data);
  const uintptr_t first = start / kHuge * kHuge;
  const uintptr_t last = (start + bytes + kHuge - 1) / kHuge * kHuge;
  madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
#else
  (void)data;
  (void)bytes;
#endif
}

// A number for each row of one matrix of a stack: of floats [stacks, rows], or of
// [stacks, 1], which is repeated; null if there are none.
class ByRow {
 public:
  static bool fits(const Any& a, int64_t stacks, int64_t rows) {
    return absent(a) || is(a, ffi::DataType::F32, {stacks, rows}) ||
           is(a, ffi::DataType::F32, {stacks, int64_t{1}});
  }

  ByRow(const Any& a, int64_t stack, int64_t rows)
      : repeated_(single(a) && rows > 1 ? rows : 0) {
    data_ = part<float>(a, stack, single(a) ? 1 : rows);
    if (!single(a) || rows <= 1) return;
    std::fill_n(repeated_.data(), rows, *data_);
    data_ = repeated_.data();
  }

  const float* data() const { return data_; }

 private:
  static bool single(const Any& a) { return !absent(a) && a.dimensions()[1] == 1; }

  Buffer<float> repeated_;
  const float* data_;
};

}  // namespace
}  // namespace jcompress
