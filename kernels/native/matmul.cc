// The XLA handlers of integer products: `int8_matmul`, `weight_only_matmul` and
// `shared_input_matmul`.

#include <algorithm>
#include <optional>
#include <string>
#include <vector>

#include "floats.h"
#include "handlers.h"
#include "multiply.h"
#include "product.h"
#include "product_plan.h"

namespace jcompress {
namespace {

ffi::Error bad(const std::string& what) {
  return ffi::Error::InvalidArgument("jcompress matmul: " + what);
}

// The arrays of one product, the activations apart.
struct Arrays {
  Any values, scales, zeros, bias;
  std::optional<Any> factor, residual;
  Any y;
  int64_t activation;
};

struct Inputs {
  Any x, x_scale, x_zero;
};

struct Numbers {
  int64_t bits, x_bits, digits, layout;
};

bool given(const std::optional<Any>& a) { return a && !absent(*a); }

int64_t bytes_of(Float dtype) {
  return dtype == Float::kS8 ? 1 : dtype == Float::kF32 ? 4 : 2;
}

// What is wrong with the activations; writes what they are.
std::string read_rows(const Inputs& of, const Numbers& n, Activations* a) {
  if (n.layout != kLayout) return "the arrays have another layout than this library";
  if (of.x.dimensions().size() != 3) return "x has three axes";
  const int64_t stacks = of.x.dimensions()[0], rows = of.x.dimensions()[1];
  if (!(n.bits == 8 || (2 <= n.bits && n.bits <= 4))) return "bits is 2, 3, 4 or 8";
  if (n.x_bits < 2 || n.x_bits > 8) return "x_bits is from 2 to 8";
  if (n.digits < 1 || n.digits > 3) return "digits is from 1 to 3";
  const bool integers = of.x.element_type() == ffi::DataType::S8;
  a->dtype = Float::kS8;
  if (!integers && !float_of(of.x.element_type(), &a->dtype)) return "dtype of x";
  const bool has_scale = !absent(of.x_scale), has_zero = !absent(of.x_zero);
  for (const Any* one : {&of.x_scale, &of.x_zero}) {
    if (!absent(*one) && !is(*one, ffi::DataType::F32, {stacks, rows})) {
      return "x_scale or x_zero";
    }
  }
  a->rows = rows;
  a->inputs = of.x.dimensions()[2];
  a->bits = static_cast<int>(n.x_bits);
  a->digits = static_cast<int>(n.digits);
  if (stacks * rows == 0) return "";
  if ((integers || has_zero) && !has_scale) return "x_scale is missing";
  if (has_zero && n.digits > 1) return "x_zero with digits";
  return "";
}

// What is wrong with the arrays of a product; writes what its weight is.
std::string read_arrays(const Arrays& of, const Inputs& rows, const Activations& a,
                        int64_t bits, Weight* w) {
  const int64_t stacks = rows.x.dimensions()[0];
  if (of.scales.dimensions().size() != 3) return "scales has three axes";
  w->outputs = of.scales.dimensions()[1];
  w->inputs = a.inputs;
  w->groups = of.scales.dimensions()[2];
  w->bits = static_cast<int>(bits);
  if (w->inputs < 1 || w->groups < 1 || w->inputs % w->groups) return "groups do not fit";
  const auto stored = bits == 8 ? ffi::DataType::S8 : ffi::DataType::U8;
  if (!is(of.values, stored, {stacks, w->outputs, w->row_bytes()})) return "values";
  const std::vector<int64_t> by_group{stacks, w->outputs, w->groups};
  if (!is(of.scales, ffi::DataType::F32, by_group)) return "scales";
  if (!absent(of.zeros) && !is(of.zeros, ffi::DataType::S8, by_group)) return "zeros";
  if (!absent(of.bias) && !is(of.bias, ffi::DataType::F32, {stacks, w->outputs})) {
    return "bias";
  }
  if (!absent(rows.x_zero) && w->groups > 1) return "x_zero with groups";
  Float dtype;
  const auto type = of.y.element_type();
  const std::vector<int64_t> whole{stacks, a.rows, w->outputs};
  if (!float_of(type, &dtype) || !is(of.y, type, whole)) return "y";
  for (const auto* one : {&of.factor, &of.residual}) {
    if (given(*one) && !is(**one, type, whole)) return "factor or residual";
  }
  const bool known =
      0 <= of.activation && of.activation <= static_cast<int64_t>(Function::kRelu6);
  return known ? "" : "activation";
}

ffi::Error multiply_rows(ffi::ThreadPool& pool, const ProductPlan* plan, const Inputs& rows,
                         const std::vector<Arrays>& arrays, const Numbers& numbers) {
  Stack stack{};
  stack.plan = plan->fixed() ? plan : nullptr;
  std::string wrong = read_rows(rows, numbers, &stack.a);
  if (!wrong.empty()) return bad(wrong);
  stack.count = rows.x.dimensions()[0];
  stack.ones = !absent(rows.x_zero);
  const int64_t size = stack.a.rows;
  std::vector<int64_t> wide_at;  // where the products of each begin in `wide`
  int64_t wide_size = 0;
  for (const Arrays& one : arrays) {
    Weight w{};
    wrong = read_arrays(one, rows, stack.a, numbers.bits, &w);
    if (!wrong.empty()) return bad(wrong);
    const bool same = stack.weights.empty() || w.groups == stack.any().groups;
    if (!same || absent(one.zeros) != absent(arrays.front().zeros)) {
      return bad("weights of one layout share their input");
    }
    stack.weights.push_back(w);
    // What follows is computed in float32, before a narrower result is rounded.
    const bool follows = one.activation || given(one.factor) || given(one.residual);
    const bool widens = follows && one.y.element_type() != ffi::DataType::F32;
    wide_at.push_back(widens ? wide_size : -1);
    if (widens) wide_size += stack.count * size * w.outputs;
  }
  if (stack.count * size * stack.outputs() == 0) return ffi::Error::Success();
  Buffer<float> wide(wide_size);
  stack.of = [&](int64_t s, size_t i) {
    const Arrays& from = arrays[i];
    const int64_t outputs = stack.weights[i].outputs, groups = stack.weights[i].groups;
    const int64_t y_size = size * outputs;
    One one{stack.a, stack.weights[i], {}, {}};
    one.a.x = static_cast<const char*>(rows.x.untyped_data()) +
              s * size * one.a.inputs * bytes_of(one.a.dtype);
    one.a.scale = part<float>(rows.x_scale, s, size);
    one.a.zero = part<float>(rows.x_zero, s, size);
    one.w.values = static_cast<const uint8_t*>(from.values.untyped_data()) +
                   s * outputs * one.w.row_bytes();
    one.w.scales = part<float>(from.scales, s, outputs * groups);
    one.w.zeros = part<int8_t>(from.zeros, s, outputs * groups);
    one.y.bias = part<float>(from.bias, s, outputs);
    float_of(from.y.element_type(), &one.after.dtype);
    const int64_t bytes = bytes_of(one.after.dtype);
    one.after.function = static_cast<Function>(from.activation);
    one.after.y = static_cast<char*>(from.y.untyped_data()) + s * y_size * bytes;
    if (from.factor) one.after.factor = part<char>(*from.factor, s, y_size, bytes);
    if (from.residual) one.after.residual = part<char>(*from.residual, s, y_size, bytes);
    const bool widens = wide_at[i] >= 0;
    one.y.dtype = widens ? Float::kF32 : one.after.dtype;
    one.y.y = widens ? wide.data() + wide_at[i] + s * y_size : one.after.y;
    return one;
  };
  if (!multiply_stack(pool, stack)) return bad("groups of this size");
  return ffi::Error::Success();
}

ffi::Error matmul(ffi::ThreadPool pool, const ProductPlan* plan, Any x, Any x_scale, Any x_zero, Any values,
                  Any scales, Any zeros, Any bias, Any factor, Any residual,
                  ffi::Result<Any> y, int64_t activation, int64_t bits, int64_t x_bits,
                  int64_t digits, bool, int64_t layout) {
  const Arrays arrays{values, scales, zeros, bias, factor, residual, *y, activation};
  return multiply_rows(pool, plan, {x, x_scale, x_zero}, {arrays},
                       {bits, x_bits, digits, layout});
}

// Of each weight values, scales, zeros and bias.
ffi::Error shared_input(ffi::ThreadPool pool, const ProductPlan* plan, Any x, ffi::RemainingArgs args,
                        ffi::RemainingRets rets, ffi::Span<const int64_t> activations,
                        int64_t bits, int64_t x_bits, int64_t digits, bool,
                        int64_t layout) {
  constexpr size_t kArrays = 4;
  const size_t count = activations.size();
  if (count == 0 || args.size() != kArrays * count + 1 || rets.size() != count) {
    return bad("the numbers of arrays differ");
  }
  auto none = args.get<Any>(0);
  if (none.has_error()) return none.error();
  std::vector<Arrays> arrays;
  for (size_t i = 0; i < count; ++i) {
    const size_t first = 1 + kArrays * i;
    auto values = args.get<Any>(first), scales = args.get<Any>(first + 1);
    auto zeros = args.get<Any>(first + 2), bias = args.get<Any>(first + 3);
    auto y = rets.get<Any>(i);
    for (const auto* one : {&values, &scales, &zeros, &bias}) {
      if (one->has_error()) return one->error();
    }
    if (y.has_error()) return y.error();
    arrays.push_back({*values, *scales, *zeros, *bias, {}, {}, **y, activations[i]});
  }
  return multiply_rows(pool, plan, {x, *none, *none}, arrays,
                       {bits, x_bits, digits, layout});
}

Planned<ProductPlan> plan_products(ffi::Dictionary attributes) {
  const auto fixed = attributes.get<bool>("fixed");
  if (fixed.has_error()) return {ffi::Unexpected(fixed.error())};
  return {std::make_unique<ProductPlan>(*fixed)};
}

}  // namespace
}  // namespace jcompress

extern "C" JCOMPRESS_EXPORT XLA_FFI_Error* jcompress_matmul_plan(XLA_FFI_CallFrame*);
extern "C" JCOMPRESS_EXPORT XLA_FFI_Error* jcompress_shared_input_plan(XLA_FFI_CallFrame*);

XLA_FFI_DEFINE_HANDLER_SYMBOL(jcompress_matmul_plan, jcompress::plan_products,
                              xla::ffi::Ffi::BindInstantiate().Attrs());
XLA_FFI_DEFINE_HANDLER_SYMBOL(jcompress_shared_input_plan, jcompress::plan_products,
                              xla::ffi::Ffi::BindInstantiate().Attrs());

extern "C" JCOMPRESS_EXPORT XLA_FFI_Error* jcompress_shared_input(XLA_FFI_CallFrame*);

XLA_FFI_DEFINE_HANDLER_SYMBOL(jcompress_shared_input, jcompress::shared_input,
                              xla::ffi::Ffi::Bind()
                                  .Ctx<xla::ffi::ThreadPool>()
                                  .Ctx<xla::ffi::State<jcompress::ProductPlan>>()
                                  .Arg<xla::ffi::AnyBuffer>()
                                  .RemainingArgs()
                                  .RemainingRets()
                                  .Attr<xla::ffi::Span<const int64_t>>("activations")
                                  .Attr<int64_t>("bits")
                                  .Attr<int64_t>("x_bits")
                                  .Attr<int64_t>("digits")
                                  .Attr<bool>("fixed")
                                  .Attr<int64_t>("layout"));

extern "C" JCOMPRESS_EXPORT XLA_FFI_Error* jcompress_matmul(XLA_FFI_CallFrame*);

XLA_FFI_DEFINE_HANDLER_SYMBOL(
    jcompress_matmul, jcompress::matmul,
    xla::ffi::Ffi::Bind()
        .Ctx<xla::ffi::ThreadPool>()
        .Ctx<xla::ffi::State<jcompress::ProductPlan>>()
        .Arg<xla::ffi::AnyBuffer>()
        .Arg<xla::ffi::AnyBuffer>()
        .Arg<xla::ffi::AnyBuffer>()
        .Arg<xla::ffi::AnyBuffer>()
        .Arg<xla::ffi::AnyBuffer>()
        .Arg<xla::ffi::AnyBuffer>()
        .Arg<xla::ffi::AnyBuffer>()
        .Arg<xla::ffi::AnyBuffer>()
        .Arg<xla::ffi::AnyBuffer>()
        .Ret<xla::ffi::AnyBuffer>()
        .Attr<int64_t>("activation")
        .Attr<int64_t>("bits")
        .Attr<int64_t>("x_bits")
        .Attr<int64_t>("digits")
        .Attr<bool>("fixed")
        .Attr<int64_t>("layout"));

extern "C" {

// The name of the instruction set in use.
JCOMPRESS_EXPORT const char* jcompress_instructions() {
  return jcompress::instructions_name(jcompress::chosen_instructions());
}

// Whether the kernels of the instructions in use can scale a weight's groups.
JCOMPRESS_EXPORT int32_t jcompress_takes_groups(int32_t bits, int64_t inputs,
                                                int64_t groups) {
  jcompress::Weight w{};
  w.bits = bits;
  w.inputs = inputs;
  w.groups = groups;
  return jcompress::takes_groups(jcompress::products_of(jcompress::chosen_instructions()), w);
}
}
