// A stack of products, and the pieces that threads take of it.
#pragma once

#include <algorithm>
#include <functional>
#include <vector>

#include "parallel.h"
#include "product.h"
#include "product_plan.h"

namespace jcompress {
namespace {

// Below so many bytes of weight or products of integers a piece is not worth a thread,
constexpr int64_t kPieceBytes = 48 << 10;
constexpr int64_t kPieceProducts = 1 << 20;
// below so many in all, some ten microseconds, waking a thread is not,
constexpr int64_t kLeastBytes = 128 << 10;
constexpr int64_t kLeastProducts = 1 << 20;
// and below so many, two microseconds, handing them to one that is awake is not.
constexpr int64_t kFewBytes = 32 << 10;
constexpr int64_t kFewProducts = 256 << 10;
// Rows of panels whose sums with some outputs stay in the second-level cache.
constexpr int64_t kBlockRows = 384;

// One of the products of some rows.
struct One {
  Activations a;
  Weight w;
  Result y;
  After after;
};

// Products of the same rows with weights of one layout: equal inputs, groups, bits, and
// all or none with zeros. And a stack of such.
struct Stack {
  Activations a;                // without arrays
  std::vector<Weight> weights;  // without arrays
  bool ones;                    // the activations have zeros
  int64_t count;
  std::function<One(int64_t, size_t)> of;  // one of them with one of the weights
  const ProductPlan* plan;      // of what may be kept, or null

  const Weight& any() const { return weights.front(); }
  int64_t outputs() const {
    int64_t sum = 0;
    for (const Weight& w : weights) sum += w.outputs;
    return sum;
  }
};

// Which helpers the products of so many rows of integers are worth.
inline Help help_for(const Stack& stack, int64_t rows) {
  const Weight& any = stack.any();
  const int64_t outputs = stack.count * stack.outputs();
  const int64_t bytes = outputs * any.row_bytes(), products = outputs * rows * any.inputs;
  if (bytes < kFewBytes && products < kFewProducts) return Help::kNone;
  return bytes < kLeastBytes && products < kLeastProducts ? Help::kAwake : Help::kAny;
}

// Some outputs of one of the weights.
struct Piece {
  size_t weight;
  int64_t first;
  int64_t last;
};

// Pieces of the outputs of all weights. Memory delivers long pieces faster, so with few
// rows the first are long: each is a part of what is left, so that the threads still end
// together.
inline std::vector<Piece> cut_outputs(const Stack& stack, int64_t least, bool even,
                                      int64_t threads, int64_t unit) {
  constexpr int64_t kEven = 128, kLongest = 512;
  int64_t left = stack.outputs();
  threads = std::max<int64_t>(1, threads);
  least = std::clamp<int64_t>(std::max(least, left / (8 * threads)), 8, kEven);
  std::vector<Piece> pieces;
  for (size_t i = 0; i < stack.weights.size(); ++i) {
    const int64_t outputs = stack.weights[i].outputs;
    for (int64_t first = 0; first < outputs; first = pieces.back().last) {
      const int64_t part = left / (2 * threads);
      const int64_t size = even ? least : std::clamp(part, least, kLongest);
      const int64_t last = std::min(outputs, first + (size + unit - 1) / unit * unit);
      pieces.push_back({i, first, last});
      left -= last - first;
    }
  }
  return pieces;
}

// What follows the product of one of a stack, on a block of it.
inline void finish(const Products& products, const One& one, int64_t m0, int64_t m1,
                   int64_t first, int64_t last) {
  if (!one.after.any()) return;
  products.finish(one.after, static_cast<float*>(one.y.y), one.w.outputs, m0, m1, first,
                  last);
}

}  // namespace
}  // namespace jcompress
