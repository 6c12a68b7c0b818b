// Convolutions of int8 without a copy of their patches: what the kernels of an instruction
// set provide, and the arrays they work on.
#pragma once

#include <cstdint>

#include "product.h"

namespace jcompress {

// What follows a convolution, number by number: with s = sums, scaled,
//   y = function(s + bias + addend) + residual,
// stored as float32 or as integers, round(y / y_scale) + y_zero. The addend is float32, or
// integers of a scale, (integers - zero) * scale.
struct ConvEnd {
  const float* bias;      // [outputs] or null
  const float* addend;    // as the result, or null
  const int8_t* addend_integers;  // in its place, or null
  float addend_scale;
  float addend_zero;
  const float* residual;  // as the result, or null
  Function function;
  float* floats;          // the result, or null
  int8_t* integers;       // the result, or null
  float y_inverse;        // 1 / y_scale
  float y_zero;
  int y_bits;
  bool y_symmetric;

  // Integers that are a linear function of the sums, then clipped: there is no residual,
  // the function is none or clips, and all images have one range.
  bool linear;
  int8_t low, high;       // what they are clipped to
};

// With a linear end, for each output of a block, in the order of the kernel's lanes:
//   integer = round(sum * multiplier + offset) + zero.
struct ConvLinear {
  static constexpr int kOutputs = 64;
  float multiplier[kOutputs];
  float offset[kOutputs];
  int32_t start[kOutputs];  // what sums begin with
};

// Images of small integers, padded, and a window that moves over them. A patch consists of
// runs of neighbouring integers; each run of the weight is filled up to whole quads of
// inputs with zeros. Places and distances count integers, of `ConvKernels::cell` bytes.
struct ConvImages {
  const void* images;     // [image][image_cells]
  int64_t image_cells;
  int64_t positions;      // of an image, in lines of `line`
  int64_t line;
  const int64_t* lines;   // where the patch of the first position of each line begins
  int64_t stride;         // from one position of a line to the next
  const int64_t* offsets; // [runs], from the beginning of a patch
  int64_t runs;
  int64_t run_inputs;
  bool pairs;             // of channels: windows of three that move by one pixel
  int64_t pixel;          // from one to the next
  const float* scale;     // [image]
  const float* zero;      // [image] or null

  int64_t run_quads() const { return (run_inputs + 3) / 4; }
  int64_t quads() const { return runs * run_quads(); }
};

// The outputs of a weight [outputs, inputs] that are multiplied together, at most
// `kOutputs` of them. `packed` holds what the kernels make of them, of at most
// `ConvKernels::cell` bytes for each number of [quad][vector of 16 outputs][output][4].
struct ConvBlock {
  const int8_t* values;  // of the first one
  int64_t inputs;
  int64_t first;
  int count;
  int64_t channel;       // where their inputs begin in a pixel
  int8_t* packed;
  int32_t* sums;         // [kOutputs] of the integers of each
  ConvLinear* linear;

  static constexpr int kOutputs = 64;
  static constexpr int kLanes = 16;
  int vectors() const { return (count + kLanes - 1) / kLanes; }
};

struct ConvWeight {
  const float* scales;  // [outputs]
  int64_t outputs;
};

struct ConvKernels {
  static constexpr int64_t kFewRows = 4;

  int64_t cell;  // bytes of an integer of the images: 1, or 2
  // Whether what the sums take for images has 128 more than they have. Then those of
  // weights of a channel have it in memory, too.
  bool moved;

  // A weight of which every input meets every output of a block.
  void (*pack)(const ConvImages&, const ConvBlock&);
  // Write the outputs of a block at positions row0 to row1, counted through all images,
  // whose first is image `image0` of scales, addends and results.
  void (*multiply)(const ConvImages&, const ConvBlock&, const ConvWeight&,
                   const ConvEnd&, int64_t image0, int64_t row0, int64_t row1);
  // The same for at most `kFewRows` positions and a block that is not packed; writes its
  // sums.
  void (*multiply_few)(const ConvImages&, const ConvBlock&, const ConvWeight&,
                       const ConvEnd&, int64_t image0, int64_t row0, int64_t row1);
  // A weight of one input and output a channel.
  void (*pack_channels)(const ConvImages&, const ConvBlock&);
  void (*multiply_channels)(const ConvImages&, const ConvBlock&, const ConvWeight&,
                            const ConvEnd&, int64_t image0, int64_t row0, int64_t row1);
  // Fill the block's `linear`, after it was packed.
  void (*prepare)(const ConvImages&, const ConvBlock&, const ConvWeight&, const ConvEnd&,
                  bool by_channel);
  // Floats as integers, like `quantize_values`.
  void (*quantize)(const float* x, int64_t count, float inverse, float zero, int bits,
                   bool symmetric, int8_t* out);
  float (*largest)(const float* x, int64_t count);
  void (*flip)(const int8_t* x, int64_t count, int8_t* out);  // add 128; of `moved`
  void (*widen)(const int8_t* x, int64_t count, int16_t* out);  // of cells of two bytes
  int64_t together;                        // positions at a time, of `multiply`

  // Bytes behind packed weights that may be read, whatever they hold.
  static constexpr int64_t kSlack = 4096;
};

const ConvKernels* avx2_conv();
const ConvKernels* avx512_vnni_conv();
const ConvKernels* amx_int8_conv();

// The kernels for a set; null if it has none.
const ConvKernels* conv_kernels_of(Instructions set);

}  // namespace jcompress
