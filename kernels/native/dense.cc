// The XLA handler that makes stored weights dense: for products too small to be worth
// integers, whose weights XLA would unpack in many small steps. It takes many weights at
// once, as a call of its own for each would take longer than the work.

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

// Scales and zero points of `kRows` rows, group by group.
struct Steps {
  std::vector<float> factors;
  std::vector<int32_t> shifts;
  int64_t group;
};

// One line of the result from the integers of `kRows` rows at one input; a constant
// number of them, so that it becomes a few vector instructions.
inline void write_line(const int32_t* integers, const Steps& steps, int64_t k,
                       int64_t rows, float* line) {
  const int64_t first = k / steps.group * kRows;
  const float* factors = steps.factors.data() + first;
  const int32_t* shifts = steps.shifts.data() + first;
  const auto number = [=](int64_t r) {
    return static_cast<float>(integers[r] - shifts[r]) * factors[r];
  };
  if (rows == kRows) {
    for (int64_t r = 0; r < kRows; ++r) line[r] = number(r);
  } else {
    for (int64_t r = 0; r < rows; ++r) line[r] = number(r);
  }
}

// Integers that lie whole in their bytes: 8, 4 or 2 bits.
template <int bits>
void whole_bytes(const uint8_t* from, int64_t bytes, int64_t inputs, int64_t rows,
                 const Steps& steps, float* to, int64_t outputs) {
  constexpr int kPer = 8 / bits;
  int32_t held[kRows] = {}, integers[kRows];
  for (int64_t i = 0; i < bytes; ++i) {
    for (int64_t r = 0; r < rows; ++r) held[r] = from[r * bytes + i];
    for (int p = 0; p < kPer && i * kPer + p < inputs; ++p) {
      const int left = 32 - bits * (p + 1);
      for (int64_t r = 0; r < kRows; ++r) {
        const uint32_t raised = static_cast<uint32_t>(held[r]) << left;
        integers[r] = static_cast<int32_t>(raised) >> (32 - bits);
      }
      const int64_t k = i * kPer + p;
      write_line(integers, steps, k, rows, to + k * outputs);
    }
  }
}

// Integers of 3 bits, some of which lie in two bytes.
void stream_of_3(const uint8_t* from, int64_t bytes, int64_t inputs, int64_t rows,
                 const Steps& steps, float* to, int64_t outputs) {
  int32_t integers[kRows] = {};
  for (int64_t k = 0; k < inputs; ++k) {
    const int64_t byte = 3 * k / 8, bit = 3 * k % 8;
    const int64_t next = std::min(byte + 1, bytes - 1);
    for (int64_t r = 0; r < rows; ++r) {
      const uint8_t* row = from + r * bytes;
      const uint32_t word = row[byte] | static_cast<uint32_t>(row[next]) << 8;
      integers[r] = static_cast<int32_t>(word << (29 - bit)) >> 29;
    }
    write_line(integers, steps, k, rows, to + k * outputs);
  }
}

// One weight; a small one on the caller's thread.
ffi::Error one_dense(ffi::ThreadPool& pool, Any values, Any scales, Any zeros,
                     ffi::Result<Any> out, int64_t bits) {
  if (bits != 2 && bits != 3 && bits != 4 && bits != 8) return bad("bits");
  const auto stored = values.dimensions();
  if (stored.size() != 3 || stored[0] < 1 || stored[1] < 1) return bad("values");
  const int64_t stacks = stored[0], outputs = stored[1];
  const int64_t inputs = static_cast<int64_t>(out->element_count()) / (stacks * outputs);
  if (out->element_type() != ffi::DataType::F32 ||
      static_cast<int64_t>(out->element_count()) != stacks * inputs * outputs) {
    return bad("the result is float32 [S, K, N]");
  }
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
    const size_t count = static_cast<size_t>(groups * kRows);
    Steps steps{std::vector<float>(count), std::vector<int32_t>(count), group};
    for (int64_t g = 0; g < groups; ++g) {
      for (int64_t r = 0; r < rows; ++r) {
        steps.factors[g * kRows + r] = scale[r * groups + g];
        if (zero) steps.shifts[g * kRows + r] = zero[r * groups + g];
      }
    }
    const uint8_t* from = all + (stack * outputs + first) * bytes;
    float* to = result + stack * inputs * outputs + first;
    const auto run = bits == 8   ? whole_bytes<8>
                     : bits == 4 ? whole_bytes<4>
                     : bits == 2 ? whole_bytes<2>
                                 : stream_of_3;
    run(from, bytes, inputs, rows, steps, to, outputs);
  };
  const Help help = inputs * outputs * stacks < kPiece ? Help::kAwake : Help::kAny;
  parallel_for(pool, stacks * strips, strip, help);
  return ffi::Error::Success();
}

// Of each weight values, scales and zeros.
ffi::Error dense(ffi::ThreadPool pool, ffi::RemainingArgs args, ffi::RemainingRets rets,
                 ffi::Span<const int64_t> bits, int64_t layout) {
  if (layout != kLayout) return bad("the arrays have another layout; reinstall");
  if (args.size() != 3 * bits.size() || rets.size() != bits.size()) {
    return bad("the numbers of arrays differ");
  }
  for (size_t i = 0; i < bits.size(); ++i) {
    auto values = args.get<Any>(3 * i), scales = args.get<Any>(3 * i + 1);
    auto zeros = args.get<Any>(3 * i + 2);
    auto out = rets.get<Any>(i);
    for (const auto* given : {&values, &scales, &zeros}) {
      if (given->has_error()) return given->error();
    }
    if (out.has_error()) return out.error();
    ffi::Error done = one_dense(pool, *values, *scales, *zeros, *out, bits[i]);
    if (done.failure()) return done;
  }
  return ffi::Error::Success();
}

}  // namespace
}  // namespace jcompress

extern "C" JCOMPRESS_EXPORT XLA_FFI_Error* jcompress_dense(XLA_FFI_CallFrame*);

XLA_FFI_DEFINE_HANDLER_SYMBOL(jcompress_dense, jcompress::dense,
                              xla::ffi::Ffi::Bind()
                                  .Ctx<xla::ffi::ThreadPool>()
                                  .RemainingArgs()
                                  .RemainingRets()
                                  .Attr<xla::ffi::Span<const int64_t>>("bits")
                                  .Attr<int64_t>("layout"));
