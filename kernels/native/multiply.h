// Products of rows with one or several weights, their packing and their pieces spread over
// the threads of a pool.
#pragma once

#include <algorithm>
#include <vector>

#include "floats.h"
#include "handlers.h"
#include "multiply_pieces.h"
#include "parallel.h"
#include "product.h"

namespace jcompress {
namespace {

// Whether so many rows are faster with strips of the weight, which costs as much to lay
// out as the products of some rows, than in tiles: measured with AVX-512.
inline bool fills_strips(const Weight& w, const Activations& a, bool laid) {
  const int64_t rows = a.rows * a.digits;
  // What was laid out before is not slower, in groups from so many on (with weights from
  // memory a little, which those in the cache make up for).
  if (laid) return w.groups == 1 || rows >= (w.group_size() < 64 ? 6 : 4);
  if (w.groups > 1) return rows >= (w.group_size() < 64 ? 14 : 9);
  int64_t fewest = w.inputs <= 512 ? 8 : w.inputs <= 2048 ? 14 : 24;
  if (w.bits == 3) fewest = std::max<int64_t>(fewest, 24);
  // Rows of the weight that fall into one set of the first-level cache.
  if (w.row_bytes() % 4096 == 0) fewest = 40;
  return rows >= fewest;
}

// Whether weights may be kept as kernels lay them out.
inline bool keeps(const Stack& stack, const PlainKernels& kernels) {
  return stack.plan && stack.count == 1 && kernels.lay && kernels.laid_bytes(stack.any()) > 0;
}

// The kernels of plain rows that are the fastest for these; null for those of others.
inline const PlainKernels* plain_for(const Products& products, const Weight& w,
                                     const Activations& a, bool laid) {
  const ManyRows& many = products.many;
  // Measured with AVX2, whose tiles multiply by narrow weights without groups faster.
  const int64_t fewest = w.bits <= 4 && w.bits != 3 && w.groups == 1 ? 64 : 24;
  if (unit_of(w) == 0) return nullptr;
  if (many.narrow.multiply && a.digits == 1 && a.rows < fewest) return nullptr;
  if (many.narrow.multiply && a.digits == 1 && w.bits <= 4) {
    return narrow_block(w) > 0 && !a.zero ? &many.narrow : nullptr;
  }
  if (!strips_take(many.plain, w)) return nullptr;
  if (many.narrow.multiply) return a.digits == 1 ? &many.plain : nullptr;
  return fills_strips(w, a, laid) || !tiles_take(products, w) ? &many.plain : nullptr;
}

// With how many digits rows are laid out in panels, 0 as floats, -1 not at all.
inline int digits_of_panels(const Products& products, const Weight& w, const Activations& a) {
  const ManyRows& many = products.many;
  if (many.integers > 0 && a.rows >= many.integers && unit_of(w) > 0) return a.digits;
  if (a.digits == 1) return -1;
  const int64_t fewest = w.groups > 1 ? many.grouped_floats : many.floats;
  return fewest > 0 && a.rows >= fewest ? 0 : -1;
}

inline void multiply_panels(ffi::ThreadPool& pool, const Products& products,
                            const Stack& stack, int digits) {
  const ManyRows& many = products.many;
  Panels layout{};
  layout.rows = stack.a.rows;
  layout.inputs = stack.a.inputs;
  layout.groups = stack.any().groups;
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
    const One one = stack.of(s, 0);
    Buffer<float> scratch(digits * layout.panel_bytes() / 4 + inputs);
    many.pack(one.a, panels_of(s, one.a), i % bands, scratch.data());
  };

  // Outputs and bands in blocks, small ones if there are few for so many threads.
  const int64_t outputs = stack.outputs();
  const int64_t most =
      std::max<int64_t>(1, kBlockRows / (layout.in_band() * layout.lanes));
  const int64_t blocks = (bands + most - 1) / most;
  const int64_t in_block = (bands + blocks - 1) / blocks;
  const bool exact = digits > 0 && layout.groups == 1;
  const bool few = exact && in_block * layout.in_band() <= kFewPanels;
  int64_t chunk = few ? kFewOutputs : kChunk;
  if (stack.count * blocks * outputs < 3 * chunk * pool.num_threads()) chunk /= 2;
  const std::vector<Piece> pieces =
      cut_outputs(stack, chunk, false, pool.num_threads() * blocks, chunk);
  const int64_t chunks = static_cast<int64_t>(pieces.size());
  const auto multiply = [&](int64_t i) {
    const int64_t s = i / (chunks * blocks);
    const Piece& piece = pieces[i / blocks % chunks];
    const int64_t band = i % blocks * in_block, end = std::min(bands, band + in_block);
    const One one = stack.of(s, piece.weight);
    many.multiply(panels_of(s, one.a), one.w, one.y, piece.first, piece.last, band, end);
    finish(products, one, band * many.lanes, std::min(layout.rows, end * many.lanes),
           piece.first, piece.last);
  };
  const Help help = help_for(stack, layout.rows);
  parallel_phases(pool, stack.count * bands, pack, stack.count * chunks * blocks, multiply,
                  help);
}

// Rows laid out plainly.
inline void multiply_strips(ffi::ThreadPool& pool, const Products& products,
                            const PlainKernels& kernels, const Stack& stack) {
  constexpr int64_t kPackRows = 8, kBlock = 512, kUnit = 32;
  PlainRows layout{};
  layout.rows = stack.a.rows;
  layout.inputs = stack.a.inputs;
  layout.digits = stack.a.digits;
  layout.bits = stack.any().bits;
  const Weight& any = stack.any();
  if (&kernels == &products.many.narrow) {
    layout.block = narrow_block(any);
  } else if (any.groups > 1) {
    layout.block = any.group_size();
  }
  const int64_t rows = layout.rows, inputs = layout.inputs, each = rows * layout.digits;
  const int64_t row_bytes = layout.stride() * kernels.cell;
  Buffer<char> packed(stack.count * each * row_bytes);
  const int64_t sums_size = each * layout.blocks();
  Buffer<int32_t> sums(stack.count * sums_size);
  Buffer<float> scale(stack.count * rows);
  auto rows_of = [&](int64_t s, const Activations& a) {
    PlainRows r = layout;
    r.packed = packed.data() + s * each * row_bytes;
    r.sums = sums.data() + s * sums_size;
    r.scale = scale.data() + s * rows;
    r.zero = a.zero;
    return r;
  };
  std::vector<ProductPlan::Laid> laid;
  for (size_t i = 0; i < stack.weights.size() && keeps(stack, kernels); ++i) {
    laid.push_back(stack.plan->laid(kernels, i, stack.of(0, i).w));
  }
  const int64_t packs = (rows + kPackRows - 1) / kPackRows;
  const auto pack = [&](int64_t i) {
    const int64_t s = i / packs, m = i % packs * kPackRows;
    const One one = stack.of(s, 0);
    Buffer<float> scratch(inputs);
    kernels.pack(one.a, rows_of(s, one.a), m, std::min(rows, m + kPackRows),
                 scratch.data());
  };
  const int64_t blocks = (each + kBlock - 1) / kBlock;
  const std::vector<Piece> pieces =
      cut_outputs(stack, kUnit, false, pool.num_threads() * blocks, kUnit);
  const int64_t chunks = static_cast<int64_t>(pieces.size());
  const auto multiply = [&](int64_t i) {
    const int64_t s = i / (chunks * blocks), block = i % blocks;
    const Piece& piece = pieces[i / blocks % chunks];
    const int64_t m0 = rows * block / blocks, m1 = rows * (block + 1) / blocks;
    One one = stack.of(s, piece.weight);
    if (piece.weight < laid.size() && laid[piece.weight]) {
      one.w.laid = laid[piece.weight]->bytes.data();
    }
    kernels.multiply(rows_of(s, one.a), one.w, one.y, piece.first, piece.last, m0, m1);
    finish(products, one, m0, m1, piece.first, piece.last);
  };
  const Help help = help_for(stack, each);
  parallel_phases(pool, stack.count * packs, pack, stack.count * chunks * blocks, multiply,
                  help);
}

inline void multiply_tiles(ffi::ThreadPool& pool, const Products& products,
                           const Stack& stack) {
  const int64_t inputs = stack.any().inputs, groups = stack.any().groups;
  const int64_t rows = stack.a.rows;
  Rows layout{};
  layout.cut = products.cut(stack.any().bits);
  layout.grouping = grouping_of(layout.cut, inputs, groups);
  layout.digits = stack.a.digits;
  layout.ones = stack.ones;
  layout.count = rows * layout.digits + stack.ones;
  // Where tiles end, rows end: six is a multiple of any number of digits.
  if (layout.digits == 1) layout.even_tiles();
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
  const int64_t packs = (tiles + few - 1) / few;
  const auto pack = [&](int64_t i) {
    const int64_t s = i / packs, t0 = i % packs * few;
    const One one = stack.of(s, 0);
    const Rows r = rows_of(s, one.a);
    Buffer<float> scratch(inputs + inputs / 4 + 256);
    for (int64_t t = t0; t < std::min(tiles, t0 + few); ++t) {
      products.pack(one.a, one.w, r, t, scratch.data());
    }
  };

  const int64_t row_bytes = stack.any().row_bytes();
  const int64_t least_outputs =
      std::max(kPieceBytes / row_bytes,
               kPieceProducts / std::max<int64_t>(1, layout.count * inputs));
  const std::vector<Piece> pieces =
      cut_outputs(stack, least_outputs, tiles > 1, pool.num_threads(), 8);
  const int64_t chunks = static_cast<int64_t>(pieces.size());
  const Help help = help_for(stack, layout.count);
  const auto multiply = [&](int64_t i) {
    const int64_t s = i / chunks;
    const Piece& piece = pieces[i % chunks];
    const One one = stack.of(s, piece.weight);
    products.multiply(rows_of(s, one.a), one.w, one.y, rows, piece.first, piece.last);
    finish(products, one, 0, rows, piece.first, piece.last);
  };
  parallel_phases(pool, stack.count * packs, pack, stack.count * chunks, multiply, help);
}

// Multiply all of a stack. Whether the instructions in use can scale its groups.
inline bool multiply_stack(ffi::ThreadPool& pool, const Stack& stack) {
  const Products& products = products_of(chosen_instructions());
  const Weight& w = stack.any();
  const int panel_digits = digits_of_panels(products, w, stack.a);
  if (panel_digits > 0) {
    multiply_panels(pool, products, stack, panel_digits);
    return true;
  }
  const bool laid = keeps(stack, products.many.plain);
  if (const PlainKernels* plain = plain_for(products, w, stack.a, laid)) {
    multiply_strips(pool, products, *plain, stack);
    return true;
  }
  if (panel_digits == 0) {
    multiply_panels(pool, products, stack, panel_digits);
    return true;
  }
  if (!tiles_take(products, w)) return false;
  multiply_tiles(pool, products, stack);
  return true;
}

}  // namespace
}  // namespace jcompress
