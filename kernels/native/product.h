// Integer products of rows of activations with a packed weight: what the kernels of
// each instruction set provide, and the arrays they work on.
#pragma once

#include <cstddef>
#include <cstdint>

#include "instructions.h"

namespace jcompress {

enum class Float : int32_t { kF32 = 0, kBF16 = 1, kF16 = 2, kS8 = 3 };

// A weight of `outputs` rows of `inputs` integers, as `QTensor` stores a matrix.
struct Weight {
  const uint8_t* values;  // [outputs, row_bytes]
  const float* scales;    // [outputs, groups]
  const int8_t* zeros;    // [outputs, groups] or null
  int64_t outputs;
  int64_t inputs;
  int64_t groups;
  int bits;  // 2, 3, 4, or 8 for one byte an integer
  const uint8_t* laid;  // the whole weight as `PlainKernels::lay` lays it out, or null

  int64_t row_bytes() const { return (inputs * bits + 7) / 8; }
  int64_t group_size() const { return inputs / groups; }
};

// How the inputs of a weight are cut for an instruction set. A step is what one load of
// packed weights covers; its integers unpack into `parts` vectors, of which vector p
// holds the inputs p, p + parts, p + 2 parts, ... of the step. A lane is one 32-bit sum;
// it covers `lane_span` neighbouring inputs.
struct Cut {
  int parts;
  int part_inputs;   // inputs in one vector
  int vector_bytes;  // of activations; 1 or 2 bytes an input
  int lanes;
  int offset;  // the kernel multiplies weight + offset

  int step_inputs() const { return parts * part_inputs; }
  int lane_span() const { return step_inputs() / lanes; }
};

// How scales meet sums.
enum class Grouping : int32_t {
  kNone,   // one scale for all inputs: exact integer sums
  kSteps,  // a group is a whole number of steps
  kLanes,  // a step is a whole number of groups, a group of lanes
  kUnable,
};

Grouping grouping_of(const Cut& cut, int64_t inputs, int64_t groups);

// Rows of small integers, laid out for one weight. Row r = m * digits + j is digit j of
// row m of the activations; with `ones`, row 0 is all ones and the others follow.
struct Rows {
  int8_t* packed;      // [tile][step][part][row in tile][vector_bytes]
  // kNone: [row]; kSteps: [tile][group][row in tile]; kLanes: [tile][step][row in
  // tile][lane]. Of a weight in groups without zeros they are multiplied by what its offset
  // takes away.
  int32_t* sums;
  float* scale;        // [m]
  const float* zero;   // [m] or null: the integer that stands for 0
  int64_t count;       // all rows, ones included
  int64_t digits;
  bool ones;
  int64_t steps;
  Cut cut;
  Grouping grouping;

  static constexpr int64_t kTile = 6;
  int64_t tile = kTile;  // rows of each tile but the last: 1, 2, 3, 4 or 6

  int64_t tiles() const { return (count + tile - 1) / tile; }
  int64_t step_bytes() const { return int64_t{cut.parts} * cut.vector_bytes; }
  int64_t tile_bytes() const { return kTile * steps * step_bytes(); }
  int64_t sums_per_row(int64_t groups) const {
    if (grouping == Grouping::kNone) return 1;
    return grouping == Grouping::kSteps ? groups : steps * cut.lanes;
  }
  // Tiles of about the same height instead of high ones and a rest.
  void even_tiles() {
    const int64_t high = (count + kTile - 1) / kTile;
    tile = high > 0 ? (count + high - 1) / high : kTile;
    if (tile == kTile - 1) tile = kTile;
  }
};

// Float or int8 activations, and how they become integers.
struct Activations {
  const void* x;  // [rows, inputs]
  Float dtype;
  const float* scale;  // [rows], or null for the symmetric range of each row
  const float* zero;   // [rows] or null
  int64_t rows;
  int64_t inputs;
  int bits;    // of an integer
  int digits;  // 1, or several to write a float as a fixed-point number
};

// Rows that are patches of images: row m stands for output position `first + m`, counted
// through the images, and its inputs are runs of bytes of an image of small integers,
// which is padded.
struct Patches {
  const int8_t* images;    // [image][digit][image_bytes]
  int64_t image_bytes;
  int64_t first;
  int64_t positions;       // of an image, in lines of `line`
  int64_t line;
  const int64_t* lines;    // where the patch of the first position of each line begins
  int64_t stride;          // bytes from one position of a line to the next
  const int64_t* offsets;  // [runs], from the beginning of a patch
  int64_t runs;
  int64_t run_bytes;

  static constexpr int64_t kSlack = 64;  // bytes that may be read, written past an end
};

struct Result {
  void* y;  // [rows, outputs]
  Float dtype;
  const float* bias;  // [outputs] or null
};

// A function of one number; numbered as in _native.py.
enum class Function : int64_t {
  kNone = 0,
  kRelu = 1,
  kSquaredRelu = 2,
  kGelu = 3,
  kGeluTanh = 4,
  kSilu = 5,
  kTanh = 6,
  kSigmoid = 7,
  kRelu6 = 8,
};

// What follows a product and its bias: y = function(y) * factor + residual.
struct After {
  Function function;
  const void* factor;    // [rows, outputs] or null
  const void* residual;  // [rows, outputs] or null
  void* y;               // [rows, outputs], the result
  Float dtype;           // of these arrays

  bool any() const { return function != Function::kNone || factor || residual; }
};

// Rows of activations across the lanes of vectors, for products of many rows, which then
// need no sums along a vector. A band is `lanes` rows, filled up with zeros. As integers
// it has a panel for each digit, [quad][lane][4]: four neighbouring inputs of each row.
// As floats it is one panel, [input][lane].
struct Panels {
  void* packed;       // [band][digit]
  int32_t* sums;      // of integers, [band][digit][group][lane]
  float* scale;       // of integers, [band][lane]
  const float* zero;  // [row] or null: the integer that stands for 0
  int64_t rows;
  int64_t inputs;
  int64_t groups;
  int lanes;
  int digits;  // 0: floats

  int64_t bands() const { return (rows + lanes - 1) / lanes; }
  int64_t in_band() const { return digits > 0 ? digits : 1; }
  int64_t count() const { return bands() * in_band(); }
  // Without groups they are filled up to what the widest instructions take at once.
  int64_t quads() const { return groups > 1 ? inputs / 4 : (inputs + 63) / 64 * 16; }
  // From one panel to the next: not so that the same inputs of all of them fall into a
  // few sets of the second-level cache.
  int64_t panel_bytes() const {
    const int64_t bytes = 4 * lanes * (digits > 0 ? quads() : inputs);
    return bytes % (16 << 10) ? bytes : bytes + (8 << 10);
  }
};

// Rows of small integers one after the other, for products whose lanes are outputs. Row m
// has `digits` rows, each filled up with zeros, its integers in the order in which those of
// a weight of so many bits unpack.
struct PlainRows {
  void* packed;       // [row][digit][stride], of the kernels' integers
  int32_t* sums;      // [row][digit][blocks]
  float* scale;       // [row]
  const float* zero;  // [row] or null: the integer that stands for 0
  int64_t rows;
  int64_t inputs;
  int digits;
  int bits;
  int64_t block;      // inputs whose integers are summed up, or 0: all

  int64_t blocks() const { return block > 0 ? (inputs + block - 1) / block : 1; }

  // Neighbouring rows lie not so that the same inputs fall into a few sets of a cache.
  int64_t filled() const { return (inputs + 63) / 64 * 64; }
  int64_t stride() const { return filled() % 512 ? filled() : filled() + 64; }
};

constexpr int64_t kChunk = 96;  // most outputs that are multiplied with panels at once
// The same for few panels, so that a block stays in the first-level cache.
constexpr int64_t kFewPanels = 4, kFewOutputs = 32;

// Products with rows that are laid out plainly; all null if there are none.
struct PlainKernels {
  int64_t cell;  // bytes of the rows' integers
  bool groups;   // whether they take weights that have scales by groups
  // `scratch` holds `inputs` floats.
  void (*pack)(const Activations&, const PlainRows&, int64_t m0, int64_t m1,
               float* scratch);
  // Write y[m0 : m1, first : last].
  void (*multiply)(const PlainRows&, const Weight&, const Result&, int64_t first,
                   int64_t last, int64_t m0, int64_t m1);
  // What `multiply` otherwise does first: the weight laid out, the bytes of it; 0 if those
  // are more than the weight has as it is stored.
  void (*lay)(const Weight&, uint8_t* out);
  int64_t (*laid_bytes)(const Weight&);
};

// Products with panels. What is multiplied is a block of inputs, unpacked.
struct ManyRows {
  int lanes;
  // The fewest rows for which products of integers are faster so; 0: there are none of
  // integers.
  int64_t integers;
  // The fewest rows for which products of floats are faster than those of their digits,
  // without groups and with: 0 if they never are.
  int64_t floats, grouped_floats;
  // `scratch` holds `Panels::panel_bytes`, or nothing for floats, and `inputs` floats.
  void (*pack)(const Activations&, const Panels&, int64_t band, float* scratch);
  // Write y[band0 * lanes : band1 * lanes, first : last].
  void (*multiply)(const Panels&, const Weight&, const Result&, int64_t first,
                   int64_t last, int64_t band0, int64_t band1);
  PlainKernels plain;
  PlainKernels narrow;  // of weights of at most four bits, by blocks of `narrow_block`
};

// The inputs after which groups and bytes of a weight end together, if blocks of them
// can be multiplied as integers; else 0.
int64_t unit_of(const Weight& w);

// The inputs of a block of `ManyRows::narrow`, a part of a group; 0 if there is none.
int64_t narrow_block(const Weight& w);

// What an instruction set provides.
struct Products {
  Cut (*cut)(int bits);
  // Lay out the rows of tile `tile`; `scratch` holds `inputs` floats and,
  // after them, `inputs` + 512 bytes.
  void (*pack)(const Activations&, const Weight&, const Rows&, int64_t tile,
               float* scratch);
  // Write y[:, first : last].
  void (*multiply)(const Rows&, const Weight&, const Result&, int64_t rows,
                   int64_t first, int64_t last);
  // The largest absolute value of x[start : start + count]; `scratch` holds `count`.
  float (*largest)(const Activations&, int64_t start, int64_t count, float* scratch);
  // Write the digits of x[start : start + count] of row m, one digit `stride` from the
  // next.
  void (*digits)(const Activations&, int64_t m, int64_t start, int64_t count,
                 int64_t stride, int8_t* out, float* scratch);
  // Lay out tile `tile` of rows that are patches; `scratch` holds `inputs` + 512 bytes.
  void (*patches)(const Patches&, const Weight&, const Rows&, int64_t tile,
                  int8_t* scratch);
  ManyRows many;
  // Make of a product y[m0 : m1, first : last], of [rows, outputs], what follows it.
  void (*finish)(const After&, float* y, int64_t outputs, int64_t m0, int64_t m1,
                 int64_t first, int64_t last);
};

// Whether tiles can scale a weight's groups, and whether strips can, whose groups end where
// words of integers do.
inline bool tiles_take(const Products& products, const Weight& w) {
  return grouping_of(products.cut(w.bits), w.inputs, w.groups) != Grouping::kUnable;
}
inline bool strips_take(const PlainKernels& kernels, const Weight& w) {
  if (!kernels.multiply || unit_of(w) == 0) return false;
  return w.groups == 1 || (kernels.groups && w.group_size() % (w.bits == 4 ? 8 : 4) == 0);
}
inline bool takes_groups(const Products& products, const Weight& w) {
  return tiles_take(products, w) || strips_take(products.many.plain, w);
}

const Products* generic_products();
const Products* avx2_products();
const Products* avx_vnni_products();
const Products* avx512_vnni_products();
const Products* avx512_vbmi_products();
const Products* amx_int8_products();
const Products* neon_products();

const Products& products_of(Instructions set);

constexpr int64_t kBase = 254;  // of the digits, as split_digits in _integers.py

}  // namespace jcompress
