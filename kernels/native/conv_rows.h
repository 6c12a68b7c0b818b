// The positions that a convolution goes through, and what its sums become, for the kernels
// of any instruction set.
#pragma once

#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "conv_direct.h"
#include "rows.h"

namespace jcompress {
namespace {

template <int kNumber>
using Number = std::integral_constant<int, kNumber>;

// Calls `add(row, pointers to their images, count)` for a few positions at a time. Cell:
// the integers of the images.
template <int kTogether, class Cell, class Add>
void through_rows(const ConvImages& g, const ConvBlock& b, int64_t row0, int64_t row1,
                  Add&& add) {
  const Cell* const images = static_cast<const Cell*>(g.images);
  int64_t image = row0 / g.positions, position = row0 % g.positions;
  int64_t line = position / g.line, column = position % g.line;
  for (int64_t m = row0; m < row1; m += kTogether) {
    const int here = static_cast<int>(std::min<int64_t>(kTogether, row1 - m));
    const Cell* from[kTogether];
    for (int r = 0; r < here; ++r) {
      from[r] = images + image * g.image_cells + g.lines[line] + column * g.stride + b.channel;
      if (++column < g.line) continue;
      column = 0;
      if (++line * g.line < g.positions) continue;
      line = 0;
      ++image;
    }
    add(m, from, here);
  }
}

// Calls `add(row, its place in the images, count)` for stretches of neighbouring positions
// of a line.
template <class Cell, class Add>
[[gnu::always_inline]] inline void through_lines(const ConvImages& g, const ConvBlock& b,
                                                 int64_t row0, int64_t row1, Add&& add) {
  const Cell* const images = static_cast<const Cell*>(g.images);
  for (int64_t m = row0; m < row1;) {
    const int64_t image = m / g.positions, position = m % g.positions;
    const int64_t line = position / g.line, column = position % g.line;
    const int64_t count = std::min(row1 - m, g.line - column);
    add(m, images + image * g.image_cells + g.lines[line] + column * g.stride + b.channel,
        count);
    m += count;
  }
}

// Where the results of a block at a position begin.
inline int64_t place_of(const ConvImages& g, const ConvBlock& b, const ConvWeight& w,
                        int64_t image0, int64_t row) {
  return (image0 * g.positions + row) * w.outputs + b.first;
}

// Fill the block's `linear`: the number at place i is that of output `output_at(i)`. The
// sums are of images to which `more` is added.
template <class Place>
void fill_linear(const ConvImages& g, const ConvBlock& b, const ConvWeight& w,
                 const ConvEnd& end, int32_t more, Place&& output_at) {
  const int32_t zero = more + (g.zero ? zero_point(g.zero[0]) : 0);
  const float by = g.scale[0] * end.y_inverse;
  const float less =
      end.addend_integers ? end.addend_zero * (end.addend_scale * end.y_inverse) : 0.0f;
  for (int i = 0; i < ConvBlock::kOutputs; ++i) {
    const int n = output_at(i);
    const bool there = n < b.count;
    b.linear->multiplier[i] = there ? by * w.scales[b.first + n] : 0.0f;
    b.linear->offset[i] =
        there && end.bias ? end.bias[b.first + n] * end.y_inverse - less : -less;
    b.linear->start[i] = there ? -zero * b.sums[n] : 0;
  }
}

// What results are made with.
struct Ends {
  const ConvBlock& block;
  const ConvWeight& weight;
  const ConvEnd& end;
  const float* scale;  // of the images
  const float* zero;
  int64_t positions;
};

// Results of some positions, `first` counted through the images from `image0` on, from
// their sums [position][64]. `End::finish` takes those of one image, of a scale and a
// zero, and where the results of the first of them begin.
template <class End, Function kFunction>
void finish_conv(const Ends& rows, const int32_t* sums, int64_t image0, int64_t first,
                 int64_t count) {
  while (count > 0) {
    const int64_t image = first / rows.positions;
    const int64_t here = std::min(count, (image + 1) * rows.positions - first);
    const int32_t zero = rows.zero ? zero_point(rows.zero[image0 + image]) : 0;
    const int64_t start =
        (image0 * rows.positions + first) * rows.weight.outputs + rows.block.first;
    End::template finish<kFunction>(rows, sums, rows.scale[image0 + image], zero, start,
                                    here);
    sums += here * ConvBlock::kOutputs;
    first += here;
    count -= here;
  }
}

using Finish = void (*)(const Ends&, const int32_t*, int64_t, int64_t, int64_t);

template <class End>
Finish finish_by(Function function) {
  switch (function) {
    case Function::kRelu:
      return finish_conv<End, Function::kRelu>;
    case Function::kRelu6:
      return finish_conv<End, Function::kRelu6>;
    case Function::kSquaredRelu:
      return finish_conv<End, Function::kSquaredRelu>;
    case Function::kGelu:
      return finish_conv<End, Function::kGelu>;
    case Function::kGeluTanh:
      return finish_conv<End, Function::kGeluTanh>;
    case Function::kSilu:
      return finish_conv<End, Function::kSilu>;
    case Function::kTanh:
      return finish_conv<End, Function::kTanh>;
    case Function::kSigmoid:
      return finish_conv<End, Function::kSigmoid>;
    default:
      return finish_conv<End, Function::kNone>;
  }
}

}  // namespace
}  // namespace jcompress
