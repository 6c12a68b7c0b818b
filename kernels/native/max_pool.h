// Maxima of windows that move over images: what the kernels of each instruction set
// provide.
#pragma once

#include <cstdint>

#include "instructions.h"

namespace jcompress {

// One line of the result: of each of `count` positions the maxima, channel by channel, of
// columns of some lines of the image.
struct PoolLine {
  const char* const* lines;  // those that the window covers, at least one
  int64_t line_count;
  char* y;          // [count, channels]
  int64_t count;
  int64_t width;    // columns of a line
  int64_t window;   // along a line
  int64_t stride;
  int64_t low;      // columns of padding before the first one
  int64_t channels;
};

struct PoolKernels {
  void (*bytes)(const PoolLine&);   // of int8
  void (*floats)(const PoolLine&);  // of float32; what is no number is larger than any
};

const PoolKernels& generic_pool();
const PoolKernels& avx2_pool();
const PoolKernels& avx512_vnni_pool();

}  // namespace jcompress
