// Softmax attention: what the kernels of each instruction set provide, and the arrays
// they work on.
#pragma once

#include <cstdint>

#include "instructions.h"

namespace jcompress {

// Sizes of one head and how far apart elements lie, in elements; a step of 0 repeats.
struct AttentionShape {
  int64_t features;  // of queries and keys
  int64_t keys;
  int64_t values;  // features of values and of the result
  int64_t q_feature;
  int64_t k_key, k_feature;
  int64_t v_key, v_value;
  int64_t bias_key, mask_key;
  int64_t out_value;
  float scale;
  float fill;  // the score of a key that the mask excludes
};

// Rows of queries that meet the same keys. Offsets of rows are an element each for
// `kMostRows` rows; those behind the last row are its own.
struct AttentionRows {
  static constexpr int64_t kMostRows = 32;

  int64_t count;
  const float* q;
  const float* k;
  const float* v;
  const float* bias;    // null: none
  const uint8_t* mask;  // null: none; else 0 or 1
  float* out;
  int64_t q_rows[kMostRows];
  int64_t bias_rows[kMostRows];
  int64_t mask_rows[kMostRows];
  int64_t out_rows[kMostRows];
};

struct AttentionKernels {
  int64_t most_rows;  // that `attend` takes, at most kMostRows
  // Write softmax(scale q k' + bias, under the mask) v of each row.
  void (*attend)(const AttentionShape&, const AttentionRows&);
};

const AttentionKernels* generic_attention();
const AttentionKernels* avx2_attention();
const AttentionKernels* avx512_vnni_attention();

}  // namespace jcompress
