// Where the patches of images lie.
#pragma once

#include <cstdint>

#include "buffer.h"
#include "handlers.h"

namespace jcompress {
namespace {

using Sizes = ffi::Span<const int64_t>;

inline int64_t product_of(const List<int64_t>& sizes) {
  int64_t product = 1;
  for (int64_t size : sizes) product *= size;
  return product;
}

// The spatial axes of images and of a window that moves over them.
struct Geometry {
  List<int64_t> sizes, padded, low, out, lines, offsets;
  int64_t channels, image, image_bytes, positions, inputs, run_bytes, stride;
  int64_t across;  // positions of the window along the last axis

  // Returns what is wrong, or null. Of each position of the window `groups` parts of the
  // channels, whose first byte is the patch's, are multiplied with outputs of their own.
  const char* set(Sizes data, Sizes window, Sizes strides, Sizes pad_low, Sizes pad_high,
                  Sizes dilation, int64_t depth, int64_t groups = 1) {
    const size_t rank = data.size();
    for (const Sizes& other : {window, strides, pad_low, pad_high, dilation}) {
      if (other.size() != rank) return "ranks differ";
    }
    if (rank < 1 || depth < 1) return "there is no axis";
    if (groups < 1 || depth % groups) return "groups do not fit";
    channels = depth;
    for (List<int64_t>* each : {&sizes, &padded, &low, &out}) each->reserve(rank);
    for (size_t d = 0; d < rank; ++d) {
      if (data[d] < 1 || window[d] < 1 || strides[d] < 1 || dilation[d] < 1) {
        return "a size is not positive";
      }
      sizes.push_back(data[d]);
      low.push_back(pad_low[d]);
      padded.push_back(data[d] + pad_low[d] + pad_high[d]);
      const int64_t rest = padded[d] - dilation[d] * (window[d] - 1) - 1;
      if (rest < 0) return "the window is larger than the image";
      out.push_back(rest / strides[d] + 1);
    }
    image = product_of(sizes) * channels;
    image_bytes = product_of(padded) * channels;
    positions = product_of(out);
    List<int64_t> steps(rank, channels);  // bytes from one index to the next
    for (size_t d = rank - 1; d > 0; --d) steps[d - 1] = steps[d] * padded[d];
    stride = strides[rank - 1] * channels;
    across = window[rank - 1];
    // Neighbouring positions of a window form a run of bytes.
    const bool joined = dilation[rank - 1] == 1 && groups == 1;
    run_bytes = joined ? window[rank - 1] * channels : channels / groups;
    lines = {0};
    offsets = {0};
    for (size_t d = 0; d < rank; ++d) {
      if (d + 1 < rank) lines = spread(lines, out[d], strides[d] * steps[d]);
      const int64_t count = d + 1 == rank && joined ? 1 : window[d];
      offsets = spread(offsets, count, dilation[d] * steps[d]);
    }
    inputs = static_cast<int64_t>(offsets.size()) * run_bytes;
    return nullptr;
  }

  // Every offset followed by those of `count` steps from it.
  static List<int64_t> spread(const List<int64_t>& from, int64_t count, int64_t step) {
    List<int64_t> all;
    all.reserve(from.size() * static_cast<size_t>(count));
    for (int64_t offset : from) {
      for (int64_t i = 0; i < count; ++i) all.push_back(offset + i * step);
    }
    return all;
  }

  int64_t padded_lines() const { return image_bytes / (padded.back() * channels); }

  // The line of the image that a line of the padded image shows; -1 for padding.
  int64_t source(int64_t line) const {
    int64_t from = 0, size = 1;
    for (int64_t d = static_cast<int64_t>(sizes.size()) - 2; d >= 0; --d) {
      const int64_t index = line % padded[d] - low[d];
      line /= padded[d];
      if (index < 0 || index >= sizes[d]) return -1;
      from += index * size;
      size *= sizes[d];
    }
    return from;
  }
};

}  // namespace
}  // namespace jcompress
