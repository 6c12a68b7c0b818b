// The XLA handler of convolutions of int8 that need no copy of their patches, with what
// follows them: see conv_direct.h.

#include "conv_direct.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <string>
#include <vector>

#include "conv_geometry.h"
#include "conv_plan.h"
#include "floats.h"
#include "handlers.h"
#include "parallel.h"
#include "rows.h"

namespace jcompress {

const ConvKernels* conv_kernels_of(Instructions set) {
#if defined(__x86_64__)
  if (set == Instructions::kAmxInt8) return amx_int8_conv();
  const bool narrow = set == Instructions::kAvx2 || set == Instructions::kAvxVnni;
  if (narrow) return avx2_conv();
  return set == Instructions::kGeneric ? nullptr : avx512_vnni_conv();
#else
  (void)set;
  return nullptr;
#endif
}

namespace {

// Below so many products in all, some microseconds, waking a thread is not worth it; and
// below so many bytes or products a piece is not.
constexpr int64_t kLeastProducts = 3 << 20;
constexpr int64_t kPieceProducts = 3 << 19;
constexpr int64_t kPieceFloats = 32 << 10;

ffi::Error bad(const std::string& what) {
  return ffi::Error::InvalidArgument("jcompress conv_direct: " + what);
}

// One convolution of a stack: how its images become int8, its weight is packed, and both
// are multiplied.
class Direct {
 public:
  // The images: floats or int8, [images][image], of `zero` or none.
  struct Data {
    const float* floats;
    const int8_t* integers;
    const float* scale;  // [images] or null, for floats of which each has a range
    const float* zero;
    int64_t images;
    int bits;
  };

  // Keep: whether a packed weight may be kept in the plan, or found there.
  Direct(const ConvKernels& kernels, const ConvPlan& plan, bool keep, const Data& data,
         const int8_t* values, const ConvWeight& weight, const ConvEnd& end)
      : kernels_(kernels),
        plan_(plan),
        geometry_(plan.geometry),
        data_(data),
        weight_(weight),
        end_(end),
        kept_(keep ? plan.kept() : nullptr),
        own_(data.scale ? 0 : data.images) {
    // Another weight than the one that was kept is packed as if none could be.
    keep_ = keep && (!kept_ || kept_->packed().values == values);
    const Geometry& geometry = geometry_;
    const int64_t groups = plan.groups;
    images_.image_cells = geometry.image_bytes;
    images_.positions = geometry.positions;
    images_.line = plan.line;
    images_.lines = geometry.lines.data();
    images_.stride = geometry.stride;
    images_.offsets = geometry.offsets.data();
    images_.runs = static_cast<int64_t>(geometry.offsets.size());
    images_.run_inputs = geometry.run_bytes;
    images_.zero = data.zero;
    images_.pixel = geometry.channels;
    few_ = !keep_ && data.images * geometry.positions <= ConvKernels::kFewRows;
    by_channel_ = groups > 1 && groups == geometry.channels && groups == weight.outputs;
    images_.pairs = by_channel_ && kernels.moved && geometry.across == 3 &&
                    images_.stride == images_.pixel &&
                    images_.offsets[1] == images_.pixel && images_.offsets[2] == 2 * images_.pixel;
    if (!keep_ || !kept_) cut(values, groups, &made_);
  }

  void run(ffi::ThreadPool& pool) {
    const int64_t count = data_.images, threads = pool.num_threads();
    const int64_t results = count * images_.positions * weight_.outputs;
    const int64_t products = results * geometry_.inputs;
    const Help help =
        work(products, results) < kLeastProducts ? Help::kAwake : Help::kAny;
    find_scales(pool, help);
    images_.scale = data_.scale;
    end_.linear = end_.linear && same_range() &&
                  (by_channel_ ? !end_.addend_integers : !few_);
    if (keep_) use_kept();
    const List<ConvBlock>& blocks = made_.blocks;
    const int64_t cuts = static_cast<int64_t>(blocks.size()), packs = keep_ ? 0 : cuts;
    const bool many = count >= 2 * threads && !few_;
    // Each thread packs a block and multiplies by it while it is in its cache.
    const int64_t lines_each = many ? 0 : lines_together(threads);
    const bool by_block = !many && !lines_each && packs % threads == 0 && packs > 1;
    if (packs && !by_block) place(&made_);
    const auto pack = [&](int64_t i) { pack_block(blocks[i]); };
    if (many) {
      // Each thread takes some images at a time through all outputs: one, or as many
      // small ones as let weights be read but once for many positions.
      const int64_t together = images_together(count, threads);
      const int64_t pieces = (count + together - 1) / together;
      parallel_phases(pool, packs, pack, pieces, [&](int64_t i) {
        const int64_t first = i * together, here = std::min(together, count - first);
        ConvImages mine = images_;
        Buffer<char> padded(in_place() ? 0 : padded_bytes(here));
        mine.images = padded.data();
        if (in_place()) mine.images = data_.integers + first * geometry_.image;
        for (int64_t m = 0; m < here && !in_place(); ++m) {
          write(first + m, 0, geometry_.padded_lines(), padded.data() + m * padded_bytes());
        }
        for (const ConvBlock& block : blocks) {
          multiply(mine, block, first, 0, here * images_.positions);
        }
      }, help);
      return;
    }
    if (lines_each) return run_by_lines(pool, packs, pack, lines_each, help);
    Buffer<char> padded(in_place() ? 0 : padded_bytes(count));
    images_.images = padded.data();
    if (in_place()) images_.images = data_.integers;
    const int64_t lines = geometry_.padded_lines();
    const int64_t few =
        std::max<int64_t>(1, kPieceFloats * lines / std::max<int64_t>(1, geometry_.image_bytes));
    const int64_t parts = (lines + few - 1) / few;
    const int64_t writes = in_place() ? 0 : count * parts;
    const int64_t rows = count * images_.positions;
    const auto write_part = [&](int64_t i) {
      const int64_t m = i / parts, line = i % parts * few;
      write(m, line, std::min(lines, line + few), padded.data() + m * padded_bytes());
    };
    if (by_block) {
      parallel_phases(pool, writes, write_part, packs, [&](int64_t i) {
        const int64_t end = i + 1 < packs ? made_.starts[i + 1] : made_.size;
        Buffer<int8_t> mine(end - made_.starts[i] + ConvKernels::kSlack);
        ConvBlock block = blocks[i];
        block.packed = mine.data();
        pack_block(block);
        multiply(images_, block, 0, 0, rows);
      }, help);
      return;
    }
    const int64_t row_products =
        work(geometry_.inputs * ConvBlock::kOutputs, ConvBlock::kOutputs);
    int64_t step = std::max(kPieceProducts / std::max<int64_t>(1, row_products),
                            rows * cuts / (8 * threads));
    const int64_t together = kernels_.together;
    step = std::min(rows, (step + together - 1) / together * together);
    const int64_t pieces = (rows + step - 1) / step;
    parallel_phases(
        pool, writes + packs,
        [&](int64_t i) {
          if (i >= writes) return pack(i - writes);
          write_part(i);
        },
        cuts * pieces,
        [&](int64_t i) {
          const int64_t row = i % pieces * step;
          multiply(images_, blocks[i / pieces], 0, row, std::min(rows, row + step));
        },
        help);
  }

 private:
  // How many lines of a result a thread takes at a time, of large images of which each
  // channel is convolved by itself; 0 of others.
  int64_t lines_together(int64_t threads) const {
    constexpr int64_t kLines = 4;
    if (!by_channel_ || geometry_.sizes.size() != 2) return 0;
    const int64_t high = geometry_.out[0];
    const int64_t step = std::max(kLines, (high + 4 * threads - 1) / (4 * threads));
    return (high + step - 1) / step < 2 * threads ? 0 : step;
  }

  // A thread pads the lines that some lines of the result need and multiplies them while
  // they are in its cache.
  template <class Pack>
  void run_by_lines(ffi::ThreadPool& pool, int64_t packs, Pack&& pack, int64_t step,
                    Help help) {
    const Geometry& g = geometry_;
    const int64_t high = g.out[0], pieces = (high + step - 1) / step;
    const int64_t line = g.padded.back() * g.channels;
    parallel_phases(pool, packs, pack, data_.images * pieces, [&](int64_t i) {
      const int64_t m = i / pieces, line0 = i % pieces * step;
      const int64_t line1 = std::min(high, line0 + step);
      const int64_t first = g.lines[line0] / line;
      const int64_t last = (g.lines[line1 - 1] + g.offsets.back()) / line + 1;
      Buffer<char> padded(padded_bytes() / g.padded_lines() * (last - first) + slack());
      // Lines keep the places that they have in all images.
      const int64_t before = (m * g.image_bytes + first * line) * kernels_.cell;
      char* const images = reinterpret_cast<char*>(
          reinterpret_cast<uintptr_t>(padded.data()) - static_cast<uintptr_t>(before));
      write(m, first, last, images + m * padded_bytes());
      ConvImages mine = images_;
      mine.images = images;
      const int64_t row = m * images_.positions;
      for (const ConvBlock& block : made_.blocks) {
        multiply(mine, block, 0, row + line0 * g.out[1], row + line1 * g.out[1]);
      }
    }, help);
  }

  // The products that take as long as so many and their results: those of channels by
  // themselves are rearranged first, and weights of few positions are waited for.
  int64_t work(int64_t products, int64_t results) const {
    constexpr int64_t kChannels = 4, kResult = 64;
    return (by_channel_ || few_ ? kChannels : 1) * products + kResult * results;
  }

  int64_t images_together(int64_t count, int64_t threads) const {
    constexpr int64_t kPositions = 48;
    const int64_t wanted = (kPositions + images_.positions - 1) / images_.positions;
    int64_t pieces = (count + wanted - 1) / wanted;
    pieces = std::min(count, (pieces + threads - 1) / threads * threads);
    return (count + pieces - 1) / pieces;
  }

  // Whether all images have one range.
  bool same_range() const {
    for (int64_t m = 1; m < data_.images; ++m) {
      if (!(data_.scale[m] == data_.scale[0])) return false;
      if (data_.zero && !(data_.zero[m] == data_.zero[0])) return false;
    }
    return true;
  }

  // Bytes of padded images, and what is read behind them: of positions that are multiplied
  // together all but the first may be missing.
  int64_t padded_bytes() const { return geometry_.image_bytes * kernels_.cell; }
  int64_t padded_bytes(int64_t images) const { return images * padded_bytes() + slack(); }
  int64_t slack() const {
    constexpr int64_t kPositions = 8;
    const int64_t more = Patches::kSlack + (by_channel_ ? kPositions * images_.stride : 0);
    return more * kernels_.cell;
  }

  // Whether the images can be read as they are.
  bool in_place() const {
    return kernels_.cell == 1 && data_.integers && !by_channel_ &&
           geometry_.image == geometry_.image_bytes && images_.run_inputs % 4 == 0;
  }

  // The blocks of outputs, and where they are packed.
  void cut(const int8_t* values, int64_t groups, PackedWeight* made) const {
    const int64_t inputs = geometry_.inputs;
    const int64_t in_group = by_channel_ ? weight_.outputs : weight_.outputs / groups;
    const int64_t quads = !by_channel_     ? images_.quads()
                          : images_.pairs ? images_.runs / 3 * 8
                                          : (images_.runs + 3) / 4 * 4;
    made->values = values;
    const int64_t each = (in_group + ConvBlock::kOutputs - 1) / ConvBlock::kOutputs;
    made->blocks.reserve(static_cast<size_t>(weight_.outputs / in_group * each));
    made->starts.reserve(made->blocks.capacity());
    for (int64_t first = 0; first < weight_.outputs; first += in_group) {
      for (int64_t n = 0; n < in_group; n += ConvBlock::kOutputs) {
        ConvBlock block{};
        block.first = first + n;
        block.values = values + block.first * inputs;
        block.inputs = inputs;
        block.count = static_cast<int>(std::min<int64_t>(ConvBlock::kOutputs, in_group - n));
        block.channel = by_channel_ ? n : first / in_group * (geometry_.channels / groups);
        made->blocks.push_back(block);
        const int64_t bytes = by_channel_ ? quads * 64 : few_ ? 0 : quads * block.vectors() * 64;
        made->starts.push_back(made->size);
        made->size += bytes * kernels_.cell;
      }
    }
    const int64_t count = static_cast<int64_t>(made->blocks.size());
    made->sums = Buffer<int32_t>(count * ConvBlock::kOutputs);
    made->linear = Buffer<ConvLinear>(end_.linear ? count : 0);
    for (int64_t i = 0; i < count; ++i) {
      made->blocks[i].sums = made->sums.data() + i * ConvBlock::kOutputs;
      made->blocks[i].linear = end_.linear ? made->linear.data() + i : nullptr;
    }
  }

  static void place(PackedWeight* made) {
    made->bytes = Buffer<int8_t>(made->size + ConvKernels::kSlack);
    for (size_t i = 0; i < made->blocks.size(); ++i) {
      made->blocks[i].packed = made->bytes.data() + made->starts[i];
    }
  }

  void pack_block(const ConvBlock& block) const {
    if (by_channel_) {
      kernels_.pack_channels(images_, block);
    } else if (!few_) {
      kernels_.pack(images_, block);
    }
    if (end_.linear) kernels_.prepare(images_, block, weight_, end_, by_channel_);
  }

  // The blocks of the weight that is kept, which is packed now if none was.
  void use_kept() {
    const LinearNumbers numbers(images_, weight_, end_);
    if (!kept_) {
      place(&made_);
      for (const ConvBlock& block : made_.blocks) pack_block(block);
      List<ConvBlock> blocks = made_.blocks;
      auto packed = std::make_unique<PackedWeight>(std::move(made_));
      made_.blocks = std::move(blocks);
      kept_ = std::make_shared<const KeptWeight>(std::move(packed),
                                                 end_.linear ? &numbers : nullptr);
      return plan_.keep(kept_);
    }
    made_.blocks = kept_->packed().blocks;
    if (!end_.linear || kept_->fits(numbers)) return;
    // The weight is the same, what follows it is not.
    made_.linear = Buffer<ConvLinear>(static_cast<int64_t>(made_.blocks.size()));
    for (size_t i = 0; i < made_.blocks.size(); ++i) {
      made_.blocks[i].linear = made_.linear.data() + i;
      kernels_.prepare(images_, made_.blocks[i], weight_, end_, by_channel_);
    }
  }

  void multiply(const ConvImages& images, const ConvBlock& block, int64_t image0,
                int64_t row0, int64_t row1) const {
    const auto run = by_channel_ ? kernels_.multiply_channels
                     : few_      ? kernels_.multiply_few
                                 : kernels_.multiply;
    run(images, block, weight_, end_, image0, row0, row1);
  }

  // The range of each image, if it has none.
  void find_scales(ffi::ThreadPool& pool, Help help) {
    if (data_.scale) return;
    const int64_t pieces = (geometry_.image + kPieceFloats - 1) / kPieceFloats;
    Buffer<float> tops(data_.images * pieces);
    parallel_for(pool, data_.images * pieces, [&](int64_t i) {
      const int64_t m = i / pieces, start = i % pieces * kPieceFloats;
      tops[i] = kernels_.largest(data_.floats + m * geometry_.image + start,
                                 std::min(kPieceFloats, geometry_.image - start));
    }, help);
    for (int64_t m = 0; m < data_.images; ++m) {
      float top = 0.0f;
      for (int64_t i = m * pieces; i < (m + 1) * pieces && !std::isnan(top); ++i) {
        top = std::isnan(tops[i]) || tops[i] > top ? tops[i] : top;
      }
      own_[m] = scale_of(top, data_.bits);
    }
    data_.scale = own_.data();
  }

  // Lines of a padded image, from that of the data.
  void write(int64_t m, int64_t first_line, int64_t last_line, char* image) const {
    const Geometry& g = geometry_;
    const int64_t line = g.padded.back() * g.channels;
    const int64_t width = g.sizes.back(), low = g.low.back();
    const int64_t first = std::max<int64_t>(0, -low);
    const int64_t last = std::min(width, g.padded.back() - low);
    const int64_t count = std::max<int64_t>(0, last - first) * g.channels;
    const int64_t before = std::min(line, std::max<int64_t>(0, low) * g.channels);
    const float zero_float = data_.zero ? data_.zero[m] : 0.0f;
    const bool flips = by_channel_ && kernels_.moved, widens = kernels_.cell == 2;
    const int8_t flip = flips ? -128 : 0;
    Buffer<int8_t> narrow(widens ? line : 0);
    const int8_t zero = static_cast<int8_t>(static_cast<int8_t>(zero_point(zero_float)) ^ flip);
    const float scale = data_.scale[m];
    const float inverse = std::isfinite(scale) ? 1.0f / scale : 0.0f;
    for (int64_t l = first_line; l < last_line; ++l) {
      char* const place = image + l * line * kernels_.cell;
      int8_t* const to = widens ? narrow.data() : reinterpret_cast<int8_t*>(place);
      const int64_t from = g.source(l);
      if (from < 0 || count == 0) {
        std::memset(to, zero, line);
        if (widens) kernels_.widen(to, line, reinterpret_cast<int16_t*>(place));
        continue;
      }
      std::memset(to, zero, before);
      std::memset(to + before + count, zero, line - before - count);
      const int64_t start = m * g.image + (from * width + first) * g.channels;
      if (!data_.integers) {
        kernels_.quantize(data_.floats + start, count, inverse, zero_float, data_.bits,
                          data_.zero == nullptr, to + before);
        if (flips) kernels_.flip(to + before, count, to + before);
      } else if (flips) {
        kernels_.flip(data_.integers + start, count, to + before);
      } else {
        std::memcpy(to + before, data_.integers + start, count);
      }
      if (widens) kernels_.widen(to, line, reinterpret_cast<int16_t*>(place));
    }
  }

  const ConvKernels& kernels_;
  const ConvPlan& plan_;
  const Geometry& geometry_;
  Data data_;
  ConvWeight weight_;
  ConvEnd end_;
  ConvImages images_{};
  bool by_channel_, few_, keep_;
  PackedWeight made_;
  std::shared_ptr<const KeptWeight> kept_;
  Buffer<float> own_;
};

// Whether integers of the result are a linear function of the sums, and their limits: a
// function that clips does so to integers, for rounding keeps the order.
void set_linear(ConvEnd* end) {
  const bool clips = end->function == Function::kRelu || end->function == Function::kRelu6;
  end->linear = !end->residual && !end->addend && (clips || end->function == Function::kNone);
  const int32_t top = (1 << (end->y_bits - 1)) - 1;
  const int32_t zero = zero_point(end->y_zero);
  int32_t low = end->y_symmetric ? -top : -top - 1, high = top;
  if (clips) low = std::clamp(zero, low, high);
  if (end->function == Function::kRelu6) {
    const float six = std::nearbyint(6.0f * end->y_inverse) + static_cast<float>(zero);
    high = six < static_cast<float>(high) ? std::max(low, static_cast<int32_t>(six)) : high;
  }
  end->low = static_cast<int8_t>(low);
  end->high = static_cast<int8_t>(high);
}

// Numbers of a call that stand in one array.
enum Place : int64_t { kYScale, kYZero, kAddendScale, kAddendZero, kNumbers };

ffi::Error conv_direct(ffi::ThreadPool pool, const ConvPlan* plan, Any x, Any x_scale,
                       Any x_zero, Any values, Any by_output, Any numbers, Any addend,
                       Any residual, ffi::Result<Any> y, ffi::Dictionary) {
  const ConvKernels* kernels = conv_kernels_of(chosen_instructions());
  if (!kernels) return bad("no kernels for this processor");
  const Geometry& g = plan->geometry;
  if (x.dimensions().size() != 3 || by_output.dimensions().size() != 3) {
    return bad("x and by_output have three axes");
  }
  const int64_t stacks = x.dimensions()[0], images = x.dimensions()[1];
  const int64_t rows = by_output.dimensions()[1], outputs = by_output.dimensions()[2];
  const int64_t whole = g.positions * outputs;
  if (outputs % plan->groups) return bad("groups do not fit");
  const bool integers = x.element_type() == ffi::DataType::S8;
  const auto in = integers ? ffi::DataType::S8 : ffi::DataType::F32;
  if (!is(x, in, {stacks, images, g.image})) return bad("shape or dtype of x");
  const bool rounded = y->element_type() == ffi::DataType::S8;
  const auto out = rounded ? ffi::DataType::S8 : ffi::DataType::F32;
  if (!is(*y, out, {stacks, images, whole})) return bad("shape or dtype of y");
  if (!is(values, ffi::DataType::S8, {stacks, outputs, g.inputs})) return bad("values");
  if (rows < 1 || rows > 2 || !is(by_output, ffi::DataType::F32, {stacks, rows, outputs})) {
    return bad("by_output");
  }
  const auto floats = [&](const Any& a, int64_t size) {
    return absent(a) || is(a, ffi::DataType::F32, {stacks, images, size});
  };
  const bool whole_addend = !absent(addend) && addend.element_type() == ffi::DataType::S8;
  if (whole_addend ? !is(addend, ffi::DataType::S8, {stacks, images, whole})
                   : !floats(addend, whole)) {
    return bad("addend");
  }
  if ((rounded || whole_addend) && !is(numbers, ffi::DataType::F32, {stacks, kNumbers})) {
    return bad("numbers");
  }
  if (!floats(residual, whole)) return bad("residual");
  const bool has_scale = !absent(x_scale), has_zero = !absent(x_zero);
  if (!ByRow::fits(x_scale, stacks, images)) return bad("x_scale");
  if (!ByRow::fits(x_zero, stacks, images)) return bad("x_zero");
  if ((integers || has_zero) && !has_scale) return bad("x_scale is missing");
  if (y->element_count() == 0) return ffi::Error::Success();

  expect_large(y->untyped_data(), y->size_bytes());
  for (int64_t s = 0; s < stacks; ++s) {
    const float* scales = part<float>(by_output, s, rows * outputs);
    const float* number = part<float>(numbers, s, kNumbers);
    ConvEnd end{};
    end.bias = rows > 1 ? scales + outputs : nullptr;
    if (whole_addend) {
      end.addend_integers = part<int8_t>(addend, s, images * whole);
      end.addend_scale = number[kAddendScale];
      end.addend_zero = number[kAddendZero];
    } else {
      end.addend = part<float>(addend, s, images * whole);
    }
    end.residual = part<float>(residual, s, images * whole);
    end.function = plan->activation;
    char* to = static_cast<char*>(y->untyped_data()) + s * images * whole * (rounded ? 1 : 4);
    end.y_bits = plan->y_bits;
    if (rounded) {
      const float scale = number[kYScale];
      end.integers = reinterpret_cast<int8_t*>(to);
      end.y_inverse = std::isfinite(scale) ? 1.0f / scale : 0.0f;
      end.y_zero = number[kYZero];
      end.y_symmetric = plan->y_symmetric;
      set_linear(&end);
    } else {
      end.floats = reinterpret_cast<float*>(to);
    }
    Direct::Data given{};
    if (integers) {
      given.integers = part<int8_t>(x, s, images * g.image);
    } else {
      given.floats = part<float>(x, s, images * g.image);
    }
    const ByRow scales_in(x_scale, s, images), zeros_in(x_zero, s, images);
    given.scale = scales_in.data();
    given.zero = zeros_in.data();
    given.images = images;
    given.bits = plan->x_bits;
    const ConvWeight weight{scales, outputs};
    const bool keep = plan->fixed && stacks == 1;
    Direct(*kernels, *plan, keep, given, part<int8_t>(values, s, outputs * g.inputs), weight, end)
        .run(pool);
  }
  return ffi::Error::Success();
}

Planned<ConvPlan> plan_conv(
    int64_t x_bits, int64_t y_bits, bool y_symmetric, int64_t activation, Sizes data,
    Sizes window, Sizes strides, Sizes pad_low, Sizes pad_high, Sizes dilation,
    int64_t channels, int64_t groups, bool fixed, int64_t layout) {
  const auto wrong = [](const std::string& what) {
    return Planned<ConvPlan>{ffi::Unexpected(bad(what))};
  };
  if (layout != kLayout) return wrong("the arrays have another layout than this library");
  auto plan = std::make_unique<ConvPlan>();
  const char* why = plan->geometry.set(data, window, strides, pad_low, pad_high, dilation,
                                       channels, groups);
  if (why) return wrong(why);
  plan->find_line();
  if (x_bits < 2 || x_bits > 8 || y_bits < 2 || y_bits > 8) return wrong("bits");
  if (activation < 0 || activation > static_cast<int64_t>(Function::kRelu6)) {
    return wrong("activation");
  }
  plan->groups = groups;
  plan->x_bits = static_cast<int>(x_bits);
  plan->y_bits = static_cast<int>(y_bits);
  plan->y_symmetric = y_symmetric;
  plan->activation = static_cast<Function>(activation);
  plan->fixed = fixed;
  return {std::move(plan)};
}

}  // namespace
}  // namespace jcompress

extern "C" JCOMPRESS_EXPORT XLA_FFI_Error* jcompress_conv_direct(XLA_FFI_CallFrame*);
extern "C" JCOMPRESS_EXPORT XLA_FFI_Error* jcompress_conv_direct_plan(XLA_FFI_CallFrame*);

XLA_FFI_DEFINE_HANDLER_SYMBOL(
    jcompress_conv_direct_plan, jcompress::plan_conv,
    xla::ffi::Ffi::BindInstantiate()
        .Attr<int64_t>("x_bits")
        .Attr<int64_t>("y_bits")
        .Attr<bool>("y_symmetric")
        .Attr<int64_t>("activation")
        .Attr<xla::ffi::Span<const int64_t>>("data")
        .Attr<xla::ffi::Span<const int64_t>>("window")
        .Attr<xla::ffi::Span<const int64_t>>("strides")
        .Attr<xla::ffi::Span<const int64_t>>("pad_low")
        .Attr<xla::ffi::Span<const int64_t>>("pad_high")
        .Attr<xla::ffi::Span<const int64_t>>("dilation")
        .Attr<int64_t>("channels")
        .Attr<int64_t>("groups")
        .Attr<bool>("fixed")
        .Attr<int64_t>("layout"));

XLA_FFI_DEFINE_HANDLER_SYMBOL(
    jcompress_conv_direct, jcompress::conv_direct,
    xla::ffi::Ffi::Bind()
        .Ctx<xla::ffi::ThreadPool>()
        .Ctx<xla::ffi::State<jcompress::ConvPlan>>()
        .Arg<xla::ffi::AnyBuffer>()
        .Arg<xla::ffi::AnyBuffer>()
        .Arg<xla::ffi::AnyBuffer>()
        .Arg<xla::ffi::AnyBuffer>()
        .Arg<xla::ffi::AnyBuffer>()
        .Arg<xla::ffi::AnyBuffer>()
        .Arg<xla::ffi::AnyBuffer>()
        .Arg<xla::ffi::AnyBuffer>()
        .Ret<xla::ffi::AnyBuffer>()
        .Attrs());
