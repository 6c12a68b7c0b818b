// The XLA handler that makes a stored weight dense: for products too small to be worth
// integers, whose weight XLA would unpack in many small steps.

#include <algorithm>
#include <cstdint>
#include <string>
#include <vector>

#include "handlers.h"
#include "parallel.h"

namespace jcompress {
namespace {

constexpr int64_t kRows = 16;  // decoded together: a cache line of outputs
constexpr int64_t kPiece = 1 << 16;

ffi::Error bad(const std::string& what) {
  return ffi::Error::InvalidArgument("jcompress dense: " + what);
}

// The integers of one row of a stream of bits, lowest first, in two's complement.
void decode(const uint8_t* from, int64_t count, int bits, int8_t* to) {
  if (bits == 8) {
    std::copy_n(reinterpret_cast<const int8_t*>(from), count, to);
    return;
  }
  if (bits == 4) {
    for (int64_t i = 0; i < count / 2; ++i) {
      to[2 * i] = static_cast<int8_t>(from[i] << 4) >> 4;
      to[2 * i + 1] = static_cast<int8_t>(from[i]) >> 4;
    }
    if (count % 2) to[count - 1] = static_cast<int8_t>(from[count / 2] << 4) >> 4;
    return;
  }
  const int raise = 8 - bits;
  uint32_t word = 0;
  int held = 0;
  for (int64_t i = 0; i < count; ++i) {
    if (held < bits) {
      word |= static_cast<uint32_t>(*from++) << held;
      held += 8;
    }
    to[i] = static_cast<int8_t>(static_cast<uint8_t>(word << raise)) >> raise;
    word >>= bits;
    held -= bits;
  }
}

ffi::Error dense(ffi::ThreadPool pool, Any values, Any scales, Any zeros,
                 ffi::Result<Any> out, int64_t bits, int64_t layout) {
  if (layout != kLayout) return bad("the arrays have another layout; reinstall");
  if (bits != 2 && bits != 3 && bits != 4 && bits != 8) return bad("bits");
  const auto shape = out->dimensions();
  if (shape.size() != 3 || out->element_type() != ffi::DataType::F32) {
    return bad("the result is float32 [S, K, N]");
  }
  const int64_t stacks = shape[0], inputs = shape[1], outputs = shape[2];
  const int64_t bytes = (inputs * bits + 7) / 8;
  const auto dtype = bits == 8 ? ffi::DataType::S8 : ffi::DataType::U8;
  if (!is(values, dtype, {stacks, outputs, bytes})) return bad("values");
  const auto by = scales.dimensions();
  if (by.size() != 3 || by[2] < 1 || inputs % by[2] ||
      !is(scales, ffi::DataType::F32, {stacks, outputs, by[2]})) {
    return bad("scales");
  }
  const int64_t groups = by[2], group = inputs / groups;
  if (!absent(zeros) && !is(zeros, ffi::DataType::S8, {stacks, outputs, groups})) {
    return bad("zeros");
  }
  if (out->element_count() == 0) return ffi::Error::Success();
  const int64_t strips = (outputs + kRows - 1) / kRows;
  const uint8_t* all = static_cast<const uint8_t*>(values.untyped_data());
  float* result = static_cast<float*>(out->untyped_data());
  const auto strip = [&](int64_t piece) {
    const int64_t stack = piece / strips, first = piece % strips * kRows;
    const int64_t rows = std::min(kRows, outputs - first);
    const float* scale = part<float>(scales, stack, outputs * groups) + first * groups;
    const int8_t* zero = part<int8_t>(zeros, stack, outputs * groups);
    if (zero) zero += first * groups;
    std::vector<int8_t> integers(static_cast<size_t>(rows * inputs));
    for (int64_t r = 0; r < rows; ++r) {
      const uint8_t* from = all + (stack * outputs + first + r) * bytes;
      decode(from, inputs, static_cast<int>(bits), integers.data() + r * inputs);
    }
    float* to = result + stack * inputs * outputs + first;
    for (int64_t g = 0; g < groups; ++g) {
      float factor[kRows];
      int shift[kRows];
      for (int64_t r = 0; r < rows; ++r) {
        factor[r] = scale[r * groups + g];
        shift[r] = zero ? zero[r * groups + g] : 0;
      }
      for (int64_t k = g * group; k < (g + 1) * group; ++k) {
        float* line = to + k * outputs;
        for (int64_t r = 0; r < rows; ++r) {
          const int integer = integers[r * inputs + k] - shift[r];
          line[r] = static_cast<float>(integer) * factor[r];
        }
      }
    }
  };
  const bool alone = inputs * outputs * stacks < kPiece;
  parallel_for(pool, stacks * strips, strip, alone);
  return ffi::Error::Success();
}

}  // namespace
}  // namespace jcompress

extern "C" JCOMPRESS_EXPORT XLA_FFI_Error* jcompress_dense(XLA_FFI_CallFrame*);

XLA_FFI_DEFINE_HANDLER_SYMBOL(jcompress_dense, jcompress::dense,
                              xla::ffi::Ffi::Bind()
                                  .Ctx<xla::ffi::ThreadPool>()
                                  .Arg<xla::ffi::AnyBuffer>()
                                  .Arg<xla::ffi::AnyBuffer>()
                                  .Arg<xla::ffi::AnyBuffer>()
                                  .Ret<xla::ffi::AnyBuffer>()
                                  .Attr<int64_t>("bits")
                                  .Attr<int64_t>("layout"));
