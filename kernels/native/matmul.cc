// The XLA handler of integer products: `int8_matmul` and `weight_only_matmul`.

#include <algorithm>
#include <functional>
#include <string>
#include <vector>

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
// Rows of panels whose sums with some outputs stay in the second-level cache.
constexpr int64_t kBlockRows = 384;

ffi::Error bad(const std::string& what) {
  return ffi::Error::InvalidArgument("jcompress matmul: " + what);
}

// A product, and a stack of them.
struct One {
  Activations a;
  Weight w;
  Result y;
};

struct Stack : One {
  int64_t count;
  std::function<One(int64_t)> of;  // the arrays of one of them
};

// Whether so many rows fill enough of the panels' lanes to be faster there than in tiles:
// measured with AVX-512, where a full panel takes 0.8 to 0.95 of the time of its tiles,
// or 0.4 to 0.85 if sums are scaled by groups.
bool fills_panels(const ManyRows& many, const Weight& w, const Activations& a) {
  if (a.rows >= many.integers) return true;
  const int64_t bands = (a.rows + many.lanes - 1) / many.lanes;
  const bool scaled_often = w.groups > 1 && (a.digits > 1 || w.group_size() >= 64);
  if (scaled_often) return 4 * a.rows >= 3 * bands * many.lanes;
  return (bands * a.digits >= 2 || w.groups == 1) && 8 * a.rows >= 7 * bands * many.lanes;
}

// With how many digits rows are laid out in panels, 0 as floats, -1 not at all.
int digits_of_panels(const Products& products, const Weight& w, const Activations& a) {
  const ManyRows& many = products.many;
  const bool integers = many.integers > 0 && unit_of(w) > 0;
  if (integers && fills_panels(many, w, a)) return a.digits;
  if (integers || a.digits == 1) return -1;
  const int64_t fewest = w.groups > 1 ? many.grouped_floats : many.floats;
  return fewest > 0 && a.rows >= fewest ? 0 : -1;
}

// Where pieces of outputs begin, and the last one ends. Memory delivers long pieces
// faster, so with few rows the first are long: each is a part of what is left, so that
// the threads still end together.
std::vector<int64_t> cut_outputs(int64_t outputs, int64_t least, bool even,
                                 int64_t threads, int64_t unit) {
  constexpr int64_t kEven = 128, kLongest = 512;
  std::vector<int64_t> bounds{0};
  threads = std::max<int64_t>(1, threads);
  least = std::clamp<int64_t>(std::max(least, outputs / (8 * threads)), 8, kEven);
  while (bounds.back() < outputs) {
    const int64_t part = (outputs - bounds.back()) / (2 * threads);
    const int64_t size = even ? least : std::clamp(part, least, kLongest);
    bounds.push_back(std::min(outputs, bounds.back() + (size + unit - 1) / unit * unit));
  }
  return bounds;
}

void multiply_panels(ffi::ThreadPool& pool, const ManyRows& many, const Stack& stack,
                     int digits) {
  Panels layout{};
  layout.rows = stack.a.rows;
  layout.inputs = stack.a.inputs;
  layout.groups = stack.w.groups;
  layout.lanes = many.lanes;
  layout.digits = digits;
  const int64_t size = layout.count() * layout.panel_bytes();
  const int64_t sums_size = digits * layout.bands() * layout.groups * layout.lanes;
  const int64_t scale_size = layout.bands() * layout.lanes;
  Buffer<char> packed(stack.count * size);
  Buffer<int32_t> sums(stack.count * sums_size);
  Buffer<float> scale(stack.count * scale_size);
  auto panels_of = [&](int64_t s, const Activations& a) {
    Panels p = layout;
    p.packed = packed.data() + s * size;
    p.sums = sums.data() + s * sums_size;
    p.scale = scale.data() + s * scale_size;
    p.zero = a.zero;
    return p;
  };
  const int64_t bands = layout.bands(), inputs = layout.inputs;
  const auto pack = [&](int64_t i) {
    const int64_t s = i / bands;
    const One one = stack.of(s);
    Buffer<float> scratch(digits * layout.panel_bytes() / 4 + inputs);
    many.pack(one.a, panels_of(s, one.a), i % bands, scratch.data());
  };

  // Outputs and bands in blocks, small ones if there are few for so many threads.
  const int64_t outputs = stack.w.outputs;
  const int64_t most =
      std::max<int64_t>(1, kBlockRows / (layout.in_band() * layout.lanes));
  const int64_t blocks = (bands + most - 1) / most;
  const int64_t in_block = (bands + blocks - 1) / blocks;
  const bool exact = digits > 0 && layout.groups == 1;
  const bool few = exact && in_block * layout.in_band() <= kFewPanels;
  int64_t chunk = few ? kFewOutputs : kChunk;
  if (stack.count * blocks * outputs < 3 * chunk * pool.num_threads()) chunk /= 2;
  const std::vector<int64_t> bounds =
      cut_outputs(outputs, chunk, false, pool.num_threads() * blocks, chunk);
  const int64_t chunks = static_cast<int64_t>(bounds.size()) - 1;
  const auto multiply = [&](int64_t i) {
    const int64_t s = i / (chunks * blocks), piece = i / blocks % chunks;
    const int64_t band = i % blocks * in_block;
    const One one = stack.of(s);
    many.multiply(panels_of(s, one.a), one.w, one.y, bounds[piece], bounds[piece + 1],
                  band, std::min(bands, band + in_block));
  };
  const bool small = stack.count * outputs * stack.w.row_bytes() < kLeastBytes &&
                     stack.count * layout.rows * inputs * outputs < kLeastProducts;
  parallel_phases(pool, stack.count * bands, pack, stack.count * chunks * blocks, multiply,
                  small);
}

void multiply_tiles(ffi::ThreadPool& pool, const Products& products, const Stack& stack,
                    bool ones) {
  const int64_t inputs = stack.w.inputs, groups = stack.w.groups;
  const int64_t outputs = stack.w.outputs, rows = stack.a.rows;
  Rows layout{};
  layout.cut = products.cut(stack.w.bits);
  layout.grouping = grouping_of(layout.cut, inputs, groups);
  layout.digits = stack.a.digits;
  layout.ones = ones;
  layout.count = rows * layout.digits + ones;
  const int64_t step = layout.cut.step_inputs();
  layout.steps = (inputs + step - 1) / step;

  const int64_t tiles = layout.tiles();
  const int64_t packed_size = tiles * layout.tile_bytes();
  const int64_t sums_size = tiles * Rows::kTile * layout.sums_per_row(groups);
  Buffer<int8_t> packed(stack.count * packed_size);
  Buffer<int32_t> sums(stack.count * sums_size);
  Buffer<float> scale(stack.count * rows);
  auto rows_of = [&](int64_t s, const Activations& a) {
    Rows r = layout;
    r.packed = packed.data() + s * packed_size;
    r.sums = sums.data() + s * sums_size;
    r.scale = scale.data() + s * rows;
    r.zero = a.zero;
    return r;
  };
  // A few tiles a piece, so that a piece is worth a thread.
  const int64_t tile_products = Rows::kTile * inputs * 16;
  const int64_t few = std::max<int64_t>(1, kPieceProducts / tile_products);
  const int64_t pieces = (tiles + few - 1) / few;
  const auto pack = [&](int64_t i) {
    const int64_t s = i / pieces, t0 = i % pieces * few;
    const One one = stack.of(s);
    const Rows r = rows_of(s, one.a);
    Buffer<float> scratch(inputs + inputs / 4 + 256);
    for (int64_t t = t0; t < std::min(tiles, t0 + few); ++t) {
      products.pack(one.a, one.w, r, t, scratch.data());
    }
  };

  const int64_t row_bytes = stack.w.row_bytes();
  const int64_t least_outputs =
      std::max(kPieceBytes / row_bytes,
               kPieceProducts / std::max<int64_t>(1, layout.count * inputs));
  const std::vector<int64_t> bounds =
      cut_outputs(outputs, least_outputs, tiles > 1, pool.num_threads(), 8);
  const int64_t chunks = static_cast<int64_t>(bounds.size()) - 1;
  const bool small = stack.count * outputs * row_bytes < kLeastBytes &&
                     stack.count * layout.count * inputs * outputs < kLeastProducts;
  const auto multiply = [&](int64_t i) {
    const int64_t s = i / chunks;
    const One one = stack.of(s);
    products.multiply(rows_of(s, one.a), one.w, one.y, rows, bounds[i % chunks],
                      bounds[i % chunks + 1]);
  };
  parallel_phases(pool, stack.count * pieces, pack, stack.count * chunks, multiply, small);
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

  a.rows = rows;
  a.inputs = inputs;
  a.bits = static_cast<int>(x_bits);
  a.digits = static_cast<int>(digits);
  const int64_t x_bytes = a.dtype == Float::kS8 ? 1 : a.dtype == Float::kF32 ? 4 : 2;
  const int64_t y_bytes = result.dtype == Float::kF32 ? 4 : 2;
  Stack stack{{a, w, result}, stacks, {}};
  stack.of = [&](int64_t s) {
    One one{a, w, result};
    one.a.x = static_cast<const char*>(x.untyped_data()) + s * rows * inputs * x_bytes;
    one.a.scale = part<float>(x_scale, s, rows);
    one.a.zero = part<float>(x_zero, s, rows);
    one.w.values = static_cast<const uint8_t*>(values.untyped_data()) +
                   s * outputs * w.row_bytes();
    one.w.scales = part<float>(scales, s, outputs * groups);
    one.w.zeros = part<int8_t>(zeros, s, outputs * groups);
    one.y.y = static_cast<char*>(y->untyped_data()) + s * rows * outputs * y_bytes;
    one.y.bias = part<float>(bias, s, outputs);
    return one;
  };
  const Products& products = products_of(chosen_instructions());
  const int panel_digits = digits_of_panels(products, w, a);
  if (panel_digits >= 0) {
    multiply_panels(pool, products.many, stack, panel_digits);
  } else if (grouping_of(products.cut(w.bits), inputs, groups) == Grouping::kUnable) {
    return bad("groups of this size");
  } else {
    multiply_tiles(pool, products, stack, has_zero);
  }
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
