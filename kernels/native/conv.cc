// The XLA handler of `quantized_conv`: the rows of an integer product are patches of
// images, gathered tile by tile from images of small integers.

#include <algorithm>
#include <cmath>
#include <cstring>
#include <optional>
#include <string>
#include <vector>

#include "conv_geometry.h"
#include "floats.h"
#include "handlers.h"
#include "parallel.h"
#include "product.h"

namespace jcompress {
namespace {

constexpr int64_t kBlockBytes = 384 << 10;  // of packed rows, for the second-level cache
// Below so many floats, or products of integers a piece is not worth a thread.
constexpr int64_t kPieceFloats = 16 << 10;
constexpr int64_t kPieceProducts = 1 << 20;
constexpr int64_t kManyRows = 48;

ffi::Error bad(const std::string& what) {
  return ffi::Error::InvalidArgument("jcompress conv: " + what);
}

// Images as small integers, padded with the integers that stand for 0.
class Integers {
 public:
  Integers(const Geometry& g, const Activations& a, const Products& products)
      : g_(g),
        a_(a),
        products_(products),
        scale_(a.rows),
        images_(a.rows * a.digits * g.image_bytes + Patches::kSlack) {}

  const int8_t* images() const { return images_.data(); }
  const float* scale() const { return a_.scale; }

  void write(ffi::ThreadPool& pool) {
    if (!a_.scale) find_scales(pool);
    const int64_t lines = g_.padded_lines(), line = g_.padded.back() * g_.channels;
    const int64_t few = std::max<int64_t>(1, kPieceFloats / line);
    const int64_t pieces = (lines + few - 1) / few;
    const int64_t width = g_.sizes.back(), low = g_.low.back();
    const int64_t first = std::max<int64_t>(0, -low);
    const int64_t last = std::min(width, g_.padded.back() - low);
    const int64_t count = std::max<int64_t>(0, last - first) * g_.channels;
    const int64_t before = std::max<int64_t>(0, low) * g_.channels;
    parallel_for(pool, a_.rows * pieces, [&](int64_t i) {
      Buffer<float> scratch(count);
      const int64_t m = i / pieces, l0 = i % pieces * few;
      const int8_t zero = a_.zero ? static_cast<int8_t>(a_.zero[m]) : 0;
      for (int64_t l = l0; l < std::min(lines, l0 + few); ++l) {
        int8_t* to = images_.data() + m * a_.digits * g_.image_bytes + l * line;
        const int64_t from = g_.source(l);
        const bool filled = from >= 0 && count > 0;
        for (int64_t j = 0; j < a_.digits; ++j) {
          int8_t* digit = to + j * g_.image_bytes;
          if (!filled) {
            std::memset(digit, zero, line);
          } else {
            std::memset(digit, zero, before);
            std::memset(digit + before + count, zero, line - before - count);
          }
        }
        if (!filled) continue;
        const int64_t start = m * g_.image + (from * width + first) * g_.channels;
        products_.digits(a_, m, start, count, g_.image_bytes, to + before,
                         scratch.data());
      }
    });
  }

 private:
  void find_scales(ffi::ThreadPool& pool) {
    const int64_t pieces = (g_.image + kPieceFloats - 1) / kPieceFloats;
    Buffer<float> tops(a_.rows * pieces);
    parallel_for(pool, a_.rows * pieces, [&](int64_t i) {
      Buffer<float> scratch(kPieceFloats);
      const int64_t m = i / pieces, start = i % pieces * kPieceFloats;
      const int64_t count = std::min(kPieceFloats, g_.image - start);
      tops[i] = products_.largest(a_, m * g_.image + start, count, scratch.data());
    });
    for (int64_t m = 0; m < a_.rows; ++m) {
      float top = 0.0f;
      for (int64_t i = m * pieces; i < (m + 1) * pieces; ++i) {
        top = std::isnan(tops[i]) || tops[i] > top ? tops[i] : top;
        if (std::isnan(top)) break;
      }
      scale_[m] = scale_of(top, a_.bits);
    }
    a_.scale = scale_.data();
  }

  const Geometry& g_;
  Activations a_;
  const Products& products_;
  Buffer<float> scale_;
  Buffer<int8_t> images_;
};

// The first `count` integers of a row as `QTensor` packs them; up to three more are
// written.
void unpack(const uint8_t* from, int bits, int64_t count, int8_t* to) {
  if (bits == 4) {
    for (int64_t i = 0; i < (count + 1) / 2; ++i) {
      to[2 * i] = static_cast<int8_t>(static_cast<int8_t>(from[i] << 4) >> 4);
      to[2 * i + 1] = static_cast<int8_t>(static_cast<int8_t>(from[i]) >> 4);
    }
  } else if (bits == 2) {
    for (int64_t i = 0; i < (count + 3) / 4; ++i) {
      for (int part = 0; part < 4; ++part) {
        const int8_t raised = static_cast<int8_t>(from[i] << (6 - 2 * part));
        to[4 * i + part] = static_cast<int8_t>(raised >> 6);
      }
    }
  } else {
    for (int64_t i = 0; i < count; ++i) {
      const int64_t bit = 3 * i;
      const int64_t last = (3 * count + 7) / 8 - 1;
      const int high = from[std::min(last, bit / 8 + 1)] << 8;
      const int value = (from[bit / 8] | high) >> (bit % 8) & 7;
      to[i] = static_cast<int8_t>((value ^ 4) - 4);
    }
  }
}

// A weight of one byte an integer, each row filled up to whole steps with what stands
// for 0: else the end of every row would be multiplied on its own.
class Filled {
 public:
  Filled(ffi::ThreadPool& pool, Weight* w, int64_t length) : values_(w->outputs * length) {
    const int64_t few = std::max<int64_t>(1, 8 * kPieceFloats / length);
    const int64_t pieces = (w->outputs + few - 1) / few;
    parallel_for(pool, pieces, [&](int64_t i) {
      for (int64_t n = i * few; n < std::min(w->outputs, (i + 1) * few); ++n) {
        const uint8_t* from = w->values + n * w->row_bytes();
        int8_t* to = values_.data() + n * length;
        if (w->bits == 8) {
          std::memcpy(to, from, w->inputs);
        } else {
          unpack(from, w->bits, w->inputs, to);
        }
        std::memset(to + w->inputs, w->zeros ? w->zeros[n] : 0, length - w->inputs);
      }
    });
    w->values = reinterpret_cast<const uint8_t*>(values_.data());
    w->inputs = length;
    w->bits = 8;
  }

 private:
  Buffer<int8_t> values_;
};

// Some rows of patches, packed, and what belongs to each.
class Block {
 public:
  Block(const Rows& layout, const Geometry& g, const Integers& x, const float* zero,
        int64_t first, int64_t pixels)
      : rows_(layout),
        pixels_(pixels),
        packed_(tiles(layout, pixels) * layout.tile_bytes()),
        sums_(tiles(layout, pixels) * Rows::kTile),
        scale_(pixels),
        zero_(zero ? pixels : 0) {
    rows_.count = pixels * layout.digits + layout.ones;
    rows_.packed = packed_.data();
    rows_.sums = sums_.data();
    rows_.scale = scale_.data();
    rows_.zero = zero ? zero_.data() : nullptr;
    for (int64_t i = 0; i < pixels; ++i) {
      const int64_t image = (first + i) / g.positions;
      scale_[i] = x.scale()[image];
      if (zero) zero_[i] = zero[image];
    }
    patches_ = {x.images(),     g.image_bytes, first,
                g.positions,    g.out.back(),  g.lines.data(),
                g.stride,       g.offsets.data(),
                static_cast<int64_t>(g.offsets.size()), g.run_bytes};
  }

  int64_t tiles() const { return rows_.tiles(); }

  void pack(const Products& products, const Weight& w, int64_t tile0, int64_t tile1) {
    Buffer<int8_t> scratch(w.inputs + 512);
    for (int64_t t = tile0; t < tile1; ++t) {
      products.patches(patches_, w, rows_, t, scratch.data());
    }
  }

  void multiply(const Products& products, const Weight& w, const Result& y,
                int64_t output0, int64_t output1) const {
    products.multiply(rows_, w, y, pixels_, output0, output1);
  }

 private:
  static int64_t tiles(const Rows& layout, int64_t pixels) {
    const int64_t count = pixels * layout.digits + layout.ones;
    return (count + Rows::kTile - 1) / Rows::kTile;
  }

  Rows rows_;
  int64_t pixels_;
  Buffer<int8_t> packed_;
  Buffer<int32_t> sums_;
  Buffer<float> scale_;
  Buffer<float> zero_;
  Patches patches_;
};

// The convolution of the images of one stack.
void convolve(ffi::ThreadPool& pool, const Products& products, const Geometry& g,
              const Activations& a, Weight w, const Result& y, int64_t y_bytes) {
  Integers x(g, a, products);
  x.write(pool);
  const int64_t pixels = a.rows * g.positions;
  std::optional<Filled> filled;
  // Packed integers are cheaper to multiply as they are, but not by many rows.
  if (w.bits == 8 || pixels * a.digits >= kManyRows) {
    const int64_t step = products.cut(8).step_inputs();
    const int64_t rest = w.inputs % step;
    const int64_t length = rest ? w.inputs + step - rest : w.inputs;
    if (rest || w.bits < 8) filled.emplace(pool, &w, length);
  }
  Rows layout{};
  layout.cut = products.cut(w.bits);
  layout.grouping = Grouping::kNone;
  layout.digits = a.digits;
  layout.ones = a.zero != nullptr;
  const int64_t step = layout.cut.step_inputs();
  layout.steps = (w.inputs + step - 1) / step;

  const int64_t most = std::max<int64_t>(1, kBlockBytes / layout.tile_bytes());
  const int64_t block_rows = std::min<int64_t>(64, most) * Rows::kTile;
  int64_t few = std::max<int64_t>(1, (block_rows - layout.ones) / layout.digits);
  const int64_t blocks = (pixels + few - 1) / few;
  auto result_from = [&](int64_t pixel) {
    Result mine = y;
    mine.y = static_cast<char*>(y.y) + pixel * w.outputs * y_bytes;
    return mine;
  };
  const int64_t pixel_products = layout.digits * w.inputs * w.outputs;
  const bool small = pixels * pixel_products < 2 * kPieceProducts;
  const int64_t threads = pool.num_threads();
  if (threads == 1 || small || blocks >= 2 * threads) {
    parallel_for(pool, blocks, [&](int64_t i) {
      const int64_t first = i * few;
      Block block(layout, g, x, a.zero, first, std::min(few, pixels - first));
      block.pack(products, w, 0, block.tiles());
      block.multiply(products, w, result_from(first), 0, w.outputs);
    });
    return;
  }
  // Few rows: each thread takes outputs.
  Block block(layout, g, x, a.zero, 0, pixels);
  const int64_t tile_products = Rows::kTile * w.inputs * 16;
  const int64_t together = std::max<int64_t>(1, kPieceProducts / tile_products);
  const int64_t pieces = (block.tiles() + together - 1) / together;
  parallel_for(pool, pieces, [&](int64_t i) {
    block.pack(products, w, i * together,
               std::min(block.tiles(), (i + 1) * together));
  });
  const int64_t least = kPieceProducts / (pixels * layout.digits * w.inputs) + 1;
  int64_t chunk = std::max(least, w.outputs / (4 * threads));
  chunk = std::max<int64_t>(8, (chunk + 7) / 8 * 8);
  parallel_for(pool, (w.outputs + chunk - 1) / chunk, [&](int64_t i) {
    block.multiply(products, w, y, i * chunk, std::min(w.outputs, (i + 1) * chunk));
  });
}

ffi::Error conv(ffi::ThreadPool pool, Any x, Any x_scale, Any x_zero, Any values,
                Any scales, Any zeros, ffi::Result<Any> y, int64_t bits, int64_t x_bits,
                int64_t digits, Sizes data, Sizes window, Sizes strides, Sizes pad_low,
                Sizes pad_high, Sizes dilation, int64_t channels, int64_t layout) {
  if (layout != kLayout) return bad("the arrays have another layout than this library");
  Geometry g{};
  const char* wrong =
      g.set(data, window, strides, pad_low, pad_high, dilation, channels);
  if (wrong) return bad(wrong);
  if (x.dimensions().size() != 3 || scales.dimensions().size() != 3) {
    return bad("x and scales have three axes");
  }
  const int64_t stacks = x.dimensions()[0], images = x.dimensions()[1];
  const int64_t outputs = scales.dimensions()[1];
  if (!(bits == 8 || (2 <= bits && bits <= 4))) return bad("bits is 2, 3, 4 or 8");
  if (x_bits < 2 || x_bits > 8) return bad("x_bits is from 2 to 8");
  if (digits < 1 || digits > 3) return bad("digits is from 1 to 3");
  Activations a{};
  Result result{};
  if (!float_of(x.element_type(), &a.dtype)) return bad("dtype of x");
  if (!is(x, x.element_type(), {stacks, images, g.image})) return bad("shape of x");
  if (!is(*y, x.element_type(), {stacks, images, g.positions * outputs})) {
    return bad("shape or dtype of y");
  }
  result.dtype = a.dtype;
  Weight w{};
  w.outputs = outputs;
  w.inputs = g.inputs;
  w.groups = 1;
  w.bits = static_cast<int>(bits);
  const auto stored = bits == 8 ? ffi::DataType::S8 : ffi::DataType::U8;
  if (!is(values, stored, {stacks, outputs, w.row_bytes()})) return bad("values");
  if (!is(scales, ffi::DataType::F32, {stacks, outputs, 1})) return bad("scales");
  if (!absent(zeros) && !is(zeros, ffi::DataType::S8, {stacks, outputs, 1})) {
    return bad("zeros");
  }
  const bool has_scale = !absent(x_scale), has_zero = !absent(x_zero);
  if (!ByRow::fits(x_scale, stacks, images)) return bad("x_scale");
  if (!ByRow::fits(x_zero, stacks, images)) return bad("x_zero");
  if (has_zero && !has_scale) return bad("x_scale is missing");
  if (has_zero && digits > 1) return bad("x_zero with digits");
  if (y->element_count() == 0) return ffi::Error::Success();

  const Products& products = products_of(chosen_instructions());
  const int64_t bytes = a.dtype == Float::kF32 ? 4 : 2;
  a.rows = images;
  a.inputs = g.image;
  a.bits = static_cast<int>(x_bits);
  a.digits = static_cast<int>(digits);
  for (int64_t s = 0; s < stacks; ++s) {
    a.x = static_cast<const char*>(x.untyped_data()) + s * images * g.image * bytes;
    const ByRow scale(x_scale, s, images), zero(x_zero, s, images);
    a.scale = scale.data();
    a.zero = zero.data();
    w.values = static_cast<const uint8_t*>(values.untyped_data()) +
               s * outputs * w.row_bytes();
    w.scales = part<float>(scales, s, outputs);
    w.zeros = part<int8_t>(zeros, s, outputs);
    result.y = static_cast<char*>(y->untyped_data()) +
               s * images * g.positions * outputs * bytes;
    convolve(pool, products, g, a, w, result, bytes);
  }
  return ffi::Error::Success();
}

}  // namespace
}  // namespace jcompress

extern "C" JCOMPRESS_EXPORT XLA_FFI_Error* jcompress_conv(XLA_FFI_CallFrame*);

XLA_FFI_DEFINE_HANDLER_SYMBOL(
    jcompress_conv, jcompress::conv,
    xla::ffi::Ffi::Bind()
        .Ctx<xla::ffi::ThreadPool>()
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
        .Attr<xla::ffi::Span<const int64_t>>("data")
        .Attr<xla::ffi::Span<const int64_t>>("window")
        .Attr<xla::ffi::Span<const int64_t>>("strides")
        .Attr<xla::ffi::Span<const int64_t>>("pad_low")
        .Attr<xla::ffi::Span<const int64_t>>("pad_high")
        .Attr<xla::ffi::Span<const int64_t>>("dilation")
        .Attr<int64_t>("channels")
        .Attr<int64_t>("layout"));
