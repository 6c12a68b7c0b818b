// The XLA handler of integer products: `int8_matmul` and `weight_only_matmul`.

#include <algorithm>
#include <string>

#include "floats.h"
#include "handlers.h"
#include "parallel.h"
#include "product.h"

namespace jcompress {
namespace {

// Below so many bytes of weight or products of integers a piece is not worth a thread,
constexpr int64_t kPieceBytes = 48 << 10;
constexpr int64_t kPieceProducts = 1 << 20;
// and below so many in all, a few microseconds, waking a thread is not.
constexpr int64_t kLeastBytes = 128 << 10;
constexpr int64_t kLeastProducts = 1 << 20;

ffi::Error bad(const std::string& what) {
  return ffi::Error::InvalidArgument("jcompress matmul: " + what);
}

ffi::Error matmul(ffi::ThreadPool pool, Any x, Any x_scale, Any x_zero, Any values,
                  Any scales, Any zeros, Any bias, ffi::Result<Any> y, int64_t bits,
                  int64_t x_bits, int64_t digits, int64_t layout) {
  if (layout != kLayout) return bad("the arrays have another layout than this library");
  if (x.dimensions().size() != 3 || scales.dimensions().size() != 3) {
    return bad("x and scales have three axes");
  }
  const int64_t stacks = x.dimensions()[0], rows = x.dimensions()[1];
  const int64_t inputs = x.dimensions()[2];
  const int64_t outputs = scales.dimensions()[1], groups = scales.dimensions()[2];
  if (inputs < 1 || groups < 1 || inputs % groups) return bad("groups do not fit");
  if (!(bits == 8 || (2 <= bits && bits <= 4))) return bad("bits is 2, 3, 4 or 8");
  if (x_bits < 2 || x_bits > 8) return bad("x_bits is from 2 to 8");
  if (digits < 1 || digits > 3) return bad("digits is from 1 to 3");
  Activations a{};
  Result result{};
  const bool integers = x.element_type() == ffi::DataType::S8;
  a.dtype = Float::kS8;
  if (!integers && !float_of(x.element_type(), &a.dtype)) return bad("dtype of x");
  if (!float_of(y->element_type(), &result.dtype)) return bad("dtype of y");
  if (!is(*y, y->element_type(), {stacks, rows, outputs})) return bad("shape of y");
  const auto stored = bits == 8 ? ffi::DataType::S8 : ffi::DataType::U8;
  Weight w{};
  w.outputs = outputs;
  w.inputs = inputs;
  w.groups = groups;
  w.bits = static_cast<int>(bits);
  if (!is(values, stored, {stacks, outputs, w.row_bytes()})) return bad("values");
  if (!is(scales, ffi::DataType::F32, {stacks, outputs, groups})) return bad("scales");
  const auto per_row = {stacks, rows};
  const bool has_scale = !absent(x_scale), has_zero = !absent(x_zero);
  if (has_scale && !is(x_scale, ffi::DataType::F32, per_row)) return bad("x_scale");
  if (has_zero && !is(x_zero, ffi::DataType::F32, per_row)) return bad("x_zero");
  if (!absent(zeros) && !is(zeros, ffi::DataType::S8, {stacks, outputs, groups})) {
    return bad("zeros");
  }
  if (!absent(bias) && !is(bias, ffi::DataType::F32, {stacks, outputs})) {
    return bad("bias");
  }
  if (y->element_count() == 0) return ffi::Error::Success();
  if ((integers || has_zero) && !has_scale) return bad("x_scale is missing");
  if (has_zero && (groups > 1 || digits > 1)) return bad("x_zero with groups or digits");

  const Products& products = products_of(chosen_instructions());
  Rows layout_of{};
  layout_of.cut = products.cut(w.bits);
  layout_of.grouping = grouping_of(layout_of.cut, inputs, groups);
  if (layout_of.grouping == Grouping::kUnable) return bad("groups of this size");
  layout_of.digits = digits;
  layout_of.ones = has_zero;
  layout_of.count = rows * digits + has_zero;
  const int64_t step = layout_of.cut.step_inputs();
  layout_of.steps = (inputs + step - 1) / step;

  const int64_t tiles = layout_of.tiles();
  const int64_t packed_size = tiles * layout_of.tile_bytes();
  const int64_t sums_size = tiles * Rows::kTile * layout_of.sums_per_row(groups);
  Buffer<int8_t> packed(stacks * packed_size);
  Buffer<int32_t> sums(stacks * sums_size);
  Buffer<float> scale(stacks * rows);
  auto rows_of = [&](int64_t s) {
    Rows r = layout_of;
    r.packed = packed.data() + s * packed_size;
    r.sums = sums.data() + s * sums_size;
    r.scale = scale.data() + s * rows;
    r.zero = part<float>(x_zero, s, rows);
    return r;
  };
  auto weight_of = [&](int64_t s) {
    Weight one = w;
    one.values = static_cast<const uint8_t*>(values.untyped_data()) +
                 s * outputs * w.row_bytes();
    one.scales = part<float>(scales, s, outputs * groups);
    one.zeros = part<int8_t>(zeros, s, outputs * groups);
    return one;
  };
  const int64_t x_bytes = a.dtype == Float::kS8 ? 1 : a.dtype == Float::kF32 ? 4 : 2;
  const int64_t y_bytes = result.dtype == Float::kF32 ? 4 : 2;
  a.rows = rows;
  a.inputs = inputs;
  a.bits = static_cast<int>(x_bits);
  a.digits = static_cast<int>(digits);

  // A few tiles a piece, so that a piece is worth a thread.
  const int64_t tile_products = Rows::kTile * inputs * 16;
  const int64_t few = std::max<int64_t>(1, kPieceProducts / tile_products);
  const int64_t pieces = (tiles + few - 1) / few;
  parallel_for(pool, stacks * pieces, [&](int64_t i) {
    const int64_t s = i / pieces, t0 = i % pieces * few;
    Activations mine = a;
    mine.x = static_cast<const char*>(x.untyped_data()) + s * rows * inputs * x_bytes;
    mine.scale = part<float>(x_scale, s, rows);
    mine.zero = part<float>(x_zero, s, rows);
    const Weight weight = weight_of(s);
    const Rows r = rows_of(s);
    Buffer<float> scratch(inputs + inputs / 4 + 256);
    for (int64_t t = t0; t < std::min(tiles, t0 + few); ++t) {
      products.pack(mine, weight, r, t, scratch.data());
    }
  }, stacks * rows * inputs < kPieceProducts / 16);

  const int64_t least_outputs =
      std::max(kPieceBytes / w.row_bytes(),
               kPieceProducts / std::max<int64_t>(1, layout_of.count * inputs));
  const int64_t most_pieces = std::max<int64_t>(1, 8 * pool.num_threads());
  int64_t chunk = std::max(least_outputs, outputs / most_pieces);
  chunk = std::clamp<int64_t>((chunk + 7) / 8 * 8, 8, 128);
  const int64_t chunks = (outputs + chunk - 1) / chunk;
  const bool small = stacks * outputs * w.row_bytes() < kLeastBytes &&
                     stacks * layout_of.count * inputs * outputs < kLeastProducts;
  parallel_for(pool, stacks * chunks, [&](int64_t i) {
    const int64_t s = i / chunks, first = i % chunks * chunk;
    Result mine = result;
    mine.y = static_cast<char*>(y->untyped_data()) + s * rows * outputs * y_bytes;
    mine.bias = part<float>(bias, s, outputs);
    products.multiply(rows_of(s), weight_of(s), mine, rows, first,
                      std::min(outputs, first + chunk));
  }, small);
  return ffi::Error::Success();
}

}  // namespace
}  // namespace jcompress

extern "C" JCOMPRESS_EXPORT XLA_FFI_Error* jcompress_matmul(XLA_FFI_CallFrame*);

XLA_FFI_DEFINE_HANDLER_SYMBOL(
    jcompress_matmul, jcompress::matmul,
    xla::ffi::Ffi::Bind()
        .Ctx<xla::ffi::ThreadPool>()
        .Arg<xla::ffi::AnyBuffer>()
        .Arg<xla::ffi::AnyBuffer>()
        .Arg<xla::ffi::AnyBuffer>()
        .Arg<xla::ffi::AnyBuffer>()
        .Arg<xla::ffi::AnyBuffer>()
        .Arg<xla::ffi::AnyBuffer>()
        .Arg<xla::ffi::AnyBuffer>()
        .Ret<xla::ffi::AnyBuffer>()
        .Attr<int64_t>("bits")
        .Attr<int64_t>("x_bits")
        .Attr<int64_t>("digits")
        .Attr<int64_t>("layout"));

extern "C" {

// The name of the instruction set in use.
JCOMPRESS_EXPORT const char* jcompress_instructions() {
  return jcompress::instructions_name(jcompress::chosen_instructions());
}

// How a weight's groups meet the instructions in use: 3 if they cannot.
JCOMPRESS_EXPORT int32_t jcompress_grouping(int32_t bits, int64_t inputs,
                                            int64_t groups) {
  const auto& products = jcompress::products_of(jcompress::chosen_instructions());
  return static_cast<int32_t>(
      jcompress::grouping_of(products.cut(bits), inputs, groups));
}
}
