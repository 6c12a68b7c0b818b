// Products of rows of floats with weights of which little is stored: what the kernels
// of each instruction set provide, and the arrays they work on.
#pragma once

#include <cstdint>

#include "instructions.h"
#include "product.h"

namespace jcompress {

// Float activations [rows, inputs].
struct Inputs {
  const void* x;
  Float dtype;
  int64_t rows;
  int64_t inputs;
};

// A matrix whose rows are decoded as they are multiplied: `NMSparse`,
// `UnstructuredSparse`, `Codebook` or `VectorCodebook`.
enum class Coding : int32_t {
  kMaskF32 = 0,
  kMaskBF16 = 1,
  kMaskS8 = 2,
  kNibbles = 3,  // two indices a byte
  kBytes = 4,    // one
  kVectors = 5,  // codes of vectors
  kMaskScaled = 6,  // integers of 4 or 8 bits, with a scale for a group of inputs
};

struct CodedWeight {
  Coding coding;
  const void* values;   // [outputs, stored]: kept values; or bytes of indices
  const uint8_t* mask;  // [outputs, mask_bytes]; null for indices
  const float* scales;  // [outputs] or null
  const float* tables;  // [outputs / outputs_per_table, table_floats], as laid out
  int64_t outputs;
  int64_t inputs;
  int64_t stored;
  // Where the kept values of each output begin, [outputs + 1], if outputs keep different
  // numbers: `values` are then [count], and `stored` is the mean of an output. Null
  // otherwise.
  const int32_t* starts;
  int64_t count;
  // For kMaskScaled only: `scales` are then [outputs, groups], and `inputs` a multiple of
  // `groups`. Integers of 4 bits lie two a byte, the even one low; `count` is theirs.
  int64_t groups;
  int32_t bits_kept;  // 4 or 8
  int64_t outputs_per_table;
  // For vectors only, whose values are [outputs, codes, stored / codes] bytes and whose
  // inputs are those that are laid out: eight vectors a step, of `length` floats each.
  int32_t length;  // 2, 4 or 8
  int32_t codes;
  int32_t bits;

  static constexpr int kSmallTable = 16;
  static constexpr int kTable = 256;

  int table_floats() const {
    return coding == Coding::kNibbles ? kSmallTable : kTable;
  }
  int64_t row_bytes() const {
    const bool f32 = coding == Coding::kMaskF32, bf16 = coding == Coding::kMaskBF16;
    const int size = f32 ? 4 : bf16 ? 2 : 1;
    return stored * size;
  }
  int64_t mask_bytes() const { return (inputs + 7) / 8; }
  // Of the values of an output, where they begin and how many there are.
  int64_t first(int64_t output) const {
    return starts ? starts[output] : output * stored;
  }
  int64_t kept(int64_t output) const {
    return starts ? starts[output + 1] - starts[output] : stored;
  }
};

// A matrix of blocks: `BlockSparse`.
struct BlockWeight {
  const void* blocks;      // [count, high, wide]
  const int32_t* columns;  // [count]
  const int32_t* starts;   // [block_rows + 1]
  const float* scales;     // [block_rows * high] or null
  Float dtype;             // kF32, kBF16 or kS8
  int64_t block_rows;
  int64_t high;
  int64_t wide;
  int64_t inputs;

  int64_t outputs() const { return block_rows * high; }
};

// What an instruction set provides. `packed` are floats of 64-byte alignment.
struct SparseProducts {
  // Lay out one table of floats as the kernels read it; `floats` is 16 or 256.
  void (*lay_table)(const float* values, int64_t floats, float* out);
  // Floats that packed rows take, and in how many independent pieces they are packed.
  int64_t (*coded_size)(const CodedWeight&, int64_t rows);
  int64_t (*coded_pieces)(const CodedWeight&, int64_t rows);
  void (*pack_coded)(const CodedWeight&, const Inputs&, float* packed, int64_t piece);
  // Write y[:, first : last]; false if a row's mask keeps more than is stored.
  bool (*multiply_coded)(const CodedWeight&, const float* packed, int64_t rows,
                         const Result&, int64_t first, int64_t last);

  int64_t (*blocks_size)(const BlockWeight&, int64_t rows);
  int64_t (*blocks_pieces)(const BlockWeight&, int64_t rows);
  void (*pack_blocks)(const BlockWeight&, const Inputs&, float* packed, int64_t piece);
  // Write the outputs of block rows [first, last), whose columns and starts are valid.
  void (*multiply_blocks)(const BlockWeight&, const float* packed, int64_t rows,
                          const Result&, int64_t first, int64_t last);
};

const SparseProducts* generic_sparse_products();
const SparseProducts* avx2_sparse_products();
const SparseProducts* avx512_vnni_sparse_products();
const SparseProducts* avx512_vbmi_sparse_products();

}  // namespace jcompress
