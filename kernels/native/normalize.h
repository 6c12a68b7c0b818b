// Layer and RMS normalisation of rows: what the kernels of each instruction set provide.
#pragma once

#include <cstdint>

#include "instructions.h"

namespace jcompress {

struct Normalization {
  const float* x;         // [rows, width]
  const float* residual;  // [rows, width] or null: added to x before
  const float* scale;     // [width] or null
  const float* bias;      // [width] or null
  float* y;               // [rows, width]
  float* sum;             // [rows, width] or null: x + residual
  int64_t width;
  float epsilon;
  bool centered;  // whether the mean is subtracted
};

// Normalize the rows [first, last).
using NormalizeRows = void (*)(const Normalization&, int64_t first, int64_t last);

NormalizeRows generic_normalize();
NormalizeRows avx2_normalize();
NormalizeRows avx512_vnni_normalize();

}  // namespace jcompress
