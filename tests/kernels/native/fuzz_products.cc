// Products of random sizes on buffers of exactly the size that is promised, for every
// instruction set of this processor: built with sanitizers by `.ci/sanitize`, it shows
// that nothing is read or written beyond them, and compares with sums in double.
//
// Arguments: the first seed, how many products an instruction set computes, and one
// instruction set if not all.

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <vector>

#include "exact.h"

namespace jcompress {
namespace {

struct Case {
  int bits, digits, x_bits;
  Float x_dtype, y_dtype;
  int64_t rows, inputs, outputs, groups, chunk;
  bool x_scale, x_zero, zeros, bias, finite;
};

Case draw_case(Draw& draw) {
  Case c;
  c.bits = draw.one_of({2, 3, 4, 8});
  c.x_dtype = draw.one_of({Float::kF32, Float::kBF16, Float::kF16, Float::kS8});
  c.y_dtype = c.x_dtype == Float::kS8 ? Float::kF32 : c.x_dtype;
  c.rows = draw.one_of<int64_t>({1, 1, 2, draw.integer(1, 8), draw.integer(1, 40)});
  c.outputs = draw.one_of<int64_t>(
      {draw.integer(1, 5), draw.integer(1, 37), draw.integer(1, 100)});
  c.chunk = draw.one_of<int64_t>({4, 8, 128});
  // Few groups of sizes that instructions like, and any.
  const int64_t size = draw.one_of<int64_t>({16, 32, 64, 128, 256, draw.integer(1, 300)});
  c.groups = draw.one_of<int64_t>({1, 1, draw.integer(1, 9)});
  c.inputs = c.groups * size + (c.groups == 1 ? draw.integer(0, 300) : 0);
  // Sums of more products than an int32 holds are cut.
  if (c.groups == 1 && draw.integer(0, 49) == 0) c.inputs += 32768;
  c.digits = c.x_dtype == Float::kS8 ? 1 : static_cast<int>(draw.integer(1, 3));
  c.x_bits = c.digits > 1 ? 8 : static_cast<int>(draw.integer(2, 8));
  c.x_scale = c.x_dtype == Float::kS8 || (c.digits == 1 && draw.coin());
  c.x_zero = c.x_scale && c.groups == 1 && draw.coin();
  c.zeros = draw.coin();
  c.bias = draw.coin();
  c.finite = c.x_dtype == Float::kS8 || draw.integer(0, 9) > 0;
  return c;
}

// Any pattern of bits is a stored weight; what it stands for:
int stored_integer(const uint8_t* row, int64_t k, int bits) {
  if (bits == 8) return static_cast<int8_t>(row[k]);
  int value = 0;
  for (int b = 0; b < bits; ++b) {
    const int64_t bit = k * bits + b;
    value |= ((row[bit / 8] >> (bit % 8)) & 1) << b;
  }
  return value - ((value >> (bits - 1)) << bits);
}

// What a row of activations stands for, and the largest error of its fixed point.
double as_multiplied(const Case& c, const std::vector<float>& x, float scale, float zero,
                     std::vector<double>& out) {
  float top = 0;
  for (float number : x) top = std::max(top, std::abs(number));
  if (c.digits > 1) {
    std::copy(x.begin(), x.end(), out.begin());
    return top / (254.0 * std::pow(254.0, c.digits - 1)) + top * 1.2e-7;
  }
  const float high = static_cast<float>((1 << (c.x_bits - 1)) - 1);
  if (!c.x_scale) {
    scale = top * (1.0f / high);
    if (scale < std::numeric_limits<float>::min()) scale = 1.0f;
  }
  const float inverse = 1.0f / scale;
  for (size_t k = 0; k < x.size(); ++k) {
    float q = x[k];
    if (c.x_dtype != Float::kS8) {
      const float low = c.x_zero ? -high - 1 : -high;
      q = std::clamp(std::nearbyint(x[k] * inverse) + zero, low, high);
    }
    out[k] = (static_cast<double>(q) - zero) * scale;
  }
  return 0;
}

void describe(const Case& c, const char* set, uint64_t seed) {
  std::printf(
      "%s, seed %llu: bits %d, digits %d, x_bits %d, x %d, rows %lld, inputs %lld, "
      "outputs %lld, groups %lld, chunk %lld, x_scale %d, x_zero %d, zeros %d, bias %d, "
      "finite %d\n",
      set, static_cast<unsigned long long>(seed), c.bits, c.digits, c.x_bits,
      static_cast<int>(c.x_dtype), static_cast<long long>(c.rows),
      static_cast<long long>(c.inputs), static_cast<long long>(c.outputs),
      static_cast<long long>(c.groups), static_cast<long long>(c.chunk), c.x_scale,
      c.x_zero, c.zeros, c.bias, c.finite);
}

// A case with its arrays, each of exactly its size.
struct Arrays {
  Exact<uint8_t> values;
  Exact<float> scales, bias, x_scale, x_zero;
  Exact<int8_t> zeros;
  Exact<char> x, y;
  std::vector<std::vector<float>> wide;  // the activations
  Weight w{};
  Activations a{};

  Arrays(const Case& c, Draw& draw)
      : values(c.outputs * ((c.inputs * c.bits + 7) / 8)),
        scales(c.outputs * c.groups),
        bias(c.outputs),
        x_scale(c.x_scale ? c.rows : 0),
        x_zero(c.x_zero ? c.rows : 0),
        zeros(c.zeros ? c.outputs * c.groups : 0),
        x(c.rows * c.inputs * bytes_of(c.x_dtype)),
        y(c.rows * c.outputs * bytes_of(c.y_dtype)),
        wide(c.rows, std::vector<float>(c.inputs)) {
    for (int64_t i = 0; i < values.size(); ++i) values[i] = draw.integer(0, 255);
    for (int64_t i = 0; i < scales.size(); ++i) scales[i] = draw.uniform(0.001f, 0.1f);
    for (int64_t i = 0; i < bias.size(); ++i) bias[i] = draw.uniform(-1, 1);
    const int most = 1 << (c.bits - 1);
    for (int64_t i = 0; i < zeros.size(); ++i) zeros[i] = draw.integer(-most, most - 1);
    for (int64_t i = 0; i < x_scale.size(); ++i) x_scale[i] = draw.uniform(0.001f, 0.1f);
    for (int64_t i = 0; i < x_zero.size(); ++i) {
      x_zero[i] = static_cast<float>(draw.integer(-128, 127));
    }
    for (int64_t m = 0; m < c.rows; ++m) draw_row(c, draw, m);
    w.values = values.data();
    w.scales = scales.data();
    w.zeros = c.zeros ? zeros.data() : nullptr;
    w.outputs = c.outputs;
    w.inputs = c.inputs;
    w.groups = c.groups;
    w.bits = c.bits;
    a.x = x.data();
    a.dtype = c.x_dtype;
    a.scale = c.x_scale ? x_scale.data() : nullptr;
    a.zero = c.x_zero ? x_zero.data() : nullptr;
    a.rows = c.rows;
    a.inputs = c.inputs;
    a.bits = c.x_bits;
    a.digits = c.digits;
  }

  void draw_row(const Case& c, Draw& draw, int64_t m) {
    const float size = draw.one_of({1e-30f, 0.01f, 1.0f, 1.0f, 100.0f});
    const bool half = c.x_dtype == Float::kF16;
    for (int64_t k = 0; k < c.inputs; ++k) {
      const int64_t i = m * c.inputs + k;
      if (c.x_dtype == Float::kS8) {
        x.data()[i] = static_cast<char>(draw.integer(-128, 127));
        wide[m][k] = static_cast<int8_t>(x.data()[i]);
        continue;
      }
      store(draw.uniform(-1, 1) * (half ? std::max(size, 0.01f) : size), c.x_dtype,
            x.data(), i);
      widen(x.data(), c.x_dtype, i, 1, &wide[m][k]);
    }
    if (!c.finite) {
      const float odd = draw.one_of({NAN, INFINITY, -INFINITY, 3e38f});
      store(odd, c.x_dtype, x.data(), m * c.inputs + draw.integer(0, c.inputs - 1));
    }
  }

  Result result(const Case& c) {
    std::memset(y.data(), 0, y.size());
    return {y.data(), c.y_dtype, c.bias ? bias.data() : nullptr};
  }
};

// Stops the process if y is not what `how` should have made it; `floats`: without
// rounding the activations.
void compare(const Case& c, Arrays& all, const char* set, const char* how, uint64_t seed,
             bool floats) {
  if (!c.finite) return;
  const double eps = c.y_dtype == Float::kBF16 ? 1.0 / 256
                     : c.y_dtype == Float::kF16 ? 1.0 / 1024
                                                : 0.0;
  std::vector<double> left(c.inputs);
  for (int64_t m = 0; m < c.rows; ++m) {
    double error = 0;
    if (floats) {
      std::copy(all.wide[m].begin(), all.wide[m].end(), left.begin());
    } else {
      error = as_multiplied(c, all.wide[m], c.x_scale ? all.x_scale[m] : 0.0f,
                            c.x_zero ? all.x_zero[m] : 0.0f, left);
    }
    for (int64_t n = 0; n < c.outputs; ++n) {
      double sum = c.bias ? all.bias[n] : 0.0, size = std::abs(sum), weights = 0;
      for (int64_t k = 0; k < c.inputs; ++k) {
        const int64_t g = n * c.groups + k / all.w.group_size();
        const int number =
            stored_integer(all.values.data() + n * all.w.row_bytes(), k, c.bits);
        const double weight = (number - (c.zeros ? all.zeros[g] : 0)) *
                              static_cast<double>(all.scales[g]);
        sum += left[k] * weight;
        size += std::abs(left[k] * weight);
        weights += std::abs(weight);
      }
      float got;
      widen(all.y.data(), c.y_dtype, m * c.outputs + n, 1, &got);
      if (c.y_dtype == Float::kF16 && std::abs(sum) > 60000) continue;
      const double allowed = 2e-6 * size + error * weights + eps * std::abs(sum) + 1e-7;
      if (!(std::abs(got - sum) <= allowed)) {
        describe(c, set, seed);
        std::printf("%s: y[%lld, %lld] is %.9g, not %.9g within %.3g\n", how,
                    static_cast<long long>(m), static_cast<long long>(n), got, sum,
                    allowed);
        std::exit(1);
      }
    }
  }
}

void multiply_tiles(const Products& products, const Case& c, Arrays& all) {
  Rows rows{};
  rows.cut = products.cut(c.bits);
  rows.grouping = grouping_of(rows.cut, c.inputs, c.groups);
  rows.digits = c.digits;
  rows.ones = c.x_zero;
  rows.count = c.rows * c.digits + rows.ones;
  if (c.digits == 1 && c.chunk != 8) rows.even_tiles();
  const int64_t step = rows.cut.step_inputs();
  rows.steps = (c.inputs + step - 1) / step;
  Exact<int8_t> packed(rows.tiles() * rows.tile_bytes());
  Exact<int32_t> sums(rows.tiles() * Rows::kTile * rows.sums_per_row(c.groups));
  Exact<float> scale(c.rows);
  rows.packed = packed.data();
  rows.sums = sums.data();
  rows.scale = scale.data();
  rows.zero = all.a.zero;
  for (int64_t t = 0; t < rows.tiles(); ++t) {
    // The integers of a row, filled up to whole steps, follow its floats.
    const int64_t filled = rows.steps * step;
    Exact<float> scratch(c.inputs + (filled + 3) / 4);
    products.pack(all.a, all.w, rows, t, scratch.data());
  }
  const Result result = all.result(c);
  for (int64_t n = 0; n < c.outputs; n += c.chunk) {
    products.multiply(rows, all.w, result, c.rows, n, std::min(c.outputs, n + c.chunk));
  }
}

void multiply_panels(const ManyRows& many, const Case& c, Arrays& all, int digits,
                     int64_t block) {
  Panels p{};
  p.zero = all.a.zero;
  p.rows = c.rows;
  p.inputs = c.inputs;
  p.groups = c.groups;
  p.lanes = many.lanes;
  p.digits = digits;
  Exact<char> packed(p.count() * p.panel_bytes());
  Exact<int32_t> sums(p.bands() * digits * p.groups * p.lanes);
  Exact<float> scale(p.bands() * p.lanes);
  p.packed = packed.data();
  p.sums = sums.data();
  p.scale = scale.data();
  for (int64_t band = 0; band < p.bands(); ++band) {
    Exact<float> scratch(digits > 0 ? digits * p.panel_bytes() / 4 + c.inputs : 0);
    many.pack(all.a, p, band, scratch.data());
  }
  const Result result = all.result(c);
  for (int64_t n = 0; n < c.outputs; n += c.chunk) {
    for (int64_t band = 0; band < p.bands(); band += block) {
      many.multiply(p, all.w, result, n, std::min(c.outputs, n + c.chunk), band,
                    std::min(p.bands(), band + block));
    }
  }
}

void multiply_plain(const PlainKernels& kernels, const Case& c, Arrays& all, int64_t block,
                    int64_t in_block, bool laid = false) {
  PlainRows rows{};
  rows.zero = all.a.zero;
  rows.rows = c.rows;
  rows.inputs = c.inputs;
  rows.digits = c.digits;
  rows.bits = c.bits;
  rows.block = in_block;
  Exact<char> packed(c.rows * c.digits * rows.stride() * kernels.cell);
  Exact<int32_t> sums(c.rows * c.digits * rows.blocks());
  Exact<float> scale(c.rows);
  rows.packed = packed.data();
  rows.sums = sums.data();
  rows.scale = scale.data();
  for (int64_t m = 0; m < c.rows; m += block) {
    Exact<float> scratch(c.inputs);
    kernels.pack(all.a, rows, m, std::min(c.rows, m + block), scratch.data());
  }
  const Result result = all.result(c);
  Weight w = all.w;
  Exact<uint8_t> bytes(laid ? kernels.laid_bytes(w) : 0);
  if (laid) {
    kernels.lay(w, bytes.data());
    w.laid = bytes.data();
  }
  const int64_t chunk = (c.chunk + 31) / 32 * 32;  // whole strips
  for (int64_t n = 0; n < c.outputs; n += chunk) {
    for (int64_t m = 0; m < c.rows; m += 8 * block) {
      kernels.multiply(rows, w, result, n, std::min(c.outputs, n + chunk), m,
                       std::min(c.rows, m + 8 * block));
    }
  }
}

double applied(Function function, double x) {
  const double positive = std::max(x, 0.0), sigmoid = 1 / (1 + std::exp(-x));
  switch (function) {
    case Function::kRelu:
      return positive;
    case Function::kSquaredRelu:
      return positive * positive;
    case Function::kGelu:
      return x * (1 + std::erf(x * std::sqrt(0.5))) / 2;
    case Function::kGeluTanh:
      return x * (1 + std::tanh(std::sqrt(2 / M_PI) * (x + 0.044715 * x * x * x))) / 2;
    case Function::kSilu:
      return x * sigmoid;
    case Function::kTanh:
      return std::tanh(x);
    case Function::kSigmoid:
      return sigmoid;
    default:
      return x;
  }
}

// What follows a product, on a part of a result; stops the process at an error.
void check_following(Instructions set, uint64_t seed) {
  Draw draw(seed);
  const int64_t rows = draw.integer(1, 6), outputs = draw.integer(1, 150);
  const int64_t first = draw.integer(0, outputs - 1);
  const int64_t last = draw.integer(first + 1, outputs);
  const Float dtype = draw.one_of({Float::kF32, Float::kBF16, Float::kF16});
  const int64_t size = rows * outputs * bytes_of(dtype);
  const bool in_place = dtype == Float::kF32 && draw.coin();
  Exact<float> product(rows * outputs);
  Exact<char> factor(size), residual(size), y(size);
  for (int64_t i = 0; i < rows * outputs; ++i) {
    product[i] = draw.uniform(-1, 1) * draw.one_of({1.0f, 8.0f, 60.0f});
    store(draw.uniform(-2, 2), dtype, factor.data(), i);
    store(draw.uniform(-2, 2), dtype, residual.data(), i);
    store(product[i], dtype, y.data(), i);
  }
  After after{};
  after.function = static_cast<Function>(draw.integer(0, 7));
  after.factor = draw.coin() ? factor.data() : nullptr;
  after.residual = draw.coin() ? residual.data() : nullptr;
  after.y = y.data();
  after.dtype = dtype;
  float* from = in_place ? reinterpret_cast<float*>(y.data()) : product.data();
  products_of(set).finish(after, from, outputs, 0, rows, first, last);
  const double eps = dtype == Float::kBF16 ? 1.0 / 256 : dtype == Float::kF16 ? 1e-3 : 0;
  for (int64_t i = 0; i < rows * outputs; ++i) {
    float by, more, got;
    widen(factor.data(), dtype, i, 1, &by);
    widen(residual.data(), dtype, i, 1, &more);
    widen(y.data(), dtype, i, 1, &got);
    double want = product[i], size_of_all = std::abs(want);
    if (first <= i % outputs && i % outputs < last) {
      want = applied(after.function, product[i]);
      if (after.factor) want *= by;
      size_of_all = std::max({1.0, size_of_all, std::abs(want)}) * 4;
      if (after.residual) want += more;
    }
    if (!(std::abs(got - want) <= 1e-6 * size_of_all + eps * std::abs(want))) {
      std::printf("%s, seed %llu: function %d makes of %.9g %.9g, not %.9g\n",
                  instructions_name(set), static_cast<unsigned long long>(seed),
                  static_cast<int>(after.function), product[i], got, want);
      std::exit(1);
    }
  }
}

// Computes a product in each way that the instruction set has; stops the process at an
// error. Whether there is any.
bool check(Instructions set, uint64_t seed) {
  Draw draw(seed);
  const Case c = draw_case(draw);
  const int64_t block = draw.integer(1, 3);
  Arrays all(c, draw);
  const Products& products = products_of(set);
  const char* name = instructions_name(set);
  bool any = false;
  if (grouping_of(products.cut(c.bits), c.inputs, c.groups) != Grouping::kUnable) {
    multiply_tiles(products, c, all);
    compare(c, all, name, "tiles", seed, false);
    any = true;
  }
  const ManyRows& many = products.many;
  const bool narrow = many.narrow.multiply && c.bits <= 4 && c.digits == 1 && !all.a.zero;
  if (narrow && unit_of(all.w) > 0 && narrow_block(all.w) > 0) {
    multiply_plain(many.narrow, c, all, block, narrow_block(all.w));
    compare(c, all, name, "plain rows by blocks", seed, false);
    any = true;
  }
  if (strips_take(many.plain, all.w)) {
    const int64_t in_block = c.groups > 1 ? all.w.group_size() : 0;
    multiply_plain(many.plain, c, all, block, in_block);
    compare(c, all, name, "plain rows", seed, false);
    if (many.plain.laid_bytes(all.w) > 0) {
      multiply_plain(many.plain, c, all, block, in_block, true);
      compare(c, all, name, "a weight laid out", seed, false);
    }
    any = true;
  }
  if (many.integers > 0 && unit_of(all.w) > 0) {
    multiply_panels(products.many, c, all, c.digits, block);
    compare(c, all, name, "panels of integers", seed, false);
    any = true;
  }
  if (c.x_dtype != Float::kS8 && !c.x_scale) {
    multiply_panels(products.many, c, all, 0, block);
    compare(c, all, name, "panels of floats", seed, true);
    any = true;
  }
  return any;
}

}  // namespace
}  // namespace jcompress

int main(int count, char** arguments) {
  using namespace jcompress;
  const uint64_t seed = count > 1 ? std::strtoull(arguments[1], nullptr, 10) : 0;
  const uint64_t products = count > 2 ? std::strtoull(arguments[2], nullptr, 10) : 1000;
  for (Instructions set :
       {Instructions::kGeneric, Instructions::kAvx2, Instructions::kAvxVnni,
        Instructions::kAvx512Vnni, Instructions::kAvx512Vbmi, Instructions::kAmxInt8,
        Instructions::kNeon}) {
    const char* name = instructions_name(set);
    if (!has_instructions(set) || (count > 3 && std::strcmp(arguments[3], name))) continue;
    uint64_t computed = 0, left_out = 0;
    for (uint64_t i = seed; computed < products; ++i) ++(check(set, i) ? computed : left_out);
    for (uint64_t i = seed; i < seed + products; ++i) check_following(set, i);
    std::printf("%s: %llu products, %llu left out for their groups\n", name,
                static_cast<unsigned long long>(computed),
                static_cast<unsigned long long>(left_out));
  }
  return 0;
}
